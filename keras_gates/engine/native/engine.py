"""The engine of one cell, on any backend: what the backends' own modules call."""

import functools
import math

from keras_gates.cells.program import trace, weights_by_name
from keras_gates.cells.step import recurrent_blocks
from keras_gates.cells.zoneout import shares
from keras_gates.engine.base import Engine
from keras_gates.engine.native.call import Call, Form
from keras_gates.engine.native.plan import plan_of
from keras_gates.engine.recurrence import NotFusableError, Recurrence


class NativeEngine(Engine):
    """Runs one cell in the kernel. A subclass does what `call` gives, with its tensors.

    Args:
        cell: a built GatedCell.

    Raises:
        NotTraceableError, NotFusableError: the kernel cannot run it, with the reason.
    """

    def __init__(self, cell):
        _check_weights(cell)
        self.plan = self._training_plan = plan_of(cell, trace(cell))
        if shares(cell):
            self._training_plan = plan_of(cell, trace(cell, training=True))
        self.recurrence = Recurrence(cell)
        self.dtype = self.dtype_of(cell)
        names = {id(weight): name for name, weight in weights_by_name(cell).items()}
        biases = 0 if cell.bias is None else 2 if cell.two_biases else 1
        self._form = Form(
            units=cell.units,
            features=cell.kernel.shape[0],
            dtype=self.dtype,
            recurrent_blocks=len(recurrent_blocks(cell)),
            biases=biases,
            weights=tuple(
                (names[id(w)], math.prod(w.shape))
                for w in self.recurrence.variables[self.recurrence.usual :]
            ),
        )
        self.call = functools.cache(self._call)

    def _call(self, direction, masks, sequences, d_x=True):
        """See `Call`."""
        plan = self._training_plan if masks[3] else self.plan
        return Call(plan, self._form, direction, masks, sequences, d_x)

    @staticmethod
    def dtype_of(cell):
        """The dtype that the kernel computes in."""
        return "float64" if cell.compute_dtype == "float64" else "float32"


def _check_weights(cell):
    """Raises unless the weights are those that `GatedCell` makes."""
    columns = cell.units * len(cell.blocks)
    wanted = {"kernel": (cell.kernel.shape[0], columns)}
    if recurrent := recurrent_blocks(cell):
        wanted["recurrent_kernel"] = (cell.units, cell.units * len(recurrent))
    if cell.bias is not None:
        wanted["bias"] = (2, columns) if cell.two_biases else (columns,)
    for name, shape in wanted.items():
        if tuple(getattr(cell, name).shape) != shape:
            raise NotFusableError(f"`{name}` has not the shape {shape}")
    if cell.compute_dtype not in ("float32", "float64", "bfloat16"):
        raise NotFusableError(f"the kernel does not compute in {cell.compute_dtype}")
