"""A diagnosis as HTML: what was found and what to do, and the figures of each layer."""

import numpy as np

from keras_gates import html
from keras_gates.diagnostics.plots import BLUE, FEW, RED
from keras_gates.diagnostics.text import BACKWARDS, ends, exponent, gradients, summary, tables

_STYLES = ((BLUE, "-"), (RED, "--"))


def block(found):
    """What a notebook shows of a `Diagnosis`."""
    title = html.element("h3", f"Diagnosis of {found.model!r}")
    return html.block(title, *_findings(found), *_layers(found, pictures=False))


def write(found, path):
    """Writes a `Diagnosis` as a page."""
    html.write(path, f"Diagnosis of {found.model!r}", _page(found))


def _page(found):
    yield html.element("h2", "Findings")
    yield from _findings(found)
    yield from _layers(found, pictures=True)


def _findings(found):
    if not found.findings:
        yield html.element("p", "Nothing was found that needs to be done.")
    for one in found.findings:
        what = html.joined([html.element("b", one.layer), f": {one.what}."])
        yield html.finding(one.severity, what, one.advice)


def _layers(found, pictures):
    for layer in found.layers:
        yield html.element("h2" if pictures else "h3", layer.name)
        yield html.element("p", summary(layer))
        if layer.backwards:
            yield html.element("p", f"It {BACKWARDS}.")
        for rows in tables(layer):
            # Empty ones only keep the columns of the text below each other.
            shown = [i for i, name in enumerate(rows[0]) if name or i == 0]
            header, *rows = [[row[i] for i in shown] for row in rows]
            yield html.table(header, rows)
        if layer.lyapunov is not None:
            yield html.element("p", f"{exponent(layer)}.")
        if pictures and html.can_draw():
            yield html.element("div", *_pictures(layer), class_="pictures")
    if any(layer.gates for layer in found.layers):
        yield html.element("p", ends(found), class_="faint")
    if pictures and not html.can_draw():
        yield html.without_pictures()


def _pictures(layer):
    distributions = {**layer.gates}
    if layer.candidate:
        distributions["candidate"] = layer.candidate
    if distributions:
        yield html.picture(
            lambda axes: _draw_distributions(axes, distributions),
            f"{layer.name}: median and 90% of the values of {', '.join(distributions)}",
        )
    states = {name: _known(layer, state.norm_per_step) for name, state in layer.states.items()}
    for what, norms in (("state", states), ("gradient", _gradient(layer))):
        if any(np.isfinite(line).any() for line in norms.values()):
            yield html.picture(
                lambda axes, what=what, norms=norms: _draw_norms(axes, norms, what),
                f"{layer.name}: mean norm of the {what} at each time step",
            )


def _known(layer, per_step):
    """Means per step; NaN at steps that few samples have, whose mean is another population's."""
    few = np.array(layer.samples_per_step) < FEW * layer.samples
    return np.where(few, np.nan, np.array(per_step, "float64"))


def _gradient(layer):
    found = {}
    for name, figures in gradients(layer).items():
        norms = _known(layer, figures.norm_per_step)
        found[name] = np.where(norms > 0, norms, np.nan)  # for a logarithmic axis
    return found


def _draw_distributions(axes, distributions):
    """Of each gate and the candidate the median, and the range of 90% of the values."""
    for row, figures in enumerate(distributions.values()):
        axes.plot(
            [figures.p5, figures.p95],
            [row, row],
            color=BLUE,
            lw=8,
            solid_capstyle="butt",
            alpha=0.4,
        )
        axes.plot([figures.p50], [row], color=RED, marker="|", ms=16, mew=3)
    axes.set_yticks(range(len(distributions)), list(distributions))
    axes.set(ylim=(len(distributions) - 0.5, -0.5), title="values: median, and 90% of them")
    axes.grid(axis="x", alpha=0.3)


def _draw_norms(axes, lines, what):
    for (name, norms), (color, style) in zip(lines.items(), _STYLES * len(lines), strict=False):
        marker = "o" if len(norms) == 1 else None  # of one point no line is seen
        axes.plot(norms, color=color, ls=style, marker=marker, label=name)
    axes.set(xlabel="time step, in reading order", title=f"mean norm of the {what}")
    if what == "gradient":
        axes.set_yscale("log")
    if len(lines) > 1:
        axes.legend(framealpha=0.8, fontsize="small")
    axes.grid(alpha=0.3)
