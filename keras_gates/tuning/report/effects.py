"""Main effects: how much better each level of each choice did, on the mean, and how surely."""

import dataclasses
import numbers
from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy import stats

from keras_gates.tuning.records import RUNNING, Search
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
        low, high: its 95% interval; None without one.
        finished, ended: how many trials with that level have finished, have ended at all.
        diverged: in which share of those that ended some training diverged.
        reason: why there is no effect; None if there is.
        seeds: how many seeds the noise of seeds in the interval comes from; 1 if it is not in it.
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
    seeds: int = 1


def main_effects(search: Search) -> list[Effect]:
    """The effect of every level of every choice that varies, in the order of the search.

    The effect of a level is the mean score of its finished trials less the mean of these means, so
    that a level does not count more for having been tried more often. A number of many values has
    the slope of the scores over it, or over its logarithm to base 10. Conditional choices are
    compared among the trials that have them. Each choice is looked at alone: where two were drawn
    together, both show what one of them did.

    The interval holds two noises. That of trials is the variance of their scores within the levels.
    That of seeds is how much the effect differs from seed to seed: all trials have the same ones,
    so that more trials do not make it less. With V_T the variance of the effect by the trials, V_S
    that by the seeds (pooled over the levels), and V_E what is in both, the noise of single
    trainings, it is V_T + max(V_S - V_E, 0), and its degrees of freedom are Satterthwaite's. Where
    nothing has an effect, 3 to 7 of 100 intervals leave 0 out, whether trainings with one seed are
    alike or not; of two levels with two seeds, which tell little of the noise of seeds, up to 11.

    Trials that diverged have no score: what made them diverge is in `diverged`, not in `effect`.

    Sources: Scheffé, "The Analysis of Variance", 1959, chapter 3; Clark, "The language-as-fixed-
    effect fallacy", 1973 (two noises); Satterthwaite, "An approximate distribution of estimates of
    variance components", 1946.

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
    scored = {trial.trial_id for trial in ranked(search)}
    ended = [trial for trial in search.trials if trial.outcome != RUNNING]
    # KerasTuner's own values are no choices, but how long it trains counts.
    names = dict.fromkeys(name for trial in ended for name in trial.values)
    effects = []
    for name in names:
        having = [trial for trial in ended if name in trial.values]
        values = [trial.values[name] for trial in having]
        if len(set(values)) < 2 or (name.startswith("tuner/") and name != EPOCHS):
            continue
        finished = [trial for trial in having if trial.trial_id in scored]
        x = [trial.values[name] for trial in finished]
        y = sign * _scores(finished)
        if is_slope(values):
            scale = _PER_TEN if min(values) > 0 else _PER_UNIT
            levels = {scale: having}
            number = np.log10(x) if min(values) > 0 else np.array(x, float)
            found = {scale: _slope(number, y)}
        else:
            levels = {k: [t for t in having if t.values[name] == k] for k in sorted_levels(values)}
            found = _means(x, y)
        for level, trials in levels.items():
            its = [trial for trial in trials if trial.trial_id in scored]
            effect, low, high = found.get(level) or (None, None, None)
            share, reason = sum(bool(t.diverged) for t in trials) / len(trials), None
            if effect is None:
                reason = f"no trial with {'another value' if its else 'it'} finished"
            counts = len(its), len(trials)
            effects.append(
                Effect(name, level, effect, low, high, *counts, share, reason, y.shape[1] - 1)
            )
    return effects


def _scores(trials):
    """The mean score of each trial, and its scores with each seed, (trials, 1 + seeds)."""
    seeds = min((len(trial.scores) for trial in trials), default=1)
    rows = [[trial.score, *trial.scores[:seeds]] for trial in trials]
    return np.array(rows).reshape(len(trials), 1 + seeds)


def _means(levels, scores):
    """From each level to (effect, low, high); empty if there is but one."""
    names = list(dict.fromkeys(levels))
    if len(names) < 2:
        return {}
    which = np.array([names.index(level) for level in levels])
    means = np.array([scores[which == k].mean(axis=0) for k in range(len(names))])
    # Each effect is a sum of the means with these weights.
    weights = np.eye(len(names)) - 1 / len(names)
    found = _with_intervals(
        weights @ means,
        scores - means[which],
        (weights**2 / np.bincount(which)).sum(axis=1),
        len(names),
    )
    return dict(zip(names, found, strict=True))


def _slope(x, scores):
    """(slope, low, high), or None without two different numbers."""
    if len(set(x)) < 2:
        return None
    x = x - x.mean()
    slopes = x @ scores / (x @ x)
    apart = scores - scores.mean(axis=0) - np.outer(x, slopes)
    return _with_intervals(slopes[None], apart, np.array([1 / (x @ x)]), 2)[0]


def _with_intervals(effects, apart, sizes, parameters):
    """(effect, low, high) for each of the effects.

    Args:
        effects: on the mean score, and with each seed, (effects, 1 + seeds).
        apart: what of the scores they do not explain, (trials, 1 + seeds).
        sizes: the variance of each effect, for scores with a variance of 1.
        parameters: how many numbers explain the scores.
    """
    freedom, seeds = len(apart) - parameters, apart.shape[1] - 1
    if freedom < 1:
        return [(float(effect), None, None) for effect in effects[:, 0]]
    of_trials = sizes * (apart[:, 0] ** 2).sum() / freedom
    variance, freedoms = of_trials, np.full(len(effects), float(freedom))
    if seeds > 1:
        # Of the effects with each seed; and what single trainings contribute to that.
        between = effects[:, 1:].var(axis=1, ddof=1).mean() / seeds
        within = apart[:, 1:] - apart[:, 1:].mean(axis=1, keepdims=True)
        within = sizes.mean() * (within**2).sum() / freedom / (seeds - 1) / seeds
        total = of_trials + between - within
        spread = of_trials**2 / freedom
        spread += (between**2 / (parameters - 1) + within**2 / freedom) / (seeds - 1)
        more = total > of_trials
        variance = np.where(more, total, of_trials)
        freedoms[more] = np.maximum(total[more] ** 2 / spread[more], 1)
    margins = stats.t.ppf((1 + CONFIDENCE) / 2, freedoms) * np.sqrt(variance)
    return np.stack([effects[:, 0], effects[:, 0] - margins, effects[:, 0] + margins], 1).tolist()


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
