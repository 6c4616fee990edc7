"""The kernel: its operations, plans, instruction sets and threads."""

import concurrent.futures
import ctypes
import os
import pathlib
import platform
import shutil
import subprocess
import sys

import numpy as np
import pytest
from helpers import BACKEND, MGUCell, drawn_cell, leave_out_for_time, run_python

import keras_gates as kg
from keras_gates import activations
from keras_gates.cells.program import trace
from keras_gates.engine.machine import lowered
from keras_gates.engine.native import call, cut, library
from keras_gates.engine.native.call import Call, Form
from keras_gates.engine.native.instructions import assemble
from keras_gates.engine.native.plan import LEAN, LEAST, QUICK, Passes, Plan, plan_of
from keras_gates.engine.recurrence import NotFusableError
from keras_gates.equations import TABLE, apply, evaluate, leaf
from keras_gates.equations.operations import clip_norm

ROWS, UNITS = 5, 19
ARGUMENTS = {
    **dict.fromkeys(["add", "subtract", "multiply", "divide", "power", "maximum", "minimum"], 2),
    **dict.fromkeys(["greater", "greater_equal", "less", "less_equal", "equal"], 2),
    **dict.fromkeys(["logical_and", "logical_or"], 2),
    **dict.fromkeys(["where", "multiply_add", "subtract_product"], 3),
    "sparsemax_gradient": 2,
}
SPECIAL = [0.0, -0.0, 1.0, -1.0, 3.0, -3.0, np.inf, -np.inf, np.nan, 1e4, -1e4, 90.0, -90.0, 1e-8]


def computed(values, given):
    """Values by the kernel, of arrays (rows, units) by name."""
    places = {leaf("state", name): ("STATE", i) for i, name in enumerate(given)}
    targets = [(lowered(value, library.operations()), ("NEW", i)) for i, value in enumerate(values)]
    code = assemble(targets, places, ("candidate",), UNITS)
    none, one = np.zeros(0, "int32"), np.array([-1], "int32")
    code.input_register, code.projected_register = one, none
    (dtype,) = {array.dtype for array in given.values()}
    states = max(len(values), len(given))
    passes = Passes(code, code, 0)
    plan = Plan(1, 0, states, 0, code, lambda _: passes, none, one, none, ())
    zeros = [np.zeros((ROWS, UNITS), dtype)] * (states - len(given))
    call = Call(plan, Form(UNITS, 1, str(dtype), 1, 0, ()), "infer", (0, 0, 0, 0), False)
    x, kernel, recurrent = (np.zeros(s, dtype) for s in ((ROWS, 1, 1), (1, UNITS), (UNITS, UNITS)))
    return call([x, *given.values(), *zeros, kernel, recurrent])[: len(values)]


def numbers(rng, dtype, special=True):
    found = rng.normal(size=(ROWS, UNITS)) * 10.0 ** rng.integers(-6, 3, size=(ROWS, UNITS))
    if special:
        found.ravel()[: len(SPECIAL)] = rng.permutation(SPECIAL)
    return found.astype(dtype)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", sorted(set(library.operations()) & set(TABLE)))
def test_operations_equal_those_of_numpy(name, dtype, rng):
    row = TABLE[name]
    parameters = {"alpha": 0.7, "slope": 0.2, "low": -0.7, "high": 0.8, "bound": 0.9}
    parameters = {p: parameters[p] for p in row.parameters}
    for _ in range(20):
        given = {n: numbers(rng, dtype, special=not row.reduces) for n in "abc"}
        if name in ("where", "logical_and", "logical_or", "logical_not"):
            given["a"] = (given["a"] > 0).astype(dtype)
        if name in ("logical_and", "logical_or"):
            given["b"] = (given["b"] > 0).astype(dtype)
        value = apply(
            name, *[leaf("state", n) for n in "abc"[: ARGUMENTS.get(name, 1)]], **parameters
        )
        (wanted,) = evaluate([value], {("state", n): v for n, v in given.items()})
        (found,) = computed([value], given)
        wanted = np.broadcast_to(np.asarray(wanted, "float64"), found.shape)
        with np.errstate(over="ignore"):
            wanted = wanted.astype(dtype)
        tiny = np.finfo(dtype).tiny  # what is smaller is flushed to zero
        tolerance = 3e-6 if dtype == "float32" else 2e-14
        if "product" in name or "multiply_add" in name:  # a difference of what was rounded
            with np.errstate(invalid="ignore", over="ignore"):
                rounding = np.abs(given["a"] * given["b"]) * tolerance
                differs = np.abs(found - wanted) > np.nan_to_num(rounding, nan=0, posinf=0)
            found, wanted = (np.where(differs, a, 0) for a in (found, wanted))
        np.testing.assert_allclose(found, wanted, tolerance, tiny, err_msg=name)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_functions_over_their_whole_range(dtype, rng):
    x = np.concatenate([np.linspace(-800, 800, 2001), rng.normal(size=30000), np.zeros(4)])
    x = np.concatenate([x, 10.0 ** rng.uniform(-30, 30, 4000) * rng.choice([-1, 1], 4000)])
    x = x[: len(x) // (ROWS * UNITS) * ROWS * UNITS].reshape(-1, ROWS, UNITS).astype(dtype)
    for name in ("exp", "expm1", "log", "log1p", "tanh", "sigmoid", "softplus", "softsign"):
        value = apply(name, leaf("state", "a"))
        worst = 0.0
        for part in x:
            (found,) = computed([value], {"a": part})
            (wanted,) = evaluate([value], {("state", "a"): part})
            with np.errstate(over="ignore", invalid="ignore"):
                same = (found == wanted.astype(dtype)) | (np.isnan(found) & np.isnan(wanted))
                small = np.abs(wanted) < np.finfo(dtype).tiny
                error = np.abs(found - wanted) / np.abs(wanted)
            worst = max(worst, float(np.where(same | small, 0, error).max()))
        assert worst < 5 * np.finfo(dtype).eps, (name, worst)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_sparsemax_of_numbers_that_are_close_or_equal(dtype, rng):
    x, d = leaf("state", "a"), leaf("state", "b")
    values = [apply("sparsemax", x), apply("sparsemax_gradient", x, d), apply("sparsemax", 2 * x)]
    supports = set()
    for scale in (0.01, 0.1, 0.3, 1):
        given = {n: (scale * rng.normal(size=(ROWS, UNITS))).astype(dtype) for n in "ab"}
        given["a"][1:3, ::3] = given["a"][1:3, :1]
        given["a"][4] = 7
        wanted = evaluate(values, {("state", n): v for n, v in given.items()})
        tolerance = 2e-6 if dtype == "float32" else 1e-14
        for one, other in zip(computed(values, given), wanted, strict=True):
            np.testing.assert_allclose(one, other, 0, tolerance * max(1, np.abs(other).max()))
        supports |= set((wanted[0] > 0).sum(1))
    assert {1, UNITS} < supports


def test_a_value_is_computed_once_and_its_register_used_again(rng):
    a, b = leaf("state", "a"), leaf("state", "b")
    product = a * b
    value = lowered((product + a) * (product - b) + product, library.operations())
    code = assemble([(value, ("NEW", 0))], {a: ("STATE", 0), b: ("STATE", 1)}, (), UNITS)
    assert len(code.code) == 4  # the last sum and the product before it are one
    scratch = (code.places[:, 0] == library.PLACES.index("SCRATCH")).sum()
    assert scratch == 3
    given = {n: rng.normal(size=(ROWS, UNITS)) for n in "ab"}
    (found,) = computed([value], given)
    (wanted,) = evaluate([value], {("state", n): v for n, v in given.items()})
    np.testing.assert_allclose(found, wanted, 1e-11)


def test_the_cheapest_values_are_kept():
    a, b = leaf("x", "a"), leaf("x", "b")
    total, product = a + b, a * b
    dear = apply("tanh", total)
    costs = {a: (1, 1e9), b: (1, 1e9), total: (1, 0.1), product: (1, 0.1), dear: (1, 1.5)}
    stops = {id(a), id(b)}
    assert cut.cheapest(costs, [dear], stops) == [dear]
    assert cut.cheapest(costs, [total], stops) == [total]
    assert set(cut.cheapest(costs, [total, product, a], stops)) == {a, b}
    assert set(cut.cheapest(costs, [total, product, dear], stops)) == {total, product, dear}


@pytest.mark.parametrize(
    ("arguments", "kept"),
    [
        ({"cell": "simple"}, (0, 0, 0)),  # 1 - h'^2
        # z, r, n and the product that r multiplies; n can be had from it again.
        ({"cell": "gru"}, (4, 2, 0)),
        ({"cell": "gru", "candidate_activation": "relu"}, (4, 2, 0)),
        ({"cell": "gru", "reset_after": False}, (3, 3, 0)),
        ({"cell": "lstm"}, (5, 4, 0)),  # the gates, g and tanh(c')
    ],
    ids=str,
)
def test_what_the_forward_pass_keeps(arguments, kept):
    cell = kg.GatedRNN(4, **arguments).cell
    cell.build((None, 3))
    passes = plan_of(cell, trace(cell)).passes
    assert tuple(passes(prices).kept for prices in (QUICK, LEAN, LEAST)) == kept


def test_long_sequences_keep_less(monkeypatch):
    wanted = done(a_call(4, 30, 16))
    sizes = []
    for limit in (10**6, 50000, 20000):  # bytes; 5, 3 and 1 values of 16384 each are kept
        limits = [(prices, limit) for prices in (QUICK, LEAN, LEAST)]
        monkeypatch.setattr(call, "_LIMITS", limits)
        limited = a_call(4, 30, 16)
        sizes.append(limited.forward(limited.arrays)[-1].nbytes)
        for one, other in zip(done(limited), wanted, strict=True):
            np.testing.assert_allclose(one, other, 1e-12, 1e-12)
    assert sizes[0] > 1.6 * sizes[1] > 1.6 * 2.8 * sizes[2]


def test_all_activations_of_keras_and_the_package_run_in_the_kernel():
    for name in activations.names():
        cell = kg.GRUCell(4, candidate_activation=name)
        cell.build((None, 3))
        plan_of(cell, trace(cell))


def test_operations_that_the_kernel_has_not_are_named():
    value = apply("opaque", leaf("state", "a"), function=np.arctan)
    with pytest.raises(NotFusableError, match="the kernel has no operation 'opaque'"):
        lowered(value, library.operations())


on_tensorflow = pytest.mark.skipif(BACKEND != "tensorflow", reason="float64 and tapes")


def pair(rng, cell, **arguments):
    layers = [
        kg.GatedRNN(UNITS, cell=cell, dtype="float64", backprop=b, seed=3, **arguments)
        for b in ("fused", "autodiff")
    ]
    for layer in layers:
        layer.build((None, None, 3))
    weights = [0.3 * rng.normal(size=w.shape) for w in layers[0].get_weights()]
    for layer in layers:
        for weight, value in zip(layer.weights, weights, strict=False):
            weight.assign(value)
    return layers


def outputs_and_gradients(layer, x, mask, states):
    import tensorflow as tf

    given = [tf.constant(x), *map(tf.constant, states)]
    with tf.GradientTape() as tape:
        tape.watch(given)
        found = layer(given[0], initial_state=given[1:], mask=mask, training=True)
        found = list(found) if isinstance(found, (list, tuple)) else [found]
        loss = sum(tf.reduce_sum(tf.sin(y)) for y in found) + 9 * sum(layer.losses)
    gradients = tape.gradient(
        loss, [*given, *[w.value for w in layer.trainable_weights]], unconnected_gradients="zero"
    )
    return [*found, *gradients]


@on_tensorflow
def test_sparsemax_in_a_layer(rng):
    layers = pair(rng, "gru", candidate_activation="sparsemax", return_sequences=True)
    x, states = rng.normal(size=(4, 6, 3)), [0.3 * rng.normal(size=(4, UNITS))]
    found, wanted = (outputs_and_gradients(layer, x, None, states) for layer in layers)
    for one, other in zip(found, wanted, strict=True):
        np.testing.assert_allclose(one, other, 1e-6, 1e-6)


@on_tensorflow
@pytest.mark.parametrize("seed", range(40))
def test_cells_shapes_masks_and_options_drawn_at_random(seed, monkeypatch):
    leave_out_for_time(seed >= 18)
    rng = np.random.default_rng(1000 + seed)
    monkeypatch.setattr(call, "_LIMITS", [([QUICK, LEAN, LEAST][seed // 6 % 3], 0)])

    def maybe(**options):
        return {name: v for name, v in options.items() if rng.random() < 0.3}

    kind = [drawn_cell(rng), drawn_cell(rng), "gru", "lstm", "simple", MGUCell][seed % 6]
    clip = [
        {},
        {"grad_clip_norm": float(rng.uniform(0.01, 1))},
        {"grad_clip_value": float(rng.uniform(0.01, 1))},
    ][int(rng.integers(3))]
    options = maybe(
        return_sequences=True, return_state=True, go_backwards=True, zero_output_for_mask=True,
        activation_l1=0.1, candidate_l1=0.2, dropout=0.3, recurrent_dropout=0.2, use_bias=False,
        zoneout=0.4,
    )  # fmt: skip
    if clip:
        options |= maybe(grad_clip_at="preactivation")
    layers = pair(rng, kind, **options, **clip)
    longest = 6 if seed % 6 < 2 else 30  # equations drawn at random are often chaotic
    batch, time = int(rng.integers(1, 40)), int(rng.integers(1, longest))
    x = rng.normal(size=(batch, time, 3))
    mask = rng.random((batch, time)) > 0.3 if rng.random() < 0.5 else None
    states = [0.3 * rng.normal(size=(batch, UNITS)) for _ in layers[0].cell.state_names]
    found, wanted = (outputs_and_gradients(layer, x, mask, states) for layer in layers)
    assert layers[0]._paths.fused.obstacles == {"training": None}
    for one, other in zip(found, wanted, strict=True):
        scale = max(1.0, float(np.abs(other).max()))
        np.testing.assert_allclose(one, other, 1e-6, 1e-6 * scale)


CODE = """
    import numpy as np, keras, keras_gates as kg
    from keras_gates.engine.native import library
    rng = np.random.default_rng(0)
    x = rng.normal(size=(9, 40, 3)).astype("float32")
    print(library.load().instructions().decode())
    cells = ("gru", "lstm", "simple")
    for backprop, cell in [(b, c) for b in ("fused", "autodiff") for c in cells]:
        keras.utils.set_random_seed(1)
        layer = kg.GatedRNN(21, cell=cell, backprop=backprop, grad_clip_norm=0.1)
        model = keras.Sequential([keras.Input((None, 3)), layer, keras.layers.Dense(1)])
        model.compile("sgd", "mse")
        model.fit(x, x[:, 0, :1], epochs=2, batch_size=4, shuffle=False, verbose=0)
        print(model.predict(x, verbose=0).sum())
"""


@on_tensorflow
@pytest.mark.slow  # all other tests run the processor's best
@pytest.mark.parametrize("instructions", ["baseline", "avx2", "avx512"])
def test_every_instruction_set(instructions, monkeypatch):
    monkeypatch.setenv("KERAS_GATES_INSTRUCTIONS", instructions)
    used, *found = run_python(CODE).split()[-7:]
    levels = ["baseline", "avx2", "avx512"]
    assert levels.index(used) <= levels.index(instructions)
    if used != instructions:
        pytest.skip(f"this processor has no {instructions}")
    fused, plain = np.array(found, float).reshape(2, 3)
    np.testing.assert_allclose(fused, plain, rtol=1e-5)


def sizes(count):
    return [(1 + i % 7, 1 + 13 * i % 50, 8 + 5 * i % 30) for i in range(count)]


class OneCall:
    """Both passes of a cell at random arrays, and the loss that is the sum of squares by two."""

    def __init__(self, cell, batch, time, dtype="float64"):
        cell.build((None, 3))
        columns = cell.units * len(cell.blocks)
        biases = (1 + cell.two_biases) * cell.use_bias
        plan = plan_of(cell, trace(cell))
        weights = tuple((name, cell.units) for name in plan.weights)
        form = Form(cell.units, 3, dtype, len(cell.blocks), biases, weights)
        self.forward, self.backward = (
            Call(plan, form, direction, (0, 0, 0, 0), True) for direction in ("forward", "backward")
        )
        rng = np.random.default_rng(cell.units)
        shapes = [(batch, time, 3), *[(batch, cell.units)] * len(cell.state_names)]
        shapes += [(batch, 1)] * plan.sums
        shapes += [(3, columns), (cell.units, columns), *[(biases, columns)] * (biases > 0)]
        shapes += [(cell.units,)] * len(weights)
        self.arrays = [rng.normal(size=shape).astype(dtype) for shape in shapes]
        self.arrays[1 + plan.states + 1] /= cell.units

    def done(self):
        hidden, *last, memory = self.forward(self.arrays)
        zeros = [np.zeros_like(state) for state in last]
        return [hidden, *last, *self.backward([*self.arrays, memory, hidden, *zeros])]


def a_call(batch, time, units):
    return OneCall(kg.GRUCell(units), batch, time)


done = OneCall.done


def test_calls_side_by_side_give_what_each_gives_alone(monkeypatch):
    monkeypatch.setattr(call, "_WORTH_A_THREAD", 1)
    calls = [a_call(*size) for size in sizes(40)]
    wanted = [done(call) for call in calls]
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        for _ in range(5):
            found = list(pool.map(done, calls))
            for one, other in zip(found, wanted, strict=True):
                for a, b in zip(one, other, strict=True):
                    np.testing.assert_array_equal(a, b)


class PairedCell(kg.GatedCell):
    """Uses a product twice, sums over units, a weight of its own and an initial zero gradient."""

    blocks = ("forget", "candidate")
    projected_blocks = ("forget",)
    state_names = ("hidden", "more")

    def build(self, input_shape):
        super().build(input_shape)
        self.scale = self.add_weight(shape=(self.units,), name="scale", initializer="ones")

    def update(self, x, u, states):
        h, c = states
        f = self.gate("forget", x.forget + u.forget)
        n = self.candidate(x.candidate + self.recurrent("candidate", self.scale * f * h))
        return f * h + (1 - f) * self.recurrent("candidate", n), 0.5 * c + n


def share_all(monkeypatch):
    for name in ("_WORTH_A_THREAD", "_WORTH_SHARING", "_UNITS_OF_EACH"):
        monkeypatch.setattr(call, name, 1)


CELLS_IN_TEAMS = {
    "gru": lambda: kg.GRUCell(70),
    "lstm": lambda: kg.LSTMCell(33, activation_l1=0.1),
    "products in the equations": lambda: kg.GRUCell(50, reset_after=False),
    "of one's own": lambda: PairedCell(40),
    "whole rows": lambda: kg.GRUCell(65, candidate_activation="softmax"),
    "whole rows and products": lambda: kg.GRUCell(65, reset_after=False, grad_clip_norm=0.01),
    "one column": lambda: kg.SimpleRNNCell(1),
}


@pytest.mark.parametrize("name", CELLS_IN_TEAMS)
def test_threads_that_share_the_steps_give_the_bits_of_one(name, monkeypatch):
    share_all(monkeypatch)
    for batch, time in ((1, 1), (1, 140), (2, 33)):
        found = []
        for threads in (1, batch, 2 * batch, 7 * batch):
            monkeypatch.setattr(library, "threads", lambda threads=threads: threads)
            once = OneCall(CELLS_IN_TEAMS[name](), batch, time)
            found.append([done(once) for _ in range(3)])
        alone, of_rows, *teams = found
        for one in (*of_rows, *[result for team in teams for result in team]):
            for a, b in zip(one, of_rows[0], strict=True):
                np.testing.assert_array_equal(a, b)
        for a, b in zip(alone[0], of_rows[0], strict=True):
            np.testing.assert_allclose(a, b, 1e-9, 1e-9)


def test_the_number_of_threads_can_be_set(monkeypatch):
    threads = library.threads.__wrapped__
    monkeypatch.setenv("KERAS_GATES_THREADS", "3")
    assert threads() == 3
    monkeypatch.delenv("KERAS_GATES_THREADS")
    assert threads() >= 1
    for wrong in ("0", "-1", "two"):
        monkeypatch.setenv("KERAS_GATES_THREADS", wrong)
        with pytest.raises(ValueError, match=f"must be a positive integer. Received: '{wrong}'"):
            threads()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.filterwarnings("ignore:.*fork.*")
def test_after_a_fork(monkeypatch):
    monkeypatch.setattr(call, "_WORTH_A_THREAD", 1)
    forked = a_call(8, 20, 16)
    wanted = done(forked)
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        same = all((a == b).all() for a, b in zip(done(forked), wanted, strict=True))
        os.write(writer, b"same" if same else b"not the same")
        os._exit(0)
    os.waitpid(child, 0)
    assert os.read(reader, 20) == b"same"


def test_memory_is_used_again_once_nobody_looks_at_it():
    first = library.empty((100, 1000), "float32")
    first[:] = 1
    part = first[3:5]
    at = first.ctypes.data
    assert at % 64 == 0
    del first
    other = library.empty((100, 1000), "float32")
    assert other.ctypes.data != at
    assert (part == 1).all()
    del part
    assert library.empty((100, 1000), "float32").ctypes.data == at


def test_a_library_of_other_sources_is_not_used(monkeypatch):
    monkeypatch.setattr(library, "CallFields", library.Weight)
    found, reason = library._loaded.__wrapped__()
    assert found is None
    assert "was built from other sources than are here: install keras_gates again" in reason


def test_gradients_of_a_value_that_nothing_depends_on_are_zero(rng):
    """A state that does not enter the next ones."""

    class Forgetful(kg.GatedCell):
        projected_blocks = ()

        def update(self, x, u, states):
            return (self.candidate(x.candidate),)

    once = OneCall(Forgetful(UNITS, use_bias=False), 4, 6)
    x, _, kernel, _ = once.arrays
    hidden, _, d_x, d_state, _, d_recurrent = done(once)
    np.testing.assert_allclose(hidden, np.tanh(x @ kernel), 1e-12)
    assert not d_state.any()
    assert not d_recurrent.any()
    np.testing.assert_allclose(d_x, (hidden * (1 - hidden**2)) @ kernel.T, 1e-12)


def test_the_derivative_of_clipping_by_norm_together():
    d = [leaf("state", "a"), leaf("state", "b")]
    rng = np.random.default_rng(0)
    given = {n: rng.normal(size=(ROWS, UNITS)) for n in "ab"}
    given["a"][1] *= 1e-3
    given["b"][1] *= 1e-3
    given["a"][2, 0] = np.inf
    found = computed(clip_norm(d, 0.5), given)
    both = np.concatenate(list(given.values()), 1)
    lengths = np.linalg.norm(both, axis=1, keepdims=True)
    with np.errstate(invalid="ignore"):
        wanted = both * np.minimum(1, 0.5 / lengths)
    wanted[2] = 0
    wanted[2, 0] = 0.5
    np.testing.assert_allclose(np.concatenate(found, 1), wanted, 1e-12)


@on_tensorflow
def test_arrays_that_do_not_fit_are_refused_by_name(rng, monkeypatch):
    once = OneCall(kg.LSTMCell(UNITS), 4, 6)
    x, h, c, *weights = once.arrays
    message = (
        rf"initial state 1 does not fit {UNITS} units and sequences of shape \(4, 6, 3\). "
        rf"Received: shape \(3, {UNITS}\)"
    )
    features = r"the sequences must have 3 features. Received: shape \(4, 6, 2\)"
    with pytest.raises(ValueError, match=message):
        once.forward([x, h, c[:3], *weights])
    with pytest.raises(ValueError, match=features):
        once.forward([x[:, :, :2], h, c, *weights])
    with pytest.raises(ValueError, match="6 arrays are needed. Received: 5"):
        once.forward(once.arrays[:5])

    import tensorflow as tf

    def wrong(function, kind):
        with pytest.raises(kind, match=message):
            function(tf.constant(x), [tf.constant(h), tf.constant(c[:3])])
        with pytest.raises(kind, match=features):
            function(tf.constant(x[:, :, :2]), [tf.constant(h), tf.constant(c)])

    layer = kg.GatedRNN(UNITS, cell="lstm", dtype="float64")
    layer.build((None, None, 3))
    shapes = [
        tf.TensorSpec((None, None, None), "float64"),
        [tf.TensorSpec((None, UNITS), "float64")] * 2,
    ]
    graph = tf.function(lambda x, s: layer(x, initial_state=s), input_signature=shapes)
    wrong(graph, tf.errors.InvalidArgumentError)
    monkeypatch.setattr("keras_gates.engine.native.tensorflow.operation", lambda: None)
    graph = tf.function(graph.python_function, input_signature=shapes)
    wrong(graph, tf.errors.InvalidArgumentError)


@on_tensorflow
def test_the_operation_of_tensorflow():
    import tensorflow as tf

    once = OneCall(kg.GRUCell(UNITS), 3, 5)
    number, dtypes = once.forward.number, ["float64"] * 3
    found = library.operation()(once.arrays, call=number, results=dtypes)
    for one, other in zip(found, once.forward(once.arrays), strict=True):
        np.testing.assert_array_equal(one, other)
    with pytest.raises(tf.errors.FailedPreconditionError, match="only in the process that made it"):
        library.operation()(once.arrays, call=number + 10**6, results=dtypes)
    with pytest.raises(tf.errors.InvalidArgumentError, match="another number of inputs or results"):
        library.operation()(once.arrays, call=number, results=dtypes[1:])


@on_tensorflow
def test_where_tensorflow_takes_no_operations(rng, monkeypatch):
    """Arrays go through Python there."""
    import tensorflow as tf

    layer, other = pair(rng, "gru", return_sequences=True)
    x, states = rng.normal(size=(4, 6, 3)), [rng.normal(size=(4, UNITS))]
    wanted = outputs_and_gradients(other, x, None, states)
    monkeypatch.setattr("keras_gates.engine.native.tensorflow.operation", lambda: None)
    for run in (lambda f: f, tf.function):
        found = run(lambda: outputs_and_gradients(layer, x, None, states))()
        for one, other in zip(found, wanted, strict=True):
            np.testing.assert_allclose(one, other, 1e-10, 1e-10)


@pytest.mark.slow
@pytest.mark.skipif(
    not shutil.which("g++") or platform.machine() != "x86_64", reason="no g++ for x86-64 here"
)
def test_sanitizers_find_nothing(tmp_path):
    """Addresses out of bounds and undefined behaviour, over what is drawn at random here."""
    root, installed = tmp_path / "source", str(tmp_path / "installed")
    root.mkdir()
    for name in ("setup.py", "setup.cfg", "pyproject.toml", "README.md"):
        shutil.copy(library._PATH.parents[3] / name, root)
    without = shutil.ignore_patterns("*.so", "__pycache__")
    shutil.copytree(library._PATH.parents[2], root / "keras_gates", ignore=without)
    subprocess.run(
        [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", installed, root],
        env={**os.environ, "CXX": "g++ -fsanitize=address,undefined -fno-omit-frame-pointer"},
        check=True,
    )
    libraries = [
        subprocess.check_output(["g++", f"-print-file-name={name}.so"], text=True).strip()
        for name in ("libasan", "libubsan")
    ]
    chosen = "operations or random or side_by_side or share_the_steps or sparsemax or fork"
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", __file__, "-k", chosen],
        cwd=tmp_path,
        env={
            **os.environ,
            "LD_PRELOAD": " ".join(libraries),
            "ASAN_OPTIONS": "detect_leaks=0:verify_asan_link_order=0",
            "UBSAN_OPTIONS": "halt_on_error=1",
            "PYTHONPATH": installed,
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def file_of(call, path):
    """Writes a `Call` to a file that `side_by_side.cpp` reads."""
    pieces = [*call._alive, call._fields]
    with path.open("wb") as file:
        for piece in pieces:
            array = piece if isinstance(piece, np.ndarray) else np.frombuffer(piece, "uint8")
            has_addresses = piece is call._fields or isinstance(piece, ctypes.Array)
            head = [array.nbytes, array.ctypes.data, has_addresses]
            file.write(np.array(head, "int64").tobytes() + array.tobytes())
    return path


class Sanitized:
    """The kernel's sources and `side_by_side.cpp`, built with the thread sanitizer."""

    def __init__(self, folder):
        self.folder, self.sources = folder, library._PATH.parent
        flags = "-fsanitize=thread -g -O1 -std=c++17 -Wno-psabi -Wno-ignored-attributes"
        self.compiler = ["g++", *flags.split(), f"-I{self.sources}", "-DVARIANT=baseline"]

    def run(self, *command):
        # At random addresses the sanitizer of some machines cannot run.
        fixed = [] if not shutil.which("setarch") else ["setarch", "-R"]
        options = "halt_on_error=0 exitcode=66"
        return subprocess.run(
            [*fixed, *map(str, command)],
            env={**os.environ, "TSAN_OPTIONS": options},
            capture_output=True, text=True, timeout=120, check=False,
        )  # fmt: skip

    def object_of(self, source, name=None):
        made = self.folder / f"{name or source.stem}.o"
        subprocess.run([*self.compiler, "-c", source, "-o", made], check=True)
        return made

    def program_of(self, objects, name="program"):
        made = self.folder / name
        subprocess.run([*self.compiler, "-pthread", *objects, "-o", made, "-ldl"], check=True)
        return made


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("g++"), reason="no g++ here")
def test_the_thread_sanitizer_finds_no_race_but_those_put_in(tmp_path, monkeypatch):
    sanitized = Sanitized(tmp_path)
    hello = tmp_path / "hello.cpp"
    hello.write_text("#include <thread>\nint main() { std::thread([] {}).join(); }\n")
    try:
        hello = sanitized.program_of([sanitized.object_of(hello)], "hello")
    except subprocess.CalledProcessError:
        pytest.skip("this compiler has no thread sanitizer")
    if sanitized.run(hello).returncode:
        pytest.skip("the thread sanitizer does not run here")
    names = ("kernel", "library", "team", "call")
    objects = {name: sanitized.object_of(sanitized.sources / f"{name}.cpp") for name in names}
    objects["main"] = sanitized.object_of(pathlib.Path(__file__).with_name("side_by_side.cpp"))

    share_all(monkeypatch)
    monkeypatch.setattr(library, "threads", lambda: 4)
    files = []
    cells = [kg.LSTMCell(33, grad_clip_norm=0.1), kg.GRUCell(40, reset_after=False), kg.GRUCell(9)]
    for cell in cells:
        both = OneCall(cell, 1, 1, "float32")
        for direction in (both.forward, both.backward):
            files.append(file_of(direction, tmp_path / f"call_{len(files)}"))
    given = [*files, 1, 20, 5, 12]

    def done(objects):
        return sanitized.run(sanitized.program_of(objects.values()), *given)

    found = done(objects)
    assert found.returncode == 0, found.stdout + found.stderr
    assert found.stdout == "6 calls, the same\n"
    races = {
        "team": ("__ATOMIC_RELEASE", "__ATOMIC_RELAXED"),
        "call": ("std::lock_guard<std::mutex> lock(of_memory);", ""),
    }
    for name, (line, wrong) in races.items():
        text = (sanitized.sources / f"{name}.cpp").read_text()
        assert line in text
        changed = tmp_path / f"changed_{name}.cpp"
        changed.write_text(text.replace(line, wrong))
        found = done({**objects, name: sanitized.object_of(changed)})
        assert found.returncode == 66
        assert "WARNING: ThreadSanitizer: data race" in found.stderr
