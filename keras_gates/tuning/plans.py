"""Which activations may be drawn in a cell, and what is worth choosing beside each of them."""

import dataclasses
import functools
import random

from keras_gates import activations, verdicts
from keras_gates.cells.base import CANDIDATE

UNSTABLE = len(verdicts.LEVELS) - 1


@dataclasses.dataclass(frozen=True)
class Plan:
    """What may be drawn in one cell.

    Attributes:
        candidates: all candidates, the sound ones first.
        groups: pairs of some candidates and the gates that each of these allows, the sound ones
            first; no gates in a cell that has none.
        clipped: the candidates with which clipping gradients is a choice.
        penalized: those with which an L1 penalty is.
        identity: those with which identity recurrent weights are.
    """

    candidates: tuple
    groups: tuple
    clipped: tuple
    penalized: tuple
    identity: tuple


def plan_for(name, cell, gates, candidates, unstable, options):
    """The `Plan` for a cell.

    Args:
        name: of the cell, for the error.
        cell: a subclass of `GatedCell`.
        gates, candidates: tuples of names of activations.
        unstable: whether unstable pairs may be drawn.
        options: further arguments of the cell.

    Raises:
        ValueError: no pair may be drawn.
    """
    gated = any(block != CANDIDATE for block in cell.blocks)
    found = {
        (candidate, gate): judged(cell, gate, candidate, options)
        for candidate in candidates
        for gate in (gates if gated else (None,))
    }
    levels = {pair: verdicts.LEVELS.index(verdict.level) for pair, verdict in found.items()}
    allowed = [pair for pair in found if unstable or levels[pair] < UNSTABLE]
    if not allowed:
        (candidate, gate), verdict = next(iter(found.items()))
        pair = f"{gate} with {candidate}" if gated else candidate
        raise ValueError(
            f"All that `gates` and `candidates` allow is unstable in the cell {name!r}: {pair}, "
            f"because {verdict.reasons[0].what}. Give others, or unstable=True to search among "
            f"them all the same. Received: gates={gates!r}, candidates={candidates!r}"
        )
    gates_of = {}
    for candidate, gate in sorted(allowed, key=levels.get):
        gates_of.setdefault(candidate, []).append(gate)
    alike = {}
    for candidate, its in gates_of.items():
        alike.setdefault(frozenset(its), (its, []))[1].append(candidate)
    profiles = {candidate: activations.profile(candidate) for candidate in gates_of}
    clipped = [
        candidate
        for candidate, p in profiles.items()
        if not gated
        or not p.bounded
        or any(levels[candidate, gate] == UNSTABLE for gate in gates_of[candidate])
    ]
    # U has one block of columns per gate: it can be the identity where there is but one.
    square = len(cell.blocks) == 1
    return Plan(
        candidates=tuple(gates_of),
        groups=tuple((tuple(some), tuple(its) if gated else ()) for its, some in alike.values()),
        clipped=tuple(clipped),
        penalized=tuple(c for c, p in profiles.items() if p.zero_share > 0 or not p.bounded),
        identity=tuple(
            c for c, p in profiles.items() if square and p.lower >= 0 and not p.bounded_above
        ),
    )


def judged(cell, gate, candidate, options):
    """What `check_activations` says of a pair, without the spectral radius."""
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
        given["gate_activation"] = gate
    # Keras draws the seeds of what it makes from here: those of the model to be built must not
    # depend on what has been judged before.
    state = random.getstate()
    try:
        return verdicts.judge(verdicts.make(cell, 1, given))
    finally:
        random.setstate(state)
