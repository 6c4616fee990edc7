"""The report of a search as HTML: the verdict, the best trials, what helped, what failed."""

import contextlib

from keras_gates import html
from keras_gates.tuning.report import plots
from keras_gates.tuning.report.pairs import ABSENT, activations_of
from keras_gates.tuning.report.text import (
    FIGURES,
    MOST,
    cost,
    counts,
    differing,
    effects_in_words,
    effects_table,
    number,
)


def block(found):
    """What a notebook shows of a `SearchReport`."""
    return html.block(html.element("h3", _title(found)), *_summary(found), *_tables(found, "h3"))


def write(found, path):
    """Writes a `SearchReport` as a page."""
    html.write(path, _title(found), _page(found))


def _page(found):
    yield from _summary(found)
    if html.can_draw():
        yield html.element("div", *_pictures(found), class_="pictures")
    else:
        yield html.without_pictures()
    yield from _tables(found, "h2")
    yield _all(found)


def _title(found):
    return f"Search for the {found.direction}imum of {found.objective}"


def _summary(found):
    yield html.element("p", counts(found), ".")
    yield html.element("p", found.comparison.sentence, class_="lead")
    if found.best:
        yield html.element("p", cost(found))


def _tables(found, heading):
    if found.best:
        yield html.element(heading, "Best trials")
        rows = [row for row in found.trials if row["rank"]]
        yield _of_trials(rows[:MOST], [*FIGURES, *differing(found)])
        what = "Spread: standard deviation over the seeds. Sparsity: zeros in hidden states."
        yield html.element("p", what, class_="faint")
    failed = [row for row in found.trials if not row["rank"] and row["outcome"] != "running"]
    if failed:
        yield html.element(heading, "Without a score")
        yield _of_trials(failed, ["trial", "outcome", "reason", *differing(found)])
    if any(effect.finished or effect.diverged for effect in found.effects):
        what, *notes = effects_in_words(found)
        header, *rows = effects_table(found)
        yield html.element(heading, what)
        yield html.table(header, rows, words=["95 % interval"])
        yield html.element("p", " ".join(notes), class_="faint")


def _all(found):
    """Every trial with all its values, to be unfolded."""
    names = list(dict.fromkeys(name for row in found.trials for name in row))
    summary = html.element("summary", f"All {len(found.trials)} trials")
    return html.element("details", summary, _of_trials(found.trials, names))


def _of_trials(rows, names):
    names = [name for name in names if any(row.get(name) is not None for row in rows)]
    entries = [[number(row.get(name, ABSENT)) for name in names] for row in rows]
    return html.table(names, entries, words=["reason"])


def _pictures(found):
    ended = [row for row in found.trials if row["outcome"] != "running"]
    cells = dict.fromkeys(activations_of(r)[0] for r in ended if any(activations_of(r)[1:]))
    for cell in cells:
        pairs = [activations_of(row)[1:] for row in ended if activations_of(row)[0] == cell]
        gates, candidates = (len({pair[i] for pair in pairs}) for i in (0, 1))
        size = (2.0 + 0.7 * candidates, 1.4 + 0.45 * gates)
        yield from _drawn(
            lambda axes, cell=cell: plots.plot_scores(found, axes, cell=cell), size,
            f"mean {found.objective} of each pair of activations" + (f" in {cell}" if cell else ""),
        )  # fmt: skip
    yield from _drawn(
        lambda axes: plots.plot_learning_curves(found, axes), (3.8, 2.8), "learning curves"
    )
    yield from _drawn(
        lambda axes: plots.plot_parallel(found, axes), (7.0, 3.2), "all trials, by their choices"
    )


def _drawn(draw, size, description):
    """The picture; none where there is nothing to draw."""
    with contextlib.suppress(ValueError):
        yield html.picture(draw, description, size)
