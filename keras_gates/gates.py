"""Gates and candidate of every time step, as outputs of a layer that gradients flow through."""

import contextlib
import contextvars

import keras
from keras import ops

from keras_gates.cells.base import CANDIDATE
from keras_gates.cells.step import noting

_found: contextvars.ContextVar[list | None] = contextvars.ContextVar("found", default=None)


def names(cell):
    """What a cell has: its gates, and the candidate."""
    return (*cell.gate_names(), *([CANDIDATE] if CANDIDATE in cell.blocks else []))


@contextlib.contextmanager
def collected():
    """A list that `loop` puts the gates of a call inside it into, by name."""
    token = _found.set([])
    try:
        yield _found.get()
    finally:
        _found.reset(token)


def loop(layer, sequences, states, mask, training):
    """As `keras.layers.RNN.inner_loop`, noting the gates for `collected`."""
    cell = layer.cell
    shown = keras.layers.RNN(
        _ShowingGates(cell, training),
        return_sequences=True,
        go_backwards=layer.go_backwards,
        unroll=layer.unroll,
        zero_output_for_mask=layer.zero_output_for_mask,
        dtype=layer.dtype_policy,
    )
    count = 1 + len(names(cell))
    # On JAX the loop takes an output to be like the first state.
    first = ops.zeros_like(ops.concatenate([states[0]] * count, axis=-1))
    last, outputs, (_, *states) = shown.inner_loop(sequences, [first, *states], mask, training)
    parts = ops.split(outputs, count, axis=-1)
    found = _found.get()
    if found is not None:
        found.append(dict(zip(names(cell), parts[1:], strict=True)))
    return last[:, : cell.units], parts[0], states


class _ShowingGates:
    """A cell whose output is the hidden state and, beside it, its gates and candidate."""

    def __init__(self, cell, training):
        self.cell, self.training = cell, training
        self.state_size = cell.state_size

    def call(self, inputs, states):
        with noting(self.cell) as activated:
            hidden, states = self.cell(inputs, states[1:], training=self.training)
        missing = [name for name in names(self.cell) if name not in activated]
        if missing:
            raise ValueError(
                f"`return_gates` returns {', '.join(names(self.cell))}, and the update of "
                f"{type(self.cell).__name__} computes no {missing[0]!r}."
            )
        shown = [ops.cast(activated[name], hidden.dtype) for name in names(self.cell)]
        shown = ops.concatenate([hidden, *shown], axis=-1)
        return shown, [shown, *states]

    __call__ = call
