"""The fused engine: the same results as the plain loop, whichever way it is reached.

The contract tests run through it as well (test_contracts.py); here it is in the surroundings that
users have: `fit`, XLA, several devices, exports, dynamic shapes.
"""

import functools
import re

import keras
import numpy as np
import pytest
from helpers import BACKEND, MGUCell, leave_out_for_time, run_python

import keras_gates as kg
from keras_gates import checks

if BACKEND != "tensorflow":
    pytest.skip("the engine of TensorFlow", allow_module_level=True)

import tensorflow as tf

from keras_gates.engine.native import library
from keras_gates.engine.native.call import Call
from keras_gates.engine.native.tensorflow import FusedEngine
from keras_gates.engine.recurrence import Dropout

FEATURES, UNITS = 3, 5
# Neither a multiple of the rows of a tile nor of the steps whose gradients are gathered.
BATCH, TIME = 35, 57


def pair(rng, **arguments):
    """A fused layer and one that is not, of the same random weights."""
    layers = []
    for backprop in ("fused", "autodiff"):
        layer = kg.GatedRNN(UNITS, dtype="float64", backprop=backprop, seed=3, **arguments)
        layer.build((None, None, FEATURES))
        layers.append(layer)
    layers[0].set_weights([0.5 * rng.normal(size=w.shape) for w in layers[0].get_weights()])
    for weight, value in zip(layers[1].weights, layers[0].weights, strict=True):
        weight.assign(value)
    return layers


def outputs_and_gradients(layer, x, mask=None, states=None, training=False):
    """Of a graph with dynamic batch and time."""

    @tf.function(input_signature=[tf.TensorSpec((None, None, FEATURES), tf.float64)])
    def run(x):
        given = [tf.constant(s) for s in states or []]
        with tf.GradientTape() as tape:
            tape.watch([x, *given])
            found = layer(
                x, initial_state=given or None, mask=None if mask is None else tf.constant(mask),
                training=training,
            )  # fmt: skip
            found = list(found) if isinstance(found, (list, tuple)) else [found]
            loss = sum(tf.reduce_sum(tf.sin(y)) for y in found) + 9 * sum(layer.losses)
        weights = [w.value for w in layer.trainable_weights]
        return [*found, *tape.gradient(loss, [x, *given, *weights])]

    return [np.asarray(value) for value in run(tf.constant(x))]


def assert_same(given, expected, tolerance=1e-9):
    for a, b in zip(given, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance)


def ragged(rng, batch=BATCH, time=TIME):
    mask = rng.random((batch, time)) > 0.3
    mask[0], mask[1, :9], mask[2, 30:] = False, False, False
    return mask


@pytest.mark.parametrize(
    "arguments",
    [
        {"cell": "gru", "grad_clip_norm": 0.1, "activation_l1": 0.2, "candidate_l1": 0.1},
        {"cell": "gru", "reset_after": False, "recurrent_dropout": 0.3, "dropout": 0.2},
        {"cell": "gru", "candidate_activation": "softmax", "go_backwards": True},
        {"cell": "lstm", "grad_clip_value": 0.02, "recurrent_dropout": 0.3},
        {"cell": "lstm", "use_bias": False, "dropout": 0.4, "zero_output_for_mask": True},
        {"cell": "simple", "grad_clip_norm": 0.1, "grad_clip_at": "preactivation"},
        {"cell": "gru", "zoneout": 0.3, "go_backwards": True, "activation_l1": 0.2},
        {"cell": "lstm", "zoneout": {"cell": 0.5}, "dropout": 0.2, "grad_clip_norm": 0.1},
    ],
    ids=str,
)
def test_it_equals_the_plain_loop(arguments, rng):
    fused, plain = pair(rng, return_sequences=True, return_state=True, **arguments)
    x = rng.normal(size=(BATCH, TIME, FEATURES))
    states = [rng.normal(size=(BATCH, UNITS)) for _ in fused.cell.state_names]
    given, expected = (
        outputs_and_gradients(layer, x, ragged(np.random.default_rng(1)), states, training=True)
        for layer in (fused, plain)
    )
    assert_same(given, expected)


def test_activations_with_weights_get_their_gradients(rng):
    prelu = {
        "candidate_activation": keras.layers.PReLU(dtype="float64"),
        "gate_activation": {"reset": keras.layers.PReLU(dtype="float64")},
    }
    fused = kg.GatedRNN(UNITS, dtype="float64", backprop="fused", **prelu)
    fused.build((None, None, FEATURES))
    # Small: these activations are unbounded, and a state that explodes blows up rounding too.
    fused.set_weights([0.15 * rng.normal(size=w.shape) for w in fused.get_weights()])
    x = rng.normal(size=(BATCH, TIME, FEATURES))
    given = outputs_and_gradients(fused, x)
    fused.backprop = "autodiff"
    assert len(given) == 2 + 5
    assert_same(given, outputs_and_gradients(fused, x))


@pytest.mark.parametrize("threads", [1, 2, 5])
@pytest.mark.parametrize(("batch", "time"), [(1, 130), (2, 57), (7, 40), (35, 9), (100, 3)])
def test_any_number_of_threads_and_rows(threads, batch, time, rng, monkeypatch):
    """More threads than rows, too; and rows so few that steps are projected together."""
    leave_out_for_time(threads == 2)
    monkeypatch.setattr("keras_gates.engine.native.library.threads", lambda: threads)
    monkeypatch.setattr("keras_gates.engine.native.call._WORTH_A_THREAD", 1)
    arguments = {"cell": "lstm", "activation_l1": 0.1, "grad_clip_norm": 0.1}
    x = tf.constant(rng.normal(size=(batch, time, FEATURES)))
    mask = tf.constant(rng.random((batch, time)) > 0.3)
    found = []
    for layer in pair(rng, return_sequences=True, **arguments):

        @tf.function
        def run(x, mask, layer=layer):
            with tf.GradientTape() as tape:
                tape.watch(x)
                hidden = layer(x, mask=mask, training=True)
                loss = tf.reduce_sum(tf.sin(hidden)) + 9 * sum(layer.losses)
            return [hidden, *tape.gradient(loss, [x, *[w.value for w in layer.weights]])]

        found.append(run(x, mask))
    assert_same(*found)


def test_one_graph_takes_every_length_and_batch_size(rng):
    layer, plain = pair(rng, cell="simple")

    @tf.function(input_signature=[tf.TensorSpec((None, None, FEATURES), tf.float64)])
    def gradient(x):
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(layer(x) ** 2)
        return tape.gradient(loss, [w.value for w in layer.trainable_weights])

    for batch, time in [(4, 3), (17, 25), (40, 60), (1, 1)]:
        x = rng.normal(size=(batch, time, FEATURES))
        _, _, expected = checks.gradients(plain, [x], lambda found: tf.reduce_sum(found[0] ** 2))
        assert_same(gradient(tf.constant(x)), expected)


def test_only_cells_that_compute_the_same_share_a_plan():
    def engine(**arguments):
        layer = kg.GatedRNN(UNITS, **arguments)
        layer.build((None, None, FEATURES))
        return FusedEngine(layer.cell).plan

    def activation(scale):
        @keras.saving.register_keras_serializable(package="tests")
        def same_name(x):
            return scale * x

        return same_name

    assert engine(seed=1) is engine(seed=2, kernel_initializer="zeros", dropout=0.1)
    different = [
        {}, {"cell": "lstm"}, {"reset_after": False},
        {"grad_clip_norm": 1.0}, {"grad_clip_norm": 2.0}, {"grad_clip_value": 1.0},
        {"grad_clip_norm": 1.0, "grad_clip_at": "preactivation"}, {"candidate_activation": "relu"},
        {"gate_activation": {"reset": "relu"}}, {"gate_activation": {"update": "relu"}},
        {"activation_l1": 0.1}, {"candidate_l1": 0.1},
        {"cell": "lstm", "output_activation": "relu"},
    ]  # fmt: skip
    keys = [engine(**{"cell": "gru", **a}) for a in different]
    keys += [engine(candidate_activation=activation(scale)) for scale in (1, 2)]
    assert len(set(map(id, keys))) == len(keys)
    prelu = [engine(candidate_activation=keras.layers.PReLU()) for _ in range(2)]
    assert prelu[0] is prelu[1]

    class Same(kg.SimpleRNNCell):
        pass

    class Other(kg.SimpleRNNCell):
        def update(self, x, u, states):
            return (2 * super().update(x, u, states)[0],)

    simple = engine(cell="simple")
    assert engine(cell=Same) is simple
    assert engine(cell=Other) is not simple


def test_explain_shows_the_equations_or_why_not():
    lines = kg.GatedRNN(4, cell="lstm", candidate_activation="relu").explain().splitlines()
    assert lines[1:] == [
        "  with x_k = x W_k + b_k and u_k = h U_k:",
        "  i = sigmoid(x_i + u_i)",
        "  f = sigmoid(x_f + u_f)",
        "  g = relu(x_g + u_g)",
        "  o = sigmoid(x_o + u_o)",
        "  c' = f * c + i * g",
        "  h' = o * relu(c')",
    ]
    layer = kg.GatedRNN(4, candidate_activation=keras.layers.PReLU())
    assert "  n = PReLU(x_n + r * u_n)" in layer.explain()
    layer.build((None, None, 3))
    assert "  n = relu(x_n + r * u_n) + -alpha * relu(-(x_n + r * u_n))" in layer.explain()

    class Untraceable(kg.SimpleRNNCell):
        def update(self, x, u, states):
            return (float(keras.ops.sum(x.candidate)) * u.candidate,)

    first, second = kg.GatedRNN(4, cell=Untraceable).explain().splitlines()
    assert "Keras' own loop, because the value of a tensor is asked for in `update`" in first
    assert second == "  its equations cannot be traced"

    class Doubled(kg.SimpleRNNCell):
        def update(self, x, u, states):
            return (keras.ops.matmul(x.candidate, 2 * np.eye(4, dtype="float32")),)

    layer = kg.GatedRNN(4, cell=Doubled)
    layer(np.zeros((2, 5, 3), "float32"))
    first, second, *_ = layer.explain().splitlines()
    assert "Keras' own loop, because no program knows the operation Matmul" in first
    assert second == "  its equations cannot be traced"


def test_cells_that_share_a_plan_keep_their_own_weights(rng):
    """Trainable activations and weights inside the equations are arguments of a plan."""

    class Scaled(kg.SimpleRNNCell):
        def build(self, input_shape):
            super().build(input_shape)
            self.scale = self.add_weight(shape=(self.units,), name="scale")

        def update(self, x, u, states):
            return (self.scale * super().update(x, u, states)[0],)

    x = rng.normal(size=(3, 6, FEATURES)).astype("float32")
    for arguments in ({"cell": Scaled}, {"candidate_activation": keras.layers.PReLU}):
        engines = []
        for _ in range(2):
            given = {n: v() if v is keras.layers.PReLU else v for n, v in arguments.items()}
            layers = [
                kg.GatedRNN(UNITS, backprop=backprop, **given) for backprop in ("fused", "autodiff")
            ]
            for layer in layers:
                layer.build((None, None, FEATURES))
            weights = [rng.normal(size=w.shape) for w in layers[0].get_weights()]
            for layer in layers:
                layer.set_weights(weights)
            fused, plain = (tf.function(layer)(x) for layer in layers)
            np.testing.assert_allclose(fused, plain, 1e-5, 1e-5)
            engines.append(layers[0]._paths.fused.engine)
        assert engines[0].plan is engines[1].plan


def model(backprop, **arguments):
    keras.utils.set_random_seed(1)
    return keras.Sequential(
        [
            keras.Input((None, FEATURES), name="frames"),
            keras.layers.Masking(),
            keras.layers.Bidirectional(
                kg.GatedRNN(
                    8,
                    candidate_activation="relu",
                    backprop=backprop,
                    return_sequences=True,
                    grad_clip_norm=1.0,
                    **arguments,
                )
            ),
            kg.GatedRNN(6, cell="lstm", backprop=backprop, activation_l1=1e-3),
            keras.layers.Dense(1),
        ]
    )


def data(rng, batch=40, time=30):
    x = rng.normal(size=(batch, time, FEATURES)).astype("float32")
    x[:5, 20:] = 0  # masked
    return x, rng.normal(size=(batch, 1)).astype("float32")


def trained(backprop, x, y, epochs=2, **options):
    found = model(backprop)
    found.compile(keras.optimizers.SGD(0.05), "mse", **options)
    losses = found.fit(x, y, batch_size=16, epochs=epochs, shuffle=False, verbose=0).history["loss"]
    return found, [*losses, *found.predict(x, verbose=0)[:, 0]]


@pytest.mark.parametrize(
    "options", [{}, {"jit_compile": True}, {"steps_per_execution": 2}], ids=str
)
def test_fit_and_predict(options, rng):
    leave_out_for_time(options)
    x, y = data(rng)
    fused, given = trained("fused", x, y, **options)
    plain, expected = trained("autodiff", x, y, **options)
    assert_same(given, expected, 1e-5)
    forward, backward = fused.layers[1].forward_layer, fused.layers[1].backward_layer
    compiled = (
        "XLA compiles this function (jit_compile=True), and the kernel is none of its operations"
    )
    expected = compiled if options.get("jit_compile") else None
    for layer in (forward, backward):
        assert layer._paths.fused.obstacles == {"training": expected, "inference": expected}
    assert plain.layers[2].explain().startswith(f"{plain.layers[2].name}: Keras' own loop, because")


def test_predict_and_evaluate_keep_nothing_for_a_backward_pass(rng, monkeypatch):
    made = []

    class Recorded(Call):
        def __init__(self, plan, form, direction, *arguments):
            made.append(direction)
            super().__init__(plan, form, direction, *arguments)

    monkeypatch.setattr("keras_gates.engine.native.engine.Call", Recorded)
    x, y = data(rng)
    losses = {}
    for backprop in ("fused", "autodiff"):
        found = model(backprop)
        found.compile(keras.optimizers.SGD(0.05), "mse")
        losses[backprop] = found.fit(x, y, batch_size=16, epochs=2, verbose=0).history["loss"]
        if backprop == "fused":
            assert sorted(made) == ["backward"] * 3 + ["forward"] * 3
            found.evaluate(x, y, batch_size=16, verbose=0)
            found.predict(x, verbose=0)
            assert made[6:] == ["infer"] * 3
    assert_same(losses["fused"], losses["autodiff"], 1e-5)

    # A gradient of what was traced outside every tape is there all the same.
    fused, plain = pair(rng)
    frames = tf.constant(rng.normal(size=(2, 3, FEATURES)))
    found = []
    for layer in (fused, plain):
        call = tf.function(layer)
        call(frames)
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(call(frames) ** 2)
        found.append(tape.gradient(loss, [w.value for w in layer.trainable_weights]))
    assert_same(*found)


def test_it_is_used_from_the_first_step_on_eagerly_too(rng):
    x, y = data(rng)
    _, expected = trained("autodiff", x, y)
    found, given = trained("auto", x, y)
    assert_same(given, expected, 1e-6)
    assert "training, when last traced: fused" in found.layers[2].explain()
    layer = kg.GatedRNN(4)
    layer(rng.normal(size=(2, 3, FEATURES)))
    assert "inference, when last traced: fused" in layer.explain()


def kernel_in(folder, monkeypatch):
    """Has the package be in a folder; the path of its kernel there."""
    path = folder / "keras_gates" / "engine" / "native" / "kernel.so"
    path.parent.mkdir(parents=True)
    monkeypatch.setattr(library, "_PATH", path)
    for cached in (library._loaded, library.operation, library.why_not):
        monkeypatch.setattr(library, cached.__name__, functools.cache(cached.__wrapped__))
    return path


def test_a_folder_of_sources_without_a_kernel_is_named(tmp_path, monkeypatch):
    """As where the package is installed, and imported from its sources all the same."""
    kernel_in(tmp_path, monkeypatch)
    (tmp_path / "setup.py").touch()
    with pytest.warns(UserWarning, match=f"imported from {tmp_path}, .* `pip install -e .` there"):
        assert "run from another folder" in library.why_not()


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (None, r"was not built .* C\+\+ compiler: install one"),
        (b"no library" * 99, r"cannot be loaded \(.*kernel\.so.*\): install keras_gates again"),
    ],
    ids=["missing", "junk"],
)
def test_without_the_kernel_keras_loop_runs_and_one_warning_says_so(
    content, reason, rng, monkeypatch, tmp_path
):
    path = kernel_in(tmp_path, monkeypatch)
    if content is not None:
        path.write_bytes(content)
    x = rng.normal(size=(2, 3, FEATURES)).astype("float32")
    layers = [kg.GatedRNN(4, backprop=backprop) for backprop in ("auto", "fused")]
    with pytest.warns(UserWarning, match=f"slower: the kernel of keras_gates {reason}") as warned:
        layers[0](x)
    assert layers[1](x).shape == (2, 4)
    for layer in layers:
        first = layer.explain().splitlines()[0]
        assert re.search(f": Keras' own loop, because the kernel of keras_gates {reason}", first)
    assert len(warned) == 1
    assert warned[0].filename == __file__


def test_what_cannot_be_fused_says_why(rng):
    class OwnCall(kg.SimpleRNNCell):
        def call(self, inputs, states, training=False):
            return super().call(inputs, states, training=training)

    class Noisy(kg.SimpleRNNCell):
        def update(self, x, u, states):
            noise = keras.random.normal((self.units,), seed=self.seed_generator)
            return (self.candidate(x.candidate + u.candidate + noise),)

    x = rng.normal(size=(2, 3, FEATURES)).astype("float32")
    for arguments, reason in (
        ({"cell": OwnCall}, "OwnCall defines its own `call`"),
        ({"cell": Noisy}, "its equations change variables"),
        ({"unroll": True}, "unroll=True asks for an unrolled loop"),
    ):
        layer = kg.GatedRNN(4, backprop="fused", **arguments)
        with pytest.raises(ValueError, match=f"backprop='fused' is impossible in .*{reason}"):
            layer(x)
        layer = kg.GatedRNN(4, **arguments)
        tf.function(layer)(tf.constant(x))
        assert reason in layer.explain()
    with pytest.raises(ValueError, match="`backprop` must be one of"):
        kg.GatedRNN(4, backprop="fast")


def test_fused_that_is_impossible_where_it_runs_warns_once(rng, recwarn, tmp_path):
    x = rng.normal(size=(2, 3, FEATURES)).astype("float32")
    layers = [kg.GatedRNN(4, backprop=given, name=given) for given in ("auto", "fused")]
    for layer in layers:
        layer(x)
        exported = keras.Sequential([keras.Input((None, FEATURES)), layer])
        exported.export(tmp_path / layer.name, verbose=False)
        layer(x[:0])
    assert not [w for w in recwarn if "fused" in str(w.message)]
    for layer in layers:
        compiled = tf.function(layer, jit_compile=True)
        np.testing.assert_allclose(compiled(x), layer(x), 1e-5, 1e-6)
        compiled(x[:, :2])
    (warned,) = [w for w in recwarn if "fused" in str(w.message)]
    assert str(warned.message) == (
        "'fused' was made with backprop='fused', and runs in Keras' own loop here: XLA compiles "
        "this function (jit_compile=True), and the kernel is none of its operations."
    )
    assert warned.filename == __file__


def _eagerly(layer, x):
    with tf.GradientTape() as tape:
        tape.watch(x)
        loss = tf.reduce_sum(layer(x) ** 2)
    return tape.gradient(loss, x)


def _in_a_function_traced_before(layer, x):
    function = tf.function(layer)
    function(x)
    return _eagerly(function, x)


def _by_tf_gradients(layer, x):
    return tf.function(lambda x: tf.gradients(tf.reduce_sum(layer(x) ** 2), x)[0])(x)


def _by_a_tape_around_one_of_the_weights(layer, x):
    """A function that differentiates inside, differentiated from outside."""

    @tf.function
    def inside(x):
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(layer(x) ** 2)
        return loss, tape.gradient(loss, [w.value for w in layer.trainable_weights])

    with tf.GradientTape() as tape:
        tape.watch(x)
        loss, _ = inside(x)
    return tape.gradient(loss, x)


def _in_a_loop(layer, x):
    @tf.function
    def run(x):
        return tf.map_fn(lambda row: layer(row[None])[0], x)

    return _eagerly(run, x)


def _recomputed(layer, x):
    return tf.function(lambda x: _eagerly(tf.recompute_grad(layer), x))(x)


@pytest.mark.parametrize(
    "way",
    [
        lambda layer, x: _eagerly(tf.function(layer), x),
        _in_a_function_traced_before,
        lambda layer, x: tf.function(lambda x: _eagerly(tf.function(layer), x))(x),
        _by_tf_gradients,
        _by_a_tape_around_one_of_the_weights,
        _in_a_loop,
        _recomputed,
    ],
)
def test_the_gradient_at_the_input_is_there_whoever_asks(way, rng):
    """It is left out where a tape in the same graph has not watched the input, as in `fit`."""
    layer = kg.GatedRNN(UNITS)
    x = tf.constant(rng.normal(size=(2, 5, FEATURES)), tf.float32)
    layer(x)
    np.testing.assert_allclose(way(layer, x), _eagerly(layer, x), 1e-5, 1e-6)


def test_jacobians(rng):
    fused, plain = pair(rng)
    x = tf.constant(rng.normal(size=(2, 4, FEATURES)))
    found = []
    for layer in (fused, plain):
        with tf.GradientTape(persistent=True) as tape:
            tape.watch(x)
            y = layer(x)
        found.append([tape.jacobian(y, x), tape.batch_jacobian(y, x)])
    assert_same(*found)


@pytest.mark.parametrize("how", ["eager", "graph", pytest.param("jit", marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    "arguments",
    [
        {"cell": "gru", "return_sequences": True, "grad_clip_norm": 1e9},
        {"cell": "lstm", "grad_clip_at": "preactivation", "grad_clip_value": 1e9},
        {"cell": "simple", "activation_l1": 0.1, "return_sequences": True},
        {"cell": MGUCell, "recurrent_dropout": 0.3},
        {"cell": "lstm", "zoneout": 0.3, "dropout": 0.2},
    ],
    ids=lambda arguments: str(arguments["cell"]),
)
def test_second_derivatives_equal_those_of_keras_loop(arguments, how, rng):
    leave_out_for_time(how == "graph" and arguments["cell"] in ("gru", "lstm", "simple"))
    layer, plain = pair(rng, **arguments)
    x = tf.constant(rng.normal(size=(3, 5, FEATURES)))
    mask = rng.random((3, 5)) > 0.2
    direction = [tf.constant(rng.normal(size=w.shape)) for w in layer.trainable_weights]

    def second(layer):
        """Of a gradient penalty, with respect to inputs and weights; a Hessian product."""
        weights = layer.trainable_weights
        keras.utils.set_random_seed(3)
        with tf.GradientTape(persistent=True) as outer:
            outer.watch(x)
            with tf.GradientTape() as inner:
                inner.watch(x)
                output = layer(x, mask=mask, training="dropout" in str(arguments))
                loss = tf.reduce_sum(output**2) + sum(layer.losses)
            d_x, *d_weights = inner.gradient(loss, [x, *weights])
            penalty = tf.reduce_sum(d_x**2)
            product = sum(tf.reduce_sum(d * v) for d, v in zip(d_weights, direction, strict=True))
        return [g for of in (penalty, product) for g in outer.gradient(of, [x, *weights])]

    if how != "eager":
        second = tf.function(second, jit_compile=how == "jit")
    for one, other in zip(second(layer), second(plain), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-9, atol=1e-11)


def _pushed(function, at, tangent):
    with tf.autodiff.ForwardAccumulator(at, tangent) as accumulator:
        results = function()
    return accumulator.jvp(results)


@pytest.mark.parametrize("how", ["eager", "function", "traced before", "inside"])
@pytest.mark.parametrize(
    "arguments",
    [
        {"cell": "gru", "return_sequences": True},
        {"cell": "lstm", "candidate_activation": "relu"},
        {"cell": MGUCell},
    ],
    ids=lambda arguments: str(arguments["cell"]),
)
def test_derivatives_forward_equal_differences(arguments, how, rng):
    """The kernel knows none; what it computes would count as constant."""
    leave_out_for_time(how == "traced before" and arguments["cell"] != "lstm")
    if how == "inside":  # TensorFlow knows no derivatives forward of arrays in a graph's loop
        arguments = {**arguments, "return_sequences": False}
    layer, _ = pair(rng, **arguments)
    x, mask = tf.constant(rng.normal(size=(3, 5, FEATURES))), rng.random((3, 5)) > 0.2
    tangent, call = tf.constant(rng.normal(size=x.shape)), lambda x: layer(x, mask=mask)
    if how in ("function", "traced before"):
        call = tf.function(call)
    if how == "traced before":
        call(x)
    run = functools.partial(_pushed, lambda: call(x), x, tangent)
    found = (tf.function(run) if how == "inside" else run)()
    step = 1e-6
    expected = (layer(x + step * tangent, mask=mask) - layer(x - step * tangent, mask=mask)) / step
    np.testing.assert_allclose(found, expected / 2, 1e-7, 1e-7)
    if how == "eager":
        weight = layer.trainable_weights[1].value
        of_weight = tf.constant(rng.normal(size=weight.shape))
        found = _pushed(lambda: call(x), weight, of_weight)
        sides = []
        for sign in (1, -1):
            weight.assign_add(sign * step * of_weight)
            sides.append(layer(x, mask=mask))
            weight.assign_sub(sign * step * of_weight)
        np.testing.assert_allclose(found, (sides[0] - sides[1]) / (2 * step), 1e-7, 1e-7)


@pytest.mark.slow
def test_hessian_products_by_any_mixture(rng):
    """Forward over reverse, and two tapes around a function of a graph, which looks for gradients
    at all that is kept."""
    layers = pair(rng)
    x = tf.constant(rng.normal(size=(3, 5, FEATURES)))
    direction = tf.constant(rng.normal(size=x.shape))

    def gradient(call):
        with tf.GradientTape() as tape:
            tape.watch(x)
            loss = tf.reduce_sum(call(x) ** 3)
        return tape.gradient(loss, x)

    def twice(call):
        with tf.GradientTape() as tape:
            tape.watch(x)
            along = tf.reduce_sum(gradient(call) * direction)
        return tape.gradient(along, x)

    expected = twice(layers[1])
    for call in (layers[0], tf.function(layers[0])):
        np.testing.assert_allclose(twice(call), expected, 1e-9, 1e-9)
        found = _pushed(functools.partial(gradient, call), x, direction)
        np.testing.assert_allclose(found, expected, 1e-9, 1e-9)


@keras.saving.register_keras_serializable("test_engine")
class Critic(keras.Model):
    """A WGAN's critic with a gradient penalty (Gulrajani et al., 2017)."""

    def __init__(self, backprop):
        super().__init__()
        self.rnn = kg.GatedRNN(6, backprop=backprop)
        self.score = keras.layers.Dense(1)

    def call(self, x, training=False):
        return self.score(self.rnn(x, training=training))

    def train_step(self, data):
        real, fake = data
        with tf.GradientTape() as tape:
            between = 0.3 * real + 0.7 * fake
            with tf.GradientTape() as inner:
                inner.watch(between)
                scores = self(between, training=True)
            norm = tf.norm(
                tf.reshape(inner.gradient(scores, between), (tf.shape(real)[0], -1)), axis=1
            )
            loss = tf.reduce_mean(self(fake, training=True) - self(real, training=True))
            loss += 10.0 * tf.reduce_mean((norm - 1) ** 2)
        self.optimizer.apply(tape.gradient(loss, self.trainable_weights), self.trainable_weights)
        return {"loss": loss}


@pytest.mark.parametrize(
    "options",
    [{}, pytest.param({"jit_compile": True}, marks=pytest.mark.slow), {"run_eagerly": True}],
    ids=str,
)
def test_a_gradient_penalty_trains_on_every_path(options, rng):
    real, fake = (rng.normal(size=(8, 6, 3)).astype("float32") for _ in range(2))
    losses = {}
    for backprop in ("autodiff", "auto", "fused"):
        keras.utils.set_random_seed(2)
        model = Critic(backprop)
        model.compile(keras.optimizers.Adam(0.01), **options)
        history = model.fit(
            real, fake, batch_size=8, epochs=30 if not options else 3, shuffle=False, verbose=0
        )
        losses[backprop] = history.history["loss"]
    assert np.isfinite(losses["autodiff"]).all()
    for backprop in ("auto", "fused"):
        np.testing.assert_allclose(losses[backprop], losses["autodiff"], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("dtype", ["float64", "mixed_bfloat16", "float16", "mixed_float16"])
def test_which_dtypes_run_in_the_kernel(dtype, rng):
    layer = kg.GatedRNN(4, dtype=dtype)
    layer(rng.normal(size=(2, 3, FEATURES)))
    where = (
        "Keras' own loop, because the kernel does not compute in float16"
        if "float16" in dtype.replace("bfloat16", "")
        else "inference, when last traced: fused"
    )
    assert where in layer.explain()


def test_bfloat16(rng):
    layers = [
        kg.GatedRNN(8, dtype="mixed_bfloat16", backprop=b, seed=1) for b in ("fused", "autodiff")
    ]
    x = rng.normal(size=(4, 30, FEATURES)).astype("float32")
    for layer in layers:
        layer.build(x.shape)
    layers[1].set_weights(layers[0].get_weights())
    given, expected = (tf.cast(tf.function(layer)(x), "float32") for layer in layers)
    np.testing.assert_allclose(given, expected, atol=0.05)


@pytest.mark.slow
def test_a_model_trained_fused_is_exported_as_plain_operations(rng, tmp_path):
    x, y = data(rng)
    found, _ = trained("fused", x, y)
    expected = found.predict(x, verbose=0)
    found.export(tmp_path / "exported", verbose=False)
    tf.saved_model.save(found, tmp_path / "saved")
    output = run_python(
        """
        import sys, numpy, tensorflow as tf
        x = numpy.load(sys.argv[1])
        for path in sys.argv[2:]:
            loaded = tf.saved_model.load(path)
            call = loaded.signatures["serving_default"]
            graph = call.graph.as_graph_def()
            nodes = [*graph.node, *[n for f in graph.library.function for n in f.node_def]]
            assert not any("_gradient_op_type" in n.attr for n in nodes)
            assert not {n.op for n in nodes} & {"PyFunc", "EagerPyFunc", "XlaLaunch"}
            assert not any("XlaMustCompile" in k for n in nodes for k in n.attr)
            assert len(list(call(tf.constant(x[:3, :7])).values())[0]) == 3
            print(list(call(tf.constant(x)).values())[0][1, 0].numpy())
        """,
        _saved(x, tmp_path),
        tmp_path / "exported",
        tmp_path / "saved",
        without_package=True,
    )
    assert [float(value) for value in output.split()] == pytest.approx(
        [float(expected[1, 0])] * 2, rel=1e-4
    )


def _saved(x, folder):
    np.save(folder / "x.npy", x)
    return folder / "x.npy"


@pytest.mark.slow
def test_under_mirrored_strategy():
    """Two replicas on two logical processors train as one does."""
    output = run_python(
        """
        import numpy as np, tensorflow as tf, keras, keras_gates as kg
        cpu = tf.config.list_physical_devices("CPU")[0]
        two = [tf.config.LogicalDeviceConfiguration()] * 2
        tf.config.set_logical_device_configuration(cpu, two)
        rng = np.random.default_rng(0)
        x, y = rng.normal(size=(16, 12, 3)), rng.normal(size=(16, 1))
        def train(backprop):
            keras.utils.set_random_seed(1)
            layer = kg.GatedRNN(5, grad_clip_norm=1.0, backprop=backprop)
            model = keras.Sequential([keras.Input((None, 3)), layer, keras.layers.Dense(1)])
            model.compile("sgd", "mse")
            model.fit(x, y, batch_size=8, epochs=2, shuffle=False, verbose=0)
            return model.get_weights(), layer
        with tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"]).scope():
            fused, layer = train("auto")
        assert layer.explain().endswith("training, when last traced: fused"), layer.explain()
        plain, _ = train("autodiff")
        # The losses that Keras 3.8 reports are those of one replica.
        print(max(np.abs(a - b).max() for a, b in zip(fused, plain, strict=True)))
        """
    )
    assert float(output.split()[-1]) < 1e-6


def test_two_runs_give_the_same_bits():
    output = run_python(
        """
        import numpy as np, tensorflow as tf, keras, keras_gates as kg
        tf.config.experimental.enable_op_determinism()
        rng = np.random.default_rng(0)
        x, y = rng.normal(size=(32, 20, 3)), rng.normal(size=(32, 1))
        for run in range(2):
            keras.utils.clear_session()
            keras.utils.set_random_seed(1)
            layer = kg.GatedRNN(8, activation_l1=1e-3, dropout=0.2)
            model = keras.Sequential([keras.Input((None, 3)), layer, keras.layers.Dense(1)])
            model.compile("adam", "mse")
            model.fit(x, y, batch_size=8, epochs=3, verbose=0)
            assert "training, when last traced: fused" in layer.explain()
            print(model.get_weights()[0].tobytes().hex())
        """
    )
    assert len(output.split()) == 2
    assert len(set(output.split())) == 1


def test_the_engine_alone(rng):
    """Its own interface: states and masks in, states of every step out."""
    layer, _ = pair(rng)
    x = rng.normal(size=(2, 4, FEATURES))
    start = [tf.constant(rng.normal(size=(2, UNITS)))]
    hidden, last = FusedEngine(layer.cell)(tf.constant(x), start, None, Dropout([], []), True)
    assert hidden.shape == (2, 4, UNITS)
    np.testing.assert_array_equal(hidden[:, -1], last[0])
