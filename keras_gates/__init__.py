"""Recurrent layers for Keras 3 whose gate and candidate activations are yours to choose."""

import importlib
import typing

from keras_gates import activations, initializers
from keras_gates._version import __version__
from keras_gates.activations import profile
from keras_gates.cells import (
    AntisymmetricRNNCell,
    CIFGCell,
    FastGRNNCell,
    GatedAntisymmetricRNNCell,
    GatedCell,
    GRUCell,
    IndRNNCell,
    JANETCell,
    LayerNormGRUCell,
    LayerNormLSTMCell,
    LEMCell,
    LiGRUCell,
    LSTMCell,
    MGUCell,
    MinGRUCell,
    MinLSTMCell,
    MultiplicativeLSTMCell,
    NBRCCell,
    PeepholeLSTMCell,
    SimpleRNNCell,
    SRUCell,
    STARCell,
    UGRNNCell,
)
from keras_gates.layers import GatedRNN
from keras_gates.verdicts import UnstableActivationsWarning, check_activations

if typing.TYPE_CHECKING:
    from keras_gates import checks, deployment, diagnostics, tuning
    from keras_gates.convert import from_keras, from_torch, load_keras2
    from keras_gates.deployment import export
    from keras_gates.diagnostics import GateMonitor, diagnose

__all__ = [
    "AntisymmetricRNNCell",
    "CIFGCell",
    "FastGRNNCell",
    "GRUCell",
    "GateMonitor",
    "GatedAntisymmetricRNNCell",
    "GatedCell",
    "GatedRNN",
    "IndRNNCell",
    "JANETCell",
    "LEMCell",
    "LSTMCell",
    "LayerNormGRUCell",
    "LayerNormLSTMCell",
    "LiGRUCell",
    "MGUCell",
    "MinGRUCell",
    "MinLSTMCell",
    "MultiplicativeLSTMCell",
    "NBRCCell",
    "PeepholeLSTMCell",
    "SRUCell",
    "STARCell",
    "SimpleRNNCell",
    "UGRNNCell",
    "UnstableActivationsWarning",
    "__version__",
    "activations",
    "check_activations",
    "checks",
    "deployment",
    "diagnose",
    "diagnostics",
    "export",
    "from_keras",
    "from_torch",
    "initializers",
    "load_keras2",
    "profile",
    "tuning",
]
# What is imported when it is first used, because it takes a while: from a name to its module.
_LAZY = {
    "GateMonitor": "diagnostics",
    "diagnose": "diagnostics",
    "export": "deployment",
    **dict.fromkeys(("from_keras", "from_torch", "load_keras2"), "convert"),
    **{name: name for name in ("checks", "deployment", "diagnostics", "tuning")},
}


def __getattr__(name):
    if name not in _LAZY:
        raise AttributeError(f"module 'keras_gates' has no attribute {name!r}")
    module = importlib.import_module(f"keras_gates.{_LAZY[name]}")
    globals()[name] = found = module if _LAZY[name] == name else getattr(module, name)
    return found


def __dir__():
    return sorted({*globals(), *_LAZY})
