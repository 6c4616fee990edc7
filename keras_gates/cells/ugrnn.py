"""The update gate recurrent network."""

import keras

from keras_gates.cells.base import GatedCell


@keras.saving.register_keras_serializable(package="keras_gates")
class UGRNNCell(GatedCell):
    """Update gate recurrent network: a simple RNN with an update gate, one time step.

        z  = σ(x W_z + h U_z + b_z)
        n  = φ(x W_n + h U_n + b_n)
        h' = z * h + (1 - z) * n

    Weights: kernel W (features, 2 units), recurrent kernel U (units, 2 units), bias b (2 units,),
    with columns z, n. b_z starts at 1, as in the paper.

    Args:
        units: positive integer.
        Further arguments: see `GatedCell`.

    Example:

    >>> layer = keras_gates.GatedRNN(8, cell="ugrnn")
    >>> layer(numpy.zeros((2, 5, 3))).shape
    TensorShape([2, 8])

    Source: Collins, Sohl-Dickstein, Sussillo, "Capacity and trainability in recurrent neural
    networks", 2017.
    """

    blocks = ("update", "candidate")
    ones_in_bias: str | None = "update"

    def update(self, x, u, states):
        (h,) = states
        z = self.gate("update", x.update + u.update)
        n = self.candidate(x.candidate + u.candidate)
        return (z * h + (1 - z) * n,)
