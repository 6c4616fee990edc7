"""What a cell is given and what its class says, checked."""

import functools
import re
from keyword import iskeyword

import keras

from keras_gates.cells.step import projected_blocks, recurrent_blocks
from keras_gates.validation import close_matches, one_of

_OPTIONAL = ("recurrent_blocks", "projected_blocks", "gates")


def keras_object(argument, given):
    """The initializer, regularizer or constraint that an argument stands for."""
    kind = argument.rpartition("_")[2]
    a_kind = f"{'an' if kind == 'initializer' else 'a'} {kind}"
    try:
        found = getattr(keras, f"{kind}s").get(given)
    except (ValueError, TypeError) as error:
        raise ValueError(
            f"`{argument}` must be the name of {a_kind} of Keras, an instance or a function. "
            f"Received: {argument}={given!r}. {_start_meant(given) or error}"
        ) from error
    if found is None and kind == "initializer":
        raise ValueError(
            f"`{argument}` must be an initializer; leave it out for the default. "
            f"Received: {argument}=None"
        )
    return found


def _start_meant(given):
    """What to write for a start of the gates, which is no initializer of one weight."""
    text = given if isinstance(given, str) else type(given).__name__
    if text.lower() not in ("chrono", "uniform_gates"):
        return ""
    start = repr(given) if text == "uniform_gates" else "keras_gates.initializers.Chrono(150)"
    return f"Which gates it is for follows from the equations: write initialization={start}"


def same_shapes(tensors, expected):
    """Whether there is a tensor of each shape, as far as the sizes are known."""
    found = [tuple(getattr(tensor, "shape", ())) for tensor in tensors]
    return [*map(len, found)] == [*map(len, expected)] and not any(
        None not in pair and pair[0] != pair[1]
        for one, other in zip(found, expected, strict=True)
        for pair in zip(one, other, strict=True)
    )


def shape_or_type(value):
    """What a value is that is none of the tensors expected, in few words."""
    return tuple(value.shape) if hasattr(value, "shape") else type(value).__name__


def check_states(cell, before, after):
    """Raises if what `update` has returned are no states as those before."""
    expected = [tuple(state.shape) for state in before]
    several = isinstance(after, (tuple, list))
    fits = several and same_shapes(after, expected)
    if several and isinstance(before[0], keras.KerasTensor):
        # A layer as activation may be built for other units than a cell that is only judged; but
        # of one number for all units a program would make as many.
        fits = same_shapes(after, [(None, None)] * len(before)) and (
            cell.units == 1 or all(state.shape[-1] != 1 for state in after)
        )
    if fits:
        return
    if several:
        received = f"a tuple of {[*map(shape_or_type, after)]}"
    elif hasattr(after, "shape"):
        received = f"a tensor of shape {tuple(after.shape)}, not a tuple"
        if len(before) == 1:
            received += ": write `return (h,)`"
    else:
        received = repr(after)
    states = f"({', '.join(cell.state_names)}{',' if len(before) == 1 else ''})"
    raise ValueError(
        f"{type(cell).__name__}.update must return a tuple of the new states, {states}, each of "
        f"shape (batch, units) = {(expected[0][0], cell.units)}. Received: {received}"
    )


def with_weights(cell, build):
    """The method `build` of a class of cells, which raises where it does not make those of all."""

    @functools.wraps(build)
    def checked(self, *args, **kwargs):
        build(self, *args, **kwargs)
        if not hasattr(self, "kernel"):
            raise ValueError(
                f"`build` of {cell.__name__} must call super().build(input_shape), which makes "
                "the weights of x W + b and h U."
            )

    return checked


def naming_weights(cell, error):
    """An error of a time step, or one that names the weight which it must come from."""
    for name, weight in vars(cell).items():
        if isinstance(weight, keras.Variable) and weight is not cell.bias:
            size = weight.shape[0] if len(weight.shape) == 1 else 1
            if size not in (1, cell.units) and re.search(rf"\b{size}\b", str(error)):
                return ValueError(
                    f"`{name}` of {type(cell).__name__} has the shape {tuple(weight.shape)}, and "
                    f"one number per unit would be {(cell.units,)}. {error}"
                )
    return error


@functools.cache  # asked whenever a cell is made
def check_class(cell):
    """Raises if a class declares what no cell can have."""
    optional = {name: getattr(cell, name) for name in _OPTIONAL}
    for attribute, names in {"blocks": cell.blocks, "state_names": cell.state_names}.items():
        _check_names(cell, attribute, names, tuple)
        bad = [n for n in names if not n.isidentifier() or n.startswith("_") or iskeyword(n)]
        if not names or bad or len(set(names)) != len(names):
            raise ValueError(
                f"`{attribute}` of {cell.__name__} must be at least one name, each a Python "
                "identifier without a leading underscore, none twice. "
                f"Received: {attribute}={names!r}"
            )
    for attribute, names in optional.items():
        if names is not None and not isinstance(names, property):
            _check_names(cell, attribute, names, (tuple, list))
    if not any(isinstance(names, property) for names in optional.values()):
        check_order(cell)
    if isinstance(cell.ones_in_bias, str):
        one_of(f"ones_in_bias of {cell.__name__}", cell.ones_in_bias, cell.blocks)


def check_order(cell):
    """Raises if the blocks that U has columns for, or those of `h U`, are not the first ones.

    Args:
        cell: a class of cells, or an instance, which may set its own.
    """
    name = cell.__name__ if isinstance(cell, type) else type(cell).__name__
    recurrent = recurrent_blocks(cell)
    for attribute, found, of in (
        ("recurrent_blocks", recurrent, cell.blocks),
        ("projected_blocks", projected_blocks(cell), recurrent),
    ):
        if found != of[: len(found)]:
            unknown = [block for block in found if block not in of]
            hint = close_matches(unknown[0], of) if unknown else "; let `blocks` begin with these"
            raise ValueError(
                f"`{attribute}` of {name} must be the first of its blocks, {of}, in their order. "
                f"Received: {attribute}={found}{hint}"
            )


def _check_names(cell, attribute, names, kinds):
    if not isinstance(names, kinds) or not all(isinstance(name, str) for name in names):
        raise TypeError(
            f"{cell.__name__} must have a tuple of names as `{attribute}`. "
            f"Received: {attribute}={names!r}"
        )
