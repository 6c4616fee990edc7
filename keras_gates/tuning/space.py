"""The choice of activations as a part of a search space.

What cannot work is never drawn: the verdict on every pair of a gate and a candidate is known before
any training, and a pair that is unstable in a cell is no part of the space. What helps only some
candidates (clipping, an L1 penalty, identity recurrent weights) is a choice for those alone, and
so is where gates start, which takes gates that are shares.

No two hyperparameters have one name, because KerasTuner loses the value of one that is declared
under several conditions. Where what there is to choose from depends on another choice, names have
a prefix instead: "gru/candidate_activation", "lstm/candidate_activation".
"""

import contextlib
import functools
import itertools
import random
from collections.abc import Sequence
from typing import Any, NamedTuple, get_args

import keras
import keras_tuner

from keras_gates import activations, verdicts
from keras_gates.cells import CELLS, GatedCell
from keras_gates.cells.arguments import refuse_given, refuse_unknown
from keras_gates.cells.clipping import CLIP_PLACES
from keras_gates.cells.initialization import GateStarts
from keras_gates.cells.step import argument_of, recurrent_blocks
from keras_gates.equations import NotTraceableError
from keras_gates.initializers import Chrono
from keras_gates.types import InitializationName
from keras_gates.validation import close_matches, invalid, positive_integer, true_or_false

# Gates with values in [0, 1], and of the candidates in examples/verdicts.py those that did well.
GATES = ("sigmoid", "hard_sigmoid", "tanh_gate", "softsign_gate")
CANDIDATES = ("tanh", "softsign", "hard_tanh", "elu", "relu", "leaky_relu")
# For gradients of a mean loss, which have a factor of 1 / batch size in them.
_CLIP_NORMS = (1.0, 0.3, 0.1, 0.03)
_L1_STRENGTHS = (0.0, 1e-5, 1e-4, 1e-3)
_INITIALIZERS = ("orthogonal", "identity")
# What a choice stands for that is not asked for.
UNASKED = {
    "clipping": "none",
    "activation_l1": 0.0,
    "recurrent_initializer": "orthogonal",
    "initialization": "keras",
}
# What `activation_space` does not pass on to a cell.
SPACE_ARGUMENTS = ("cell", "gates", "candidates", "unstable", "units", "double_one_sided")


_Cell = str | type[GatedCell]
CellChoice = _Cell | Sequence[_Cell]


def activation_space(
    hp: keras_tuner.HyperParameters,
    cell: CellChoice = "gru",
    gates: str | Sequence[str] = GATES,
    candidates: str | Sequence[str] = CANDIDATES,
    *,
    unstable: bool = False,
    units: int | None = None,
    double_one_sided: bool = False,
    **options: Any,
) -> dict[str, Any]:
    """Chooses, in KerasTuner's `build(hp)`, activations of a `GatedRNN` and what goes with them.

    Pairs of a gate and a candidate that `check_activations` calls unstable in the cell are not
    drawn, nor is an activation that it never calls. The sound pairs come first, and the very first
    is the default. The hyperparameters:

    - `cell`, `candidate_activation`, and in cells with gates `gate_activation`, for all gates (in
      `n_brc` for the one that is a share of the state).
    - `clipping`: "none", "state" or "preactivation", and unless it is "none" `grad_clip_norm`, from
      0.03 to 1. For unbounded candidates; for all candidates in a cell without gates, where nothing
      else holds gradients together; for those in unstable pairs. Not under float16.
    - `activation_l1`: from 0 to 1e-3. For candidates that are unbounded, or zero for some inputs.
    - `recurrent_initializer`: "orthogonal" or "identity". For relu and its like, never negative
      and unbounded above, in a cell without gates.
    - `initialization`: "keras" or "uniform_gates". For candidates all of whose gates can start
      spread over (0, 1). (`keras_gates.initializers.Chrono` takes a number of time steps that
      only you know: give it as an option, or in a list of options to choose from.)

    Names have a prefix where what there is to choose from depends on another choice, as in
    "lstm/candidate_activation" with several cells. A choice of one is fixed, and still noted with
    every trial. Layers that are given the same result share the choice; for one per layer call this
    within `hp.name_scope("layer_1")` and so on.

    Args:
        hp: KerasTuner's `HyperParameters`.
        cell: the name of a cell ("gru", "lstm", ...), a subclass of `GatedCell`, or a list of these
            to choose from.
        gates, candidates: names of activations to choose from, or one name. Default: some that do
            well, and the cell's own first. A function of your own goes by the name it is registered
            under, "my_package>my_gate", and is shown as "my_package.my_gate".
        unstable: whether to draw unstable pairs as well.
        units: a number of units to pass on. Default: none is.
        double_one_sided: whether to pass on twice as many where the candidate has values on one
            side of zero only.
        **options: further arguments of the cell, passed on. An argument that is given is no choice
            any more: `grad_clip_norm=None` means no clipping, `activation_l1=0.0` no penalty. A
            list for `initialization` is what to choose from, such as
            `["keras", keras_gates.initializers.Chrono(150)]`. Pairs are judged with them: gates
            that can be negative are allowed with a bound on gradients, unbounded candidates in an
            LSTM with a bounded `output_activation`. An argument that only some of several cells
            have is passed on to those. (Arguments of the layer, such as `return_sequences`, are
            given to `GatedRNN` itself.)

    Returns:
        Keyword arguments for `GatedRNN`, as a dict.

    Raises:
        ValueError: an unknown cell or activation; nothing but unstable pairs; `double_one_sided`
            without `units`; a hyperparameter that has other values in this space already.
        TypeError: an argument that no cell has.

    Example:

    >>> import keras_tuner
    >>> from keras_gates.tuning.space import activation_space
    >>> def build(hp):
    ...     model = keras.Sequential([
    ...         keras.Input((None, 12), name="frames"),
    ...         keras_gates.GatedRNN(hp.Choice("units", [32, 64]), **activation_space(hp)),
    ...         keras.layers.Dense(9, activation="softmax"),
    ...     ])
    ...     model.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
    ...     return model
    >>> hp = keras_tuner.HyperParameters()
    >>> model = build(hp)
    >>> hp.values
    {'units': 32, 'cell': 'gru', 'candidate_activation': 'tanh', ..., 'initialization': 'keras'}

    Sources: Glorot, Bordes, Bengio, "Deep sparse rectifier neural networks", 2011 (L1, twice the
    units); Le, Jaitly, Hinton, "A simple way to initialize recurrent networks of rectified linear
    units", 2015 (identity); Pascanu, Mikolov, Bengio, "On the difficulty of training recurrent
    neural networks", 2013 (clipping).
    """
    hyper_parameters("hp", hp)
    given = gates is not GATES, candidates is not CANDIDATES
    names = _names("gates", gates), _names("candidates", candidates)
    unstable = true_or_false("unstable", unstable)
    double_one_sided = true_or_false("double_one_sided", double_one_sided)
    units = None if units is None else positive_integer("units", units)
    if double_one_sided and units is None:
        raise ValueError(
            "`double_one_sided` needs the number to be doubled: give `units` as well. Received: "
            f"double_one_sided={double_one_sided!r}, units=None"
        )
    cells = named_cells(cell)
    options = cell_options(cells, options)
    plans = {
        name: _plan_for(
            name,
            kind,
            [n if g else own + n for n, g, own in zip(names, given, _own(kind), strict=True)],
            unstable,
            _starts(options[name]),
            options[name],
        )
        for name, kind in zip(cells, map(_class, cells.values()), strict=True)
    }
    name = choice(hp, "cell", tuple(cells))
    drawn = {}
    for each in dict.fromkeys(plans.values()):
        alike = [name for name in cells if plans[name] == each]
        with _where(hp, "cell", alike, cells, named=True):
            drawn.update(_drawn(hp, each, fixed=options[alike[0]]))
    if name is None:  # the caller is under a condition that is not met
        return {}
    if units is not None:
        its = activations.profile(drawn["candidate_activation"])
        one_sided = its.lower >= 0 or its.upper <= 0
        drawn["units"] = 2 * units if double_one_sided and one_sided else units
    if "gate_activation" in drawn:
        drawn["gate_activation"] = of_gates(_class(cells[name]), drawn["gate_activation"])
    return {"cell": cells[name], **drawn, **options[name]}


def of_gates(cell, gate):
    """What `gate_activation` is to be for a choice of gates: of a cell with other gates as well,
    such as one from -1 to 1, these stay as they are."""
    defaults = cell.default_gates()
    if len(set(defaults.values())) == 1:
        return gate
    shares = {name: activations.profile(default).lower >= 0 for name, default in defaults.items()}
    return {name: gate for name, is_share in shares.items() if is_share} or gate


def _own(cell):
    """The gates and the candidates that a cell has by default."""
    gates = dict.fromkeys(cell.default_gates().values())
    return tuple(d for d in gates if of_gates(cell, d) == d), (cell.default_candidate_activation,)


class _Plan(NamedTuple):
    """What may be drawn in one cell.

    Attributes:
        candidates: all candidates, the sound ones first.
        groups: pairs of some candidates and the gates that each of these allows, the sound ones
            first; no gates in a cell that has none.
        clipped: the candidates with which clipping gradients is a choice.
        further: arguments that are a choice, each with its values and the candidates with which it
            is one.
    """

    candidates: tuple
    groups: tuple
    clipped: tuple
    further: tuple


def _starts(options):
    """The starts of gates to choose from: takes a list of them out of the further arguments."""
    given = options.get("initialization")
    if not isinstance(given, (list, tuple)):
        return get_args(InitializationName)
    del options["initialization"]
    found = tuple("keras" if value is None else value for value in given)
    if not found or not all(isinstance(value, (str, Chrono)) for value in found):
        expected = "a start of gates, or a list of one or more to choose from"
        raise invalid("initialization", expected, given)
    return found


def _plan_for(name, cell, names, unstable, starts, options):
    """The `_Plan` for a cell of this name, with these gates and candidates, starts of gates and
    further arguments.

    Raises:
        ValueError: no pair may be drawn.
    """
    gates, candidates = map(dict.fromkeys, names)
    own = cell.default_candidate_activation
    never = judged(cell, None, own, options)[0].unused
    if argument_of("candidate") in never:
        candidates = {own: None}
    gated = any(argument_of(gate) not in never for gate in cell.gate_names())
    pairs = itertools.product(candidates, gates if gated else (None,))
    found = {(candidate, gate): judged(cell, gate, candidate, options) for candidate, gate in pairs}
    levels = {pair: verdict.level for pair, (verdict, _) in found.items()}
    worst = verdicts.LEVELS[-1]
    gates_of = {}
    for candidate, gate in sorted(found, key=lambda pair: verdicts.LEVELS.index(levels[pair])):
        if unstable or levels[candidate, gate] != worst:
            gates_of.setdefault(candidate, []).append(gate)
    if not gates_of:
        (candidate, gate), (verdict, _) = next(iter(found.items()))
        pair = f"{gate} with {candidate}" if gated else candidate
        raise ValueError(
            f"All that `gates` and `candidates` allow is unstable in the cell {name!r}: {pair}, "
            f"because {verdict.reasons[0].what}. Give others, or unstable=True to search among "
            f"them all the same. Received: gates={(*gates,)}, candidates={(*candidates,)}"
        )
    alike = {}
    for candidate, its in gates_of.items():
        alike.setdefault(frozenset(its), (its, []))[1].append(candidate)

    def those(condition):
        return tuple(c for c in gates_of if condition(c, activations.profile(c)))

    # U has one block of columns per gate: it can be the identity where there is but one.
    square = len(cell.blocks) == len(recurrent_blocks(cell)) == 1
    clipped = those(
        lambda c, p: not (gated and p.bounded) or any(levels[c, g] == worst for g in gates_of[c])
    )
    penalized = those(lambda c, p: p.zero_share > 0 or not p.bounded)
    identity = those(lambda c, p: square and p.lower >= 0 and not p.bounded_above)
    started = those(lambda c, p: all(found[c, gate][1] for gate in gates_of[c]))
    groups = tuple((tuple(some), tuple(its) if gated else ()) for its, some in alike.values())
    further = (
        ("activation_l1", _L1_STRENGTHS, penalized),
        ("recurrent_initializer", _INITIALIZERS, identity),
        ("initialization", starts, started),
    )
    return _Plan(tuple(gates_of), groups, clipped, further)


def judged(cell, gate, candidate, options):
    """What `check_activations` says of a pair, without the spectral radius, and whether the gates
    of such a cell can start elsewhere."""
    options = tuple(options.items())
    try:
        hash(options)
    except TypeError:
        return _judged.__wrapped__(cell, gate, candidate, options)
    return _judged(cell, gate, candidate, options)


@functools.lru_cache(maxsize=1024)  # a model is built often, and its space is the same each time
def _judged(cell, gate, candidate, options):
    given = {"name": "judged", "candidate_activation": candidate, **dict(options)}
    if gate is not None:
        given["gate_activation"] = of_gates(cell, gate)
    # Keras draws the seeds of what it makes from here: those of the model to be built must not
    # depend on what has been judged before.
    state = random.getstate()
    try:
        made, can_start = verdicts.make(cell, 1, given), False
        with contextlib.suppress(NotTraceableError):
            can_start = made.use_bias and bool(GateStarts(made).ways)
        return verdicts.judge(made), can_start
    finally:
        random.setstate(state)


def hyper_parameters(argument, value):
    if not isinstance(value, keras_tuner.HyperParameters):
        expected = "a keras_tuner.HyperParameters, such as `build` is called with"
        raise invalid(argument, expected, value)


def choice(hp, name, values):
    """One of `values`, the first of them by default. None where `hp` is under an unmet condition.

    Numbers are ordered by size, which oracles make use of. A single value is noted with each trial.
    """
    shown = [_shown(value) for value in values]
    if len(shown) == 1:
        value = hp.Fixed(name, shown[0])
    elif isinstance(shown[0], bool):
        value = hp.Boolean(name, default=shown[0])
    else:
        ordered = shown if isinstance(shown[0], str) else sorted(shown)
        value = hp.Choice(name, ordered, default=shown[0])
    if value is None:
        return None
    if value not in shown:
        raise ValueError(
            f"The hyperparameter {name!r} has other values in this search space already: it is "
            f"{value!r}, and expected was one of {', '.join(map(repr, shown))}. Declare the two "
            "in an `hp.name_scope` each, or begin a new search."
        )
    return values[shown.index(value)]


def _shown(value):
    """What stands for a value in the search: "package.name" for a registered function, because
    KerasTuner would put the function itself in the place of "package>name"."""
    if isinstance(value, Chrono):
        return str(value)
    return value.replace(">", ".") if isinstance(value, str) else value


def _drawn(hp, plan, fixed):
    """The choices of a plan that are active, as arguments of a GatedRNN."""
    every = plan.candidates
    found = [("candidate_activation", choice(hp, "candidate_activation", every))]
    for some, gates in plan.groups:
        if gates:
            with _where(hp, "candidate_activation", some, every, named=True):
                found.append(("gate_activation", choice(hp, "gate_activation", gates)))
    bound_given = fixed.keys() & {"grad_clip_norm", "grad_clip_value", "grad_clip_at"}
    scaled = keras.config.dtype_policy().compute_dtype == "float16"  # cells refuse a bound then
    if plan.clipped and not (bound_given or scaled):
        with _where(hp, "candidate_activation", plan.clipped, every):
            place = choice(hp, "clipping", ("none", *CLIP_PLACES))
            with _where(hp, "clipping", CLIP_PLACES, ("none", *CLIP_PLACES)):
                norm = choice(hp, "grad_clip_norm", _CLIP_NORMS)
        if norm is not None:
            found += [("grad_clip_norm", norm), ("grad_clip_at", place)]
    for argument, values, some in plan.further:
        if some and argument not in fixed:
            with _where(hp, "candidate_activation", some, every):
                found.append((argument, choice(hp, argument, values)))
    return {argument: value for argument, value in found if value is not None}


@contextlib.contextmanager
def _where(hp, parent, some, every, named=False):
    """The scope of what there is for some of all the values of a choice. `named`: of what goes by
    one name for all of them, and gets names of its own."""
    if len(some) == len(every):
        yield
        return
    shown = [_shown(value) for value in some]
    own = hp.name_scope("+".join(shown)) if named else contextlib.nullcontext()
    with hp.conditional_scope(parent, shown), own:
        yield


def _names(argument, given):
    """Names of activations, each once, that all have a profile."""
    names = (given,) if isinstance(given, str) else given
    expected = f"`{argument}` must be the name of an elementwise activation, or a list of names"
    if not isinstance(names, (list, tuple)) or not names:
        raise ValueError(f"{expected}. Received: {argument}={given!r}")
    for name in names:
        if not isinstance(name, str):
            raise ValueError(
                f"{expected}, because KerasTuner keeps choices as text. A function that is "
                "registered (@keras.saving.register_keras_serializable) has a name, "
                f"'package>name'. Received: {argument}={given!r}"
            )
        try:
            activations.profile(name)
        except ValueError as error:
            hint = close_matches(name, activations.names())
            raise ValueError(f"{expected}. Received: {name!r}{hint}") from error
    return tuple(dict.fromkeys(names))


def named_cells(given):
    """From the name of each cell to what `GatedRNN(cell=...)` takes."""
    cells = {}
    for cell in given if isinstance(given, (list, tuple)) else [given]:
        if isinstance(cell, str) and cell in CELLS:
            cells[cell] = cell
        elif isinstance(cell, type) and issubclass(cell, GatedCell):
            cells[cell.__name__] = cell
        else:
            raise ValueError(
                f"`cell` must be one of {', '.join(map(repr, CELLS))}, a subclass of GatedCell, or "
                f"a list of these. Received: {cell!r}{close_matches(cell, CELLS)}"
            )
    if not cells:
        raise ValueError(f"`cell` must name at least one cell. Received: cell={given!r}")
    return cells


def _class(cell):
    return CELLS[cell] if isinstance(cell, str) else cell


def cell_options(cells, given, owner="activation_space", close=SPACE_ARGUMENTS):
    """From the name of each cell to those of the given arguments that it takes.

    Raises:
        TypeError: an argument that no cell takes, in the name of `owner`, which may have meant one
            of `close`.
    """
    for argument, instead in (("gate_activation", "gates"), ("candidate_activation", "candidates")):
        reason = f"that is what it chooses, of the names that you give as `{instead}`"
        refuse_given(owner, given, (argument,), reason)
    taken = {name: _class(cell).options() - {"units"} for name, cell in cells.items()}
    refuse_unknown(owner, given, set().union(*taken.values()), CELLS.values(), close)
    gated = [name for name, cell in cells.items() if _class(cell).gate_names()]
    for name in taken.keys() - gated if gated else ():  # alone, a cell without gates refuses it
        taken[name] -= {"initialization"}
    return {
        name: {argument: value for argument, value in given.items() if argument in taken[name]}
        for name in cells
    }
