"""The fast gated recurrent network."""

import typing

import keras
from keras import ops

from keras_gates.cells.base import GatedCell


@keras.saving.register_keras_serializable(package="keras_gates")
class FastGRNNCell(GatedCell):
    """Fast, accurate, stable and tiny: gate and candidate share W and U, one time step.

        p  = x W + h U + b
        z  = σ(p + d)
        n  = φ(p)
        h' = (sigmoid(ζ) * (1 - z) + sigmoid(ν)) * n + z * h

    Weights: kernel W (features, units), recurrent kernel U (units, units), bias b (units,), which
    starts at 1, the gate's further bias d (units,), and the numbers ζ and ν, each (1,), which
    start at 1 and -4. The paper's biases are b and b + d. (It also makes W and U of low rank,
    sparse and quantized.)

    Args:
        units: positive integer.
        Further arguments: see `GatedCell`.

    Example:

    >>> layer = keras_gates.GatedRNN(8, cell="fast_grnn")
    >>> layer(numpy.zeros((2, 5, 3))).shape
    TensorShape([2, 8])

    Source: Kusupati et al., "FastGRNN: a fast, accurate, stable and tiny kilobyte sized gated
    recurrent neural network", 2018.
    """

    gates = ("update",)
    ones_in_bias = "candidate"
    symbols: typing.ClassVar[dict[str, str]] = {"zeta": "ζ", "nu": "ν", "gate_bias": "d"}

    def build(self, input_shape):
        super().build(input_shape)
        self.gate_bias = 0.0
        if self.use_bias:
            self.gate_bias = self.add_weight((self.units,), "zeros", name="gate_bias")
        constant = keras.initializers.Constant
        self.zeta = self.add_weight((1,), constant(1.0), name="zeta")
        self.nu = self.add_weight((1,), constant(-4.0), name="nu")

    def update(self, x, u, states):
        (h,) = states
        p = x.candidate + u.candidate
        z = self.gate("update", p + self.gate_bias)
        n = self.candidate(p)
        return ((ops.sigmoid(self.zeta) * (1 - z) + ops.sigmoid(self.nu)) * n + z * h,)
