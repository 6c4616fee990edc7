"""The functions of a file: one for whole sequences, and three more for streams."""

import tensorflow as tf
from keras import tree

from keras_gates.deployment.names import output_names
from keras_gates.deployment.time_distributed import all_steps_at_once


def signatures(spec, batch_size=None, stream=None, length=None):
    """What a TensorFlow graph of a model computes.

    Args:
        spec: the `ModelSpec` of a model on TensorFlow.
        batch_size: a fixed one, or None for a dynamic one.
        stream: a `Stream`, whose functions are added.
        length: a fixed number of time steps of "serving_default", or None for a dynamic one.

    Returns:
        From the name of a signature, "serving_default" first, to a function and the list of
        `tf.TensorSpec`s of its arguments. The functions return dicts by name. With a fixed batch
        size "initial_state" has no arguments.

    Example:

    >>> from keras_gates.deployment.signatures import signatures
    >>> from keras_gates.deployment.spec import ModelSpec
    >>> model = keras.Sequential([keras.Input((None, 3)), keras_gates.GatedRNN(4, name="ear")])
    >>> function, specs = signatures(ModelSpec(model))["serving_default"]
    >>> specs[0].shape, function(numpy.zeros((2, 5, 3)))["ear"].shape
    (TensorShape([None, None, 3]), TensorShape([2, 4]))
    """

    def serving_default(*values):
        with all_steps_at_once(spec):
            found = spec.model(spec.pack(values), training=False)
        return dict(zip(output_names(spec.model, found), tree.flatten(found), strict=True))

    time = None if length is None else [length]
    specs = [_spec(one, batch_size, time) for one in spec.inputs]
    found = {"serving_default": (serving_default, specs)}
    return found if stream is None else {**found, **_of_stream(stream, batch_size)}


def notes_on_states(spec, stream=None):
    """A sentence for each layer whose states a file keeps."""
    streams = " A stream begins with zeros all the same: see initial_state." if stream else ""
    return [
        f"{layer.name} is stateful: the file begins with the states that the model has now, and "
        f"keeps them from one call of serving_default to the next.{streams}"
        for layer in spec.stateful
    ]


def _of_stream(stream, batch_size):
    inputs, names = stream.inputs, [state.name for state in stream.states]
    states = [_spec(state, batch_size) for state in stream.states]

    def streamed(run):
        def function(*values):
            before = dict(zip(names, values[len(inputs) :], strict=True))
            with all_steps_at_once(stream.spec):
                outputs, after = run(values[: len(inputs)], before)
            return {**outputs, **after}

        return function

    start = stream.initial_state, [tf.TensorSpec((), "int32", "batch_size")]
    if batch_size is not None:
        start = (lambda: stream.initial_state(batch_size)), []
    chunk = [_spec(one, batch_size, [None] * one.has_time) for one in inputs]
    step = [_spec(one, batch_size, []) for one in inputs]
    return {
        "initial_state": start,
        "step": (streamed(stream.step), [*step, *states]),
        "chunk": (streamed(stream.chunk), [*chunk, *states]),
    }


def _spec(one, batch_size, time=None):
    """The specification of an input or a state, with `time` for its axis of time, if it has one."""
    _, *rest = one.shape
    if time is not None and one.has_time:
        rest = [*time, *rest[1:]]
    batch_size = one.shape[0] if batch_size is None else batch_size
    return tf.TensorSpec((batch_size, *rest), one.dtype, one.name)
