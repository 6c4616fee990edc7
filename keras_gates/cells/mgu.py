"""The minimal gated unit."""

import keras

from keras_gates.cells.base import GatedCell


@keras.saving.register_keras_serializable(package="keras_gates")
class MGUCell(GatedCell):
    """Minimal gated unit: a GRU whose one gate updates and resets, one time step.

        f  = σ(x W_f + h U_f + b_f)
        n  = φ(x W_n + (f * h) U_n + b_n)
        h' = (1 - f) * h + f * n

    Weights: kernel W (features, 2 units), recurrent kernel U (units, 2 units), bias b (2 units,),
    with columns f, n.

    Args:
        units: positive integer.
        Further arguments: see `GatedCell`.

    Example:

    >>> layer = keras_gates.GatedRNN(8, cell="mgu", candidate_activation="softsign")
    >>> layer(numpy.zeros((2, 5, 3))).shape
    TensorShape([2, 8])

    Source: Zhou, Wu, Zhang, Zhou, "Minimal gated unit for recurrent neural networks", 2016.
    """

    blocks = ("forget", "candidate")
    projected_blocks = ("forget",)

    def update(self, x, u, states):
        (h,) = states
        f = self.gate("forget", x.forget + u.forget)
        n = self.candidate(x.candidate + self.recurrent("candidate", f * h))
        return ((1 - f) * h + f * n,)
