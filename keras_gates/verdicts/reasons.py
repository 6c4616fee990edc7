"""What speaks against a choice of activations, from the profiles of each and the cell's probe."""

import contextlib
import dataclasses

import keras
import numpy as np

from keras_gates.activations.profiles import profile
from keras_gates.cells import initialization
from keras_gates.cells.base import CANDIDATE
from keras_gates.cells.program import traced
from keras_gates.cells.step import recurrent_blocks
from keras_gates.equations import affine, equations, leaf
from keras_gates.equations.program import forward
from keras_gates.equations.text import symbol_of
from keras_gates.equations.values import number_of, ordered

LEVELS = ("sound", "caution", "unstable")
# A factor of the state counts as above 1 from here on.
_ABOVE_ONE = 1.05
# Of trainings on more steps, with candidates that let states become larger, some diverged.
_MANY, _LARGE = 100, 1e4
# A slope of the candidate below which gradients fade, and a share of gate inputs without a slope.
_FLAT, _SHUT = 0.5, 0.25
_PAPERS = {
    "relu": "Glorot, Bordes, Bengio, 2011",
    "identity": "Le, Jaitly, Hinton, 2015",
    "clipping": "Pascanu, Mikolov, Bengio, 2013",
}


@dataclasses.dataclass(frozen=True)
class Reason:
    """One reason of a verdict: how much it weighs, what is the matter, and what helps."""

    level: str
    what: str
    advice: str


def of_carry(cell, program, profiles, carry, carriers, growth, bounded):
    """Against the factors on the direct way of a state to the next step.

    One that is negative is dangerous where states grow in another way too, or where they add up
    without a bound on the hidden state and no gradient is clipped.
    """
    for state, (low, high) in carry.items():
        equation = f", and {_equation(cell, program, state)}"
        factor = f"the factor by which the {state} state is carried on"
        if carriers[state]:
            factor += f", set by {_gates(carriers[state], profiles)},"
        if high > _ABOVE_ONE:
            wide = [g for g in carriers[state] if profiles[g].upper > 1]
            has, reaches = ("have", "reach") if len(wide) > 1 else ("has", "reaches")
            limit = f"{has} no upper bound" if np.isinf(high) else f"{reaches} {high:g}"
            yield Reason(
                "unstable",
                f"{_gates(wide, profiles) or factor} {limit}"
                f"{equation}: the {state} state itself can grow by that factor at every step",
                "Carry the state on with a gate whose values lie in [0, 1], such as sigmoid, "
                "hard_sigmoid or tanh_gate. Clipping gradients does not help, because the state "
                "grows in the forward pass.",
            )
        elif forward(dict(program.outputs)[state]).operation == "input":
            yield Reason(
                "caution",
                f"the {state} state never changes",
                "Compute it in `update`, or leave it out of `state_names`.",
            )
        elif low > 2 - _ABOVE_ONE:
            yield Reason(
                "caution",
                f"{factor} is never below {low:g}{equation}: nothing is forgotten, and whatever is "
                "added at each step accumulates",
                "Carry the state on with a gate whose values lie in [0, 1].",
            )
        if low < 0:
            negative = [g for g in carriers[state] if profiles[g].lower < 0]
            what = (
                f"{_gates(negative, profiles) or factor} can be negative{equation}: the {state} "
                "state can change its sign at every step, and is no longer a weighted mean of old "
                "and new"
            )
            cure = "Take a gate with values in [0, 1], such as sigmoid or hard_sigmoid"
            if any(profiles[g].name == "tanh" for g in negative):
                cure = "Take tanh_gate, which is (tanh + 1) / 2, instead of tanh"
            if growth > _ABOVE_ONE:
                what += f". With the recurrent products, the states can grow {_by(growth)}"
                yield Reason("unstable", what, f"{cure}.")
            elif bounded:
                what += "; the hidden state stays bounded all the same"
                yield Reason("caution", what, f"{cure}.")
            elif cell.clips:
                what += "; clipping bounds the gradients, not the state"
                yield Reason("caution", what, f"{cure}.")
            else:
                yield Reason("unstable", what, f"{cure}{_at_least(cell)}.")


def of_gates(cell, profiles):
    """Against each gate by itself."""
    elsewhere = {cell.ones_in_bias}  # than with a bias of 0
    with contextlib.suppress(ValueError):  # of gates that cannot start as the cell says
        starts = initialization.of_cell(cell)
        elsewhere |= set(starts.ways if starts else ())
    for name, p in profiles.items():
        if p.lower > 0.05 or p.upper < 0.95:
            end = f"close: its values stay above {p.lower:g}"
            if p.upper < 0.95:
                end = f"open: its values stay below {p.upper:g}"
            yield Reason(
                "caution",
                f"the gate {name} ({p.name}) cannot {end}",
                "Take a gate that reaches 0 and 1.",
            )
        elif p.zero_share > _SHUT and name not in elsewhere:
            yield Reason(
                "caution",
                f"the gate {name} ({p.name}) is shut, with a slope of zero, for "
                f"{p.zero_share:.0%} of its inputs at the start, and a gate that is shut does not "
                "learn",
                "Take sigmoid or hard_sigmoid.",
            )
        elif p.lower < 0 or p.upper > 1:
            yield Reason(
                "caution",
                f"the gate {name} ({p.name}) has values in [{p.lower:g}, {p.upper:g}], but a gate "
                "should be a share, between 0 and 1",
                "Take a gate with values in [0, 1].",
            )


def of_growth(cell, profiles, candidate, output, carry, growth):
    """Against states that grow in another way than by the factor that carries them on.

    Args:
        cell: a GatedCell.
        profiles: of its gates.
        candidate, output: the profiles of these, or None.
        carry, growth: what the probe found.
    """
    if not _grows(carry, growth):
        return
    wide = [name for name, p in profiles.items() if p.lower < -1 or p.upper > 1]
    who, cures = [_gates(wide, profiles)] if wide else [], []
    if wide:
        cures.append("gates with values in [0, 1], such as sigmoid or hard_sigmoid")
    if candidate is not None and not (candidate.bounded and wide):
        who.append(f"the candidate {candidate.name}")
        cures.append("a bounded candidate, such as tanh or softsign")
        if output is not None:
            cures[-1] += ", or a bounded output_activation"
    if not who:
        who.append("what is added to them")
        cures.append("a bounded activation for what is added")
    yield Reason(
        "unstable",
        f"with {' and '.join(who)} the states can grow {_by(growth)}, even if the recurrent "
        "weights preserve lengths",
        f"Take {' and '.join(cures)}{_at_least(cell) if np.isfinite(growth) else ''}.",
    )


def of_candidate(cell, program, p, carry, growth):
    """Against the candidate, whose profile is `p`."""
    carried = _is_carried(carry)
    free = not p.bounded and p.far_slope > 0 and _sees_the_state(program)
    lost = any(high > _ABOVE_ONE for _, high in carry.values())  # whatever the candidate is
    if free and not lost and not _grows(carry, growth):
        initializer = type(cell.recurrent_initializer).__name__
        helps = [
            *([] if cell.clips else [f"grad_clip_norm ({_PAPERS['clipping']})"]),
            *([] if cell.activation_l1 else [f"activation_l1 ({_PAPERS['relu']})"]),
            *(
                []  # in a cell with gates Keras' Identity fills the first gate's block of U
                if cell.gate_activations
                or not recurrent_blocks(cell)
                or initializer.startswith("Identity")
                else [f"recurrent_initializer='identity' ({_PAPERS['identity']})"]
            ),
        ]
        advice = (
            f"Keep it stable by {', '.join(helps)}, and a smaller learning rate."
            if helps
            else "A smaller learning rate, if it diverges all the same."
        )
        bounds = (
            "only the gates, and recurrent weights of norm at most 1, bound the state, and "
            "training changes both"
            if carried
            else "no gate weighs old against new, so only recurrent weights of norm at most 1 "
            "bound the state, and training changes them"
        )
        yield Reason("caution", f"the candidate {p.name} is unbounded: {bounds}", advice)
    if p.lower >= 0 or p.upper <= 0:
        never, way = ("negative", "up") if p.lower >= 0 else ("positive", "down")
        yield Reason(
            "caution",
            f"the candidate {p.name} is never {never}"
            + (
                f": it can only push the state {way}"
                if carried
                else ", so the state never is either"
            ),
            "A candidate with values on both sides of zero, such as tanh, or twice the units "
            f"({_PAPERS['relu']}).",
        )
    if p.value_at_zero == 0 and p.slope_at_zero > _ABOVE_ONE:
        yield Reason(
            "caution",
            f"the candidate {p.name} has slope {p.slope_at_zero:.3g} at 0: small states grow, and "
            "the recurrence can become chaotic",
            "Smaller recurrent weights, or a slope of at most 1 at 0.",
        )
    if p.max_slope < _FLAT:
        yield Reason(
            "caution",
            f"the slope of the candidate {p.name} is at most {p.max_slope:.3g}: gradients that "
            "pass through it shrink by at least that factor",
            "A candidate with a slope of 1 at 0, such as tanh or softsign.",
        )


def of_length(cell, verdict, size, steps):
    """Against a candidate without any bound on sequences that are long for it.

    Those with a bound on one side, such as relu, did not diverge in the trainings of
    examples/verdicts.py, large as states can become; nor did simple RNNs, which carry nothing on.

    Args:
        verdict: as far as it does not depend on the length.
        size: what the hidden state reaches in so many steps, with weights as after training.
    """
    known = not np.isnan(verdict.growth)
    if verdict.level == LEVELS[-1] or not known or steps <= _MANY or size <= _LARGE:
        return
    program = traced(cell)[1]
    p = candidate_of(cell, program)
    free = p is not None and p.lower == -np.inf and p.upper == np.inf and _sees_the_state(program)
    if free and _is_carried(verdict.carry):
        yield Reason(
            LEVELS[-1],
            f"the candidate {p.name} has no bound on either side, and {steps} steps are many for "
            f"that: with weights three times larger, as training can make them, states exceed "
            f"{_LARGE:,.0f}",
            "Take a candidate with a bound, such as tanh, or relu, which has one on one side"
            f"{_at_least(cell)}.",
        )


def _at_least(cell):
    """What helps where nothing else is changed: the digits of examples/verdicts.py, clipped."""
    if cell.clips:
        return ""
    return f"; at the least, clip gradients: grad_clip_norm ({_PAPERS['clipping']})"


def _by(growth):
    """By how much states grow, in words."""
    return "without bound" if np.isinf(growth) else f"by a factor of {growth:.3g} per step"


def _is_carried(carry):
    """Whether any state has a direct way to the next step."""
    return any(high > 0 for _, high in carry.values())


def _grows(carry, growth):
    """Whether states grow though what carries them on does not make them."""
    carried_well = all(low >= 0 and high <= _ABOVE_ONE for low, high in carry.values())
    return growth > _ABOVE_ONE and carried_well


def candidate_of(cell, program):
    """The profile of the candidate: where `update` adds that block to a state without calling
    self.candidate, that of linear. None where neither is so."""
    if CANDIDATE in dict(program.named):
        return profile(cell.candidate_activation)
    slopes = [affine(after, leaf("x", CANDIDATE)) for after in program.forward]
    added = any(slope is not None and number_of(slope[0]) != 0 for slope in slopes)
    return profile(keras.activations.linear) if added else None


def _sees_the_state(program):
    """Whether the candidate is made of the states."""
    named = dict(program.named)
    if CANDIDATE not in named:  # then of its block alone
        return ("u", CANDIDATE) in program.leaves or any(
            v.operation == "recurrent" and v["block"] == CANDIDATE for v in program.values
        )
    values = ordered([named[CANDIDATE]])
    return any(
        v.operation == "recurrent" or (v.operation == "input" and v["kind"] in ("u", "state"))
        for v in values
    )


def _gates(names, profiles):
    shown = ", ".join(f"{n} ({profiles[n].name})" for n in names)
    return f"the gate{'s' if len(names) > 1 else ''} {shown}" if names else ""


def _equation(cell, program, state):
    """What becomes of a state, as one of the cell's equations."""
    return next(
        f"{symbol} = {text}"
        for symbol, text in equations(program, cell.symbols)
        if symbol == f"{symbol_of(state, cell.symbols)}'"
    )
