"""A cell's equations as data: values, by name, of the inputs of one time step."""

import dataclasses
import functools

import numpy as np

from keras_gates.equations.table import TABLE
from keras_gates.equations.values import Value, number_of, ordered
from keras_gates.equations.values import value as interned


@dataclasses.dataclass(frozen=True)
class Program:
    """What one time step of a cell computes.

    Two programs that compute the same values in the same way are equal.

    Attributes:
        outputs: from the name of each state to its value after the step, in the order of
            `state_names`. Leaves are the states before (kind "state"), the projections x W_k + b_k
            and h U_k + c_k per block k (kinds "x" and "u"), the weights that the equations
            themselves use (kind "weight", by their position among `cell.weights`), and in training
            where zoneout keeps states (kind "kept").
        named: from the name of a gate, or "candidate", to its value, in the order computed.
        normalized: pairs of a value after and before layer normalization.
    """

    outputs: tuple[tuple[str, Value], ...]
    named: tuple[tuple[str, Value], ...] = ()
    normalized: tuple[tuple[Value, Value], ...] = ()

    @property
    def forward(self):
        """The values of the states after the step, without what is for their gradients alone."""
        return [forward(value) for _, value in self.outputs]

    @property
    def values(self):
        """All values, arguments first."""
        return ordered(v for _, v in (*self.outputs, *self.named))

    @property
    def leaves(self):
        """From (kind, name) to each leaf that values are needed for."""
        return {(v["kind"], v["name"]): v for v in self.values if v.operation == "input"}

    @property
    def reduces(self):
        """Whether it mixes units other than by recurrent products."""
        return any(v.wide and any(not a.wide and a.rows for a in v.arguments) for v in self.values)


def forward(value):
    """The same value, without clipping of gradients, which changes none."""
    return expanded(value, known=lambda row: row.name != "clip_gradient")


def depends_on(values, leaves):
    """Which of the leaves any of the values is computed from."""
    found = set(map(id, ordered(values)))
    return [leaf for leaf in leaves if id(leaf) in found]


def evaluate(values, given, recurrent=None, transposed=None, units=None):
    """Values as float64 arrays.

    Args:
        values: a list of values.
        given: from (kind, name) of each leaf to an array (rows, units); of weights (units,) or ().
        recurrent: from a block and an array (rows, units) to `array U_k + c_k`.
        transposed: likewise to `array U_kᵀ`.
        units: how many there are; by default as many as the widest array given has columns.

    Returns:
        A list of arrays.
    """
    given = {key: np.asarray(array, "float64") for key, array in given.items()}
    if units is None:
        units = max([1, *[a.shape[-1] for a in given.values() if a.ndim]])
    given["size", "units"] = np.float64(units)
    products = {"recurrent": recurrent, "recurrent_transposed": transposed}
    found = {}

    def of(value):
        row = TABLE[value.operation]
        if value.operation == "input":
            return given[value["kind"], value["name"]]
        if value.operation == "constant":
            number = number_of(value)
            return np.float64(number) if number is not None else np.array(value["array"])
        arguments = [found[id(a)] for a in value.arguments]
        if value.operation in products:
            return products[value.operation](value["block"], *arguments)
        if value.operation == "broadcast":
            return np.broadcast_to(arguments[0], (*np.shape(arguments[0])[:-1], units))
        if row.reduces:  # of a single column as many as there are units
            arguments = [_of_units(a, units) for a in arguments]
        return row.numpy(*arguments, **dict(value.parameters))

    values, in_order = _in_order(tuple(values))
    with np.errstate(all="ignore"):
        for value in in_order:
            found[id(value)] = of(value)
    return [found[id(value)] for value in values]


@functools.lru_cache(64)
def _in_order(values):
    """Values in rows that NumPy knows, and all that they are computed from, for many steps."""
    values = [expanded(value) for value in values]
    return values, ordered(values)


def _of_units(array, units):
    return np.broadcast_to(array, (*np.shape(array)[:-1], units))


def expanded(value, known=lambda row: row.numpy is not None or row.expand is None):
    """`value` in rows of the table that are `known`: all others are expanded."""
    done = {}
    for v in ordered([value]):
        arguments = tuple(done[id(a)] for a in v.arguments)
        v_new = v
        if arguments != v.arguments:
            v_new = interned(v.operation, arguments, v.parameters, v.rows, v.wide)
        row = TABLE[v_new.operation]
        if not known(row):
            v_new = expanded(row.expand(v_new), known)
        done[id(v)] = v_new
    return done[id(value)]
