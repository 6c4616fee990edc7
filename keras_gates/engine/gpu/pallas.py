"""The kernels on JAX, by Pallas.

Source: Diamos et al., "Persistent RNNs: Stashing recurrent weights on-chip", 2016.
"""

import functools

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as gpu
from keras import ops

from keras_gates.engine.gpu.plan import CHUNK, ROWS, padded, warps
from keras_gates.equations import TABLE
from keras_gates.equations.values import number_of, ordered

# Three products of parts in 10 bits each give the 23 of float32.
_EXACT = jax.lax.DotAlgorithmPreset.TF32_TF32_F32_X3


class Kernels:
    """Calls of the kernels.

    Args:
        interpret: whether JAX interprets them, on any processor, and slowly.
    """

    def __init__(self, interpret=False):
        self.interpret = interpret

    def forward(self, plan, keep, sequences, given):
        """All time steps.

        Args:
            plan: a `Plan`.
            keep: whether all states of all steps are wanted.
            sequences: whether the hidden state of every step is.
            given: a dict of lists of arrays. "x": per block (time, batch, units). "states": before
                the first step, (batch, units), and sums, (batch, 1). "recurrent_kernel": U, if
                there is one; "biases": c, likewise. "vectors": (units,) or (1,). "valid":
                (time, batch), or none. "kept": (time, batch, units). "masks": of dropout of the
                states, none, one, or one per block with columns of U, (batch, units).

        Returns:
            A dict of lists: "steps", the states after every step, as many as wanted, and "last".
        """
        results = plan.shapes_forward(given, keep, sequences)
        return _call(_forward, plan, self.interpret, given, results)

    def backward(self, plan, given):
        """The gradients, from the last step to the first.

        Args:
            plan: a `Plan`.
            given: as there, and "u": per projected block (time, batch, units); "before": the
                states before every step, likewise; "transposed": U transposed, if there is U;
                "d_steps": the gradient at the hidden states, if there is one; "d_last": those at
                the last states.

        Returns:
            A dict of lists: "gradients", of every step, as `Plan` has them; "d_states", before the
            first step; "d_weights", of the learned weights, for each sample; "factors" and
            "d_products" of products in the equations.
        """
        return _call(_backward, plan, self.interpret, given, plan.shapes_backward(given))


def _call(kernel, plan, interpret, given, shapes):
    time, batch, units = given["x"][0].shape
    sizes = {"time": time, "batch": batch, "units": units}
    out_shape = {
        name: [jax.ShapeDtypeStruct(shape, "float32") for shape in of_name]
        for name, of_name in shapes.items()
    }
    call = pl.pallas_call(
        lambda given, results: kernel(_Tile(plan, interpret, given, results, **sizes)),
        out_shape=(out_shape,),
        name=f"gated_rnn{kernel.__name__}",
        grid=(pl.cdiv(batch, ROWS),),
        interpret=interpret,
        compiler_params=gpu.CompilerParams(num_warps=warps(units), num_stages=1),
    )
    (found,) = call(given)
    return found


def _forward(tile):
    step = tile.plan.step
    leaves = [*step.states, *step.sums]

    def advance(t, states):
        values = tile.at_step(t)
        values |= zip(leaves, states, strict=True)
        values |= zip(step.u, tile.products(states[0], tile.plan.projected), strict=True)
        after = tile.run(step.outputs, values)
        valid = tile.valid(t)
        if valid is not None:
            after = [jnp.where(valid, new, old) for new, old in zip(after, states, strict=True)]
        for ref, state in zip(tile.results["steps"], after, strict=False):
            tile.store(ref, state, t)
        return after

    states = [tile.load(ref) for ref in tile.given["states"]]
    states = jax.lax.fori_loop(0, tile.time, advance, states)
    for ref, state in zip(tile.results["last"], states, strict=True):
        tile.store(ref, state)


def _backward(tile):
    plan, step, results = tile.plan, tile.plan.step, tile.results

    def retreat(i, carry):
        t = tile.time - 1 - i
        d_after, d_weights = carry
        for ref in tile.given["d_steps"]:
            d_after = [d_after[0] + tile.load(ref, t), *d_after[1:]]
        values = tile.at_step(t)
        values |= zip(step.d_after, d_after, strict=True)
        for leaf, ref in zip(step.u, tile.given["u"], strict=True):
            values[leaf] = tile.load(ref, t)
        for leaf, ref in zip(step.states, tile.given["before"], strict=True):
            values[leaf] = tile.load(ref, t)
        found = iter(tile.run(plan.wanted, values))
        valid = tile.valid(t)

        def next_one():
            value = next(found)
            return value if valid is None else jnp.where(valid, value, 0.0)

        gradients = [next_one() for _ in plan.gradients]
        d_before = [
            jnp.zeros_like(d) if value is None else next_one()
            for d, value in zip(d_after, step.d_before, strict=True)
        ]
        d_weights = [d + next_one() for d in d_weights]
        for ref, gradient in zip(results["gradients"], gradients, strict=True):
            tile.store(ref, gradient, t)
        for factor, d_product in zip(results["factors"], results["d_products"], strict=True):
            tile.store(factor, next_one(), t)
            tile.store(d_product, next_one(), t)
        tile.wait()
        for index, column in zip(plan.of_u, plan.projected, strict=True):
            if index is not None:
                d_before[0] += tile.pull(results["gradients"][index], column, t)
        if valid is not None:  # a masked step hands on what it is given
            kept = zip(d_before, d_after, strict=True)
            d_before = [jnp.where(valid, new, old) for new, old in kept]
        return d_before, d_weights

    last = [tile.load(ref) for ref in tile.given["d_last"]]
    zeros = [jnp.zeros((ROWS, tile.width(ref)), "float32") for ref in results["d_weights"]]
    found, d_weights = jax.lax.fori_loop(0, tile.time, retreat, (last, zeros))
    for name, values in (("d_states", found), ("d_weights", d_weights)):
        for ref, value in zip(results[name], values, strict=True):
            tile.store(ref, value)


class _Tile:
    """Some samples of the batch, with all units: what a block of the grid works on."""

    def __init__(self, plan, interpret, given, results, time, batch, units):
        self.plan, self.interpret, self.given, self.results = plan, interpret, given, results
        self.time, self.batch, self.units = time, batch, units
        self.wide = padded(units)
        self.rows = (pl.program_id(0) * ROWS + jnp.arange(ROWS))[:, None]
        self.columns = jnp.arange(self.wide)[None]
        self.vectors = {
            vector: self._vector(ref)
            for vector, ref in zip(plan.vectors, given["vectors"], strict=True)
        }

    # ------------------------------------------------------------------ reading and writing

    def width(self, ref):
        return 1 if ref.shape[-1] == 1 and self.units > 1 else self.wide

    def _at(self, ref, t):
        columns = jnp.zeros((1, 1), "int32") if self.width(ref) == 1 else self.columns
        inside = (self.rows < self.batch) & (columns < self.units)
        time = () if t is None else (t,)
        return ref.at[(*time, self.rows, columns)], inside

    def load(self, ref, t=None):
        at, inside = self._at(ref, t)
        return gpu.load(at, mask=inside, other=0).astype("float32")

    def store(self, ref, value, t=None):
        at, inside = self._at(ref, t)
        gpu.store(at, jnp.broadcast_to(value, inside.shape).astype(ref.dtype), mask=inside)

    def _vector(self, ref):
        if self.width(ref) == 1:
            return gpu.load(ref.at[jnp.zeros((1, 1), "int32")]).astype("float32")
        inside = self.columns < self.units
        return gpu.load(ref.at[self.columns], mask=inside, other=0).astype("float32")

    def valid(self, t):
        """(rows, 1), or None for all."""
        for ref in self.given["valid"]:
            return gpu.load(ref.at[t, self.rows], mask=self.rows < self.batch, other=0) > 0
        return None

    def at_step(self, t):
        """From leaves to what they are in every direction."""
        found = {leaf: self.load(ref, t) for leaf, ref in self._pairs("x")}
        found |= {leaf: self.load(ref, t) > 0 for leaf, ref in self._pairs("kept")}
        return found | self.vectors

    def _pairs(self, name):
        leaves = self.plan.step.x if name == "x" else self.plan.kept
        return zip(leaves, self.given[name], strict=True)

    def wait(self):
        """Until all threads of the block have written: others of them read it."""
        if not self.interpret:
            gpu.debug_barrier()

    # ------------------------------------------------------------------ products

    def products(self, value, columns):
        """`value U_k + c_k` of every block k; the columns of each begin there, in units."""
        found = []
        # Dropout may be different for every block.
        for group in [[c] for c in columns] if len(self.given["masks"]) > 1 else [columns]:
            if group:
                (scratch,), (kernel,) = self.results["scratch"], self.given["recurrent_kernel"]
                self.store(scratch, self._dropped(value, group[0]))
                self.wait()
                found += [self._multiplied(scratch, None, kernel, 0, column) for column in group]
                self.wait()
        return [
            product + self._bias(column) for product, column in zip(found, columns, strict=True)
        ]

    def _bias(self, column):
        inside = self.columns < self.units
        for ref in self.given["biases"]:
            at = ref.at[column * self.units + self.columns]
            return gpu.load(at, mask=inside, other=0).astype("float32")
        return 0.0

    def pull(self, ref, column, t=None):
        """dL/dh, of what lies in `ref`, the gradient at `h U_k`."""
        transposed = self.given["transposed"][0]
        return self._dropped(self._multiplied(ref, t, transposed, column, 0), column)

    def _dropped(self, value, column):
        masks = self.given["masks"]
        return value * self.load(masks[column if len(masks) > 1 else 0]) if masks else value

    def _multiplied(self, ref, t, matrix, row, column):
        """The rows of the tile in `ref` times a block of a matrix."""
        wide, units = self.wide, self.units
        time = () if t is None else (t,)

        def add(i, total):
            these = i * chunk + jnp.arange(chunk)
            left = ref.at[(*time, self.rows, these[None])]
            inside = (self.rows < self.batch) & (these < units)[None]
            left = gpu.load(left, mask=inside, other=0).astype(matrix.dtype)
            right = matrix.at[row * units + these[:, None], column * units + self.columns]
            inside = (these < units)[:, None] & (self.columns < units)
            right = gpu.load(right, mask=inside, other=0)
            return total + self._dot(left, right)

        chunk = min(CHUNK, wide)
        zeros = jnp.zeros((ROWS, wide), "float32")
        return jax.lax.fori_loop(0, wide // chunk, add, zeros)

    def _dot(self, left, right):
        if self.interpret:
            return jnp.dot(left, right, preferred_element_type="float32")
        exact = _EXACT if left.dtype == "float32" else None
        return gpu.dot(left, right, precision=exact)

    # ------------------------------------------------------------------ equations

    def run(self, wanted, given):
        """Values, from those of leaves."""
        found = {id(leaf): value for leaf, value in given.items()}
        for value in ordered(wanted, set(found)):
            if id(value) not in found:
                found[id(value)] = self._computed(value, [found[id(a)] for a in value.arguments])
        return [found[id(value)] for value in wanted]

    def _computed(self, value, arguments):
        operation = value.operation
        if operation == "constant":
            return jnp.float32(number_of(value))
        if operation == "input":  # the number of units
            return jnp.float32(self.units)
        if operation == "recurrent":
            return self.products(*arguments, [self.plan.columns[value["block"]]])[0]
        if operation == "recurrent_transposed":
            (scratch,) = self.results["scratch"]
            self.store(scratch, arguments[0])
            self.wait()
            found = self.pull(scratch, self.plan.columns[value["block"]])
            self.wait()
            return found
        if operation == "erf":
            return _erf(*arguments)
        if operation in ("sum", "max"):
            rows = jnp.broadcast_to(arguments[0], (ROWS, self.wide))
            nothing = 0.0 if operation == "sum" else -jnp.inf
            rows = jnp.where(self.columns < self.units, rows, nothing)
            return getattr(jnp, operation)(rows, axis=1, keepdims=True)
        return getattr(ops, operation)(
            *arguments, *[value[name] for name in TABLE[operation].parameters]
        )


def _erf(x):
    """To 1.5e-7: Abramowitz, Stegun, "Handbook of mathematical functions", 7.1.26. Pallas has none
    on GPUs."""
    t = 1 / (1 + 0.3275911 * jnp.abs(x))
    factors = (1.061405429, -1.453152027, 1.421413741, -0.284496736, 0.254829592)
    series = functools.reduce(lambda total, factor: (total + factor) * t, factors, 0.0)
    return jnp.sign(x) * (1 - series * jnp.exp(-x * x))
