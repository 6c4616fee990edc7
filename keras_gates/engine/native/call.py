"""Calls of the kernel, on NumPy arrays."""

import ctypes
import dataclasses
import functools

import numpy as np

from keras_gates.engine.native import library
from keras_gates.engine.native.plan import LEAN, LEAST, QUICK

# Rows of a tile at most: so many share what is read of the weights, and stay in cache.
_TILE = 32
# Multiplications that are worth waking another thread for.
_WORTH_A_THREAD = 2e6
# Multiplications of a step, and units, for each of the threads that share it. Where a message takes
# 160 ns from core to core it pays from 256 units of a GRU on, where 30 ns from half as many.
_WORTH_SHARING, _UNITS_OF_EACH = 1e5, 32
# Bytes kept for the backward pass that each choice of what to keep may reach; the last is used
# where none suits.
_LIMITS = ((QUICK, 2**27), (LEAN, 2**30), (LEAST, 0))


@dataclasses.dataclass(frozen=True)
class Form:
    """What of a recurrence is the same in all calls.

    Attributes:
        units, features: how many.
        dtype: "float32" or "float64".
        recurrent_blocks: how many blocks the recurrent kernel has; with 0 there is none.
        biases: 0, 1 or 2 biases per block.
        weights: pairs of the name and the size of each further weight of the equations.
    """

    units: int
    features: int
    dtype: str
    recurrent_blocks: int
    biases: int
    weights: tuple


class Call:
    """One way of calling the kernel: the function of arrays that it does.

    Forward, from x, the states, the weights and the masks to the hidden states (with `sequences`),
    the last states, and what is kept. Backward, from the same, then what was kept, then the
    gradients at the hidden states (with `sequences`) and the last states, to the gradients at x
    (with `d_x`), the states and the weights.

    Args:
        plan, form: of the recurrence.
        direction: "infer", which keeps nothing, "forward" or "backward".
        masks: how many of time steps (0 or 1), for dropout of inputs and of states, for zoneout.
        sequences, d_x: see above.

    Attributes:
        number: by which the library knows this call.
    """

    def __init__(self, plan, form, direction, masks, sequences, d_x=True):
        self.form, self._alive = form, []
        code, kept = _codes(plan, direction)
        inputs, like = _inputs_and_results(plan, form, direction, masks, sequences, d_x)
        self._like, self._names = like, [name.decode() for *_, name in inputs]
        of_unit = plan.blocks * (form.features + form.units)
        self._fields = library.CallFields(
            choices=len(code),
            threads=library.threads(),
            of_step=form.units * of_unit,
            of_thread=int(_WORTH_A_THREAD),
            of_member=max(int(_WORTH_SHARING), _UNITS_OF_EACH * of_unit),
            biases=form.biases,
            weights=len(form.weights),
            has_mask=masks[0],
            sequences=sequences,
            gradients=direction != "infer",
            d_x=d_x,
            inputs=len(inputs),
            results=len(like),
            input=self._keep((library.Input * len(inputs))(*inputs)),
            like=self._keep(np.array(like, "int32")),
        )
        common = {
            "features": form.features,
            "units": form.units,
            "backward": direction == "backward",
            "is_double": form.dtype == "float64",
            "tile": _TILE,
            "blocks": plan.blocks,
            "recurrent_blocks": form.recurrent_blocks,
            "projected": plan.projected,
            "states": plan.states,
            "sums": plan.sums,
            "kept_states": 0 if direction == "infer" else plan.states - plan.sums,
            "products": len(plan.product_block),
            "weights": len(plan.weights) if direction == "backward" else 0,
            "input_masks": masks[1],
            "recurrent_masks": masks[2],
            "kept_masks": masks[3],
            "product_block": self._keep(plan.product_block),
            "d_input_of": self._keep(plan.d_input_of),
            "d_projected_of": self._keep(plan.d_projected_of),
        }
        for i, (c, k) in enumerate(zip(code, kept, strict=True)):
            table = self._table(c, plan)
            self._fields.entries[i] = len(table)
            self._fields.limit[i] = _LIMITS[i][1]
            self._fields.choice[i] = library.Job(
                **common,
                kept=k,
                registers=len(c.places),
                parts=len(c.part),
                weight=self._keep(table),
                **{
                    name: self._keep(getattr(c, name))
                    for name in ("places", "code", "part", "constants")
                },
                input_register=self._keep(c.input_register),
                projected_register=self._keep(c.projected_register),
            )
        self._at = ctypes.addressof(self._fields)

    @functools.cached_property
    def number(self):
        # Graphs that know it may live longer than the layer.
        _known.append(self)
        return library.load().add_call(self._at)

    def __call__(self, arrays):
        arrays = [np.ascontiguousarray(array) for array in arrays]
        if len(arrays) != len(self._names):
            raise ValueError(f"{len(self._names)} arrays are needed. Received: {len(arrays)}")
        batch, time, _ = arrays[0].shape
        found = [library.empty(shape, self.form.dtype) for shape in self.shapes(arrays)]
        sizes = (ctypes.c_int64 * len(arrays))(*[array.nbytes for array in arrays])
        pointers, results = library.addresses(arrays), library.addresses(found)
        failed = library.load().run(self._at, batch, time, pointers, sizes, results)
        if failed < 0:
            raise MemoryError("no memory is left for a recurrent layer")
        if failed > 0:
            job = self._fields.choice[0]
            what = f"the sequences must have {job.features} features"
            if failed > 1:
                what = (
                    f"{self._names[failed - 1]} does not fit {job.units} units and sequences of "
                    f"shape {arrays[0].shape}"
                )
            raise ValueError(f"recurrent layer: {what}. Received: shape {arrays[failed - 1].shape}")
        return found

    def shapes(self, arrays):
        """The shapes of the results."""
        batch, time, _ = arrays[0].shape

        def shape(of):
            if of == library.SEQUENCES:
                return batch, time, self.form.units
            if of == library.MEMORY:
                return (library.load().kept_numbers(self._at, batch, time),)
            return arrays[of].shape

        return [shape(of) for of in self._like]

    def _table(self, code, plan):
        names = [name for name, _ in self.form.weights]
        table = (library.Weight * max(1, len(code.weights), len(plan.weights)))()
        for entry in table:
            entry.source = entry.gradient_of = -1
        for entry, weight in zip(table, code.weights, strict=False):
            if isinstance(weight, str):
                entry.source = names.index(weight)
                entry.size = self.form.weights[entry.source][1]
            else:
                array = np.array(weight, self.form.dtype)
                entry.values, entry.size = self._keep(array), array.size
        for entry, name in zip(table, plan.weights, strict=False):
            entry.gradient_of = names.index(name)
            entry.gradient_size = self.form.weights[entry.gradient_of][1]
        return table

    def _keep(self, array):
        """The address of an array that lives as long as this."""
        self._alive.append(array)
        is_numpy = isinstance(array, np.ndarray)
        return array.ctypes.data if is_numpy else ctypes.addressof(array)


_known: list = []


def _codes(plan, direction):
    """The choices of instructions, and how many values each keeps."""
    if direction == "infer":
        return [plan.infer], [0]
    passes = [plan.passes(prices) for prices, _ in _LIMITS]
    return [getattr(p, direction) for p in passes], [p.kept for p in passes]


def _inputs_and_results(plan, form, direction, masks, sequences, d_x):
    """The sizes of the arrays that are given, and what each result has the shape of."""
    size = np.dtype(form.dtype).itemsize
    features, units = form.features * size, form.units * size
    columns = form.units * plan.blocks
    fixed, by_row, by_step, as_kept = range(len(library.EXTENTS))
    wide = plan.states - plan.sums
    widths = [units] * wide + [size] * plan.sums
    states = [(width, by_row, f"initial state {s}") for s, width in enumerate(widths)]
    inputs = [(features, by_step, "x"), *states, (features * columns, fixed, "kernel")]
    recurrent = form.units * units * form.recurrent_blocks
    inputs += [(recurrent, fixed, "recurrent_kernel")] * (recurrent > 0)
    inputs += [(form.biases * columns * size, fixed, "bias")] * (form.biases > 0)
    inputs += [(count * size, fixed, name) for name, count in form.weights]
    gradients = list(range(0 if d_x else 1, len(inputs)))
    inputs += [(1, by_step, "mask")] * masks[0]
    inputs += [(features, by_row, "dropout mask")] * masks[1]
    inputs += [(units, by_row, "recurrent dropout mask")] * masks[2]
    inputs += [(form.units, by_step, "zoneout mask")] * masks[3]
    last = list(range(1, 1 + plan.states))
    memory = [library.MEMORY] * (direction == "forward")
    like = [*[library.SEQUENCES] * sequences, *last, *memory]
    if direction == "backward":
        inputs += [(0, as_kept, "memory"), *[(units, by_step, "gradient")] * sequences]
        inputs += [(width, by_row, "gradient") for width in widths]
        like = gradients
    return [(*sizes, name.encode()) for *sizes, name in inputs], like
