"""Layer normalization of what a cell projects."""

from keras import ops

# As in keras.layers.LayerNormalization.
EPSILON = 1e-3


def normalized(values):
    """Values (batch, units), together of mean 0 and variance 1 over units.

        (v - mean) / sqrt(variance + ε)

    Source: Ba, Kiros, Hinton, "Layer normalization", 2016.
    """
    count = len(values) * values[0].shape[-1]
    mean = _total(values) / count
    centered = [v - mean for v in values]
    variance = _total([ops.square(v) for v in centered]) / count
    return [v / ops.sqrt(variance + EPSILON) for v in centered]


def _total(values):
    sums = [ops.sum(v, axis=-1, keepdims=True) for v in values]
    return sum(sums[1:], sums[0])
