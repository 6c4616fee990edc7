"""What a program is made of: values, each an operation applied to other values.

Values are interned: two that are computed alike are one object, so that equal programs are equal
and what is computed twice is computed once.
"""

import threading
import weakref

import numpy as np

from keras_gates.equations.table import TABLE


class Value:
    """The result of an operation, or a leaf of a program.

    Attributes:
        operation: name of a row of `table.TABLE`; "input" or "constant" for leaves.
        arguments: the values that it is applied to.
        parameters: pairs (name, value) of numbers and names that are fixed: the slope of a
            leaky relu, the name of an input.
        rows: whether it has one row per sample; weights and constants have none.
        wide: whether it has one column per unit, and not a single one.
    """

    __slots__ = ("__weakref__", "arguments", "operation", "parameters", "rows", "wide")

    def __init__(self, operation, arguments, parameters, rows, wide):
        self.operation, self.arguments, self.parameters = operation, arguments, parameters
        self.rows, self.wide = rows, wide

    def __getitem__(self, name):
        """The parameter of that name."""
        return dict(self.parameters)[name]

    def __repr__(self):
        inside = [*map(repr, self.arguments), *(str(given) for _, given in self.parameters)]
        return f"{self.operation}({', '.join(inside)})"

    def __add__(self, other):
        return apply("add", self, other)

    def __radd__(self, other):
        return apply("add", other, self)

    def __sub__(self, other):
        return apply("subtract", self, other)

    def __rsub__(self, other):
        return apply("subtract", other, self)

    def __mul__(self, other):
        return apply("multiply", self, other)

    def __rmul__(self, other):
        return apply("multiply", other, self)

    def __truediv__(self, other):
        return apply("divide", self, other)

    def __rtruediv__(self, other):
        return apply("divide", other, self)

    def __neg__(self):
        return apply("negative", self)

    def __pow__(self, other):
        return apply("power", self, other)

    def __gt__(self, other):
        return apply("greater", self, other)

    def __lt__(self, other):
        return apply("less", self, other)

    def __ge__(self, other):
        return apply("greater_equal", self, other)

    def __le__(self, other):
        return apply("less_equal", self, other)


_interned: weakref.WeakValueDictionary = weakref.WeakValueDictionary()
_lock = threading.Lock()


def value(operation, arguments=(), parameters=(), rows=True, wide=True):
    """The one value that is computed so."""
    key = (operation, tuple(map(id, arguments)), parameters, rows, wide)
    with _lock:
        found = _interned.get(key)
        if found is None:
            found = Value(operation, tuple(arguments), parameters, rows, wide)
            _interned[key] = found
        return found


def leaf(kind, name, rows=True, wide=True):
    """A leaf that values are given for: `kind` "x", "u", "state", "kept", "weight" or
    "gradient"."""
    return value("input", (), (("kind", kind), ("name", name)), rows, wide)


def constant(number):
    """A number, or an array of one number per unit, (units,), as a leaf."""
    array = np.asarray(number, "float64")
    if array.ndim > 1 and any(size != 1 for size in array.shape[:-1]):
        raise ValueError(f"a constant must have the shape () or (units,), not {array.shape}")
    if array.size == 1:
        return value("constant", (), (("number", _number(array)),), False, False)
    return value("constant", (), (("array", tuple(array.ravel().tolist())),), False, True)


def _number(array):
    # -0.0 equals 0.0, and must not become it: 1 / x differs.
    number = float(array.reshape(()))
    return int(number) if number.is_integer() and (number or np.copysign(1, number) > 0) else number


def number_of(value):
    """The number that a constant is, or None."""
    return dict(value.parameters).get("number") if value.operation == "constant" else None


def apply(operation, *arguments, **parameters):
    """An operation of the table on values and numbers; with constants only, the constant."""
    row = TABLE[operation]
    arguments = [a if isinstance(a, Value) else constant(a) for a in arguments]
    found = row.simpler(*arguments) if row.simpler else None
    if found is not None:
        return found
    if row.numpy and all(a.operation == "constant" and not a.wide for a in arguments):
        with np.errstate(all="ignore"):
            result = row.numpy(*[np.float64(number_of(a)) for a in arguments], **parameters)
        if np.asarray(result).dtype != bool:
            return constant(result)
    found = value(
        operation,
        tuple(arguments),
        tuple(sorted(parameters.items())),
        rows=any(a.rows for a in arguments),
        wide=row.reduces is None or (not row.reduces and any(a.wide for a in arguments)),
    )
    return row.expand(found) if row.alias else found


def ordered(outputs, stops=()):
    """All values that the outputs are computed from, and themselves, arguments first.

    Args:
        outputs: values.
        stops: ids of values whose own arguments are not looked at.
    """
    found, seen, open_ = [], set(), [(v, False) for v in reversed(list(outputs))]
    while open_:
        v, expanded = open_.pop()
        if expanded:
            found.append(v)
        elif id(v) not in seen:
            seen.add(id(v))
            open_.append((v, True))
            if id(v) not in stops:
                open_ += [(a, False) for a in reversed(v.arguments)]
    return found
