"""One time step of a cell: what its equations are given, and what is noted of them."""

import collections
import contextlib
import contextvars
import functools
import types

from keras import ops

from keras_gates.cells import zoneout
from keras_gates.gradients import clip_gradient, clipped
from keras_gates.validation import one_of


class Step:
    """The projections of time steps, with dropout, and where their gradients are clipped.

    Args:
        cell: a GatedCell.
        input_masks, recurrent_masks: dropout masks, one or a list with one per block, or None.
        kept: where the states with zoneout are kept, in training: booleans (rows, units), in their
            order.
        recurrent_kernel: U as the equations use it, or None.
        may_clip: whether gradients of what is computed now may be asked for.
    """

    def __init__(
        self,
        cell,
        input_masks=None,
        recurrent_masks=None,
        kept=(),
        recurrent_kernel=None,
        may_clip=False,
    ):
        self.cell, self.recurrent_kernel = cell, recurrent_kernel
        self.kept = dict(zip(zoneout.shares(cell), kept, strict=False))
        self.input_masks, self.recurrent_masks = input_masks, recurrent_masks
        self.input_bias, self.recurrent_bias = cell.biases
        self.may_clip = may_clip
        self.activated = {}  # from "candidate" or the name of a gate to its value

    def projected_input(self, inputs):
        """`x W_k + b_k` of every block k, by name."""
        cell = self.cell
        return self._project(inputs, self.input_masks, cell.kernel, self.input_bias, cell.blocks)

    def projected_state(self, hidden):
        """`h U_k (+ c_k)` of every projected block k, by name."""
        cell = self.cell
        blocks = projected_blocks(cell)
        if not blocks:
            return named((), ())
        kernel, bias = self.recurrent_kernel, self.recurrent_bias
        columns = len(blocks) * cell.units
        if len(blocks) < len(recurrent_blocks(cell)):
            kernel = kernel[:, :columns]
        if bias is not None and len(blocks) < len(cell.blocks):
            bias = bias[:columns]
        return self._project(hidden, self.recurrent_masks, kernel, bias, blocks)

    def pull_state(self, d_blocks, transposed):
        """dL/dh from the gradients of the blocks of `projected_state`, given the transpose of U."""
        d = self.clipped("preactivation", ops.concatenate(d_blocks, axis=-1))
        transposed = ops.cast(transposed[: d.shape[-1]], d.dtype)
        if not isinstance(self.recurrent_masks, list):
            d = ops.matmul(d, transposed)
            return d if self.recurrent_masks is None else d * self.recurrent_masks
        count = len(d_blocks)
        parts = zip(ops.split(d, count, -1), ops.split(transposed, count, 0), strict=True)
        terms = [ops.matmul(part, kernel) for part, kernel in parts]
        masked = [d * mask for d, mask in zip(terms, self.recurrent_masks[:count], strict=True)]
        return sum(masked[1:], masked[0])

    def recurrent(self, block, value):
        """`value U_k (+ c_k)` of one block k."""
        cell = self.cell
        index = cell.blocks.index(one_of("block", block, recurrent_blocks(cell)))
        columns = slice(index * cell.units, (index + 1) * cell.units)
        if self.recurrent_masks is not None:
            value = value * self.recurrent_masks[index]
        product = ops.matmul(value, self.recurrent_kernel[:, columns])
        if self.recurrent_bias is not None:
            product = product + self.recurrent_bias[columns]
        return self.clip("preactivation", product)

    def activate(self, name, activation, preactivation):
        """The activation of a gate or the candidate, noted under its name."""
        self.activated[name] = activated = kept_shape(argument_of(name), activation, preactivation)
        return activated

    def note_normalized(self, after, before):
        """For what traces equations: these are long, and are shown as `L(before)`."""

    def clip(self, place, x):
        """`x`, with its gradient clipped if this is the place where the cell clips."""
        if place != self.cell.grad_clip_at or not self.may_clip:
            return x
        return clip_gradient(x, self.cell.grad_clip_value, self.cell.grad_clip_norm)

    def clipped(self, place, gradient):
        """`gradient`, clipped if this is the place where the cell clips."""
        if place != self.cell.grad_clip_at:
            return gradient
        return clipped(gradient, self.cell.grad_clip_value, self.cell.grad_clip_norm)

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
        return named(blocks, ops.split(self.clip("preactivation", product), len(blocks), axis=-1))


# What belongs to one call stands in its context and not on the cell, which other threads may be
# calling: from a cell to a list of its step, and from a cell to what observes its steps.
_NONE: types.MappingProxyType = types.MappingProxyType({})
_running = contextvars.ContextVar("running", default=_NONE)
_observers = contextvars.ContextVar("observers", default=_NONE)


@contextlib.contextmanager
def _with_entry(variable, cell, entry):
    token = variable.set({**variable.get(), cell: entry})
    try:
        yield entry
    finally:
        variable.reset(token)


def running(cell, step=None):
    """While it lasts, `step` is the one that the equations of `cell` find, here and in what is
    called from here. Without a `step` it is the one that `entered` is given inside, even after
    that has ended; it is the only element of the list that this yields."""
    return _with_entry(_running, cell, [] if step is None else [step])


def entered(cell, step):
    """Like `running`, where `running` without a step may be waiting for this one."""
    holder = _running.get().get(cell)
    if holder is None or holder:
        return running(cell, step)
    holder.append(step)
    return contextlib.nullcontext(holder)


def step_of(cell):
    """The step that is being computed, of a cell."""
    holder = _running.get().get(cell)
    if not holder:
        raise RuntimeError(
            f"no time step of {cell.name!r} is being computed here: `gate`, `candidate`, "
            "`recurrent` and `clip_state` are for its `update`, in the thread that calls the cell"
        )
    return holder[0]


@contextlib.contextmanager
def noting(cell, moves=None):
    """Gates and candidate of the latest step of `cell`, by name, while its new states are moved by
    `moves`, one for each."""
    activated = {}

    def observer(step, states):
        activated.update(step.activated)
        return states if moves is None else [s + m for s, m in zip(states, moves, strict=True)]

    with _with_entry(_observers, cell, observer):
        yield activated


def observed(cell, states):
    """The states after a step, as an observer may change them."""
    observer = _observers.get().get(cell)
    return states if observer is None else observer(step_of(cell), states)


def argument_of(name):
    """The argument that the activation of a gate or the candidate is given by."""
    return "candidate_activation" if name == "candidate" else f"gate_activation[{name!r}]"


def kept_shape(argument, activation, preactivation):
    """The activation of a tensor, which must have a value for each of its values."""
    value = activation(preactivation)
    shape = tuple(getattr(value, "shape", ()))
    if len(shape) != len(preactivation.shape) or shape[-1] != preactivation.shape[-1]:
        received = f"shape {shape}" if hasattr(value, "shape") else repr(value)
        raise ValueError(
            f"`{argument}` must give a value for each of its inputs, of shape "
            f"{tuple(preactivation.shape)}. Received from {activation!r}: {received}"
        )
    return value


class Masks:
    """Dropout masks of a sequence, by cell, for the thread that computes it."""

    def __init__(self):
        self._masks = contextvars.ContextVar("masks", default=_NONE)

    def get(self, cell, make):
        """The masks of a cell, made if there are none."""
        if cell not in self._masks.get():
            self._masks.set({**self._masks.get(), cell: make()})
        return self._masks.get()[cell]

    def reset(self, cell):
        self._masks.set({c: mask for c, mask in self._masks.get().items() if c is not cell})


INPUT_MASKS, RECURRENT_MASKS = Masks(), Masks()


def recurrent_blocks(cell):
    """Names of the blocks that U has columns for: by default all."""
    return tuple(cell.blocks if cell.recurrent_blocks is None else cell.recurrent_blocks)


def projected_blocks(cell):
    """Names of the blocks that `h U_k` is computed for: by default those of U."""
    return recurrent_blocks(cell) if cell.projected_blocks is None else tuple(cell.projected_blocks)


def named(blocks, values):
    """A named tuple of one value per block."""
    return _tuple_of(tuple(blocks))(*values)


@functools.cache
def _tuple_of(blocks):
    class Blocks(collections.namedtuple("Blocks", blocks)):
        __slots__ = ()

        def __getattr__(self, name):  # asked for what is not there alone
            raise AttributeError(
                f"there is no projection of a block {name!r} here, only of "
                f"{', '.join(blocks) or 'none'}. x has one for each of the cell's `blocks`, u for "
                "each of its `projected_blocks`: name the block there, or call "
                f"self.recurrent({name!r}, value)."
            )

    return Blocks
