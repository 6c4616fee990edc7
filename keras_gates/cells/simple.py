"""The simple (Elman) recurrent unit."""

import keras

from keras_gates.cells.base import GatedCell


@keras.saving.register_keras_serializable(package="keras_gates")
class SimpleRNNCell(GatedCell):
    """Simple recurrent unit, one time step. It has a candidate and no gates.

        h' = φ(x W + h U + b)

    Weights as in `keras.layers.SimpleRNN`: kernel W (features, units), recurrent kernel U
    (units, units), bias b (units,).

    Args:
        units: positive integer.
        Further arguments: see `GatedCell`, except `gate_activation`.

    Example (relu with identity recurrent weights and clipped gradients, Le et al. 2015):

    >>> cell = keras_gates.SimpleRNNCell(
    ...     8, candidate_activation="relu", recurrent_initializer="identity", grad_clip_norm=1.0)
    >>> keras.layers.RNN(cell)(numpy.zeros((2, 5, 3))).shape
    TensorShape([2, 8])

    Sources: Elman, "Finding structure in time", 1990; Le, Jaitly, Hinton, "A simple way to
    initialize recurrent networks of rectified linear units", 2015.
    """

    blocks = ("candidate",)

    def update(self, x, u, states):
        return (self.candidate(x.candidate + u.candidate),)
