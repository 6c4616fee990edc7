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
_VALUES = "values of"
_MOST = 2_000_000  # values of an array that are looked at, which takes some 0.1 s


def begin(folder, objective, settings):
    """Notes what must be the same when a search goes on, each setting by what it is called; an
    error where trials are left of one that cannot."""
    if left := list(pathlib.Path(folder).glob("trial_*")):
        raise ValueError(
            f"The folder {folder!r} holds {len(left)} trials, and nothing that tells how the "
            "search stood, so that it cannot go on. Give another `project_name`, or overwrite=True "
            "to delete them."
        )
    search = {"objective": objective.name, "direction": objective.direction, "settings": settings}
    records.write_json(pathlib.Path(folder, records.SEARCH), search)


def refuse_another_search(folder, settings):
    """An error where the folder holds a search with other settings."""
    where = f"The folder {folder!r} holds another search"
    there = records.read_json(pathlib.Path(folder, records.SEARCH))
    if there is None:
        raise ValueError(f"{where}, by a tuner that is not of keras_gates.tuning. {_CURE}")
    if difference := _difference(there["settings"], settings):
        raise ValueError(f"{where}: {difference}. {_CURE}")


def refuse_other_training(folder, args, kwargs):
    """An error where the trials of the search were trained otherwise."""
    path = pathlib.Path(folder, records.SEARCH)
    search, here = records.read_json(path), _training(args, kwargs)
    if difference := _difference(search.get("training", here), here):
        raise ValueError(
            f"The trials of the search in {folder!r} were trained otherwise, so that others do not "
            f"compare with them: {difference}. {_CURE}"
        )
    records.write_json(path, {**search, "training": here})


def _training(args, kwargs):
    """What must be the same for scores to compare: each number and array that `fit` is given, by
    its place, such as `validation_data[0]`."""
    found = {}
    for path, value in keras.tree.flatten_with_path(arguments_of_fit(args, kwargs)):
        place = f"`{path[0]}{''.join(f'[{part!r}]' for part in path[1:])}`"
        if isinstance(value, (int, float)):
            found[place] = value
        elif hasattr(value, "shape"):
            found[place] = list(value.shape)
            found[f"{_VALUES} {place}"] = _checksum(value)
    return found


def arguments_of_fit(args, kwargs):
    """Those by name that must be the same for scores to compare."""
    names = [*inspect.signature(keras.Model.fit).parameters][1:]
    given = {**dict(zip(names, args, strict=False)), **kwargs}
    return {n: v for n, v in given.items() if n not in ("callbacks", "verbose")}


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


def _difference(there, here):
    """In what the settings of two searches first differ, in words; None if they do not."""
    here = json.loads(json.dumps(here))  # as on disk
    for name in {**there, **here}:
        if there.get(name) != here.get(name):
            if name.startswith(_VALUES):
                return f"the {name} are others (are they drawn without a seed?)"
            return f"its {name} is {there.get(name)!r}, not {here.get(name)!r}"
    return None
