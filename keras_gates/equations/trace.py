"""From what Keras recorded of KerasTensors to values."""

import inspect
import pathlib
import re
import traceback

import keras
import numpy as np
from keras import ops

from keras_gates._keras import graph
from keras_gates.activations.lookup import name_by_another_path
from keras_gates.equations.operations import BY_KERAS_CLASS
from keras_gates.equations.table import TABLE
from keras_gates.equations.values import apply, constant


class NotTraceableError(ValueError):
    """Equations that cannot become a program; the message is the reason."""

    @property
    def explains(self):
        """Whether it says more than the error which the equations raised on symbols."""
        cause = self.__cause__
        return cause is not None and not str(self).startswith(type(cause).__name__)


_LIBRARIES = {"tensorflow": "TensorFlow", "jax": "JAX", "torch": "PyTorch", "numpy": "NumPy"}
# By which Python asks a KerasTensor for the value that it does not have.
_AS_NUMBER = ("__bool__", "__float__", "__int__", "__index__")


def reason_of(error):
    """In one sentence why equations that raised `error` on symbols cannot be traced."""
    frames = list(traceback.walk_tb(error.__traceback__))
    packages = [frame.f_globals.get("__name__", "").partition(".")[0] for frame, _ in frames]
    ours = [i for i, package in enumerate(packages) if package == __name__.partition(".")[0]]
    first = ours[-1] + 1 if ours else 0  # what our own code called: an activation, or `update`
    where, called = "", packages[first:]
    if called and called[0] not in ("keras", *_LIBRARIES):
        (frame, line), called = frames[first], called[1:]
        file = pathlib.Path(frame.f_code.co_filename).name
        where = f" in `{frame.f_code.co_name}` ({file}, line {line})"
    asked = frames[-1][0].f_code.co_name if frames else ""
    if asked in _AS_NUMBER:
        return (
            f"the value of a tensor is asked for{where}, as by `if` or float(): values are not "
            "known where equations are traced (keras.ops.where chooses by them)"
        )
    library = next((_LIBRARIES[package] for package in called if package in _LIBRARIES), None)
    if asked == "__array__" and library is None:
        library = "NumPy"
    about_symbols = re.search("KerasTensor|__jax_array__", str(error))
    if not called and about_symbols:  # what is written in C, and JAX, leave no frames
        library = _LIBRARIES.get(keras.backend.backend())
    if called[:1] == ["keras"] and not about_symbols:  # keras.ops, given what it does not take
        library = None
    if library is not None:
        return (
            f"functions of {library} are called{where}: written with keras.ops, the equations can "
            "be traced"
        )
    line = str(error).strip().partition("\n")[0]
    return f"{type(error).__name__}: {re.sub(r' [^.]*:$', '', line)}"


class Symbolic(keras.Operation):
    """A row of the table as an operation on KerasTensors, for what Keras has none for.

    Args:
        row: name of the row.
        parameters: its parameters.
    """

    def __init__(self, row, **parameters):
        super().__init__(name=row)
        self.row, self.parameters = row, parameters

    def compute_output_spec(self, x):
        return keras.KerasTensor(x.shape, x.dtype, name=self.row)


# Activations that convert their argument to a tensor of the backend first.
_CONVERTING = {
    getattr(keras.activations, name): name
    for name in ("hard_silu", "mish", "sparsemax", "threshold")
}


def symbolic(function):
    """A function that also takes KerasTensors, for one of Keras' or of `tf.nn` that does not; else
    itself."""
    name = name_by_another_path(function, ("tensorflow",))
    if name is not None:
        function = getattr(keras.activations, name)
    try:
        row = _CONVERTING.get(function)
    except TypeError:  # not hashable
        return function
    if row is None:
        return function

    def on_any_tensor(*args, **kwargs):
        given = inspect.signature(function).bind(*args, **kwargs)
        given.apply_defaults()
        x, *rest = given.args
        if not isinstance(x, keras.KerasTensor):
            return function(*args, **kwargs)
        if row == "sparsemax" and rest != [-1]:
            raise NotTraceableError(f"{row} is along axis {rest[0]} and not along the units, -1")
        return Symbolic(row, **dict(zip(TABLE[row].parameters, rest, strict=False)))(x)

    return on_any_tensor


def read(tensor, leaves):
    """The value that a KerasTensor, number or array stands for.

    Args:
        tensor: what the equations gave.
        leaves: from the id of each KerasTensor or variable that they were given to its leaf. What
            is read is added, so that it is read once.
    """
    if isinstance(tensor, (keras.KerasTensor, keras.Variable)):
        if id(tensor) not in leaves:
            if isinstance(tensor, keras.Variable):
                raise NotTraceableError(f"{tensor.path} is not among the cell's weights")
            leaves[id(tensor)] = _read_operation(tensor, leaves)
        return leaves[id(tensor)]
    if isinstance(tensor, bool):
        return constant(float(tensor))
    try:
        array = np.asarray(ops.convert_to_numpy(tensor), "float64")
        return constant(array)
    except Exception as error:
        raise NotTraceableError(f"{tensor!r} is neither a number nor one per unit") from error


# Operations with several outputs, of which each has a row.
_OF_OUTPUTS = {"Moments": ("mean", "variance")}


def _read_operation(tensor, leaves):
    found = graph.origin(tensor)
    if found is None:
        raise NotTraceableError("a tensor comes from outside the equations")
    operation, args, kwargs, index = found
    if isinstance(operation, Symbolic):
        arguments = [read(argument, leaves) for argument in args]
        return apply(operation.row, *arguments, **operation.parameters)
    kind = type(operation)
    if kind.__name__ == "ConvertToTensor" and operation.dtype in (None, args[0].dtype):
        return read(args[0], leaves)
    row = BY_KERAS_CLASS.get(kind.__name__)
    if kind.__name__ == "Reshape" and [*tensor.shape[-1:]] == [n for n in args[0].shape if n != 1]:
        return read(args[0], leaves)  # one per unit, with more axes before that one
    if kind.__name__ in _OF_OUTPUTS:
        row = TABLE[_OF_OUTPUTS[kind.__name__][index]]
    if row is None or not kind.__module__.startswith("keras."):
        product = ": name a matrix in `blocks` and call self.recurrent(name, value)"
        hint = product if kind.__name__ in ("Matmul", "Dot", "Einsum") else ""
        raise NotTraceableError(f"no program knows the operation {kind.__name__}{hint}")
    _check_axis(operation, row)
    if row.name == "cast" and "int" in operation.dtype and args[0].dtype != "bool":
        raise NotTraceableError(f"no program rounds numbers to {operation.dtype}")
    parameters = {}
    for name, attribute in zip(row.parameters, row.keras.get(kind.__name__, ()), strict=True):
        parameters[name] = _parameter(kind.__name__, attribute, getattr(operation, attribute))
    given = [*args, *kwargs.values()]
    while given[-1] is None:  # a normalization without gain and shift
        given.pop()
    arguments = [read(argument, leaves) for argument in given]
    return apply(row.name, *arguments, **parameters)


def _parameter(kind, name, given):
    if given is None or isinstance(given, (bool, str)):
        return given
    try:
        return float(given)
    except (TypeError, ValueError):
        raise NotTraceableError(f"`{name}` of {kind} is not a number but {given!r}") from None


def _check_axis(operation, row):
    """Everything is along the units, and stays beside them."""
    axis = getattr(operation, "axis", getattr(operation, "axes", -1))
    if isinstance(axis, (list, tuple)) and len(axis) == 1:
        (axis,) = axis
    if axis not in (-1, 1):
        raise NotTraceableError(f"{row.name} is along axis {axis} and not along the units, -1")
    if row.reduces and not getattr(operation, "keepdims", True):
        raise NotTraceableError(f"{row.name} over the units needs keepdims=True")
