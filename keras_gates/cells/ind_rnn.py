"""The independently recurrent neural network."""

import typing
from typing import Unpack

import keras

from keras_gates.cells.base import GatedCell
from keras_gates.types import CellArguments


@keras.saving.register_keras_serializable(package="keras_gates")
class IndRNNCell(GatedCell):
    """Independently recurrent network: each unit sees itself alone, one time step.

        h' = φ(x W + b + u * h)

    φ is relu by default. Stack layers for units to see each other.

    Weights: kernel W (features, units), bias b (units,), recurrent vector u (units,), which starts
    Uniform(0, 1) unless `recurrent_initializer` says otherwise; `recurrent_regularizer` and
    `recurrent_constraint` are for it. Over T steps the paper keeps |u| below 2^(1/T), for a growth
    of 2 at most.

    Args:
        units: positive integer.
        Further arguments: see `GatedCell`, except `gate_activation` and `recurrent_dropout`.

    Example:

    >>> layer = keras_gates.GatedRNN(8, cell="ind_rnn", return_sequences=True)
    >>> layer(numpy.zeros((2, 5, 3))).shape
    TensorShape([2, 5, 8])

    Source: Li, Li, Cook, Zhu, Gao, "Independently recurrent neural network (IndRNN): building a
    longer and deeper RNN", 2018.
    """

    recurrent_blocks = ()
    default_candidate_activation = "relu"
    symbols: typing.ClassVar[dict[str, str]] = {"recurrent_vector": "u"}

    def __init__(self, units: int, **kwargs: Unpack[CellArguments]) -> None:
        kwargs.setdefault("recurrent_initializer", keras.initializers.RandomUniform(0.0, 1.0))
        super().__init__(units, **kwargs)

    def build(self, input_shape):
        super().build(input_shape)
        self.recurrent_vector = self.add_recurrent_vector("recurrent_vector")

    def update(self, x, u, states):
        (h,) = states
        return (self.candidate(x.candidate + self.recurrent_vector * h),)
