"""The kernels as the engine of one cell, on any backend: what the backends' own modules call."""

import abc
import math
from typing import Any

from keras import ops

from keras_gates.cells.program import trace, weights_by_name
from keras_gates.cells.zoneout import shares
from keras_gates.engine.base import Engine
from keras_gates.engine.gpu.plan import Plan
from keras_gates.engine.recurrence import Dropout, Recurrence


class GPUEngine(Engine):
    """Runs one cell.

    Args:
        cell: a built GatedCell.

    Attributes:
        kernels: of the backend, with `forward(plan, keep, sequences, given)` and
            `backward(plan, given)`; see `pallas.Kernels`.

    Raises:
        NotTraceableError, NotFusableError: the kernels cannot run it, with the reason.
    """

    kernels: Any
    how = "fused, all time steps in one kernel of the GPU"

    def __init__(self, cell):
        self.cell, self.recurrence = cell, Recurrence(cell)
        self._plans = [Plan(cell, trace(cell))] * 2
        if shares(cell):
            self._plans[1] = Plan(cell, trace(cell, training=True))

    @staticmethod
    @abc.abstractmethod
    def vjp(function, *primals):
        """What a function gives, a list, and from gradients at that to gradients at `primals`."""

    @abc.abstractmethod
    def results(self, run_of, given, masks, gradients):
        """`run_of(masks).infer(given)`, with derivatives if `gradients` may be asked for."""

    def __call__(self, sequences, states, mask, dropout, return_sequences, gradients=True):
        """See `Engine`."""
        values = [ops.convert_to_tensor(value) for value in self.recurrence.values()]
        given = [sequences, [ops.cast(s, "float32") for s in states], values]

        def run_of(masks):
            return Run(self, *masks, return_sequences)

        hidden, last = self.results(run_of, given, (mask, dropout), gradients)
        last = [ops.cast(r, state.dtype) for r, state in zip(last, states, strict=True)]
        return (ops.cast(hidden[0], sequences.dtype) if return_sequences else None), last


class Run:
    """One way of running an engine: functions of the sequences, the states and the weights.

    Args:
        engine: a `GPUEngine`.
        mask, dropout, return_sequences: see `Engine`.
    """

    def __init__(self, engine, mask, dropout, return_sequences):
        self.engine, self.recurrence, self.cell = engine, engine.recurrence, engine.cell
        self.mask, self.dropout, self.return_sequences = mask, dropout, return_sequences
        self.plan = engine._plans[bool(dropout.kept)]
        names = {id(weight): name for name, weight in weights_by_name(self.cell).items()}
        self.names = [names[id(variable)] for variable in self.recurrence.variables]
        usual = ("kernel", "recurrent_kernel", "bias")
        present = [name for name in usual if getattr(self.cell, name) is not None]
        self.names[: len(present)] = present

    def infer(self, given):
        """([the hidden states], the last states)"""
        return self._results(self._forward(given, keep=False))

    def forward(self, given):
        """What `infer` gives, and all states after every step."""
        found = self._forward(given, keep=True)
        return self._results(found), found["steps"]

    def split(self, flat):
        """A flat list of results as `infer` gives them."""
        count = int(self.return_sequences)
        return list(flat[:count]), list(flat[count:])

    def _results(self, found):
        hidden = [_swapped(found["steps"][0])] if self.return_sequences else []
        return hidden, found["last"]

    def _forward(self, given, keep):
        arrays = self._arrays(given, self._projected(given[0], given[2]))
        return self.engine.kernels.forward(self.plan, keep, self.return_sequences, arrays)

    def backward(self, given, steps, d_results):
        """The gradients at `given`, from what `forward` gave."""
        plan, dropout, recurrence = self.plan, self.dropout, self.recurrence
        (x, states, values), (d_hidden, d_last) = given, d_results
        x_blocks, pull_x = self.engine.vjp(self._projected, x, values)
        arrays = self._arrays(given, x_blocks)
        before = [
            ops.concatenate([first[None], after[:-1]])
            for first, after in zip(states, steps, strict=False)
        ]
        hidden = ops.cast(_flat(before[0]), self.cell.compute_dtype)
        bulk = Dropout([], _tiled(dropout.recurrent, x.shape[1]))
        blocks, pull_u = self.engine.vjp(
            lambda values: recurrence.project_state(values, hidden, bulk), values
        )
        arrays |= {
            "u": [_by_time(block, x) for block in blocks],
            "before": before,
            "transposed": [ops.transpose(kernel) for kernel in arrays["recurrent_kernel"]],
            "d_steps": [_swapped(d) for d in d_hidden],
            "d_last": list(d_last),
        }
        found = self.engine.kernels.backward(plan, arrays)

        def at(blocks, indices):
            return [
                ops.zeros_like(block)
                if i is None
                else ops.cast(ops.reshape(found["gradients"][i], block.shape), block.dtype)
                for block, i in zip(blocks, indices, strict=True)
            ]

        d_x, d_values = pull_x(at(x_blocks, plan.of_x))
        d_values = list(d_values)
        if blocks:
            (more,) = pull_u(at(blocks, plan.of_u))
            d_values = [a + b for a, b in zip(d_values, more, strict=True)]
        self._add_products(d_values, found)
        self._add_learned(d_values, found["d_weights"])
        return [d_x, found["d_states"], d_values]

    def _projected(self, x, values):
        """x W + b of every block, (time * batch, units)."""
        bulk = Dropout(_tiled(self.dropout.inputs, x.shape[1]), [])
        return self.recurrence.project_input(values, _flat(_swapped(x)), bulk)

    def _arrays(self, given, x_blocks):
        """What the kernels are given."""
        (x, states, values), dropout = given, self.dropout
        known = dict(zip(self.names, values, strict=True))
        kernel = [known["recurrent_kernel"]] if "recurrent_kernel" in known else []
        return {
            "x": [_by_time(block, x) for block in x_blocks],
            "states": states,
            "recurrent_kernel": [ops.cast(u, self.cell.compute_dtype) for u in kernel],
            "biases": [known["bias"][1]] if self.plan.biases else [],
            "vectors": [
                ops.reshape(known[vector["name"]], (-1,))
                if vector.operation == "input"
                else ops.convert_to_tensor(vector["array"], "float32")
                for vector in self.plan.vectors
            ],
            "valid": [] if self.mask is None else [ops.cast(_swapped(self.mask), "float32")],
            "kept": [ops.cast(_swapped(m), "float32") for m in dropout.kept],
            "masks": list(dropout.recurrent),
        }

    def _add_products(self, d_values, found):
        """The gradients of U_k and c_k of products in the equations."""
        masks, units = self.dropout.recurrent, self.cell.units
        pairs = zip(found["factors"], found["d_products"], strict=True)
        for (block, *_), (factor, d) in zip(self.plan.step.products, pairs, strict=True):
            column = self.plan.columns[block]
            if masks:
                factor = factor * masks[column if len(masks) > 1 else 0]
            of_kernel = ops.matmul(ops.transpose(_flat(factor)), _flat(d))
            self._add(d_values, "recurrent_kernel", of_kernel, column * units)
            if self.plan.biases:
                of_bias = ops.sum(_flat(d), axis=0)[None]
                rows = ops.concatenate([ops.zeros_like(of_bias), of_bias])
                self._add(d_values, "bias", rows, column * units)

    def _add(self, d_values, name, part, start):
        """Adds to the columns of a gradient from `start` on."""
        i = self.names.index(name)
        after = d_values[i].shape[1] - start - part.shape[1]
        d_values[i] = d_values[i] + ops.pad(part, ((0, 0), (start, after)))

    def _add_learned(self, d_values, d_weights):
        for (weight, _), d in zip(self.plan.learned, d_weights, strict=True):
            i = self.names.index(weight["name"])
            shape = d_values[i].shape
            total = ops.sum(d, axis=0 if math.prod(shape) > 1 else None)
            d_values[i] = d_values[i] + ops.reshape(total, shape)


def _swapped(array):
    """(batch, time, ...) as (time, batch, ...), and back."""
    return ops.swapaxes(array, 0, 1)


def _flat(array):
    return ops.reshape(array, (-1, array.shape[-1]))


def _by_time(block, x):
    return ops.reshape(block, (x.shape[1], x.shape[0], block.shape[-1]))


def _tiled(masks, time):
    return [ops.tile(m, (time, 1)) for m in masks]
