"""Numbers for what a recurrent layer computed: saturation, dead units, norms and their growth.

Every figure counts valid steps alone, and needs nothing but NumPy.
"""

import dataclasses
import itertools
import math

import numpy as np

from keras_gates import activations, verdicts
from keras_gates.cells import GRUCell, LSTMCell, SimpleRNNCell
from keras_gates.cells.program import traced
from keras_gates.diagnostics import lyapunov
from keras_gates.equations import NotTraceableError

ALL = "all"  # states together
# In fewer steps a state that fills from zero, and gates that open with it, look like growth.
_GROWTH_STEPS = 16


@dataclasses.dataclass
class GateFigures:
    """Values of one gate.

    Attributes:
        mean, p5, p50, p95: mean and percentiles over samples, steps and units, of the values that
            are finite.
        saturated_low, saturated_high: share of the values within the margin of the lower and
            upper bound of the gate's activation; None where it has no such bound.
        is_share: whether the cell's equations take it for a share, between 0 and 1.
    """

    mean: float
    p5: float
    p50: float
    p95: float
    saturated_low: float | None
    saturated_high: float | None
    is_share: bool = True


@dataclasses.dataclass
class CandidateFigures:
    """Values of the candidate.

    Attributes:
        mean, p5, p50, p95: as of a gate.
        sparsity: share of exact zeros.
        dead_units: indices of the units whose candidate is the same at every step of every
            sample, such as 0 under relu.
    """

    mean: float
    p5: float
    p50: float
    p95: float
    sparsity: float
    dead_units: list


@dataclasses.dataclass
class StateFigures:
    """Values of the hidden state, or of a further one.

    Attributes:
        norm: mean over the valid (sample, step) pairs of the L2 norm over units, of those that
            are finite.
        norm_per_step: the mean at each step over all samples valid there; NaN where none is, or
            one of them has values that are not finite.
        largest: the largest absolute value.
        sparsity: share of exact zeros.
        at_bound: share of the values within the margin of the bounds of the state; None where it
            has no two bounds.
        growth: the norm in the last quarter of the steps over that in the second, both of the
            same samples: of those at least half as long as the longest, and each of its own steps.
            None with fewer than 16.
        first_norm, last_norm: mean over the samples of the norm at the first and the last valid
            step of each.
    """

    norm: float
    norm_per_step: list
    largest: float
    sparsity: float
    at_bound: float | None
    growth: float | None = None
    first_norm: float = math.nan
    last_norm: float = math.nan


@dataclasses.dataclass
class GradientFigures:
    """The gradient dL/dh_t, or that of other states, as it arrives at step t, before it is clipped
    there.

    At later steps it has been clipped already, as in training. L is the loss of one batch: under
    a mean loss each sample's gradient holds a factor 1 / batch size.

    Attributes:
        norm_per_step: mean over the samples valid at each step of the L2 norm of each sample's
            gradient; NaN where none is valid.
        largest: the largest norm of any sample at any step.
        log_slope: change of the log of the norm per step *back* in time, from step to step over
            the samples that are valid at both, by least squares weighted by the number of valid
            samples. exp(log_slope) is the factor per step: below 1 the gradient vanishes, above 1
            it explodes. None with fewer than two steps.
        clipped: share of the valid (sample, step) pairs at which the bound of the layer acts on
            the gradient; None where the layer does not clip it there. (Each state is clipped on
            its own.)
        first_norm, last_norm: as of a state.
    """

    norm_per_step: list
    largest: float
    log_slope: float | None
    clipped: float | None
    first_norm: float = math.nan
    last_norm: float = math.nan


@dataclasses.dataclass
class LayerDiagnosis:
    """The figures of one recurrent layer, or of one cell of a stack.

    Steps are in the order in which the layer reads them: where it reads backwards, the first is the
    last one of the sequence.

    Attributes:
        name: of the layer in the model.
        cell: name of the cell's class.
        backwards: whether the layer reads the sequence backwards (`go_backwards`, or the backward
            layer of a Bidirectional).
        units, samples: sizes.
        steps: how many the longest sample has, without masked ones.
        pairs: number of valid (sample, step) pairs.
        nonfinite: number of values that are not finite, of gates, candidate and states.
        gates: from the name of a gate to its `GateFigures`.
        candidate: `CandidateFigures`, or None of a cell without a candidate.
        states: from the name of a state ("hidden", "cell") to its `StateFigures`.
        gradient: `GradientFigures` of the hidden state, or None.
        gradients: of a cell with several states: from the name of each further one to its
            `GradientFigures`, and from "all" to those of all states together, the hidden one among
            them. Empty otherwise.
        samples_per_step: how many samples have each step.
        lyapunov: the largest Lyapunov exponent on these data, in nats per step; None where it was
            not asked for, or in half precision. In a stack it is that of the whole stack.
        options: what the cell does already against what the findings are about, by the names of
            its arguments; `candidate_bounded` tells of its candidate's values; from
            `keras_gates.check_activations` are `unstable`, why it calls the activations so and what
            helps, or None, and `carry`, see `keras_gates.verdicts.Verdict`.
    """

    name: str
    cell: str
    backwards: bool
    units: int
    samples: int
    steps: int
    pairs: int
    nonfinite: int
    gates: dict
    candidate: CandidateFigures | None
    states: dict
    gradient: GradientFigures | None
    lyapunov: float | None
    options: dict = dataclasses.field(default_factory=dict)
    gradients: dict = dataclasses.field(default_factory=dict)
    samples_per_step: list = dataclasses.field(default_factory=list)

    @property
    def whole_gradient(self):
        """The figures of the gradient of all states, or None."""
        return self.gradients.get(ALL, self.gradient)

    def scalars(self):
        """The figures that are one number, by flat names such as "gated_rnn/update/mean"."""
        found = {}
        for part, figures in [
            *self.gates.items(),
            ("candidate", self.candidate),
            *self.states.items(),
            ("gradient", self.gradient),
            *[(f"gradient_{name}", gradient) for name, gradient in self.gradients.items()],
        ]:
            if figures is None:
                continue
            for field in dataclasses.fields(figures):
                value = getattr(figures, field.name)
                if field.name == "clipped":
                    if figures is self.gradient:
                        found[f"{self.name}/clipped"] = value
                elif field.name == "dead_units":
                    found[f"{self.name}/{part}/dead_share"] = len(value) / self.units
                elif not isinstance(value, (list, bool)):  # whether it is a share is no figure
                    found[f"{self.name}/{part}/{field.name}"] = value
        found[f"{self.name}/lyapunov"] = self.lyapunov
        return {name: float(value) for name, value in found.items() if value is not None}


def of_trace(trace, margin, verdict):
    """The `LayerDiagnosis` of a `Trace`, and of the `Verdict` on its cell."""
    cell, valid = trace.cell, trace.valid
    with np.errstate(all="ignore"):  # what is not finite is counted
        everything = [*trace.activated.values(), *trace.states.values()]
        return LayerDiagnosis(
            name=trace.name,
            cell=type(cell).__name__,
            backwards=trace.backwards,
            units=cell.units,
            samples=valid.shape[0],
            steps=int(valid.sum(axis=1).max(initial=0)),
            pairs=int(valid.sum()),
            nonfinite=sum(int((~np.isfinite(values[valid])).sum()) for values in everything),
            gates={
                name: gate(
                    values[valid],
                    _bounds(cell.gate_activations[name]),
                    margin,
                    _bounds(cell.default_gates()[name])[0] >= 0,
                )
                for name, values in trace.gates.items()
            },
            candidate=None if trace.candidate is None else candidate(trace.candidate[valid]),
            states={
                name: state(values, valid, _state_bounds(cell, name), margin)
                for name, values in trace.states.items()
            },
            gradient=None if trace.gradient is None else gradient(trace.gradient, valid, cell),
            lyapunov=(None if trace.growth is None else lyapunov.exponent(trace.growth, valid)),
            options={**_options(cell), **_judged(verdict)},
            gradients=_of_further(trace.gradients, valid, cell),
            samples_per_step=valid.sum(axis=0).tolist(),
        )


def _options(cell):
    names = ("grad_clip_norm", "grad_clip_value", "activation_l1", "candidate_l1", "initialization")
    output = getattr(cell, "output_activation", None)
    return {
        **{name: getattr(cell, name) for name in names},
        "recurrent_initializer": None
        if cell.recurrent_kernel is None
        else type(cell.recurrent_initializer).__name__.lower(),
        "candidate_activation": activations.name_of(cell.candidate_activation),
        "output_activation": None if output is None else activations.name_of(output),
        "candidate_bounded": bool(np.isfinite(_bounds(cell.candidate_activation)).all()),
    }


def _judged(verdict):
    unstable = [[r.what, r.advice] for r in verdict.reasons if r.level == verdicts.LEVELS[-1]]
    return {
        "unstable": unstable[0] if unstable else None,
        "carry": {state: list(factors) for state, factors in verdict.carry.items()},
    }


def gate(values, bounds, margin, is_share=True):
    """`GateFigures` of values (pairs, units), given the bounds of the gate's activation."""
    low, high = _within_margin(values, bounds, margin)
    return GateFigures(
        *_distribution(values), saturated_low=low, saturated_high=high, is_share=is_share
    )


def candidate(values):
    """`CandidateFigures` of values (pairs, units)."""
    dead = []
    if len(values) > 1:
        dead = np.flatnonzero(values.max(axis=0) == values.min(axis=0)).tolist()
    return CandidateFigures(
        *_distribution(values), sparsity=_share(values == 0, values), dead_units=dead
    )


def state(values, valid, bounds, margin):
    """`StateFigures` of values (samples, time, units)."""
    norms = np.linalg.norm(values.astype("float64"), axis=-1)
    here = values[valid]
    low, high = _within_margin(here, bounds, margin)
    first, last = _at_ends(norms, valid)
    return StateFigures(
        norm=_mean(norms[valid & np.isfinite(norms)]),
        norm_per_step=_mean_per_step(norms, valid),
        largest=float(np.abs(here).max()) if here.size else math.nan,
        sparsity=_share(here == 0, here),
        at_bound=None if low is None or high is None else low + high,
        growth=_growth(norms, valid),
        first_norm=first,
        last_norm=last,
    )


def _clipped_states(cell):
    """The further states whose gradient the equations of a cell clip, as far as they are known."""
    try:
        outputs = traced(cell)[1].outputs
    except NotTraceableError:
        return []
    return [name for name, value in outputs if value.operation == "clip_gradient"]


def gradient(values, valid, cell=None):
    """`GradientFigures` of gradients (samples, time, units); with the share that is clipped of
    those of a state that `cell` clips."""
    values = values.astype("float64")  # so that squares of exploded gradients do not overflow
    norms = np.linalg.norm(values, axis=-1)
    first, last = _at_ends(norms, valid)
    clipped = None
    if cell is not None and cell.clips and cell.grad_clip_at == "state":
        if cell.grad_clip_norm is not None:
            acts = norms > cell.grad_clip_norm
        else:
            acts = (np.abs(values) > cell.grad_clip_value).any(axis=-1)
        clipped = _share(acts[valid], norms[valid])
    return GradientFigures(
        norm_per_step=_mean_per_step(norms, valid),
        largest=float(norms[valid].max()) if valid.any() else math.nan,
        log_slope=_log_slope_back(_log_level(norms, valid), valid.sum(axis=0)),
        clipped=clipped,
        first_norm=first,
        last_norm=last,
    )


def _of_further(gradients, valid, cell):
    """See `LayerDiagnosis.gradients`."""
    if len(gradients) < 2:
        return {}
    clipped = _clipped_states(cell)
    found = {
        name: gradient(values, valid, cell if name in clipped else None)
        for name, values in [*gradients.items()][1:]
    }
    return {**found, ALL: gradient(np.concatenate([*gradients.values()], axis=-1), valid)}


def _within_margin(values, bounds, margin):
    """The shares of `values` near the lower and the upper bound; None at an infinite one.

    Near is closer than `margin` times the range, or, where that is infinite, than `margin`.
    """
    lower, upper = bounds
    near = margin * (upper - lower) if math.isfinite(upper - lower) else margin
    return (
        _share(values <= lower + near, values) if math.isfinite(lower) else None,
        _share(values >= upper - near, values) if math.isfinite(upper) else None,
    )


def _at_ends(values, valid):
    """The means over samples of (samples, time) at the first and the last valid step of each."""
    samples = np.flatnonzero(valid.any(axis=1))
    first = valid[samples].argmax(axis=1)
    last = valid.shape[1] - 1 - valid[samples, ::-1].argmax(axis=1)
    return _mean(values[samples, first]), _mean(values[samples, last])


def _mean_per_step(values, valid):
    """The mean over samples of (samples, time), where valid; NaN at a step without a sample."""
    total = np.where(valid, values, 0).sum(axis=0)
    count = valid.sum(axis=0)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan).tolist()


def _growth(norms, valid):
    """See `StateFigures.growth`."""
    lengths = valid.sum(axis=1)
    longest = lengths.max(initial=0)
    if longest < _GROWTH_STEPS:
        return None
    before = last = 0.0
    for sample in np.flatnonzero(lengths >= max(_GROWTH_STEPS, longest / 2)):
        own = norms[sample, valid[sample]]
        quarter = len(own) // 4
        before += own[quarter : 2 * quarter].mean()
        last += own[-quarter:].mean()
    return float(last / before) if before > 0 and np.isfinite(last) else None


def _log_level(norms, valid):
    """The log of the norm at each step, up to a constant; NaN where it is not known.

    From a step to the one before only samples that are valid at both count: the last steps of a
    padded batch are those of the longest sequences alone.
    """
    levels = np.full(norms.shape[1], np.nan)
    steps = np.flatnonzero(np.where(valid, norms, 0).sum(axis=0) > 0)
    for later, t in itertools.pairwise([None, *steps[::-1]]):
        both = valid[:, t] & valid[:, later] if later is not None else np.zeros(0, bool)
        known = 0.0 if later is None else levels[later]
        if both.any():
            with np.errstate(all="ignore"):
                known += np.log(norms[both, t].mean()) - np.log(norms[both, later].mean())
        levels[t] = known
    return levels


def _log_slope_back(levels, weights):
    """The slope of `levels` per step back in time, by weighted least squares; or None."""
    weights = np.asarray(weights, "float64")
    used = np.isfinite(levels) & (weights > 0)
    if used.sum() < 2:
        return None
    t, y, w = np.flatnonzero(used), levels[used], weights[used] / weights[used].sum()
    t = t - (w * t).sum()
    return float(-(w * t * (y - (w * y).sum())).sum() / (w * t * t).sum())


def _state_bounds(cell, name):
    """The bounds of a state that starts at 0, as far as the equations are known here.

    The state of a GRU with gates in [0, 1] is a mean of candidates, and that of a simple RNN is
    the candidate; an LSTM's hidden state is its output activation times a gate.
    """
    unbounded = (-math.inf, math.inf)
    if name != "hidden" or not isinstance(cell, (GRUCell, LSTMCell, SimpleRNNCell)):
        return unbounded
    gates = [_bounds(activation) for activation in cell.gate_activations.values()]
    if any(lower < 0 or upper > 1 for lower, upper in gates):
        return unbounded
    return _bounds(
        cell.output_activation if isinstance(cell, LSTMCell) else cell.candidate_activation
    )


def _bounds(activation):
    """The lower and upper bound of an activation's values, maybe infinite."""
    try:
        profile = activations.profile(activation)
    except ValueError:  # not elementwise: a softmax over the units
        return -math.inf, math.inf
    return profile.lower, profile.upper


def _distribution(values):
    """Mean and 5th, 50th and 95th percentile of the values that are finite."""
    values = values[np.isfinite(values)]
    if not values.size:
        return (math.nan,) * 4
    percentiles = np.percentile(values, [5, 50, 95])
    return float(values.mean(dtype="float64")), *map(float, percentiles)


def _share(condition, values):
    """The share of the values that meet a condition, of those that are not NaN; NaN without any."""
    known = condition[~np.isnan(values)]
    return float(known.mean()) if known.size else math.nan


def _mean(values):
    return float(values.mean()) if values.size else math.nan
