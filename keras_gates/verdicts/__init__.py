"""Which activations will work in a cell: a verdict from the cell's own equations, before training.

A cell is judged by its program, traced from its `update`, at many pre-activations and at large
states. Two things come out. The *carry* is the factor that a state is multiplied by on its direct
way to the next step, `z` in `h' = z * h + (1 - z) * n`; it is safe in [0, 1]. The *growth* is how
much longer the states can become in one step at worst, when recurrent products pass them on at
their own size.
"""

import contextlib
import dataclasses
import typing
import warnings
from typing import Any, Unpack

import keras
import numpy as np
from keras import tree

from keras_gates import activations, html
from keras_gates._keras.calls import stacklevel
from keras_gates.activations.profiles import NotJudgedError, fresh
from keras_gates.cells import CELLS, GatedCell, GRUCell, LSTMCell, of_keras
from keras_gates.cells.arguments import LAYER_ARGUMENTS, refuse_kept, refuse_unknown, sign
from keras_gates.cells.base import CANDIDATE
from keras_gates.cells.program import built_copy, refuse_failing, traced
from keras_gates.cells.step import argument_of
from keras_gates.cells.unused import refuse_unused, unused
from keras_gates.eager import eager_scope
from keras_gates.equations import NotTraceableError, equations
from keras_gates.types import Activation, BuiltInOptions, CellName, GateActivation
from keras_gates.validation import one_of, positive_integer
from keras_gates.verdicts import probe, reasons
from keras_gates.verdicts.reasons import LEVELS, Reason

_OUTPUT = "output_activation"
_FEW = 24  # units, enough to see what states do
_UNKNOWN = (
    "Nothing is known of it beforehand: look at what keras_gates.diagnose finds after a short "
    "training."
)


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
class Verdict:
    """What `check_activations` finds.

    Attributes:
        cell, gates, candidate, output: what was judged, by name; `gates` from gate to activation,
            and None for what there is not.
        level: "sound", "caution" or "unstable".
        reasons: the reasons, the weightiest first; none for a sound choice.
        carry: from each state to the least and the largest factor on its direct way to the next
            step; -inf or inf without bound, (0, 0) where there is no such way, NaN where it is
            not known.
        growth: by what factor the states can grow in one step at worst, with recurrent weights
            that keep lengths; inf where it rises with the state, NaN where it is not known.
        spectral_radius: expected spectral radius of the Jacobian of the states with respect to
            those one step earlier, at initialization and for N(0, 1) inputs. This and what
            follows is of a new cell of the same arguments, also where an instance was judged, whose
            weights may be trained already; None where the equations cannot be traced.
        contraction: by what factor a small difference in the states changes per step where they
            come to rest, at initialization, from zero and with inputs of zero: below 1 it shrinks,
            above 1 the states do not stay there. None where they come to no rest, and where the
            equations are normalized over units.
        memory: in how many steps a small difference in the states becomes e times smaller, at
            initialization, for N(0, 1) inputs and on average over `steps` steps, of which
            exp(-steps / memory) is left at the end; inf where it does not.
        memory_with_uniform_gates: the same with initialization="uniform_gates"; None where the cell
            has it already, or no such gates.
        divergence: estimated probability that a training with Adam at a rate of 0.01 on sequences
            of `steps` steps ends in NaN or a huge loss, if nothing is clipped. Fitted to trainings
            of GRUs, LSTMs and simple RNNs with 72 pairs of activations (examples/verdicts.py); of
            other cells it says no more than what their states and gradients look like.
        steps: how long the sequences are.
        equations: what was judged: pairs (symbol, expression), with x_k and u_k for the
            projections x W_k + b_k and h U_k + c_k. Empty where they cannot be traced.
        unused: from each argument for an activation that `update` never calls, and that is not
            judged, to the call that there is not: {"candidate_activation": "self.candidate"}.
    """

    cell: str
    gates: dict
    candidate: str | None
    output: str | None
    level: str
    reasons: tuple
    carry: dict
    growth: float
    spectral_radius: float | None = None
    contraction: float | None = None
    memory: float | None = None
    memory_with_uniform_gates: float | None = None
    divergence: float | None = None
    steps: int = 64
    equations: tuple = ()
    unused: dict = dataclasses.field(default_factory=dict)

    @property
    def suggestions(self) -> list[str]:
        """What helps, each once."""
        return list(dict.fromkeys(reason.advice for reason in self.reasons))

    def to_dict(self) -> dict[str, Any]:
        return {**dataclasses.asdict(self), "suggestions": self.suggestions}

    def __str__(self) -> str:
        lines = [f"{self._judged()}: {self.level}"]
        lines += [f"  {symbol} = {expression}" for symbol, expression in self.equations]
        for index, reason in enumerate(self.reasons):
            lines.append(f"  {reason.level}: {reason.what}")
            if reason.advice not in [later.advice for later in self.reasons[index + 1 :]]:
                lines.append(f"    what helps: {reason.advice}")
        return "\n".join([*lines, *(f"  {figure}" for figure in self._figures())])

    def _repr_html_(self) -> str:
        equations = "\n".join(f"{symbol} = {text}" for symbol, text in self.equations)
        return html.block(
            html.element("h3", f"{self._judged()}: ", html.level(self.level)),
            html.element("pre", equations) if equations else None,
            *[html.finding(r.level, f"{r.what}.", r.advice) for r in self.reasons],
            html.element("ul", *[html.element("li", figure) for figure in self._figures()]),
        )

    def _judged(self):
        """What was judged, in words."""
        names = sorted(set(self.gates.values()))
        parts = [f"gates {', '.join(names)}"] if names else []
        parts += [f"candidate {self.candidate}"] if self.candidate is not None else []
        parts += [f"output {self.output}"] if self.output not in (None, self.candidate) else []
        return f"{self.cell}: {'; '.join(parts)}" if parts else self.cell

    def _figures(self):
        """What else is known, mostly in numbers, each in words."""
        unstable = self.level == LEVELS[-1]
        for argument, call in self.unused.items():
            yield f"`update` never calls {call}, so {argument} makes no difference"
        for state, (low, high) in self.carry.items():
            if (low or high) and low == low:
                yield f"the {state} state is carried on by factors in [{low:g}, {high:g}]"
        if self.growth == self.growth:
            growth = "without bound" if np.isinf(self.growth) else f"{self.growth:.3g}"
            yield f"worst-case growth of the state per step: {growth}"
        # Where states run off, what they are like at the start is not what comes of them.
        if _is_finite(self.spectral_radius) and not unstable:
            yield (
                "expected spectral radius of the state Jacobian at initialization: "
                f"{self.spectral_radius:.2f}"
            )
        if _is_finite(self.contraction) and not unstable:
            yield (
                "where the states rest without inputs, a difference in them changes by a factor of "
                f"{self.contraction:.2f} per step in the long run"
            )
        if _is_finite(self.divergence):
            rare = self.divergence < 0.05
            shown = "below 1%" if self.divergence < 0.01 else f"about {self.divergence:.0%}"
            yield (
                f"estimated probability that a training on {self.steps} steps ends in NaN or a "
                f"huge loss (Adam at 0.01, nothing clipped): {shown}"
                + ("; failing to learn is not counted" if unstable else "")
                + (", and unstable says what weights may grow to" if rare and unstable else "")
            )
        if unstable and self.memory is not None:
            yield "how long it remembers is not shown, since training may undo it"
            return
        for memory, how in (
            (self.memory, "at initialization"),
            (self.memory_with_uniform_gates, "with initialization='uniform_gates'"),
        ):
            if memory is not None:
                yield (
                    f"{how} {_left(self.steps, memory)} of a difference in the state is left after "
                    f"{self.steps} steps of N(0, 1) inputs"
                )
        if self.memory_with_uniform_gates is not None and self.steps > 4 * self.memory:
            yield (
                "what helps where inputs matter for that long: "
                f"initialization=keras_gates.initializers.Chrono({self.steps})"
            )


def _is_finite(figure):
    return figure is not None and bool(np.isfinite(figure))


def _left(steps, memory):
    """How much of a difference is left, in words where it is all or nothing."""
    if np.isinf(memory):
        return "all, or more,"
    left = f"{np.exp(-steps / max(memory, 1e-9)):.1g}"
    return {"0": "nothing", "1": "all"}.get(left, left)


@typing.overload
def check_activations(
    cell: CellName | str = "gru",
    gate_activation: GateActivation | None = None,
    candidate_activation: Activation | None = None,
    output_activation: Activation | None = None,
    *,
    steps: int = 64,
    units: int | None = None,
    **options: Unpack[BuiltInOptions],
) -> Verdict: ...


@typing.overload
def check_activations(
    cell: type[GatedCell] | GatedCell,
    gate_activation: GateActivation | None = None,
    candidate_activation: Activation | None = None,
    output_activation: Activation | None = None,
    *,
    steps: int = 64,
    units: int | None = None,
    **options: Any,
) -> Verdict: ...


@typing.overload
def check_activations(cell: keras.Layer, *, steps: int = 64) -> Verdict: ...


@eager_scope()
def check_activations(
    cell: CellName | str | type[GatedCell] | GatedCell | keras.Layer = "gru",
    gate_activation: GateActivation | None = None,
    candidate_activation: Activation | None = None,
    output_activation: Activation | None = None,
    *,
    steps: int = 64,
    units: int | None = None,
    **options: Any,
) -> Verdict:
    """Whether a choice of activations will work in a cell, before any training.

    Args:
        cell: the name of a cell ("gru", "lstm", ...), a subclass of `GatedCell`, or an instance of
            one or a layer: a GatedRNN, or Keras' own GRU, LSTM, SimpleRNN and their cells. An
            instance has its activations and options already; give none beside it but `steps`.
        gate_activation, candidate_activation, output_activation: as in `GatedRNN`.
        steps: how long the sequences are, for `memory` and `divergence`.
        units: of the new cell, for `spectral_radius` and `memory`: 64 unless given. An instance
            has its own.
        **options: further arguments of the cell that matter: `grad_clip_norm`, `grad_clip_value`,
            `activation_l1`, `recurrent_initializer`, `reset_after`.

    Returns:
        A `Verdict`: "sound", "caution" or "unstable", with reasons and with what helps.

    Raises:
        ValueError: an unknown cell or activation; anything beside an instance of a cell; a cell of
            your own whose `update` fails, with its error, or never calls an activation given here.

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
    given = {
        "gate_activation": gate_activation,
        "candidate_activation": candidate_activation,
        "output_activation": output_activation,
    }
    options.update({name: value for name, value in given.items() if value is not None})
    positive_integer("steps", steps)
    if units is not None:
        positive_integer("units", units)
    if isinstance(cell, keras.layers.RNN):
        cell = cell.cell
    if type(cell) in of_keras.NAMES:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # nothing is saved here
            cell = of_keras.unbuilt(cell)
    if isinstance(cell, GatedCell):
        if options or units is not None:
            beside = [*options, *["units"] * (units is not None)]
            raise ValueError(
                "`cell` is an instance already, so its activations and options are its own. "
                f"Received beside it: {', '.join(beside)}. Give them to {type(cell).__name__}"
                "(...), or its class to check_activations."
            )
        return _with_estimates(judge(cell), cell, steps)
    cell = _class_of(cell)
    owner = f"check_activations of {cell.__name__}"
    refuse_kept(owner, ("dtype", *options), cell)
    known = {*cell.options(), *LAYER_ARGUMENTS}
    refuse_unknown(owner, options, known, CELLS.values(), close=("steps", "units"))
    made = make(cell, 1, options)
    if cell not in CELLS.values():
        refuse_unused(made, options)
    verdict = judge(made)
    # Layers as activations may be built already, with other units.
    options = tree.map_structure(lambda o: fresh(o) if isinstance(o, keras.Layer) else o, options)
    return _with_estimates(verdict, make(cell, units or 64, options), steps)


sign(check_activations, GRUCell.__init__, LSTMCell.__init__)


def _with_estimates(verdict, cell, steps):
    """The verdict with what is to be expected of new cells of the same arguments.

    Raises:
        ValueError: a time step fails.
    """

    def new(**changes):
        return built_copy(cell, units=cell.units, features=cell.units, **changes)

    found: dict[str, Any] = {"steps": steps}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        begun = new()
        try:
            found["spectral_radius"] = probe.spectral_radius(begun)
            found["memory"] = probe.memory(begun, steps)
        except NotJudgedError:
            return verdict
        except NotTraceableError as untraced:
            refuse_failing(begun, untraced, ", so that there is nothing to judge")
            return verdict
        if np.isfinite(found["memory"]) and cell.initialization is None:
            with contextlib.suppress(ValueError):  # there are no such gates
                uniform = new(initialization="uniform_gates")
                found["memory_with_uniform_gates"] = probe.memory(uniform, steps)
        found["contraction"] = probe.contraction(begun)
        few = built_copy(cell, units=_FEW, features=2, initialization=None)
    figures = probe.stressed(few, steps)
    found["divergence"] = probe.divergence(figures, steps, verdict.growth)
    size = 10 ** figures[0]
    for reason in reasons.of_length(cell, verdict, size, steps):
        found.update(level=reason.level, reasons=(reason, *verdict.reasons))
    return dataclasses.replace(verdict, **found)


def make(cell, units, options):
    """An instance of a cell, by its name or class, in the dtype that is best to judge it in."""
    # In float64 where all that is computed can be: a layer as activation has a dtype of its own.
    layers = any(isinstance(option, keras.Layer) for option in tree.flatten([*options.values()]))
    exact = keras.backend.backend() == "tensorflow" and not layers
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # nothing is saved here
        made = {"dtype": "float64" if exact else "float32", **options}
        return _class_of(cell)(units, **made)


def _class_of(cell):
    """The class of a cell, by its name or itself."""
    if isinstance(cell, str):
        cell = CELLS[one_of("cell", cell, CELLS)]
    if not (isinstance(cell, type) and issubclass(cell, GatedCell)):
        hint = ""
        if isinstance(cell, keras.Model):
            hint = ". Of a model give a layer, model.layers[i]"
        elif isinstance(cell, (keras.layers.Bidirectional, keras.layers.Wrapper)):
            hint = ". Of a wrapper give the layer inside, such as wrapper.forward_layer"
        raise ValueError(
            f"`cell` must be one of {', '.join(map(repr, CELLS))}, a subclass of GatedCell, an "
            f"instance of one, or a layer with one. Received: cell={cell!r}{hint}"
        )
    return cell


@eager_scope()
def judge(cell):
    """The verdict on an instance of a cell, built or not, without the estimates."""
    output = getattr(cell, "output_activation", None)
    judged = {**cell.gate_activations, CANDIDATE: cell.candidate_activation}
    if output is not None:
        judged[_OUTPUT] = output
    untraced, never = None, {}
    try:
        its, program = traced(cell)
        never = {} if type(cell) in CELLS.values() else unused(cell)
    except NotTraceableError as error:
        untraced = error
    judged = {n: a for n, a in judged.items() if _argument(n) not in never}
    names = {name: activations.name_of(activation) for name, activation in judged.items()}
    found = {
        "cell": type(cell).__name__,
        "gates": {name: names[name] for name in cell.gate_activations if name in names},
        "candidate": names.get(CANDIDATE),
        "output": names.get(_OUTPUT),
        "unused": never,
    }
    profiles, unknown = {}, []
    for name, activation in judged.items():
        try:
            profiles[name] = activations.profile(activation)
        except ValueError as error:
            unknown.append(_unjudged(name, names[name], error))
    if untraced is not None and not unknown:
        unknown = [Reason("caution", f"its equations cannot be traced: {untraced}", _UNKNOWN)]
    if unknown:
        return _unknown(found, cell, *unknown)
    cell, candidate, output = its, profiles.pop(CANDIDATE, None), profiles.pop(_OUTPUT, None)
    candidate = candidate or reasons.candidate_of(cell, program)
    carry, carriers, growth, bounded = probe.probed(cell, program)
    against = [
        *reasons.of_carry(cell, program, profiles, carry, carriers, growth, bounded),
        *reasons.of_growth(cell, _chosen(cell, profiles), candidate, output, carry, growth),
        *reasons.of_gates(cell, _chosen(cell, profiles)),
        *(reasons.of_candidate(cell, program, candidate, carry, growth) if candidate else ()),
    ]
    against.sort(key=lambda reason: -LEVELS.index(reason.level))
    level = against[0].level if against else "sound"
    return Verdict(
        **found,
        level=level,
        reasons=tuple(against),
        carry=carry,
        growth=growth,
        equations=tuple(equations(program, cell.symbols)),
    )


def _argument(name):
    """The argument that an activation is given by."""
    return name if name == _OUTPUT else argument_of(name)


def _chosen(cell, profiles):
    """Without the gates that have their cell's default: that is what its equations are made for."""
    defaults = cell.default_gates()
    return {name: p for name, p in profiles.items() if p.name != defaults[name]}


def _unjudged(name, activation, error):
    """Why an activation cannot be judged."""
    is_gate = name not in (CANDIDATE, _OUTPUT)
    who = f"the {'gate ' if is_gate else ''}{name} ({activation})"
    if isinstance(error, activations.NotANumberError):
        return Reason("unstable", str(error), "Take an activation that always has a value.")
    if isinstance(error, activations.MixesUnitsError):
        return Reason(
            "caution",
            f"{who} mixes units: each of its values depends on the inputs of all of them, and only "
            "elementwise activations can be judged beforehand",
            _UNKNOWN,
        )
    return Reason("caution", f"{who} cannot be judged: {error}", _UNKNOWN)


def _unknown(found, cell, *against):
    carry = dict.fromkeys(cell.state_names, (np.nan, np.nan))
    against = sorted(against, key=lambda reason: -LEVELS.index(reason.level))
    return Verdict(
        **found, level=against[0].level, reasons=tuple(against), carry=carry, growth=np.nan
    )


def warn_if_unstable(cell):
    """Warns if the verdict on the activations of `cell` is "unstable".

    A cell of one's own is not judged unasked: that evaluates its `update`.
    """
    if type(cell) not in CELLS.values():
        return
    verdict = judge(cell)
    if verdict.level == "unstable":
        reason = verdict.reasons[0]
        warnings.warn(
            f"These activations are unstable in {verdict.cell}: {reason.what}. {reason.advice} "
            "keras_gates.check_activations tells more.",
            UnstableActivationsWarning,
            stacklevel=stacklevel(),
        )
