"""The weights that every cell has, and what they start with."""

import functools
import itertools

import numpy as np
from keras import ops

from keras_gates.cells import initialization, normalization
from keras_gates.cells.checking import check_order, same_shapes
from keras_gates.cells.step import recurrent_blocks

_CANDIDATE = "candidate"
# From what is made of it to the argument.
_INITIALIZERS = {
    "kernel": "kernel_initializer",
    "recurrent_kernel": "recurrent_initializer",
    "bias": "bias_initializer",
}


def add(cell, features):
    """Gives a cell W, U, biases, and what layer normalization takes, where it has them.

    Raises:
        ValueError: blocks of the class that do not fit together, an `initialization` that the cell
            cannot have, an initializer that fails or makes something else than it is asked for.
    """
    check_order(cell)
    recurrent, columns = recurrent_blocks(cell), cell.units * len(cell.blocks)
    cell.kernel = cell.add_weight(
        shape=(features, columns),
        name="kernel",
        initializer=cell.kernel_initializer,
        regularizer=cell.kernel_regularizer,
        constraint=cell.kernel_constraint,
    )
    cell.recurrent_kernel = cell.bias = None
    starts = initialization.of_cell(cell)
    if recurrent:
        cell.recurrent_kernel = cell.add_weight(
            shape=(cell.units, cell.units * len(recurrent)),
            name="recurrent_kernel",
            initializer=functools.partial(_recurrent_kernel, cell, starts),
            regularizer=cell.recurrent_regularizer,
            constraint=cell.recurrent_constraint,
        )
    if cell.layer_norm:
        biases = {b: functools.partial(_bias, cell, (b,), starts) for b in cell.blocks}
        normalization.add_weights(cell, recurrent, biases)
    elif cell.use_bias:
        cell.bias = cell.add_weight(
            shape=(2, columns) if cell.two_biases else (columns,),
            name="bias",
            initializer=functools.partial(_bias, cell, cell.blocks, starts),
            regularizer=cell.bias_regularizer,
            constraint=cell.bias_constraint,
        )
    _check(cell, columns)


def initializer_of(cell, name, initializer):
    """The argument that has given the initializer of the weight `name`, or None."""
    if initializer is cell.recurrent_initializer:
        return "recurrent_initializer"
    return _INITIALIZERS.get(name)


def _recurrent_kernel(cell, starts, shape, dtype=None):
    kernel = cell.recurrent_initializer(shape, dtype=dtype)
    if starts is None:
        return kernel
    gains = [starts.gain if b == _CANDIDATE else 1.0 for b in recurrent_blocks(cell)]
    return kernel * ops.cast(np.repeat(gains, cell.units), kernel.dtype)


def _bias(cell, blocks, starts, shape, dtype=None):
    fixed = {block: _fixed_bias(cell, block, starts) for block in blocks}
    if all(value is None for value in fixed.values()):
        return cell.bias_initializer(shape, dtype=dtype)
    parts = []
    # What is drawn for neighbours is drawn at once.
    for is_drawn, some in itertools.groupby(blocks, lambda block: fixed[block] is None):
        some = list(some)
        if is_drawn:
            parts.append(cell.bias_initializer((len(some) * cell.units,), dtype=dtype))
        else:
            parts += [ops.cast(fixed[block], dtype) for block in some]
    bias = ops.concatenate(parts)
    if len(shape) == 1:
        return bias
    # What stands in b is the whole bias of its block.
    drawn = np.repeat([fixed[block] is None for block in blocks], cell.units)
    second = cell.bias_initializer(bias.shape, dtype=dtype)
    return ops.stack([bias, ops.where(drawn, second, 0)])


def _fixed_bias(cell, block, starts):
    """Where a block's bias starts, if not as `bias_initializer` says."""
    bias = None if starts is None else starts.bias(block)
    if bias is None and block == cell.ones_in_bias:
        return np.ones(cell.units)
    return bias


def _check(cell, columns):
    """Raises if an initializer made a weight of another shape."""
    units, blocks = cell.units, len(recurrent_blocks(cell))
    for weight, argument, shape in (
        (cell.kernel, "kernel_initializer", (None, columns)),
        (cell.recurrent_kernel, "recurrent_initializer", (units, units * blocks)),
        (cell.bias, "bias_initializer", (2, columns) if cell.two_biases else (columns,)),
    ):
        if weight is not None and not same_shapes([weight.value], [shape]):
            raise ValueError(
                f"`{argument}` must give values of the shape that it is asked for. "
                f"Received: shape {tuple(weight.value.shape)}"
            )
    if cell.recurrent_kernel is not None:
        found, shape = cell.parametrized_kernel, tuple(cell.recurrent_kernel.shape)
        if not same_shapes([found], [shape]):
            raise ValueError(
                f"`parametrize` of {type(cell).__name__} must return a tensor of the shape of "
                f"the recurrent kernel, {shape}. Received: {found!r}"
            )
