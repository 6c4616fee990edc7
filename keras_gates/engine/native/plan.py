"""What the kernel computes for a cell: forward, backward, and what the one keeps for the other."""

import collections
import dataclasses
import functools
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from keras_gates.engine.machine import Step, equations_of
from keras_gates.engine.native import cut, library
from keras_gates.engine.native.instructions import Code, assemble
from keras_gates.equations import constant, leaf
from keras_gates.equations.values import ordered


class Prices(NamedTuple):
    """What it costs to compute a value once more, where keeping it, written and read once, costs 1.

    A product is one with a block of weights.
    """

    arithmetic: float
    reduction: float
    function: float
    product: float


# As fast as can be; with less memory; with as little as can be.
QUICK = Prices(0.15, 0.4, 1.5, float("inf"))
LEAN = Prices(0.01, 0.03, 0.05, 0.9)
LEAST = Prices(0.001, 0.003, 0.005, 0.01)
_OF_ARITHMETIC = """
add subtract multiply negative abs sign where maximum minimum greater greater_equal less less_equal
equal logical_and logical_or logical_not relu leaky_relu clip hard_sigmoid square
"""


@dataclasses.dataclass(frozen=True)
class Passes:
    """Those of a training step: `forward` keeps `kept` values beside the states for `backward`."""

    forward: Code
    backward: Code
    kept: int


@dataclasses.dataclass(frozen=True)
class Plan:
    """The programs of a cell.

    Attributes:
        blocks, projected: how many.
        states: how many, with the sums of penalties, `sums` of them, at the end.
        infer: the equations alone.
        passes: from `Prices` to the `Passes` of a training step.
        product_block: of each product `v U_k` in the equations, the number of k.
        d_input_of, d_projected_of: see `kernel.h`.
        weights: names of the weights that gradients are computed for.
    """

    blocks: int
    projected: int
    states: int
    sums: int
    infer: Code
    passes: Callable[[Prices], Passes]
    product_block: np.ndarray
    d_input_of: np.ndarray
    d_projected_of: np.ndarray
    weights: tuple


def plan_of(cell, program):
    """The `Plan` for a cell and its traced `Program`.

    Raises:
        NotFusableError: with the reason.
    """
    return _plan(equations_of(cell, program), cell.units)


@functools.lru_cache(256)
def _plan(equations, units):
    step = Step(equations, library.operations())
    blocks, x, u, d_x, d_u = equations.blocks, step.x, step.u, step.d_x, step.d_u
    states, sums, outputs, d_after = step.states, step.sums, step.outputs, step.d_after

    # The gradients that the backward pass is to give. Equal ones of several blocks are one.
    gradients: dict = {}
    for i, d in enumerate([*d_x, *d_u]):
        if d is not None:
            gradients.setdefault(d, i)
    places = [("D_INPUT", k) for k in range(len(x))] + [("D_PROJECTED", k) for k in range(len(u))]
    targets = [(d, places[i]) for d, i in gradients.items()]
    targets += [
        (constant(0) if d is None else d, ("D_NEW", s)) for s, d in enumerate(step.d_before)
    ]
    for i, (_, value, d) in enumerate(step.products):
        targets += [(value, ("FACTOR", i)), (d, ("D_PRODUCT", i))]
    of_weights = zip(step.weights, step.d_weights, strict=True)
    learned = [(w["name"], d) for w, d in of_weights if d is not None]
    targets += [(d, ("D_WEIGHT", i)) for i, (_, d) in enumerate(learned)]

    given = _places_of_inputs(outputs, [d for d, _ in targets], x, u)
    before = {value: ("STATE", i) for i, value in enumerate([*states, *sums])}
    leaves = equations.program.leaves
    kept_states = [name for name, _ in equations.program.outputs if ("kept", name) in leaves]
    masks = {leaf("kept", name): ("MASK", i) for i, name in enumerate(kept_states)}
    after = {value: ("NEW", i) for i, value in enumerate(outputs[: len(states)])}
    d_places = {d: ("D_STATE", i) for i, d in enumerate(d_after)}

    def code_of(targets, places, projected):
        code = assemble(targets, places, blocks, units)
        registers = {
            of_block: code.register.get(place, -1)
            for value, place in projected.items()
            for of_block in (value, *value.arguments)
        }
        code.input_register = _numbers(registers.get(of_block, -1) for of_block in x)
        code.projected_register = _numbers(registers.get(of_block, -1) for of_block in u)
        return code

    def forward(kept):
        projected = {value: kept.get(value, place) for value, place in given.items()}
        wanted = [(value, ("NEW", i)) for i, value in enumerate(outputs)]
        wanted += [(value, place) for value, place in kept.items() if value not in given]
        return code_of(wanted, {**projected, **before, **masks}, projected)

    @functools.cache
    def passes(prices):
        kept = _kept([d for d, _ in targets], outputs, given, [*states, *after], d_after, prices)
        kept = {value: ("KEPT", i) for i, value in enumerate(kept)}
        again = {value: place for value, place in given.items() if value not in kept}
        at_hand = {**again, **after, **{s: before[s] for s in states}, **masks, **kept, **d_places}
        return Passes(forward(kept), code_of(targets, at_hand, again), len(kept))

    return Plan(
        blocks=len(x),
        projected=len(u),
        states=len(d_after),
        sums=len(sums),
        infer=forward({}),
        passes=passes,
        product_block=_numbers(blocks.index(block) for block, _, _ in step.products),
        d_input_of=_numbers(-1 if d is None else gradients[d] for d in d_x),
        d_projected_of=_numbers(-1 if d is None else gradients[d] for d in d_u),
        weights=tuple(name for name, _ in learned),
    )


def _numbers(values):
    return np.array(list(values), "int32")


def _places_of_inputs(outputs, gradients, x, u):
    """From `x W_k + b_k` and `h U_k + c_k`, or from their sum where nothing else is made of them
    and the product can add them up, to their places."""
    values = ordered([*outputs, *gradients])
    uses = collections.Counter(id(a) for value in values for a in value.arguments)
    uses.update(map(id, gradients))
    found = {}
    for a in x:
        pair = {a, *[b for b in u if b["name"] == a["name"]]}
        sums = [v for v in values if v.operation == "add" and set(v.arguments) == pair]
        if len(pair) == 2 and len(sums) == 1 and all(uses[id(leaf)] == 1 for leaf in pair):
            pair = sums
        found.update(dict.fromkeys(pair))
    found.update(dict.fromkeys(b for b in u if not any(b in (v, *v.arguments) for v in found)))
    # Numbers that the assembler's own are far from.
    return {value: ("LOCAL", 10**6 + i) for i, value in enumerate(found)}


def _kept(wanted, outputs, given, free, d_after, prices):
    """Values of the forward pass that the backward pass is computed from, as cheaply as can be."""
    stops = {id(value) for value in given}
    of_gradients = {id(d) for d in d_after}
    order = ordered(wanted, stops)
    for value in order:
        if any(id(a) in of_gradients for a in value.arguments):
            of_gradients.add(id(value))
    used = {id(a) for v in order if id(v) in of_gradients for a in v.arguments}
    used |= set(map(id, wanted))
    required = [v for v in order if id(v) in used and id(v) not in of_gradients]
    of_forward = {id(v) for v in ordered(outputs, stops)}
    never = float("inf")

    def costs(value):
        if any(value is v for v in free):
            return 0.0, never
        keep = 1.0 if id(value) in of_forward else never
        if id(value) in stops:  # one projection, or the sum of two
            return keep, prices.product * max(1, len(value.arguments))
        if value.operation == "recurrent":
            return keep, prices.product
        if not value.arguments:  # a number, a weight or a mask
            return 0.0, never
        if value.operation in _OF_ARITHMETIC.split():
            return keep, prices.arithmetic
        return keep, prices.reduction if value.operation in ("sum", "max") else prices.function

    known = {value: costs(value) for value in ordered(required, stops)}
    found = cut.cheapest(known, required, stops)
    return [value for value in found if known[value][0] > 0]
