"""A cell probed as it is written: what its equations do to a state, without any training."""

import itertools

import keras
import numpy as np
from keras import ops

from keras_gates.activations.profiles import runnable
from keras_gates.cells import CELLS
from keras_gates.cells.step import named, projected_blocks
from keras_gates.gradients import at_least_float32

# Pre-activations at which the equations are tried, up to where sigmoid is 0 or 1 to 8 digits.
NEAR = np.array([-20.0, -3.0, -1.0, -0.3, 0.0, 0.3, 1.0, 3.0, 20.0])
ENDS = np.array([-20.0, 0.0, 20.0])
# How large a large state is; a factor of it is "without bound" if it exceeds this.
LARGE, UNBOUNDED = 1e4, 1e2
MOST = 60_000  # combinations tried


def probed(cell):
    """The carry of each state, the gates that it depends on, and the growth."""
    key = None
    functions = tuple(cell.activations_in_use())
    if type(cell) in CELLS.values() and not any(isinstance(f, keras.Layer) for f in functions):
        key = (type(cell), functions, getattr(cell, "reset_after", None))
    if key not in _found:
        probe = Probe(cell)
        carry = probe.carry()
        carriers = {state: probe.carriers(state) for state in carry}
        found = (carry, carriers, max(probe.growth(), *[high for _, high in carry.values()]))
        if key is None:
            return found
        _found[key] = found
    return _found[key]


_found = {}  # every layer asks when it is made, mostly for the same few activations


class Probe:
    """A cell's `update` for one unit, with pre-activations and states of our choice.

    Stands in for a Step, and so notes nothing, clips nothing and knows no weights.
    """

    def __init__(self, cell):
        self.cell = cell
        self.projected = projected_blocks(cell)
        # In half precision what is large would be infinite.
        self.dtype = at_least_float32(cell.compute_dtype)
        self.gain = 1.0  # of a recurrent product inside the equations
        layers = [a for a in cell.activations_in_use() if isinstance(a, keras.Layer)]
        self.of_one_unit = {id(layer): _of_one_unit(layer) for layer in layers}

    def activate(self, name, activation, preactivation):
        return self.of_one_unit.get(id(activation), activation)(preactivation)

    def recurrent(self, block, value):
        return self.gain * value

    def clip(self, place, x):
        return x

    def update(self, x, u, states):
        """The new states, NumPy arrays, from arrays per block and per state."""
        cell = self.cell
        tensors = [[self._tensor(a) for a in arrays] for arrays in (x, u, states)]
        cell.step = self
        # An output activation is none of a step's: it is the cell that has it.
        own = {n: layer for n, layer in vars(cell).items() if id(layer) in self.of_one_unit}
        vars(cell).update({n: self.of_one_unit[id(layer)] for n, layer in own.items()})
        try:
            new = cell.update(
                named(cell.blocks, tensors[0]), named(self.projected, tensors[1]), tensors[2]
            )
        finally:
            vars(cell).update(own)
            cell.step = None
        return [np.asarray(ops.convert_to_numpy(s), "float64")[:, 0] for s in new]

    def carry(self):
        """From each state to the range of its factor on the direct way to the next step."""
        return {state: self._range(self._carries(state, NEAR)) for state in self.cell.state_names}

    def carriers(self, state):
        """The gates that this factor depends on."""
        found = []
        for gate in self.cell.gate_activations:
            index = self.cell.blocks.index(gate)
            x = [np.zeros(len(NEAR)) for _ in self.cell.blocks]
            x[index] = NEAR
            if np.ptp(self._factor(state, x)) > 0:
                found.append(gate)
        return found

    def growth(self):
        """The factor by which the states grow in one step at worst, after a few such steps."""
        # Of every block: x, and what the recurrent product makes of the hidden state.
        chosen = _combinations(list(itertools.product(ENDS, (-1, 0, 1))), len(self.cell.blocks))
        x, shares = np.moveaxis(np.array(chosen), 0, 2).transpose(1, 0, 2)
        # Only the cell state is large at first where there is one: what the hidden state can
        # become is up to the equations.
        count = len(self.cell.state_names)
        states = np.array([LARGE] if count == 1 else [0.0] + [LARGE] * (count - 1))
        signs = list(itertools.product((-1.0, 1.0), repeat=count))
        factor = 1.0
        for _ in range(4):
            u = list(states[0] * shares[: len(self.projected)])
            tried = []
            for sign in signs:
                before = np.repeat((sign * states)[:, None], len(chosen), axis=1)
                tried.append(np.abs(self.update(list(x), u, list(before))))
            tried = np.concatenate(tried, axis=1)
            if not np.isfinite(tried).all():
                return np.inf
            worst = tried[:, tried.sum(axis=0).argmax()]
            factor, states = worst.sum() / states.sum(), worst
            if factor > UNBOUNDED:
                return np.inf
        return round(float(factor), 2)

    def _carries(self, state, values):
        chosen = np.array(_combinations(list(values), len(self.cell.blocks)))
        far = chosen * LARGE
        return [self._factor(state, list(points.T)) for points in (chosen, far)]

    def _factor(self, state, x):
        """d s' / d s for one state s at pre-activations x, by a difference: it is linear in s."""
        index = self.cell.state_names.index(state)
        count = len(x[0])
        u = [np.zeros(count) for _ in self.projected]
        self.gain = 0.0
        try:
            found = []
            for sign in (1.0, -1.0):
                states = [np.zeros(count) for _ in self.cell.state_names]
                states[index] = np.full(count, sign)
                found.append(self.update(x, u, states)[index])
        finally:
            self.gain = 1.0
        with np.errstate(all="ignore"):
            return (found[0] - found[1]) / 2

    @staticmethod
    def _range(found):
        # NaN is where another term of the equation has no value; it says nothing of the factor.
        near, far = (f[~np.isnan(f)] for f in found)
        low, high = float(near.min()), float(near.max())
        beyond = far if len(far) else near
        low = -np.inf if beyond.min() < low - UNBOUNDED else min(low, float(beyond.min()))
        high = np.inf if beyond.max() > high + UNBOUNDED else max(high, float(beyond.max()))
        low, high = (-np.inf if low < -LARGE else low), (np.inf if high > LARGE else high)
        return (round(low, 3) + 0.0, round(high, 3) + 0.0)

    def _tensor(self, array):
        return ops.convert_to_tensor(np.asarray(array)[:, None], self.dtype)


def _of_one_unit(layer):
    """A layer's first unit as a function of (n, 1); a layer that is not built stays so."""
    layer, width = runnable(layer)
    return lambda x: ops.cast(layer(ops.repeat(x, width, axis=1))[:, :1], x.dtype)


def _combinations(values, count):
    """All combinations of one of the values for each of `count` places, or many of them."""
    if len(values) ** count <= MOST:
        return list(itertools.product(values, repeat=count))
    rng = np.random.default_rng(0)
    return [tuple(values[i] for i in row) for row in rng.integers(len(values), size=(MOST, count))]


def spectral_radius(cell, samples=4, steps=12):
    """Expected spectral radius of d s_t / d s_{t-1} of an unbuilt cell, at initialization.

    The states of N(0, 1) inputs, `units` features wide, after some steps; mean over the samples.
    """
    for name in ("kernel_initializer", "recurrent_initializer", "bias_initializer"):
        setattr(cell, name, _seeded(getattr(cell, name)))
    cell.build((None, cell.units))
    rng = np.random.default_rng(0)
    count = len(cell.state_names)

    def step(x, states):
        _, new = cell(
            ops.convert_to_tensor(x, cell.compute_dtype),
            [ops.convert_to_tensor(s, cell.compute_dtype) for s in np.split(states, count, axis=1)],
        )
        new = new if isinstance(new, (list, tuple)) else [new]
        return np.concatenate([np.asarray(ops.convert_to_numpy(s), "float64") for s in new], axis=1)

    size = count * cell.units
    states = np.zeros((samples, size))
    for _ in range(steps):
        x = rng.normal(size=(samples, cell.units))
        before, states = states, step(x, states)
    shift = 1e-4 if cell.compute_dtype == "float64" else 1e-2
    radii = []
    for sample in range(samples):
        if not np.isfinite(before[sample]).all():
            return float("inf")
        moved = before[sample] + shift * np.concatenate([np.eye(size), -np.eye(size)])
        found = step(np.repeat(x[sample : sample + 1], 2 * size, axis=0), moved)
        if not np.isfinite(found).all():
            return float("inf")
        jacobian = (found[:size] - found[size:]) / (2 * shift)
        radii.append(np.abs(np.linalg.eigvals(jacobian)).max())
    return float(np.mean(radii))


def _seeded(initializer):
    """The same initializer with a fixed seed, so that verdicts do not vary."""
    config = initializer.get_config()
    if "seed" not in config:
        return initializer
    return type(initializer).from_config({**config, "seed": 1})
