"""cuDNN on TensorFlow, with every mask."""

import functools

import tensorflow as tf

from keras_gates.engine.cudnn.engine import CudnnEngine
from keras_gates.engine.differentiable.tensorflow import differentiable, step_by_step


class FusedEngine(CudnnEngine):
    """Runs one cell; see `CudnnEngine`."""

    def __call__(self, sequences, states, mask, dropout, return_sequences, gradients=True):
        """See `Engine`."""

        def infer(given):
            return self.computed(given, mask, dropout, return_sequences)

        def forward(given):
            with tf.GradientTape(persistent=True) as tape:
                tape.watch(given)
                results = infer(given)
            return results, (tape, given, results)

        def backward(_, kept, d_results, wants_d_x):
            tape, given, results = kept
            return tape.gradient(
                results,
                given,
                output_gradients=d_results,
                unconnected_gradients=tf.UnconnectedGradients.ZERO,
            )

        steps = functools.partial(step_by_step, self.recurrence, return_sequences)
        run = differentiable(infer, forward, backward, steps, (mask, dropout))
        given = [sequences, *states, *self.recurrence.values()]
        return self.apart(run(given, gradients), return_sequences)

    def masked(self, x, states, mask, weights, return_sequences):
        """A masked step carries the states, so that the valid steps run as a sequence of their own:
        they are moved to the front, where cuDNN wants them, and their hidden states back."""
        if mask is None:
            return super().masked(x, states, mask, weights, return_sequences)
        counts = tf.cumsum(tf.cast(mask, "int32"), axis=1)
        time = tf.shape(counts)[1]
        steps = tf.tile(tf.range(time)[None], [tf.shape(counts)[0], 1])
        # The step with the t-th valid one; any, after the last of these.
        order = tf.minimum(tf.searchsorted(counts, steps + 1), time - 1)
        # cuDNN takes no empty sequences.
        front = steps < tf.maximum(counts[:, -1:], 1)
        hidden, last = super().masked(
            tf.gather(x, order, batch_dims=1), states, front, weights, return_sequences
        )
        last = [
            tf.where(counts[:, -1:] > 0, after, before)
            for after, before in zip(last, states, strict=True)
        ]
        if return_sequences:
            hidden = tf.gather(hidden, tf.maximum(counts - 1, 0), batch_dims=1)
            hidden = tf.where(counts[:, :, None] > 0, hidden, states[0][:, None])
        return hidden, last
