"""A cell in float64 NumPy, from its program: independent of the backend that runs it."""

import numpy as np
from keras import ops

from keras_gates.cells.program import trace, weights_by_name
from keras_gates.cells.step import projected_blocks, recurrent_blocks
from keras_gates.equations import evaluate


class Reference:
    """A built cell in float64 NumPy: its traced program, with its weights.

    Args:
        cell: a built GatedCell.

    Attributes:
        program: its program.
        weights: from the name of each weight that the equations use to its value.
    """

    def __init__(self, cell):
        self.cell, self.program = cell, trace(cell, opaque=True)
        self.weights = {name: array(weight) for name, weight in weights_by_name(cell).items()}
        self.kernel = array(cell.kernel)
        self.recurrent_kernel = array(cell.parametrized_kernel) if recurrent_blocks(cell) else None
        columns = self.kernel.shape[1]
        bias = np.zeros(columns) if cell.bias is None else array(cell.bias)
        self.bias, self.recurrent_bias = bias if bias.ndim == 2 else (bias, np.zeros(columns))

    def step(self, inputs, states):
        """The states after one time step, from inputs (rows, features) and those before."""
        cell = self.cell
        given = {("state", n): s for n, s in zip(cell.state_names, states, strict=True)}
        given |= {("weight", n): w for n, w in self.weights.items()}
        x = np.split(inputs @ self.kernel + self.bias, len(cell.blocks), axis=1)
        given |= {("x", name): block for name, block in zip(cell.blocks, x, strict=True)}
        given |= {("u", n): self.recurrent(n, states[0]) for n in projected_blocks(cell)}
        outputs = [v for _, v in self.program.outputs]
        found = evaluate(outputs, given, self.recurrent, units=cell.units)
        return [np.broadcast_to(v, states[0].shape) for v in found]

    def recurrent(self, block, value):
        """`value U_k + c_k` of the block k."""
        index, units = self.cell.blocks.index(block), self.cell.units
        columns = slice(index * units, (index + 1) * units)
        with np.errstate(all="ignore"):
            return value @ self.recurrent_kernel[:, columns] + self.recurrent_bias[columns]


def array(variable):
    """The value of a variable, in float64."""
    return np.asarray(ops.convert_to_numpy(variable)).astype("float64")
