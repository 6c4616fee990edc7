"""Names of inputs, outputs and layers in a written file.

A name that Keras made up ends in a counter of the whole process, so that the same model gets
another one every time. Such names are replaced, and those that a user gave are kept, in the
characters that TensorFlow allows for an argument: small letters, digits and underscores. An input
that is called as a word of Python, which no argument may be, gets an underscore: "in_".
"""

import keyword
import re

import keras
from keras import tree

from keras_gates._keras.layers import to_snake_case

_AUTOMATIC_INPUT = re.compile(r"(keras_tensor|input_layer)(_\d+)?")


def input_names(tensors):
    """Names for the symbolic inputs of a model, in their order: the user's, or "inputs".

    Args:
        tensors: list of what has a `name`, which may be None.

    Example:

    >>> from keras_gates.deployment.names import input_names
    >>> model = keras.Sequential([keras.Input((None, 3)), keras.layers.GRU(4)])
    >>> input_names(model.inputs)
    ['inputs']
    """
    names = [tensor.name for tensor in tensors]
    return unique(
        "inputs"
        if name is None or _AUTOMATIC_INPUT.fullmatch(name)
        else name + "_" * keyword.iskeyword(name.lower())
        for name in names
    )


def output_names(model, outputs=None):
    """Names for the outputs of a model, flattened: keys of its dict, or names of output layers.

    Args:
        model: a Keras model.
        outputs: what a call of it returned. Needed for a subclassed model alone.

    Example:

    >>> from keras_gates.deployment.names import output_names
    >>> model = keras.Sequential([
    ...     keras.Input((None, 3)), keras.layers.GRU(4), keras.layers.Dense(1, name="score")])
    >>> output_names(model)
    ['score']
    """
    graph = functional(model)
    if graph is not None:
        outputs = graph._outputs_struct
    elif outputs is None:
        raise ValueError(
            f"`outputs` must be what a call of {model.name!r} returned, because a subclassed model "
            "does not announce its outputs. Received: outputs=None"
        )
    return unique(_output_name(path, tensor) for path, tensor in tree.flatten_with_path(outputs))


def layer_name(layer):
    """The user's name of a layer, or the name of its class without a counter."""
    automatic = to_snake_case(type(layer).__name__)
    return automatic if re.fullmatch(rf"{automatic}(_\d+)?", layer.name) else layer.name


def unique(names):
    """`names` in allowed characters, and numbered where they occur again."""
    found = []
    for name in names:
        base = re.sub(r"[^a-z0-9]", "_", name.lower())
        if not base[0].isalpha():
            base = f"x{base}"
        candidate, count = base, 0
        while candidate in found:
            count += 1
            candidate = f"{base}_{count}"
        found.append(candidate)
    return found


def functional(model):
    """The graph of a Sequential or functional model; None of a subclassed one."""
    if isinstance(model, keras.Sequential):
        return model._functional
    return model if hasattr(model, "_inputs_struct") else None


def _output_name(path, tensor):
    keys = [str(part) for part in path if isinstance(part, str)]
    if keys:
        return "_".join(keys)
    history = getattr(tensor, "_keras_history", None)
    if history is None:
        return "outputs"
    operation = history.operation
    name = layer_name(operation)
    return "outputs" if name == to_snake_case(type(operation).__name__) else name
