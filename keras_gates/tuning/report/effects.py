"""Main effects: how much better each level of each choice did, on the mean, and how surely."""

import dataclasses
import numbers
from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy import stats

from keras_gates.tuning.records import DIVERGED, Search
from keras_gates.tuning.report.comparison import CONFIDENCE, EPOCHS, ranked
from keras_gates.tuning.report.pairs import ABSENT

FEW = 8  # a number with more values than this has a slope, not levels
_PER_TEN, _PER_UNIT = "per factor of 10", "per unit"


@dataclasses.dataclass
class Effect:
    """What one level of one choice does to the objective.

    Attributes:
        choice: name of the hyperparameter.
        level: its value; "per factor of 10" or "per unit" for a number of many values, whose slope
            is reported (the former if it is always positive).
        effect: by how much the mean score with it is better (positive, for "min", too) than the
            mean over the levels; None if that cannot be known.
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


def main_effects(search: Search) -> list[Effect]:
    """The effect of every level of every choice that varies, in the order of the search.

    The effect of a level is the mean score of its finished trials less the mean of these means, so
    that a level does not count more for having been tried more often; its interval comes from the
    pooled variance within the levels. A number of many values has the slope of the scores over it,
    or over its logarithm to base 10. Conditional choices are compared among the trials that have
    them. Each choice is looked at alone: where two were drawn together, both show what one of them
    did.

    Trials that diverged have no score: what made them diverge is in `diverged`, not in `effect`.

    Source: Scheffé, "The Analysis of Variance", 1959, chapter 3.

    >>> from keras_gates.tuning.records import Execution, Search, Trial
    >>> scores = {"sigmoid": 0.7, "hard_sigmoid": 0.8}
    >>> trials = [
    ...     Trial(f"{i}{gate}", {"gate_activation": gate}, "COMPLETED",
    ...           [Execution(0, "finished", 1, score=score + i / 100)])
    ...     for i in range(2) for gate, score in scores.items()
    ... ]
    >>> for effect in main_effects(Search("val_accuracy", "max", trials)):
    ...     print(f"{effect.level} {effect.effect:+.3f} ({effect.low:+.3f} to {effect.high:+.3f})")
    hard_sigmoid +0.050 (+0.035 to +0.065)
    sigmoid -0.050 (-0.065 to -0.035)
    """
    sign = 1 if search.direction == "max" else -1
    scores = {trial.trial_id: sign * trial.score for trial in ranked(search)}
    ended = [trial for trial in search.trials if trial.outcome != "running"]
    # KerasTuner's own values are no choices, but how long it trains counts.
    names = dict.fromkeys(name for trial in ended for name in trial.values)
    effects = []
    for name in names:
        having = [trial for trial in ended if name in trial.values]
        values = [trial.values[name] for trial in having]
        if len(set(values)) < 2 or (name.startswith("tuner/") and name != EPOCHS):
            continue
        finished = [trial for trial in having if trial.trial_id in scores]
        x = [trial.values[name] for trial in finished]
        y = np.array([scores[trial.trial_id] for trial in finished])
        if is_slope(values):
            scale = _PER_TEN if min(values) > 0 else _PER_UNIT
            levels = {scale: having}
            found = {scale: _slope(np.log10(x) if min(values) > 0 else np.array(x, float), y)}
        else:
            levels = {k: [t for t in having if t.values[name] == k] for k in sorted_levels(values)}
            found = _means(x, y)
        for level, trials in levels.items():
            its = [trial for trial in trials if trial.trial_id in scores]
            effect, low, high = found.get(level) or (None, None, None)
            share, reason = sum(map(_diverged, trials)) / len(trials), None
            if effect is None:
                reason = f"no trial with {'another value' if its else 'it'} finished"
            counts = len(its), len(trials)
            effects.append(Effect(name, level, effect, low, high, *counts, share, reason))
    return effects


def _means(levels, scores):
    """From each level to (effect, low, high); to None if it is the only one."""
    groups = {level: scores[[one == level for one in levels]] for level in levels}
    if len(groups) < 2:
        return {}
    means = {level: group.mean() for level, group in groups.items()}
    freedom = len(scores) - len(groups)
    squares = sum(((group - group.mean()) ** 2).sum() for group in groups.values())
    found = {}
    for level in groups:
        weights = {one: (one == level) - 1 / len(groups) for one in groups}
        effect = sum(weight * means[one] for one, weight in weights.items())
        share = sum(weight**2 / len(groups[one]) for one, weight in weights.items())
        found[level] = _with_interval(effect, squares * share, freedom)
    return found


def _slope(x, scores):
    """(slope, low, high), or None without two different numbers."""
    if len(set(x)) < 2:
        return None
    fit, freedom = stats.linregress(x, scores), len(x) - 2
    return _with_interval(fit.slope, fit.stderr**2 * freedom, freedom)


def _with_interval(effect, error, freedom):
    """(effect, low, high), where `error` is the variance of the effect times `freedom`."""
    if freedom < 1:
        return float(effect), None, None
    margin = stats.t.ppf((1 + CONFIDENCE) / 2, freedom) * np.sqrt(error / freedom)
    return float(effect), float(effect - margin), float(effect + margin)


def _diverged(trial):
    return any(execution.outcome == DIVERGED for execution in trial.executions)


def is_slope(values: Sequence[Any]) -> bool:
    """Whether the values of a choice are numbers, and too many to be levels."""
    present = [value for value in values if value != ABSENT]
    distinct = len(set(present))
    few = distinct <= 2 or (distinct <= FEW and 2 * distinct <= len(present))
    return not few and all(map(_is_number, present))


def sorted_levels(values: Sequence[Any]) -> list[Any]:
    """The different values: numbers by size, names by letter, "-" (absent) last."""

    def key(value):
        return value == ABSENT, not _is_number(value), value if _is_number(value) else str(value)

    return sorted(set(values), key=key)


def _is_number(value):
    return isinstance(value, numbers.Real) and not isinstance(value, bool)
