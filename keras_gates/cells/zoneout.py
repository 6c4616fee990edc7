"""Zoneout: some units keep their states as they were, drawn anew at every time step."""

from collections.abc import Mapping

import keras
from keras import ops

from keras_gates.validation import close_matches, fraction


def checked(cell, given):
    """`given` as a number, or a dict from names of states to numbers."""
    if not isinstance(given, Mapping):
        return fraction("zoneout", given)
    for name in given:
        if name not in cell.state_names:
            hint = close_matches(name, cell.state_names) or "."
            raise ValueError(
                f"`zoneout` names a state that {type(cell).__name__} does not have: "
                f"{name!r}{hint} Its states: {list(cell.state_names)}. "
                f"Received: zoneout={dict(given)!r}"
            )
    return {name: fraction(f"zoneout[{name!r}]", share) for name, share in given.items()}


def shares(cell):
    """From the name of each state with zoneout to the share of its units that is kept."""
    given = cell.zoneout
    if not isinstance(given, Mapping):
        given = dict.fromkeys(cell.state_names, given)
    return {name: given[name] for name in cell.state_names if given.get(name)}


def drawn(cell, shape):
    """Where each state of `shares` is kept: booleans (*shape, units)."""
    return [
        keras.random.uniform((*shape, cell.units), dtype="float32", seed=cell.seed_generator) < p
        for p in shares(cell).values()
    ]


def beside(sequences, masks):
    """Sequences with masks beside their features: Keras' loop takes no more than a sequence."""
    return ops.concatenate([sequences, *[ops.cast(m, sequences.dtype) for m in masks]], axis=-1)


def apart(cell, inputs):
    """The features of one time step, and the masks: those beside them, or new ones."""
    features = cell.kernel.shape[0]
    if inputs.shape[-1] == features:
        _refuse_scan(cell, inputs)
        return inputs, drawn(cell, ops.shape(inputs)[:1])
    ends = [features + i * cell.units for i in range(len(shares(cell)))]
    inputs, *masks = ops.split(inputs, ends, axis=-1)
    return inputs, [mask > 0 for mask in masks]


def _refuse_scan(cell, inputs):
    """Raises where JAX compiles a loop: all its time steps would draw the same units."""
    if keras.backend.backend() == "jax":
        import jax

        if isinstance(inputs, jax.core.Tracer):
            raise ValueError(
                f"`zoneout` of {cell.name!r} draws units anew at every time step, and in a loop of "
                "JAX only keras_gates.GatedRNN does: use GatedRNN(cell="
                f"{type(cell).__name__}(...)). Received: zoneout={cell.zoneout!r}"
            )


def zoned_out(cell, before, after):
    """The states after a step, where `before` is kept in some units.

        s' = s                   in training, where it is kept
        s' = p s + (1 - p) s'    otherwise

    Source: Krueger et al., "Zoneout: regularizing RNNs by randomly preserving hidden activations",
    2016.
    """
    share_of, kept, found = shares(cell), cell.step.kept, []
    for name, old, new in zip(cell.state_names, before, after, strict=True):
        if name in kept:
            new = ops.where(kept[name], old, new)
        elif share := share_of.get(name):
            new = share * old + (1 - share) * new
        found.append(new)
    return found
