"""What a cell's program does to a state, at many pre-activations and at large states."""

import itertools

import numpy as np

from keras_gates.cells.program import built_copy, trace, traced, weights_by_name
from keras_gates.cells.reference import Reference, array
from keras_gates.cells.step import projected_blocks
from keras_gates.equations import constant, depends_on, evaluate, leaf, pulled
from keras_gates.equations.program import forward as forward_of

# Pre-activations at which the equations are tried, up to where sigmoid is 0 or 1 to 8 digits.
_NEAR = np.array([-20.0, -3.0, -1.0, -0.3, 0.0, 0.3, 1.0, 3.0, 20.0])
_ENDS = np.array([-20.0, 0.0, 20.0])
# How large a large state is; a factor of it is "without bound" if it exceeds this.
LARGE, _UNBOUNDED = 1e4, 1e2
MOST = 60_000  # combinations tried, of units taken together
# So many units, with pre-activations of their own, are tried of equations that mix units.
_MIXED = 8


def probed(cell, program):
    """The carry of each state, the gates that it depends on, the growth, and whether the hidden
    state, which is what recurrent products and other layers see, stays small in any case.

    Args:
        cell: a GatedCell.
        program: its program.
    """
    if program.reduces:  # it has the number of units in it
        program = trace(built_copy(cell, units=_MIXED), opaque=True)
    forward = program.forward
    key = (tuple(forward), cell.blocks, cell.state_names)
    if any(kind == "weight" for kind, _ in program.leaves):
        key = None  # depends on more
    if key not in _found:
        probe = _Probe(cell, program, forward)
        carry = {state: probe.carry(state) for state in cell.state_names}
        carriers = {state: probe.carriers(state) for state in carry}
        growth, bounded = probe.growth()
        found = (carry, carriers, max(growth, *[high for _, high in carry.values()]), bounded)
        if key is None:
            return found
        _found[key] = found
    return _found[key]


_found: dict = {}  # every layer asks when it is made, mostly for the same few programs


class _Probe:
    """A program for one unit, or a few, with pre-activations and states of our choice."""

    def __init__(self, cell, program, forward):
        self.cell, self.forward = cell, forward
        self.projected = projected_blocks(cell)
        # As many as constants of one number per unit are for.
        arrays = [v["array"] for v in program.values if v.operation == "constant" and v.wide]
        self.units = max([_MIXED if program.reduces else 1, *map(len, arrays)])
        # Of weights inside the equations those of the first units.
        weights = weights_by_name(cell)
        names = [name for kind, name in program.leaves if kind == "weight"]
        self.weights = {("weight", n): self._first_units(array(weights[n])) for n in names}
        # d s' / d s of one unit on the direct way: not through a gate, the candidate or a
        # recurrent product.
        self.activated = {name: forward_of(v) for name, v in program.named}
        self.factors = {}
        for state, after in zip(cell.state_names, forward, strict=True):
            stops = [leaf("state", state), *self.activated.values()]
            (factor, *_), _ = pulled([after], [leaf("gradient", "one")], stops, products=False)
            self.factors[state] = constant(0.0) if factor is None else factor

    def carry(self, state):
        """The range of the factor of a state on the direct way to the next step."""
        near = np.array(self._combinations(list(_NEAR)))
        found = [self._factor(state, points) for points in (near, near * LARGE)]
        # NaN is where the equation has no value; it says nothing of the factor.
        near, far = (f[~np.isnan(f)] for f in found)
        low, high = float(near.min()), float(near.max())
        beyond = far if len(far) else near
        low = -np.inf if beyond.min() < low - _UNBOUNDED else min(low, float(beyond.min()))
        high = np.inf if beyond.max() > high + _UNBOUNDED else max(high, float(beyond.max()))
        low, high = (-np.inf if low < -LARGE else low), (np.inf if high > LARGE else high)
        return (round(low, 3) + 0.0, round(high, 3) + 0.0)

    def carriers(self, state):
        """The gates that this factor is computed from."""
        gates = {n: v for n, v in self.activated.items() if n in self.cell.gate_activations}
        used = set(map(id, depends_on([self.factors[state]], list(gates.values()))))
        return [name for name, v in gates.items() if id(v) in used]

    def growth(self):
        """The factor by which the states grow in one step at worst, after a few such steps, and
        whether the hidden state is bounded: small while another state is large."""
        # Of every block: x, and what the recurrent product makes of the hidden state.
        chosen = self._combinations(list(itertools.product(_ENDS, (-1, 0, 1))))
        x, shares = np.moveaxis(np.array(chosen), 0, 2).transpose(1, 0, 2)
        # Only the cell state is large at first where there is one: what the hidden state can
        # become is up to the equations.
        count = len(self.cell.state_names)
        states = np.array([LARGE] if count == 1 else [0.0] + [LARGE] * (count - 1))
        signs = list(itertools.product((-1.0, 1.0), repeat=count))
        factor = 1.0
        for _ in range(4):
            u = dict(zip(self.projected, states[0] * shares, strict=False))
            tried = []
            for sign in signs:
                before = np.repeat((sign * states)[:, None], len(chosen), axis=1)
                new = self._evaluate(self.forward, x, u, before, recurrent=lambda _, v: v)
                tried.append(np.abs(new))
            tried = np.concatenate(tried, axis=1)
            if not np.isfinite(tried).all():
                return np.inf, False
            worst = tried[:, tried.sum(axis=0).argmax()]
            factor, states = worst.sum() / states.sum(), worst
            if factor > _UNBOUNDED:
                return np.inf, False
        return round(float(factor), 2), bool(states[0] < _UNBOUNDED)

    def _combinations(self, values):
        """All combinations of one of the values for each block, or many of them."""
        count, most = len(self.cell.blocks), MOST // self.units
        if len(values) ** count <= most:
            return list(itertools.product(values, repeat=count))
        drawn = np.random.default_rng(0).integers(len(values), size=(most, count))
        return [tuple(values[i] for i in row) for row in drawn]

    def _factor(self, state, points):
        """The factor of a state at pre-activations x, (points, blocks), and all other leaves 0."""
        index = self.cell.state_names.index(state)
        found = []
        for value in (-1.0, 0.0, 1.0):  # a factor that is linear in the state is the same at all
            states = [np.full(len(points), value * (i == index)) for i in range(len(self.forward))]
            found += self._evaluate([self.factors[state]], points.T, {}, states)
        return np.concatenate(found)

    def _evaluate(self, values, x, u, states, recurrent=lambda _, v: 0 * v):
        """Values of the first unit, from arrays (points,) per block and per state."""
        count = len(states[0])
        given = {("state", n): s for n, s in zip(self.cell.state_names, states, strict=True)}
        given |= {("x", n): a for n, a in zip(self.cell.blocks, x, strict=True)}
        given |= {("u", n): u.get(n, np.zeros(count)) for n in self.projected}
        given = {key: self._by_unit(array, key[0]) for key, array in given.items()}
        one = np.zeros((count, self.units))
        one[:, 0] = 1
        given["gradient", "one"] = one
        found = evaluate(
            values, {**given, **self.weights}, recurrent, lambda _, d: 0 * d, self.units
        )
        return [np.broadcast_to(v, (count, self.units))[:, 0] for v in found]

    def _first_units(self, weight):
        return np.resize(weight, self.units) if weight.ndim else weight

    def _by_unit(self, array, kind):
        """(points, units): the other units have the pre-activations of other points."""
        shift = len(array) // self.units if kind in ("x", "u") else 0
        return np.stack([np.roll(array, i * shift) for i in range(self.units)], axis=1)


_SETTLING, _APART = 12, 1e-6
# Slopes to either side of a point that differ by more are those of a kink.
_KINK = 1e-3
_ROUNDED = 1e8  # states of this size swallow such differences
_PATIENCE, _AT_REST = 1000, 1e-6
# How weights after training differ from new ones; and the weights of 1 and the `signs`.
_TRAINED, _NOISE = 3.0, 0.2
FITTED = (-10.73, 0.33, 0.99, 0.53, 0.65)


def memory(cell, steps, samples=8):
    """In how many steps a small difference in the states becomes e times smaller.

    For N(0, 1) inputs, on average over `steps` steps and the samples; inf where it does not become
    smaller.

    Args:
        cell: built, with the weights that are to be judged.
        steps: the length of the sequences.
        samples: how many of them.
    """
    log, _ = _grown(cell, steps, samples, _SETTLING)
    if not np.isfinite(log).all():
        return np.inf if np.isnan(log).any() or log.max() > 0 else 0.0
    return float(steps / -log.mean()) if log.mean() < 0 else np.inf


def divergence(figures, steps, growth):
    """Estimated probability that a training on sequences of `steps` steps diverges.

    A logistic regression of the figures of `stressed` and the growth per step, fitted to trainings
    by examples/verdicts.py --fit.
    """
    return float(1 / (1 + np.exp(-np.dot(FITTED, (1, *signs(figures, steps, growth))))))


def signs(figures, steps, growth):
    """What divergence is told from: both figures of `stressed`; the growth per step in powers of
    two; and that over all steps, of which 8 matter as much in 16 as 64 in 128."""
    doublings = np.log2(np.clip(growth, 1, 8))
    return (*figures, doublings, np.log2(1 + steps * doublings))


def stressed(cell, steps, draws=4, samples=8):
    """How large states and small differences become once training has made weights larger.

    Kernels are three times what they are, with some noise, biases N(0, 1) more, inputs N(0, 1).

    Args:
        cell: built, with new weights, which this changes.
        steps: the length of the sequences.
        draws, samples: of the weights, and of the sequences for each.

    Returns:
        The decimal logarithm of the largest hidden state, and a 64th of the natural one of how much
        longer a small difference in the states becomes over all steps; both on average, within
        limits.
    """
    rng, logs, sizes = np.random.default_rng(0), [], []
    found = [getattr(cell, name, None) for name in ("kernel", "recurrent_kernel", "bias")]
    weights = [w for w in found if w is not None]  # not those of activations, which may be shared
    new = [np.array(w) for w in weights]
    for _ in range(draws):
        for weight, begun in zip(weights, new, strict=True):
            noise = rng.normal(size=begun.shape)
            weight.assign(
                begun + noise if weight is cell.bias else _TRAINED * begun + _NOISE * noise
            )
        log, largest = _grown(cell, steps, samples, 0)
        logs.append(np.nan_to_num(log, nan=np.inf, neginf=-1e3))
        sizes.append(np.nan_to_num(largest, nan=np.inf))
    with np.errstate(divide="ignore"):
        size = np.clip(np.log10(sizes), 0, 8).mean()
    return size, np.clip(np.mean(logs) / 64, -0.5, 3)


def _grown(cell, steps, samples, settling):
    """The logarithm of how much longer a small difference in the states becomes, and how large the
    hidden state, both for each sample of N(0, 1) inputs, after some steps without looking."""
    rng, step = np.random.default_rng(0), _stepping(cell)
    shape = (samples, cell.kernel.shape[0])
    states, log = np.zeros((samples, _size(cell))), np.zeros(samples)
    largest = np.zeros(samples)
    with np.errstate(all="ignore"):
        for _ in range(settling):
            states = step(rng.normal(size=shape), states)
        difference = rng.normal(size=states.shape)
        for _ in range(steps):
            length = np.linalg.norm(difference, axis=1, keepdims=True)
            gone = (length == 0) & (np.abs(states).max(axis=1, keepdims=True) < _ROUNDED)
            difference *= _APART / np.where(gone, 1, length)  # and stays so
            x = rng.normal(size=shape)
            states, others = step(x, states), step(x, states + difference)
            difference = others - states
            log += np.log(np.linalg.norm(difference, axis=1) / _APART)
            largest = np.maximum(largest, np.abs(states[:, : cell.units]).max(axis=1))
    return log, largest


def spectral_radius(cell, samples=4, steps=12):
    """Expected spectral radius of d s_t / d s_{t-1} of a built cell, with the weights it has.

    The states of N(0, 1) inputs after some steps; mean over the samples.
    """
    rng, step = np.random.default_rng(0), _stepping(cell)
    states = np.zeros((samples, _size(cell)))
    for _ in range(steps):
        x = rng.normal(size=(samples, cell.kernel.shape[0]))
        before, states = states, step(x, states)
    return float(np.mean([_radius(step, *point) for point in zip(x, before, strict=True)]))


def contraction(cell):
    """By what factor a small difference in the states changes per step where they rest.

    That is where the states of a built cell come to, from zero and with inputs of zero; None where
    they come to no rest, and where equations are normalized, whose slope at 0 is that of epsilon.
    """
    if traced(cell)[1].reduces:
        return None
    step, x = _stepping(cell), np.zeros((1, cell.kernel.shape[0]))
    states = np.zeros((1, _size(cell)))
    with np.errstate(all="ignore"):
        for _ in range(_PATIENCE):
            before, states = states, step(x, states)
            if np.abs(states - before).max() < _AT_REST:
                return _radius(step, x[0], states[0])
    return None


def _radius(step, x, states):
    """The spectral radius of the Jacobian of a step, at inputs and states of one sample."""
    size, shift = len(states), _APART
    moved = states + shift * np.concatenate([np.zeros((1, size)), np.eye(size), -np.eye(size)])
    found = step(np.tile(x, (len(moved), 1)), moved)
    if not np.isfinite(found).all():
        return np.inf
    right, left = (found[1 : size + 1] - found[0]) / shift, (found[0] - found[size + 1 :]) / shift
    if np.abs(right - left).max() > _KINK:
        return _factor_at_a_kink(step, x, states)
    return float(np.abs(np.linalg.eigvals(right)).max())


def _factor_at_a_kink(step, x, states, steps=200, samples=8):
    """By what factor small differences from states change per step in the long run, where there is
    no Jacobian, as of relu where its inputs are 0: the largest of random ones."""
    directions = np.random.default_rng(0).normal(size=(samples, len(states)))
    x, states = np.tile(x, (samples, 1)), np.tile(states, (samples, 1))
    rest, log = step(x, states), 0.0
    with np.errstate(all="ignore"):  # none may be left
        for t in range(steps):
            length = np.linalg.norm(directions, axis=1, keepdims=True)
            directions = np.nan_to_num(directions / length)
            directions = (step(x, states + _APART * directions) - rest) / _APART
            if t >= steps // 2:
                log = log + np.log(np.linalg.norm(directions, axis=1))
        return float(np.exp(np.max(log) / (steps - steps // 2)))


def _stepping(cell):
    """A time step of a built cell, from inputs and all states side by side to the new states."""
    run, count = Reference(cell), len(cell.state_names)

    def step(x, states):
        return np.concatenate(run.step(x, np.split(states, count, axis=1)), axis=1)

    return step


def _size(cell):
    return len(cell.state_names) * cell.units
