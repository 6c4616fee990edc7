"""How Keras records what is done with a KerasTensor."""

import collections
import contextlib
import contextvars
import functools
import math
import re

import keras
from keras.src.backend.common import global_state


def origin(tensor):
    """(operation, args, kwargs, index) that a KerasTensor is the output `index` of, or None."""
    history = getattr(tensor, "_keras_history", None)
    if history is None or history.operation is None:
        return None
    arguments = history.operation._inbound_nodes[history.node_index].arguments
    return history.operation, arguments.args, arguments.kwargs, history.tensor_index


@contextlib.contextmanager
def names_kept():
    """While it lasts, automatic names of layers and tensors are given out that do not count."""
    names = global_state.get_global_attribute("object_name_uids")
    before = None if names is None else names.copy()
    try:
        yield
    finally:
        global_state.set_global_attribute("object_name_uids", before)


_in_operators = contextvars.ContextVar("in_operators", default=False)


@contextlib.contextmanager
def operators_of_tensors():
    """While it lasts, a KerasTensor may stand where a tensor of the backend may: on the right of a
    NumPy number, a NumPy array or an array of JAX, and of a comparison with a tensor of TensorFlow,
    which ask it for its values otherwise, at which it raises; and on the left of `==`, which
    compares objects otherwise, unlike `!=`."""
    _prepare_operators()
    token = _in_operators.set(True)
    try:
        yield
    finally:
        _in_operators.reset(token)


@functools.cache
def _prepare_operators():
    kind = keras.KerasTensor

    def either(here, elsewhere):
        return lambda self, *other: (here if _in_operators.get() else elsewhere)(self, *other)

    def equal(self, other):
        return keras.ops.equal(self, other) if hasattr(other, "__float__") else NotImplemented

    kind.__jax_array__ = either(lambda self: NotImplemented, kind.__jax_array__)
    # NumPy leaves operators to what has a higher priority; what has none is below all.
    kind.__array_priority__ = property(either(lambda self: 100.0, lambda self: -math.inf))
    kind.__eq__ = either(equal, kind.__eq__)
    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        for name in ("__lt__", "__le__", "__gt__", "__ge__", "__eq__", "__ne__"):
            setattr(tf.Tensor, name, _leaving_to(kind, getattr(tf.Tensor, name)))


def _leaving_to(kind, compare):
    """A comparison that leaves it to what is on its right, if that is of a kind."""

    @functools.wraps(compare)
    def compared(self, other):
        if isinstance(other, kind) and _in_operators.get():
            return NotImplemented
        return compare(self, other)

    return compared


def calls(layer):
    """(args, kwargs) of every call of a layer on KerasTensors."""
    return [(node.arguments.args, node.arguments.kwargs) for node in layer._inbound_nodes]


def reserve_names(names):
    """Has automatic names begin after those given, such as "concatenate_3"."""
    uids = global_state.get_global_attribute(
        "object_name_uids", default=collections.defaultdict(int), set_to_default=True
    )
    for name in names:
        base, number = re.fullmatch(r"(.*?)(?:_(\d+))?", name).groups()
        uids[base] = max(uids[base], int(number or 0) + 1)


@contextlib.contextmanager
def gradients_forgotten():
    """TensorFlow keeps every gradient that a `tf.custom_gradient` in a graph has for as long as the
    process lives, and with it the graph. Those that come up while this lasts are let go at its end.

    After that no further gradient can be taken through the graphs made meanwhile. Those that are in
    a graph, such as those of a step of training, stay.
    """
    if keras.backend.backend() != "tensorflow":
        yield
        return
    from tensorflow.python.framework import ops

    known = ops.gradient_registry._registry
    before = set(known)
    try:
        yield
    finally:
        for name in set(known) - before:
            if name.startswith("CustomGradient-"):
                del known[name]


def disconnected(layer):
    """Gives a copy of a layer records of its own of where it is called."""
    vars(layer)["_inbound_nodes"], vars(layer)["_outbound_nodes"] = [], []


def map_variable(scope, variable, value):
    """Has `variable` stand for any value, a KerasTensor too, in a `keras.StatelessScope`."""
    scope.state_mapping[id(variable)] = value


def copied(operation):
    """An operation without weights once more, to be called in another graph."""
    copy = object.__new__(type(operation))
    vars(copy).update(vars(operation))
    disconnected(copy)
    return copy


def lambda_copied(layer):
    """A `keras.layers.Lambda` once more. Keras makes none of a config that holds a lambda unless
    it is told that this is safe; here the function itself is there."""
    return keras.layers.Lambda(
        layer.function,
        output_shape=layer._output_shape,
        mask=layer.mask,
        arguments=layer.arguments,
        name=layer.name,
        dtype=layer.dtype_policy,
        trainable=layer.trainable,
    )


def attributes(layer):
    """The attributes of a layer of one's own that may hold other layers, by name."""
    return {
        name: value
        for name, value in vars(layer).items()
        if name not in _TRACKED and not name.startswith("_self_")  # of TensorFlow
    }


_TRACKED = (
    "_layers", "_functional", "_tracker", "_inbound_nodes", "_outbound_nodes", "_metrics",
    "_compiled_trainable_state",
)  # fmt: skip


def forget(layer, part):
    """Has a layer that tracks the layers in its attributes not track this one."""
    layer._layers[:] = [other for other in layer._layers if other is not part]


def inputs(layer):
    """The structure of what a built layer takes, as KerasTensors; None if it is unknown."""
    if hasattr(layer, "_inputs_struct"):
        return layer._inputs_struct
    if getattr(layer, "_functional", None) is not None:
        return layer._functional._inputs_struct
    shape = (layer.get_build_config() or {}).get("input_shape")
    if not shape or not all(isinstance(size, int | None) for size in shape):
        return None
    return keras.KerasTensor(tuple(shape), layer.compute_dtype)
