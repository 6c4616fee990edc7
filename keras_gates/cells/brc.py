"""The neuromodulated bistable recurrent cell."""

import typing

import keras

from keras_gates.cells.base import GatedCell


@keras.saving.register_keras_serializable(package="keras_gates")
class NBRCCell(GatedCell):
    """Neuromodulated bistable recurrent cell, one time step.

        a  = 1 + τ(x W_a + h U_a + b_a)      feedback: bistable where above 1
        c  = σ(x W_c + h U_c + b_c)
        h' = c * h + (1 - c) * φ(x W_n + a * h + b_n)

    A cell between two stable states remembers for any time. Weights: kernel W (features, 3 units),
    recurrent kernel U (units, 2 units), bias b (3 units,), with columns a, c, n.

    Args:
        units: positive integer.
        Further arguments: see `GatedCell`.

    Example:

    >>> layer = keras_gates.GatedRNN(8, cell="n_brc", gate_activation={"update": "hard_sigmoid"})
    >>> layer(numpy.zeros((2, 5, 3))).shape
    TensorShape([2, 8])

    Source: Vecoven, Ernst, Drion, "A bio-inspired bistable recurrent cell allows for long-lasting
    memory", 2021.
    """

    blocks = ("feedback", "update", "candidate")
    recurrent_blocks = ("feedback", "update")
    default_gate_activation: typing.ClassVar = {"feedback": "tanh", "update": "sigmoid"}
    symbols: typing.ClassVar[dict[str, str]] = {"feedback": "a"}

    def update(self, x, u, states):
        (h,) = states
        a = 1 + self.gate("feedback", x.feedback + u.feedback)
        c = self.gate("update", x.update + u.update)
        return (c * h + (1 - c) * self.candidate(x.candidate + a * h),)
