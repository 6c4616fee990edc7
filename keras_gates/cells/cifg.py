"""The long short-term memory with coupled input and forget gates."""

import keras

from keras_gates.cells.lstm import LSTMCell


@keras.saving.register_keras_serializable(package="keras_gates")
class CIFGCell(LSTMCell):
    """Long short-term memory that forgets as much as it takes in, one time step.

        f  = σ(x W_f + h U_f + b_f)
        g  = φ(x W_g + h U_g + b_g)
        o  = σ(x W_o + h U_o + b_o)
        c' = f * c + (1 - f) * g
        h' = o * ψ(c')

    Weights as in `LSTMCell` without the input gate: columns f, g, o.

    Args:
        units: positive integer.
        Further arguments: see `LSTMCell`.

    Example:

    >>> layer = keras_gates.GatedRNN(8, cell="cifg", gate_activation="hard_sigmoid")
    >>> layer(numpy.zeros((2, 5, 3))).shape
    TensorShape([2, 8])

    Source: Greff et al., "LSTM: a search space odyssey", 2017.
    """

    blocks = ("forget", "candidate", "output")

    def update(self, x, u, states):
        _, c = states
        f = self.gate("forget", x.forget + u.forget)
        g = self.candidate(x.candidate + u.candidate)
        o = self.gate("output", x.output + u.output)
        c = self.clip_state(f * c + (1 - f) * g)
        return o * self.output(self.normalize("cell", c)), c
