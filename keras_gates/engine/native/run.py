"""Calls of the kernel, on NumPy arrays."""

import ctypes
import dataclasses

import numpy as np

from keras_gates.engine.native import library
from keras_gates.engine.native.library import address, addresses
from keras_gates.engine.native.plan import LEAN, LEAST, QUICK

# Rows of a tile at most: so many share what is read of the weights, and stay in cache.
_TILE = 32
# Multiplications that are worth waking another thread for.
_WORTH_A_THREAD = 2e6

# Bytes kept for the backward pass that each choice of what to keep may reach; the last is used
# where none suits.
_LIMITS = ((QUICK, 2**27), (LEAN, 2**30), (LEAST, 0))


@dataclasses.dataclass
class Inputs:
    """What a recurrence is a function of, as arrays.

    Attributes:
        x: (batch, time, features).
        states: before the first step, each (batch, units), or (batch, 1) the sums of penalties.
        kernel, recurrent: (features, blocks * units) and (units, blocks * units).
        bias, recurrent_bias: (blocks * units,), or None.
        weights: from names to weights that the equations use.
        mask: booleans (batch, time), or None.
        input_masks, recurrent_masks: dropout masks.
    """

    x: np.ndarray
    states: list
    kernel: np.ndarray
    recurrent: np.ndarray
    bias: np.ndarray | None
    recurrent_bias: np.ndarray | None
    weights: dict
    mask: np.ndarray | None = None
    input_masks: list = dataclasses.field(default_factory=list)
    recurrent_masks: list = dataclasses.field(default_factory=list)


def forward(plan, inputs, return_sequences, gradients):
    """(hidden states or None, last states, what is kept for `backward` or None)."""
    batch, time, _ = inputs.x.shape
    units, dtype = inputs.recurrent.shape[0], inputs.x.dtype
    sequences = library.empty((batch, time, units), dtype) if return_sequences else None
    last = [library.empty(state.shape, dtype) for state in inputs.states]
    memory = passes = None
    if gradients:
        passes = _passes(plan, inputs)
        memory = library.empty((_kept_numbers(plan, passes, inputs),), dtype)
    job = _Job(plan, passes.forward if gradients else plan.infer, inputs, passes)
    job.point(sequences=sequences, memory=memory)
    job.point_to_all(last=last)
    job.run()
    return sequences, last, memory


def backward(plan, inputs, memory, d_sequences, d_last, wants_d_x=True):
    """The gradients at all that `inputs` has a gradient for, as an `Inputs`.

    Args:
        plan, inputs, memory: as in the forward pass.
        d_sequences: gradient at the hidden states, or None.
        d_last: those at the last states, each may be None.
        wants_d_x: whether the gradient at x is computed.
    """

    def like(array):
        return None if array is None else library.empty(array.shape, inputs.x.dtype)

    found = Inputs(
        x=like(inputs.x) if wants_d_x else None,
        states=[like(state) for state in inputs.states],
        kernel=like(inputs.kernel),
        recurrent=like(inputs.recurrent),
        bias=like(inputs.bias),
        recurrent_bias=like(inputs.recurrent_bias),
        weights={name: np.zeros_like(weight) for name, weight in inputs.weights.items()},
    )
    passes = _passes(plan, inputs)
    d_weights = [found.weights[name] for name in plan.weights]
    job = _Job(plan, passes.backward, inputs, passes, d_weights)
    job.fields.backward = True
    job.point(memory=memory, d_sequences=d_sequences, d_x=found.x, d_kernel=found.kernel)
    job.point(d_recurrent=found.recurrent, d_bias=found.bias)
    job.point(d_recurrent_bias=found.recurrent_bias)
    job.point_to_all(d_last=d_last, d_initial=found.states)
    job.run()
    return found


class _Job:
    """The fields of a `Job`, and what must live as long as it."""

    def __init__(self, plan, code, inputs, passes, d_weights=()):
        self.alive = []
        batch, time, features = inputs.x.shape
        units, columns = inputs.recurrent.shape
        self.fields = library.Job(
            batch=batch,
            time=time,
            features=features,
            units=units,
            is_double=inputs.x.dtype == np.float64,
            shares=_shares(batch, batch * time * columns * (features + units)),
            tile=_TILE,
            blocks=plan.blocks,
            projected=plan.projected,
            states=plan.states,
            sums=plan.sums,
            kept_states=(plan.states - plan.sums) if passes else 0,
            kept=passes.kept if passes else 0,
            registers=len(code.places),
            parts=len(code.part),
            products=len(plan.product_block),
            weights=len(d_weights),
            input_masks=len(inputs.input_masks),
            recurrent_masks=len(inputs.recurrent_masks),
        )
        self.point(
            places=code.places,
            code=code.code,
            part=code.part,
            constants=code.constants,
            input_register=np.asarray(code.input_register, "int32"),
            projected_register=np.asarray(code.projected_register, "int32"),
            product_block=np.asarray(plan.product_block, "int32"),
            d_input_of=np.asarray(plan.d_input_of, "int32"),
            d_projected_of=np.asarray(plan.d_projected_of, "int32"),
            x=inputs.x,
            kernel=inputs.kernel,
            recurrent=inputs.recurrent,
            bias=inputs.bias,
            recurrent_bias=inputs.recurrent_bias,
            mask=inputs.mask,
        )
        self.point_to_all(
            initial=inputs.states,
            input_mask=inputs.input_masks,
            recurrent_mask=inputs.recurrent_masks,
        )
        self._point_to_weights(code.weights, inputs, d_weights)

    def point(self, **arrays):
        for name, array in arrays.items():
            if array is not None and not array.flags.c_contiguous:
                array = np.ascontiguousarray(array)
            self.alive.append(array)
            setattr(self.fields, name, address(array))

    def point_to_all(self, **lists):
        for name, arrays in lists.items():
            arrays = [None if a is None else np.ascontiguousarray(a) for a in arrays]
            pointers = addresses(arrays)
            self.alive += [arrays, pointers]
            setattr(self.fields, name, ctypes.addressof(pointers))

    def _point_to_weights(self, weights, inputs, d_weights):
        table = (library.Weight * max(1, len(weights), len(d_weights)))()
        for entry, weight in zip(table, weights, strict=False):
            array = inputs.weights[weight] if isinstance(weight, str) else np.array(weight)
            array = np.ascontiguousarray(array, inputs.x.dtype)
            self.alive.append(array)
            entry.values, entry.size = address(array), array.size
        for entry, gradient in zip(table, d_weights, strict=False):
            entry.gradient, entry.gradient_size = address(gradient), gradient.size
        self.alive.append(table)
        self.fields.weight = ctypes.addressof(table)

    def run(self):
        library.run(self.fields)


def _passes(plan, inputs):
    """Those of the plan that suit the size of the inputs."""
    for prices, limit in _LIMITS:
        passes = plan.passes(prices)
        if _kept_numbers(plan, passes, inputs) * inputs.x.itemsize <= limit:
            break
    return passes


def _kept_numbers(plan, passes, inputs):
    batch, time, _ = inputs.x.shape
    lanes = library.lanes(inputs.x.dtype)
    row = -(-inputs.recurrent.shape[0] // lanes) * lanes
    return batch * row * ((plan.states - plan.sums) * (time + 1) + passes.kept * time)


def _shares(batch, work):
    return max(1, min(library.threads(), batch, int(work / _WORTH_A_THREAD)))
