"""The multiplicative long short-term memory."""

import typing

import keras

from keras_gates.cells.lstm import LSTMCell
from keras_gates.cells.step import named


@keras.saving.register_keras_serializable(package="keras_gates")
class MultiplicativeLSTMCell(LSTMCell):
    """Long short-term memory whose recurrent weights depend on the input, one time step.

        m  = (x W_m + b_m) * (h U_m)
        i  = σ(x W_i + m U_i + b_i)
        f  = σ(x W_f + m U_f + b_f)
        g  = φ(x W_g + m U_g + b_g)
        o  = σ(x W_o + m U_o + b_o)
        c' = f * c + i * g
        h' = o * ψ(c')

    Weights: kernel W (features, 5 units), recurrent kernel U (units, 5 units), bias b (5 units,),
    with columns m, i, f, g, o. The paper has no b_m; it starts at 0.

    Args:
        units: positive integer.
        Further arguments: see `LSTMCell`.

    Example:

    >>> layer = keras_gates.GatedRNN(8, cell="multiplicative_lstm")
    >>> layer(numpy.zeros((2, 5, 3))).shape
    TensorShape([2, 8])

    Source: Krause, Lu, Murray, Renals, "Multiplicative LSTM for sequence modelling", 2016.
    """

    blocks = ("multiplicative", *LSTMCell.blocks)
    projected_blocks = ("multiplicative",)
    gates = ("input", "forget", "output")
    symbols: typing.ClassVar[dict[str, str]] = {**LSTMCell.symbols, "multiplicative": "m"}

    def update(self, x, u, states):
        m = x.multiplicative * u.multiplicative
        u = {block: self.recurrent(block, m) for block in LSTMCell.blocks}
        return super().update(x, named(u, u.values()), states)
