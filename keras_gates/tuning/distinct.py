"""Which models a search space holds: those whose builds ask for different values.

A space lists hyperparameters, and not all of them matter to every model: in

    for i in range(hp.Int("layers", 1, 3)):
        units = hp.Choice(f"units_{i}", [16, 32])

`units_2` has a value in every trial from the first build with three layers on, and only builds with
three layers ask for it. What a build asks for next depends on nothing but the values that it was
given before. So two trials that agree on everything that one of them has asked for are the same
model, and all builds together are a tree: a node is what is asked for next, an edge is a value, and
a leaf is a model.
"""

import collections
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import keras_tuner
from keras_tuner.engine.hyperparameters import HyperParameter


class Noted(dict):
    """Values of hyperparameters, which note in `read` which of them were asked for, in order.

    Iterating asks for all.
    """

    def __init__(self, values: Mapping[str, Any]) -> None:
        super().__init__(values)
        self._read: dict[str, None] = {}

    @property
    def read(self) -> list[str]:
        return choices(self._read)

    def __getitem__(self, name):
        self._read[name] = None
        return super().__getitem__(name)

    def __iter__(self):
        self._read.update(dict.fromkeys(super().keys()))
        return super().__iter__()

    # A dict's own do not ask the two above.
    get, __contains__ = Mapping.get, Mapping.__contains__  # type: ignore[assignment]
    keys, values, items = Mapping.keys, Mapping.values, Mapping.items  # type: ignore[assignment]

    def copy(self):
        return {**self}


def choices(names: Iterable[str]) -> list[str]:
    """The names without those of KerasTuner's own values, which are no choices."""
    return [name for name in names if not name.startswith("tuner/")]


def noting(hyperparameters: keras_tuner.HyperParameters) -> keras_tuner.HyperParameters:
    """A copy whose `values` are `Noted`."""
    copied = hyperparameters.copy()
    copied.values = Noted(copied.values)
    return copied


class Tried(NamedTuple):
    """A trial: its values, and the names that its build has asked for; None: not known yet."""

    values: dict
    read: list | None


class Models:
    """The models that have been tried, each known by the values that its build has asked for.

    Args:
        tried: a `Tried` for every trial.

    >>> hp = keras_tuner.HyperParameters()
    >>> layers, units = hp.Int("layers", 1, 2), [hp.Choice(f"units_{i}", [8, 16]) for i in (0, 1)]
    >>> one = Tried({"layers": 1, "units_0": 8, "units_1": 8}, ["layers", "units_0"])
    >>> {"layers": 1, "units_0": 8, "units_1": 16} in Models([one])  # one layer, of 8 units
    True
    >>> Models([one]).untried(hp.space)
    {'layers': 1, 'units_0': 16, 'units_1': 8}
    """

    def __init__(self, tried: Iterable[Tried]) -> None:
        self.tried = list(tried)
        self._known = collections.defaultdict(set)
        for values, read in self.tried:
            if read is not None:
                names = tuple(sorted(read))
                self._known[names].add(_key(values, names))

    def __contains__(self, values: Mapping[str, Any]) -> bool:
        """Whether a build with these values would make one of the models."""
        return any(_key(values, names) in models for names, models in self._known.items())

    def untried(self, space: list[HyperParameter]) -> dict[str, Any] | None:
        """Values for a model that has not been tried; None if there is none, as far as is known.

        The defaults come first, and what is asked for last varies first. Where nothing but trials
        are whose builds are not known yet, there is nothing to be had.
        """
        leaves = _leaves(space, {}, self.tried)
        return next((_completed(space, path) for path, tried in leaves if not tried), None)

    def count(self, space: list[HyperParameter]) -> int:
        """How many models there are; where no build has been, as many as there are values."""
        return sum(
            len(tried)
            if any(each.read is not None for each in tried)
            else _combinations(space, path)
            for path, tried in _leaves(space, {}, self.tried)
        )


def _key(values, names):
    return tuple(str(values.get(name)) for name in names)


def _leaves(space, path, tried) -> Iterator[tuple[dict, list]]:
    """Where it ends, or is not known what may be asked for next, below `path`, and those tried that
    came there."""
    children = list(_children(space, path, tried))
    for child in children:
        yield from _leaves(space, *child)
    if not children:
        yield path, tried


def _children(space, path, tried) -> Iterator[tuple[dict, list]]:
    """What may be asked for next after `path`, each value with those tried that have it; nothing
    at a leaf, or where it is not known."""
    known = [each for each in tried if each.read is not None]
    further = [[name for name in each.read if name not in path] for each in known]
    if not all(further) or not known:
        return
    name = further[0][0]
    among = [hp for hp in space if hp.name == name and _is_active(hp, path)]
    default = among[0].default if among else None
    having, whatever = collections.defaultdict(list), []
    for each in tried:
        if each.read is None or name in each.read:
            # A build that is the first to ask for something gets the default.
            having[str(each.values.get(name, default))].append(each)
        else:  # no function of the values alone
            whatever.append(each)
    for value in _values(among[0]) if among else [None]:
        yield {**path, name: value}, [*having[str(value)], *whatever]


def _is_active(hp, values):
    return all(condition.is_active(values) for condition in hp.conditions)


def _values(hp):
    """All values, the default first."""
    return [hp.default, *(value for value in hp.values if value != hp.default)]


def _completed(space, path):
    """The values of all active hyperparameters: those of `path`, and else the defaults."""
    values: dict = {}
    for hp in space:
        if _is_active(hp, values):
            given = path.get(hp.name)
            values[hp.name] = hp.default if given is None else given
    return values


def _combinations(space, path):
    """How many combinations there are of the active hyperparameters that are not in `path`."""
    parents = {condition.name for hp in space for condition in hp.conditions}

    def count(start, values):
        product = 1
        for i in range(start, len(space)):
            hp = space[i]
            if hp.name in values or not _is_active(hp, values):
                continue
            if hp.name in parents:
                return product * sum(count(i + 1, {**values, hp.name: v}) for v in _values(hp))
            product *= len(_values(hp))
        return product

    return count(0, dict(path))
