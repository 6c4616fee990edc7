"""How a cell runs over time.

`why_not_fusable` and `why_not_fused_here` say why a layer's sequences do not go through the fused
engine of the backend, which `make_engine` makes. Everything else goes through the loop of
`keras.layers.RNN` and the backend's own automatic differentiation. `use` has layers run on other
engines for a while.
"""

import importlib

import keras

from keras_gates._keras.calls import is_exporting
from keras_gates.cells import GatedCell
from keras_gates.engine.base import Engine, in_use, use, used
from keras_gates.engine.recurrence import NotFusableError

__all__ = [
    "BACKPROP",
    "Engine",
    "NotFusableError",
    "make_engine",
    "use",
    "used",
    "why_not_fusable",
    "why_not_fused_here",
]

BACKPROP = ("auto", "fused", "autodiff")
_BACKENDS = ("tensorflow", "jax")


def why_not_fusable(layer):
    """Why the layer cannot take the fused path at all, or None."""
    backend = keras.backend.backend()
    if backend not in _BACKENDS:
        return f"the {backend} backend has no fused engine"
    if layer.unroll:
        return "unroll=True asks for an unrolled loop"
    for name in ("__call__", "call", "advance"):
        if getattr(type(layer.cell), name) is not getattr(GatedCell, name):
            return f"{type(layer.cell).__name__} defines its own `{name}`"
    return None


def why_not_fused_here(layer, sequences, training):
    """Why the layer does not take the fused path in what is being computed now, or None."""
    automatic = layer.backprop != "fused"
    tensorflow = keras.backend.backend() == "tensorflow"
    if automatic and (eager := _why_not_eagerly(sequences, tensorflow)):
        return eager
    if in_use() or is_exporting():  # looks through the call stack, so it comes after what is quick
        return "an exported model consists of plain operations"
    if not (automatic and tensorflow):
        return None
    import tensorflow as tf

    if tf.config.list_physical_devices("GPU"):
        return "the kernels are made for CPUs, and TensorFlow has a GPU here"
    from keras_gates.engine.tensorflow import warmup

    return warmup.why_not_yet(layer, sequences, training)


def _why_not_eagerly(sequences, tensorflow):
    """Why nothing is compiled for this call alone, or None inside a graph."""
    if tensorflow:
        import tensorflow as tf

        if tf.executing_eagerly():
            return "outside a graph (fit, predict, tf.function) every new shape would be compiled"
        return None
    import jax

    if not isinstance(sequences, jax.core.Tracer):
        return "outside jit and grad every call would be compiled"
    return None


def make_engine(cell):
    """The `Engine` of the present backend, for one built cell."""
    module = importlib.import_module(f"keras_gates.engine.{keras.backend.backend()}")
    return module.FusedEngine(cell)
