"""Checks of arguments. Each error names the argument, what was expected and what came."""

import difflib
import math
import numbers


def close_matches(name, known):
    """`"; did you mean 'gru'?"` where `known` holds something like `name`, else an empty string."""
    if not isinstance(name, str):
        return ""
    known = {one.lower(): one for one in sorted(map(str, known))}
    matches = [name.lower()]
    if matches[0] not in known:
        matches = difflib.get_close_matches(name.lower(), known, n=3, cutoff=0.5)
    matches = [known[match] for match in matches]
    return f"; did you mean {' or '.join(map(repr, matches))}?" if matches else ""


def positive_integer(argument, value):
    if isinstance(value, bool) or not isinstance(value, numbers.Integral) or value <= 0:
        raise ValueError(f"`{argument}` must be a positive integer. Received: {argument}={value!r}")
    return int(value)


def _finite_number(value):
    is_number = isinstance(value, numbers.Real) and not isinstance(value, bool)
    return is_number and math.isfinite(value)


def finite_number(argument, value):
    if not _finite_number(value):
        raise ValueError(f"`{argument}` must be a finite number. Received: {argument}={value!r}")
    return float(value)


def positive_number(argument, value, none="no bound"):
    """`value` as a float; `none` is what None, which the caller lets pass, stands for."""
    if not _finite_number(value) or value <= 0:
        raise ValueError(
            f"`{argument}` must be a positive finite number, or None for {none}. "
            f"Received: {argument}={value!r}"
        )
    return float(value)


def nonnegative_number(argument, value):
    if not _finite_number(value) or value < 0:
        raise ValueError(
            f"`{argument}` must be a finite number >= 0. Received: {argument}={value!r}"
        )
    return float(value)


def fraction(argument, value):
    """A dropout rate. 1 is refused: everything would be dropped."""
    if not _finite_number(value) or not 0 <= value < 1:
        raise ValueError(f"`{argument}` must be in [0, 1). Received: {argument}={value!r}")
    return float(value)


def true_or_false(argument, value):
    if not isinstance(value, bool):
        raise ValueError(f"`{argument}` must be True or False. Received: {argument}={value!r}")
    return value


def one_of(argument, value, known):
    if value not in known:
        several = "one of " if len(known) > 1 else ""
        raise ValueError(
            f"`{argument}` must be {several}{', '.join(map(repr, known))}. "
            f"Received: {argument}={value!r}{close_matches(value, known)}"
        )
    return value
