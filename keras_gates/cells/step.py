"""One time step of a cell: what its equations are given, and what is noted of them."""

import collections

from keras import ops

from keras_gates.gradients import clip_gradient, may_be_recorded


class Step:
    """The projections of one time step, with dropout, and where its gradients are clipped.

    Args:
        cell: a GatedCell.
        inputs: (batch, features).
        hidden: the hidden state before the step, (batch, units).
        training: whether dropout applies.
    """

    def __init__(self, cell, inputs, hidden, training):
        self.cell = cell
        self.inputs, self.hidden = inputs, hidden
        # Keras makes these once per sequence: one mask, or one per block in a list.
        self.input_masks = cell.get_dropout_mask(inputs) if training else None
        self.recurrent_masks = cell.get_recurrent_dropout_mask(hidden) if training else None
        self.input_bias, self.recurrent_bias = cell.bias, None
        if cell.use_bias and cell.two_biases:
            self.input_bias, self.recurrent_bias = cell.bias[0], cell.bias[1]
        self.may_clip = bool(training) or may_be_recorded()
        self.activated = {}  # from "candidate" or the name of a gate to its value

    def projected_input(self):
        """`x W_k + b_k` of every block k, by name."""
        cell = self.cell
        return self._project(
            self.inputs, self.input_masks, cell.kernel, self.input_bias, cell.blocks
        )

    def projected_state(self):
        """`h U_k (+ c_k)` of every projected block k, by name."""
        cell = self.cell
        blocks = cell.blocks if cell.projected_blocks is None else cell.projected_blocks
        if not blocks:
            return _named((), None)
        kernel, bias = cell.recurrent_kernel, self.recurrent_bias
        columns = len(blocks) * cell.units
        if len(blocks) < len(cell.blocks):
            kernel = kernel[:, :columns]
            bias = None if bias is None else bias[:columns]
        return self._project(self.hidden, self.recurrent_masks, kernel, bias, blocks)

    def recurrent(self, block, value):
        """`value U_k (+ c_k)` of one block k."""
        cell = self.cell
        index = cell.blocks.index(block)
        columns = slice(index * cell.units, (index + 1) * cell.units)
        if self.recurrent_masks is not None:
            value = value * self.recurrent_masks[index]
        product = ops.matmul(value, cell.recurrent_kernel[:, columns])
        if self.recurrent_bias is not None:
            product = product + self.recurrent_bias[columns]
        return self.clip("preactivation", product)

    def activate(self, name, activation, preactivation):
        """The activation of a gate or the candidate, noted under its name."""
        self.activated[name] = activated = activation(preactivation)
        return activated

    def clip(self, place, x):
        """`x`, with its gradient clipped if this is the place where the cell clips."""
        cell = self.cell
        if place != cell.grad_clip_at or not self.may_clip:
            return x
        return clip_gradient(x, value=cell.grad_clip_value, norm=cell.grad_clip_norm)

    def _project(self, value, masks, kernel, bias, blocks):
        if isinstance(masks, list):
            kernels = ops.split(kernel, len(blocks), axis=1)
            parts = [
                ops.matmul(value * mask, part)
                for mask, part in zip(masks[: len(blocks)], kernels, strict=True)
            ]
            product = ops.concatenate(parts, axis=-1)
        else:
            product = ops.matmul(value if masks is None else value * masks, kernel)
        product = product if bias is None else product + bias
        return _named(blocks, self.clip("preactivation", product))


def _named(blocks, projected):
    """A named tuple of the equal blocks of columns of `projected`."""
    parts = ops.split(projected, len(blocks), axis=-1) if blocks else ()
    return collections.namedtuple("Blocks", blocks)(*parts)
