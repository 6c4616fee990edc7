"""Programs on tensors: the operations of the backend in use, one after the other."""

from keras import ops

from keras_gates.equations.operations import UNITS
from keras_gates.equations.program import expanded
from keras_gates.equations.table import TABLE
from keras_gates.equations.values import number_of, ordered

_OVER_UNITS = {"axis": -1, "keepdims": True}
# From a row to what computes it, where that is no function of `keras.ops` of the same name.
_FUNCTIONS = {
    "opaque": lambda x, function: function.activation(x),
    "standard_deviation": ops.std,
    "variance": ops.var,
}


def run(values, given, recurrent, units, dtype):
    """Values as tensors.

    Args:
        values: a list of values.
        given: from each leaf, and from any other value that is known, to its tensor.
        recurrent: from a block and a tensor (rows, units) to `tensor U_k + c_k`.
        units: how many there are.
        dtype: of all tensors.

    Returns:
        A list of tensors.
    """
    stops = {id(value) for value in given}
    values = [expanded(v, _is_computed) for v in values]
    found = {id(value): tensor for value, tensor in given.items()}

    def of(value):
        row = TABLE[value.operation]
        if value is UNITS:
            return ops.convert_to_tensor(units, dtype)
        if value.operation == "constant":
            number = number_of(value)
            return ops.convert_to_tensor(value["array"] if number is None else number, dtype)
        arguments = [found[id(a)] for a in value.arguments]
        if value.operation == "recurrent":
            return recurrent(value["block"], *arguments)
        if row.reduces:
            if not value.arguments[0].wide:  # as many of it as there are units
                arguments = [arguments[0] * ops.ones((units,), dtype)]
            return _function(row)(*arguments, **_OVER_UNITS)
        return _function(row)(*arguments, *[value[name] for name in row.parameters])

    for value in ordered(values, stops):
        if id(value) not in found:
            found[id(value)] = of(value)
    return [found[id(value)] for value in values]


def _function(row):
    """What computes a row from tensors, or None."""
    return _FUNCTIONS.get(row.name) or getattr(ops, row.name, None)


def _is_computed(row):
    """Whether a row is computed as it stands, and not expanded."""
    return row.expand is None or _function(row) is not None
