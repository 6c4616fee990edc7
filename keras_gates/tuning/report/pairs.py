"""Which activations a trial has, whatever scopes of the search space their names are in."""

import dataclasses

from keras_gates.tuning import records

GATE, CANDIDATE, _CELL = "gate_activation", "candidate_activation", "cell"
DEFAULTS = {GATE: "sigmoid", CANDIDATE: "tanh"}
ABSENT = "-"  # what stands for the value of a choice that a trial does not have


def unscoped(values):
    """The values of a trial without the scopes that `activation_space` needs for KerasTuner alone.

    Scopes that are named for the trial's own cell or candidate are left out, so that the gate of
    all trials is one choice. Others, such as those of layers, stay.

    >>> unscoped({"cell": "gru", "gru/candidate_activation": "relu", "gru/elu+relu/l1": 0.0})
    {'cell': 'gru', 'candidate_activation': 'relu', 'l1': 0.0}
    """
    drawn = {*_all(values, _CELL), *_all(values, CANDIDATE)}
    found = {}
    for name, value in values.items():
        *scopes, last = name.split("/")
        kept = [scope for scope in scopes if not drawn & set(scope.split("+"))]
        short = "/".join([*kept, last])
        found[name if short in found or (short != name and short in values) else short] = value
    return found


def read_unscoped(folder):
    """The `records.Search` in a folder, with `unscoped` values."""
    search = records.read_search(folder)
    search.trials = [
        dataclasses.replace(trial, values=unscoped(trial.values)) for trial in search.trials
    ]
    return search


def activations_of(values):
    """The cell, the gate activation and the candidate activation among the values of a trial.

    Each is a string, over several layers ("layer_1/gate_activation", ...) joined by " / ", or
    None where there is none.
    """
    return tuple(" / ".join(_all(values, name)) or None for name in (_CELL, GATE, CANDIDATE))


def pair_of(values):
    """ "gru, hard_sigmoid + relu", as far as these are known."""
    cell, *activations = activations_of(values)
    pair = " + ".join(name for name in activations if name)
    return ", ".join(part for part in (cell, pair) if part)


def is_default(values):
    """Whether all gates are sigmoid and all candidates tanh, as far as they are known."""
    found = {name: _all(values, name) for name in DEFAULTS}
    return any(found.values()) and all(
        set(found[name]) <= {default} for name, default in DEFAULTS.items()
    )


def _all(values, name):
    return [str(value) for key, value in values.items() if key.rpartition("/")[2] == name]
