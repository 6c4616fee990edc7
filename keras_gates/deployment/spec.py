"""What an export needs to know of a model: its inputs, data for them, its layers and masks."""

import dataclasses
import functools
import inspect

import keras
import numpy as np
from keras import tree

from keras_gates._keras.layers import get_input_signature
from keras_gates.deployment.errors import NotExportableError
from keras_gates.deployment.names import functional, input_names
from keras_gates.diagnostics.data import arrays

# Random data are made for so many samples and steps, and repeated where more are asked for. The
# engine's longest chunk is shorter.
BATCH, TIME = 8, 230


@dataclasses.dataclass
class Input:
    """One input of a model.

    Attributes:
        name: in a written file.
        shape: with None for what is dynamic.
        dtype: name of its dtype.
        has_time: whether its second axis is time.
        tokens: how many integers from 0 on it may hold, where an Embedding reads it, or None.
        key: its name in the model, by which the user's data may call it.
    """

    name: str
    shape: tuple
    dtype: str
    has_time: bool
    tokens: int | None
    key: str | None


class ModelSpec:
    """A model as its export sees it.

    Args:
        model: a built Keras model.

    Attributes:
        model: the model.
        inputs: a list of `Input`, in the order in which Keras flattens the structure.
        layers: all layers that compute, those inside of layers too.

    Raises:
        NotExportableError: a subclassed model whose `call` takes more than one argument.
    """

    def __init__(self, model):
        self.model = model
        found = model._flatten_layers(include_self=False)
        self.layers = [layer for layer in found if not isinstance(layer, keras.layers.InputLayer)]
        graph = functional(model)
        if graph is None:
            self._structure = _recorded(model)
        else:
            self._structure = graph._inputs_struct
        tensors = tree.flatten(self._structure)
        self.inputs = [
            self._input(name, tensor, graph)
            for name, tensor in zip(input_names(tensors), tensors, strict=True)
        ]

    @property
    def names(self):
        return [one.name for one in self.inputs]

    @property
    def all_lengths(self):
        """Whether the model takes sequences of any length."""
        return all(one.shape[1] is None for one in self.inputs if one.has_time)

    @functools.cached_property
    def mask_value(self):
        """The value that stands for a masked step in the inputs, or None without a mask."""
        masking = [layer for layer in self.layers if isinstance(layer, keras.layers.Masking)]
        return masking[0].mask_value if masking else None

    @functools.cached_property
    def has_mask(self):
        """Whether the model makes masks of its inputs."""
        embedded = (one for one in self.layers if isinstance(one, keras.layers.Embedding))
        return self.mask_value is not None or any(layer.mask_zero for layer in embedded)

    @functools.cached_property
    def stateful(self):
        """The layers that keep their states from one call to the next."""
        return [layer for layer in self.layers if getattr(layer, "stateful", False)]

    def pack(self, values):
        """What the model is called with, from the flat list of the values of its inputs."""
        return tree.pack_sequence_as(self._structure, list(values))

    def data(self, sample=None, argument="sample"):
        """Arrays to try the model with: the user's, or random ones.

        Args:
            sample: what the model takes, at least one sample of it; arrays by name or in order.
            argument: what it was given as, for errors.

        Returns:
            A flat list of arrays, one per input.

        Raises:
            ValueError: the sample does not fit the inputs, or is needed because no random data
                can be made.
        """
        if sample is None:
            rng = np.random.default_rng(0)
            return [self._random(one, rng) for one in self.inputs]
        sample = arrays(argument, sample)
        given = self._by_name(sample) if isinstance(sample, dict) else tree.flatten(sample)
        if len(given) != len(self.inputs) or not all(map(_fits, given, self.inputs)):
            expected = ", ".join(f"{one.name}: {one.shape}" for one in self.inputs)
            raise ValueError(
                f"`{argument}` must fit the inputs of {self.model.name!r}, {expected}. Received: "
                f"{argument} of shape {', '.join(str(value.shape) for value in given)}"
            )
        return [_cast(value, one) for value, one in zip(given, self.inputs, strict=True)]

    def _by_name(self, sample):
        """The flat list of what a dict holds, by the names of inputs or as the model takes it."""
        found = [sample.get(one.name, sample.get(one.key)) for one in self.inputs]
        if len(sample) == len(found) and all(value is not None for value in found):
            return found
        try:
            tree.assert_same_structure(self._structure, sample)
        except (TypeError, ValueError):
            raise ValueError(
                f"`sample` must have the inputs of {self.model.name!r} by their names, "
                f"{', '.join(self.names)}. Received: {', '.join(map(str, sample))}"
            ) from None
        return tree.flatten(sample)

    def sized(self, values, batch, time):
        """Such arrays for so many samples and time steps: cut off, or repeated."""
        found = []
        for value, one in zip(values, self.inputs, strict=True):
            value = value[np.arange(batch) % len(value)]
            if one.has_time:
                value = value[:, np.arange(time) % value.shape[1]]
            found.append(value)
        return found

    def padded(self, values, valid):
        """Such arrays with what a mask leaves out wherever `valid`, (batch, time), is False."""
        found = []
        for value, one in zip(values, self.inputs, strict=True):
            blank = 0 if one.tokens else self.mask_value
            if one.has_time and blank is not None:
                shape = valid.shape + (1,) * (value.ndim - 2)
                value = np.where(valid.reshape(shape), value, np.asarray(blank, value.dtype))
            found.append(value)
        return found

    def _input(self, name, tensor, graph):
        shape = list(tensor.shape)
        if not self.stateful:
            shape[0] = None
        tokens = _tokens(tensor, graph)
        has_time = len(shape) > 1 and (shape[1] is None or len(shape) > 2 or tokens is not None)
        if has_time and graph is None:
            shape[1] = None  # the length that it was first called with means nothing
        dtype = keras.backend.standardize_dtype(tensor.dtype)
        return Input(name, tuple(shape), dtype, has_time, tokens, tensor.name)

    def _random(self, one, rng):
        shape = [BATCH, TIME, *one.shape[2:]] if one.has_time else [BATCH, *one.shape[1:]]
        if None in shape:
            raise ValueError(
                f"`sample` is needed: the input {one.name!r} of {self.model.name!r} has the shape "
                f"{one.shape}, from which no data can be made. Received: sample=None"
            )
        if one.tokens or "int" in one.dtype:
            tokens = one.tokens or 2
            # 0 may stand for padding, which comes at places of its own.
            return rng.integers(min(1, tokens - 1), tokens, shape).astype(one.dtype)
        if "float" not in one.dtype and one.dtype != "bool":
            raise ValueError(
                f"`sample` is needed: the input {one.name!r} of {self.model.name!r} is of dtype "
                f"{one.dtype}, of which no data can be made. Received: sample=None"
            )
        values = rng.normal(size=shape)
        return values > 0 if one.dtype == "bool" else values.astype(one.dtype)


def _recorded(model):
    """The structure that a subclassed model was called with, as specifications."""
    signature = get_input_signature(model)
    needed = [
        parameter.name
        for parameter in inspect.signature(model.call).parameters.values()
        if parameter.default is parameter.empty and parameter.kind is not parameter.VAR_KEYWORD
    ]
    if len(signature) != 1 or len(needed) != 1:
        raise NotExportableError(
            f"{model.name!r} is a subclassed model whose `call` takes several arguments, "
            f"{', '.join(needed)}. Have it take one list or dict of them."
        )
    return signature[0]


def _tokens(tensor, graph):
    """How many different integers an input may hold, if an Embedding reads it."""
    if graph is None:
        return None
    read = [
        operation.input_dim
        for operation in _readers(tensor, graph)
        if isinstance(operation, keras.layers.Embedding)
    ]
    return min(read, default=None)


def _readers(tensor, graph):
    """The operations that read a symbolic input, those in nested models too."""
    for operation in graph.operations:
        for node in operation._inbound_nodes:
            given = node.arguments.keras_tensors
            if not any(tensor is other for other in given):
                continue
            inner = functional(operation) if isinstance(operation, keras.Model) else None
            if inner is None:
                yield operation
                continue
            for other, own in zip(given, inner.inputs, strict=False):
                if other is tensor:
                    yield from _readers(own, inner)


def _cast(value, one):
    """The values of a sample in the dtype of an input; an error where they cannot be its values."""
    if value.dtype.kind in "US" and one.dtype != "string":
        raise ValueError(
            f"`sample` must be of numbers for {one.name!r}, which is of dtype {one.dtype}. "
            f"Received: sample of dtype {value.dtype}"
        )
    if "int" in one.dtype and value.dtype.kind == "f" and (value != np.round(value)).any():
        raise ValueError(
            f"`sample` must hold integers for {one.name!r}, which is of dtype {one.dtype}. "
            f"Received: numbers such as {value[value != np.round(value)][0]}"
        )
    if one.tokens and not (value.min() >= 0 and value.max() < one.tokens):
        raise ValueError(
            f"`sample` must hold integers from 0 to {one.tokens - 1} for {one.name!r}, which an "
            f"Embedding reads. Received: integers from {value.min()} to {value.max()}"
        )
    return value.astype("str" if one.dtype == "string" else one.dtype)


def _fits(value, one):
    return value.ndim == len(one.shape) and all(
        expected is None or size == expected or axis == 0
        for axis, (size, expected) in enumerate(zip(value.shape, one.shape, strict=True))
    )
