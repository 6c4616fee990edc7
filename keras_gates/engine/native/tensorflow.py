"""The kernel on TensorFlow, as an operation."""

import functools

import tensorflow as tf

from keras_gates._keras.calls import is_watched
from keras_gates.engine.differentiable.tensorflow import differentiable, step_by_step
from keras_gates.engine.native.engine import NativeEngine
from keras_gates.engine.native.library import operation


class FusedEngine(NativeEngine):
    """Runs one cell; see `NativeEngine`."""

    def __call__(self, sequences, states, mask, dropout, return_sequences, gradients=True):
        """See `Engine`."""
        dtype = sequences.dtype
        given = [sequences, *states, *self.recurrence.values()]
        given = [tf.cast(value, self.dtype) for value in given]
        more = [] if mask is None else [tf.cast(mask, "bool")]
        more += [tf.cast(m, self.dtype) for masks in dropout[:2] for m in masks]
        more += [tf.cast(m, "bool") for m in dropout.kept]
        counts = (int(mask is not None), *map(len, dropout))
        shapes = [s.shape for s in states]
        if return_sequences:
            shapes.insert(0, [*sequences.shape[:2], self.recurrence.cell.units])

        def infer(given):
            return _done(self.call("infer", counts, return_sequences), [*given, *more], shapes)

        def forward(given):
            call = self.call("forward", counts, return_sequences)
            *results, memory = _done(call, [*given, *more], [*shapes, [None]])
            return results, tf.stop_gradient(memory)  # nothing goes back through it but `backward`

        def backward(given, memory, d_results, wants_d_x):
            call = self.call("backward", counts, return_sequences, wants_d_x)
            wanted = given if wants_d_x else given[1:]
            tensors = [*given, *more, memory, *d_results]
            return _done(call, tensors, [w.shape for w in wanted])

        steps = functools.partial(step_by_step, self.recurrence, return_sequences)
        run = differentiable(
            infer, forward, backward, steps, (mask, dropout), is_watched(sequences)
        )
        results = run(given, gradients)
        hidden = tf.cast(results.pop(0), dtype) if return_sequences else None
        return hidden, [tf.cast(r, state.dtype) for r, state in zip(results, states, strict=True)]


def _done(call, tensors, shapes):
    """What a `Call` returns, as tensors of these shapes."""
    dtypes = [tf.as_dtype(call.form.dtype)] * len(shapes)
    if operation() is not None:
        found = operation()(tensors, call=call.number, results=dtypes)
    elif tf.executing_eagerly():
        return [tf.convert_to_tensor(a) for a in call([t.numpy() for t in tensors])]
    else:
        found = tf.numpy_function(lambda *arrays: call(arrays), tensors, dtypes)
    if not tf.executing_eagerly():
        for tensor, shape in zip(found, shapes, strict=True):
            tensor.set_shape(shape)
    return found
