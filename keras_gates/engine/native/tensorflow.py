"""The kernel on TensorFlow, as an operation."""

import tensorflow as tf

from keras_gates._keras.calls import is_pulled_by_a_tape, is_watched
from keras_gates.engine.native.again import pulled_again
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
        watched = is_watched(sequences)

        def forward(given, gradients):
            call = self.call("forward" if gradients else "infer", counts, return_sequences)
            return _done(call, [*given, *more], [*shapes, [None]] if gradients else shapes)

        def backward(given, memory, d_results, wants_d_x):
            call = self.call("backward", counts, return_sequences, wants_d_x)
            wanted = given if wants_d_x else given[1:]
            tensors = [*given, *more, memory, *d_results]
            return _done(call, tensors, [w.shape for w in wanted])

        @tf.custom_gradient
        def run(*given):
            *results, memory = forward([tf.stop_gradient(value) for value in given], True)

            def grad(*d):
                # Of a first layer the gradient at its input is wanted by nobody.
                wants_d_x = watched or not is_pulled_by_a_tape()

                @tf.custom_gradient
                def pull(*d_and_given):
                    stopped = [tf.stop_gradient(value) for value in d_and_given]
                    d, given = d_and_given[: len(results)], d_and_given[len(results) :]

                    def again(*v):
                        if not wants_d_x:
                            v = [tf.zeros_like(given[0]), *v]
                        return pulled_again(
                            self.recurrence, mask, dropout, return_sequences, given, d, v
                        )

                    found = backward(
                        stopped[len(results) :], memory, stopped[: len(results)], wants_d_x
                    )
                    return found, again

                found = pull(*d, *given)
                return found if wants_d_x else [None, *found]

            return results, grad

        results = list(run(*given)) if gradients else forward(given, False)
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
