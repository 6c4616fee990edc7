"""A cell's `update`, traced: from its Python code to its program."""

import functools
import types
import warnings

import keras
from keras import ops

from keras_gates._keras import graph
from keras_gates._keras.layers import AutocastScope
from keras_gates.activations import name_of, values
from keras_gates.activations.profiles import fresh
from keras_gates.cells.checking import naming_weights
from keras_gates.cells.step import named, projected_blocks, recurrent_blocks, running
from keras_gates.cells.zoneout import shares
from keras_gates.eager import eager_scope
from keras_gates.equations.program import Program
from keras_gates.equations.trace import (
    NotTraceableError,
    Symbolic,
    read,
    reason_of,
    symbolic,
)
from keras_gates.equations.values import leaf
from keras_gates.validation import one_of


def trace(cell, opaque=False, training=False):
    """The `Program` of a cell: of its `update`, with its activations, options and weights.

    The cell itself is left alone: its code runs on a copy whose weights are symbols. Constants that
    it makes are values, also where a graph is being built around it.

    Args:
        cell: a GatedCell, built if its equations use weights.
        opaque: whether an activation that cannot be traced is known by its values instead.
        training: whether zoneout keeps some units, given by a leaf of the kind "kept" for each
            state that has it, and not the share of each.

    Raises:
        NotTraceableError: its equations cannot become a program, with the reason.
    """
    scope = keras.StatelessScope()
    with eager_scope(), graph.names_kept(), graph.operators_of_tensors(), scope:
        tracing = _Tracing(cell, scope, opaque, training)
        known = len(scope.state_mapping)
        try:
            outputs = tracing.run()
        except NotTraceableError:
            raise
        except Exception as error:
            unbuilt = "" if cell.built else " (the cell is not built yet)"
            raise NotTraceableError(f"{reason_of(error)}{unbuilt}") from error
        if len(scope.state_mapping) > known:
            raise NotTraceableError("its equations change variables (random numbers?)")
    return outputs


class _Tracing:
    """Stands in for a `Step` while a copy of the cell's equations runs on symbols."""

    def __init__(self, cell, scope, opaque, training):
        self.cell, self.leaves, self.activated = cell, {}, {}
        self.training, self.kept = training, {}
        self.opaque = set(map(id, cell.activations_in_use())) if opaque else ()
        self.weights, self.copies, self.tensors, self.normalized = {}, {}, [], []
        for name, variable in weights_by_name(cell).items():
            shape = tuple(variable.shape)
            tensor = self._tensor(
                leaf("weight", name, False, shape not in ((), (1,))), name, shape or ()
            )
            self.weights[id(variable)] = tensor
            self.leaves[id(variable)] = self.leaves[id(tensor)]
            graph.map_variable(scope, variable, tensor)

    def run(self):
        cell, projected = self.cell, projected_blocks(self.cell)
        copy = self._copy(cell)
        x, u = (
            named(blocks, [self._tensor(leaf(kind, name), f"{kind}_{name}") for name in blocks])
            for kind, blocks in (("x", cell.blocks), ("u", projected))
        )
        states = [self._tensor(leaf("state", name), name) for name in cell.state_names]
        if self.training:
            self.kept = {n: self._tensor(leaf("kept", n), f"kept_{n}") for n in shares(cell)}
        with running(copy, self):
            new = copy.advance(x, u, states)
        outputs = tuple(
            (name, read(tensor, self.leaves))
            for name, tensor in zip(cell.state_names, new, strict=True)
        )
        activated = ((name, read(tensor, self.leaves)) for name, tensor in self.activated.items())
        normalized = [[read(tensor, self.leaves) for tensor in pair] for pair in self.normalized]
        return Program(outputs, tuple(activated), tuple(map(tuple, normalized)))

    # ------------------------------------------------------------------ what a Step does

    def activate(self, name, activation, preactivation):
        self.activated[name] = activated = activation(preactivation)
        return activated

    def note_normalized(self, after, before):
        self.normalized.append((after, before))

    def recurrent(self, block, value):
        one_of("block", block, recurrent_blocks(self.cell))
        return self.clip("preactivation", Symbolic("recurrent", block=block)(value))

    def clip(self, place, x):
        cell = self.cell
        if place != cell.grad_clip_at or not cell.clips or not isinstance(x, keras.KerasTensor):
            return x
        bounds = {"value": cell.grad_clip_value, "norm": cell.grad_clip_norm}
        return Symbolic("clip_gradient", **bounds)(x)

    # ------------------------------------------------------------------ symbols

    def _tensor(self, value, name, shape=None):
        shape = (None, self.cell.units) if shape is None else shape
        tensor = keras.KerasTensor(shape, self.cell.compute_dtype, name=name)
        self.leaves[id(tensor)] = value
        self.tensors.append(tensor)  # an id is that of what is alive
        return tensor

    def _copy(self, layer):
        """A layer that computes the same on symbols: with symbols for weights, and copies inside"""
        if id(layer) not in self.copies:
            kind = type(layer) if layer is self.cell else _called_directly(type(layer))
            self.copies[id(layer)] = copy = object.__new__(kind)
            attributes = {  # layers in a layer are in its `_modules` on PyTorch
                name: self._converted(value, inside=name[0] != "_" or name == "_modules")
                for name, value in vars(layer).items()
            }
            vars(copy).update(attributes)
            graph.disconnected(copy)
        return self.copies[id(layer)]

    def _converted(self, value, inside=True):
        if id(value) in self.opaque:
            return _or_opaque(self._known(value), value)
        if inside and isinstance(value, dict):
            return {name: self._converted(v) for name, v in value.items()}
        if inside and type(value) in (list, tuple):
            return type(value)(self._converted(v) for v in value)
        return self._known(value)

    def _known(self, value):
        if isinstance(value, keras.Variable):
            return self.weights.get(id(value), value)
        if isinstance(value, keras.layers.Layer):
            return self._copy(value)
        if isinstance(value, types.MethodType) and id(value.__self__) in self.copies:
            return types.MethodType(value.__func__, self.copies[id(value.__self__)])
        return symbolic(value) if callable(value) else value


def refuse_failing(cell, untraced, then=""):
    """Raises if a time step of a cell fails on zeros: not tracing is then the least of it.

    Args:
        cell: a GatedCell, built or not.
        untraced: the NotTraceableError of its equations.
        then: what follows, in words after "fails".
    """
    method, of = "build", type(cell).__name__
    try:
        if not cell.built:
            cell = built_copy(cell, units=cell.units, features=cell.units)
        method = "update"
        inputs = ops.zeros((1, cell.kernel.shape[0]), cell.compute_dtype)
        with eager_scope(), keras.StatelessScope(), AutocastScope(cell.compute_dtype):
            cell.call(inputs, cell.get_initial_state(1))
    except Exception as error:
        found = naming_weights(cell, error)
        why = f"{type(found).__name__}: {found}"
        if method == "update" and untraced.explains:
            why = f"{str(untraced)[0].upper()}{str(untraced)[1:]}. {why}"
        raise ValueError(f"`{method}` of {of} fails{then}. {why}") from error


@functools.cache
def _called_directly(kind):
    """A subclass of a layer's class that computes nothing but its `call` when it is called."""

    def __call__(self, *args, **kwargs):
        return self.call(*args, **kwargs)

    return type(kind.__name__, (kind,), {"__call__": __call__, "__module__": kind.__module__})


class _Opaque:
    """An activation as a function of float64 arrays, equal to another of the same activation."""

    def __init__(self, activation):
        self.activation = activation

    def __call__(self, x):
        return values(self.activation, x)

    def __eq__(self, other):
        return isinstance(other, _Opaque) and self.activation is other.activation

    def __hash__(self):
        return id(self.activation)

    def __str__(self):
        return name_of(self.activation)


def _or_opaque(function, activation):
    """`function` where it can be traced, and else the values of the activation."""

    def on_symbols(x):
        try:
            with warnings.catch_warnings():
                # Of symbols with one unit, where a cell is only judged.
                warnings.filterwarnings("ignore", "You are using a softmax over axis")
                return function(x)
        except Exception:
            return Symbolic("opaque", function=_Opaque(activation))(x)

    return on_symbols


def traced(cell, units=1):
    """A cell and its program: of one that needs weights and is not built yet, those of a copy of so
    many units."""
    try:
        return cell, trace(cell, opaque=True)
    except NotTraceableError:
        if cell.built:
            raise
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            copy = built_copy(cell, units)
    except Exception as error:
        raise NotTraceableError(
            f"it is not built, and building a copy fails: {reason_of(error)}"
        ) from error
    return copy, trace(copy, opaque=True)


def built_copy(cell, units=1, features=1, **others):
    """A new cell of the same arguments but for `others`, built; of layers as activations copies, if
    not built."""
    given = {name: getattr(cell, name) for name in cell.options() if hasattr(cell, name)}
    given["gate_activation"] = cell.gate_activations or None
    copies = {}

    def copied(value):
        if isinstance(value, dict):
            return {name: copied(v) for name, v in value.items()}
        if isinstance(value, keras.layers.Layer) and not value.built:
            return copies.setdefault(id(value), fresh(value))
        return value

    given = {**{n: copied(v) for n, v in given.items()}, **others, "units": units}
    made = type(cell)(**given)
    seed_initializers(made)
    made.build((None, features))
    return made


def seed_initializers(cell):
    """Gives the cell's initializers fixed seeds, so that verdicts do not vary."""
    for name in ("kernel_initializer", "recurrent_initializer", "bias_initializer"):
        initializer = getattr(cell, name)
        if isinstance(initializer, keras.initializers.Initializer):
            config = initializer.get_config()
            if "seed" in config:
                initializer = type(initializer).from_config({**config, "seed": 1})
                setattr(cell, name, initializer)


def weights_by_name(cell):
    """The cell's weights, each under the name that a program has for it."""
    found = {}
    for index, variable in enumerate(cell.weights):
        name = variable.name if variable.name not in found else f"{variable.name}_{index}"
        found[name] = variable
    return found
