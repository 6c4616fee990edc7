"""The minimal GRU and LSTM, whose gates and candidates do not see the state."""

import keras

from keras_gates.cells.base import GatedCell


@keras.saving.register_keras_serializable(package="keras_gates")
class MinGRUCell(GatedCell):
    """Minimal GRU, linear in its state, one time step.

        z  = σ(x W_z + b_z)
        n  = φ(x W_n + b_n)
        h' = (1 - z) * h + z * n

    φ is the identity by default; the paper's form in logarithms has `min_gru_g`, which keeps the
    state positive.

    Weights: kernel W (features, 2 units) and bias b (2 units,), with columns z, n.

    Args:
        units: positive integer.
        Further arguments: see `GatedCell`, except those of the recurrent kernel.

    Example:

    >>> layer = keras_gates.GatedRNN(8, cell="min_gru", candidate_activation="min_gru_g")
    >>> layer(numpy.zeros((2, 5, 3))).shape
    TensorShape([2, 8])

    Source: Feng, Tung, Ahmed, Bengio, Hajimirsadeghi, "Were RNNs all we needed?", 2024.
    """

    blocks = ("update", "candidate")
    recurrent_blocks = ()
    default_candidate_activation = "linear"

    def update(self, x, u, states):
        (h,) = states
        z = self.gate("update", x.update)
        return ((1 - z) * h + z * self.candidate(x.candidate),)


@keras.saving.register_keras_serializable(package="keras_gates")
class MinLSTMCell(GatedCell):
    """Minimal LSTM, linear in its state, one time step.

        f  = σ(x W_f + b_f)
        i  = σ(x W_i + b_i)
        g  = φ(x W_g + b_g)
        h' = (f * h + i * g) / (f + i)

    φ is the identity by default; see `MinGRUCell`.

    Weights: kernel W (features, 3 units) and bias b (3 units,), with columns f, i, g.

    Args:
        units: positive integer.
        Further arguments: see `GatedCell`, except those of the recurrent kernel.

    Example:

    >>> layer = keras_gates.GatedRNN(8, cell="min_lstm")
    >>> layer(numpy.zeros((2, 5, 3))).shape
    TensorShape([2, 8])

    Source: Feng, Tung, Ahmed, Bengio, Hajimirsadeghi, "Were RNNs all we needed?", 2024.
    """

    blocks = ("forget", "input", "candidate")
    recurrent_blocks = ()
    default_candidate_activation = "linear"

    def update(self, x, u, states):
        (h,) = states
        f, i = self.gate("forget", x.forget), self.gate("input", x.input)
        share = f / (f + i)
        return (share * h + (1 - share) * self.candidate(x.candidate),)
