"""Programs: what is traced equals what runs, and its derivative that of finite differences."""

import re
import threading

import keras
import numpy as np
import pytest
from helpers import BACKEND, DTYPE, MGUCell, drawn_cell
from keras import ops
from keras.ops import convert_to_tensor as tensor

import keras_gates as kg
from keras_gates.cells.program import trace, weights_by_name
from keras_gates.engine.recurrence import Dropout, Recurrence
from keras_gates.equations import tensors
from keras_gates.equations.derivative import pulled
from keras_gates.equations.operations import TABLE
from keras_gates.equations.program import evaluate
from keras_gates.equations.text import equations
from keras_gates.equations.trace import NotTraceableError
from keras_gates.equations.values import apply, leaf

ROWS, UNITS = 5, 4
UNSUITED = {"glu", "threshold"}  # the one changes the size, the other needs arguments
ACTIVATIONS = [name for name in kg.activations.names() if name not in UNSUITED]


@keras.saving.register_keras_serializable(package="test_equations")
def swished_tanh(x):
    return ops.tanh(x) * ops.sigmoid(2 * x)


class PeepholeCell(kg.GatedCell):
    """An LSTM whose forget gate sees the cell state, and whose output is normalized."""

    blocks = ("forget", "candidate", "output")
    state_names = ("hidden", "cell")

    def build(self, input_shape):
        super().build(input_shape)
        self.peephole = self.add_weight(shape=(self.units,), name="peephole")
        self.scale = self.add_weight(shape=(), name="scale", initializer="ones")
        self.norm = keras.layers.LayerNormalization(dtype=self.dtype_policy)
        self.norm.build((None, self.units))

    def update(self, x, u, states):
        _, c = states
        f = self.gate("forget", x.forget + u.forget + self.peephole * c)
        c = self.clip_state(f * c + (1 - f) * self.candidate(x.candidate + u.candidate))
        o = self.gate("output", x.output + u.output)
        return o * ops.tanh(self.scale * self.norm(c)), c


def built(cell, rng):
    cell.build((None, 3))
    for weight in cell.weights:
        weight.assign(0.5 * rng.normal(size=weight.shape))
    return cell


def given_to(cell, program, rng):
    """Arrays for all leaves, and the recurrent product of the cell."""
    given = {}
    for (kind, name), v in program.leaves.items():
        if kind != "size":
            given[kind, name] = rng.normal(size=(ROWS, UNITS) if v.rows else (UNITS,))
    for name, weight in weights_by_name(cell).items():
        if ("weight", name) in given:
            given["weight", name] = ops.convert_to_numpy(weight).astype("float64")
    for kind, names in (("x", cell.blocks), ("u", cell.blocks), ("state", cell.state_names)):
        for name in names:
            given.setdefault((kind, name), rng.normal(size=(ROWS, UNITS)))
    columns = {block: slice(i * UNITS, (i + 1) * UNITS) for i, block in enumerate(cell.blocks)}
    kernel = ops.convert_to_numpy(cell.recurrent_kernel).astype("float64")
    products = {
        "recurrent": lambda block, value: value @ kernel[:, columns[block]],
        "transposed": lambda block, value: value @ kernel[:, columns[block]].T,
    }
    return given, products


def executed(cell, given):
    """What the cell's own code makes of the same numbers, and a function of gradients."""
    recurrence = Recurrence(cell)

    x = [tensor(given["x", name], DTYPE) for name in cell.blocks]
    u = [tensor(given["u", name], DTYPE) for name in recurrence.projected]
    states = [tensor(given["state", name], DTYPE) for name in cell.state_names]
    values = recurrence.values()
    return recurrence, values, x, u, states


def check(cell, rng, gradients=True):
    program = trace(cell)
    given, products = given_to(cell, program, rng)
    outputs = [v for _, v in program.outputs]
    found = evaluate(outputs, given, **products)
    recurrence, values, x, u, states = executed(cell, given)
    nothing = Dropout([], [])
    expected = recurrence.advance(values, x, u, states, None, nothing)
    tolerance = 1e-7 if BACKEND == "tensorflow" else 1e-4  # some of Keras hold float32 constants
    for one, other in zip(found, expected, strict=False):
        other = ops.convert_to_numpy(other)
        np.testing.assert_allclose(np.broadcast_to(one, other.shape), other, tolerance, tolerance)
    leaves = {v: tensor(given[key], DTYPE) for key, v in program.leaves.items() if key in given}

    def recurrent(block, value):
        return tensor(products["recurrent"](block, ops.convert_to_numpy(value)), DTYPE)

    on_tensors = tensors.run(program.forward, leaves, recurrent, UNITS, DTYPE)
    for one, other in zip(found, on_tensors, strict=True):
        other = ops.convert_to_numpy(other)
        np.testing.assert_allclose(np.broadcast_to(one, other.shape), other, tolerance, tolerance)
    if not gradients or BACKEND != "tensorflow":
        return
    import tensorflow as tf

    d = [rng.normal(size=(ROWS, UNITS)) for _ in outputs]
    with tf.GradientTape() as tape:
        tape.watch([x, u, states])
        new = recurrence.advance(values, x, u, states, None, nothing)
        loss = sum(tf.reduce_sum(a * b) for a, b in zip(new, d, strict=False))
    wanted = tape.gradient(loss, [*x, *u, *states], unconnected_gradients="zero")
    keys = [
        *[("x", n) for n in cell.blocks],
        *[("u", n) for n in recurrence.projected],
        *[("state", n) for n in cell.state_names],
    ]
    arriving = [leaf("gradient", name) for name in cell.state_names]
    values, _ = pulled(outputs, arriving, [leaf(*key) for key in keys])
    given |= {("gradient", n): a for n, a in zip(cell.state_names, d, strict=True)}
    of_values = iter(evaluate([v for v in values if v is not None], given, **products))
    for value, expected, key in zip(values, wanted, keys, strict=True):
        one = np.zeros((ROWS, UNITS)) if value is None else next(of_values)
        np.testing.assert_allclose(one, expected, 1e-6, 1e-6, err_msg=str(key))


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_programs_of_all_activations_equal_the_executed_update(activation, rng):
    for role in ("gate_activation", "candidate_activation"):
        check(built(kg.GRUCell(UNITS, dtype=DTYPE, **{role: activation}), rng), rng)
    cell = kg.LSTMCell(UNITS, dtype=DTYPE, output_activation=activation)
    check(built(cell, rng), rng)


CELLS = {
    "gru": lambda: kg.GRUCell(UNITS, dtype=DTYPE),
    "reset before": lambda: kg.GRUCell(UNITS, reset_after=False, use_bias=False, dtype=DTYPE),
    "lstm": lambda: kg.LSTMCell(UNITS, dtype=DTYPE),
    "simple": lambda: kg.SimpleRNNCell(UNITS, dtype=DTYPE),
    "of one's own": lambda: MGUCell(UNITS, use_bias=False, dtype=DTYPE),
    "peepholes": lambda: PeepholeCell(UNITS, dtype=DTYPE),
    "prelu": lambda: kg.GRUCell(
        UNITS, candidate_activation=keras.layers.PReLU(dtype=DTYPE), dtype=DTYPE
    ),
    "per gate": lambda: kg.GRUCell(
        UNITS, gate_activation={"update": "hard_sigmoid", "reset": "tanh_gate"}, dtype=DTYPE
    ),
    "function": lambda: kg.SimpleRNNCell(UNITS, candidate_activation=swished_tanh, dtype=DTYPE),
}


@pytest.mark.parametrize("clip", [{}, {"grad_clip_value": 0.3}, {"grad_clip_norm": 0.5}], ids=str)
@pytest.mark.parametrize("place", ["state", "preactivation"])
@pytest.mark.parametrize("name", CELLS)
def test_programs_of_all_cells_and_options_equal_the_executed_update(name, place, clip, rng):
    cell = CELLS[name]()
    if clip:
        for argument, value in {**clip, "grad_clip_at": place}.items():
            setattr(cell, argument, value)
    check(built(cell, rng), rng)


@keras.saving.register_keras_serializable(package="test_equations")
def scaled(x):
    """With constants of keras.ops: a number, and one per unit."""
    return ops.sqrt(2 / np.pi) * ops.tanh(x * ops.linspace(0.5, 1.0, UNITS))


@keras.saving.register_keras_serializable(package="test_equations")
def shifted(x):
    return ops.convert_to_tensor(0.5) - x / ops.cast([1, 2, 3, 4], x.dtype)


@keras.saving.register_keras_serializable(package="test_equations")
def of_numpy(x):
    return np.float64(0.3) - np.sqrt(2 / np.pi) * x + np.float32(2) / (2 + x**2)


@keras.saving.register_keras_serializable(package="test_equations")
def sinc(x):
    """With a comparison that Python does for objects of any kind."""
    return ops.where(x == 0, 1.0, ops.sin(x) / ops.where(x != 0, x, 1.0))


@keras.saving.register_keras_serializable(package="test_equations")
def bent(x):
    """With a tensor on the left of comparisons."""
    half = ops.cast(0.5, x.dtype)
    bend = ops.where(half != x, ops.tanh(x), 0.0)
    return ops.where(half >= x, ops.where(-half < x, x, ops.where(half == x, 1.0, -half)), bend)


def in_a_graph(function, x):
    if BACKEND == "torch":
        return function(x)
    if BACKEND == "jax":
        import jax

        return jax.jit(function)(x)
    import tensorflow as tf

    return tf.function(function)(tf.constant(x))


@pytest.mark.filterwarnings("ignore::keras_gates.UnstableActivationsWarning")
@pytest.mark.parametrize("surroundings", ["eager", "graph", "fit"])
@pytest.mark.parametrize("activation", [scaled, shifted, of_numpy, sinc, bent])
def test_constants_and_comparisons_in_equations(activation, surroundings, rng):
    layer, plain = (
        kg.GatedRNN(
            UNITS,
            cell="simple",
            candidate_activation=activation,
            use_bias=False,
            backprop=backprop,
            return_sequences=True,
        )
        for backprop in ("auto", "autodiff")
    )
    x = rng.normal(size=(ROWS, 6, 3)).astype("float32")
    x[:, 0] = 0  # the first pre-activation too
    if surroundings == "fit":
        model = keras.Sequential([keras.Input((None, 3)), layer])
        model.compile(keras.optimizers.SGD(0.0), "mse")
        model.fit(x, np.zeros((ROWS, 6, UNITS)), verbose=0)
        found = model.predict(x, verbose=0)
    else:
        layer.build((None, None, 3))
        found = layer(x) if surroundings == "eager" else in_a_graph(layer, x)
    plain.build((None, None, 3))
    plain.set_weights(layer.get_weights())
    expected = plain(tensor(x))
    np.testing.assert_allclose(*map(ops.convert_to_numpy, (found, expected)), 1e-5, 1e-6)
    always, *rest = layer.explain().splitlines()
    assert f"can run fused on {BACKEND}" in always
    assert not any("cannot be traced" in line for line in rest)
    assert "native" in type(layer._paths.fused.engine).__module__


def test_a_normalization_written_out_is_known(rng):
    """As Keras 3.8 does it: with `moments`, and weights that have one more axis."""

    class Normed(kg.GatedCell):
        def build(self, shape):
            self.gain = self.add_weight(shape=(self.units,), name="gain")
            super().build(shape)

        def update(self, x, u, states):
            total = x.candidate + u.candidate
            mean, variance = ops.moments(total, axes=[-1], keepdims=True)
            total = (total - mean) * ops.rsqrt(variance + 1e-3)
            return (self.candidate(total * ops.reshape(self.gain, (1, self.units))),)

    check(built(Normed(UNITS, dtype=DTYPE), rng), rng)


ELEMENTWISE = [
    row.name
    for row in TABLE.values()
    if (row.pull or row.expand) and not row.alias and row.name not in ("clip_gradient", "recurrent")
]


def argument_count(name):
    if name == "where":
        return 3
    row = TABLE[name]
    return 2 if "{1}" in row.text else 1


PARAMETERS = {
    "slope": 0.3, "alpha": 0.7, "b": 2.0, "approximate": True, "low": -0.4, "high": 0.9,
    "dtype": "float32", "bound": 0.5, "threshold": 0.3, "epsilon": 1e-3, "rms": False,
    "function": np.arctan,
}  # fmt: skip


@pytest.mark.parametrize("name", ELEMENTWISE)
def test_derivatives_of_all_operations_equal_finite_differences(name, rng):
    row = TABLE[name]
    given = {("x", i): rng.uniform(0.2, 2, size=(3, 4)) for i in range(argument_count(name))}
    if argument_count(name) == 1 and name not in ("log", "sqrt", "rsqrt", "log1p"):
        given["x", 0] = rng.normal(size=(3, 4))
    if name == "broadcast":
        given["x", 0] = given["x", 0][:, :1]
    arguments = [leaf(*key, wide=name != "broadcast") for key in given]
    parameters = {p: PARAMETERS[p] for p in row.parameters}
    if name == "where":
        output = apply(name, arguments[0] > 1, *arguments[1:])
    elif name.startswith("logical"):
        output = apply(name, *[a > 1 for a in arguments])
    else:
        output = apply(name, *arguments, **parameters)
    if name in ("greater", "less", "greater_equal", "less_equal", "equal") or "logical" in name:
        output = apply("cast", output, dtype="float32")
    if not output.wide:
        output = apply("broadcast", output)
    d = rng.normal(size=(3, 4))
    gradients, _ = pulled([output], [leaf("gradient", "d")], arguments)
    for key, gradient in zip(given, gradients, strict=True):
        direction = rng.normal(size=given[key].shape)
        sums = []
        for step in (1e-6, -1e-6):
            moved = {**given, key: given[key] + step * direction}
            sums.append((evaluate([output], moved, units=4)[0] * d).sum())
        measured = (sums[0] - sums[1]) / 2e-6
        if name == "stop_gradient":
            measured = 0.0
        analytic = 0.0
        if gradient is not None:
            (found,) = evaluate([gradient], {**given, ("gradient", "d"): d}, units=4)
            analytic = (found * direction).sum()
        assert analytic == pytest.approx(measured, rel=1e-5, abs=1e-6), key


@pytest.mark.parametrize("seed", range(25))
def test_cells_drawn_at_random_from_the_operations(seed):
    """Equations of random operations: traced, run and differentiated."""
    rng = np.random.default_rng(seed)
    check(built(drawn_cell(rng)(UNITS, dtype=DTYPE), rng), rng)


def test_equations_read_like_the_papers():
    assert dict(equations(trace(kg.GRUCell(3)))) == {
        "z": "sigmoid(x_z + u_z)",
        "r": "sigmoid(x_r + u_r)",
        "n": "tanh(x_n + r * u_n)",
        "h'": "z * h + (1 - z) * n",
    }
    before = kg.GRUCell(3, reset_after=False, candidate_activation="relu")
    assert dict(equations(trace(before)))["n"] == "relu(x_n + (r * h) U_n)"
    lstm = dict(equations(trace(kg.LSTMCell(3)), kg.LSTMCell.symbols))
    assert lstm["c'"] == "f * c + i * g"
    assert lstm["h'"] == "o * tanh(c')"
    latex = dict(equations(trace(kg.GRUCell(3)), latex=True))
    assert latex["h'"] == r"z \odot h + \left(1 - z\right) \odot n"


def test_programs_are_equal_exactly_if_they_compute_the_same():
    assert trace(kg.GRUCell(3)) == trace(kg.GRUCell(7, kernel_initializer="zeros"))
    different = [
        kg.GRUCell(3),
        kg.GRUCell(3, reset_after=False),
        kg.GRUCell(3, gate_activation="hard_sigmoid"),
        kg.GRUCell(3, candidate_activation="relu"),
        kg.GRUCell(3, grad_clip_norm=1.0),
        kg.GRUCell(3, grad_clip_norm=2.0),
        kg.GRUCell(3, candidate_activation=keras.layers.LeakyReLU(negative_slope=0.1)),
        kg.GRUCell(3, candidate_activation=keras.layers.LeakyReLU(negative_slope=0.2)),
        kg.LSTMCell(3),
    ]
    assert len({trace(cell) for cell in different}) == len(different)


def test_tracing_leaves_the_cell_alone():
    cell = kg.GRUCell(3, candidate_activation=keras.layers.PReLU(), grad_clip_norm=1.0)
    cell.build((None, 2))
    attributes, name = dict(vars(cell)), keras.Input((1,)).name
    trace(cell)
    assert vars(cell) == attributes
    assert cell.candidate_activation._inbound_nodes == []
    number = int(name.rpartition("_")[2]) if "_" in name.replace("keras_tensor", "") else 0
    assert keras.Input((1,)).name == f"keras_tensor_{number + 1}"


def not_traceable(update, **arguments):
    class Odd(kg.GatedCell):
        pass

    Odd.update = update
    cell = Odd(3, **arguments)
    cell.build((None, 2))
    with pytest.raises(NotTraceableError) as caught:
        trace(cell)
    return str(caught.value)


def test_what_cannot_be_traced_is_told_apart_with_a_reason():
    generator = keras.random.SeedGenerator(1)
    outside = keras.Variable([1.0, 2.0, 3.0], name="outside")

    def noisy(self, x, u, states):
        return (x.candidate + keras.random.normal((3,), seed=generator),)

    def mixing(self, x, u, states):
        return (ops.roll(x.candidate, 1, axis=-1),)

    def foreign(self, x, u, states):
        return (ops.multiply(outside, x.candidate),)

    def narrow(self, x, u, states):
        return (x.candidate - ops.mean(x.candidate, axis=-1),)

    def over_samples(self, x, u, states):
        return (x.candidate - ops.mean(x.candidate, axis=0, keepdims=True),)

    assert "change variables (random numbers?)" in not_traceable(noisy)
    assert "no program knows the operation Roll" in not_traceable(mixing)
    assert "outside is not among the cell's weights" in not_traceable(foreign)
    assert "needs keepdims=True" in not_traceable(narrow)
    assert "along axis 0 and not along the units" in not_traceable(over_samples)

    def rounding(self, x, u, states):
        return (x.candidate * ops.cast(x.candidate, "int32"),)

    assert "no program rounds numbers to int32" in not_traceable(rounding)


def functions_of_the_backend():
    """The name of the backend, and functions of it as an activation may call them."""
    if BACKEND == "tensorflow":
        import tensorflow as tf

        return "TensorFlow", (lambda x: tf.nn.relu(x) * tf.sigmoid(x)), tf.math.erf
    if BACKEND == "jax":
        import jax

        return "JAX", (lambda x: jax.nn.relu(x) * jax.numpy.tanh(x)), jax.jit(jax.lax.tanh)
    import torch

    return "PyTorch", (lambda x: torch.relu(x) * x.tanh()), torch.nn.Tanh()


@pytest.mark.filterwarnings("ignore:.*works for training")
def test_functions_that_cannot_be_traced_are_named_in_one_sentence():
    library, written, own = functions_of_the_backend()
    said = "written with keras.ops, the equations can be traced"
    place = r"in `<lambda>` \(test_equations.py, line \d+\)"

    def update(self, x, u, states):
        return (self.candidate(x.candidate + u.candidate),)

    def reason(activation):
        return not_traceable(update, candidate_activation=activation)

    assert re.fullmatch(f"functions of {library} are called {place}: {said}", reason(written))
    assert re.fullmatch(
        f"functions of NumPy are called {place}: {said}", reason(lambda x: np.tanh(x))
    )
    assert reason(own) == f"functions of {library} are called: {said}"
    assert re.fullmatch(
        f"the value of a tensor is asked for {place}, as by .*keras.ops.where.*",
        reason(lambda x: x if x > 0 else -x),
    )
    errors = ("ValueError: axis 7 is out of bounds", "IndexError: ")  # of new and old Keras
    assert reason(lambda x: ops.sum(x, axis=7)).startswith(errors)
    # As users read it, on JAX of what runs in scans.
    layer = kg.GatedRNN(3, candidate_activation=written)
    assert "n = <lambda>(x_n + r * u_n)" in layer.explain()
    layer(np.ones((1, 2, 3), "float32"))
    if BACKEND == "jax":
        in_a_graph(layer, np.ones((1, 2, 3), "float32"))
    how = "fused, in scans" if BACKEND == "jax" else "Keras' own loop"
    assert f"{how}, because functions of {library} are called" in layer.explain()


def test_threads_trace_side_by_side():
    cell, found = kg.LSTMCell(3, grad_clip_norm=1.0), []
    threads = [
        threading.Thread(target=lambda: found.extend(trace(cell) for _ in range(40)))
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 160
    assert set(found) == {trace(cell)}


def test_clipping_is_no_part_of_the_equations_as_text():
    class Summed(kg.GatedCell):
        state_names = ("hidden", "cell")

        def update(self, x, u, states):
            c = self.clip_state(0.5 * (1 - self.clip_state(states[1])))
            return self.candidate(x.candidate + u.candidate) * c, c

    shown = kg.check_activations(Summed, grad_clip_norm=1.0).equations
    assert dict(shown)["c'"] == "0.5 * (1 - c)"
