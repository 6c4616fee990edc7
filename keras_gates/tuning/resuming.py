"""Whether a search can go on in a folder: it is the same, and its trials are trained alike."""

import inspect
import json
import pathlib

import keras

from keras_gates.tuning import records

_CURE = "Give another `project_name`, or overwrite=True to delete what is there."


def begin(folder, settings):
    """Notes what must be the same when a search goes on; an error where trials are left of one that
    cannot."""
    left, search = list(pathlib.Path(folder).glob("trial_*")), pathlib.Path(folder, records.SEARCH)
    if left:
        raise ValueError(
            f"The folder {folder!r} holds {len(left)} trials, and nothing that tells how the "
            "search stood, so that it cannot go on. Give another `project_name`, or overwrite=True "
            "to delete them."
        )
    if search.exists():
        print(f"No trial had begun in {folder}: the search starts anew.")
    records.write_json(search, settings)


def refuse_another_search(folder, settings):
    """An error where the folder holds a search with other settings."""
    where = f"The folder {folder!r} holds another search"
    there = records.read_json(pathlib.Path(folder, records.SEARCH))
    if there is None:
        raise ValueError(f"{where}, by a tuner that is not of keras_gates.tuning. {_CURE}")
    if difference := _difference(there, settings):
        raise ValueError(f"{where}: {difference}. {_CURE}")


def refuse_other_training(folder, args, kwargs):
    """An error where the trials of the search were trained otherwise."""
    path = pathlib.Path(folder, records.SEARCH)
    search, here = records.read_json(path), _arguments_of_fit(args, kwargs)
    if difference := _difference(search.get("training", here), here):
        raise ValueError(
            f"The trials of the search in {folder!r} were trained otherwise, so that others do not "
            f"compare with them: {difference}. {_CURE}"
        )
    records.write_json(path, {**search, "training": here})


def _arguments_of_fit(args, kwargs):
    """What of the arguments of `fit` must be the same for scores to compare, as plain data: numbers
    and shapes."""
    names = [*inspect.signature(keras.Model.fit).parameters][1:]
    given = {**dict(zip(names, args, strict=False)), **kwargs}
    found = {n: _plain(v) for n, v in given.items() if n not in ("callbacks", "verbose")}
    return {name: value for name, value in found.items() if value is not None}


def _plain(value):
    """A number as it is, the shape of an array, lists and dicts of them; None for what else."""
    if isinstance(value, (int, float)):
        return value
    if isinstance(value, (list, tuple)) and len(value) <= 3:  # inputs, or (x, y)
        return [_plain(part) for part in value]
    if isinstance(value, dict):
        return {str(name): _plain(part) for name, part in value.items()}
    try:
        return [int(size) for size in value.shape]
    except (AttributeError, TypeError):
        return None


def _difference(there, here):
    """In what the settings of two searches first differ, in words; None if they do not."""
    there, here = _flat(there), _flat(json.loads(json.dumps(here)))  # as on disk
    for name in {**there, **here}:
        if there.get(name) != here.get(name):
            return f"its {name} is {there.get(name)!r}, not {here.get(name)!r}"
    return None


def _flat(settings):
    named = {"seeds": "`seed` and `executions_per_trial` (all seeds)"}
    flat = {
        named.get(n, f"`{n}`"): v for n, v in settings.items() if n not in ("space", "training")
    }
    for hp in settings.get("space", ()):
        where = "".join(f" under {c['config']}" for c in hp["config"]["conditions"])
        flat[f"hyperparameter {hp['config']['name']!r}{where}"] = hp["config"]
    return flat
