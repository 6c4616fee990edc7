"""Whether the data that a function is given are finite, and if not, where they are not.

Some models take NaN, as one that fills gaps, and some losses, as one that leaves out targets that
nobody knows. So data are at fault where what is computed of them is not finite either.
"""

import contextlib
import dataclasses
import math

import keras
import numpy as np
from keras import tree

_TRIED = 32


@dataclasses.dataclass
class NotFinite:
    """What is NaN or infinite in one array.

    Attributes:
        argument: what the array was given as, such as "x" or "validation_data[0]".
        count, size: how many of its values are, of how many.
        value, sample, time_step: the first of them and where it is; no time step of an array with
            fewer than three axes.
        tried: some of the samples with such values, evenly spaced over them, which tell whether a
            model takes them.
    """

    argument: str
    count: int
    size: int
    value: float
    sample: int
    time_step: int | None
    tried: np.ndarray

    def __str__(self):
        are = "are NaN or infinite, first" if self.count > 1 else "is NaN or infinite:"
        step = "" if self.time_step is None else f"at time step {self.time_step} "
        return (
            f"{self.count} of {self.size} values {are} {self.value} {step}in sample {self.sample}"
        )

    def error(self):
        masked = "" if self.time_step is None else ", in masked steps too"
        hint = ""
        if self.argument == "y":
            hint = ". For what nobody knows any number will do, with a sample_weight of zero"
        return ValueError(
            f"`{self.argument}` must be of finite numbers{masked}. Received: {self.argument} in "
            f"which {self}{hint}"
        )


def not_finite(argument, values):
    """What is `NotFinite` first in an array, or in a list or dict of them; None if nothing is.

    Of what has no values at hand, as a dataset, nothing is known.
    """
    for path, value in tree.flatten_with_path(values):
        array = _at_hand(value)
        if array is None or _has_finite_sum(array) or np.isfinite(array).all():
            continue
        bad = ~np.isfinite(array)
        index = tuple(map(int, np.unravel_index(bad.argmax(), bad.shape)))
        samples = np.flatnonzero(bad.reshape(len(bad), -1).any(1))
        return NotFinite(
            argument + "".join(f"[{part!r}]" for part in path),
            int(bad.sum()),
            array.size,
            float(array[index]),
            index[0],
            index[1] if array.ndim > 2 else None,
            samples[np.unique(np.linspace(0, len(samples) - 1, _TRIED).round().astype(int))],
        )
    return None


def at_fault(model, x, y=None, sample_weight=None):
    """From an argument to what is `NotFinite` in it, of which the model makes NaN or infinities.

    A layer may fill gaps, and a loss leave out targets that nobody knows. This is tried with
    weights of zero: nothing that they grow to makes NaN then, but what is NaN stays so.
    """
    given = {"x": x, "y": y, "sample_weight": sample_weight}
    found = {name: not_finite(name, values) for name, values in given.items()}
    found = {name: bad for name, bad in found.items() if bad is not None}
    if not found:
        return {}
    with _of_zero_weights(model):
        return {name: bad for name, bad in found.items() if _harms(model, name, given, bad.tried)}


def _harms(model, argument, given, samples):
    """Whether the model makes NaN or infinities of an argument, the others being finite."""
    size = getattr((getattr(model, "inputs", None) or [None])[0], "shape", [None])[0]
    samples = np.resize(samples, size or len(samples))
    taken = {
        name: tree.map_structure(lambda v, name=name: _part(v, samples, name == argument), values)
        for name, values in given.items()
    }
    try:
        outputs = model(taken["x"], training=False)
        if argument == "x":
            outputs = tree.map_structure(keras.ops.convert_to_numpy, outputs)
            return not_finite("outputs", outputs) is not None
        loss = model.compute_loss(**taken, y_pred=outputs)
        return not math.isfinite(float(keras.ops.convert_to_numpy(loss)))
    except Exception:  # of any kind, of a model or a loss of the user's own: nothing is known
        return True


def _part(values, samples, as_they_are):
    if values is None:
        return None
    part = np.asarray(values)[samples]
    if as_they_are or part.dtype.kind != "f":
        return part
    return np.nan_to_num(part, posinf=0, neginf=0)


@contextlib.contextmanager
def _of_zero_weights(model):
    """The model with weights of zero; it is as it was afterwards."""
    variables = {id(v): v for v in (*model.variables, *model.metrics_variables)}.values()
    kept = [(variable, keras.ops.copy(variable.value)) for variable in variables]
    weights = {id(weight) for weight in model.weights}
    try:
        for variable, value in kept:
            if id(variable) in weights and keras.backend.is_float_dtype(variable.dtype):
                variable.assign(keras.ops.zeros_like(value))
        yield
    finally:
        for variable, value in kept:
            variable.assign(value)


def _at_hand(value):
    """An array of floating-point numbers, or None."""
    try:
        array = np.asarray(value) if hasattr(value, "__array__") else None
    except (TypeError, ValueError, RuntimeError):  # sparse, or on another device
        return None
    if array is None or not array.ndim:
        return None
    return array if array.dtype.kind == "f" or array.dtype.name == "bfloat16" else None


def _has_finite_sum(array):
    """Which says of large arrays without a copy of them that all of their values are finite."""
    with np.errstate(all="ignore"):
        return math.isfinite(array.sum())
