"""Does a difference between trials hold with seeds that had no part in choosing them?"""

import dataclasses
import math
import os
import pathlib
import statistics
from typing import Any

from scipy import stats

from keras_gates import html
from keras_gates.diagnostics.report import plain
from keras_gates.tuning import records
from keras_gates.tuning.report.comparison import (
    CONFIDENCE,
    compare,
    differences,
    ranked,
    seeds_needed,
)
from keras_gates.tuning.report.pairs import pair_of
from keras_gates.tuning.report.sections import Section, as_html, as_text
from keras_gates.tuning.report.text import number


@dataclasses.dataclass
class Difference:
    """One trial against another, seed by seed.

    The interval is a t-interval of the mean of the differences within each seed, so that what a
    seed does to both cancels; with several trials to compare with, corrected for their number
    (Dunn, "Multiple comparisons among means", 1961).

    Attributes:
        first, other: ids of the trials.
        verdict: "holds" (the first is better), "reversed" (the other is), "undecided", "failed"
            (the first did not finish with every seed), or "too few" (fewer than two seeds with
            which both finished).
        sentence: the verdict in words.
        differences: from each seed with which both finished to by how much the first was better in
            the objective: positive for "min", too.
        difference: the mean of these; None without any.
        low, high: its 95% interval; None for fewer than two.
        seeds_needed: about how many seeds, those trained with included, it takes to tell a
            difference of this size, if it is real, with a power of 80%. None where that is not the
            question, or for more than 1000.
    """

    first: str
    other: str
    verdict: str
    sentence: str
    differences: dict
    difference: float | None = None
    low: float | None = None
    high: float | None = None
    seeds_needed: int | None = None


@dataclasses.dataclass
class Confirmation:
    """What `Tuner.confirm` finds. `print` shows the verdicts and the scores of every seed.

    Attributes:
        objective, direction: what was optimized, and "min" or "max".
        seeds: those that the trials were trained with.
        scores: from the id of each trial to a dict from each seed to the objective at the best
            epoch; None where the training did not finish.
        reasons: from (id, seed) to why a training did not finish.
        differences: a list of `Difference`: the first of the trials against each of the others.
    """

    objective: str
    direction: str
    seeds: list
    scores: dict
    reasons: dict
    differences: list[Difference]

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain dicts, lists and numbers, for JSON. None stands for what is not
        finite."""
        found = dataclasses.asdict(self)
        found["reasons"] = [[*key, reason] for key, reason in self.reasons.items()]
        return plain(found)

    def __str__(self) -> str:
        return as_text(self.sentences(), self.sections())

    def _repr_html_(self) -> str:
        return html.block(*as_html(self.sentences(), self.sections()))

    def sentences(self):
        return [each.sentence for each in self.differences]

    def sections(self):
        """The scores of every seed, for a report."""
        scores = self.scores.values()
        rows = [("seed", *(f"trial {name}" for name in self.scores))]
        rows += [(s, *(number(its[s]) or "-" for its in scores)) for s in self.seeds]
        yield Section(f"{self.objective} with every further seed", rows)
        if self.reasons:
            rows = [("trial", "reason")]
            rows += [(f"trial {name}", reason) for (name, _), reason in self.reasons.items()]
            yield Section("Seeds without a score", rows, words=["reason"])


def chosen(search: records.Search, trials: list | None) -> list[str]:
    """The ids of the trials to confirm, the one that should be better first.

    Args:
        search: what its folder says.
        trials: ids; None for the best one and the best one with the default pair of activations,
            or, where that is itself the best, the best one and the next.

    Raises:
        TypeError, ValueError: no such trials.
    """
    if trials is None:
        found, scored = compare(search), [trial.trial_id for trial in ranked(search)]
        if found.default is not None and len(scored) > 1:
            return scored[:2] if found.default == found.best else [found.best, found.default]
        raise ValueError(
            "`trials` must be given, as there are no two to compare by default. "
            f"{found.sentence} Received: trials=None"
        )
    known = [trial.trial_id for trial in search.trials if trial.outcome != records.RUNNING]
    expected = "`trials` must be a list of the ids of at least two ended trials, each once"
    if not isinstance(trials, (list, tuple)):
        raise TypeError(f"{expected}. Received: trials={trials!r}")
    if len(trials) < 2 or len(set(trials)) < len(trials) or set(trials) - set(known):
        raise ValueError(f"{expected}: {', '.join(known)}. Received: trials={trials!r}")
    return list(trials)


def last_confirmation(folder: str | os.PathLike, search: records.Search) -> Confirmation | None:
    """What the last `confirm` in the folder of a search found; None if there was none."""
    last = records.read_json(pathlib.Path(folder, records.CONFIRMATION))
    if last is None or set(last["trials"]) - {trial.trial_id for trial in search.trials}:
        return None
    executions = {
        name: records.read_executions(pathlib.Path(folder, f"trial_{name}"), records.CONFIRMED)
        for name in last["trials"]
    }
    return confirmation(search, executions, last["seeds"])


def confirmation(search: records.Search, executions: dict, seeds: list[int]) -> Confirmation:
    """The `Confirmation` from what was trained.

    Args:
        search: what its folder says.
        executions: from the id of each trial to its `records.Execution`s with further seeds.
        seeds: those that count.

    >>> from keras_gates.tuning.records import Execution, Search, Trial
    >>> trials = [Trial("0", {"candidate_activation": "tanh"}, "COMPLETED", []),
    ...           Trial("1", {"candidate_activation": "relu"}, "COMPLETED", [])]
    >>> scores = {"1": [0.83, 0.87, 0.86], "0": [0.80, 0.85, 0.83]}
    >>> executions = {name: [Execution(seed, "finished", 5, score=score)
    ...                      for seed, score in enumerate(its, start=2)]
    ...               for name, its in scores.items()}
    >>> print(confirmation(Search("val_accuracy", "max", trials), executions, [2, 3, 4]))
    Trial 1 (relu) is better than trial 0 (tanh) by 0.02667 in val_accuracy (95% interval 0.01232 \
to 0.04101, paired by seed, over 3 further seeds): the difference holds.
    <BLANKLINE>
    val_accuracy with every further seed
      seed  trial 1  trial 0
      2     0.83     0.8
      3     0.87     0.85
      4     0.86     0.83
    """
    by_seed = {name: {e.seed: e for e in its} for name, its in executions.items()}
    scores = {
        name: {seed: its[seed].score if seed in its else None for seed in seeds}
        for name, its in by_seed.items()
    }
    reasons = {
        (name, seed): f"seed {seed}: {its[seed].outcome}, {its[seed].reason}"
        for name, its in by_seed.items()
        for seed in seeds
        if seed in its and its[seed].outcome != records.FINISHED
    }
    values = {trial.trial_id: trial.values for trial in search.trials}
    first, *others = by_seed
    return Confirmation(
        search.objective,
        search.direction,
        list(seeds),
        scores,
        reasons,
        [_difference(search, scores, first, other, values, len(others)) for other in others],
    )


def _difference(search, scores, first, other, values, comparisons):
    """The `Difference` of two trials, among so many comparisons."""
    sign = 1 if search.direction == "max" else -1
    lost = {name: [s for s, score in scores[name].items() if score is None] for name in scores}
    by_seed = {
        seed: sign * (score - scores[other][seed])
        for seed, score in scores[first].items()
        if score is not None and scores[other][seed] is not None
    }
    found = Difference(first, other, "", "", by_seed)
    pairs = [pair_of(values[name]) for name in (first, other)]
    one, two = (
        f"trial {name}" + (f" ({pair})" if pair else "")
        for name, pair in zip((first, other), pairs, strict=True)
    )
    too = f"{two} did not finish with {_seeds(lost[other])}"
    if lost[first]:
        found.verdict = "failed"
        also = f", {two} with {_seeds(lost[other])}" if lost[other] else ""
        text = (
            f"{one} did not finish with {_seeds(lost[first])}{also}: what it scored with others is "
            "no reason to take it."
        )
    elif len(by_seed) < 2:
        found.verdict = "too few"
        text = f"{too}: too few are left to compare it with {one}, which finished with all."
    else:
        trials = _named(search, [*scores])
        text = _compared(found, search, one, two, comparisons, len(scores[first]), trials)
        text += f" {_capital(too)}, which do not count." if lost[other] else ""
        if pairs[0] != pairs[1]:
            text += differences(values[first], values[other])
    found.sentence = _capital(text)
    return found


def _named(search, names):
    """The argument of `confirm` for these trials; nothing for those that it takes by default."""
    try:
        default = chosen(search, None)
    except ValueError:
        default = []
    return "" if names == default else f"trials={names}, "


def _compared(found, search, one, two, comparisons, seeds, trials):
    """Finds the interval of a `Difference` and the verdict, which it returns in words.

    Args:
        one, two: what the trials are called.
        comparisons: among how many the first is in.
        seeds: how many the trials were trained with.
        trials: see `_named`.
    """
    values = list(found.differences.values())
    mean, noise, count = statistics.fmean(values), statistics.stdev(values), len(values)
    quantile = stats.t.isf((1 - CONFIDENCE) / 2 / comparisons, count - 1)
    margin = float(quantile * noise / math.sqrt(count))
    found.difference, found.low, found.high = mean, mean - margin, mean + margin
    corrected = f", corrected for {comparisons} comparisons" if comparisons > 1 else ""
    better, worse = (one, two) if mean >= 0 else (two, one)
    ahead = (
        f"{worse} by {number(abs(mean))} in {search.objective} (95% interval "
        f"{number(abs(mean) - margin)} to {number(abs(mean) + margin)}, paired by seed, over "
        f"{count} further seeds{corrected})"
    )
    if abs(mean) > margin:
        found.verdict = "holds" if mean > 0 else "reversed"
        end = "the difference holds" if mean > 0 else "the other way round than in the search"
        return f"{better} is better than {ahead}: {end}."
    found.verdict = "undecided"
    needed = seeds_needed(abs(mean), noise)
    found.seeds_needed = needed and max(needed, seeds + 1)
    text = f"{better} is ahead of {ahead}: the interval has 0 in it, so that either may be the "
    text += "better one. "
    if needed is None:
        return f"{text}No number of seeds that is worth it would tell."
    return (
        f"{text}To tell a difference of this size, if it is real, takes about "
        f"{found.seeds_needed} seeds, these included: tuner.confirm({trials}seeds="
        f"{found.seeds_needed})."
    )


def _capital(text):
    return text[0].upper() + text[1:]


def _seeds(seeds):
    return f"seed{'s' * (len(seeds) > 1)} {', '.join(map(str, seeds))}"
