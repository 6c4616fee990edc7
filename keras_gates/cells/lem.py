"""The long expressive memory."""

import typing
from typing import Unpack

import keras

from keras_gates.cells.base import GatedCell
from keras_gates.types import CellArguments
from keras_gates.validation import nonnegative_number, positive_integer


@keras.saving.register_keras_serializable(package="keras_gates")
class LEMCell(GatedCell):
    """Long expressive memory: every unit has learned time scales of two kinds, one time step.

        a  = Δt σ(x W_a + h U_a + b_a)          time step of the memory
        z  = Δt σ(x W_z + h U_z + b_z)          time step of the hidden state
        m' = (1 - a) * m + a * φ(x W_m + h U_m + b_m)
        h' = (1 - z) * h + z * φ(x W_n + m' U_n + b_n)

    Weights: kernel W (features, 4 units), recurrent kernel U (units, 4 units), bias b (4 units,),
    with columns a, z, m, n; all start Uniform(-1 / sqrt(units), 1 / sqrt(units)).

    Args:
        units: positive integer.
        dt: Δt, the largest time step. Further ones: see `GatedCell`.

    Example:

    >>> layer = keras_gates.GatedRNN(8, cell="lem", dt=0.5)
    >>> layer(numpy.zeros((2, 5, 3))).shape
    TensorShape([2, 8])

    Source: Rusch et al., "Long expressive memory for sequence modeling", 2022; its y, z are h, m.
    """

    blocks = ("memory_step", "update", "memory", "candidate")
    projected_blocks = ("memory_step", "update", "memory")
    gates, state_names = ("memory_step", "update"), ("hidden", "memory")
    symbols: typing.ClassVar[dict[str, str]] = {"memory": "m", "memory_step": "a"}

    def __init__(self, units: int, *, dt: float = 1.0, **kwargs: Unpack[CellArguments]) -> None:
        bound = positive_integer("units", units) ** -0.5
        for of in ("kernel", "recurrent", "bias"):
            uniform = keras.initializers.RandomUniform(-bound, bound)
            kwargs.setdefault(f"{of}_initializer", uniform)  # type: ignore[misc]
        super().__init__(units, **kwargs)
        self.dt = nonnegative_number("dt", dt)

    def update(self, x, u, states):
        h, m = states
        a = self.dt * self.gate("memory_step", x.memory_step + u.memory_step)
        z = self.dt * self.gate("update", x.update + u.update)
        m = self.clip_state((1 - a) * m + a * self.candidate_activation(x.memory + u.memory))
        n = self.candidate(x.candidate + self.recurrent("candidate", m))
        return (1 - z) * h + z * n, m

    def get_config(self):
        return {**super().get_config(), "dt": self.dt}
