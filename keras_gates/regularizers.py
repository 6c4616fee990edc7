"""Penalties on activation values that know about masks.

    penalty = strength / N * sum over valid (b, t), over u of |a[b, t, u]|

N is the number of valid (sample, step) pairs. `keras.layers.ActivityRegularization` differs: it
sums over padding as well and divides by the batch size alone. The sum is carried along the time
loop as one more state, so that a masked step, which carries its states, adds nothing to it.
"""

from keras import ops

from keras_gates.gradients import at_least_float32


def initial_sum(sequences):
    """The sum before the first step, shape (batch, 1); never in half precision."""
    return ops.zeros((ops.shape(sequences)[0], 1), dtype=at_least_float32(sequences.dtype))


def add_step(total, activation):
    """The sum after one more step: `total` + sum over units of |activation|, shape (batch, 1)."""
    return total + ops.sum(ops.abs(ops.cast(activation, total.dtype)), axis=-1, keepdims=True)


def mean_per_valid_step(total, sequences, mask=None):
    """`total`, shape (batch, 1), summed over the batch and divided by N; 0 where N is 0."""
    if mask is None:
        shape = ops.shape(sequences)
        valid = ops.cast(shape[0], total.dtype) * ops.cast(shape[1], total.dtype)
    else:
        valid = ops.sum(ops.cast(mask, total.dtype))
    return ops.divide_no_nan(ops.sum(total), valid)
