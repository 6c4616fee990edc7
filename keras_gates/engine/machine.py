"""What a machine computes for one time step of a cell: the step and its derivative, as values."""

import dataclasses
from collections.abc import Callable

from keras_gates.cells.step import projected_blocks
from keras_gates.engine.recurrence import NotFusableError
from keras_gates.equations import apply, leaf, pulled
from keras_gates.equations.operations import clip_norm, total
from keras_gates.equations.program import Program, expanded
from keras_gates.equations.values import Value, number_of, ordered

# Products with blocks of the recurrent kernel in the middle of the equations.
PRODUCTS = ("recurrent", "recurrent_transposed")
# Rows whose value is that of their argument.
_SAME = ("broadcast", "stop_gradient", "cast")
_POWERS = {
    1: lambda x: x,
    2: lambda x: x * x,
    3: lambda x: x * x * x,
    0.5: lambda x: apply("sqrt", x),
    -1: lambda x: apply("reciprocal", x),
}


def lowered(value, names):
    """`value` in the operations of a machine.

    Args:
        value: of a program.
        names: of rows of the table, the machine's operations. What is not among them is expanded.

    Raises:
        NotFusableError: the machine lacks an operation.
    """
    value = expanded(value, lambda row: row.name in names or row.expand is None)
    done: dict = {}
    for v in ordered([value]):
        arguments = [done[id(a)] for a in v.arguments]
        if v.operation == "cast" and v["dtype"] == "bool":
            new = apply("logical_not", apply("equal", arguments[0], 0))
        elif v.operation in _SAME:
            new = arguments[0]
        elif v.operation in ("zeros_like", "ones_like"):
            new = apply("add", float(v.operation == "ones_like"), 0)
        elif v.operation == "power" and number_of(arguments[1]) in _POWERS:
            new = _POWERS[number_of(arguments[1])](arguments[0])
        elif arguments:
            new = apply(v.operation, *arguments, **dict(v.parameters))
            if v.operation not in names and v.operation not in PRODUCTS:
                raise NotFusableError(f"the kernel has no operation {v.operation!r}")
        else:
            new = v
        done[id(v)] = new
    return done[id(value)]


@dataclasses.dataclass(frozen=True)
class Equations:
    """What of a cell, beside its program, decides what a step computes. Equal ones compute alike.

    Attributes:
        program: the cell's, of inference or of training.
        blocks, projected: names of the blocks of x W and of h U.
        penalties: names of the penalties whose running sums are states too.
        bounds: where gradients at projections are clipped, the bounds by value and by norm.
    """

    program: Program
    blocks: tuple[str, ...]
    projected: tuple[str, ...]
    penalties: tuple[str, ...]
    bounds: tuple[float | None, float | None] | None


def equations_of(cell, program):
    """The `Equations` of a cell with that program."""
    bounds = None
    if cell.clips and cell.grad_clip_at == "preactivation":
        bounds = cell.grad_clip_value, cell.grad_clip_norm
    return Equations(
        program, tuple(cell.blocks), projected_blocks(cell), tuple(cell.penalties), bounds
    )


class Step:
    """A time step and its reverse-mode derivative.

    Attributes:
        x, u, states, sums, weights: the leaves that it is computed from: x W_k + b_k, h U_k + c_k,
            the states, the running sums of penalties, and the weights of the equations themselves.
        outputs: the states and the sums after the step.
        d_after: leaves for the gradients at these.
        d_x, d_u, d_before, d_weights: the gradients at x, at u, at the states and sums before the
            step as far as they do not come through u, and at the weights; None for none.
        products: of each `value U_k` in the equations the block k, the value and the gradient at
            the product.

    Args:
        equations: see `Equations`.
        names: of the machine's operations.

    Raises:
        NotFusableError: the machine lacks an operation.
    """

    def __init__(self, equations: Equations, names):
        program = equations.program

        def low(value):
            return None if value is None else lowered(value, names)

        self.x = [leaf("x", block) for block in equations.blocks]
        self.u = [leaf("u", block) for block in equations.projected]
        self.states = [leaf("state", name) for name, _ in program.outputs]
        self.sums = [leaf("state", name, wide=False) for name in equations.penalties]
        leaves = program.leaves.items()
        self.weights = [value for (kind, _), value in leaves if kind == "weight"]
        before = [*self.states, *self.sums]
        outputs = [value for _, value in program.outputs]
        candidate = dict(program.named).get("candidate")
        penalized = {"activation_l1": outputs[0], "candidate_l1": candidate}
        outputs += [
            s + total(apply("abs", penalized[name]))
            for s, name in zip(self.sums, equations.penalties, strict=True)
        ]
        self.d_after = [leaf("gradient", f"d_{s['name']}", wide=s.wide) for s in before]
        found, products = pulled(outputs, self.d_after, [*self.x, *self.u, *before, *self.weights])
        found = iter([low(d) for d in found])
        self.d_x, self.d_u, self.d_before, self.d_weights = (
            [next(found) for _ in range(len(of))] for of in (self.x, self.u, before, self.weights)
        )
        self.d_x, self.d_u = (_clipped(d, equations.bounds, low) for d in (self.d_x, self.d_u))
        self.outputs: list[Value] = [low(value) for value in outputs]
        self.products = [(block, low(value), low(d)) for block, value, d in products]


def _clipped(gradients, bounds, low: Callable):
    """The gradients at stacked projections, clipped together."""
    present = [d for d in gradients if d is not None]
    if not bounds or not present:
        return gradients
    value, norm = bounds
    if norm is None:
        clipped = [apply("clip_value", d, bound=value) for d in present]
    else:
        clipped = clip_norm(present, norm)
    found = iter([low(d) for d in clipped])
    return [None if d is None else next(found) for d in gradients]
