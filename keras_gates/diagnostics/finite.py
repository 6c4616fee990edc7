"""Whether the data that a function is given are finite, and if not, where they are not.

Some models take NaN, as one that fills gaps, and some losses, as one that leaves out targets that
nobody knows. So data are at fault where what is computed of them is not finite either.
"""

import dataclasses
import math

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
        return ValueError(
            f"`{self.argument}` must be of finite numbers{masked}. Received: {self.argument} in "
            f"which {self}"
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
