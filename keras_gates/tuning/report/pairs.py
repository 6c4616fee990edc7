"""Which activations a trial has, whatever layers they are of."""

from keras_gates.tuning.records import CANDIDATE, CELL, named

GATE = "gate_activation"
DEFAULTS = {GATE: "sigmoid", CANDIDATE: "tanh"}
ABSENT = "-"  # what stands for the value of a choice that a trial does not have


def activations_of(values):
    """The cell, the gate activation and the candidate activation among the values of a trial.

    Each is a string, over several layers ("layer_1/gate_activation", ...) joined by " / ", or
    None where there is none.
    """
    return tuple(" / ".join(named(values, name)) or None for name in (CELL, GATE, CANDIDATE))


def pair_of(values):
    """ "gru, hard_sigmoid + relu", as far as these are known."""
    cell, *activations = activations_of(values)
    pair = " + ".join(name for name in activations if name)
    return ", ".join(part for part in (cell, pair) if part)


def is_default(values):
    """Whether all gates are sigmoid and all candidates tanh, as far as they are known."""
    found = {name: named(values, name) for name in DEFAULTS}
    return any(found.values()) and all(
        set(found[name]) <= {default} for name, default in DEFAULTS.items()
    )
