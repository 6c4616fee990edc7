"""Recurrent layers for Keras 3 whose gate and candidate activations are yours to choose."""

import importlib

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
# What is imported when it is first asked for: it takes a while.
_LATER = ("checks", "diagnostics", "export", "tuning")


def __getattr__(name):
    if name in _LATER:
        return importlib.import_module(f"keras_gates.{name}")
    raise AttributeError(f"module 'keras_gates' has no attribute {name!r}")


def __dir__():
    return sorted({*globals(), *_LATER})
