"""The gated recurrent unit."""

from typing import Unpack

import keras

from keras_gates.cells.base import GatedCell
from keras_gates.types import CellArguments
from keras_gates.validation import true_or_false


@keras.saving.register_keras_serializable(package="keras_gates")
class GRUCell(GatedCell):
    """Gated recurrent unit, one time step.

        z  = σ(x W_z + b_z + h U_z + c_z)                  update gate
        r  = σ(x W_r + b_r + h U_r + c_r)                  reset gate
        n  = φ(x W_n + b_n + r * (h U_n + c_n))            candidate, reset_after=True
        n  = φ(x W_n + b_n + (r * h) U_n)                  candidate, reset_after=False
        h' = z * h + (1 - z) * n

    Weights as in `keras.layers.GRU`: kernel W (features, 3 units) and recurrent kernel U
    (units, 3 units) with columns z, r, n; biases b and c in one array (2, 3 units). With
    reset_after=False there is no c, and the bias is (3 units,).

    Args:
        units: positive integer.
        reset_after: whether r multiplies the recurrent product (as in cuDNN) or h itself.
        Further arguments: see `GatedCell`.

    Example:

    >>> cell = keras_gates.GRUCell(8, gate_activation={"update": "hard_sigmoid"})
    >>> keras.layers.RNN(cell)(numpy.zeros((2, 5, 3))).shape
    TensorShape([2, 8])

    Source: Cho et al., "Learning phrase representations using RNN encoder-decoder for statistical
    machine translation", 2014 (reset_after=False, their 1 - z is z here).
    """

    blocks = ("update", "reset", "candidate")
    norm_groups = (("update", "reset"), ("candidate",))

    def __init__(
        self, units: int, *, reset_after: bool = True, **kwargs: Unpack[CellArguments]
    ) -> None:
        super().__init__(units, **kwargs)
        self.reset_after = self.two_biases = true_or_false("reset_after", reset_after)
        self.projected_blocks = self.blocks if reset_after else ("update", "reset")

    def update(self, x, u, states):
        (h,) = states
        z = self.gate("update", x.update + u.update)
        r = self.gate("reset", x.reset + u.reset)
        if self.reset_after:
            n = self.candidate(x.candidate + r * u.candidate)
        else:
            n = self.candidate(x.candidate + self.recurrent("candidate", r * h))
        return (z * h + (1 - z) * n,)

    def get_config(self):
        return {**super().get_config(), "reset_after": self.reset_after}
