"""What the kernels compute for a cell."""

import functools
import math

from keras_gates.cells.program import weights_by_name
from keras_gates.cells.step import recurrent_blocks
from keras_gates.engine.machine import Step, equations_of
from keras_gates.engine.recurrence import NotFusableError
from keras_gates.equations.values import number_of, ordered

# Operations of both Triton and Pallas; everything else is expanded into these.
_NAMES = """
add subtract multiply divide negative power abs sign floor sqrt rsqrt reciprocal exp expm1 log log1p
sin cos sinh cosh erf greater greater_equal less less_equal equal logical_and logical_or logical_not
where maximum minimum sum max sigmoid tanh relu softplus softsign elu celu selu leaky_relu
"""
NAMES = frozenset(_NAMES.split())
# Samples of a tile: as few as matrix units take.
ROWS = 16
# Columns of a product that are read at once.
CHUNK = 32
# Above, a block's share of U and the values of a step do not fit.
MOST_UNITS = 256


class Plan:
    """The values of a step and its derivative, and how the arrays are laid out.

    Attributes:
        step: a `Step`.
        gradients: the distinct ones of `step.d_x` and `step.d_u`; `of_x` and `of_u` say for each of
            those which it is, or None.
        vectors: weights and other constants with a number for each unit, or one.
        learned: the weights among them that have gradients, and these.
        kept: leaves for where zoneout keeps states.
        columns: from each block with columns of U to the first of them, in units.
        biases: whether h U + c has a c.

    Raises:
        NotFusableError: the kernels cannot run it, with the reason.
    """

    def __init__(self, cell, program):
        if cell.units > MOST_UNITS:
            raise NotFusableError(f"the kernel holds up to {MOST_UNITS} units, not {cell.units}")
        if cell.compute_dtype not in ("float32", "bfloat16"):
            raise NotFusableError(f"the kernel does not compute in {cell.compute_dtype}")
        equations = equations_of(cell, program)
        self.step = step = _step(equations)
        self.units, self.biases = cell.units, cell.bias is not None and cell.two_biases
        self.columns = {block: i for i, block in enumerate(recurrent_blocks(cell))}
        self.projected = [self.columns[block] for block in equations.projected]
        found: dict = {}
        for d in (*step.d_x, *step.d_u):
            if d is not None:
                found.setdefault(d, len(found))
        self.gradients = list(found)
        self.of_x = [None if d is None else found[d] for d in step.d_x]
        self.of_u = [None if d is None else found[d] for d in step.d_u]
        of_weights = zip(step.weights, step.d_weights, strict=True)
        self.learned = [(weight, d) for weight, d in of_weights if d is not None]
        leaves = program.leaves
        self.kept = [leaves["kept", n] for n, _ in program.outputs if ("kept", n) in leaves]
        self.vectors = [v for v in ordered([*step.outputs, *self.wanted]) if _is_vector(v)]
        sizes = {n: math.prod(w.shape) for n, w in weights_by_name(cell).items()}
        for vector in self.vectors:
            if vector.operation == "input" and sizes[vector["name"]] not in (1, cell.units):
                raise NotFusableError(f"`{vector['name']}` has not one number per unit")

    @property
    def wanted(self):
        """What the backward kernel computes."""
        before = [d for d in self.step.d_before if d is not None]
        weights = [d for _, d in self.learned]
        products = [value for _, *pair in self.step.products for value in pair]
        return [*self.gradients, *before, *weights, *products]

    def shapes_forward(self, given, keep, sequences):
        """From names to shapes of what the forward kernel writes: see `pallas.Kernels`."""
        shape = given["x"][0].shape
        return {
            "steps": [shape] * (len(self.step.states) if keep else int(sequences)),
            "last": [state.shape for state in given["states"]],
            "scratch": [shape[1:]] * len(given["recurrent_kernel"]),
        }

    def shapes_backward(self, given):
        """The same of the backward kernel."""
        shape, products = given["x"][0].shape, len(self.step.products)
        return {
            "gradients": [shape] * len(self.gradients),
            "d_states": [state.shape for state in given["states"]],
            "d_weights": [(shape[1], shape[2] if d.wide else 1) for _, d in self.learned],
            "factors": [shape] * products,
            "d_products": [shape] * products,
            "scratch": [shape[1:]] * (products > 0),
        }


@functools.lru_cache(256)
def _step(equations):
    return Step(equations, NAMES)


def _is_vector(value):
    if value.operation == "constant":
        return number_of(value) is None
    return value.operation == "input" and value["kind"] == "weight"


def warps(units):
    """How many groups of threads share a tile."""
    return 4 if padded(units) <= 64 else 8


def padded(units):
    """The least power of two that holds them, and that matrix units take."""
    return max(16, 1 << (units - 1).bit_length())
