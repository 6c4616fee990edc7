"""Pictures of activations, verdicts and of what a model computes. Each takes and returns `axes`.

What shows a trace takes the list that `traces` returns as well: an axes for each of its layers.
The colours are those of Okabe and Ito, and line styles and letters say the same, so that the
pictures can be read in print and by the colour-blind. Time runs in the order in which a layer
reads; where that is backwards, the axis says so. Distributions and means over samples are drawn for
steps that at least 5% of the samples have. matplotlib is needed:
`pip install "keras_gates[plots]"`.
"""

import functools
import inspect
import itertools
import typing
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from keras_gates import activations, verdicts
from keras_gates.cells import GatedCell
from keras_gates.diagnostics.trace import Trace
from keras_gates.progress import bar, check_verbose
from keras_gates.types import Activation, CellName, Verbose
from keras_gates.validation import (
    close_matches,
    invalid,
    one_of,
    positive_integer,
    positive_number,
    share,
)
from keras_gates.verdicts import LEVELS

BLUE, _ORANGE, _GREEN, RED, _PURPLE, _BLACK = (
    "#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#000000",
)  # fmt: skip
_STYLES = [(BLUE, "-"), (RED, "--"), (_GREEN, "-."), (_ORANGE, ":"), (_PURPLE, "-"), (_BLACK, "--")]
_LEVEL_COLORS = dict(zip(LEVELS, ("#009E73", "#F0E442", "#D55E00"), strict=True))

# Lines end where fewer than this share of the samples are left: what they do says little of others.
FEW = 0.05

_Plot = typing.TypeVar("_Plot", bound=Callable)


def _each(plot: _Plot) -> _Plot:
    """`plot`, which shows one trace on one axes, for a list of them on as many axes too."""
    signature = inspect.signature(plot)

    @functools.wraps(plot)
    def plotted(*args, **kwargs):
        try:
            given = signature.bind(*args, **kwargs).arguments
        except TypeError as error:
            raise TypeError(f"{plot.__name__}: {error}") from None
        traces, axes = given.pop("trace"), given.pop("axes", None)
        if not isinstance(traces, (list, tuple)):
            return plot(traces, axes=axes, **given)
        if len(traces) == 1 and not isinstance(axes, (list, tuple, np.ndarray)):
            return plot(traces[0], axes=axes, **given)
        # Of layers of several kinds those that have such a gate, if any does.
        having = [t for t in traces if given.get("gate") in _checked(t).activated]
        traces = having if "gate" in given and having else traces
        axes = panels(axes, "trace", [trace.name for trace in traces])
        for trace, panel in zip(traces, axes, strict=True):
            plot(trace, axes=panel, **given)
        return axes

    return typing.cast(_Plot, plotted)


def plot_activation(activation: Activation, axes: Any = None, *, reach: float = 4.0) -> Any:
    """An activation and its slope for inputs in [-reach, reach].

    Args:
        activation: a name or an elementwise function.
        axes: of matplotlib; new ones by default.
        reach: how far to both sides of 0.

    Returns:
        The axes.

    >>> axes = keras_gates.diagnostics.plot_activation("hard_sigmoid")
    """
    positive_number("reach", reach)
    axes = axes_or_new(axes)
    function = activations.get(activation, "activation", warn=False)
    found = activations.profile(function)
    x = np.linspace(-reach, reach, 801)
    y = activations.values(function, x)
    axes.plot(x, y, color=BLUE, label=found.name)
    axes.plot(x, np.gradient(y, x), color=RED, ls="--", label="slope")
    for bound in (found.lower, found.upper):
        if np.isfinite(bound):
            axes.axhline(bound, color=_BLACK, lw=0.6, ls=":")
    axes.set(xlabel="pre-activation", ylabel="value, slope", title=found.name)
    axes.legend(frameon=False)
    return axes


@_each
def plot_gate(trace: Trace | Sequence[Trace], gate: str, axes: Any = None) -> Any:
    """The distribution of a gate's values over time: median, and bands of 50% and 90%.

    Args:
        trace: what `keras_gates.diagnostics.traces` returns, or one of it.
        gate: the name of a gate, or "candidate". Of a list the layers that have it are shown.
        axes: of matplotlib; new ones by default.

    Returns:
        The axes; an array of them, one for each layer, if several are shown.

    Source: the reports of Kaldi's nnet3 show percentiles of gates likewise.
    """
    trace = _checked(trace)
    values = _valid(trace, _activated(trace, gate))
    axes = axes_or_new(axes)
    low, lower, middle, upper, high = _quietly(
        np.nanpercentile, values, [5, 25, 50, 75, 95], axis=(0, 2)
    )
    t = np.arange(len(middle))
    axes.fill_between(t, low, high, color=BLUE, alpha=0.2, lw=0, label="90% of the values")
    axes.fill_between(t, lower, upper, color=BLUE, alpha=0.4, lw=0, label="50%")
    axes.plot(t, middle, color=BLUE, label="median")
    name = _name(trace.cell, gate)
    axes.set(xlabel=_time(trace), ylabel=gate, title=f"{trace.name}: {gate} ({name})")
    _legend_above(axes, rows=1, columns=3)
    return axes


@_each
def plot_saturation(
    trace: Trace | Sequence[Trace], gate: str, axes: Any = None, *, margin: float = 0.05
) -> Any:
    """How often each unit of a gate is saturated at each time step: units x time.

    Args:
        trace: what `keras_gates.diagnostics.traces` returns, or one of it.
        gate: the name of a gate, or "candidate"; its activation must be bounded. Of a list the
            layers that have it are shown.
        axes: of matplotlib; new ones by default.
        margin: a value is saturated within this share of the range from a bound.

    Returns:
        The axes; an array of them, one for each layer, if several are shown.
    """
    trace = _checked(trace)
    values = _valid(trace, _activated(trace, gate))
    found = activations.profile(_activation(trace.cell, gate))
    if not found.bounded:
        raise ValueError(
            f"`gate` must have a bounded activation, whose values can be saturated. Received: "
            f"gate={gate!r}, with {found.name}"
        )
    margin = share("margin", margin)
    axes = axes_or_new(axes)
    span = margin * (found.upper - found.lower)
    saturated = (values <= found.lower + span) | (values >= found.upper - span)
    saturated = np.where(np.isnan(values), np.nan, saturated)
    shares = _quietly(np.nanmean, saturated, axis=0).T
    order = np.argsort(_quietly(np.nanmean, shares, axis=1))
    image = axes.imshow(
        shares[order], aspect="auto", origin="lower", cmap="cividis", vmin=0, vmax=1,
        interpolation="nearest",
    )  # fmt: skip
    axes.figure.colorbar(image, ax=axes, label="share of samples saturated")
    axes.set(
        xlabel=_time(trace),
        ylabel="unit, least saturated first",
        title=f"{trace.name}: saturation of {gate}",
    )
    return axes


def plot_gradient_norms(
    traces: Trace | Sequence[Trace] | Mapping[str, Trace], axes: Any = None
) -> Any:
    """The norm of dL/dh_t over time, mean over the samples.

    Args:
        traces: what `keras_gates.diagnostics.traces` returns of targets `y`, or one of it; or from
            labels to such traces, such as of one layer with and without clipping.
        axes: of matplotlib; new ones by default.

    Returns:
        The axes.

    Source: Pascanu, Mikolov, Bengio, "On the difficulty of training recurrent neural networks",
    2013.
    """
    if isinstance(traces, Trace):
        traces = [traces]
    if isinstance(traces, (list, tuple)):
        labels = [_checked(trace).name for trace in traces]
        if len(set(labels)) < len(labels):  # of several models
            labels = [f"{i}: {label}" for i, label in enumerate(labels)]
        traces = dict(zip(labels, traces, strict=True))
    if not isinstance(traces, Mapping) or not traces:
        raise ValueError(
            "`traces` must be a trace, a list of them as `keras_gates.diagnostics.traces` returns, "
            f"or a dict from labels to traces. Received: {traces!r:.80}"
        )
    axes = axes_or_new(axes)
    for (label, trace), (color, style) in zip(traces.items(), _styles(len(traces)), strict=True):
        if _checked(trace).gradient is None:
            raise ValueError(
                f"`traces` must hold gradients, and {label!r} has none: give `y` to `traces`."
            )
        norms = np.linalg.norm(_valid(trace, trace.gradient), axis=2)
        axes.plot(_quietly(np.nanmean, norms, axis=0), color=color, ls=style, label=label)
    axes.set(
        yscale="log", xlabel=_time(*traces.values()), ylabel="mean norm of dL/dh",
        title="gradient norms",
    )  # fmt: skip
    axes.legend(frameon=False)
    return axes


@_each
def plot_states(
    trace: Trace | Sequence[Trace],
    axes: Any = None,
    *,
    sample: int = 0,
    state: str = "hidden",
    units: int = 6,
) -> Any:
    """Trajectories of a state of some units, for one sample.

    Args:
        trace: what `keras_gates.diagnostics.traces` returns, or one of it.
        axes: of matplotlib; new ones by default.
        sample: the index of the sample.
        state: "hidden", or another of the cell's states.
        units: how many units, those that move most.

    Returns:
        The axes; an array of them, one for each layer, if several are shown.
    """
    trace = _checked(trace)
    one_of("state", state, trace.states)
    count = len(trace.valid)
    index = isinstance(sample, (int, np.integer)) and not isinstance(sample, bool)
    if not index or not -count <= sample < count:
        raise invalid("sample", f"the index of one of the {count} samples", sample)
    values = np.where(trace.valid[sample, :, None], trace.states[state][sample], np.nan)
    axes = axes_or_new(axes)
    moving = np.argsort(-_quietly(np.nanvar, values, axis=0))[: positive_integer("units", units)]
    styles = _styles(len(moving))
    for unit, (color, style) in zip(moving, styles, strict=True):
        axes.plot(values[:, unit], color=color, ls=style, lw=1, label=f"unit {unit}")
    axes.set(xlabel=_time(trace), ylabel=f"{state} state", title=f"{trace.name}: sample {sample}")
    _legend_above(axes, rows=-(-len(moving) // 3), columns=3)
    return axes


def plot_verdicts(
    cell: CellName | str | type[GatedCell],
    gates: Sequence[Activation],
    candidates: Sequence[Activation],
    axes: Any = None,
    *,
    outcomes: Mapping | None = None,
    verbose: Verbose = "auto",
) -> Any:
    """The verdict on every pair of activations: gates x candidates, S, C or U and a colour.

    The legend tells what letters and colours are.

    Args:
        cell: "gru", "lstm", "simple", or a subclass of `GatedCell`.
        gates: names of gate activations; None for a cell without gates.
        candidates: names of candidate activations.
        axes: of matplotlib; new ones by default.
        outcomes: from (gate, candidate) to a short text to show below the letter, such as what
            training came to.
        verbose: 1 for a bar of the pairs that are judged, 0 for none; "auto" for one on a terminal
            and in a notebook, of a grid that takes more than two seconds.

    Returns:
        The axes.
    """
    for argument, names in (("gates", gates), ("candidates", candidates)):
        listed = not isinstance(names, str) and hasattr(names, "__iter__")
        if not (listed or (names is None and argument == "gates")):
            raise invalid(argument, "a list of activations", names)
    if not (outcomes is None or isinstance(outcomes, Mapping)):
        raise invalid("outcomes", "a dict from (gate, candidate) to a text", outcomes)
    check_verbose(verbose)
    axes = axes_or_new(axes)
    rows, candidates = [None] if gates is None else list(gates), list(candidates)
    with bar(len(rows) * len(candidates), verbose, "pair", patience=2.0) as advance:
        for (row, gate), (column, candidate) in itertools.product(
            enumerate(rows), enumerate(candidates)
        ):
            given = {"gate_activation": gate, "candidate_activation": candidate}
            level = verdicts.judge(verdicts.make(cell, 1, given)).level
            advance()
            axes.add_patch(_of_level(column, row, level))
            text = level[0].upper()
            if outcomes is not None:
                text += f"\n{outcomes.get((gate, candidate), '')}"
            axes.text(column, row, text, ha="center", va="center", fontsize=7)
    axes.set(xlim=(-0.5, len(candidates) - 0.5), ylim=(len(rows) - 0.5, -0.5))
    axes.set_xticks(range(len(candidates)), candidates, rotation=45, ha="right")
    axes.set_yticks(range(len(rows)), ["no gates" if gate is None else gate for gate in rows])
    title = cell if isinstance(cell, str) else cell.__name__
    axes.set(xlabel="candidate", ylabel="gate", title=f"{title}: verdicts")
    axes.legend(
        [_of_level(0, 0, level) for level in LEVELS],
        [f"{level[0].upper()}: {level}" for level in LEVELS],
        loc="lower left", bbox_to_anchor=(0, 1.08), ncols=len(LEVELS), frameon=False,
        fontsize="small", borderaxespad=0,
    )  # fmt: skip
    return axes


def _legend_above(axes, rows, columns):
    """A legend in room of its own above the curves."""
    low, high = axes.get_ylim()
    axes.set_ylim(low, high + 0.1 * rows * (high - low))
    axes.legend(loc="upper center", ncols=columns, frameon=False, fontsize="small")


def axes_or_new(axes):
    if isinstance(axes, (list, tuple, np.ndarray)):
        raise TypeError(f"`axes` must be one of matplotlib's. Received: axes={axes!r}")
    return panels(None, "axes", [""])[0] if axes is None else _checked_axes(axes)


def _checked_axes(axes):
    for one in np.ravel(np.asarray(axes, "object")):
        if not hasattr(one, "fill_between"):
            raise TypeError(
                f"`axes` must be of matplotlib, as plt.subplots() gives. Received: {one!r}"
            )
    return axes


def panels(axes, of, names):
    """An array of axes, the given ones or new ones, one for each of the names."""
    try:
        import matplotlib.pyplot as plt
    except ImportError as error:
        raise ImportError('Plots need matplotlib: pip install "keras_gates[plots]"') from error
    if not names:
        raise ValueError(f"`{of}` must hold at least one. Received: an empty list")
    if axes is None:
        width, height = plt.rcParams["figure.figsize"]
        size = (width * len(names), height)
        axes = plt.subplots(1, len(names), figsize=size, squeeze=False, layout="constrained")[1]
    axes = np.ravel(np.asarray(_checked_axes(axes), "object"))
    if len(axes) != len(names):
        raise ValueError(
            f"`axes` must have one for each {of}, {', '.join(names)}. Received: {len(axes)}"
        )
    return axes


def _of_level(column, row, level):
    return square(column, row, facecolor=_LEVEL_COLORS[level], edgecolor="white", alpha=0.8)


def square(column, row, **style):
    from matplotlib.patches import Rectangle

    return Rectangle((column - 0.5, row - 0.5), 1, 1, **style)


def _styles(count):
    return [_STYLES[i % len(_STYLES)] for i in range(count)]


def _activated(trace, name):
    if not isinstance(name, str) or name not in trace.activated:
        raise ValueError(
            f"`gate` must be one of {', '.join(map(repr, trace.activated))}, which is what the "
            f"{type(trace.cell).__name__} of {trace.name!r} has. Received: gate={name!r}"
            f"{close_matches(name, trace.activated)}"
        )
    return trace.activated[name]


def _checked(trace: Any) -> Trace:
    if not isinstance(trace, Trace):
        raise TypeError(
            "`trace` must be one of those in the list of keras_gates.diagnostics.traces(model, x). "
            f"Received: {type(trace).__name__}"
        )
    return trace


def _time(*traces):
    """The label of the time axis."""
    return "time step, in reading order" if any(t.backwards for t in traces) else "time step"


def _activation(cell, name):
    return cell.gate_activations.get(name, cell.candidate_activation)


def _name(cell, name):
    return activations.profile(_activation(cell, name)).name


def _valid(trace, values):
    """The values with NaN at masked steps, and at those that few samples have."""
    shown = trace.valid & (trace.valid.mean(axis=0) >= FEW)
    return np.where(shown[:, :, None], values, np.nan)


def _quietly(function, values, *args, **kwargs):
    """`function` of values, of which some steps may have none: no line is drawn there."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "(All-NaN|Mean of empty|Degrees of freedom)")
        return function(values, *args, **kwargs)
