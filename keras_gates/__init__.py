"""Recurrent layers for Keras 3 whose gate and candidate activations are yours to choose."""

from keras_gates import activations
from keras_gates._version import __version__
from keras_gates.cells import GatedCell, GRUCell, LSTMCell, SimpleRNNCell
from keras_gates.convert import from_keras
from keras_gates.layers import GatedRNN
from keras_gates.verdicts import UnstableActivationsWarning, check_activations

__all__ = [
    "GRUCell",
    "GatedCell",
    "GatedRNN",
    "LSTMCell",
    "SimpleRNNCell",
    "UnstableActivationsWarning",
    "__version__",
    "activations",
    "check_activations",
    "from_keras",
]
