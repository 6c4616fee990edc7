"""The computations of one chunk of one tile: functions of fixed shapes, compiled on their own."""

import collections
import functools

import tensorflow as tf

from keras_gates.engine.recurrence import Dropout

# Whether this TensorFlow can compile.
COMPILED = tf.test.is_built_with_xla()
# For so few rows all steps of a chunk are projected by one matrix product, which reads the weights
# once. With more rows a product per step is as fast, and its result need not go through memory.
FEW = 8

# What is fixed for a kernel: how many rows, steps and features it takes; whether there is a mask;
# how many dropout masks; whether the output of every step is wanted; whether a gradient may be.
KernelSpec = collections.namedtuple(
    "KernelSpec",
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


class Kernels:
    """The computations of one chunk of one tile, compiled on their own."""

    def __init__(self, recurrence, spec):
        self.recurrence, self.spec = recurrence, spec
        # What is handed out for every time step for the backward pass.
        self.kept_states = len(recurrence.cell.state_names) if spec.gradients else 0
        self.kept_projections = len(recurrence.projected) if spec.gradients else 0
        compile_ = functools.partial(tf.function, autograph=False, jit_compile=COMPILED or None)
        self.forward = compile_(self._forward)
        self.backward = compile_(self._backward)
        self.backward_input = compile_(self._backward_input)
        # XLA multiplies faster by a matrix than by the transpose of one, if it cannot see that.
        self.transpose = compile_(tf.transpose)

    def _forward(self, x, steps, masks, dropout, states, values):
        """The states and projections before each step, the outputs and the last states."""
        recurrence = self.recurrence
        x_at = self._projected(recurrence.project_input, values, _by_time(x), dropout)
        valid = [tf.transpose(mask)[:, :, None] for mask in masks]

        def body(t, states, kept, projections, outputs):
            u = recurrence.project_state(values, states[0], dropout)
            xs = x_at(t)
            new = recurrence.advance(values, xs, u, states, _valid(valid, t), dropout)
            return (
                t + 1,
                new,
                [a.write(t, s) for a, s in zip(kept, states, strict=False)],
                [a.write(t, b) for a, b in zip(projections, u, strict=False)],
                [a.write(t, new[0]) for a in outputs],
            )

        sizes = (self.kept_states, self.kept_projections, int(self.spec.sequences))
        _, states, *arrays = tf.while_loop(
            lambda t, *_: t < steps, body, (0, states, *map(self._arrays, sizes))
        )
        kept, projections, outputs = [[a.stack() for a in each] for each in arrays]
        return kept, projections, [_by_time(o) for o in outputs], states

    def _backward(
        self, x, steps, masks, dropout, kept, projections, keep, values, transposed,
        d_states, d_outputs, d_values,
    ):  # fmt: skip
        """The gradients at the states before, at the projected inputs and, added up, at values."""
        recurrence = self.recurrence
        x = _by_time(x)
        x_at = self._projected(recurrence.project_input, values, x, dropout)
        if isinstance(keep, int) and not keep:
            u_at = self._projected(recurrence.project_state, values, kept[0], dropout)
        else:
            u_blocks = projections
            if not isinstance(keep, int):
                again = functools.partial(self._in_bulk, recurrence.project_state, values, kept[0])
                u_blocks = tf.cond(keep > 0, lambda: projections, lambda: again(dropout))
            u_at = functools.partial(_at, u_blocks)
        valid = [tf.transpose(mask)[:, :, None] for mask in masks]
        d_outputs = [_by_time(d) for d in d_outputs]

        def pulled(t, d_states):
            """The gradients at what goes into step t, from those at the states after it."""
            xs, us = x_at(t), u_at(t)
            states = _at(kept, t)
            states += [tf.zeros_like(d) for d in d_states[len(kept) :]]  # the sums of penalties
            if d_outputs:
                d_states = [d_states[0] + d_outputs[0][t], *d_states[1:]]
            with tf.GradientTape() as advancing:
                advancing.watch([xs, us, states, values])
                new = recurrence.advance(values, xs, us, states, _valid(valid, t), dropout)
            d_xs, d_us, d_before, d_more = advancing.gradient(
                new, [xs, us, states, values], output_gradients=d_states
            )
            d_blocks = [*_or_zeros(d_xs, xs), *_or_zeros(d_us, us)]
            return d_blocks, _or_zeros(d_before, states), d_more

        # Where x W and h U are only ever added, their gradients are one tensor, kept in one array.
        d_blocks, *_ = pulled(0, d_states)
        inputs = len(recurrence.cell.blocks)
        first = [[d is e for e in d_blocks].index(True) for d in d_blocks]
        distinct = sorted(set(first))

        def body(t, d_states, d_values, arrays):
            d_blocks, d_before, d_more = pulled(t, d_states)
            d_us = d_blocks[inputs:]
            if d_us:
                d_before[0] += recurrence.pull_state(values, d_us, transposed, dropout)
            return (
                t - 1,
                d_before,
                _add(d_values, d_more),
                [a.write(t, d_blocks[i]) for a, i in zip(arrays, distinct, strict=True)],
            )

        _, d_states, d_values, arrays = tf.while_loop(
            lambda t, *_: t >= 0,
            body,
            (steps - 1, d_states, d_values, self._arrays(len(distinct))),
        )
        stacked = dict(zip(distinct, [a.stack() for a in arrays], strict=True))
        d_blocks = [stacked[i] for i in first]
        # One matrix product each for the gradients of W and U.
        with tf.GradientTape() as projecting:
            projecting.watch(values)
            bulk = self._bulk(dropout)
            projected = recurrence.project_input(values, _flat(x), bulk)
            projected += recurrence.project_state(values, _flat(kept[0]), bulk)
        more = projecting.gradient(projected, values, [_flat(d) for d in d_blocks])
        return d_states, d_blocks[:inputs], _add(d_values, more)

    def _backward_input(self, x, dropout, values, d_projected):
        flat = _flat(_by_time(x))
        with tf.GradientTape() as projecting:
            projecting.watch(flat)
            blocks = self.recurrence.project_input(values, flat, self._bulk(dropout))
        d_x = projecting.gradient(blocks, flat, [_flat(d) for d in d_projected])
        return tf.transpose(tf.reshape(d_x, (self.spec.steps, self.spec.rows, -1)), (1, 0, 2))

    def _projected(self, project, values, by_time, dropout):
        """A function of t: the projections of (steps, rows, features) at step t."""
        if self.spec.rows > FEW:
            return lambda t: project(values, by_time[t], dropout)
        return functools.partial(_at, self._in_bulk(project, values, by_time, dropout))

    def _in_bulk(self, project, values, by_time, dropout):
        """The projections of all steps, each (steps, rows, units)."""
        shape = (self.spec.steps, self.spec.rows, self.recurrence.cell.units)
        # Separate arrays: XLA does not vectorize columns of a slice at a variable index.
        blocks = project(values, _flat(by_time), self._bulk(dropout))
        return [tf.reshape(block, shape) for block in blocks]

    def _bulk(self, dropout):
        """The dropout masks for all steps of a chunk at once."""
        return Dropout(*[[tf.tile(m, (self.spec.steps, 1)) for m in each] for each in dropout])

    def _arrays(self, count):
        """TensorArrays of one (rows, units) per step. Unwritten elements are zeros."""
        shape = (self.spec.rows, self.recurrence.cell.units)
        zeros = tf.zeros((self.spec.steps, *shape), self.recurrence.cell.compute_dtype)
        arrays = [
            tf.TensorArray(zeros.dtype, self.spec.steps, element_shape=shape) for _ in range(count)
        ]
        return [array.unstack(zeros) for array in arrays]


def _by_time(x):
    """(rows, steps, features) as (steps, rows, features)."""
    return tf.transpose(x, (1, 0, 2))


def _flat(x):
    """(steps, rows, features) as (steps * rows, features)."""
    return tf.reshape(x, (-1, x.shape[2]))


def _at(arrays, t):
    return [tf.identity(array[t]) for array in arrays]


def _valid(masks, t):
    return masks[0][t] if masks else None


def _or_zeros(gradients, like):
    return [tf.zeros_like(v) if g is None else g for g, v in zip(gradients, like, strict=True)]


def _add(totals, gradients):
    return [t if g is None else t + g for t, g in zip(totals, gradients, strict=True)]
