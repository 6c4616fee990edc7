"""What a function is being traced for, which nothing that is public says. The call stack does."""

import sys

import keras

TRAINER = "keras.src.backend.tensorflow.trainer"
_NOT_THE_USERS = ("keras_gates.", "keras.", "contextlib", "tensorflow.", "jax.", "torch.")
_EXPORTERS = ("keras.src.export.", "tensorflow.python.saved_model.save")
_CUSTOM_GRADIENT = "tensorflow.python.ops.custom_gradient"
_TAPE = "tensorflow.python.eager.imperative_grad"
_FUNCTION = "tensorflow.python.eager.polymorphic_function.polymorphic_function"
_TRAINING = ("fit", "train_on_batch")
_OF_WRAPPERS = ("call", "compute_output_shape")
_WRAPPED = ("layer", "forward_layer", "backward_layer")
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


def is_watched(tensor):
    """Whether a `GradientTape` of TensorFlow that is recording watches what a tensor is made of."""
    from tensorflow.python.eager import record

    return record.should_record_backprop([tensor])


def has_tangents(tensors):
    """Whether a `ForwardAccumulator` of TensorFlow pushes something forward to the tensors."""
    from tensorflow.python.eager import forwardprop_util

    return bool(forwardprop_util.pack_tangents(tensors).indices)


def is_pulled_by_a_tape():
    """Whether the gradient of a `tf.custom_gradient` is being computed by a tape that saw it,
    rather than for a graph that was traced before."""
    modules = (module for module, _ in callers())
    for module in modules:
        if module == _CUSTOM_GRADIENT:
            return next(m for m in modules if m != _CUSTOM_GRADIENT) == _TAPE
    return False


def is_compiling():
    """Whether a function is being traced that TensorFlow compiles with XLA."""
    return any(
        module == _FUNCTION and getattr(frame.f_locals.get("self"), "_jit_compile", False)
        for module, frame in callers()
    )


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


def wrapper(layer):
    """The `Bidirectional` or `TimeDistributed` of Keras that is calling a layer, or that asks for
    the shape of its outputs, the outermost of several; None where there is none."""
    kinds = (keras.layers.Bidirectional, keras.layers.TimeDistributed)
    codes = {getattr(kind, name).__code__ for kind in kinds for name in _OF_WRAPPERS}
    inner, found = layer, None
    for _, frame in callers():
        if frame.f_code in codes:
            outer = frame.f_locals["self"]
            if any(getattr(outer, name, None) is inner for name in _WRAPPED):
                inner = found = outer
    return found


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
