"""The kernels as the engine of one cell on JAX."""

import jax
import jax.numpy as jnp

from keras_gates.cells.program import trace, weights_by_name
from keras_gates.cells.zoneout import shares
from keras_gates.engine import jax as scans
from keras_gates.engine.base import Engine
from keras_gates.engine.differentiable import differentiable
from keras_gates.engine.gpu import pallas
from keras_gates.engine.gpu.plan import Plan
from keras_gates.engine.recurrence import Dropout, Recurrence


class FusedEngine(Engine):
    """Runs one cell.

    Args:
        cell: a built GatedCell.
        interpret: whether Python runs the kernels, on any processor, and slowly.

    Raises:
        NotTraceableError, NotFusableError: the kernels cannot run it, with the reason.
    """

    how = "fused, all time steps in one kernel of the GPU"

    def __init__(self, cell, interpret=False):
        self.cell, self.interpret, self.recurrence = cell, interpret, Recurrence(cell)
        self._plans = [Plan(cell, trace(cell))] * 2
        if shares(cell):
            self._plans[1] = Plan(cell, trace(cell, training=True))
        self._scans = scans.FusedEngine(cell)

    def __call__(self, sequences, states, mask, dropout, return_sequences, gradients=True):
        """See `Engine`; JAX itself knows whether `gradients` are asked for."""
        values = [jnp.asarray(value) for value in self.recurrence.values()]
        given = [sequences, [jnp.asarray(s, "float32") for s in states], values]
        run = _Run(self, mask is not None, bool(dropout.kept), return_sequences)
        function = differentiable(run.infer, run.forward, run.backward, run.step_by_step)
        hidden, last = function(given, (mask, dropout))
        last = [r.astype(state.dtype) for r, state in zip(last, states, strict=True)]
        return (hidden.astype(sequences.dtype) if return_sequences else None), last


class _Run:
    """The functions of (sequences, states, values) and (mask, dropout)."""

    def __init__(self, engine, masked, training, return_sequences):
        self.engine, self.recurrence = engine, engine.recurrence
        self.plan, self.return_sequences = engine._plans[training], return_sequences

    def infer(self, given, masks):
        found = self._kernel(given, masks, keep=False)
        return self._results(found)

    def forward(self, given, masks):
        found = self._kernel(given, masks, keep=True)
        return self._results(found), found["steps"]

    def _results(self, found):
        hidden = jnp.swapaxes(found["steps"][0], 0, 1) if self.return_sequences else None
        return hidden, found["last"]

    def step_by_step(self, given, masks):
        (x, states, values), (mask, dropout) = given, masks
        over = self.engine._scans.over
        hidden, last = over(x, states, mask, dropout, self.return_sequences, values)
        return hidden, last

    def _kernel(self, given, masks, keep):
        arrays, _ = self._arrays(given, masks)
        interpret = self.engine.interpret
        return pallas.forward(self.plan, interpret, keep, self.return_sequences, arrays)

    def _arrays(self, given, masks):
        """What the kernels are given, and the derivative of the projections of x."""
        (x, states, values), (mask, dropout) = given, masks
        bulk = Dropout(_tiled(dropout.inputs, x.shape[1]), [])

        def projected(x, values):
            return self.recurrence.project_input(values, _steps(x), bulk)

        blocks, pull = jax.vjp(projected, x, values)
        usual = dict(zip(self._usual(), values, strict=False))
        dtype = self.engine.cell.compute_dtype
        arrays = {
            "x": [_by_time(block, x) for block in blocks],
            "states": list(states),
            "recurrent_kernel": [usual[n].astype(dtype) for n in usual if n == "recurrent_kernel"],
            "biases": [usual["bias"][1]] if self.plan.biases else [],
            "vectors": self._vectors(values),
            "valid": [] if mask is None else [jnp.swapaxes(mask, 0, 1).astype("float32")],
            "kept": [jnp.swapaxes(m, 0, 1).astype("float32") for m in dropout.kept],
            "masks": list(dropout.recurrent),
        }
        return arrays, pull

    def _usual(self):
        """Names of W, U and b, as far as there are."""
        cell = self.engine.cell
        names = ("kernel", "recurrent_kernel", "bias")
        return [name for name in names if getattr(cell, name) is not None]

    def _vectors(self, values):
        names = {id(weight): name for name, weight in weights_by_name(self.engine.cell).items()}
        known = {
            names[id(variable)]: value.reshape(-1)
            for variable, value in zip(self.recurrence.variables, values, strict=True)
        }
        return [
            known[vector["name"]]
            if vector.operation == "input"
            else jnp.asarray(vector["array"], "float32")
            for vector in self.plan.vectors
        ]

    def backward(self, given, masks, memory, d_results):
        plan, recurrence = self.plan, self.recurrence
        (x, states, values), (_, dropout), (d_hidden, d_last) = given, masks, d_results
        arrays, pull_x = self._arrays(given, masks)
        before = [
            jnp.concatenate([first[None], after[:-1]])
            for first, after in zip(states, memory, strict=False)
        ]
        bulk = Dropout([], _tiled(dropout.recurrent, x.shape[1]))
        hidden = before[0].reshape(-1, before[0].shape[-1])
        blocks, pull_u = jax.vjp(lambda v: recurrence.project_state(v, hidden, bulk), values)
        arrays |= {
            "u": [_by_time(block, x) for block in blocks],
            "before": before,
            "transposed": [kernel.T for kernel in arrays["recurrent_kernel"]],
            "d_steps": [] if d_hidden is None else [jnp.swapaxes(d_hidden, 0, 1)],
            "d_last": list(d_last),
        }
        found = pallas.backward(plan, self.engine.interpret, arrays)

        def at(blocks, indices):
            of = found["gradients"]
            return [
                jnp.zeros_like(block)
                if i is None
                else of[i].reshape(block.shape).astype(block.dtype)
                for block, i in zip(blocks, indices, strict=True)
            ]

        d_x, d_values = pull_x(at([_flat(block) for block in arrays["x"]], plan.of_x))
        (more,) = pull_u(at(blocks, plan.of_u))
        d_values = [a + b for a, b in zip(d_values, more, strict=True)]
        self._add_products(d_values, found, dropout)
        self._add_learned(d_values, found["d_weights"])
        return [d_x, found["d_states"], d_values]

    def _add_products(self, d_values, found, dropout):
        """The gradients of U_k and c_k of products in the equations."""
        units, usual = self.engine.cell.units, self._usual()
        pairs = zip(found["factors"], found["d_products"], strict=True)
        for (block, *_), (factor, d) in zip(self.plan.step.products, pairs, strict=True):
            column = self.plan.columns[block]
            if dropout.recurrent:
                factor = factor * dropout.recurrent[column if len(dropout.recurrent) > 1 else 0]
            columns = slice(column * units, (column + 1) * units)
            of_kernel = _flat(factor).T @ _flat(d)
            u = usual.index("recurrent_kernel")
            d_values[u] = d_values[u].at[:, columns].add(of_kernel.astype(d_values[u].dtype))
            if self.plan.biases:
                b = usual.index("bias")
                d_values[b] = d_values[b].at[1, columns].add(_flat(d).sum(0))

    def _add_learned(self, d_values, d_weights):
        names = {id(weight): name for name, weight in weights_by_name(self.engine.cell).items()}
        order = [names[id(variable)] for variable in self.recurrence.variables]
        for (weight, _), d in zip(self.plan.learned, d_weights, strict=True):
            i = order.index(weight["name"])
            total = d.sum(0) if d_values[i].size > 1 else d.sum()
            d_values[i] = d_values[i] + total.reshape(d_values[i].shape)


def _steps(x):
    """(batch, time, features) as (time * batch, features)."""
    return jnp.swapaxes(x, 0, 1).reshape(-1, x.shape[-1])


def _by_time(block, x):
    return block.reshape(x.shape[1], x.shape[0], -1)


def _flat(array):
    return array.reshape(-1, array.shape[-1])


def _tiled(masks, time):
    return [jnp.tile(m, (time, 1)) for m in masks]
