"""The stackable recurrent cell."""

from typing import Unpack

import keras
from keras import ops

from keras_gates.cells.base import GatedCell
from keras_gates.types import CellArguments


@keras.saving.register_keras_serializable(package="keras_gates")
class STARCell(GatedCell):
    """Stackable recurrent cell, made for many layers, one time step.

        k  = σ(x W_k + h U_k + b_k)
        n  = φ(x W_n + b_n)
        h' = tanh((1 - k) * h + k * n)

    Weights: kernel W (features, 2 units) with columns k, n, recurrent kernel U (units, units), both
    orthogonal at the start, bias b (2 units,).

    Args:
        units: positive integer.
        Further arguments: see `GatedCell`.

    Example:

    >>> layer = keras_gates.GatedRNN(8, cell="star", return_sequences=True)
    >>> layer(numpy.zeros((2, 5, 3))).shape
    TensorShape([2, 5, 8])

    Source: Turkoglu, D'Aronco, Wegner, Schindler, "Gating revisited: deep multi-layer RNNs that can
    be trained", 2021.
    """

    blocks = ("update", "candidate")
    recurrent_blocks = ("update",)

    def __init__(self, units: int, **kwargs: Unpack[CellArguments]) -> None:
        kwargs.setdefault("kernel_initializer", "orthogonal")
        super().__init__(units, **kwargs)

    def update(self, x, u, states):
        (h,) = states
        k = self.gate("update", x.update + u.update)
        return (ops.tanh((1 - k) * h + k * self.candidate(x.candidate)),)
