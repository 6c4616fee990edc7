"""A model for live data: one time step, or a few, at a time, with the states in the caller's hands.

The graph of the model is run with every recurrent layer beginning in a state that is given, and
giving out the one that it ends in. Nothing is kept between calls, so that any number of streams can
be interleaved. Everything else in the model has to act on each time step alone, which is found out
by trying.
"""

import dataclasses
import functools
import inspect

import keras
import numpy as np
from keras import ops, tree

from keras_gates._keras.layers import get_keras_mask
from keras_gates.cells import GatedCell
from keras_gates.deployment import names
from keras_gates.deployment.errors import NotExportableError

# What a value in the graph has to do with time: nothing; one slice per time step; or it belongs to
# the end of the sequence, as the output of a layer with return_sequences=False does.
STATIC, OVER_TIME, AT_END = "static", "over time", "at the end"

_STATE_NAMES = {
    keras.layers.GRUCell: ["hidden"],
    keras.layers.SimpleRNNCell: ["hidden"],
    keras.layers.LSTMCell: ["hidden", "cell"],
}
# Steps of the sequence that layers are tried with.
_STEPS = 3


@dataclasses.dataclass
class State:
    """One state of a stream: its name, its shape with None for the batch, its dtype."""

    name: str
    shape: tuple
    dtype: str


@dataclasses.dataclass
class _Value:
    """A tensor in the graph, and what it has to do with time."""

    tensor: object
    kind: str


class Stream:
    """A Sequential or functional model as functions of time steps and states.

    Args:
        spec: the `ModelSpec` of a built Keras model.

    Attributes:
        inputs: a list of its `Input`s, of any batch size.
        states: a list of `State`.
        outputs: from the name of an output to `OVER_TIME`, `AT_END` or `STATIC`.

    Raises:
        NotExportableError: the model cannot run step by step; the message names the layer.

    Example:

    >>> from keras_gates.deployment.spec import ModelSpec
    >>> from keras_gates.deployment.streaming import Stream
    >>> model = keras.Sequential([keras.Input((None, 3)), keras_gates.GatedRNN(4, name="ear")])
    >>> stream = Stream(ModelSpec(model))
    >>> outputs, states = stream.step([numpy.zeros((2, 3))], stream.initial_state(2))
    >>> list(states), outputs["ear"].shape
    (['ear_hidden'], TensorShape([2, 4]))
    """

    def __init__(self, spec):
        self.spec, self._graph = spec, names.functional(spec.model)
        if self._graph is None:
            raise NotExportableError(
                f"{spec.model.name!r} is a subclassed model, whose layers cannot be seen in their "
                "order: streaming=True needs a Sequential or functional model."
            )
        # Of a stateful model too: the states are the caller's here.
        self.inputs = [dataclasses.replace(i, shape=(None, *i.shape[1:])) for i in spec.inputs]
        if not any(one.has_time for one in self.inputs):
            raise NotExportableError(
                f"{spec.model.name!r} has no input with a time axis to stream along."
            )
        self._layers = []  # in the order in which the graph runs them, as are the states
        self._try()
        self._structures = [layer.get_initial_state(1) for layer in self._layers]
        self._name_states()

    def initial_state(self, batch_size):
        """The states before the first step, by name."""
        found = tree.flatten([layer.get_initial_state(batch_size) for layer in self._layers])
        return dict(zip([state.name for state in self.states], found, strict=True))

    def chunk(self, values, states):
        """Some time steps.

        Args:
            values: flat list of the inputs, (batch, steps, ...) where they have a time axis.
            states: from the name of a state to its value, (batch, units).

        Returns:
            The outputs and the new states, both by name. An output is (batch, steps, ...), or
            (batch, ...) if the model's is of the end of the sequence, which is then that of the
            chunk.
        """
        given = [states[state.name] for state in self.states]
        before, new = iter(tree.pack_sequence_as(self._structures, given)), []

        def recurrent(layer, sequences, mask):
            outputs, after = _run(layer, sequences, mask, next(before))
            new.extend(tree.flatten(after))
            return outputs, after

        found = self._run(values, recurrent, _call)
        outputs = {n: value.tensor for n, value in zip(self.outputs, found, strict=True)}
        return outputs, dict(zip([state.name for state in self.states], new, strict=True))

    def step(self, values, states):
        """One time step: as `chunk`, without the time axis."""
        values = [
            ops.expand_dims(value, 1) if one.has_time else value
            for value, one in zip(values, self.inputs, strict=True)
        ]
        outputs, states = self.chunk(values, states)
        for name, kind in self.outputs.items():
            if kind == OVER_TIME:
                outputs[name] = ops.squeeze(outputs[name], 1)
        return outputs, states

    def _try(self):
        """Runs the graph once on small data: finds the recurrent layers, and what is in the way."""

        def recurrent(layer, sequences, mask):
            _check_recurrent(layer, self.spec.has_mask)
            self._layers.append(layer)
            return _run(layer, sequences, mask, layer.get_initial_state(len(sequences)))

        data = self.spec.sized(self.spec.data(), 2, _STEPS)
        kinds = [value.kind for value in self._run(data, recurrent, _try_per_step)]
        self.outputs = dict(zip(names.output_names(self._graph), kinds, strict=True))
        if not self._layers:
            raise NotExportableError(
                f"{self.spec.model.name!r} has no recurrent layer along the time axis of its "
                "inputs, and so no state to stream with."
            )

    def _run(self, values, recurrent, call):
        """The outputs of the graph, flattened; see `_interpret`."""
        values = [
            _Value(ops.convert_to_tensor(value), OVER_TIME if one.has_time else STATIC)
            for value, one in zip(values, self.inputs, strict=True)
        ]
        return tree.flatten(_interpret(self._graph, values, recurrent, call))

    def _name_states(self):
        layer_names = names.unique(names.layer_name(layer) for layer in self._layers)
        states = tree.flatten(self._structures)
        own = [
            f"{prefix}_{name}"
            for prefix, layer, structure in zip(
                layer_names, self._layers, self._structures, strict=True
            )
            for name in _state_names(layer, len(tree.flatten(structure)))
        ]
        # They stand beside inputs and outputs.
        others = [*self.spec.names, *self.outputs]
        own = names.unique([*others, *own])[len(others) :]
        self.states = [
            State(name, (None, *state.shape[1:]), keras.backend.standardize_dtype(state.dtype))
            for name, state in zip(own, states, strict=True)
        ]


def _interpret(graph, values, recurrent, call):
    """Runs the graph of a functional model on a list of `_Value`s; the structure of its outputs.

    Args:
        graph: a functional model.
        values: one `_Value` per input.
        recurrent: function of a recurrent layer, its sequences and their mask: its outputs and
            its last states.
        call: function of any other operation that reads values over time, its args and kwargs,
            in which those values are `_Value`s: what it returns.
    """

    def run(operation, *args, **kwargs):
        given = [value for value in tree.flatten((args, kwargs)) if isinstance(value, _Value)]
        kinds = {value.kind for value in given}
        if isinstance(operation, keras.Model) and names.functional(operation) is not None:
            inner = tree.flatten(args[0] if args else kwargs)
            return _interpret(names.functional(operation), inner, recurrent, call)
        if OVER_TIME not in kinds:
            kind = AT_END if AT_END in kinds else STATIC
            plain = _plain((args, kwargs))
            return _valued(operation(*plain[0], **plain[1]), kind)
        if isinstance(operation, keras.layers.RNN):
            return _run_recurrent(operation, args, kwargs, recurrent)
        if AT_END in kinds:
            raise NotExportableError(
                f"{_shown(operation)} gives every time step something of the end of the sequence, "
                "which has not come yet in a stream. Export without streaming=True."
            )
        return _valued(call(operation, args, kwargs), OVER_TIME)

    return graph._run_through_graph(values, operation_fn=lambda op: functools.partial(run, op))


def _run_recurrent(layer, args, kwargs, recurrent):
    given = inspect.signature(layer.call).bind(*args, **kwargs).arguments
    if given.get("initial_state") is not None:
        raise NotExportableError(
            f"{_shown(layer)} begins in a state that the model computes, and in a stream it begins "
            "anew with every chunk. Export without streaming=True."
        )
    sequences, mask = _plain((given["sequences"], given.get("mask")))
    if mask is None:
        mask = get_keras_mask(sequences)
    outputs, states = recurrent(layer, sequences, mask)
    outputs = _valued(outputs, OVER_TIME if layer.return_sequences else AT_END)
    if layer.return_state:
        return outputs, *_valued(list(states), AT_END)
    return outputs


def _run(layer, sequences, mask, states):
    """The output of a recurrent layer that begins in `states`, and the states it ends in."""
    changed = {"return_state": True, "stateful": False, "unroll": sequences.shape[1] == 1}
    kept = {name: getattr(layer, name) for name in changed}
    try:
        for name, value in changed.items():
            setattr(layer, name, value)
        outputs, *after = layer(sequences, initial_state=states, mask=mask, training=False)
    finally:
        for name, value in kept.items():
            setattr(layer, name, value)
    if mask is None:
        return outputs, after
    if not layer.zero_output_for_mask:
        # Keras repeats the last output at a masked step, and knows none before the first valid one.
        known = ops.cumsum(ops.cast(mask, "int32"), axis=1) > 0
        hidden = _hidden(layer, states)
        if layer.return_sequences:
            outputs = ops.where(known[:, :, None], outputs, hidden[:, None])
        else:
            outputs = ops.where(known[:, -1:], outputs, hidden)
    if layer.return_sequences:
        outputs._keras_mask = mask
    return outputs, after


def _check_recurrent(layer, masked):
    if layer.go_backwards:
        raise NotExportableError(
            f"{_shown(layer)} has go_backwards=True: it begins with the end of the sequence, which "
            "has not come yet in a stream. Export without streaming=True."
        )
    if getattr(layer, "return_gates", False):
        raise NotExportableError(
            f"{_shown(layer)} has return_gates=True, and streams give out the outputs and states "
            "of recurrent layers alone. Make the layer without it, with the same weights."
        )
    learned = getattr(layer, "initial_state", "zeros") == "learned"
    if masked and learned and not layer.zero_output_for_mask:
        raise NotExportableError(
            f"{_shown(layer)} has initial_state='learned': before the first valid step of a "
            "sequence it puts out zeros, and a stream, which knows its states alone, would put out "
            "the learned ones. Export from_keras(model, zero_output_for_mask=True), or leave the "
            "mask out."
        )
    known = (isinstance(cell, GatedCell) or type(cell) in _STATE_NAMES for cell in _cells(layer))
    if masked and not all(known):
        raise NotExportableError(
            f"{_shown(layer)} has a cell of your own, and what it outputs at a masked step depends "
            "on the output before. Use a keras_gates.GatedCell, or a model without a mask."
        )


def _call(operation, args, kwargs):
    args, kwargs = _plain((args, kwargs))
    return operation(*args, **kwargs)


def _try_per_step(operation, args, kwargs):
    """What an operation returns, if it returns the same for each time step alone."""
    if isinstance(operation, keras.layers.Bidirectional):
        raise NotExportableError(
            f"{_shown(operation)} reads the sequence from its end as well, which has not come yet "
            "in a stream. Export without streaming=True, or train with one direction alone."
        )

    def at(step):
        def cut(value):
            if not isinstance(value, _Value):
                return value
            if value.kind != OVER_TIME:
                return value.tensor
            part = value.tensor[:, step : step + 1]
            mask = get_keras_mask(value.tensor)
            if mask is not None:
                part._keras_mask = mask[:, step : step + 1]
            return part

        return tree.map_structure(cut, (args, kwargs))

    whole = _call(operation, args, kwargs)
    expected = [ops.convert_to_numpy(value) for value in tree.flatten(whole)]
    try:
        for step in range(_STEPS):
            args_at, kwargs_at = at(step)
            parts = tree.flatten(operation(*args_at, **kwargs_at))
            for part, value in zip(parts, expected, strict=True):
                part = ops.convert_to_numpy(part)
                same = part.shape == (value.shape[0], 1, *value.shape[2:])
                if not same or not np.allclose(part[:, 0], value[:, step], 1e-3, 1e-4):
                    raise ValueError("its steps depend on each other")
    except Exception as reason:
        raise NotExportableError(
            f"{_shown(operation)} mixes time steps: it does not give the same for each step alone. "
            "Export without streaming=True, or leave it out of the model, and compute it before or "
            "after."
        ) from reason
    return whole


def _cells(layer):
    cell = layer.cell
    return list(cell.cells) if isinstance(cell, keras.layers.StackedRNNCells) else [cell]


def _hidden(layer, states):
    """The hidden state of a layer, or of the uppermost of its cells: what the layer puts out."""
    if isinstance(layer.cell, keras.layers.StackedRNNCells):
        return tree.flatten(states[-1])[0]
    return states[0]


def _state_names(layer, count):
    cells = _cells(layer)
    found = []
    for index, cell in enumerate(cells):
        own = cell.state_names if isinstance(cell, GatedCell) else _STATE_NAMES.get(type(cell))
        prefix = f"{index}_" if len(cells) > 1 else ""
        if own is None:
            return [f"state_{i}" for i in range(count)]
        found += [prefix + name for name in own]
    return found


def _plain(structure):
    return tree.map_structure(lambda v: v.tensor if isinstance(v, _Value) else v, structure)


def _valued(structure, kind):
    return tree.map_structure(lambda tensor: _Value(tensor, kind), structure)


def _shown(operation):
    return f"{operation.name!r} ({type(operation).__name__})"
