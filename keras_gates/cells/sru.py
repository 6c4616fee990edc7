"""The simple recurrent unit."""

import typing
from typing import Unpack

import keras

from keras_gates.cells.base import GatedCell
from keras_gates.types import CellArguments


@keras.saving.register_keras_serializable(package="keras_gates")
class SRUCell(GatedCell):
    """Simple recurrent unit: the gates see the own cell state alone, one time step.

        f  = σ(x W_f + b_f + v_f * c)
        r  = σ(x W_r + b_r + v_r * c)
        n  = φ(x W_n + b_n)
        c' = f * c + (1 - f) * n
        h' = r * c' + (1 - r) * sqrt(3) * (x W_s + b_s)

    φ is the identity by default. The last term is a highway past the recurrence, with the scale of
    what goes in. Stack layers for units to see each other.

    Weights: kernel W (features, 4 units) of variance 1 / features and bias b (4 units,), with
    columns f, r, n, s, then the recurrent vectors v_f and v_r (units,) of variance 1 / 2, which
    `recurrent_initializer`, `_regularizer` and `_constraint` are for. The paper has x itself for
    x W_s + b_s where features and units are as many, and neither b_n nor b_s, which start at 0.

    Example:

    >>> layer = keras_gates.GatedRNN(8, cell="sru", return_sequences=True)
    >>> layer(numpy.zeros((2, 5, 3))).shape
    TensorShape([2, 5, 8])

    Source: Lei et al., "Simple recurrent units for highly parallelizable recurrence", 2018.
    """

    blocks, recurrent_blocks = ("forget", "reset", "candidate", "skip"), ()
    gates, state_names = ("forget", "reset"), ("hidden", "cell")
    default_candidate_activation = "linear"
    symbols: typing.ClassVar = {"skip": "s", "forget_vector": "v_f", "reset_vector": "v_r"}

    def __init__(self, units: int, **kwargs: Unpack[CellArguments]) -> None:
        scaled, uniform = keras.initializers.VarianceScaling, keras.initializers.RandomUniform
        kwargs.setdefault("kernel_initializer", scaled(1.0, "fan_in", "uniform"))
        kwargs.setdefault("recurrent_initializer", uniform(-(1.5**0.5), 1.5**0.5))
        super().__init__(units, **kwargs)

    def build(self, input_shape):
        super().build(input_shape)
        self.forget_vector = self.add_recurrent_vector("forget_vector")
        self.reset_vector = self.add_recurrent_vector("reset_vector")

    def update(self, x, u, states):
        _, c = states
        f = self.gate("forget", x.forget + self.forget_vector * c)
        r = self.gate("reset", x.reset + self.reset_vector * c)
        c = self.clip_state(f * c + (1 - f) * self.candidate(x.candidate))
        return r * c + (1 - r) * 3**0.5 * x.skip, c
