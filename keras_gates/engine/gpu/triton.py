"""The kernels on PyTorch, by Triton.

Source: Tillet, Kung, Cox, "Triton: an intermediate language and compiler for tiled neural network
computations", 2019.
"""

import functools
import linecache
import math

import torch
import triton
import triton.language as tl

from keras_gates.engine.gpu import source
from keras_gates.engine.gpu.plan import ROWS, warps

# ---------------------------------------------------------------------- called by the source


@triton.jit
def multiplied(
    left, matrix, row, batch, units: tl.constexpr, stride: tl.constexpr, rows: tl.constexpr,
    wide: tl.constexpr, chunk: tl.constexpr,
):  # fmt: skip
    """The rows of a tile in memory times a block of a matrix."""
    column = tl.arange(0, wide)[None, :]
    total = tl.zeros((rows, wide), tl.float32)
    for start in range(0, wide, chunk):
        these = start + tl.arange(0, chunk)
        a = tl.load(
            left + row * units + these[None, :],
            mask=(row < batch) & (these < units)[None, :],
            other=0.0,
        )
        b = tl.load(
            matrix + these[:, None] * stride + column,
            mask=(these < units)[:, None] & (column < units),
            other=0.0,
        )
        # Three products of parts in 10 bits each give the 23 of float32.
        total = tl.dot(a.to(b.dtype), b, total, input_precision="tf32x3")
    return total


@triton.jit
def sum_over(x, inside):
    return tl.sum(tl.where(inside, x, 0.0), axis=1, keep_dims=True)


@triton.jit
def max_over(x, inside):
    return tl.max(tl.where(inside, x, float("-inf")), axis=1, keep_dims=True)


@triton.jit
def logical_not(x):
    return x == 0


@triton.jit
def maximum(a, b):
    return tl.maximum(a, b, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def minimum(a, b):
    return tl.minimum(a, b, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def sign(x):
    return tl.where(x > 0, 1.0, tl.where(x < 0, -1.0, x))


@triton.jit
def reciprocal(x):
    return 1.0 / x


@triton.jit
def expm1(x):
    # The first terms of the series, where the difference would lose digits.
    series = x * (1 + x / 2 * (1 + x / 3 * (1 + x / 4 * (1 + x / 5 * (1 + x / 6)))))
    return tl.where(tl.abs(x) < 0.3, series, tl.exp(x) - 1)


@triton.jit
def log1p(x):
    # What 1 + x loses of x, its logarithm loses as well (Kahan).
    y = 1 + x
    return tl.where((y == 1) | (y == float("inf")), x, tl.log(y) * (x / (y - 1)))


@triton.jit
def power(base, exponent):
    size = tl.exp(tl.log(tl.abs(base)) * exponent)
    odd = tl.floor(exponent / 2) * 2 != exponent
    whole = tl.floor(exponent) == exponent
    negative = tl.where(whole, tl.where(odd, -size, size), float("nan"))
    return tl.where(exponent == 0, 1.0, tl.where(base < 0, negative, size))


@triton.jit
def sinh(x):
    return (expm1(x) - expm1(-x)) / 2


@triton.jit
def cosh(x):
    return (tl.exp(x) + tl.exp(-x)) / 2


@triton.jit
def sigmoid(x):
    return 1 / (1 + tl.exp(-x))


@triton.jit
def tanh(x):
    e = expm1(-2 * tl.abs(x))
    y = -e / (2 + e)
    return tl.where(x < 0, -y, y)


@triton.jit
def relu(x):
    return tl.where(x < 0, 0.0, x)


@triton.jit
def softplus(x):
    return relu(x) + log1p(tl.exp(-tl.abs(x)))


@triton.jit
def softsign(x):
    return x / (1 + tl.abs(x))


@triton.jit
def elu(x, alpha):
    return tl.where(x > 0, x, alpha * expm1(minimum(x, 0.0)))


@triton.jit
def celu(x, alpha):
    return tl.where(x > 0, x, alpha * expm1(minimum(x / alpha, 0.0)))


@triton.jit
def selu(x):
    return 1.0507009873554805 * elu(x, 1.6732632423543772)


@triton.jit
def leaky_relu(x, slope):
    return tl.where(x > 0, x, slope * x)


# ---------------------------------------------------------------------- calls


def forward(plan, keep, sequences, given):
    """See `pallas.Kernels`."""
    arrays, counts = _laid_out(given)
    shapes = plan.shapes_forward(given, keep, sequences)
    made = kernel(source.forward(plan, counts, len(shapes["steps"])), plan.units)
    return _launched(made, given["x"][0], arrays, shapes)


def backward(plan, given):
    """See `pallas.Kernels`."""
    arrays, counts = _laid_out(given)
    made = kernel(source.backward(plan, counts), plan.units)
    return _launched(made, given["x"][0], arrays, plan.shapes_backward(given))


def _laid_out(given):
    arrays = [array.detach().contiguous() for of_name in given.values() for array in of_name]
    return arrays, {name: len(of_name) for name, of_name in given.items()}


def _launched(made, x, arrays, shapes):
    results = {
        name: [x.new_empty(shape, dtype=torch.float32) for shape in of_name]
        for name, of_name in shapes.items()
    }
    flat = [array for of_name in results.values() for array in of_name]
    _launch(made.number, x.shape[0], x.shape[1], arrays, flat)
    return results


class _Kernel:
    """A compiled source, and the number by which the operation of PyTorch knows it."""

    def __init__(self, text, units):
        # Triton reads the source of a function from its file.
        name = f"<keras_gates kernel {len(_known)}>"
        linecache.cache[name] = (len(text), None, text.splitlines(keepends=True), name)
        scope = dict(globals())
        exec(compile(text, name, "exec"), scope)
        self.function = triton.jit(scope["kernel"])
        self.warps = warps(units)
        self.number = len(_known)
        _known.append(self)


_known: list[_Kernel] = []


@functools.cache
def kernel(text, units):
    """The kernel of a source, whose functions are those above, for so many units."""
    return _Kernel(text, units)


# PyTorch knows it as one operation, so that it can be compiled around.
@torch.library.custom_op("keras_gates::launch", mutates_args=("results",))
def _launch(
    number: int, time: int, batch: int, arrays: list[torch.Tensor], results: list[torch.Tensor]
) -> None:
    made = _known[number]
    grid = (math.ceil(batch / ROWS),)
    made.function[grid](time, batch, *arrays, *results, num_warps=made.warps, num_stages=1)
