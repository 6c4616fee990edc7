"""All time steps at once on JAX, for cells that are linear in their states.

Where the program of a cell shows that h' = a * h + b, with a and b made of the inputs alone, two
steps one after the other are such a step as well, `a_2 a_1 * h + (a_2 b_1 + b_2)`, so that a
sequence of T of them takes about log2(T) turns of an associative scan instead of T. So does its
derivative, which is such a recurrence backwards in time.

Sources: Blelloch, "Prefix sums and their applications", 1990; Martin, Cundy, "Parallelizing linear
recurrent neural nets over sequence length", 2018.
"""

import jax
import jax.numpy as jnp

from keras_gates import regularizers
from keras_gates.cells.program import trace, weights_by_name
from keras_gates.cells.zoneout import shares
from keras_gates.engine.base import Engine
from keras_gates.engine.recurrence import Dropout, NotFusableError, Recurrence
from keras_gates.equations import affine, leaf, tensors
from keras_gates.equations.program import forward
from keras_gates.equations.values import ordered
from keras_gates.gradients import at_least_float32


class FusedEngine(Engine):
    """Runs one cell.

    Args:
        cell: a built GatedCell.

    Raises:
        NotTraceableError, NotFusableError: it is not linear in its states, or clips gradients.
    """

    how = "fused, all time steps at once"

    def __init__(self, cell):
        self.cell, self.recurrence = cell, Recurrence(cell)
        self._equations = [Linear(cell, trace(cell))] * 2
        if shares(cell):
            self._equations[1] = Linear(cell, trace(cell, training=True))

    def __call__(self, sequences, states, mask, dropout, return_sequences, gradients=True):
        """See `Engine`; JAX itself knows whether `gradients` are asked for."""
        batch, time, features = sequences.shape
        x = jnp.swapaxes(jnp.asarray(sequences), 0, 1).reshape(-1, features)
        masks = Dropout([jnp.tile(m, (time, 1)) for m in dropout.inputs], [])
        values = [jnp.asarray(v) for v in self.recurrence.values()]
        blocks = self.recurrence.project_input(values, x, masks)
        leaves = [leaf("x", name) for name in self.cell.blocks]
        given = dict(zip(leaves, blocks, strict=True))
        for name, m in zip(shares(self.cell), dropout.kept, strict=False):
            given[leaf("kept", name)] = jnp.swapaxes(m, 0, 1).reshape(-1, self.cell.units)
        valid = None if mask is None else jnp.swapaxes(jnp.asarray(mask, bool), 0, 1)[..., None]
        equations = self._equations[bool(dropout.kept)]
        pairs = self._computed(equations, given, values, (time, batch, self.cell.units))
        count = len(self.cell.state_names)
        found = [
            _all_states(*pair, state, valid)
            for pair, state in zip(pairs, states[:count], strict=False)
        ]
        penalized = {"activation_l1": found[0]}
        if equations.candidate:
            a, b = pairs[-1]
            penalized["candidate_l1"] = a * _before(found[0], states[0]) + b
        last = [of_state[-1] for of_state in found]
        for name, total in zip(self.cell.penalties, states[count:], strict=True):
            value = penalized[name] if valid is None else jnp.where(valid, penalized[name], 0)
            last.append(regularizers.add_step(total, jnp.swapaxes(value, 0, 1).reshape(batch, -1)))
        return (jnp.swapaxes(found[0], 0, 1) if return_sequences else None), last

    def _computed(self, equations, given, values, shape):
        """Every pair (a, b) of the equations for all time steps, (time, batch, units) each."""
        dtype = self.cell.compute_dtype
        names = {id(weight): name for name, weight in weights_by_name(self.cell).items()}
        for variable, value in zip(self.recurrence.variables, values, strict=True):
            weight = equations.weights.get(names[id(variable)])
            if weight is not None:
                given[weight] = value.astype(dtype)
        found = tensors.run(equations.values, given, None, self.cell.units, dtype)
        rows, units = shape[0] * shape[1], shape[2]
        found = [jnp.broadcast_to(v, (rows, units)).reshape(shape) for v in found]
        return list(zip(found[::2], found[1::2], strict=True))


class Linear:
    """The equations of a cell as pairs (a, b), one for each state and one for the candidate where
    its activation is penalized.

    Raises:
        NotFusableError: they are not of that form.
    """

    def __init__(self, cell, program):
        if cell.clips:
            raise NotFusableError("gradients are clipped at every time step")
        states = [leaf("state", name) for name in cell.state_names]
        wanted = list(zip(program.forward, states, strict=True))
        self.candidate = bool(cell.candidate_l1)
        if self.candidate:
            wanted.append((forward(dict(program.named)["candidate"]), states[0]))
        self.pairs = [affine(value, state) for value, state in wanted]
        if None in self.pairs or any(map(_sees_the_state, self.values)):
            raise NotFusableError(f"{type(cell).__name__} is not linear in its states")
        leaves = program.leaves.items()
        self.weights = {name: value for (kind, name), value in leaves if kind == "weight"}

    @property
    def values(self):
        """a and b of each pair."""
        return [value for pair in self.pairs for value in pair]


def _sees_the_state(value):
    return any(
        v.operation == "recurrent" or (v.operation == "input" and v["kind"] in ("state", "u"))
        for v in ordered([value])
    )


def _all_states(a, b, first, valid):
    """The states after every step, (time, batch, units), from the one before the first."""
    if valid is not None:
        a, b = jnp.where(valid, a, 1), jnp.where(valid, b, 0)
    dtype = at_least_float32(a.dtype)  # products of many factors
    found = linear_scan(a.astype(dtype), b.astype(dtype), first.astype(dtype))
    return found.astype(first.dtype)


def _before(found, first):
    return jnp.concatenate([first[None], found[:-1]])


@jax.custom_vjp
def linear_scan(a, b, first):
    """All h_t = a_t h_(t-1) + b_t of h_0 = `first`, for t from 1 on, along the first axis."""
    b = b.at[0].add(a[0] * first)
    return jax.lax.associative_scan(_one_after_the_other, (a, b))[1]


def _one_after_the_other(earlier, later):
    return later[0] * earlier[0], later[0] * earlier[1] + later[1]


def _forward(a, b, first):
    found = linear_scan(a, b, first)
    return found, (a, first, found)


def _backward(residuals, d):
    a, first, found = residuals
    # d_t + a_(t+1) (the gradient at h_(t+1)): the same recurrence, backwards.
    after = jnp.concatenate([a[1:], jnp.zeros_like(a[:1])])
    d = linear_scan(after[::-1], d[::-1], jnp.zeros_like(first))[::-1]
    return d * _before(found, first), d, a[0] * d[0]


linear_scan.defvjp(_forward, _backward)
