"""Checks of arguments. Each error names the argument, what was expected and what came."""

import difflib
import math
import numbers
import os
from collections.abc import Hashable

import numpy as np

_NEARLY = 0.1  # in how much alike two names are


def invalid(argument, expected, value, hint=""):
    """The ValueError for an argument that is not what it must be."""
    return ValueError(f"`{argument}` must be {expected}. Received: {argument}={value!r}{hint}")


def close_matches(name, known, cutoff=0.6):
    """`"; did you mean 'gru'?"` where `known` holds something like `name`, else an empty string.

    How much alike the two are is at least `cutoff`, from 0 to 1; of several, those that are nearly
    as near as the nearest.
    """
    if not isinstance(name, str):
        return ""
    known = {one.lower(): one for one in sorted(map(str, known))}
    matches = [name.lower()]
    if matches[0] not in known:
        matches = difflib.get_close_matches(name.lower(), known, n=3, cutoff=cutoff)
        alike = [difflib.SequenceMatcher(None, match, name.lower()).ratio() for match in matches]
        matches = [
            match for match, ratio in zip(matches, alike, strict=True) if ratio > alike[0] - _NEARLY
        ]
    matches = [known[match] for match in matches]
    return f"; did you mean {' or '.join(map(repr, matches))}?" if matches else ""


def listed(names):
    """Names in a sentence: `"a, b and c"`."""
    *others, last = names
    return f"{', '.join(others)} and {last}" if others else last


def positive_integer(argument, value):
    if isinstance(value, bool) or not isinstance(value, numbers.Integral) or value <= 0:
        raise invalid(argument, "a positive integer", value)
    return int(value)


def nonnegative_integer(argument, value):
    if isinstance(value, bool) or not isinstance(value, numbers.Integral) or value < 0:
        raise invalid(argument, "an integer >= 0", value)
    return int(value)


def known_features(owner, argument, shape, axes):
    """The last size of `shape`, which has these axes."""
    try:
        sizes = tuple(shape)  # a tf.TensorShape too
    except (TypeError, ValueError):
        sizes = ()
    known = len(sizes) == len(axes) and isinstance(sizes[-1], numbers.Integral)
    if not known or sizes[-1] < 1:
        raise ValueError(
            f"{owner} takes `{argument}` of shape ({', '.join(axes)}) with a known feature size. "
            f"Received: shape {shape!r}"
        )
    return sizes[-1]


def _finite_number(value):
    is_number = isinstance(value, numbers.Real) and not isinstance(value, bool)
    return is_number and math.isfinite(value)


def finite_number(argument, value):
    if not _finite_number(value):
        raise invalid(argument, "a finite number", value)
    return float(value)


def positive_number(argument, value, none="no bound"):
    """`value` as a float; `none` is what None, which the caller lets pass, stands for, if it may
    be that."""
    if not _finite_number(value) or value <= 0:
        or_none = f", or None for {none}" if none else ""
        raise invalid(argument, f"a positive finite number{or_none}", value)
    return float(value)


def rate(argument, value):
    """Of learning."""
    return positive_number(argument, value, none=None)


def nonnegative_number(argument, value):
    if not _finite_number(value) or value < 0:
        raise invalid(argument, "a finite number >= 0", value)
    return float(value)


def fraction(argument, value):
    """A dropout rate. 1 is refused: everything would be dropped."""
    if not _finite_number(value) or not 0 <= value < 1:
        raise invalid(argument, "in [0, 1)", value)
    return float(value)


def share(argument, value):
    """A share of a range at either of its ends, of which a half would be all of it."""
    if not _finite_number(value) or not 0 < value < 0.5:
        raise ValueError(
            f"`{argument}` is a share of an activation's range and must be in (0, 0.5). Received: "
            f"{argument}={value!r}"
        )
    return float(value)


def true_or_false(argument, value):
    """`value` as a bool; 0 and 1 pass, as they do in Keras."""
    if not isinstance(value, (bool, np.bool_, numbers.Integral)) or value not in (0, 1):
        raise invalid(argument, "True or False", value)
    return bool(value)


def seed_or_none(argument, value):
    if value is None:
        return None
    integer = isinstance(value, numbers.Integral) and not isinstance(value, bool)
    if not integer or not 0 <= value < 2**32:
        raise invalid(argument, "an integer from 0 to 2**32 - 1, or None", value)
    return int(value)


def file_path(argument, value):
    """A path of a file that can be made: the folder that it lies in is there."""
    if not isinstance(value, (str, os.PathLike)) or os.path.isdir(value):
        raise invalid(argument, "a path of a file", value)
    folder = os.path.dirname(os.path.abspath(value))
    if not os.path.isdir(folder):
        raise ValueError(
            f"`{argument}` must lie in a folder that is there. Received: {argument}={value!r}, and "
            f"there is no folder {folder!r}"
        )
    return value


def text_or_none(argument, value):
    if not isinstance(value, str | None):
        raise invalid(argument, "a text", value)


def one_of(argument, value, known):
    if not isinstance(value, Hashable) or value not in known:
        several = "one of " if len(known) > 1 else ""
        expected = f"{several}{', '.join(map(repr, known))}"
        raise invalid(argument, expected, value, close_matches(value, known))
    return value
