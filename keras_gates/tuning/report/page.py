"""The report of a search as HTML: the verdict, the best trials, what helped, what failed."""

import contextlib

from keras_gates import html
from keras_gates.tuning.report import plots, text
from keras_gates.tuning.report.sections import as_html


def block(found):
    """What a notebook shows of a `SearchReport`."""
    inside = as_html(text.paragraphs(found), text.sections(found))
    return html.block(html.element("h3", text.title(found)), *inside)


def write(found, path):
    """Writes a `SearchReport` as a page."""
    html.write(path, text.title(found), _page(found))


def _page(found):
    yield from as_html(text.paragraphs(found), [])
    if html.can_draw():
        yield html.element("div", *_pictures(found), class_="pictures")
    else:
        yield html.without_pictures()
    yield from as_html([], text.sections(found), "h2")
    yield _all(found)


def _all(found):
    """Every trial with all its values, to be unfolded."""
    names = list(dict.fromkeys(name for row in found.trials for name in row))
    header, *rows = text.table(found.trials, names)
    summary = html.element("summary", f"All {len(rows)} trials")
    return html.element("details", summary, html.table(header, rows, words=["reason"]))


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
