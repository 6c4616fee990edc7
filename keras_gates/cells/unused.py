"""Activations that a cell takes and never calls."""

import warnings

from keras_gates import activations
from keras_gates.cells.program import built_copy, trace, traced
from keras_gates.cells.step import argument_of

_GATE, _CANDIDATE = "gate_activation", "candidate_activation"


def unused(cell):
    """The arguments for activations that make no difference, because `update` never calls them.

    With another activation the program of such a cell is the same. Of a cell whose equations cannot
    be traced nothing is known.

    Args:
        cell: a GatedCell.

    Returns:
        From each argument to the call that `update` lacks: {"candidate_activation":
        "self.candidate", "gate_activation['reset']": "self.gate('reset')"}.
    """
    try:
        called = {argument_of(name) for name, _ in traced(cell)[1].named}
        asked = {argument: how for argument, how in _others(cell) if argument not in called}
        program = _program(cell) if asked else None
        return {a: call for a, (call, other) in asked.items() if _program(cell, **other) == program}
    except Exception:  # of the code of a cell of one's own
        return {}


def refuse_unused(cell, given):
    """Raises if an activation that a cell was given makes no difference, and is not the default.

    Args:
        cell: a GatedCell.
        given: the arguments that it was made with, by name.
    """
    given = {n: v for n, v in given.items() if n.endswith("_activation") and v is not None}
    if not given:
        return
    without, defaults = unused(cell), cell.default_gates()
    if without.keys() >= {argument_of(gate) for gate in defaults}:
        without[_GATE] = "self.gate"
    of_gates = given.get(_GATE)
    if isinstance(of_gates, dict) and not activations.is_serialized(of_gates):
        del given[_GATE]
        given |= {argument_of(gate): v for gate, v in of_gates.items() if v is not None}
    defaults = {argument_of(gate): default for gate, default in defaults.items()}
    defaults |= {_GATE: cell.default_gate_activation, _CANDIDATE: cell.default_candidate_activation}
    for argument, value in given.items():
        default = defaults.get(argument)
        known = isinstance(default, str) and activations.get(default, argument)
        if argument in without and activations.get(value, argument, warn=False) is not known:
            raise ValueError(
                f"`{argument}` makes no difference in {type(cell).__name__}, whose `update` never "
                f"calls {without[argument]}. Leave it out, or call that. Received: "
                f"{argument}={value!r}"
            )


def _others(cell):
    """From each argument for an activation to the call of it in `update`, and the arguments of a
    cell that has another one."""
    gates, used = cell.gate_activations, cell.activations_in_use()
    for gate in gates:
        yield argument_of(gate), (f"self.gate({gate!r})", {_GATE: {**gates, gate: _another}})
    names = [n for n in cell.options() if n.endswith("_activation") and n != _GATE]
    own = {n: getattr(cell, n) for n in names if any(getattr(cell, n, None) is a for a in used)}
    for name, activation in own.items():
        # One that is there by default for another one changes with it.
        alike = {n: _another for n, other in own.items() if other is activation}
        yield name, ("self.candidate" if name == _CANDIDATE else f"self.{name}", alike)


def _another(x):
    return 0.37 * x - 0.73


def _program(cell, **others):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # nothing is saved here
        return trace(built_copy(cell, initialization=None, **others), opaque=True)
