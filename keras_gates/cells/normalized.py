"""The cells of "Layer normalization"."""

from typing import Unpack

import keras

from keras_gates.cells.gru import GRUCell
from keras_gates.cells.lstm import LSTMCell
from keras_gates.types import CellArguments


@keras.saving.register_keras_serializable(package="keras_gates")
class LayerNormGRUCell(GRUCell):
    """A GRU with layer normalization, one time step.

        z  = σ(L(x W_z) + b_z + L(h U_z) + c_z)
        r  = σ(L(x W_r) + b_r + L(h U_r) + c_r)
        n  = φ(L(x W_n) + b_n + r * (L(h U_n) + c_n))
        h' = z * h + (1 - z) * n

    L makes the mean 0 and the variance 1 over units, of z and r together and of n by itself, and
    multiplies by a gain per unit. The same as `GRUCell(layer_norm=True)`.

    Args:
        units: positive integer.
        Further arguments: see `GRUCell`.

    Example:

    >>> layer = keras_gates.GatedRNN(8, cell="layer_norm_gru", candidate_activation="relu")
    >>> layer(numpy.zeros((2, 5, 3))).shape
    TensorShape([2, 8])

    Source: Ba, Kiros, Hinton, "Layer normalization", 2016.
    """

    def __init__(self, units: int, **kwargs: Unpack[CellArguments]) -> None:
        kwargs.setdefault("layer_norm", True)
        super().__init__(units, **kwargs)


@keras.saving.register_keras_serializable(package="keras_gates")
class LayerNormLSTMCell(LSTMCell):
    """A long short-term memory with layer normalization, one time step.

        i, f, o = σ(L(x W) + L(h U) + b)
        g       = φ(L(x W_g) + L(h U_g) + b_g)
        c'      = f * c + i * g
        h'      = o * ψ(L(c') + b_c)

    L makes the mean 0 and the variance 1 over units, of i, f, g and o together, and multiplies by a
    gain per unit. The same as `LSTMCell(layer_norm=True)`.

    Args:
        units: positive integer.
        Further arguments: see `LSTMCell`.

    Example:

    >>> layer = keras_gates.GatedRNN(8, cell="layer_norm_lstm")
    >>> layer(numpy.zeros((2, 5, 3))).shape
    TensorShape([2, 8])

    Source: Ba, Kiros, Hinton, "Layer normalization", 2016.
    """

    def __init__(self, units: int, **kwargs: Unpack[CellArguments]) -> None:
        kwargs.setdefault("layer_norm", True)
        super().__init__(units, **kwargs)
