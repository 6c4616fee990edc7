"""The engine of one cell, on any backend: what the backends' own modules call."""

import numpy as np

from keras_gates.cells.program import trace, weights_by_name
from keras_gates.engine.base import Engine
from keras_gates.engine.native import run
from keras_gates.engine.native.plan import plan_of
from keras_gates.engine.recurrence import NotFusableError, Recurrence


class NativeEngine(Engine):
    """Runs one cell in the kernel. A subclass calls `forward` and `backward` with arrays.

    Args:
        cell: a built GatedCell.

    Raises:
        NotTraceableError, NotFusableError: the kernel cannot run it, with the reason.
    """

    def __init__(self, cell):
        _check_weights(cell)
        self.plan = plan_of(cell, trace(cell))
        self.recurrence = Recurrence(cell)
        self.dtype = "float64" if cell.compute_dtype == "float64" else "float32"
        self._two_biases = cell.use_bias and cell.two_biases
        usual = {id(cell.kernel): "kernel", id(cell.recurrent_kernel): "recurrent"}
        if cell.use_bias:
            usual[id(cell.bias)] = "bias"
        # What each weight is here: one of the usual ones, or its name in the program.
        self._names = [usual.get(id(w), (name,)) for name, w in weights_by_name(cell).items()]

    def forward(self, arrays, counts, return_sequences, gradients):
        """The hidden states with `return_sequences`, the last states, with `gradients` the memory.

        Args:
            arrays: x, the states, the weights in the order of `cell.weights`, and, as many of each
                as `counts` says, the mask and the dropout masks of inputs and of states.
            counts: see above.
            return_sequences, gradients: see `Engine`.
        """
        inputs = self._inputs(arrays, counts)
        hidden, last, memory = run.forward(self.plan, inputs, return_sequences, gradients)
        return [*([hidden] if return_sequences else []), *last, *([memory] if gradients else [])]

    def backward(self, arrays, counts, memory, d_results, return_sequences, wants_d_x=True):
        """The gradients at x (None unless it is wanted), the states and the weights, from those at
        the results of `forward`."""
        inputs = self._inputs(arrays, counts)
        d_hidden = d_results[0] if return_sequences else None
        d_last = d_results[1:] if return_sequences else d_results
        found = run.backward(self.plan, inputs, memory, d_hidden, d_last, wants_d_x)
        of_weights = {
            "kernel": found.kernel,
            "recurrent": found.recurrent,
            "bias": np.stack([found.bias, found.recurrent_bias])
            if self._two_biases
            else found.bias,
            **{(name,): gradient for name, gradient in found.weights.items()},
        }
        return [found.x, *found.states, *[of_weights[name] for name in self._names]]

    def _inputs(self, arrays, counts):
        arrays = list(arrays)
        x, *states = [arrays.pop(0) for _ in range(1 + self.plan.states)]
        weights = {name: arrays.pop(0) for name in self._names}
        mask, input_masks, recurrent_masks = [[arrays.pop(0) for _ in range(n)] for n in counts]
        bias = weights.pop("bias", None)
        return run.Inputs(
            x=x,
            states=states,
            kernel=weights.pop("kernel"),
            recurrent=weights.pop("recurrent"),
            bias=bias[0] if self._two_biases else bias,
            recurrent_bias=bias[1] if self._two_biases else None,
            weights={name: array for (name,), array in weights.items()},
            mask=mask[0].view("uint8") if mask else None,
            input_masks=input_masks,
            recurrent_masks=recurrent_masks,
        )


def _check_weights(cell):
    """Raises unless the weights are those that `GatedCell` makes."""
    columns = cell.units * len(cell.blocks)
    wanted = {"recurrent_kernel": (cell.units, columns), "kernel": (cell.kernel.shape[0], columns)}
    if cell.use_bias:
        wanted["bias"] = (2, columns) if cell.two_biases else (columns,)
    for name, shape in wanted.items():
        if tuple(getattr(cell, name).shape) != shape:
            raise NotFusableError(f"`{name}` has not the shape {shape}")
    if cell.compute_dtype not in ("float32", "float64", "bfloat16"):
        raise NotFusableError(f"the kernel does not compute in {cell.compute_dtype}")
