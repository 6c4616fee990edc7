"""The choices of a search as columns of a linear model of its scores.

Each choice has `levels`, `vectors` and `columns`: with one coefficient per column, the value of
level i is `vectors[i] @ coefficients`.
"""

import numbers

import numpy as np

from keras_gates.tuning.report.pairs import ABSENT

FEW = 8  # a number with more values than this has a slope, not levels
PER_TEN, PER_UNIT = "per factor of 10", "per unit"
TOLERANCE = 1e-8


class Choice:
    """One choice.

    Args:
        name: of the hyperparameter.
        ended: its value in each trial that ended, "-" where there is none.
        finished: its value in each trial that is fitted, likewise.
    """

    def __init__(self, name, ended, finished):
        self.name, self.ended, self.finished = name, ended, finished
        self.present = np.array([value != ABSENT for value in finished], bool)

    def add_presence(self):
        """Lets the trials that have the choice differ from those that do not."""
        self.columns = np.hstack([self.columns, self.present[:, None]])


class Levels(Choice):
    """A choice among few values, coded to sum to zero; a row of zeros where it is absent."""

    def __init__(self, name, ended, finished):
        super().__init__(name, ended, finished)
        self.levels = [level for level in sorted_levels(finished) if level != ABSENT]
        self.listed = sorted_levels(ended)
        width = max(len(self.levels) - 1, 0)
        # The last level is minus the sum of the others.
        self.vectors = np.vstack([np.eye(width), -np.ones(width)])[: len(self.levels)]
        one_hot = np.array([[value == level for level in self.levels] for value in finished], float)
        self.columns = one_hot.reshape(len(finished), len(self.levels)) @ self.vectors

    @property
    def varied(self):
        return len(set(self.finished)) > 1

    def add_presence(self):
        super().add_presence()
        self.vectors = np.pad(self.vectors, ((0, 0), (0, 1)), constant_values=1)
        self.vectors = np.pad(self.vectors, ((0, 1), (0, 0)))  # absent: 0
        self.levels.append(ABSENT)

    def has(self, level, values):
        return [value == level for value in values]

    def contrasts(self, vectors, unseen):
        """Deviations from the mean of the largest set of levels whose differences are estimable;
        the vectors of the others are None.

        Args:
            vectors: `self.vectors`, with zeros for the coefficients of other choices.
            unseen: the part of each that the trials do not determine. It must cancel.
        """
        alike = np.abs(unseen[:, None] - unseen[None]).max(axis=2, initial=0) < TOLERANCE
        known = max(alike, key=sum, default=[])
        if sum(known) < 2:
            return [None] * len(vectors)
        mean = vectors[known].mean(axis=0)
        return [v - mean if is_known else None for v, is_known in zip(vectors, known, strict=True)]

    def plain(self, scores):
        """From each level to the deviation of its mean score from the mean of these means."""
        of_level = {}
        for value, score in zip(self.finished, scores, strict=True):
            of_level.setdefault(value, []).append(score)
        means = {level: np.mean(found) for level, found in of_level.items()}
        return {level: mean - np.mean(list(means.values())) for level, mean in means.items()}


class Slope(Choice):
    """A number of many values, with its logarithm to base 10 if it is always positive."""

    def __init__(self, name, ended, finished):
        super().__init__(name, ended, finished)
        logarithmic = all(value > 0 for value in ended if value != ABSENT)
        self.levels = self.listed = [PER_TEN if logarithmic else PER_UNIT]
        x = np.array([value for value in finished if value != ABSENT], float)
        self.x = np.log10(x) if logarithmic else x
        column = np.zeros(len(finished))
        if len(x):
            column[self.present] = self.x - self.x.mean()
        scale = np.abs(column).max(initial=0) or 1.0
        self.columns, self.vectors = column[:, None] / scale, np.array([[1 / scale]])

    @property
    def varied(self):
        return len(set(self.x)) > 1

    def add_presence(self):
        super().add_presence()
        self.vectors = np.pad(self.vectors, ((0, 0), (0, 1)))

    def has(self, level, values):
        return [value != ABSENT for value in values]

    def contrasts(self, vectors, unseen):
        """The slope itself, or None if the trials do not determine it."""
        determined = np.abs(unseen).max() < TOLERANCE * np.abs(vectors).max()
        return [vectors[0] if determined and self.varied else None]

    def plain(self, scores):
        """The slope of the scores over this number alone."""
        return {self.levels[0]: np.polyfit(self.x, scores[self.present], 1)[0]}


def choice(name, ended, finished):
    """The `Choice` of that name, for lists of trials."""
    values = [[trial.values.get(name, ABSENT) for trial in trials] for trials in (ended, finished)]
    return (Slope if is_slope(values[0]) else Levels)(name, *values)


def design(choices, count):
    """The matrix of the additive model of `count` scores: a column of ones, and the choices'.

    A choice that only some trials have gets a column for that, unless others tell it already (as
    "clipping" does for "grad_clip_norm"): then its levels are compared where it is there.
    """

    def matrix():
        return np.hstack([np.ones((count, 1)), *(choice.columns for choice in choices)])

    base = matrix()
    for choice in choices:
        if rank(np.hstack([base, choice.present[:, None]])) > rank(base):
            choice.add_presence()
    return matrix()


def affordable(choices, count):
    """Those of the choices, the first ones before the last, that one model of `count` scores can
    have if it is to leave a third of them as degrees of freedom."""
    taken, columns = [], [np.ones((count, 1))]
    for choice in choices:
        wanted = [*columns, choice.columns, choice.present[:, None]]
        if choice.varied and count - rank(np.hstack(wanted)) >= max(count / 3, 1):
            taken.append(choice)
            columns = wanted
    return taken


def rank(matrix):
    return int(np.linalg.matrix_rank(matrix, tol=TOLERANCE)) if matrix.size else 0


def is_slope(values):
    """Whether the values of a choice are numbers, and too many to be levels."""
    present = [value for value in values if value != ABSENT]
    distinct = len(set(present))
    few = distinct <= 2 or (distinct <= FEW and 2 * distinct <= len(present))
    return not few and all(map(_is_number, present))


def sorted_levels(values):
    """The different values: numbers by size, names by letter, "-" (absent) last."""

    def key(value):
        return value == ABSENT, not _is_number(value), value if _is_number(value) else str(value)

    return sorted(set(values), key=key)


def _is_number(value):
    return isinstance(value, numbers.Real) and not isinstance(value, bool)
