"""The light gated recurrent unit."""

import keras

from keras_gates.cells.ugrnn import UGRNNCell


@keras.saving.register_keras_serializable(package="keras_gates")
class LiGRUCell(UGRNNCell):
    """Light gated recurrent unit, without a reset gate, one time step.

        z  = σ(x W_z + h U_z + b_z)
        n  = φ(x W_n + h U_n + b_n)
        h' = z * h + (1 - z) * n

    φ is relu by default, which keeps the state bounded only as long as the recurrent weights do:
    the paper normalizes x W over the batch for that. Clip gradients, or take `layer_norm=True`.

    Weights: kernel W (features, 2 units), recurrent kernel U (units, 2 units), bias b (2 units,),
    with columns z, n.

    Args:
        units: positive integer.
        Further arguments: see `GatedCell`.

    Example:

    >>> layer = keras_gates.GatedRNN(8, cell="li_gru", grad_clip_norm=1.0)
    >>> layer(numpy.zeros((2, 5, 3))).shape
    TensorShape([2, 8])

    Source: Ravanelli, Brakel, Omologo, Bengio, "Light gated recurrent units for speech
    recognition", 2018.
    """

    ones_in_bias = None
    default_candidate_activation = "relu"
