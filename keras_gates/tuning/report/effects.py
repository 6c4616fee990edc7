"""Main effects: how much each level of each choice helped, all else equal, and how surely."""

import dataclasses

import numpy as np
from scipy import stats

from keras_gates.tuning.records import DIVERGED
from keras_gates.tuning.report.comparison import CONFIDENCE, EPOCHS, ranked
from keras_gates.tuning.report.design import TOLERANCE, affordable, choice, design, rank
from keras_gates.tuning.report.pairs import ABSENT, CELL, DEFAULTS


@dataclasses.dataclass
class Effect:
    """What one level of one choice does to the objective.

    Attributes:
        choice: name of the hyperparameter.
        level: its value; "-" where trials do not have it; "per factor of 10" or "per unit" for a
            number of many values, whose slope is reported (the former if it is always positive).
        effect: by how much the objective is better (positive, for "min", too) than the mean over
            the levels that can be compared; None if that cannot be known.
        low, high: its 95 % t-interval; None without one.
        finished, ended: how many trials with that level have finished, have ended at all.
        diverged: in which share of those that ended some training diverged.
        reason: why there is no effect; None if there is.
    """

    choice: str
    level: object
    effect: float | None
    low: float | None
    high: float | None
    finished: int
    ended: int
    diverged: float
    reason: str | None = None


@dataclasses.dataclass
class Effects:
    """The main effects of a search.

    Attributes:
        levels: a list of `Effect`, the choices in the order of the search.
        trials: how many finished trials they are from.
        degrees_of_freedom: of the residuals of the fit.
        note: of which choices the effects are plain means, and why; None if there are none.
    """

    levels: list
    trials: int
    degrees_of_freedom: int
    note: str | None = None


def main_effects(search):
    """The effect of every level of every choice, from the trials that ended.

    The model is additive: score = mean + the effect of each choice's level, by least squares over
    the finished trials (unweighted), with sum-to-zero coding, so that a design that is not
    balanced, such as that of a random search, is adjusted for. Conditional choices, which some
    trials do not have, are compared among the trials that have them; "-" gets an effect of its own
    unless another choice decides whether they are there, and so stands for it. Hyperband's budget
    ("tuner/epochs") is adjusted for like a choice.

    Where the trials are too few for all choices, the activations come first, and the model takes in
    what leaves a third of the trials as degrees of freedom. Of the other choices the plain means
    per level are given, without intervals, and `note` says so.

    Trials that diverged have no score: what made them diverge is in `diverged`, not in `effect`.

    Args:
        search: a `records.Search`.

    Returns:
        `Effects`.

    Source: Scheffé, "The Analysis of Variance", 1959, chapters 1 and 4.

    >>> from keras_gates.tuning.records import Execution, Search, Trial
    >>> scores = {"sigmoid": 0.7, "hard_sigmoid": 0.8}
    >>> trials = [
    ...     Trial(f"{i}{gate}", {"gate_activation": gate}, "COMPLETED",
    ...           [Execution(0, "finished", 1, score=score + i / 100)])
    ...     for i in range(2) for gate, score in scores.items()
    ... ]
    >>> for effect in main_effects(Search("val_accuracy", "max", trials)).levels:
    ...     print(f"{effect.level} {effect.effect:+.3f} ({effect.low:+.3f} to {effect.high:+.3f})")
    hard_sigmoid +0.050 (+0.035 to +0.065)
    sigmoid -0.050 (-0.065 to -0.035)
    """
    ended = [trial for trial in search.trials if trial.outcome != "running"]
    finished = ranked(search)
    sign = 1 if search.direction == "max" else -1
    scores = sign * np.array([trial.score for trial in finished])
    choices = [choice(name, ended, finished) for name in _names(ended)]
    choices = [one for one in choices if len(set(one.ended)) > 1]
    fitted = affordable(sorted(choices, key=_importance), len(scores))
    matrix = design(fitted, len(scores))
    freedom = len(scores) - rank(matrix) if fitted else 0
    found = _least_squares(fitted, matrix, scores, freedom)
    plain = [one for one in choices if one.varied and one not in fitted]
    for one in plain:
        found[one.name] = {
            level: (float(effect), None, None) for level, effect in one.plain(scores).items()
        }
    note = None
    if plain:
        note = (
            f"{len(scores)} finished trials are too few for an estimate of all choices at once. Of "
            f"{', '.join(one.name for one in plain)} the means per level are given, not adjusted "
            "for other choices, without intervals."
        )
    diverged = [any(e.outcome == DIVERGED for e in trial.executions) for trial in ended]
    levels = [
        _effect(one, level, found.get(one.name, {}), diverged)
        for one in choices
        for level in one.listed
    ]
    return Effects(levels, len(scores), freedom, note)


def _least_squares(choices, matrix, scores, freedom):
    """From each choice and level to (effect, low, high); without those that are not estimable."""
    if not choices:
        return {}
    inverse = np.linalg.pinv(matrix, rcond=TOLERANCE)
    coefficients = inverse @ scores
    variance = np.sum((scores - matrix @ coefficients) ** 2) / freedom
    covariance = variance * inverse @ inverse.T
    quantile = stats.t.ppf((1 + CONFIDENCE) / 2, freedom)
    # A contrast is estimable if it has no part in what this projects on (Scheffé, 1.4).
    undetermined = np.eye(matrix.shape[1]) - inverse @ matrix
    first, found = 1, {}
    for one in choices:
        width = one.vectors.shape[1]
        vectors = np.zeros((len(one.levels), matrix.shape[1]))
        vectors[:, first : first + width] = one.vectors
        first += width
        of_levels = {}
        contrasts = one.contrasts(vectors, vectors @ undetermined)
        for level, contrast in zip(one.levels, contrasts, strict=True):
            if contrast is not None:
                effect = float(contrast @ coefficients)
                margin = float(quantile * np.sqrt(contrast @ covariance @ contrast))
                of_levels[level] = effect, effect - margin, effect + margin
        found[one.name] = of_levels
    return found


def _effect(one, level, found, diverged):
    finished = sum(one.has(level, one.finished))
    shares = [d for d, has in zip(diverged, one.has(level, one.ended), strict=True) if has]
    if level in found:
        reason = None
    elif not finished:
        reason = "no trial with it finished"
    elif not one.varied:
        reason = "no trial with another value finished"
    elif level == ABSENT and level not in one.levels:
        reason = "another choice decides whether it is there"
    else:
        reason = "aliased: its trials differ from the others in another choice, too"
    effect, low, high = found.get(level, (None, None, None))
    share = sum(shares) / len(shares)
    return Effect(one.name, level, effect, low, high, finished, len(shares), share, reason)


def _importance(one):
    """The activations first, then those that the other effects depend on."""
    if one.name.rpartition("/")[2] in (CELL, *DEFAULTS):
        return 0
    return 1 if one.name == EPOCHS else 2


def _names(trials):
    """All choices in order. KerasTuner's own values are none, but how long it trains counts."""
    names = {name: None for trial in trials for name in trial.values}
    return [name for name in names if name == EPOCHS or not name.startswith("tuner/")]
