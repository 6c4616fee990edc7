"""The long short-term memory."""

import typing
from typing import Unpack

import keras

from keras_gates import activations
from keras_gates.cells.base import GatedCell
from keras_gates.cells.step import kept_shape
from keras_gates.types import Activation, CellArguments
from keras_gates.validation import true_or_false


@keras.saving.register_keras_serializable(package="keras_gates")
class LSTMCell(GatedCell):
    """Long short-term memory, one time step.

        i  = σ(x W_i + h U_i + b_i)        input gate
        f  = σ(x W_f + h U_f + b_f)        forget gate
        g  = φ(x W_g + h U_g + b_g)        candidate
        o  = σ(x W_o + h U_o + b_o)        output gate
        c' = f * c + i * g                 cell state
        h' = o * ψ(c')                     hidden state

    Weights as in `keras.layers.LSTM`: kernel W (features, 4 units), recurrent kernel U
    (units, 4 units) and bias b (4 units,), with columns i, f, g, o.

    Clipping: dL/dc', what h' sends through the output activation plus what comes from step t+1,
    is clipped on its own, like dL/dh'.

    Args:
        units: positive integer.
        output_activation: ψ. Default: the candidate's activation, as in Keras.
        unit_forget_bias: whether b_f starts at 1 instead of what `bias_initializer` gives.
        Further arguments: see `GatedCell`.

    Example:

    >>> cell = keras_gates.LSTMCell(8, candidate_activation="softsign", output_activation="tanh")
    >>> keras.layers.RNN(cell)(numpy.zeros((2, 5, 3))).shape
    TensorShape([2, 8])

    Sources: Hochreiter, Schmidhuber, "Long short-term memory", 1997; Gers, Schmidhuber, Cummins,
    "Learning to forget", 2000; for unit_forget_bias Jozefowicz et al., 2015.
    """

    blocks: tuple[str, ...] = ("input", "forget", "candidate", "output")
    state_names = ("hidden", "cell")
    normalized_states = ("cell",)
    symbols: typing.ClassVar[dict[str, str]] = {"candidate": "g"}

    def __init__(
        self,
        units: int,
        *,
        output_activation: Activation | None = None,
        unit_forget_bias: bool = True,
        **kwargs: Unpack[CellArguments],
    ) -> None:
        super().__init__(units, **kwargs)
        self.output_activation = (
            self.candidate_activation
            if output_activation is None
            else activations.get(output_activation, "output_activation")
        )
        self.unit_forget_bias = true_or_false("unit_forget_bias", unit_forget_bias)

    def update(self, x, u, states):
        _, c = states
        i = self.gate("input", x.input + u.input)
        f = self.gate("forget", x.forget + u.forget)
        g = self.candidate(x.candidate + u.candidate)
        o = self.gate("output", x.output + u.output)
        c = self.clip_state(f * c + i * g)
        return o * self.output(self.normalize("cell", c)), c

    def output(self, cell_state):
        """ψ of the cell state."""
        return kept_shape("output_activation", self.output_activation, cell_state)

    @property
    def ones_in_bias(self):
        return "forget" if self.unit_forget_bias else None

    def activations_in_use(self):
        return [*super().activations_in_use(), self.output_activation]

    def get_config(self):
        output = None
        if self.output_activation is not self.candidate_activation:
            output = activations.serialize(self.output_activation, "output_activation")
        return {
            **super().get_config(),
            "output_activation": output,
            "unit_forget_bias": self.unit_forget_bias,
        }
