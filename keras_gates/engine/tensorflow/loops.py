"""What drives the kernels over the chunks of some tiles, forward and backward in time.

Turn q belongs to chunk q % chunks of tile q // chunks. A few turns, if their number is known, are
written out one by one in the graph, where each costs a quarter of what one in a loop does; more of
them, or an unknown number, are a plain TensorFlow loop.
"""

import collections

import tensorflow as tf

from keras_gates.engine.recurrence import Dropout

# So many turns are written out; above that, time goes into the kernels and no longer between them.
_WRITTEN_OUT = 8

# What the forward pass gives: outputs (samples, time, units), if wanted, the last states, and for
# the backward pass states and projections of every turn, as a list or in TensorFlow's own format.
Forward = collections.namedtuple("Forward", ["outputs", "last", "kept", "projected"])
# The gradients at the inputs, the initial states and the weights.
Backward = collections.namedtuple("Backward", ["x", "states", "values"])


class Loops:
    """The forward and the backward loop.

    Both take the samples of some tiles: `x` (samples, time, features), `masks`, `dropout` and
    `states`, padded to whole tiles and chunks; `values` of the weights; how many tiles and chunks
    these are and how many time steps without the padding; `keep`, 1 if the projections of the
    states are kept, and else 0. Numbers are integers where they are known, and else tensors.
    """

    def __init__(self, kernels):
        self.kernels, self.spec = kernels, kernels.spec
        self.units = kernels.recurrence.cell.units
        self.dtype = kernels.recurrence.cell.compute_dtype
        # Traced once for all loops of a layer, and for all layers that share them.
        self.forward = tf.function(self._forward, autograph=False)
        self.backward = tf.function(self._backward, autograph=False)

    def _forward(self, x, masks, dropout, states, values, tiles, chunks, time, keep):
        turns = _turns(tiles, chunks)
        new = _arrays(turns)

        def body(q, state, last, kept, projected, outputs):
            tile, chunk = q // chunks, q % chunks
            piece, mask, drop = self._pieces(tile, chunk, x, masks, dropout)
            state = [
                _where(chunk == 0, self._rows(initial, tile), s)
                for initial, s in zip(states, state, strict=True)
            ]
            *found, state = self.kernels.forward(
                piece, self._steps(chunk, time), mask, drop, state, values
            )
            before, projections, output = found
            return (
                state,
                [a.write(tile, s) for a, s in zip(last, state, strict=True)],
                [a.write(q, s) for a, s in zip(kept, before, strict=True)],
                [a.write(keep * q, u) for a, u in zip(projected, projections, strict=True)],
                [a.write(q, o) for a, o in zip(outputs, output, strict=True)],
            )

        rows, steps = self.spec.rows, self.spec.steps
        shape = (steps, rows, self.units)
        kept = [new(self.dtype, turns, shape) for _ in range(self.kernels.kept_states)]
        projected = [
            new(self.dtype, keep * turns, shape) for _ in range(self.kernels.kept_projections)
        ]
        outputs = [new(self.dtype, turns, (rows, steps, self.units))] * self.spec.sequences
        start = [tf.zeros((rows, s.shape[1]), s.dtype) for s in states]
        last = [new(s.dtype, tiles, (rows, s.shape[1])) for s in states]
        _, last, kept, projected, outputs = _repeat(
            turns, body, (start, last, kept, projected, outputs)
        )
        return Forward(
            [self._by_sample(o, tiles, chunks, self.units) for o in outputs],
            self._joined(last, states, tiles),
            [a.flow for a in kept],
            [a.flow for a in projected],
        )

    def _backward(
        self, x, masks, dropout, states, values, kept, projected, d_outputs, d_last,
        tiles, chunks, time, keep,
    ):  # fmt: skip
        turns = _turns(tiles, chunks)
        new = _arrays(turns)

        def body(q, d_states, d_first, d_values, d_x):
            tile, chunk = q // chunks, q % chunks
            piece, mask, drop = self._pieces(tile, chunk, x, masks, dropout)
            d_states = [
                _where(chunk == chunks - 1, self._rows(d, tile), s)
                for d, s in zip(d_last, d_states, strict=True)
            ]
            d_output = [self._chunk(d, tile, chunk) for d in d_outputs]
            d_states, d_projected, d_values = self.kernels.backward(
                piece, self._steps(chunk, time), mask, drop,
                [self._read(flow, q) for flow in kept],
                [self._read(flow, keep * q) for flow in projected],
                keep, values, transposed, d_states, d_output, d_values,
            )  # fmt: skip
            # In a kernel of its own, which goes with the array if nobody asks for dL/dx.
            d_piece = self.kernels.backward_input(piece, drop, values, d_projected)
            return (
                d_states,
                [a.write(tile, d) for a, d in zip(d_first, d_states, strict=True)],
                d_values,
                d_x.write(q, d_piece),
            )

        rows, steps, features = self.spec.rows, self.spec.steps, self.spec.features
        start = [tf.zeros((rows, s.shape[1]), s.dtype) for s in states]
        d_first = [new(s.dtype, tiles, (rows, s.shape[1])) for s in states]
        d_x = new(x.dtype, turns, (rows, steps, features))
        d_values = [tf.zeros_like(v) for v in values]
        transposed = self.kernels.transpose(values[self.kernels.recurrence.recurrent_kernel])
        _, d_first, d_values, d_x = _repeat(
            turns, body, (start, d_first, d_values, d_x), backwards=True
        )
        return Backward(
            self._by_sample(d_x, tiles, chunks, features),
            self._joined(d_first, states, tiles),
            d_values,
        )

    def _by_sample(self, array, tiles, chunks, features):
        """(samples, time, features) from an array of one (rows, steps, features) per turn."""
        rows, steps = self.spec.rows, self.spec.steps
        value = _stack(array, tiles * chunks)
        value = tf.reshape(value, (tiles, chunks, rows, steps, features))
        value = tf.transpose(value, (0, 2, 1, 3, 4))
        return tf.reshape(value, (tiles * rows, chunks * steps, features))

    def _joined(self, arrays, states, tiles):
        """What such arrays hold, for the samples of all tiles."""
        return [
            tf.reshape(_stack(array, tiles), (-1, state.shape[1]))
            for array, state in zip(arrays, states, strict=True)
        ]

    def _pieces(self, tile, chunk, x, masks, dropout):
        """The inputs, masks and dropout masks that a kernel takes for one turn."""
        return (
            self._chunk(x, tile, chunk),
            [self._chunk(mask, tile, chunk) for mask in masks],
            Dropout(*[[self._rows(m, tile) for m in each] for each in dropout]),
        )

    def _steps(self, chunk, time):
        """How many steps of the chunk there are."""
        if isinstance(time, int) and time % self.spec.steps == 0:
            return self.spec.steps
        return tf.minimum(self.spec.steps, time - chunk * self.spec.steps)

    def _chunk(self, value, tile, chunk):
        rest = value.shape[2:]
        begin = (tile * self.spec.rows, chunk * self.spec.steps, *[0] * len(rest))
        return tf.slice(value, begin, (self.spec.rows, self.spec.steps, *rest))

    def _rows(self, value, tile):
        return tf.slice(value, (tile * self.spec.rows, 0), (self.spec.rows, value.shape[1]))

    def _read(self, flow, index):
        """An element of the array that had this `flow` at the end of the forward pass."""
        if isinstance(flow, list):
            return flow[index]
        shape = (self.spec.steps, self.spec.rows, self.units)
        value = tf.raw_ops.TensorListGetItem(
            input_handle=flow, index=index, element_shape=shape, element_dtype=self.dtype
        )
        return tf.ensure_shape(value, shape)


def _turns(tiles, chunks):
    """How many turns there are: an integer if they are to be written out, else a tensor."""
    turns = tiles * chunks
    if isinstance(turns, int) and turns > _WRITTEN_OUT:
        return tf.constant(turns)
    return turns


def _repeat(turns, body, values, backwards=False):
    """`values` after `values = body(q, *values)` for every turn q, in order or backwards."""
    if isinstance(turns, int):
        for q in reversed(range(turns)) if backwards else range(turns):
            values = body(q, *values)
        return values
    first, step = (turns - 1, -1) if backwards else (0, 1)
    _, *values = tf.while_loop(
        lambda q, *_: (q >= 0) & (q < turns),
        lambda q, *values: (q + step, *body(q, *values)),
        (first, *values),
        parallel_iterations=1,
    )
    return values


class _ListArray:
    """What a TensorArray is to a loop, for turns that are written out."""

    def __init__(self, dtype, size, shape):
        self.flow = [None] * max(1, size)

    def write(self, index, value):
        self.flow[index] = value
        return self

    def stack(self):
        return tf.stack(self.flow)


def _arrays(turns):
    """What makes an array of `size` elements of one `dtype` and `shape` for that many turns."""
    return _ListArray if isinstance(turns, int) else _tensor_array


def _tensor_array(dtype, size, shape):
    # At least one element: a loop without turns is compiled as well, and reads the first.
    return tf.TensorArray(dtype, tf.maximum(1, size), element_shape=shape)


def _stack(array, size):
    return array.stack()[:size]


def _where(condition, if_true, if_false):
    if isinstance(condition, bool):
        return if_true if condition else if_false
    return tf.where(condition, if_true, if_false)
