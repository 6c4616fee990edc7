"""What the figures of a layer mean, and what to do about it."""

import dataclasses
import math

import numpy as np

from keras_gates.diagnostics import weights
from keras_gates.diagnostics.finite import at_fault

SEVERITIES = ("error", "warning", "note")

# A gate with more than this share of its values at one end mostly does one thing. (Karpathy,
# Johnson, Fei-Fei, "Visualizing and understanding recurrent networks", 2015, tell the roles of
# LSTM gates by how often they are saturated at either end.)
_SATURATED, _PUT_THERE = 0.5, 0.9
# A gate whose values, but for 5% at either side, stay inside has neither closed nor opened.
_UNDECIDED = (0.25, 0.75)
# Dead units cost time and memory for nothing; a few are usual under relu.
_DEAD = 0.1
# A candidate with more zeros than this leaves little for the state to take up.
_SPARSE = 0.9
# The norm of a bounded state settles. From the second quarter of the steps to the last that of an
# LSTM's cell state which adds up its inputs, as it may, grows 2.3 times; more is growth by a factor
# per step.
_STATE_GROWTH = 3.0
# More than this share of a state at its bound passes no gradient on through most units.
_AT_BOUND = 0.5
# The gradient at the first step against that at the last: 1e-3 is lost beside the others in the
# sum over steps, and 1e3 outshouts them. (Pascanu, Mikolov, Bengio, "On the difficulty of training
# recurrent neural networks", 2013.)
_VANISHED, _EXPLODED = 1e-3, 1e3
# A bound that acts on most pairs sets the size of the gradient instead of stopping explosions.
_CLIPPED = 0.5
# Nats per step: differences double within 7 steps above, and fall to 5% within 6 steps below.
_CHAOTIC, _FORGETFUL = 0.1, -0.5
_FALLEN = math.log(20)  # to 5%


@dataclasses.dataclass
class Finding:
    """One thing that the figures show.

    Attributes:
        severity: "error" (the model is broken), "warning" (it will train badly) or "note".
        layer: name of the layer; "x", "y" or "sample_weight", of the data; or "weights".
        what: what was found, with its figure.
        advice: what to do.
    """

    severity: str
    layer: str
    what: str
    advice: str

    def __str__(self):
        return f"{self.severity}: {self.layer}: {self.what}. {self.advice}"


def of_layers(layers, left_out=(), data=None, model=None):
    """All findings of a list of `LayerDiagnosis`, the most severe first.

    Args:
        layers: the list.
        left_out: (name, reason) of layers of which there is none.
        data: what the model was run on, by argument; None if that is not to be named.
        model: it, whose weights are looked at; None if they are not to be.
    """
    found = []
    if any(map(_is_broken, layers)):
        found = [*_in_weights(model), *_in_data(model, data)]
    for layer in layers:
        # What is computed from the other numbers of a layer that has NaN says little.
        for rule in (nonfinite, verdict) if layer.nonfinite else _RULES:
            found += [Finding(severity, layer.name, *rest) for severity, *rest in rule(layer)]
    for name, reason in left_out:
        advice = "Write its equations as a keras_gates.GatedCell to see inside."
        found.append(Finding("note", name, f"not looked into, because {reason}", advice))
    return sorted(found, key=lambda finding: SEVERITIES.index(finding.severity))


def _is_broken(layer):
    return next(nonfinite(layer), None) is not None


def _in_weights(model):
    """Whose values are not finite, of which nothing that is computed is, then."""
    bad = [] if model is None else [name for name, *_ in weights.nonfinite(model)]
    if bad:
        yield Finding(
            "error",
            "weights",
            f"NaN or infinite in {len(bad)} of {len(model.weights)}, the first {bad[0]!r}",
            "An earlier update of them was not finite. Load weights from before it, and look at "
            "these data with them; keras_gates.diagnostics.locate_nonfinite(model, x, y, "
            "replay_epochs=5) trains a copy to find where it begins.",
        )


def _in_data(model, data):
    """What is not finite in the data, of which much that is computed is not, then."""
    for bad in at_fault(model, **data).values() if data else ():
        advice = "Clean the data; masked steps need finite values too."
        yield Finding("error", bad.argument, str(bad), advice)


# ---------------------------------------------------------------------- the rules


def nonfinite(layer):
    if layer.nonfinite:
        yield (
            "error",
            f"{layer.nonfinite} values are NaN or infinite",
            "keras_gates.diagnostics.locate_nonfinite(model, x, y) finds the first of them.",
        )
    if layer.gradient and not np.isfinite(layer.whole_gradient.largest):
        yield (
            "error",
            f"the gradient {_of_what(layer)} is not finite",
            "keras_gates.diagnostics.locate_nonfinite(model, x, y) finds where it begins.",
        )


def verdict(layer):
    if layer.options["unstable"]:
        what, advice = layer.options["unstable"]
        yield "warning", f"its activations are unstable: {what}", advice


def gates(layer):
    undecided = [
        name
        for name, gate in layer.gates.items()
        if _UNDECIDED[0] < gate.p5 and gate.p95 < _UNDECIDED[1]
    ]
    if undecided:
        yield (
            "note",
            f"neither near 0 nor near 1: {', '.join(undecided)}, with 90% of the values "
            f"between {_UNDECIDED[0]} and {_UNDECIDED[1]}",
            "Usual before training. Afterwards it says that a gate is not used: a cell with fewer "
            "gates may do.",
        )
    for name, gate in layer.gates.items():
        if gate.p5 < 0 and gate.is_share:
            yield (
                "warning",
                f"the {name} gate is negative: 5% of its values are below {gate.p5:.2g}",
                "A negative gate turns the sign of what it multiplies. Use an activation with "
                "values in [0, 1], such as hard_sigmoid.",
            )
        if gate.p95 > 1:
            yield (
                "warning",
                f"the {name} gate exceeds 1: 5% of its values are above {gate.p95:.2g}",
                "Such a gate multiplies the state at every step. Use an activation with values in "
                "[0, 1], such as hard_sigmoid; clipping gradients does not help against this.",
            )
        ends = {"low": gate.saturated_low, "high": gate.saturated_high}
        for end, share in ends.items():
            # An initialization puts gates near their ends, so that units remember.
            put = layer.options["initialization"] is not None and gate.is_share
            if share is not None and share > (_PUT_THERE if put else _SATURATED):
                if None in ends.values():
                    advice = (
                        "Use an activation that is bounded on both sides: one such as relu is at "
                        "its end for half of the inputs."
                    )
                else:
                    advice = (
                        "Begin with smaller weights or another bias, scale the inputs, or take an "
                        "activation with slower tails, such as softsign_gate."
                    )
                yield (
                    "warning",
                    f"the {name} gate is saturated at its {end} end for {share:.0%} of its values",
                    f"It hardly learns there. {advice}",
                )


def candidates(layer):
    figures = layer.candidate
    if figures is None:
        return
    dead = len(figures.dead_units)
    if dead:
        yield (
            "warning" if dead > _DEAD * layer.units else "note",
            f"{dead} of {layer.units} units are dead: their candidate never changes",
            _either(
                "lower the learning rate",
                *_lower_penalties(layer),
                "begin with a positive bias",
                layer.options["candidate_activation"] not in ("leaky_relu", "elu")
                and "use leaky_relu or elu as candidate_activation",
            ),
        )
    if figures.sparsity > _SPARSE and dead < layer.units:
        yield (
            "warning",
            f"{figures.sparsity:.0%} of the candidate's values are zero",
            _either(
                *_lower_penalties(layer),
                "give the layer more units: a relu candidate needs about twice as many as tanh",
            ),
        )


def states(layer):
    for name, figures in layer.states.items():
        if figures.growth is not None and figures.growth > _STATE_GROWTH:
            yield (
                "warning",
                f"the {name} state grows with time: by a factor of {figures.growth:.3g} from the "
                "second quarter of the steps to the last",
                "Longer sequences will grow further. "
                + _either(
                    *_keep_gates(layer),
                    not layer.options["candidate_bounded"] and "take a bounded candidate",
                    layer.options["recurrent_initializer"] is not None
                    and "keep the recurrent kernel small (recurrent_regularizer or _constraint)",
                    "see how far it goes on the longest sequences that there will be",
                ),
            )
        # Where a state is carried on beside its activation, as a GRU's is, one at its bound may be
        # just what is remembered.
        alone = layer.options["carry"][name] == [0, 0]
        if alone and figures.at_bound is not None and figures.at_bound > _AT_BOUND:
            yield (
                "warning",
                f"{figures.at_bound:.0%} of the {name} state is at its bound",
                _through_the_bound(layer)
                + _either(
                    "scale the inputs down",
                    "begin with smaller weights",
                    _slower_tails(layer),
                ),
            )


def gradients(layer):
    figures = layer.whole_gradient
    if figures is None:
        return
    if figures.log_slope is not None:
        factor = math.exp(min(figures.log_slope, 700.0))
        over = figures.log_slope * (layer.steps - 1)
        # What a layer behind sends may be uneven in time as well. It is this layer's own doing
        # where the exponent of its recurrence has the same sign.
        own = layer.lyapunov is None or layer.lyapunov * figures.log_slope > 0
        if own and over < math.log(_VANISHED):
            yield (
                "warning",
                f"the gradient {_of_what(layer)} vanishes: by a factor of {factor:.3g} per step "
                f"back, {_power(over)} over {layer.steps} steps",
                "Early steps are hardly learned from. "
                + _either(*_keep_gates(layer), *_remember(layer), "begin with shorter sequences"),
            )
        elif own and over > math.log(_EXPLODED):
            yield (
                "warning",
                f"the gradient {_of_what(layer)} explodes: by a factor of {factor:.3g} per step "
                f"back, {_power(over)} over {layer.steps} steps",
                _either(_clip(layer), *_keep_gates(layer), _shrink(layer)),
            )
    clipped = layer.gradient.clipped
    if clipped is not None and clipped > _CLIPPED:
        yield (
            "note",
            f"clipping acts on {clipped:.0%} of the (sample, step) pairs",
            "The bound sets the size of the gradient rather than stopping explosions: raise it, "
            "or take it for a learning rate.",
        )
    if figures.largest == 0:
        yield (
            "warning",
            "no gradient reaches the state",
            "The loss does not depend on this layer, or what is behind it is dead.",
        )


def exponents(layer):
    if layer.lyapunov is None or not math.isfinite(layer.lyapunov):
        return
    if layer.lyapunov > _CHAOTIC:
        yield (
            "warning",
            f"the Lyapunov exponent is {layer.lyapunov:.2g} nats per step: a difference doubles "
            f"in {math.log(2) / layer.lyapunov:.2g} steps",
            "The recurrence is chaotic or explodes, and gradients explode with it. "
            + _either(_shrink(layer), *_keep_gates(layer), _clip(layer)),
        )
    steps = _FALLEN / abs(layer.lyapunov) if layer.lyapunov else math.inf
    if layer.lyapunov < _FORGETFUL and steps < layer.steps / 2:
        yield (
            "note",
            f"the Lyapunov exponent is {layer.lyapunov:.2g} nats per step: of a difference 5% is "
            f"left after {max(1, math.ceil(steps))} steps",
            "The layer forgets within that many. Should it remember longer? "
            + _either(*_keep_gates(layer), *_remember(layer), "give it more units"),
        )


_RULES = (nonfinite, verdict, gates, candidates, states, gradients, exponents)


# ---------------------------------------------------------------------- what is not done yet


def _either(*parts):
    """A sentence of those that apply."""
    *others, last = [part for part in parts if part]
    text = f"{', '.join(others)}, or {last}." if others else f"{last}."
    return text[0].upper() + text[1:]


def _through_the_bound(layer):
    """What a state at its bound means for gradients; another state may be carried past it."""
    carried = [name for name, (_, high) in layer.options["carry"].items() if high > 0]
    if not carried:
        return "Hardly any gradient comes through a unit at its bound. "
    return (
        f"Hardly any gradient comes from such a unit to the {' and '.join(carried)} state; what "
        f"that carries on itself still arrives. "
    )


def _slower_tails(layer):
    """What bounds the hidden state is an LSTM's output activation, elsewhere the candidate."""
    output = layer.options["output_activation"]
    what = "a candidate" if output is None else "an output_activation"
    return (output or layer.options["candidate_activation"]) != "softsign" and (
        f"take {what} with slower tails, such as softsign"
    )


def _lower_penalties(layer):
    return [f"lower {n}" for n in ("activation_l1", "candidate_l1") if layer.options[n]]


def _keep_gates(layer):
    if all(gate.p5 >= 0 and gate.p95 <= 1 for gate in layer.gates.values() if gate.is_share):
        return []
    return ["keep the gates in [0, 1], as hard_sigmoid does"]


def _of_what(layer):
    return "of all states" if layer.gradients else "dL/dh"


def _clip(layer):
    bounds = [n for n in ("grad_clip_norm", "grad_clip_value") if layer.options[n] is not None]
    if bounds:
        return f"lower {bounds[0]} from {layer.options[bounds[0]]:g}"
    last = layer.gradient.last_norm if layer.gradient else math.nan
    if not math.isfinite(last):
        return "set grad_clip_norm"
    return f"set grad_clip_norm to a few times the norm at the last step, {last:.2g}"


def _shrink(layer):
    """How a recurrent kernel becomes smaller, of a layer with one."""
    return layer.options["recurrent_initializer"] is not None and (
        "shrink the recurrent kernel (by recurrent_regularizer, recurrent_constraint, or "
        "recurrent_initializer=keras.initializers.Orthogonal(gain=0.5))"
    )


def _remember(layer):
    shares = [  # whose activation runs from 0 to 1
        gate.saturated_low is not None and gate.saturated_high is not None and gate.p5 >= 0
        for gate in layer.gates.values()
    ]
    start = layer.options["initialization"]
    if shares and all(shares) and start in (None, "uniform_gates"):
        yield (
            "begin with gates that remember "
            + ("longer (initialization=" if start else '(initialization="uniform_gates", or ')
            + "keras_gates.initializers.Chrono with the number of steps that inputs matter for)"
        )
    if layer.options["recurrent_initializer"] not in (None, "orthogonal", "identity"):
        yield "begin with an orthogonal or identity recurrent kernel"


def _power(log):
    """exp(log) as text, beyond what a float holds too."""
    return f"1e{log / math.log(10):+.0f}"
