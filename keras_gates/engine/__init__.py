"""How a cell runs over time.

`why_not_fusable` and `why_not_fused_here` say why a layer's sequences do not go through the fused
engine of the backend; `run` sends them through it. Everything else goes through the loop of
`keras.layers.RNN` and the backend's own automatic differentiation. `use` has layers run on other
engines for a while.
"""

import importlib

import keras
from keras import ops

from keras_gates._keras.calls import is_exporting, may_be_recorded
from keras_gates.cells import GatedCell
from keras_gates.engine.base import Engine, use, used
from keras_gates.engine.recurrence import Dropout, NotFusableError

__all__ = [
    "BACKPROP",
    "Engine",
    "NotFusableError",
    "make_engine",
    "run",
    "use",
    "used",
    "why_not_fusable",
    "why_not_fused_here",
]

BACKPROP = ("auto", "fused", "autodiff")
BACKENDS = ("tensorflow", "jax")


def why_not_fusable(layer):
    """Why the layer cannot take the fused path at all, or None."""
    backend = keras.backend.backend()
    if backend not in BACKENDS:
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
    if is_exporting():  # looks through the call stack, so it comes after what is quick
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


def run(layer, engine, sequences, states, mask, training):
    """What `keras.layers.RNN.inner_loop` returns, for the states with the sums of penalties."""
    cell = layer.cell
    cell.refuse_loss_scaling(training)
    dropout = Dropout([], [])
    if training:
        dropout = Dropout(
            _as_list(cell.get_dropout_mask(sequences[:, 0])),
            _as_list(cell.get_recurrent_dropout_mask(states[0])),
        )
    if layer.go_backwards:
        sequences = ops.flip(sequences, axis=1)
        mask = None if mask is None else ops.flip(mask, axis=1)
    hidden, last = engine(
        sequences, states, mask, dropout, layer.return_sequences, training or may_be_recorded()
    )
    last_output = last[0]
    if mask is not None:
        zero = ops.zeros((), dtype=last_output.dtype)
        shown = _shown(mask, layer.zero_output_for_mask)
        if shown is not None:
            last_output = ops.where(shown[:, -1:], last_output, zero)
            if hidden is not None:
                hidden = ops.where(shown[:, :, None], hidden, zero)
    return last_output, last_output[:, None] if hidden is None else hidden, last


def _shown(mask, zero_output_for_mask):
    """Where the output is the hidden state; elsewhere it is zero. None: everywhere."""
    if zero_output_for_mask:
        return mask
    if keras.backend.backend() == "jax":
        return None
    # Keras on TensorFlow: before the first valid step there is no output to repeat.
    return ops.cumsum(ops.cast(mask, "int32"), axis=1) > 0


def _as_list(masks):
    if masks is None:
        return []
    return list(masks) if isinstance(masks, (list, tuple)) else [masks]
