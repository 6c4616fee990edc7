"""Whether a search can go on in a folder: it is the same, and its trials are trained alike."""

import inspect
import json
import math
import pathlib
import zlib

import keras
import numpy as np

from keras_gates.tuning import records

_CURE = "Give another `project_name`, or overwrite=True to delete what is there."
_MOST = 2_000_000  # values of an array that are looked at, which takes some 0.1 s


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
    search, given = records.read_json(path), arguments_of_fit(args, kwargs)
    here, values = _without_none({n: _plain(v) for n, v in given.items()}), _checksums(given)
    difference = _difference(search.get("training", here), here)
    difference = difference or _other_values(search.get("values", values), values)
    if difference:
        raise ValueError(
            f"The trials of the search in {folder!r} were trained otherwise, so that others do not "
            f"compare with them: {difference}. {_CURE}"
        )
    records.write_json(path, {**search, "training": here, "values": values})


def arguments_of_fit(args, kwargs):
    """Those by name that must be the same for scores to compare."""
    names = [*inspect.signature(keras.Model.fit).parameters][1:]
    given = {**dict(zip(names, args, strict=False)), **kwargs}
    return {n: v for n, v in given.items() if n not in ("callbacks", "verbose")}


def _without_none(found):
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


def _checksums(given):
    """Of the values of each array and tensor: from its place, such as "validation_data[0]"."""
    found = {
        path[0] + "".join(f"[{part!r}]" for part in path[1:]): _checksum(value)
        for path, value in keras.tree.flatten_with_path(given)
        if hasattr(value, "shape")
    }
    return _without_none(found)


def _checksum(array):
    """Of many evenly spaced values, in their order; None where they are not at hand."""
    shape = array.shape
    try:
        array = np.asarray(array)
    except (TypeError, ValueError, RuntimeError):
        return None
    if array.shape != tuple(shape):  # one object: a sparse or ragged tensor
        return None
    step = math.ceil(array.size / _MOST) or 1
    while math.gcd(step, array.size) > 1:  # else a step could see some of the features alone
        step += 1
    values = array.flat[::step]
    if array.dtype == object:  # texts
        return zlib.crc32(repr(values.tolist()).encode())
    return zlib.crc32(values.tobytes())


def _other_values(there, here):
    """Which array is another than in the trials, in words; None if none is."""
    for name in {**there, **here}:
        if there.get(name) != here.get(name):
            return f"the values of its `{name}` are others (are they drawn without a seed?)"
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
    others = ("space", "training", "values")
    flat = {named.get(n, f"`{n}`"): v for n, v in settings.items() if n not in others}
    for hp in settings.get("space", ()):
        where = "".join(f" under {c['config']}" for c in hp["config"]["conditions"])
        flat[f"hyperparameter {hp['config']['name']!r}{where}"] = hp["config"]
    return flat
