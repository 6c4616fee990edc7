"""Where the gates of a cell start, from its equations.

Gates of sigmoid start near 1/2, so that every unit forgets within a few steps. Spread over
(0, 1), they remember from a step to as many as there are units, or as are asked for, from the
first step of training on.
"""

import contextlib
import functools
import typing

import keras
import numpy as np

from keras_gates import activations
from keras_gates.activations.profiles import values
from keras_gates.cells.program import built_copy, trace
from keras_gates.cells.step import recurrent_blocks
from keras_gates.equations import NotTraceableError, constant, evaluate, leaf, pulled
from keras_gates.equations.program import forward as forward_of
from keras_gates.initializers import Chrono
from keras_gates.types import InitializationName
from keras_gates.validation import close_matches

_CANDIDATE = "candidate"
_KERAS, _UNIFORM = _NAMES = typing.get_args(InitializationName)
# Fine where activations bend, and wide, because softsign needs 500 to come within 0.001 of 1.
_GRID = np.sinh(np.linspace(-10, 10, 2**14 + 1))
_SHIFT = 1e-4
_OF_KERNELS = ("orthogonal", "identity", "glorot_uniform", "he_normal", "he_uniform", "zeros")


def checked(cell, given):
    """An `initialization` as a cell keeps it: None for Keras' own."""
    found = _named(given)
    if found is not None and not cell.gate_names():
        raise ValueError(
            "`initialization` spreads the gates that carry the state on, and "
            f"{type(cell).__name__} has no gates. Received: initialization={given!r}"
        )
    return found


def _named(given):
    found = given
    if isinstance(given, dict):
        with contextlib.suppress(TypeError, ValueError):
            found = keras.saving.deserialize_keras_object(given)
    if found is None or isinstance(found, Chrono):
        return found
    if isinstance(found, str) and found in _NAMES:
        return None if found == _KERAS else found
    raise ValueError(
        f"`initialization` must be {', '.join(map(repr, _NAMES))}, or an instance of "
        f"keras_gates.initializers.Chrono. Received: initialization={given!r}"
        f"{_meant(given) or close_matches(given, _NAMES)}"
    )


def _meant(given):
    """What one may have meant that is given something else."""
    number = isinstance(given, int) and not isinstance(given, bool)
    if number or given is Chrono or (isinstance(given, str) and "chrono" in given.lower()):
        steps = given if number else 150
        return (
            f". Did you mean keras_gates.initializers.Chrono({steps}), with the number of steps "
            "that are to be remembered?"
        )
    initializer = isinstance(given, keras.initializers.Initializer)
    if initializer or (isinstance(given, str) and given.lower() in _OF_KERNELS):
        return ". Initializers of Keras go to `kernel_initializer` or `recurrent_initializer`"
    return ""


def of_cell(cell):
    """Where the gates of a cell start, or None if as the initializers say.

    Raises:
        ValueError: an `initialization` that the cell cannot have.
    """
    if cell.initialization is None:
        return None
    name, given = type(cell).__name__, f"Received: initialization={cell.initialization!r}"
    if not cell.use_bias:
        raise ValueError(
            f"`initialization` sets biases of gates, and use_bias=False leaves {name} none. {given}"
        )
    try:
        found = GateStarts(cell)
    except NotTraceableError as error:
        raise ValueError(
            f"`initialization` is read off the equations of {name}, which cannot be traced: "
            f"{error}. {given}"
        ) from error
    if not found.ways:
        gates = {g: activations.name_of(a) for g, a in cell.gate_activations.items()}
        shown = ", ".join(f"{gate} ({activation})" for gate, activation in gates.items())
        raise ValueError(
            "`initialization` spreads the gates that carry the state on, and that takes a gate "
            "with a part of `bias` to itself whose activation rises from 0 to 1, such as sigmoid. "
            f"{name} has {shown}. {given}"
        )
    return found


class GateStarts:
    """Where the gates of one cell start.

    Let a state be carried on by the factor `F` of its equation on the direct way, such as z in
    `h' = z * h + (1 - z) * n`. The gates that `F` rises with start at the values v that
    `initialization` gives, those that it falls with, and those that what is added is multiplied
    by, such as i in `c' = f * c + i * g`, at 1 - v, through the inverse of their own activation.

    Uniform gates have v spread evenly over (1 / units, 1 - 1 / units). With them, at the origin,
    the recurrent gain g* of the candidate's block is that at which the states neither grow nor
    shrink, and the block is multiplied by sqrt(g*).

    Args:
        cell: a GatedCell, maybe not built.

    Attributes:
        ways: from the name of a gate to +1 or -1: v or 1 - v.

    Sources: Gu, Gulcehre, Paine, Hoffman, Pascanu, "Improving the gating mechanism of recurrent
    neural networks", 2020, for uniform gates; for other values see `keras_gates.initializers`.
    """

    def __init__(self, cell):
        self._cell = cell
        # Zoneout would carry on, beside the gates, states that the equations make anew.
        self._copy = built_copy(cell, layer_norm=False, initialization=None, zoneout=0.0)
        self._program = trace(self._copy, opaque=True)
        self._forward = self._program.forward
        self.ways: dict = {}
        self.ways = self._ways()

    def bias(self, gate):
        """The bias of each unit, or None for a gate that does not carry."""
        if gate not in self.ways:
            return None
        v = self._shares()
        return self._inputs(gate, v if self.ways[gate] > 0 else 1 - v)

    @functools.cached_property
    def gain(self):
        """The factor of the candidate's block of U: sqrt(g*) with uniform gates; 1 without a
        recurrent product of the candidate, or without a g*."""
        cell = self._cell
        uniform = cell.initialization == _UNIFORM
        if not uniform or cell.layer_norm or _CANDIDATE not in recurrent_blocks(cell):
            return 1.0
        return self._gain()

    def _shares(self):
        units, initialization = self._cell.units, self._cell.initialization
        if initialization == _UNIFORM:
            return 1 / units + (1 - 2 / units) * (np.arange(units) + 0.5) / units
        return initialization.shares(units)

    def _ways(self):
        """A gate counts if it is a share, has a bias of its own, and its activation an inverse."""
        cell, found = self._copy, {}
        named = {name: forward_of(value) for name, value in self._program.named}
        for state, after in zip(cell.state_names, self._forward, strict=True):
            stops = [leaf("state", state), *named.values()]
            (direct, *of_named), _ = pulled(
                [after], [leaf("gradient", "one")], stops, products=False
            )
            if direct is None:
                continue
            added = dict(zip(named, of_named, strict=True)).get(_CANDIDATE)
            for gate, value in named.items():
                if gate not in cell.blocks or gate == _CANDIDATE or gate in found:
                    continue
                rises = self._slope(direct, value)
                if not rises and added is not None and self._slope(added, value):
                    rises = -1.0
                if rises and _is_share(cell, gate):
                    found[gate] = float(np.sign(rises))
        return found

    def _slope(self, of, value):
        """d of / d value at the origin."""
        (slope,), _ = pulled([of], [constant(1.0)], [value], products=False)
        if slope is None:
            return 0.0
        return float(self._evaluate([slope], self._origin())[0])

    def _gain(self):
        """sqrt(g*), by bisection; 1 where there is none."""
        origin = self._origin()
        if self._growth(0.0, origin) >= 1 or self._growth(100.0, origin) < 1:
            return 1.0
        low, high = 0.0, 100.0
        for _ in range(40):
            middle = (low + high) / 2
            low, high = (middle, high) if self._growth(middle, origin) < 1 else (low, middle)
        return float(np.sqrt(high))

    def _growth(self, gain, origin):
        """The spectral radius of d states' / d states at the origin, for one unit."""
        states = [("state", name) for name in self._copy.state_names]

        def after(given):
            hidden = given[states[0]]
            given = {**given, ("u", _CANDIDATE): gain * hidden}
            return np.array(
                self._evaluate(
                    self._forward, given, lambda block, v: gain * v * (block == _CANDIDATE)
                )
            )

        before = after(origin)
        columns = [(after({**origin, state: _SHIFT}) - before) / _SHIFT for state in states]
        if not np.isfinite(columns).all():
            return np.inf
        return float(np.abs(np.linalg.eigvals(np.stack(columns, axis=1))).max())

    def _origin(self):
        """States and inputs of 0, gates at 1/2 where they will be on average, as leaves."""
        cell = self._copy
        given = {leaf_: 0.0 for leaf_ in self._program.leaves if leaf_[0] != "weight"}
        given |= {("state", name): 0.0 for name in cell.state_names}
        for block in cell.blocks:
            bias = float(block == cell.ones_in_bias)
            if block in self.ways:
                bias = float(self._inputs(block, np.array([0.5]))[0])
            given["x", block] = bias
        return given

    def _inputs(self, gate, v):
        """Projections x W + b at which a gate has the values `v`, all other leaves being 0: through
        its activation, and what the equations do to the projection before."""
        activation = self._cell.gate_activations[gate]
        inputs, y = _curve(activation)
        value = forward_of(dict(self._program.named)[gate])
        given = {key: np.zeros((1, 1)) for key in self._program.leaves}
        given |= {("x", gate): inputs[:, None], ("size", "units"): 1.0}
        (found,) = evaluate([value], given, lambda _, v: 0 * v, units=1)
        found = found.ravel()
        for x, its in ((inputs, found), (inputs[::-1], found[::-1])):
            if len(x) == len(its) and its[0] < 0.05 and its[-1] > 0.95:
                return _inverse(x, its, v)
        return _inverse(inputs, y, v)  # the projection is multiplied by a weight, for example

    def _evaluate(self, wanted, given, recurrent=lambda _, v: 0 * v):
        weights = {("weight", n): 0.0 for kind, n in self._program.leaves if kind == "weight"}
        given = {**weights, **given, ("gradient", "one"): 1.0}
        arrays = {key: np.full((1, 1), value) for key, value in given.items()}
        found = evaluate(wanted, arrays, recurrent, lambda _, d: 0 * d, units=1)
        return [float(np.ravel(value)[0]) for value in found]


def _curve(activation):
    """Inputs, rising, and what an activation makes of them, without far ones where it overflows."""
    y = values(activation, _GRID)
    known = np.isfinite(y) | (abs(_GRID) < 32)
    return _GRID[known], y[known]


def _is_share(cell, gate):
    """Whether the cell takes a gate for a share, and its activation runs from 0 to 1 and rises."""
    default = activations.get(cell.default_gates()[gate], "gate_activation")
    try:
        (_, default), (_, y) = map(_curve, (default, cell.gate_activations[gate]))
    except ValueError:  # it mixes units
        return False
    rises = (np.diff(y) > -1e-6).all() and abs(y[0]) < 0.05 and abs(y[-1] - 1) < 0.05
    return bool(rises and default.min() >= 0 and default.max() <= 1)


def _inverse(x, y, v):
    """Inputs at which a rising function, with the values y at x, has the values `v`."""
    y = np.maximum.accumulate(y)  # up to rounding it rises
    rising = np.flatnonzero(np.diff(y) > 0)
    part = slice(rising[0], rising[-1] + 2)
    return np.interp(v, y[part], x[part])
