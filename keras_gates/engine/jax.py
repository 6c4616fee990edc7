"""Fused backpropagation through time on JAX, for accelerators and for what the kernel cannot do.

Nested scans: over chunks of some time steps, and in each over its steps. Forward, of all that is
computed only the states are kept, and the projections of the states while they are small. Backward,
the chunks come in reverse order, each walks back in time with the vector-Jacobian product of
everything between the projections, computing again what was not kept, and what it collected becomes
the gradients of the weights with one matrix product each.
"""

import functools

import jax
import jax.numpy as jnp

from keras_gates.engine.base import Engine
from keras_gates.engine.recurrence import Dropout, Recurrence

# Steps of a chunk: fewer of them leave an array of one block (steps, rows, units) in the cache.
_FEWEST_STEPS, _MOST_STEPS = 25, 200
_ELEMENTS = 100_000
# The projections of the states are kept for the backward pass up to this size, in bytes.
_KEPT = 128 * 2**20
# Time steps of one turn of a loop on an accelerator, where a turn costs more than a small product.
STEPS_OF_A_TURN = 8


class FusedEngine(Engine):
    """Runs one cell.

    Args:
        cell: a built GatedCell.
    """

    how = "fused, in scans"

    def __init__(self, cell):
        self.recurrence = Recurrence(cell)
        self.state_count = len(cell.state_names)

    def __call__(self, sequences, states, mask, dropout, return_sequences, gradients=True):
        """See `Engine`; JAX itself knows whether `gradients` are asked for."""
        values = [jnp.asarray(v) for v in self.recurrence.values()]
        return self.over(sequences, states, mask, dropout, return_sequences, values)

    def over(self, sequences, states, mask, dropout, return_sequences, values):
        """The same, as a function of the weights too."""
        batch, time = sequences.shape[:2]
        steps = _steps_of_a_chunk(time, batch * self.recurrence.cell.units)
        missing = -time % steps
        x = _chunks(sequences, steps, missing)
        valid = None
        if mask is not None or missing:
            mask = jnp.ones((batch, time), bool) if mask is None else jnp.asarray(mask)
            valid = _chunks(mask[:, :, None], steps, missing)
        columns = len(self.recurrence.projected) * self.recurrence.cell.units
        keep = x.shape[0] * steps * batch * columns * x.dtype.itemsize <= _KEPT
        dropout = dropout._replace(kept=[_chunks(m, steps, missing) for m in dropout.kept])
        hidden, last = self._fused(return_sequences, keep)(x, valid, dropout, states, values)
        if hidden is not None:
            hidden = jnp.swapaxes(hidden.reshape(-1, *hidden.shape[2:])[:time], 0, 1)
        return hidden, list(last)

    def _fused(self, return_sequences, keep):
        """The function of the chunks, with its own backward pass."""

        def forward(x, valid, dropout, states, values):
            last, (kept, projected) = jax.lax.scan(
                functools.partial(self._forward, values, dropout),
                list(states),
                (x, valid, dropout.kept),
            )
            residuals = (x, valid, dropout, states, values, kept, projected if keep else None)
            return (kept[0] if return_sequences else None, last), residuals

        def backward(residuals, d):
            x, valid, dropout, states, values, kept, projected = residuals
            d_hidden, d_last = d
            # The states before each chunk.
            before = [
                jnp.concatenate([first[None], after[:-1, -1]])
                for first, after in zip(states, kept, strict=False)
            ]
            transposed = values[1].T if self.recurrence.projected else None
            (d_states, d_values), d_x = jax.lax.scan(
                functools.partial(self._backward, values, transposed, dropout),
                (list(d_last), [jnp.zeros_like(v) for v in values]),
                (x, valid, dropout.kept, before, kept, projected, d_hidden),
                reverse=True,
            )
            return d_x, None, None, d_states, d_values

        fused = jax.custom_vjp(lambda *args: forward(*args)[0])
        fused.defvjp(forward, backward)
        return fused

    def _forward(self, values, dropout, states, chunk):
        """The states after a chunk; its states, and its projections of the state."""
        x, valid, kept = chunk
        recurrence = self.recurrence
        x_blocks = _by_time(recurrence.project_input(values, _flat(x), _bulk(dropout, x)), x)

        def step(states, at):
            xs, valid, kept = at
            u = recurrence.project_state(values, states[0], dropout)
            masks = dropout._replace(kept=kept)
            states = recurrence.advance(values, xs, u, states, valid, masks)
            return states, (states[: self.state_count], u)

        return _over_time(step, states, (x_blocks, valid, kept))

    def _backward(self, values, transposed, dropout, carry, chunk):
        """The gradients before a chunk, from those after it."""
        d_states, d_values = carry
        x, valid, kept, before, after, u_blocks, d_hidden = chunk
        recurrence, bulk = self.recurrence, _bulk(dropout, x)
        previous = [jnp.concatenate([b[None], a[:-1]]) for b, a in zip(before, after, strict=True)]
        hidden = previous[0].reshape(-1, previous[0].shape[-1])
        x_all, pull_x = jax.vjp(
            lambda x, values: recurrence.project_input(values, x, bulk), _flat(x), values
        )
        u_all, pull_u = jax.vjp(
            lambda values: recurrence.project_state(values, hidden, bulk), values
        )
        x_blocks = _by_time(x_all, x)
        if u_blocks is None:
            u_blocks = _by_time(u_all, x)
        sums = [jnp.zeros_like(d) for d in d_states[self.state_count :]]

        def step(carry, at):
            d_states, d_values = carry
            xs, us, states, valid, kept, d_output = at
            masks = dropout._replace(kept=kept)
            if d_output is not None:
                d_states = [d_states[0] + d_output, *d_states[1:]]
            _, pull = jax.vjp(
                lambda x, u, states, values: recurrence.advance(
                    values, x, u, states, valid, masks
                ),
                xs, us, [*states, *sums], values,
            )  # fmt: skip
            d_xs, d_us, d_before, d_more = pull(d_states)
            if d_us:
                d_before[0] += recurrence.pull_state(values, d_us, transposed, dropout)
            return (d_before, _add(d_values, d_more)), (d_xs, d_us)

        read = (x_blocks, u_blocks, previous, valid, kept, d_hidden)
        carry, (d_xs, d_us) = _over_time(step, (d_states, d_values), read, reverse=True)
        d_states, d_values = carry
        d_x, d_more = pull_x([_flat(d) for d in d_xs])
        (d_most,) = pull_u([_flat(d) for d in d_us])
        return (d_states, _add(_add(d_values, d_more), d_most)), d_x.reshape(x.shape)


def _over_time(step, carry, read, reverse=False):
    """A loop over the time steps of a chunk."""
    turn = 1 if jax.default_backend() == "cpu" else STEPS_OF_A_TURN
    return jax.lax.scan(step, carry, read, reverse=reverse, unroll=turn)


def _chunks(value, steps, missing):
    """(batch, time, ...) as (chunks, steps, batch, ...), with zeros after the last step."""
    value = jnp.swapaxes(value, 0, 1)
    value = jnp.pad(value, [(0, missing), *[(0, 0)] * (value.ndim - 1)])
    return value.reshape(-1, steps, *value.shape[1:])


def _flat(x):
    return x.reshape(-1, x.shape[-1])


def _by_time(blocks, x):
    return [block.reshape(*x.shape[:2], -1) for block in blocks]


def _bulk(dropout, x):
    """The dropout masks for all steps of a chunk at once."""
    tiled = [[jnp.tile(m, (x.shape[0], 1)) for m in masks] for masks in dropout[:2]]
    return Dropout(*tiled)


def _add(totals, gradients):
    return [total + gradient for total, gradient in zip(totals, gradients, strict=True)]


def _steps_of_a_chunk(time, elements):
    """How many, so that all chunks are equally long; `elements` of an array of one step."""
    most = min(max(_FEWEST_STEPS, _ELEMENTS // elements), _MOST_STEPS)
    return -(-time // -(-time // most)) if time else 1
