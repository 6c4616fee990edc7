"""The report of a search as HTML: the verdict, the best trials, what helped, what failed."""

import contextlib

from keras_gates import html
from keras_gates.tuning.report import plots, text


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
    yield html.element("p", text.counts(found), ".")
    yield html.element("p", found.comparison.sentence, class_="lead")
    if found.confirmation:
        yield html.element("p", "Trained with further seeds:")
        yield from found.confirmation.sentences()
    if found.best:
        yield html.element("p", text.cost(found))


def _tables(found, heading):
    if found.confirmation:
        yield from found.confirmation.tables(heading)
    if found.best:
        header, *rows = text.best_trials(found)
        yield html.element(heading, "Best trials")
        yield html.table(header, rows)
        what = "Spread: standard deviation over the seeds. Sparsity: zeros in hidden states."
        yield html.element("p", what, class_="faint")
    if failed := text.failed(found):
        yield html.element(heading, "Without a score")
        yield _of_trials(failed, ["trial", "outcome", "reason", *text.differing(found)])
    if table := text.effects_table(found):
        what, *notes = text.effects_in_words(found)
        yield html.element(heading, what)
        yield html.table(table[0], table[1:], words=["95% interval"])
        yield html.element("p", " ".join(notes), class_="faint")


def _all(found):
    """Every trial with all its values, to be unfolded."""
    names = list(dict.fromkeys(name for row in found.trials for name in row))
    summary = html.element("summary", f"All {len(found.trials)} trials")
    return html.element("details", summary, _of_trials(found.trials, names))


def _of_trials(rows, names):
    header, *entries = text.table(rows, names)
    return html.table(header, entries, words=["reason"])


def _pictures(found):
    groups = plots.by_pair(found)
    for cell in dict.fromkeys(cell for cell, _, _ in groups):
        gates, candidates = (len({key[i] for key in groups if key[0] == cell}) for i in (1, 2))
        size = (2.0 + 0.7 * candidates, 1.4 + 0.45 * gates)
        what = f"mean {found.objective} of each pair of activations"
        what += f" in {cell}" if cell else ""
        yield from _drawn(plots.plot_scores, found, size, what, cell=cell)
    yield from _drawn(plots.plot_learning_curves, found, (3.8, 2.8), "learning curves")
    size = (max(7.0, len(text.differing(found)) + 2), 3.2)
    yield from _drawn(plots.plot_parallel, found, size, "all trials, by their choices")


def _drawn(plot, found, size, description, **options):
    """The picture; none where there is nothing to draw."""
    with contextlib.suppress(ValueError):
        yield html.picture(lambda axes: plot(found, axes, **options), description, size)
