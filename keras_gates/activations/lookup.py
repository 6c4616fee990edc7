"""Activations by name, by function or as a Keras layer, and whether a saved model can name them."""

import warnings
from collections.abc import Callable
from typing import Any

import keras

from keras_gates._keras.calls import stacklevel
from keras_gates.activations import functions
from keras_gates.types import Activation
from keras_gates.validation import close_matches

_NOT_ACTIVATIONS = {"get", "serialize", "deserialize"}
# Of Keras' names those that no cell can use, and why.
_UNFIT = {
    "glu": "halves the number of units",
    "threshold": "needs further arguments: give a function, such as "
    "lambda x: keras.activations.threshold(x, 0.5, 0.0)",
}


def names() -> list[str]:
    """The names that activations go by: Keras' own, and those of `keras_gates.activations`."""
    return sorted({*_keras_names(), *_own_names()})


def _keras_names():
    return [
        name
        for name, value in vars(keras.activations).items()
        if callable(value) and not name.startswith("_") and name not in {*_NOT_ACTIVATIONS, *_UNFIT}
    ]


def _own_names():
    return [
        name
        for name, value in vars(functions).items()
        if getattr(value, "__module__", None) == functions.__name__ and not name.startswith("_")
    ]


def get(identifier: Activation, argument: str, warn: bool = True) -> Callable[[Any], Any]:
    """The activation that `identifier` stands for.

    Args:
        identifier: a name ("relu", or "package>name" of a registered function), a function, a
            Keras layer instance, or what `serialize` returned.
        argument: name of the argument it was given for, for the error.
        warn: whether to warn of a function that cannot be saved.
    """
    if isinstance(identifier, str):
        if identifier in _UNFIT:
            raise ValueError(
                f"`{argument}` must keep the number of units, and {identifier!r} "
                f"{_UNFIT[identifier]}. Received: {argument}={identifier!r}"
            )
        found = _by_name(identifier)
        if found is None:
            hint = close_matches(identifier, names()) or f". There are {', '.join(names())}"
            raise ValueError(
                f"`{argument}` must be the name of an activation, a function or a Keras layer"
                f"{_or_dict(argument)}. Unknown name: {argument}={identifier!r}{hint}"
            )
        return found
    if is_serialized(identifier):
        try:
            return keras.saving.deserialize_keras_object(identifier)
        except (TypeError, ValueError) as error:
            raise ValueError(
                f"`{argument}` is the config of something that Keras does not find. "
                f"Received: {argument}={identifier!r}. {error}"
            ) from error
    if isinstance(identifier, type) or not callable(identifier):
        hint = " (a class: pass an instance)" if isinstance(identifier, type) else ""
        raise ValueError(
            f"`{argument}` must be the name of an activation, a function or a Keras layer"
            f"{_or_dict(argument)}. Received: {argument}={identifier!r}{hint}"
        )
    # To save one of ours Keras imports TensorFlow: not before it has to.
    ours = getattr(functions, name_of(identifier), None) is identifier
    if warn and not ours and _saved_name(identifier) is None:
        warnings.warn(
            f"`{argument}={identifier!r}` works for training, but a model with it can be "
            f"neither copied nor saved, because Keras finds a function again by its registered "
            f"name. {_cure(identifier)}",
            stacklevel=stacklevel(),
        )
    return identifier


def serialize(activation: Callable[[Any], Any], argument: str) -> str | dict[str, Any]:
    """What `get` turns back into `activation`, in another process too."""
    name = _saved_name(activation)
    if name is None:
        raise ValueError(
            f"`{argument}={activation!r}` can be neither saved nor copied (as Bidirectional and "
            f"clone_model do): Keras finds a function again by its registered name. "
            f"{_cure(activation)}"
        )
    return name


def is_serialized(identifier: Any) -> bool:
    """Whether `identifier` is what `serialize` returns for a layer or a registered function."""
    return isinstance(identifier, dict) and "class_name" in identifier


def name_of(activation: Any) -> str:
    """A name to show: of a function its own, of a layer or another object that of its class."""
    return getattr(activation, "__name__", None) or type(activation).__name__


def _by_name(name):
    if name in _own_names():
        return getattr(functions, name)
    if name in _keras_names():
        return keras.activations.get(name)
    return keras.saving.get_registered_object(name)


def name_by_another_path(activation, packages):
    """The name of the activation of Keras that a function of these packages is, or None.

    `keras.ops.tanh` or `tf.nn.relu` are `keras.activations.tanh` and `relu` by another path.
    """
    name = getattr(activation, "__name__", None)
    package = (getattr(activation, "__module__", None) or "").partition(".")[0]
    return name if package in packages and name in _keras_names() else None


def _saved_name(activation):
    """A name for one of Keras' own, a config for what is registered or a layer, else None."""
    for name in _keras_names():
        if keras.activations.get(name) is activation:
            return name
    same = name_by_another_path(activation, ("keras", "tensorflow"))
    if same is not None:
        return same
    name = getattr(activation, "__name__", None)
    function_or_class = activation if name else type(activation)
    registered = keras.saving.get_registered_name(function_or_class)
    is_registered = keras.saving.get_registered_object(registered) is function_or_class
    if name is None and not hasattr(activation, "from_config"):
        return None
    if is_registered or isinstance(activation, keras.layers.Layer):
        return keras.saving.serialize_keras_object(activation)
    return None


def _or_dict(argument):
    return ", or a dict of these per gate" if argument == "gate_activation" else ""


def _cure(activation):
    name = getattr(activation, "__name__", "activation")
    if not name.isidentifier():
        name = "activation"
    return (
        "Make it a named function and register it: "
        f'@keras.saving.register_keras_serializable(package="my_package") before '
        f"`def {name}(x): ...`."
    )
