"""Fused backpropagation through time on TensorFlow.

The sequences are cut into tiles of some samples and chunks of some time steps. What happens inside
one tile and chunk is a kernel: a function of fixed shapes, which XLA compiles once, whatever the
batch size and the length. Plain TensorFlow loops drive the kernels, one loop per core, each with
its own samples: that is what makes small matrix products use all cores.

Forward, a kernel projects the inputs of its chunk with one matrix product and then steps through
time; of all that only the states are kept, and the projections of the states while they are small.
Backward, the chunks come in reverse order. A kernel recomputes the projections with one matrix
product each, walks back in time with the vector-Jacobian product of everything between the
projections, and turns what it collected into the gradients of the weights with one matrix product
each.
"""

import collections
import functools
import os
import weakref

import keras
import tensorflow as tf

from keras_gates.cells import CELLS
from keras_gates.engine.chunks import KEPT, ceil, steps_of_a_chunk
from keras_gates.engine.recurrence import Dropout, Recurrence

# Whether this TensorFlow can compile.
COMPILED = tf.test.is_built_with_xla()

# What is fixed for a kernel: how many rows, steps and features it takes; whether there is a mask;
# how many dropout masks; whether the output of every step is wanted; whether a gradient may be.
Form = collections.namedtuple(
    "Form",
    [
        "rows",
        "steps",
        "features",
        "masked",
        "input_masks",
        "recurrent_masks",
        "sequences",
        "gradients",
    ],
)


def rows_of_a_tile(batch, units, loops):
    """How many samples a kernel takes; `batch` may be None."""
    if batch is not None:
        # One tile per core, neither too narrow to multiply fast nor too wide for the cache.
        return batch if batch <= 8 else min(max(8, ceil(batch, loops)), 64)
    return 32 if units >= 192 else 16


def parallel_loops():
    """How many loops run in parallel: one per core."""
    try:
        cores = len(os.sched_getaffinity(0))
    except AttributeError:  # not on macOS and Windows
        cores = os.cpu_count() or 1
    return min(cores, 8)


class Engine:
    """Runs one cell.

    Args:
        cell: a built GatedCell.
    """

    def __init__(self, cell):
        self.recurrence = Recurrence(cell)
        self.cell = cell
        self.loops = parallel_loops()
        self._key = _key(cell)
        self._made = {}

    def __call__(self, sequences, states, mask, dropout, return_sequences, gradients=True):
        """See `keras_gates.engine.new`."""
        known_batch = sequences.shape[0]
        rows = rows_of_a_tile(known_batch, self.cell.units, self.loops)
        count = self.loops if known_batch is None else min(self.loops, ceil(known_batch, rows))
        form = Form(
            rows=rows,
            steps=steps_of_a_chunk(sequences.shape[1], rows, self.cell.units),
            features=sequences.shape[2],
            masked=mask is not None,
            input_masks=len(dropout.inputs),
            recurrent_masks=len(dropout.recurrent),
            sequences=return_sequences,
            gradients=gradients,
        )
        batch, time = tf.shape(sequences)[0], tf.shape(sequences)[1]
        tiles, chunks = ceil(batch, form.rows), ceil(time, form.steps)
        pad = functools.partial(
            _pad,
            rows=None if _divides(form.rows, known_batch) else tiles * form.rows - batch,
            steps=None if _divides(form.steps, sequences.shape[1]) else chunks * form.steps - time,
        )
        columns = len(self.recurrence.projected) * self.cell.units
        size = (
            tiles
            * form.rows
            * chunks
            * form.steps
            * columns
            * tf.as_dtype(self.cell.compute_dtype).size
        )
        keep = tf.cast(size <= KEPT, tf.int32)
        each = ceil(tiles, count)  # tiles per loop
        ranges = [(i * each, tf.clip_by_value(tiles - i * each, 0, each)) for i in range(count)]
        masks = [] if mask is None else [pad(mask)]
        dropout = Dropout(*[[pad(m) for m in each] for each in dropout])
        counts = (chunks, time, keep)
        state_count = len(states)
        loops = self._loop(form)

        def forward(x, states, values):
            parts = [
                loops.forward(x, masks, dropout, states, values, first, count, *counts)
                for first, count in ranges
            ]
            last = zip(*[part.last for part in parts], strict=True)
            last = [tf.concat(pieces, 0)[:batch] for pieces in last]
            outputs = []
            if return_sequences:
                outputs = [tf.concat([part.outputs for part in parts], 0)[:batch, :time]]
            return parts, outputs, last

        @tf.custom_gradient
        def fused(*given):
            x, states, values = unpacked(given)
            parts, outputs, last = forward(x, states, values)

            @tf.custom_gradient
            def backward(*d_and_given):
                d = [pad(tf.stop_gradient(d)) for d in d_and_given[: len(outputs) + len(last)]]
                d_outputs, d_last = d[: len(outputs)], d[len(outputs) :]
                found = [
                    loops.backward(
                        x, masks, dropout, states, values, part.kept, part.projected,
                        d_outputs, d_last, first, count, *counts,
                    )
                    for part, (first, count) in zip(parts, ranges, strict=True)
                ]  # fmt: skip
                d_x = tf.concat([f.x for f in found], 0)[:batch, :time]
                d_states = zip(*[f.states for f in found], strict=True)
                d_states = [tf.concat(pieces, 0)[:batch] for pieces in d_states]
                d_values = zip(*[f.values for f in found], strict=True)
                d_values = [tf.add_n(pieces) for pieces in d_values]
                return [d_x, *d_states, *d_values], _no_second_derivatives

            return (*outputs, *last), lambda *d: backward(*d, *given)

        def unpacked(given):
            # Stopped: tapes need not record what has a gradient of its own.
            x, *rest = [tf.stop_gradient(value) for value in given]
            states = [pad(state) for state in rest[:state_count]]
            return pad(x), states, rest[state_count:]

        values = [tf.convert_to_tensor(value) for value in self.recurrence.values()]
        if gradients:
            found = list(fused(sequences, *states, *values))
        else:
            _, outputs, last = forward(*unpacked([sequences, *states, *values]))
            found = [*outputs, *last]
        return (found.pop(0) if return_sequences else None), found

    def _loop(self, form):
        """The loops over the chunks of some tiles, shared by all cells that differ in weights."""
        if form not in self._made:
            loops = _shared.get((self._key, form))
            if loops is None:
                loops = _Loops(_Kernels(self.recurrence, form))
                if self._key is not None:
                    _shared[self._key, form] = loops
            self._made[form] = loops
        return self._made[form]


# The loops in use: the directions of a Bidirectional and equal layers of a stack compile once.
_shared = weakref.WeakValueDictionary()


def _key(cell):
    """What the computations of a cell depend on besides weights; None where that is unknown.

    Functions count as themselves and not by their names, which may come to mean another function.
    """
    functions = tuple(cell.activations_in_use())
    if type(cell) not in CELLS.values() or any(isinstance(f, keras.Layer) for f in functions):
        return None
    options = {name: getattr(cell, name) for name in _OPTIONS if hasattr(cell, name)}
    return type(cell), cell.compute_dtype, functions, tuple(options.items())


_OPTIONS = (
    "units", "use_bias", "reset_after", "grad_clip_value", "grad_clip_norm", "grad_clip_at",
    "activation_l1", "candidate_l1",
)  # fmt: skip


Forward = collections.namedtuple("Forward", ["outputs", "last", "kept", "projected"])
Backward = collections.namedtuple("Backward", ["x", "states", "values"])


class _Loops:
    """What drives the kernels: one loop over the chunks of `count` tiles from tile `first` on.

    The loop is flat: turn q belongs to chunk q % chunks of tile first + q // chunks.
    """

    def __init__(self, kernels):
        self.kernels, self.form = kernels, kernels.form
        self.units = kernels.recurrence.cell.units
        self.dtype = kernels.recurrence.cell.compute_dtype
        self.forward = tf.function(self._forward, autograph=False)
        self.backward = tf.function(self._backward, autograph=False)

    def _forward(self, x, masks, dropout, states, values, first, count, chunks, time, keep):
        rows = self.form.rows
        size = count * chunks

        def body(q, state, last, kept, projected):
            tile, chunk = first + q // chunks, q % chunks
            piece, mask, drop = self._pieces(tile, chunk, x, masks, dropout)
            state = [
                tf.where(chunk == 0, self._rows(initial, tile), s)
                for initial, s in zip(states, state, strict=True)
            ]
            sequences, projections, state = self.kernels.forward(
                piece, self._steps(chunk, time), mask, drop, state, values
            )
            return (
                q + 1,
                state,
                [a.write(tile - first, s) for a, s in zip(last, state, strict=True)],
                [a.write(q, s) for a, s in zip(kept, sequences, strict=True)],
                [a.write(keep * q, u) for a, u in zip(projected, projections, strict=True)],
            )

        shape = (self.form.steps, rows, self.units)
        start = [tf.zeros((rows, s.shape[1]), s.dtype) for s in states]
        last = self._per_tile(states, count)
        kept = [_array(self.dtype, size, shape) for _ in range(self.kernels.kept_states)]
        projected = [
            _array(self.dtype, keep * size, shape) for _ in range(self.kernels.kept_projections)
        ]
        _, _, last, kept, projected = tf.while_loop(
            lambda q, *_: q < size, body, (0, start, last, kept, projected), parallel_iterations=1
        )
        outputs = []
        if self.form.sequences:
            hidden = tf.reshape(_stack(kept[0], size), (count, chunks, *shape))
            hidden = tf.transpose(hidden, (0, 3, 1, 2, 4))
            outputs = tf.reshape(hidden, (count * rows, chunks * self.form.steps, self.units))
        return Forward(
            outputs,
            self._joined(last, states, count),
            [a.flow for a in kept],
            [a.flow for a in projected],
        )

    def _backward(
        self, x, masks, dropout, states, values, kept, projected, d_outputs, d_last,
        first, count, chunks, time, keep,
    ):  # fmt: skip
        rows, features = self.form.rows, self.form.features
        size = count * chunks
        shape = (self.form.steps, rows, self.units)
        read = functools.partial(_read, dtype=self.dtype, shape=shape)

        def body(q, d_states, d_first, d_values, d_x):
            tile, chunk = first + q // chunks, q % chunks
            piece, mask, drop = self._pieces(tile, chunk, x, masks, dropout)
            before = [
                tf.cond(
                    chunk == 0,
                    lambda s=s, tile=tile: self._rows(s, tile),
                    lambda flow=flow, q=q: read(flow, q - 1)[-1],
                )
                for flow, s in zip(kept, states[: len(kept)], strict=True)
            ]
            d_states = [
                tf.where(chunk == chunks - 1, self._rows(d, tile), s)
                for d, s in zip(d_last, d_states, strict=True)
            ]
            d_output = [self._chunk(d, tile, chunk) for d in d_outputs]
            d_states, d_projected, d_values = self.kernels.backward(
                piece, self._steps(chunk, time), mask, drop, before,
                [read(flow, q) for flow in kept], [read(flow, keep * q) for flow in projected],
                keep, values, transposed, d_states, d_output, d_values,
            )  # fmt: skip
            # In a kernel of its own, which goes with the array if nobody asks for dL/dx.
            d_piece = self.kernels.backward_input(piece, drop, values, d_projected)
            return (
                q - 1,
                d_states,
                [a.write(tile - first, d) for a, d in zip(d_first, d_states, strict=True)],
                d_values,
                d_x.write(q, d_piece),
            )

        start = [tf.zeros((rows, s.shape[1]), s.dtype) for s in states]
        d_first = self._per_tile(states, count)
        d_x = _array(x.dtype, size, (rows, self.form.steps, features))
        zeros = [tf.zeros_like(v) for v in values]
        # XLA multiplies faster by a matrix than by the transpose of one.
        transposed = tf.transpose(values[self.kernels.recurrence.recurrent_kernel])
        _, _, d_first, d_values, d_x = tf.while_loop(
            lambda q, *_: q >= 0,
            body,
            (size - 1, start, d_first, zeros, d_x),
            parallel_iterations=1,
        )
        d_x = tf.reshape(_stack(d_x, size), (count, chunks, rows, self.form.steps, features))
        d_x = tf.transpose(d_x, (0, 2, 1, 3, 4))
        return Backward(
            tf.reshape(d_x, (count * rows, chunks * self.form.steps, features)),
            self._joined(d_first, states, count),
            d_values,
        )

    def _per_tile(self, states, count):
        """Arrays with room for one value of each state per tile."""
        return [_array(s.dtype, count, (self.form.rows, s.shape[1])) for s in states]

    def _joined(self, arrays, states, count):
        """What such arrays hold, for the samples of all tiles."""
        return [
            tf.reshape(_stack(array, count), (-1, state.shape[1]))
            for array, state in zip(arrays, states, strict=True)
        ]

    def _pieces(self, tile, chunk, x, masks, dropout):
        """The inputs, masks and dropout masks that a kernel takes for one chunk of a tile."""
        return (
            self._chunk(x, tile, chunk),
            [self._chunk(mask, tile, chunk) for mask in masks],
            Dropout(*[[self._rows(m, tile) for m in each] for each in dropout]),
        )

    def _steps(self, chunk, time):
        """How many steps of the chunk there are."""
        return tf.minimum(self.form.steps, time - chunk * self.form.steps)

    def _chunk(self, value, tile, chunk):
        rest = value.shape[2:]
        begin = (tile * self.form.rows, chunk * self.form.steps, *[0] * len(rest))
        return tf.slice(value, begin, (self.form.rows, self.form.steps, *rest))

    def _rows(self, value, tile):
        return tf.slice(value, (tile * self.form.rows, 0), (self.form.rows, value.shape[1]))


class _Kernels:
    """The computations of one chunk of one tile, compiled on their own."""

    def __init__(self, recurrence, form):
        self.recurrence, self.form = recurrence, form
        # What is handed out for every time step: all states and projections for the backward pass,
        # else at most the hidden state.
        self.kept_states = len(recurrence.cell.state_names) if form.gradients else form.sequences
        self.kept_projections = len(recurrence.projected) if form.gradients else 0
        compile_ = functools.partial(tf.function, autograph=False, jit_compile=COMPILED or None)
        self.forward = compile_(self._forward)
        self.backward = compile_(self._backward)
        self.backward_input = compile_(self._backward_input)

    def _forward(self, x, steps, masks, dropout, states, values):
        recurrence = self.recurrence
        x_blocks = self._by_time(recurrence.project_input(values, _flat(x), self._bulk(dropout)))
        valid = [tf.transpose(mask)[:, :, None] for mask in masks]

        def body(t, states, sequences, projections):
            u = recurrence.project_state(values, states[0], dropout)
            xs = _at(x_blocks, t)
            states = recurrence.advance(values, xs, u, states, _valid(valid, t), dropout)
            return (
                t + 1,
                states,
                [a.write(t, s) for a, s in zip(sequences, states, strict=False)],
                [a.write(t, b) for a, b in zip(projections, u, strict=False)],
            )

        arrays = (self._arrays(self.kept_states), self._arrays(self.kept_projections))
        _, states, sequences, projections = tf.while_loop(
            lambda t, *_: t < steps, body, (0, states, *arrays)
        )
        return [a.stack() for a in sequences], [a.stack() for a in projections], states

    def _backward(
        self, x, steps, masks, dropout, before, sequences, projections, keep, values, transposed,
        d_states, d_outputs, d_values,
    ):  # fmt: skip
        recurrence = self.recurrence
        bulk = self._bulk(dropout)
        previous = [tf.concat([b[None], s[:-1]], 0) for b, s in zip(before, sequences, strict=True)]
        hidden = tf.reshape(previous[0], (-1, recurrence.cell.units))
        with tf.GradientTape() as projecting:
            projecting.watch(values)
            x_all = recurrence.project_input(values, _flat(x), bulk)
            u_all = recurrence.project_state(values, hidden, bulk)
        x_blocks = self._by_time(x_all)
        u_blocks = tf.cond(
            keep > 0,
            lambda: projections,
            lambda: self._by_time(recurrence.project_state(values, hidden, bulk)),
        )
        sums = d_states[len(previous) :]
        valid = [tf.transpose(mask)[:, :, None] for mask in masks]
        d_outputs = [tf.transpose(d, (1, 0, 2)) for d in d_outputs]

        def body(t, d_states, d_values, d_x, d_u):
            xs, us = _at(x_blocks, t), _at(u_blocks, t)
            states = [*_at(previous, t), *[tf.zeros_like(s) for s in sums]]
            if d_outputs:
                d_states = [d_states[0] + d_outputs[0][t], *d_states[1:]]
            with tf.GradientTape() as advancing:
                advancing.watch([xs, us, states, values])
                new = recurrence.advance(values, xs, us, states, _valid(valid, t), dropout)
            d_xs, d_us, d_before, d_more = advancing.gradient(
                new, [xs, us, states, values], output_gradients=d_states
            )
            d_xs, d_us = _or_zeros(d_xs, xs), _or_zeros(d_us, us)
            d_before = _or_zeros(d_before, states)
            if d_us:
                d_before[0] += recurrence.pull_state(values, d_us, transposed, dropout)
            return (
                t - 1,
                d_before,
                _add(d_values, d_more),
                [a.write(t, d) for a, d in zip(d_x, d_xs, strict=True)],
                [a.write(t, d) for a, d in zip(d_u, d_us, strict=True)],
            )

        arrays = (self._arrays(len(x_blocks)), self._arrays(len(u_blocks)))
        _, d_states, d_values, d_x, d_u = tf.while_loop(
            lambda t, *_: t >= 0, body, (steps - 1, d_states, d_values, *arrays)
        )
        d_x, d_u = [a.stack() for a in d_x], [a.stack() for a in d_u]
        flat = [tf.reshape(d, (-1, recurrence.cell.units)) for d in (*d_x, *d_u)]
        more = projecting.gradient([*x_all, *u_all], values, output_gradients=flat)
        return d_states, d_x, _add(d_values, more)

    def _backward_input(self, x, dropout, values, d_projected):
        flat = _flat(x)
        with tf.GradientTape() as projecting:
            projecting.watch(flat)
            blocks = self.recurrence.project_input(values, flat, self._bulk(dropout))
        units = self.recurrence.cell.units
        d = [tf.reshape(d, (-1, units)) for d in d_projected]
        d_x = projecting.gradient(blocks, flat, output_gradients=d)
        return tf.transpose(tf.reshape(d_x, (self.form.steps, self.form.rows, -1)), (1, 0, 2))

    def _by_time(self, blocks):
        units = self.recurrence.cell.units
        # Separate arrays: XLA does not vectorize columns of a slice at a variable index.
        return [tf.reshape(block, (self.form.steps, self.form.rows, units)) for block in blocks]

    def _bulk(self, dropout):
        """The dropout masks for all steps of a chunk at once."""
        return Dropout(*[[tf.tile(m, (self.form.steps, 1)) for m in each] for each in dropout])

    def _arrays(self, count):
        """TensorArrays of one (rows, units) per step. Unwritten elements are zeros."""
        shape = (self.form.rows, self.recurrence.cell.units)
        zeros = tf.zeros((self.form.steps, *shape), self.recurrence.cell.compute_dtype)
        arrays = [
            tf.TensorArray(zeros.dtype, self.form.steps, element_shape=shape) for _ in range(count)
        ]
        return [array.unstack(zeros) for array in arrays]


# ---------------------------------------------------------------------- helpers


def _flat(x):
    """(rows, steps, features) as (steps * rows, features)."""
    return tf.reshape(tf.transpose(x, (1, 0, 2)), (-1, x.shape[2]))


def _at(arrays, t):
    return [tf.identity(array[t]) for array in arrays]


def _valid(masks, t):
    return masks[0][t] if masks else None


def _or_zeros(gradients, like):
    return [tf.zeros_like(v) if g is None else g for g, v in zip(gradients, like, strict=True)]


def _add(totals, gradients):
    return [t if g is None else t + g for t, g in zip(totals, gradients, strict=True)]


def _divides(a, b):
    return b is not None and b % a == 0


def _pad(value, rows, steps):
    """`value` with zeros after its rows and, if it has the time axis, after its steps."""
    over_time = value.shape.rank == 3 or value.dtype == tf.bool
    if not over_time:
        steps = None
    if rows is None and steps is None:
        return value
    amounts = [(0, 0 if amount is None else amount) for amount in (rows, steps)]
    amounts = [*amounts, (0, 0)][: value.shape.rank]
    padded = tf.pad(value, amounts)
    return tf.ensure_shape(padded, [None] * (1 + over_time) + value.shape[1 + over_time :])


def _no_second_derivatives(*_):
    raise NotImplementedError(
        "Second derivatives (a gradient of a gradient) do not go through fused backpropagation "
        "through time. Give backprop='autodiff' to the GatedRNN layers."
    )


def _array(dtype, size, shape):
    # At least one element: a loop without tiles is compiled as well, and reads the first.
    return tf.TensorArray(dtype, tf.maximum(1, size), element_shape=shape)


def _stack(array, size):
    return array.stack()[:size]


def _read(flow, index, dtype, shape):
    """An element of the TensorArray that had this `flow` at the end of the forward pass."""
    value = tf.raw_ops.TensorListGetItem(
        input_handle=flow, index=index, element_shape=shape, element_dtype=dtype
    )
    return tf.ensure_shape(value, shape)
