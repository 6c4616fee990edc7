"""What must be the same when a search goes on, as plain data, and in what two of them differ."""

import inspect
import json

import keras

# Settings that have a comparison of their own.
SPACE, TRAINING = "space", "training"
# What a setting is called, where that is not its name.
NAMED = {"seeds": "`seed` and `executions_per_trial` (all seeds)"}


def training(args, kwargs):
    """What of the arguments of `fit` must be the same for scores to compare, as plain data: numbers
    and shapes."""
    fit = inspect.signature(keras.Model.fit)
    try:
        given = fit.bind(None, *args, **kwargs).arguments
    except TypeError:  # of a `HyperModel.fit` with arguments of its own
        given = dict(kwargs)
    for name in ("self", "callbacks", "verbose"):
        given.pop(name, None)
    found = {name: _plain(value) for name, value in given.items()}
    return {name: value for name, value in found.items() if value is not None}


def _plain(value):
    """A number as it is, the shape of an array, lists and dicts of them; None for what else."""
    if isinstance(value, (int, float)):
        return value
    if isinstance(value, (list, tuple)) and len(value) <= 3:  # inputs, or (x, y)
        return [_plain(part) for part in value]
    if isinstance(value, dict):
        return {str(name): _plain(part) for name, part in value.items()}
    shape = getattr(value, "shape", None)
    try:
        return None if shape is None else [int(size) for size in shape]
    except TypeError:
        return None


def difference(there, here):
    """In what two dicts of settings first differ, in words; None if they do not."""
    here = json.loads(json.dumps(here))  # as it is on disk
    for name in {**there, **here}:
        if name not in (SPACE, TRAINING) and there.get(name) != here.get(name):
            named = NAMED.get(name, f"`{name}`")
            return f"its {named} is {there.get(name)!r}, not {here.get(name)!r}"
    if there.get(SPACE) != here.get(SPACE):
        return _difference_of_spaces(there[SPACE], here[SPACE])
    return None


def _difference_of_spaces(there, here):
    """In which hyperparameter two spaces first differ, in words."""

    def named(space):
        return {(hp["config"]["name"], str(hp["config"]["conditions"])): hp for hp in space}

    there, here = named(there), named(here)
    for key in there:
        if key not in here:
            return f"it has a hyperparameter {key[0]!r} that this one lacks"
    for key in here:
        if key not in there:
            return f"it has no hyperparameter {key[0]!r}"
    for key, hp in here.items():
        if there[key] != hp:
            return f"its hyperparameter {key[0]!r} is {there[key]['config']}, not {hp['config']}"
    return "its hyperparameters come in another order"
