"""Which activations will work in a cell: a verdict from the cell's own equations, before training.

A cell is probed as it is written: its `update` is evaluated at many pre-activations and at large
states. Two things come out. The *carry* is the factor that a state is multiplied by on its direct
way to the next step, `z` in `h' = z * h + (1 - z) * n`; it is safe in [0, 1]. The *growth* is how
much longer the states can become in one step at worst, when recurrent products pass them on at
their own size.
"""

import dataclasses
import itertools
import re
import warnings

import keras
import numpy as np
from keras import ops

from keras_gates import activations
from keras_gates.cells import CELLS, GatedCell
from keras_gates.cells.step import named
from keras_gates.eagerly import eagerly
from keras_gates.validation import one_of

LEVELS = ("sound", "caution", "unstable")
# A factor of the state counts as above 1 from here on.
ABOVE_ONE = 1.05
# A slope of the candidate below which gradients fade, and a share of gate inputs without a slope.
FLAT, SHUT = 0.5, 0.25
PAPERS = {
    "relu": "Glorot, Bordes, Bengio, 2011",
    "identity": "Le, Jaitly, Hinton, 2015",
    "clipping": "Pascanu, Mikolov, Bengio, 2013",
}


class UnstableActivationsWarning(UserWarning):
    """A GatedRNN was made with activations that `check_activations` calls unstable.

    The message has the reason and what helps. Only the cells of this package are judged unasked;
    ask `check_activations` about one of your own. The warning can be silenced, or made an error:

    >>> import warnings
    >>> warnings.simplefilter("error", keras_gates.UnstableActivationsWarning)
    >>> keras_gates.GatedRNN(8, gate_activation="relu")
    Traceback (most recent call last):
    ...
    keras_gates.verdicts.UnstableActivationsWarning: These activations are unstable in GRUCell: ...
    >>> warnings.simplefilter("default", keras_gates.UnstableActivationsWarning)
    """


@dataclasses.dataclass(frozen=True)
class Reason:
    """One reason of a verdict: how much it weighs, what is the matter, and what helps."""

    level: str
    what: str
    advice: str


@dataclasses.dataclass(frozen=True)
class Verdict:
    """What `check_activations` finds.

    Attributes:
        cell, gates, candidate, output: what was judged, by name; `gates` from gate to activation.
        level: "sound", "caution" or "unstable".
        reasons: the reasons, the weightiest first; none for a sound choice.
        carry: from each state to the least and the largest factor on its direct way to the next
            step; -inf or inf without bound, (0, 0) where there is no such way.
        growth: by what factor the states can grow in one step at worst, with recurrent weights
            that keep lengths; inf where it rises with the state.
        spectral_radius: expected spectral radius of the Jacobian of the states with respect to
            those one step earlier, at initialization and for N(0, 1) inputs. None if not asked for.
    """

    cell: str
    gates: dict
    candidate: str
    output: str | None
    level: str
    reasons: tuple
    carry: dict
    growth: float
    spectral_radius: float | None = None

    @property
    def suggestions(self):
        """What helps, each once."""
        return list(dict.fromkeys(reason.advice for reason in self.reasons))

    def to_dict(self):
        return {**dataclasses.asdict(self), "suggestions": self.suggestions}

    def __str__(self):
        gates = sorted(set(self.gates.values()))
        gates = f"gates {', '.join(gates)}; " if gates else ""
        output = f"; output {self.output}" if self.output not in (None, self.candidate) else ""
        lines = [f"{self.cell}: {gates}candidate {self.candidate}{output}: {self.level}"]
        lines += [f"  {reason.level}: {reason.what}" for reason in self.reasons]
        lines += [f"  what helps: {advice}" for advice in self.suggestions]
        for state, (low, high) in self.carry.items():
            if low or high:
                lines.append(f"  the {state} state is carried on by factors in [{low:g}, {high:g}]")
        lines.append(f"  worst-case growth of the state per step: {self.growth:.3g}")
        if self.spectral_radius is not None:
            lines.append(
                "  expected spectral radius of the state Jacobian at initialization: "
                f"{self.spectral_radius:.2f}"
            )
        return "\n".join(lines)


def check_activations(
    cell="gru",
    gate_activation=None,
    candidate_activation=None,
    output_activation=None,
    **options,
):
    """Whether a choice of activations will work in a cell, before any training.

    Args:
        cell: "gru", "lstm", "simple", or a subclass of `GatedCell`.
        gate_activation, candidate_activation, output_activation: as in `GatedRNN`.
        **options: further arguments of the cell that matter: `grad_clip_norm`, `grad_clip_value`,
            `activation_l1`, `recurrent_initializer`, `reset_after`.

    Returns:
        A `Verdict`: "sound", "caution" or "unstable", with reasons and with what helps.

    Raises:
        ValueError: an unknown cell or activation.

    Example:

    >>> verdict = keras_gates.check_activations("gru", "relu", "tanh")
    >>> verdict.level
    'unstable'
    >>> verdict.reasons[0].what[:47]
    'the gate update (relu) has no upper bound, and '

    Sources: Pascanu, Mikolov, Bengio, "On the difficulty of training recurrent neural networks",
    2013; Glorot, Bordes, Bengio, "Deep sparse rectifier neural networks", 2011 (relu with L1);
    Le, Jaitly, Hinton, "A simple way to initialize recurrent networks of rectified linear units",
    2015 (identity).
    """
    if isinstance(cell, str):
        cell = CELLS[one_of("cell", cell, CELLS)]
    if not (isinstance(cell, type) and issubclass(cell, GatedCell)):
        raise ValueError(
            f"`cell` must be one of {', '.join(map(repr, CELLS))} or a subclass of GatedCell. "
            f"Received: cell={cell!r}"
        )
    given = {
        "gate_activation": gate_activation,
        "candidate_activation": candidate_activation,
        "output_activation": output_activation,
    }
    options.update({name: value for name, value in given.items() if value is not None})
    options.setdefault("dtype", "float64" if keras.backend.backend() == "tensorflow" else "float32")
    with eagerly():
        verdict = judge(cell(1, **options))
        return dataclasses.replace(verdict, spectral_radius=spectral_radius(cell(64, **options)))


def judge(cell):
    """The verdict on an instance of a cell, built or not, without the spectral radius."""
    gates = {name: _name(activation) for name, activation in cell.gate_activations.items()}
    output = getattr(cell, "output_activation", None)
    found = {
        "cell": type(cell).__name__,
        "gates": gates,
        "candidate": _name(cell.candidate_activation),
        "output": None if output is None else _name(output),
    }
    try:
        profiles = {name: activations.profile(a) for name, a in cell.gate_activations.items()}
        candidate = activations.profile(cell.candidate_activation)
    except ValueError as error:
        reason = Reason("caution", str(error), "Watch it: nothing is known of it beforehand.")
        unknown = dict.fromkeys(cell.state_names, (-np.inf, np.inf))
        return Verdict(**found, level="caution", reasons=(reason,), carry=unknown, growth=np.inf)
    carry, carriers, growth = _probed(cell)
    reasons = [
        *_of_carry(cell, profiles, carry, carriers),
        *_of_gates(profiles),
        *_of_candidate(cell, candidate, carry, growth),
    ]
    reasons.sort(key=lambda reason: -LEVELS.index(reason.level))
    level = reasons[0].level if reasons else "sound"
    return Verdict(**found, level=level, reasons=tuple(reasons), carry=carry, growth=growth)


def warn_if_unstable(cell, stacklevel):
    """Warns if the verdict on the activations of `cell` is "unstable".

    A cell of one's own is not judged unasked: that evaluates its `update`.
    """
    if type(cell) not in CELLS.values():
        return
    with eagerly():
        verdict = judge(cell)
    if verdict.level == "unstable":
        reason = verdict.reasons[0]
        warnings.warn(
            f"These activations are unstable in {verdict.cell}: {reason.what}. {reason.advice} "
            "keras_gates.check_activations tells more.",
            UnstableActivationsWarning,
            stacklevel=stacklevel + 1,
        )


# ---------------------------------------------------------------------- reasons


def _of_carry(cell, profiles, carry, carriers):
    for state, (low, high) in carry.items():
        equation = _equation(cell, state)
        equation = f", and {equation}" if equation else ""
        if high > ABOVE_ONE:
            who = _gates(carriers[state], profiles, lambda p: p.upper > 1)
            yield Reason(
                "unstable",
                f"{who} {'has no upper bound' if np.isinf(high) else f'reaches {high:g}'}"
                f"{equation}: the {state} state itself can grow by that factor at every step",
                "Take a gate with values in [0, 1], such as sigmoid, hard_sigmoid or tanh_gate. "
                "Clipping gradients does not help, because the state grows going forward.",
            )
        if low < 0:
            who = _gates(carriers[state], profiles, lambda p: p.lower < 0)
            what = (
                f"{who} can be negative{equation}: the {state} state can change its sign at every "
                "step, and is no longer a weighted mean of old and new"
            )
            if cell.clips:
                yield Reason(
                    "caution",
                    what + "; clipping bounds the gradients of that, not the state",
                    "Take (tanh + 1) / 2, which is tanh_gate, instead of tanh.",
                )
            else:
                yield Reason(
                    "unstable",
                    what,
                    "Take (tanh + 1) / 2, which is tanh_gate, instead of tanh; at the least, clip "
                    f"gradients: grad_clip_norm ({PAPERS['clipping']}).",
                )


def _of_gates(profiles):
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
        elif p.zero_share > SHUT:
            yield Reason(
                "caution",
                f"the gate {name} ({p.name}) is shut, without a slope, for {p.zero_share:.0%} of "
                "its inputs at the start, and what is shut does not learn",
                "Start its bias above 0, or take sigmoid or hard_sigmoid.",
            )
        elif p.lower < 0 or p.upper > 1:
            yield Reason(
                "caution",
                f"the gate {name} ({p.name}) has values in [{p.lower:g}, {p.upper:g}], and a gate "
                "is a share between 0 and 1",
                "Take a gate with values in [0, 1].",
            )


def _of_candidate(cell, p, carry, growth):
    carried = any(high > 0 for _, high in carry.values())
    if growth > ABOVE_ONE and all(high <= ABOVE_ONE for _, high in carry.values()):
        yield Reason(
            "unstable",
            f"with the candidate {p.name} the states can grow {growth:.3g} times per step, even "
            "while recurrent weights keep lengths",
            "Take a bounded candidate (tanh, softsign), or in an LSTM a bounded output_activation.",
        )
    elif not p.bounded and p.far_slope > 0:
        initializer = type(cell.recurrent_initializer).__name__
        helps = [
            *([] if cell.clips else [f"grad_clip_norm ({PAPERS['clipping']})"]),
            *([] if cell.activation_l1 else [f"activation_l1 ({PAPERS['relu']})"]),
            *(
                []
                if initializer.startswith("Identity")
                else [f"recurrent_initializer='identity' ({PAPERS['identity']})"]
            ),
        ]
        advice = (
            f"What keeps it stable: {', '.join(helps)}; and a smaller learning rate."
            if helps
            else "A smaller learning rate, if it diverges all the same."
        )
        also = "gates, and" if carried else "(no gate weighs old against new)"
        yield Reason(
            "caution",
            f"the candidate {p.name} is unbounded: nothing bounds the state but {also} recurrent "
            "weights of norm at most 1, and training changes them",
            advice,
        )
    if p.lower >= 0 or p.upper <= 0:
        way = "positive" if p.lower >= 0 else "negative"
        yield Reason(
            "caution",
            f"the candidate {p.name} is never {'negative' if way == 'positive' else 'positive'}: "
            f"the state is always {way}, "
            + ("and it can rise but not fall below" if carried else "away from")
            + " zero",
            f"A candidate on both sides of zero, such as tanh, or twice the units "
            f"({PAPERS['relu']}).",
        )
    if p.value_at_zero == 0 and p.slope_at_zero > ABOVE_ONE:
        yield Reason(
            "caution",
            f"the candidate {p.name} has slope {p.slope_at_zero:.3g} at 0: small states grow, and "
            "the recurrence can become chaotic",
            "Smaller recurrent weights, or a slope of at most 1 at 0.",
        )
    if p.max_slope < FLAT:
        yield Reason(
            "caution",
            f"the slope of the candidate {p.name} is at most {p.max_slope:.3g}: gradients through "
            "it fade by that factor at least",
            "A candidate of slope 1 at 0: tanh, softsign.",
        )


def _gates(names, profiles, chosen):
    names = [n for n in names if chosen(profiles[n])] or list(names)
    shown = ", ".join(f"{n} ({profiles[n].name})" for n in names)
    return f"the gate{'s' if len(names) > 1 else ''} {shown}"


def _equation(cell, state):
    """The line of the cell's docstring that says what becomes of a state, or ""."""
    symbol = {"hidden": "h'", "cell": "c'"}.get(state)
    if symbol is None or not type(cell).__doc__:
        return ""
    match = re.search(rf"^\s*({symbol} = .*?)(\s{{3,}}.*)?$", type(cell).__doc__, re.MULTILINE)
    return match.group(1) if match else ""


def _name(activation):
    return getattr(activation, "__name__", None) or type(activation).__name__


# ---------------------------------------------------------------------- probing the equations

# Pre-activations at which the equations are tried, up to where sigmoid is 0 or 1 to 8 digits.
NEAR = np.array([-20.0, -3.0, -1.0, -0.3, 0.0, 0.3, 1.0, 3.0, 20.0])
ENDS = np.array([-20.0, 0.0, 20.0])
# How large a large state is; a factor of it is "without bound" if it exceeds this.
LARGE, UNBOUNDED = 1e4, 1e2
MOST = 60_000  # combinations tried


def _probed(cell):
    """The carry of each state, the gates that it depends on, and the growth."""
    key = None
    functions = tuple(cell.activations_in_use())
    if type(cell) in CELLS.values() and not any(isinstance(f, keras.Layer) for f in functions):
        key = (type(cell), functions, getattr(cell, "reset_after", None))
    if key not in _found:
        probe = _Probe(cell)
        carry = probe.carry()
        carriers = {state: probe.carriers(state) for state in carry}
        found = (carry, carriers, max(probe.growth(), *[high for _, high in carry.values()]))
        if key is None:
            return found
        _found[key] = found
    return _found[key]


_found = {}  # every layer asks when it is made, mostly for the same few activations


class _Probe:
    """A cell's `update` for one unit, with pre-activations and states of our choice.

    Stands in for a Step, and so notes nothing, clips nothing and knows no weights.
    """

    def __init__(self, cell):
        self.cell = cell
        names = cell.blocks if cell.projected_blocks is None else cell.projected_blocks
        self.projected = tuple(names)
        self.gain = 1.0  # of a recurrent product inside the equations

    def activate(self, name, activation, preactivation):
        return activation(preactivation)

    def recurrent(self, block, value):
        return self.gain * value

    def clip(self, place, x):
        return x

    def update(self, x, u, states):
        """The new states, NumPy arrays, from arrays per block and per state."""
        cell = self.cell
        tensors = [[self._tensor(a) for a in arrays] for arrays in (x, u, states)]
        cell.step = self
        try:
            new = cell.update(
                named(cell.blocks, tensors[0]), named(self.projected, tensors[1]), tensors[2]
            )
        finally:
            cell.step = None
        return [np.asarray(ops.convert_to_numpy(s), "float64")[:, 0] for s in new]

    def carry(self):
        """From each state to the range of its factor on the direct way to the next step."""
        return {state: self._range(self._carries(state, NEAR)) for state in self.cell.state_names}

    def carriers(self, state):
        """The gates that this factor depends on."""
        found = []
        for gate in self.cell.gate_activations:
            index = self.cell.blocks.index(gate)
            x = [np.zeros(len(NEAR)) for _ in self.cell.blocks]
            x[index] = NEAR
            if np.ptp(self._factor(state, x)) > 0:
                found.append(gate)
        return found

    def growth(self):
        """The factor by which the states grow in one step at worst, after a few such steps."""
        # Of every block: x, and what the recurrent product makes of the hidden state.
        chosen = _combinations(list(itertools.product(ENDS, (-1, 0, 1))), len(self.cell.blocks))
        x, shares = np.moveaxis(np.array(chosen), 0, 2).transpose(1, 0, 2)
        # Only the cell state is large at first where there is one: what the hidden state can
        # become is up to the equations.
        count = len(self.cell.state_names)
        states = np.array([LARGE] if count == 1 else [0.0] + [LARGE] * (count - 1))
        signs = list(itertools.product((-1.0, 1.0), repeat=count))
        factor = 1.0
        for _ in range(4):
            u = list(states[0] * shares[: len(self.projected)])
            tried = []
            for sign in signs:
                before = np.repeat((sign * states)[:, None], len(chosen), axis=1)
                tried.append(np.abs(self.update(list(x), u, list(before))))
            tried = np.concatenate(tried, axis=1)
            if not np.isfinite(tried).all():
                return np.inf
            worst = tried[:, tried.sum(axis=0).argmax()]
            factor, states = worst.sum() / states.sum(), worst
            if factor > UNBOUNDED:
                return np.inf
        return round(float(factor), 2)

    def _carries(self, state, values):
        chosen = np.array(_combinations(list(values), len(self.cell.blocks)))
        far = chosen * LARGE
        return [self._factor(state, list(points.T)) for points in (chosen, far)]

    def _factor(self, state, x):
        """d s' / d s for one state s at pre-activations x, by a difference: it is linear in s."""
        index = self.cell.state_names.index(state)
        count = len(x[0])
        u = [np.zeros(count) for _ in self.projected]
        self.gain = 0.0
        try:
            found = []
            for sign in (1.0, -1.0):
                states = [np.zeros(count) for _ in self.cell.state_names]
                states[index] = np.full(count, sign)
                found.append(self.update(x, u, states)[index])
        finally:
            self.gain = 1.0
        return (found[0] - found[1]) / 2

    @staticmethod
    def _range(found):
        near, far = (np.where(np.isnan(f), np.inf, f) for f in found)
        low, high = float(near.min()), float(near.max())
        low = -np.inf if far.min() < low - UNBOUNDED else min(low, float(far.min()))
        high = np.inf if far.max() > high + UNBOUNDED else max(high, float(far.max()))
        return (round(low, 3) + 0.0, round(high, 3) + 0.0)

    def _tensor(self, array):
        return ops.convert_to_tensor(np.asarray(array)[:, None], self.cell.compute_dtype)


def _combinations(values, count):
    """All combinations of one of the values for each of `count` places, or many of them."""
    if len(values) ** count <= MOST:
        return list(itertools.product(values, repeat=count))
    rng = np.random.default_rng(0)
    return [tuple(values[i] for i in row) for row in rng.integers(len(values), size=(MOST, count))]


def spectral_radius(cell, samples=4, steps=12):
    """Expected spectral radius of d s_t / d s_{t-1} of an unbuilt cell, at initialization.

    The states of N(0, 1) inputs, `units` features wide, after some steps; mean over the samples.
    """
    for name in ("kernel_initializer", "recurrent_initializer", "bias_initializer"):
        setattr(cell, name, _seeded(getattr(cell, name)))
    cell.build((None, cell.units))
    rng = np.random.default_rng(0)
    count = len(cell.state_names)

    def step(x, states):
        _, new = cell(
            ops.convert_to_tensor(x, cell.compute_dtype),
            [ops.convert_to_tensor(s, cell.compute_dtype) for s in np.split(states, count, axis=1)],
        )
        new = new if isinstance(new, (list, tuple)) else [new]
        return np.concatenate([np.asarray(ops.convert_to_numpy(s), "float64") for s in new], axis=1)

    size = count * cell.units
    states = np.zeros((samples, size))
    for _ in range(steps):
        x = rng.normal(size=(samples, cell.units))
        before, states = states, step(x, states)
    shift = 1e-4 if cell.compute_dtype == "float64" else 1e-2
    radii = []
    for sample in range(samples):
        if not np.isfinite(before[sample]).all():
            return float("inf")
        moved = before[sample] + shift * np.concatenate([np.eye(size), -np.eye(size)])
        found = step(np.repeat(x[sample : sample + 1], 2 * size, axis=0), moved)
        if not np.isfinite(found).all():
            return float("inf")
        jacobian = (found[:size] - found[size:]) / (2 * shift)
        radii.append(np.abs(np.linalg.eigvals(jacobian)).max())
    return float(np.mean(radii))


def _seeded(initializer):
    """The same initializer with a fixed seed, so that verdicts do not vary."""
    config = initializer.get_config()
    if "seed" not in config:
        return initializer
    return type(initializer).from_config({**config, "seed": 1})
