"""Fused backpropagation through time on TensorFlow.

The sequences are cut into tiles of some samples and chunks of some time steps. What happens inside
one tile and chunk is a kernel (`kernels`): a function of fixed shapes, which XLA compiles once,
whatever the batch size and the length. Plain TensorFlow loops (`loops`) drive the kernels, one loop
per core, each with its own samples: that is what makes small matrix products use all cores.

Forward, a kernel steps through time; of all it computes only the states are kept, and the
projections of the states while they are small. Backward, the chunks come in reverse order. A kernel
walks back in time with the vector-Jacobian product of everything between the projections, computing
again what was not kept, and turns what it collected into the gradients of the weights with one
matrix product each.
"""

import functools
import itertools
import os
import weakref

import tensorflow as tf

from keras_gates.cells.program import trace
from keras_gates.cells.step import projected_blocks
from keras_gates.engine.base import Engine
from keras_gates.engine.chunks import KEPT, ceil, steps_of_a_chunk
from keras_gates.engine.recurrence import Dropout, Recurrence
from keras_gates.engine.tensorflow.again import pulled_again
from keras_gates.engine.tensorflow.kernels import Kernels, KernelSpec
from keras_gates.engine.tensorflow.loops import Loops
from keras_gates.equations import NotTraceableError


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


class FusedEngine(Engine):
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
        """See `Engine`."""
        known_batch, known_time, features = sequences.shape
        rows = rows_of_a_tile(known_batch, self.cell.units, self.loops)
        spec = KernelSpec(
            rows=rows,
            steps=steps_of_a_chunk(known_time, rows, self.cell.units),
            features=features,
            masked=mask is not None,
            input_masks=len(dropout.inputs),
            recurrent_masks=len(dropout.recurrent),
            sequences=return_sequences,
            gradients=gradients,
        )
        batch = tf.shape(sequences)[0] if known_batch is None else known_batch
        time = tf.shape(sequences)[1] if known_time is None else known_time
        tiles, chunks = ceil(batch, spec.rows), ceil(time, spec.steps)
        # The engine computes on whole tiles and chunks.
        pad = functools.partial(
            _pad, rows=tiles * spec.rows - batch, steps=chunks * spec.steps - time
        )
        pull_again = functools.partial(
            pulled_again, self.recurrence, mask, dropout, return_sequences
        )
        mask = [] if mask is None else [pad(mask)]
        dropout = Dropout(*[[pad(m) for m in each] for each in dropout])
        parts = _parts(tiles, self.loops)
        counts = (chunks, time, self._keep(tiles * spec.rows * chunks * spec.steps))
        state_count = len(states)
        loops = self._loops(spec)

        def of_part(part, values):
            """The samples of one part: every tensor of a nested structure."""
            if len(parts) == 1:
                return values
            first, count = part
            if not isinstance(tiles, int):
                # XLA compiles the loop of a part without tiles as well, which slices the first.
                first, count = tf.minimum(first, tiles - 1), tf.maximum(count, 1)
            rows = slice(first * spec.rows, (first + count) * spec.rows)
            return tf.nest.map_structure(lambda value: value[rows], values)

        def forward(x, states, values):
            found = [
                loops.forward(*of_part(part, (x, mask, dropout, states)), values, part[1], *counts)
                for part in parts
            ]
            last = [_joined(pieces, batch) for pieces in zip(*[f.last for f in found], strict=True)]
            outputs = [
                _joined(pieces, batch)[:, :time]
                for pieces in zip(*[f.outputs for f in found], strict=True)
            ]
            return found, outputs, last

        @tf.custom_gradient
        def fused(*given):
            x, states, values = unpacked(given)
            went, outputs, last = forward(x, states, values)

            @tf.custom_gradient
            def backward(*d_and_given):
                results = d_and_given[: len(outputs) + len(last)]
                d = [pad(tf.stop_gradient(d)) for d in results]
                d_outputs, d_last = d[: len(outputs)], d[len(outputs) :]
                found = [
                    loops.backward(
                        *of_part(part, (x, mask, dropout, states)), values,
                        forth.kept, forth.projected, *of_part(part, (d_outputs, d_last)),
                        part[1], *counts,
                    )
                    for forth, part in zip(went, parts, strict=True)
                ]  # fmt: skip
                d_x = _joined([f.x for f in found], batch)[:, :time]
                d_states = zip(*[f.states for f in found], strict=True)
                d_states = [_joined(pieces, batch) for pieces in d_states]
                d_values = zip(*[f.values for f in found], strict=True)
                d_values = [tf.add_n(pieces) for pieces in d_values]
                return [d_x, *d_states, *d_values], lambda *v: pull_again(given, results, v)

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

    def _keep(self, steps):
        """1 if the projections of so many steps (of a sample) are kept, and else 0."""
        columns = len(self.recurrence.projected) * self.cell.units
        most = KEPT // (columns * tf.as_dtype(self.cell.compute_dtype).size)
        return int(steps <= most) if isinstance(steps, int) else tf.cast(steps <= most, tf.int32)

    def _loops(self, spec):
        """The loops for one spec, shared by all cells that differ in weights alone."""
        if spec not in self._made:
            loops = _shared.get((self._key, spec))
            if loops is None:
                loops = Loops(Kernels(self.recurrence, spec))
                if self._key is not None:
                    _shared[self._key, spec] = loops
            self._made[spec] = loops
        return self._made[spec]


# The loops in use: the directions of a Bidirectional and equal layers of a stack compile once.
_shared: weakref.WeakValueDictionary = weakref.WeakValueDictionary()


def _key(cell):
    """What the computations of a cell depend on besides weights; None where that is unknown."""
    try:
        program = trace(cell)
    except NotTraceableError:
        return None
    return (
        program,
        (cell.blocks, projected_blocks(cell), cell.state_names, cell.units, cell.compute_dtype),
        (cell.use_bias, cell.two_biases, tuple(cell.penalties.items())),
        (cell.grad_clip_value, cell.grad_clip_norm, cell.grad_clip_at),
        tuple((weight.name, tuple(weight.shape), weight.dtype) for weight in cell.weights),
    )


def _parts(tiles, most):
    """The first tile of each of at most so many even parts of the tiles, and how many it has."""
    if isinstance(tiles, int):
        most, least = max(1, min(most, tiles)), min
    else:
        least = tf.minimum
    share, rest = tiles // most, tiles % most
    first = [i * share + least(i, rest) for i in range(most + 1)]
    return [(a, b - a) for a, b in itertools.pairwise(first)]


def _joined(pieces, batch):
    """The samples of all parts, without the padding."""
    return (pieces[0] if len(pieces) == 1 else tf.concat(pieces, 0))[:batch]


def _pad(value, rows, steps):
    """`value` with zeros after its rows and, if it has the time axis, after its steps."""
    over_time = value.shape.rank == 3 or value.dtype == tf.bool
    if not over_time:
        steps = 0
    if isinstance(rows, int) and isinstance(steps, int) and rows == steps == 0:
        return value
    padded = tf.pad(value, [(0, rows), (0, steps), (0, 0)][: value.shape.rank])
    return tf.ensure_shape(padded, [None] * (1 + over_time) + value.shape[1 + over_time :])
