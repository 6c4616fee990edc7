"""Pictures of a search. Each takes a `SearchReport`, and takes and returns `axes`.

matplotlib is needed: `pip install "keras_gates[plots]"`.
"""

import itertools
import warnings
from typing import Any

import numpy as np

from keras_gates.diagnostics.plots import BLUE, RED, axes_or_new, panels, square
from keras_gates.tuning.records import DIVERGED, RUNNING
from keras_gates.tuning.report import SearchReport, pairs
from keras_gates.tuning.report.effects import is_slope, sorted_levels
from keras_gates.tuning.report.pairs import ABSENT, CANDIDATE, DEFAULTS, GATE
from keras_gates.tuning.report.text import number
from keras_gates.validation import one_of


def plot_scores(report: SearchReport, axes: Any = None, *, cell: str | None = None) -> Any:
    """The mean score of every pair of activations: gates x candidates.

    Each square tells the mean over the finished trials with that pair, whatever their other
    choices, and how many they are. Pairs of which some training diverged are hatched, and tell in
    how many of the trials that ended. Grey: no trial has a score; white: there is no trial.
    Brighter is better.

    Args:
        report: of `search_report`.
        axes: of matplotlib; new ones by default.
        cell: of which cell. Default: all of them, each with an axes of its own.

    Returns:
        The axes; of several cells an array of them.

    Raises:
        ValueError: no ended trial has a choice of activations; an unknown cell.
    """
    groups = by_pair(report)
    if not groups:
        raise ValueError(
            f"`report` must hold an ended trial with a {GATE} or a {CANDIDATE}. Received: a report "
            f"with the choices {report.choices} and the outcomes {report.counts}"
        )
    cells = list(dict.fromkeys(cell for cell, _, _ in groups))
    if cell is None and len(cells) > 1:
        axes = panels(axes, "cell", cells)
        for each, panel in zip(cells, axes, strict=True):
            plot_scores(report, panel, cell=each)
        return axes
    cell = cells[0] if cell is None else one_of("cell", cell, cells)
    scores_of = {key: [row["score"] for row in its if row["rank"]] for key, its in groups.items()}
    everywhere = [np.mean(scores) for scores in scores_of.values() if scores]  # one scale for all
    of_cell = [key for key in groups if key[0] == cell]
    gates = _default_first((gate for _, gate, _ in of_cell), DEFAULTS[GATE])
    candidates = _default_first((candidate for _, _, candidate in of_cell), DEFAULTS[CANDIDATE])

    axes = axes_or_new(axes)
    means = np.full((len(gates), len(candidates)), np.nan)
    for key in of_cell:
        i, j = gates.index(key[1]), candidates.index(key[2])
        scores, found = scores_of[key], groups[key]
        diverged = sum(bool(row["diverged"]) for row in found)
        if scores:
            means[i, j] = np.mean(scores)
        else:
            axes.add_patch(square(j, i, facecolor="lightgrey"))
        if diverged:
            axes.add_patch(square(j, i, fill=False, hatch="//", edgecolor=RED, linewidth=0))
        words = [f"{means[i, j]:.3g}\nn = {len(scores)}"] if scores else ["no score"]
        words += [f"{diverged} of {len(found)} diverged"] if diverged else []
        _word(axes, j, i, "\n".join(words))
    low, high = min(everywhere, default=0), max(everywhere, default=1)
    image = axes.imshow(means, aspect="auto", cmap=_colors(report), vmin=low, vmax=high)
    axes.figure.colorbar(image, ax=axes, label=f"mean {report.objective}")
    axes.set_xticks(range(len(candidates)), candidates, rotation=45, ha="right")
    axes.set_yticks(range(len(gates)), gates)
    title = f"{cell or 'best activations'}: {report.objective}"
    axes.set(xlabel="candidate", ylabel="gate", title=title)
    return axes


def plot_parallel(report: SearchReport, axes: Any = None) -> Any:
    """All trials in parallel coordinates: an axis for every choice that varies, and the score.

    A line is a finished trial; brighter is better, and the best is at the top of the last axis.
    Dotted lines in red are trials that diverged; others are not shown. "-": not there.

    Args:
        report: of `search_report`.
        axes: of matplotlib; new ones by default.

    Returns:
        The axes.

    Raises:
        ValueError: no trial has finished or diverged, or no choice varies.

    Source: Inselberg, "The plane with parallel coordinates", 1985.
    """
    rows = [row for row in _ended(report) if row["rank"] or row["outcome"] == DIVERGED]
    values = {name: [row.get(name, ABSENT) for row in rows] for name in report.choices}
    values = {name: column for name, column in values.items() if len(set(column)) > 1}
    if not values:
        raise ValueError(
            "`report` must hold finished or diverged trials that differ in a choice. Received: a "
            f"report with the outcomes {report.counts}"
        )
    own, axes = axes is None, axes_or_new(axes)
    import matplotlib as mpl

    if own:
        width, height = axes.figure.get_size_inches()
        axes.figure.set_size_inches(max(width, len(values) + 2), height)  # an inch each
    scores = np.array([np.nan if row["score"] is None else row["score"] for row in rows])
    low, high = (np.nanmin(scores), np.nanmax(scores)) if len(scores[scores == scores]) else (0, 1)
    colors = mpl.cm.ScalarMappable(mpl.colors.Normalize(low, high), _colors(report))
    height = (scores - low) / ((high - low) or 1)
    height = height if report.direction == "max" else 1 - height
    columns = [*(_heights(axes, i, column) for i, column in enumerate(values.values())), height]
    for k in reversed(range(len(rows))):  # the best on top
        line = [column[k] for column in columns]
        if rows[k]["rank"]:
            axes.plot(line, color=colors.to_rgba(scores[k]), lw=2.5 if rows[k]["rank"] == 1 else 1)
        else:
            axes.plot(line, color=RED, ls=":", lw=1.5, zorder=2.5)
    for x in range(len(columns)):
        axes.axvline(x, color="black", lw=0.6)
    best, worst = (high, low) if report.direction == "max" else (low, high)
    for y, score in ((1, best), (0, worst)):
        _word(axes, len(values), y, number(float(score)))
    axes.set_xticks(range(len(columns)), [*values, report.objective], rotation=30, ha="right")
    axes.set(yticks=[], xlim=(-0.5, len(columns) - 0.7), ylim=(-0.05, 1.05))
    axes.set(title=f"{len(rows)} trials; dotted: diverged")
    axes.figure.colorbar(colors, ax=axes, label=report.objective)
    return axes


def plot_learning_curves(report: SearchReport, axes: Any = None) -> Any:
    """The objective over the epochs: the best trial, and the best one with the default pair.

    Lines are means over the seeds, bands go from the least to the greatest. Where a training was
    over earlier than others, the means go on without it.

    Args:
        report: of `search_report`.
        axes: of matplotlib; new ones by default.

    Returns:
        The axes.

    Raises:
        ValueError: no trial has finished, or none has kept the objective's history.
    """
    _check(report)
    if not any(any(curves) for curves in report.curves.values()):
        raise ValueError(
            f"`report` must hold a finished trial with a history of {report.objective}. Received: "
            f"a report with the outcomes {report.counts}"
        )
    axes = axes_or_new(axes)
    rows = {row["trial"]: row for row in report.trials}
    for trial, curves in report.curves.items():
        best = trial == report.comparison.best
        role, color, style = ("best", BLUE, "-") if best else ("default pair", RED, "--")
        by_epoch = list(itertools.zip_longest(*curves, fillvalue=np.nan))
        values = np.array(by_epoch).reshape(-1, len(curves))
        epochs = np.arange(1, len(values) + 1)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "(All-NaN|Mean of empty)", RuntimeWarning)
            mean, low, high = (f(values, axis=1) for f in (np.nanmean, np.nanmin, np.nanmax))
        label = f"{role}: {pairs.pair_of(rows[trial])}"
        marker = "o" if len(epochs) == 1 else None  # of one point no line is seen
        axes.plot(epochs, mean, color=color, ls=style, marker=marker, label=label)
        axes.fill_between(epochs, low, high, color=color, alpha=0.2, lw=0)
    axes.set(xlabel="epoch", ylabel=report.objective, title="learning curves")
    axes.xaxis.get_major_locator().set_params(integer=True)
    empty = "lower right" if report.direction == "max" else "upper right"
    axes.legend(framealpha=0.8, fontsize="small", loc=empty)
    return axes


def _heights(axes, x, column):
    """Where on the axis at x the values of a choice are, from 0 to 1; and their names there."""
    present = [value for value in column if value != ABSENT]
    if is_slope(column):
        scale = np.log10 if min(present) > 0 else np.asarray
        low, high = scale(min(present)), scale(max(present))
        # What is not there has a place of its own below.
        bottom = 0.15 if len(present) < len(column) else 0.0
        places = {v: bottom + (1 - bottom) * (scale(v) - low) / (high - low) for v in present}
        marks = {min(present): bottom, max(present): 1.0}
        if bottom:
            places[ABSENT] = marks[ABSENT] = 0.0
    else:
        levels = sorted_levels(column)
        places = marks = dict(zip(levels, np.linspace(0, 1, len(levels)), strict=True))
    for value, y in marks.items():
        _word(axes, x, y, number(value), zorder=3)
    return [places[value] for value in column]


def _word(axes, x, y, word, **style):
    box = {"facecolor": "white", "edgecolor": "none", "alpha": 0.9, "pad": 1}
    axes.text(x, y, word, ha="center", va="center", fontsize=7, bbox=box, **style)


def _check(report):
    if not isinstance(report, SearchReport):
        raise TypeError(
            "`report` must be what keras_gates.tuning.search_report(tuner) returns. Received: "
            f"{type(report).__name__}"
        )


def by_pair(report):
    """From (cell, gate, candidate) to the trials that have ended with them."""
    groups: dict[tuple, list] = {}
    for row in _ended(report):
        cell, *pair = pairs.activations_of(row)
        if any(pair):
            groups.setdefault((cell, *(name or ABSENT for name in pair)), []).append(row)
    return groups


def _ended(report):
    _check(report)
    return [row for row in report.trials if row["outcome"] != RUNNING]


def _default_first(names, default):
    return sorted(set(names), key=lambda name: (name != default, name))


def _colors(report):
    """Brighter is better."""
    return "cividis" if report.direction == "max" else "cividis_r"
