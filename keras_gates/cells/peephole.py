"""The long short-term memory with peepholes."""

import typing

import keras

from keras_gates.cells.lstm import LSTMCell


@keras.saving.register_keras_serializable(package="keras_gates")
class PeepholeLSTMCell(LSTMCell):
    """Long short-term memory whose gates see the cell state, one time step.

        i  = σ(x W_i + h U_i + b_i + p_i * c)
        f  = σ(x W_f + h U_f + b_f + p_f * c)
        g  = φ(x W_g + h U_g + b_g)
        c' = f * c + i * g
        o  = σ(x W_o + h U_o + b_o + p_o * c')
        h' = o * ψ(c')

    Weights as in `LSTMCell`, then the peepholes p_i, p_f, p_o, each (units,), which start as
    `kernel_initializer` says: the order of `tfa.rnn.PeepholeLSTMCell`, whose weights fit.

    Args:
        units: positive integer.
        Further arguments: see `LSTMCell`.

    Example:

    >>> layer = keras_gates.GatedRNN(8, cell="peephole_lstm")
    >>> layer(numpy.zeros((2, 5, 3))).shape
    TensorShape([2, 8])

    Source: Gers, Schraudolph, Schmidhuber, "Learning precise timing with LSTM recurrent networks",
    2002.
    """

    symbols: typing.ClassVar[dict[str, str]] = {
        **LSTMCell.symbols,
        **{f"{gate}_peephole": f"p_{gate[0]}" for gate in ("input", "forget", "output")},
    }

    def build(self, input_shape):
        super().build(input_shape)
        self.input_peephole, self.forget_peephole, self.output_peephole = (
            self.add_weight((self.units,), self.kernel_initializer, name=f"{gate}_peephole")
            for gate in ("input", "forget", "output")
        )

    def update(self, x, u, states):
        _, c = states
        i = self.gate("input", x.input + u.input + self.input_peephole * c)
        f = self.gate("forget", x.forget + u.forget + self.forget_peephole * c)
        g = self.candidate(x.candidate + u.candidate)
        c = self.clip_state(f * c + i * g)
        o = self.gate("output", x.output + u.output + self.output_peephole * c)
        return o * self.output(self.normalize("cell", c)), c
