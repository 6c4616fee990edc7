"""A cell taken apart: the functions of its weights that an engine runs and differentiates.

Between the two projections, which are linear, `x W + b` and `h U + c`, and the rest of the
equations, an engine may put all time steps of a chunk into one matrix product. All that a cell
knows (dropout, penalties, masks, where gradients are clipped) is inside these functions, so that an
engine needs their values and their derivatives alone.
"""

import collections
import contextlib

import keras
from keras import ops

from keras_gates._keras.layers import AutocastScope
from keras_gates.cells.step import Step, named, projected_blocks, running

# Dropout masks of the inputs and of the hidden state: lists of none, one, or one per block; and
# where zoneout keeps each state that has it, of one step or, with an axis for time, of all.
Dropout = collections.namedtuple("Dropout", ["inputs", "recurrent", "kept"], defaults=[()])


class Recurrence:
    """The parts of a cell as functions of its weights.

    Args:
        cell: a built GatedCell.

    Attributes:
        variables: the cell's weights: W, U, b, as far as there are, then what activations and
            subclasses add. The functions take U as the equations use it.
        usual: how many of them are W, U and b.
        projected: names of the blocks that `project_state` gives.
    """

    def __init__(self, cell):
        self.cell = cell
        usual = (cell.kernel, cell.recurrent_kernel, cell.bias)
        self.variables = [weight for weight in usual if weight is not None]
        self.usual = len(self.variables)
        self.variables += [w for w in cell.weights if all(w is not v for v in self.variables)]
        self.projected = projected_blocks(cell)

    def values(self):
        """The present values of `variables`, in their own dtypes."""
        with AutocastScope(None):
            values = [variable.value for variable in self.variables]
            if self.cell.recurrent_kernel is not None:
                values[1] = self.cell.parametrize(values[1])
        return values

    def project_input(self, values, inputs, dropout):
        """`x W_k + b_k` of every block k; `inputs` (rows, features), each result (rows, units)."""
        with self._given(values, dropout) as step:
            return list(step.projected_input(inputs))

    def project_state(self, values, hidden, dropout):
        """`h U_k (+ c_k)` of every block in `projected`; `hidden` (rows, units)."""
        with self._given(values, dropout) as step:
            return list(step.projected_state(hidden))

    def pull_state(self, values, d_blocks, transposed, dropout):
        """dL/dh from the gradients of what `project_state` gave, and the transpose of U."""
        with self._given(values, dropout) as step:
            return step.pull_state(d_blocks, transposed)

    def advance(self, values, x, u, states, valid, dropout):
        """The states after one time step.

        Args:
            values: of `variables`.
            x, u: what `project_input` and `project_state` gave for this step.
            states: the states before, each (rows, units), and the running sums of the penalties,
                each (rows, 1).
            valid: booleans (rows, 1), or None: whether the step is not masked.
            dropout: the masks, for zoneout those of this step.
        """
        cell = self.cell
        with self._given(values, dropout):
            hidden_and_more = states[: len(cell.state_names)]
            sums = states[len(cell.state_names) :]
            new = cell.advance(named(cell.blocks, x), named(self.projected, u), hidden_and_more)
            new = [*new, *cell.add_penalized(sums, new[0])]
        if valid is None:
            return new
        return [ops.where(valid, after, before) for after, before in zip(new, states, strict=True)]

    @contextlib.contextmanager
    def _given(self, values, dropout):
        mapping = list(zip(self.variables, values, strict=True))
        scope = keras.StatelessScope(mapping)
        masks = _one_or_list(dropout.inputs), _one_or_list(dropout.recurrent)
        with scope, AutocastScope(self.cell.compute_dtype):
            kernel = self.cell.recurrent_kernel
            step = Step(self.cell, *masks, dropout.kept, kernel, may_clip=True)
            with running(self.cell, step):
                yield step
        if len(scope.state_mapping) > len(mapping):
            raise NotFusableError(
                f"the update of {type(self.cell).__name__} changes variables (random numbers?), "
                "and the backward pass has to compute it a second time"
            )


class NotFusableError(Exception):
    """The cell cannot run in an engine; the message says why."""


def _one_or_list(masks):
    return (masks[0] if len(masks) == 1 else list(masks)) if masks else None
