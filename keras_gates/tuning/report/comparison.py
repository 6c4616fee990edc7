"""Is the best trial better than the default pair of activations, or is that the noise of seeds?"""

import dataclasses
import math

import numpy as np
from scipy import stats

from keras_gates.tuning import records
from keras_gates.tuning.report import pairs
from keras_gates.tuning.report.pairs import ABSENT, CANDIDATE, DEFAULTS, GATE
from keras_gates.tuning.report.text import number
from keras_gates.tuning.space import UNASKED

EPOCHS = "tuner/epochs"  # how long Hyperband trains a trial
CONFIDENCE, POWER, _MOST_SEEDS = 0.95, 0.8, 1000
_ROUNDING = 1e-6  # the share by which scores may differ that are the same but for rounding


@dataclasses.dataclass
class Comparison:
    """The best finished trial against the best finished one with the default pair.

    The noise is the standard deviation over the seeds of one trial, pooled over all finished
    trials. It is the noise of training alone: that the data could have been others is not in it.
    Trials count as independent, though they share their seeds, which errs on the side of caution.
    The interval is a t-interval of the difference, with Bonferroni's correction for having picked
    the best of all finished trials (Dunn, "Multiple comparisons among means", 1961).

    Attributes:
        verdict: "beats", "within noise", "one seed" (nothing is known of the noise), "fewer
            epochs" (Hyperband stopped the default pair earlier), "default is best", "one pair" (no
            trial with another pair has finished), "no default" or "nothing finished".
        sentence: the verdict in words.
        best, default: ids of the trials; None where there is none.
        difference: by how much the best is better in the objective: positive for "min", too.
        low, high: the 95% interval of the difference; None where the noise is not known.
        noise, degrees_of_freedom: the pooled standard deviation (None if not known).
        trials: how many trials have finished.
        seeds_needed: with about how many new seeds, the same for both, each of the two trials would
            have to be trained to tell a difference of this size, if it is real, with a power of
            80%, as `Tuner.confirm` does; None where that is not the question, or for more than
            1000.
    """

    verdict: str
    sentence: str = ""
    best: str | None = None
    default: str | None = None
    difference: float | None = None
    low: float | None = None
    high: float | None = None
    noise: float | None = None
    degrees_of_freedom: int = 0
    trials: int = 0
    seeds_needed: int | None = None

    def margin(self, seeds, others):
        """Half the width of the corrected 95% interval of the difference of two trials, trained
        with so many seeds; None where the noise is not known."""
        if self.noise is None:
            return None
        tail = (1 - CONFIDENCE) / 2 / max(self.trials - 1, 1)
        quantile = stats.t.isf(tail, self.degrees_of_freedom)
        return float(quantile * self.noise * math.sqrt(1 / seeds + 1 / others))


def ranked(search):
    """The finished trials of a `records.Search`, the best first."""
    finished = [trial for trial in search.trials if trial.outcome == records.FINISHED]
    return sorted(finished, key=lambda trial: trial.score, reverse=search.direction == "max")


def compare(search, confirmed=()):
    """The `Comparison` of a `records.Search`; of trials that are `confirmed`, by their ids, it does
    not say that this is to be done."""
    trials = ranked(search)
    noise, freedom = _pooled(trials)
    known = {"noise": noise, "degrees_of_freedom": freedom, "trials": len(trials)}
    if not trials:
        return Comparison("nothing finished", "No trial has finished: there is nothing to compare.")
    best = trials[0]
    known["best"] = best.trial_id
    default = next((trial for trial in trials if pairs.is_default(trial.values)), None)
    if default is None:
        return Comparison("no default", _no_default(search), **known)
    known["default"] = default.trial_id
    if all(pairs.is_default(trial.values) for trial in trials):
        return Comparison("one pair", _one_pair(search, trials), **known)
    if default is best:
        sentence = (
            f"The default pair (trial {best.trial_id}: {pairs.pair_of(best.values)}) is itself the "
            f"best of {_trials(len(trials))}: no other was better in {search.objective}."
        )
        return Comparison("default is best", sentence, **known)
    alike = math.isclose(best.score, default.score, rel_tol=_ROUNDING)
    difference = 0.0 if alike else abs(best.score - default.score)
    found = Comparison("", difference=difference, **known)
    if noise is not None:
        margin = found.margin(len(best.scores), len(default.scores))
        found.low, found.high = difference - margin, difference + margin
    if default.values.get(EPOCHS, 0) < best.values.get(EPOCHS, 0):
        found.verdict = "fewer epochs"
    elif noise is None:
        found.verdict = "one seed"
    elif found.low > 0:
        found.verdict = "beats"
    else:
        found.verdict = "within noise"
        found.seeds_needed = seeds_needed(difference, noise * math.sqrt(2))
    advised = not {best.trial_id, default.trial_id} <= {*confirmed}
    found.sentence = _sentence(found, search, best, default, advised)
    return found


def _sentence(found, search, best, default, advised):
    first = f"The best trial ({best.trial_id}: {pairs.pair_of(best.values)})"
    other = f"the default pair ({default.trial_id}: {pairs.pair_of(default.values)})"
    by = f"by {found.difference:.4g} in {search.objective}"
    if found.noise is not None:
        by += (
            f" (95% interval {found.low:.4g} to {found.high:.4g}, corrected for having picked the "
            f"best of {_trials(found.trials)}; standard deviation over seeds {found.noise:.4g})"
        )
    ahead = f"{first} is ahead of {other} {by}"
    if found.verdict == "beats":
        text = f"{first} beats {other} beyond the noise, {by}."
    elif found.verdict == "fewer epochs":
        text = (
            f"{ahead}, but was trained up to epoch {best.values[EPOCHS]}, the default pair only up "
            f"to {default.values.get(EPOCHS, 0)}: that says nothing about the pair."
        )
        text += " tuner.confirm() trains both as long." if advised else ""
    elif found.verdict == "one seed":
        text = (
            f"{ahead}, but every trial was trained with one seed only, so that nothing can be said "
            "about the noise"
        )
        text += ": tuner.confirm(seeds=5) trains both with five more." if advised else "."
    else:
        text = f"{ahead}: that is within the noise."
    if found.verdict == "within noise" and found.difference > 0 and advised:
        seeds = found.seeds_needed
        count = f"about {seeds}" if seeds else f"more than {_MOST_SEEDS}"
        text += f" To tell a difference of this size, if it is real, takes {count} new seeds"
        text += f": tuner.confirm(seeds={seeds}) trains both with them." if seeds else "."
    return text + differences(best.values, default.values)


def differences(best, default):
    """In what else than the pair two trials differ: then the activations alone do not explain the
    scores."""
    listed = []
    for name in {**best, **default}:
        choice = name.rpartition("/")[2]
        # What a space asks for with some candidates alone is as good as chosen with the others.
        one, other = (of.get(name, UNASKED.get(choice, ABSENT)) for of in (best, default))
        if one != other and choice not in DEFAULTS and not name.startswith("tuner/"):
            listed.append(f"{name} ({number(one)}, not {number(other)})")
    if not listed:
        return ""
    return (
        f" The two differ in more than the pair, which need not be the cause: {', '.join(listed)}."
    )


def _one_pair(search, finished):
    """Nothing was compared with the default pair: why."""
    best = finished[0]
    others = [trial for trial in search.trials if not pairs.is_default(trial.values)]
    what = "no other pair was tried"
    if others:
        listed = records.counted(trial.outcome for trial in others)
        what = f"no trial with another pair has finished (of {len(others)}: {listed})"
    return (
        f"Nothing was compared with the default pair ({_trials(len(finished))}, the best is "
        f"{best.trial_id}: {pairs.pair_of(best.values)}): {what}."
    )


def _no_default(search):
    if not any(any(pairs.activations_of(trial.values)[1:]) for trial in search.trials):
        return (
            "The activations are no choice of this search that can be told from others: no "
            f"hyperparameter is named {GATE} or {CANDIDATE}."
        )
    tried = [trial for trial in search.trials if pairs.is_default(trial.values)]
    if not tried:
        what = (
            "No trial has the default pair (sigmoid + tanh): let it be the default of the choices, "
            "which a search begins with."
        )
    else:
        listed = ", ".join(f"{trial.trial_id} ({trial.outcome})" for trial in tried)
        what = f"No trial with the default pair (sigmoid + tanh) has finished: {listed}."
    return f"{what} Whether the best is better than it cannot be said."


def _pooled(trials):
    """The standard deviation over the seeds, pooled over trials, and its degrees of freedom."""
    freedom = sum(len(trial.scores) - 1 for trial in trials)
    if freedom == 0:
        return None, 0
    squares = sum((len(t.scores) - 1) * t.spread**2 for t in trials if t.spread is not None)
    return math.sqrt(squares / freedom), freedom


def seeds_needed(difference, noise):
    """How many pairs of trainings a t-test of their differences takes, about; None for more than
    1000.

    Args:
        difference: of the means, not negative.
        noise: the standard deviation of the difference of one pair.
    """
    seeds = np.arange(2, _MOST_SEEDS + 1)
    quantile = stats.t.ppf((1 + CONFIDENCE) / 2, seeds - 1) + stats.t.ppf(POWER, seeds - 1)
    enough = (difference > 0) & (difference >= quantile * noise / np.sqrt(seeds))
    return int(seeds[np.argmax(enough)]) if enough.any() else None


def _trials(count):
    return f"{count} finished trial{'s' * (count != 1)}"
