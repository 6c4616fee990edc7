"""What a function is being traced for, which nothing that is public says. The call stack does."""

import sys

import keras

TRAINER = "keras.src.backend.tensorflow.trainer"
_NOT_THE_USERS = ("keras_gates.", "keras.", "contextlib", "tensorflow.", "jax.", "torch.")
_EXPORTERS = ("keras.src.export.", "tensorflow.python.saved_model.save")
_TRAINING = ("fit", "train_on_batch")
_PREDICTING = ("evaluate", "predict", "test_on_batch", "predict_on_batch")


def may_be_recorded():
    """Whether a gradient can ever be asked of what is being computed now.

    False only where it is certain that none can: on backends without gradients, and on TensorFlow
    outside every `GradientTape` when it runs eagerly, when Keras evaluates or predicts, or when it
    exports a model, so that a SavedModel holds no custom-gradient node. Any other graph may be
    traced now and differentiated later.
    """
    if keras.backend.backend() != "tensorflow":
        return keras.backend.backend() in ("jax", "torch")
    import tensorflow as tf
    from tensorflow.python.eager import record

    if record.could_possibly_record():
        return True
    return not (tf.executing_eagerly() or is_exporting() or _is_predicting())


def is_exporting():
    """Whether a model is being traced for a SavedModel."""
    return any(module.startswith(_EXPORTERS) for module, _ in callers())


def stacklevel():
    """For a `warnings.warn` in the function that calls this: whose line is the user's."""
    frame, level = sys._getframe(1), 1
    while frame.f_back is not None and frame.f_globals["__name__"].startswith(_NOT_THE_USERS):
        frame, level = frame.f_back, level + 1
    return level


def callers():
    """The modules and frames that led here, the nearest first."""
    frame = sys._getframe(1)
    while frame is not None:
        yield frame.f_globals.get("__name__", ""), frame
        frame = frame.f_back


def outer_steps():
    """How often a layer is called for the steps of the `TimeDistributed` layers around it."""
    wrapped = keras.layers.TimeDistributed.call.__code__
    found = 1
    for _, frame in callers():
        if frame.f_code is wrapped:
            inputs = frame.f_locals["inputs"]  # (steps, batch, ...)
            found = found * keras.ops.shape(inputs)[0]
    return found


def _is_predicting():
    """Whether a model is being traced by Keras to evaluate it or to predict with it."""
    for module, frame in callers():
        if module == TRAINER and frame.f_code.co_name in (*_TRAINING, *_PREDICTING):
            return frame.f_code.co_name in _PREDICTING
    return False
