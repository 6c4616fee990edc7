"""The report of a search in words."""

import math

from keras_gates.tuning.records import OUTCOMES, RUNNING
from keras_gates.tuning.report.pairs import ABSENT
from keras_gates.tuning.report.sections import Section

MOST = 10  # trials in print
FIGURES = (
    "rank", "trial", "score", "spread", "seeds", "epochs", "sparsity", "parameters", "seconds",
)  # fmt: skip


def markdown(names, rows):
    """A table in Markdown: a column for each name, a line for each dict."""
    lines = [names, ["---"] * len(names)]
    lines += [[_cell(row.get(name)) for name in names] for row in rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def title(found):
    return f"Search for the {found.direction}imum of {found.objective}"


def paragraphs(found):
    """What there is to say of a `SearchReport`, the verdict among it."""
    yield f"{counts(found)}."
    yield found.comparison.sentence
    if found.confirmation:
        first, *others = found.confirmation.sentences()
        yield f"Trained with further seeds: {first}"
        yield from others
    if found.best:
        yield cost(found)


def sections(found):
    """Its tables."""
    if found.confirmation:
        yield from found.confirmation.sections()
    if found.best:
        notes = [
            "Spread: standard deviation over the seeds. Sparsity: zeros in hidden states. Seconds: "
            "of all seeds together."
        ]
        if (more := len(ranked(found)) - MOST) > 0:
            notes.append(f"{more} more are in `trials`, to_csv, to_markdown.")
        yield Section("Best trials", best_trials(found), notes)
    if failed(found):
        header = ("trial", "outcome", "choices", "reason")
        yield Section("Without a score", [header, *_failed(found)], words=header[2:])
    if effects := effects_table(found):
        what, *notes = effects_in_words(found)
        yield Section(what, effects, notes, words=["95% interval"])


def counts(found):
    """How many trials came to what, in words."""
    each = {**dict.fromkeys(OUTCOMES, 0), **found.counts}
    listed = ", ".join(f"{count} {outcome}" for outcome, count in each.items())
    return f"{len(found.trials)} trials: {listed}"


def best_trials(found):
    """A table of the best trials, with what they differ in, the header first."""
    best = ranked(found)[:MOST]
    names = [*FIGURES, *differing(found)]
    if len({row["epochs"] for row in best}) == 1:
        names.remove("epochs")
    return table(best, names)


def table(rows, names):
    """Trials as strings, the header first, without columns in which there is nothing."""
    names = [name for name in names if any(row.get(name) is not None for row in rows)]
    return [names, *([number(row.get(name, ABSENT)) for name in names] for row in rows)]


def ranked(found):
    return [row for row in found.trials if row["rank"]]


def failed(found):
    """The trials that have ended without a score."""
    return [row for row in found.trials if not row["rank"] and row["outcome"] != RUNNING]


def _failed(found):
    """What was chosen in them, and why they have no score, each reason once."""
    shown = {}
    for row in failed(found):
        chosen = [f"{name}={number(row[name])}" for name in differing(found) if name in row]
        reason = " ".join(row["reason"].split())
        first = shown.setdefault(reason, row["trial"])
        why = reason if first == row["trial"] else f"as trial {first}"
        yield row["trial"], row["outcome"], ", ".join(chosen), why


def effects_in_words(found):
    """What the main effects are, and how to read them."""
    noise = "of trials and of seeds"
    if max(effect.seeds for effect in found.effects) < 2:
        noise = "of trials alone; of the noise of seeds nothing is known with one seed"
    return [
        f"Main effects on {found.objective}: how much better than the mean over the levels",
        "Positive is better; for numbers of many values the slope; 95% intervals. Each choice "
        "alone, not adjusted for others.",
        f"The intervals hold the noise {noise}.",
        "An interval with 0 in it proves nothing, and of 20 levels without any effect one has an "
        "interval without it.",
    ]


def effects_table(found):
    """A row for every level of every choice, the best first, with the header before all; nothing
    where no trial has shown anything."""
    if not any(effect.finished or effect.diverged for effect in found.effects):
        return []
    rows = [("choice", "level", "effect", "95% interval", "finished", "diverged")]
    choices = list(dict.fromkeys(effect.choice for effect in found.effects))

    def place(e):
        return choices.index(e.choice), math.inf if e.effect is None else -e.effect

    for e in sorted(found.effects, key=place):
        effect = ABSENT if e.effect is None else _signed(e.effect)
        interval = "" if e.low is None else f"{_signed(e.low)} to {_signed(e.high)}"
        middle = interval if e.reason is None else f"({e.reason})"
        diverged = f"{round(e.diverged * e.ended)} of {e.ended}"
        rows.append((e.choice, number(e.level), effect, middle, str(e.finished), diverged))
    return rows


def _signed(value):
    return "+0" if abs(value) < 1e-10 else f"{value:+.3g}"  # what is left of rounding


def cost(found):
    """Whether time matters: that of the best, of the default pair, and of others as good."""
    by_id = {row["trial"]: row for row in found.trials}
    best, default = found.best, by_id.get(found.comparison.default)
    text = f"Time: the best took {_each(best):.3g} s per training"
    if default is not None and default is not best and _each(default) > 0:
        times = f"{_each(best) / _each(default):.2g}"
        text += f", {'as long as' if times == '1' else f'{times} times that of'} the default pair"
    alike = [row for row in ranked(found) if _within(found, row, best)]
    if not alike:
        return f"{text}."
    quick = min(alike, key=_each)
    if _each(quick) < 0.8 * _each(best):
        return f"{text}; trial {quick['trial']}, within the noise of it, took {_each(quick):.3g} s."
    return f"{text}; no trial within the noise of it was much quicker."


def _each(row):
    return row["seconds"] / row["seeds"]


def _within(found, row, best):
    margin = found.comparison.margin(row["seeds"], best["seeds"])
    return margin is not None and abs(row["score"] - best["score"]) <= margin


def differing(found):
    """The choices in which the trials are not all alike."""
    return [
        name for name in found.choices if len({row.get(name, ABSENT) for row in found.trials}) > 1
    ]


def number(value):
    """A value as text: floats with four digits, None as nothing."""
    if value is None:
        return ""
    if not isinstance(value, float):
        return str(value)
    return "NaN" if math.isnan(value) else f"{value:.4g}"


def _cell(value):
    return " ".join(number(value).split()).replace("|", "\\|")
