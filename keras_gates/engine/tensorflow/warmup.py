"""When compiling pays, on TensorFlow.

Tracing and compiling the fused loops of a layer takes a second or two, which a short training or a
single `predict` never earns back. So a model that Keras trains or predicts with starts with Keras'
own loop, as any other model does, and its functions are traced again, fused, once enough work has
gone through them. Work is estimated from shapes, not timed, so that the step at which this happens
is the same in every run.
"""

import collections
import weakref

import tensorflow as tf

from keras_gates._keras.calls import TRAINER, callers

# Estimated seconds in Keras' own loop after which the fused one is worth its compilation. Some
# multiple of that, so that a training that ends right afterwards has lost little.
PATIENCE = 20.0
# What Keras' own loop costs on a core or two: seconds per time step, and per multiplication.
_SECONDS_PER_STEP, _SECONDS_PER_PRODUCT = 2e-4, 4e-11
# Sequences for which Keras' own loop would need more than this, in bytes, are not started with it.
MEMORY = 64 * 2**20

# From a model to the estimated seconds spent in Keras' own loop, for "train" and for "predict".
_spent: weakref.WeakKeyDictionary = weakref.WeakKeyDictionary()


def why_not_yet(layer, sequences, training):
    """Why the fused loop is not worth its compilation yet, or None."""
    model = _model_of_keras_trainer()
    kind = "train" if training else "predict"
    if (
        model is None  # somebody's own tf.function, which nobody would trace again
        or getattr(model, "jit_compile", False) is True
        or tf.distribute.has_strategy()
        or _is_long(layer.cell, sequences)
        or _spent_by(model)[kind] >= PATIENCE
    ):
        return None
    _count(model, kind, layer.cell, sequences)
    return (
        f"compiling pays after about {PATIENCE:.0f} s of work in Keras' own loop; the model is "
        "traced again then"
    )


def _is_long(cell, sequences):
    """Whether the length, if it is known, says that memory is what this layer is about."""
    batch, time = sequences.shape[0] or 32, sequences.shape[1] or 0
    per_step = 3 * cell.units * len(cell.blocks) * tf.as_dtype(cell.compute_dtype).size
    return batch * time * per_step > MEMORY


def _spent_by(model):
    return _spent.setdefault(model, collections.Counter())


def _count(model, kind, cell, sequences):
    """Puts an operation into the graph that adds up the work of every step."""
    weights = len(cell.blocks) * cell.units * (cell.units + sequences.shape[2])
    passes = 3 if kind == "train" else 1
    model = weakref.ref(model)

    def add(shape):
        batch, time = (int(size) for size in shape[:2])
        of_step = _SECONDS_PER_STEP + _SECONDS_PER_PRODUCT * weights * batch
        _add(model(), kind, passes * time * of_step)
        return shape

    tf.numpy_function(add, [tf.shape(sequences)], tf.int32, stateful=True)


def _add(model, kind, seconds):
    if model is None:
        return
    spent = _spent_by(model)
    was_patient = spent[kind] < PATIENCE
    spent[kind] += seconds
    if was_patient and spent[kind] >= PATIENCE:
        # Keras looks these up before every step, and the next one traces them again.
        for name in ("train",) if kind == "train" else ("test", "predict"):
            if getattr(model, f"{name}_function", None) is not None:
                getattr(model, f"make_{name}_function")(force=True)


def _model_of_keras_trainer():
    """The model that `fit`, `evaluate` or `predict` is tracing a function of, or None."""
    for module, frame in callers():
        if module == TRAINER:
            model = frame.f_locals.get("self")
            return model if hasattr(model, "make_train_function") else None
    return None
