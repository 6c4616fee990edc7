"""The forget gate alone."""

from typing import Unpack

import keras

from keras_gates.cells.base import GatedCell
from keras_gates.types import CellArguments
from keras_gates.validation import finite_number


@keras.saving.register_keras_serializable(package="keras_gates")
class JANETCell(GatedCell):
    """Just another network: a forget gate alone, one time step.

        s  = x W_f + h U_f + b_f
        g  = φ(x W_g + h U_g + b_g)
        h' = σ(s) * h + (1 - σ(s - β)) * g

    Weights: kernel W (features, 2 units), recurrent kernel U (units, 2 units), bias b (2 units,),
    with columns f, g. b_f starts at 1; the paper's start for long memories is log(Uniform(1, T)).

    Args:
        units: positive integer.
        beta: β, by how much more is taken in than forgotten.
        Further arguments: see `GatedCell`.

    Example:

    >>> layer = keras_gates.GatedRNN(8, cell="janet")
    >>> layer(numpy.zeros((2, 5, 3))).shape
    TensorShape([2, 8])

    Source: van der Westhuizen, Lasenby, "The unreasonable effectiveness of the forget gate", 2018.
    """

    blocks = ("forget", "candidate")
    ones_in_bias = "forget"

    def __init__(self, units: int, *, beta: float = 1.0, **kwargs: Unpack[CellArguments]) -> None:
        super().__init__(units, **kwargs)
        self.beta = finite_number("beta", beta)

    def update(self, x, u, states):
        (h,) = states
        s = x.forget + u.forget
        f = self.gate("forget", s)
        taken = 1 - self.gate_activations["forget"](s - self.beta)
        return (f * h + taken * self.candidate(x.candidate + u.candidate),)

    def get_config(self):
        return {**super().get_config(), "beta": self.beta}
