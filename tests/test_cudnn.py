"""On GPUs layers go to cuDNN where those of Keras do.

No GPU is needed: what Keras hands to cuDNN is computed here by a stand-in, from the packed weights
and the lengths of sequences that cuDNN is given, by equations written down once more.
"""

import sys

import keras
import numpy as np
import pytest
from helpers import (
    ALL,
    BACKEND,
    FEATURES,
    MASK,
    UNITS,
    MGUCell,
    assert_close,
    leave_out_for_time,
)
from keras import ops

import keras_gates as kg
from keras_gates import checks, engine
from keras_gates._keras import cudnn as keras_cudnn
from keras_gates.engine import base, cudnn
from keras_gates.engine.paths import Paths

BATCH, TIME = MASK.shape
VERSION = tuple(map(int, keras.__version__.split(".")[:2]))
TRACES = BACKEND != "torch"  # layers as activations
SIGMOID_AND_TANH = "cuDNN computes nothing but a GRU with reset_after=True and an LSTM"


class MyGRU(kg.GatedCell):
    """A GRU under names of one's own."""

    blocks = ("z", "r", "candidate")
    two_biases = True

    def update(self, x, u, states):
        (h,) = states
        z, r = self.gate("z", x.z + u.z), self.gate("r", x.r + u.r)
        return (z * h + (1 - z) * self.candidate(x.candidate + r * u.candidate),)


class OneBias(MyGRU):
    """The same equations and other weights."""

    two_biases = False


class Otherwise(kg.LSTMCell):
    """An LSTM that is none."""

    def update(self, x, u, states):
        h, c = super().update(x, u, states)
        return 0.9 * h, c


class Structured(kg.LSTMCell):
    """An LSTM whose recurrent weights are halved."""

    def parametrize(self, recurrent_kernel):
        return recurrent_kernel / 2


class OwnCall(kg.GRUCell):
    def call(self, inputs, states, training=False):
        return super().call(inputs, states, training=training)


class WithAScale(kg.LSTMCell):
    """An LSTM with a weight that it does not use."""

    def build(self, input_shape):
        super().build(input_shape)
        self.scale = self.add_weight((self.units,), name="scale")


# ---------------------------------------------------------------------- which layers


@pytest.mark.parametrize(("arguments", "kind"), [
    ({"cell": "gru"}, "gru"),
    ({"cell": "lstm"}, "lstm"),
    ({"cell": MyGRU}, "gru"),
    ({"cell": "lstm", "unit_forget_bias": False, "initialization": "uniform_gates"}, "lstm"),
    ({"cell": "lstm", "output_activation": "tanh", "dropout": 0.3}, "lstm"),
    ({"cell": "gru", "gate_activation": {"update": ops.sigmoid}}, "gru"),
    *[({"cell": "gru", "candidate_activation": keras.layers.Activation("tanh")}, "gru")][:TRACES],
    ({"cell": "gru", "kernel_regularizer": "l2", "recurrent_constraint": "non_neg"}, "gru"),
    ({"cell": "gru", "initial_state": "learned", "go_backwards": True}, "gru"),
    ({"cell": "lstm", "stateful": True, "dtype": "mixed_bfloat16"}, "lstm"),
])  # fmt: skip
def test_what_cudnn_computes(arguments, kind):
    layer = kg.GatedRNN(4, **arguments)
    assert cudnn.kind_of(layer.cell) == kind
    assert cudnn.why_not(layer.cell, "tensorflow") is None
    layer.build((2, None, 3))
    assert cudnn.why_not(layer.cell, "tensorflow") is None
    assert engine.why_not_cudnn(layer) == cudnn.why_not(layer.cell, BACKEND)


@pytest.mark.parametrize(("arguments", "reason"), [
    ({"grad_clip_norm": 1.0}, "gradients are clipped inside backpropagation through time"),
    ({"grad_clip_value": 1.0, "grad_clip_at": "preactivation"}, "gradients are clipped"),
    ({"activation_l1": 1e-3}, "activation_l1 is added up step by step"),
    ({"activation_l1": 1e-3, "candidate_l1": 1e-3}, "activation_l1 and candidate_l1 is"),
    ({"recurrent_dropout": 0.1}, "cuDNN has no recurrent_dropout"),
    ({"zoneout": {"hidden": 0.1}}, "cuDNN has no zoneout"),
    ({"layer_norm": True}, "cuDNN has no layer normalization"),
    ({"use_bias": False}, "use_bias=False was given"),
    ({"reset_after": False}, SIGMOID_AND_TANH),
    ({"candidate_activation": "relu"}, SIGMOID_AND_TANH),
    ({"gate_activation": {"update": "hard_sigmoid"}}, SIGMOID_AND_TANH),
    *[({"candidate_activation": keras.layers.PReLU()}, SIGMOID_AND_TANH)][:TRACES],
    ({"cell": "lstm", "output_activation": "softsign"}, SIGMOID_AND_TANH),
    ({"cell": "lstm", "gate_activation": {"output": "tanh"}}, SIGMOID_AND_TANH),
    ({"cell": "peephole_lstm"}, SIGMOID_AND_TANH),
    ({"cell": "cifg"}, SIGMOID_AND_TANH),
    ({"cell": "simple"}, SIGMOID_AND_TANH),
    ({"cell": "min_gru"}, SIGMOID_AND_TANH),
    ({"cell": MGUCell}, SIGMOID_AND_TANH),
    ({"cell": OneBias}, SIGMOID_AND_TANH),
    ({"cell": Otherwise}, SIGMOID_AND_TANH),
    ({"cell": WithAScale}, SIGMOID_AND_TANH),
    ({"cell": Structured}, "Structured makes its recurrent kernel with a `parametrize` of its own"),
    ({"cell": OwnCall}, "OwnCall defines its own `call`"),
    ({"unroll": True}, "unroll=True asks for an unrolled loop"),
    ({"return_gates": True}, "return_gates=True was given"),
    ({"backprop": "fused"}, "backprop='fused' was given"),
    ({"backprop": "autodiff"}, "backprop='autodiff' was given"),
], ids=str)  # fmt: skip
def test_one_option_is_enough_to_leave_cudnn(arguments, reason):
    layer = kg.GatedRNN(4, **arguments)
    layer.build((None, None, 3))
    assert reason in engine.why_not_cudnn(layer)


def test_what_keras_lacks_on_a_backend():
    gru, lstm = (kg.GatedRNN(4, cell=cell).cell for cell in ("gru", "lstm"))
    half = kg.GatedRNN(4, cell="lstm", dtype="mixed_float16").cell
    assert cudnn.why_not(gru, "jax") == "Keras has no GRU of cuDNN on jax"
    assert cudnn.why_not(lstm, "jax") is None
    reason = "JAX calls cuDNN in float32 alone, and the layer computes in float16"
    assert cudnn.why_not(half, "jax") == reason
    assert cudnn.why_not(lstm, "numpy") == "Keras has no LSTM of cuDNN on numpy"
    for backend in ("tensorflow", "torch"):
        assert [cudnn.why_not(cell, backend) for cell in (gru, lstm, half)] == [None] * 3


def test_equations_that_cannot_be_read():
    class Noisy(kg.GRUCell):
        def update(self, x, u, states):
            noise = keras.random.normal((self.units,), seed=self.seed_generator)
            return (states[0] + noise,)

    layer = kg.GatedRNN(4, cell=Noisy)
    layer.build((None, None, 3))
    assert "the equations cannot be read: " in cudnn.why_not(layer.cell, "tensorflow")


def test_on_a_cpu_nothing_of_this_happens(monkeypatch):
    assert not cudnn.is_near(ops.zeros((2, 3, FEATURES)))
    monkeypatch.setattr(Paths, "_by_cudnn", None)
    layer = kg.GatedRNN(4)
    layer(np.zeros((2, 3, FEATURES)))
    assert layer.supports_jit
    assert "cuDNN" not in layer.explain()


# ---------------------------------------------------------------------- what it computes


def lstm_step(weights, x, h, c):
    """i, f, g, o, as cuDNN's documentation has it: rows of units, inputs' weights and states'."""
    (w, u), (b, d) = weights
    i, f, g, o = (x @ ops.transpose(w[k]) + h @ ops.transpose(u[k]) + b[k] + d[k] for k in range(4))
    c = ops.sigmoid(f) * c + ops.sigmoid(i) * ops.tanh(g)
    return ops.sigmoid(o) * ops.tanh(c), c


def gru_step(weights, x, h):
    """r, i, n, likewise."""
    (w, u), (b, d) = weights
    r, i, n = ((x @ ops.transpose(w[k]) + b[k], h @ ops.transpose(u[k]) + d[k]) for k in range(3))
    r, i = ops.sigmoid(r[0] + r[1]), ops.sigmoid(i[0] + i[1])
    n = ops.tanh(n[0] + r * n[1])
    return ((1 - i) * n + i * h,)


class TensorFlowsCudnn:
    """In the place of the operation that needs a GPU: one layer, batches first."""

    def __init__(self):
        self.calls = []

    def __call__(self, *, input, input_h, input_c, params, is_training, rnn_mode, sequence_lengths,
                 time_major):  # fmt: skip
        import tensorflow as tf

        assert is_training
        assert not time_major
        assert not base.in_use()  # as in an export
        self.calls.append(rnn_mode)
        cells = [input_c] * (rnn_mode == "lstm")

        @tf.custom_gradient
        def once(*given):
            with tf.GradientTape(persistent=True) as tape:
                tape.watch(given)
                results = self._computed(rnn_mode, sequence_lengths, *given)

            def grad(*d):  # which has no gradient
                return [tf.stop_gradient(g) for g in tape.gradient(results, given, d)]

            return results, grad

        found = once(input, params, input_h, *cells)
        return found[0], found[1], found[-1], None, None

    @staticmethod
    def _computed(rnn_mode, sequence_lengths, input, params, *states):
        import tensorflow as tf

        states = [state[:, 0] for state in states]
        input_h = states[0]
        units, features = input_h.shape[-1], input.shape[-1]
        blocks, step = {"gru": (3, gru_step), "lstm": (4, lstm_step)}[rnn_mode]
        sizes = [blocks * units * features, blocks * units * units, blocks * units, blocks * units]
        w, u, b, d = tf.split(params, sizes)
        weights = (
            (tf.reshape(w, (blocks, units, features)), tf.reshape(u, (blocks, units, units))),
            (tf.reshape(b, (blocks, units)), tf.reshape(d, (blocks, units))),
        )
        tf.debugging.assert_positive(sequence_lengths)

        def one(carry, at):
            t, x = at
            states, _ = carry
            new = step(weights, x, *states)
            valid = (t < sequence_lengths)[:, None]
            kept = [tf.where(valid, n, s) for n, s in zip(new, states, strict=True)]
            return kept, tf.where(valid, new[0], tf.zeros_like(new[0]))

        steps = tf.range(tf.shape(input)[1])
        start = (states, tf.zeros_like(states[0]))
        states, hidden = tf.scan(one, (steps, tf.transpose(input, (1, 0, 2))), start)
        return tf.transpose(hidden, (1, 0, 2)), *[state[-1][:, None] for state in states]


class JaxsCudnn:
    """JAX's own reference of it."""

    def __init__(self):
        self.calls = []

    def __call__(self, x, h_0, c_0, weights, seq_lengths, **options):
        import jax
        from jax.experimental import rnn

        self.calls.append("lstm")
        sizes = [options[n] for n in ("input_size", "hidden_size", "num_layers", "bidirectional")]

        def computed(x, h_0, c_0, weights):
            seq_lengths = np.full(x.shape[0], x.shape[1], "int32")  # Keras gives no others
            unpacked = rnn.unpack_lstm_weights(weights, *sizes)
            return rnn.lstm_ref(
                x, h_0, c_0, *unpacked, seq_lengths, *sizes[:3], options["dropout"], sizes[3]
            )

        def called(function, like, *given):  # what has no derivative
            return jax.pure_callback(function, jax.eval_shape(lambda: like), *given)

        def forward(*given):
            return once(*given), given

        def backward(given, d):
            return called(lambda given, d: jax.vjp(computed, *given)[1](d), given, given, d)

        @jax.custom_vjp
        def once(*given):
            batch, time, units = x.shape[0], x.shape[1], h_0.shape[-1]
            like = jax.numpy.zeros((batch, time, units)), h_0, c_0
            return called(computed, like, *given)

        once.defvjp(forward, backward)
        return once(x, h_0, c_0, weights)


class TorchsCudnn:
    """PyTorch's function, which Keras calls with cuDNN's arrangement of weights, on a CPU."""

    def __init__(self):
        self.calls = []

    def lstm(self, x, h, c, mask, kernel, recurrent_kernel, bias, return_sequences, **_):
        return self._run("lstm", mask, (x, h, c, kernel, recurrent_kernel, bias, return_sequences))

    def gru(self, x, h, mask, kernel, recurrent_kernel, bias, return_sequences, **_):
        return self._run("gru", mask, (x, h, kernel, recurrent_kernel, bias, return_sequences))

    def _run(self, kind, mask, given):
        assert mask is None
        self.calls.append(kind)
        import torch

        module = sys.modules["keras.src.backend.torch.rnn"]
        *tensors, return_sequences = given

        class Once(torch.autograd.Function):
            @staticmethod
            def forward(ctx, *tensors):
                with torch.enable_grad():
                    ctx.given = [t.detach().requires_grad_() for t in tensors]
                    ctx.found = getattr(module, f"_cudnn_{kind}")(
                        *ctx.given, return_sequences, tensors[0].device
                    )
                _, hidden, last = ctx.found
                ctx.found = [hidden, *last]
                return tuple(f.detach() for f in ctx.found)

            @staticmethod
            @torch.autograd.function.once_differentiable
            def backward(ctx, *d):
                return torch.autograd.grad(ctx.found, ctx.given, d, retain_graph=True)

        hidden, *last = Once.apply(*tensors)
        return hidden[:, -1], hidden, last


@pytest.fixture
def calls(monkeypatch):
    """As if there were a GPU: the kinds that cuDNN is called for."""
    from keras.src import backend

    monkeypatch.setattr(cudnn, "is_near", lambda sequences=None: True)
    if BACKEND == "tensorflow":
        import tensorflow as tf

        of_keras = sys.modules["keras.src.backend.tensorflow.rnn"]
        stand_in = TensorFlowsCudnn()
        monkeypatch.setattr(of_keras, "_is_gpu_available", lambda: True)
        monkeypatch.setattr(tf.raw_ops, "CudnnRNNV3", stand_in)
    elif BACKEND == "jax":
        from jax.experimental import rnn

        stand_in = JaxsCudnn()
        of_keras = sys.modules["keras.src.backend.jax.rnn"]
        monkeypatch.setattr(of_keras, "_is_gpu_available", lambda: True, raising=False)
        monkeypatch.setattr(rnn, "lstm", stand_in)
    else:
        stand_in = TorchsCudnn()
        for kind in ("lstm", "gru"):
            monkeypatch.setattr(backend, kind, getattr(stand_in, kind))
    return stand_in.calls


KINDS = {"tensorflow": ["gru", "lstm"], "jax": ["lstm"], "torch": ["gru", "lstm"]}[BACKEND]
FIRST = {"tensorflow": (3, 8), "jax": (3, 14), "torch": (3, 15)}[BACKEND]
reachable = pytest.mark.skipif(VERSION < FIRST, reason=f"Keras has it here from {FIRST} on")
of_kinds = pytest.mark.parametrize("kind", KINDS)
KERAS = {"gru": keras.layers.GRU, "lstm": keras.layers.LSTM}


def pair(kind, rng, **options):
    """A GatedRNN and Keras' layer, without cuDNN, of the same random weights."""
    ours = kg.GatedRNN(UNITS, cell=kind, **options)
    theirs = KERAS[kind](UNITS, use_cudnn=False, **options)
    for layer in (ours, theirs):
        layer.build((BATCH if options.get("stateful") else None, None, FEATURES))
    theirs.set_weights([0.7 * rng.normal(size=w.shape) for w in theirs.get_weights()])
    ours.set_weights(theirs.get_weights())
    return ours, theirs


def flat(outputs):
    return keras.tree.flatten(outputs)


def given(kind, rng):
    """Sequences and initial states."""
    x = rng.normal(size=(BATCH, TIME, FEATURES))
    states = [rng.normal(size=(BATCH, UNITS)) for _ in range(1 + (kind == "lstm"))]
    return [value.astype("float32") for value in (x, *states)]


MASKS = {"none": None}
if BACKEND == "tensorflow":
    MASKS["any"] = MASK
    MASKS["right"], MASKS["left"] = np.sort(MASK)[:, ::-1], np.sort(MASK)
    MASKS["holes"] = ~np.eye(*MASK.shape, dtype=bool)
OPTIONS = [
    {},
    {"return_sequences": True},
    {"return_sequences": True, "return_state": True},
    {"return_state": True, "go_backwards": True},
    {"return_sequences": True, "return_state": True, "go_backwards": True},
    {"return_sequences": True, "zero_output_for_mask": True},
    {"zero_output_for_mask": True},
    {"zero_output_for_mask": True, "return_sequences": True, "go_backwards": True},
]


@reachable
@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("options", OPTIONS, ids=str)
@of_kinds
def test_it_equals_keras(kind, options, mask, rng, calls):
    which = OPTIONS.index(options) + 3 * list(MASKS).index(mask) + KINDS.index(kind)
    leave_out_for_time(which % 12)
    mask = MASKS[mask]
    ours, theirs = pair(kind, rng, **options)
    values = given(kind, rng)
    weighting = ops.convert_to_tensor(rng.normal(size=UNITS).astype("float32"))

    def loss(outputs):
        return sum(ops.sum(ops.sin(output) * weighting) for output in outputs)

    calls.clear()
    found = flat(ours(values[0], initial_state=values[1:], mask=mask))
    assert calls == [kind]
    expected = flat(theirs(values[0], initial_state=values[1:], mask=mask))
    for one, other in zip(found, expected, strict=True):
        assert_close(one, other, 1e-5)
    _, *found = checks.gradients(ours, values, loss, mask=mask)
    assert set(calls) == {kind}
    _, *expected = checks.gradients(theirs, values, loss, mask=mask)
    for one, other in zip(flat(found), flat(expected), strict=True):
        scale = max(1.0, np.abs(other).max())
        assert_close(one / scale, other / scale, 1e-5)
    text = ours.explain()
    assert "inference, when last traced: cuDNN, as in keras.layers" in text


@reachable
@of_kinds
def test_without_initial_states_and_with_those_kept(kind, rng, calls):
    ours, theirs = pair(kind, rng, stateful=True, return_sequences=True)
    for _ in range(3):
        x = given(kind, rng)[0]
        assert_close(ours(x), theirs(x), 1e-5)
    for layer in (ours, theirs):
        layer.reset_state()
    assert_close(ours(x), theirs(x), 1e-5)
    assert len(calls) >= 4


@reachable
@pytest.mark.skipif(BACKEND == "jax", reason="JAX keeps the state of the seed outside the layer")
@of_kinds
def test_dropout_is_of_the_same_seed(kind, rng, calls):
    ours, theirs = pair(kind, rng, dropout=0.4, seed=5, return_sequences=True)
    x = given(kind, rng)[0]
    assert_close(ours(x, training=True), theirs(x, training=True), 1e-5)
    assert calls == [kind]
    assert "training, when last traced: cuDNN" in ours.explain()
    kept = ours.cell.get_dropout_mask(ops.ones((BATCH, FEATURES)))
    assert (ops.convert_to_numpy(kept) == 0).any()


@reachable
@of_kinds
def test_both_directions(kind, rng, calls):
    x = given(kind, rng)[0]
    layers = []
    for backprop in ("auto", "autodiff"):
        inner = kg.GatedRNN(UNITS, cell=kind, return_sequences=True, backprop=backprop)
        layers.append(keras.layers.Bidirectional(inner))
        layers[-1].build(x.shape)
        layers[-1].set_weights(layers[0].get_weights())
    calls.clear()
    found = layers[0](x)
    assert calls == [kind] * 2
    assert_close(found, layers[1](x), 1e-5)
    assert calls == [kind] * 2


@pytest.mark.slow
@reachable
@of_kinds
def test_a_model_learns_the_same(kind, rng, calls):
    x = rng.normal(size=(16, TIME, FEATURES)).astype("float32")
    if BACKEND == "tensorflow":
        x[:9, 5:] = 0
    histories = []
    for backprop in ("auto", "autodiff"):
        keras.utils.set_random_seed(3)
        masking = [keras.layers.Masking()] * (BACKEND == "tensorflow")
        model = keras.Sequential([
            keras.Input((None, FEATURES)), *masking,
            kg.GatedRNN(UNITS, cell=kind, return_sequences=True, backprop=backprop),
            kg.GatedRNN(UNITS, cell=kind, backprop=backprop), keras.layers.Dense(1),
        ])  # fmt: skip
        model.compile(keras.optimizers.SGD(0.1), "mse")
        calls.clear()
        losses = model.fit(x, x[:, 0, :1], epochs=3, batch_size=8, verbose=0, shuffle=False)
        assert bool(calls) == (backprop == "auto")
        histories.append([*losses.history["loss"], *model.predict(x, verbose=0)[:, 0]])
    np.testing.assert_allclose(*histories, rtol=1e-4, atol=1e-5)


@reachable
@of_kinds
def test_gradients_of_gradients(kind, rng, calls):
    """cuDNN has none: they come from the loop."""
    leave_out_for_time(kind != KINDS[0])
    x = given(kind, rng)[0][:, :4]
    mask = MASK[:, 2:6] if BACKEND == "tensorflow" else None
    layers = []
    for backprop in ("auto", "autodiff"):
        layer = kg.GatedRNN(UNITS, cell=kind, return_sequences=True, backprop=backprop)
        layers.append(layer)
        layer.build(x.shape)
        layer.set_weights(layers[0].get_weights())
    calls.clear()
    ways = ["eagerly", "compiled"] if ALL else ["eagerly"]
    found = [[g for way in ways for g in _second(layer, x, mask, way)] for layer in layers]
    assert set(calls) == {kind}
    for one, other in zip(*found, strict=True):
        assert ops.max(ops.abs(other)) > 1e-3
        assert_close(one, other, 1e-4)


def _second(layer, x, mask, way):
    """The gradients, at sequences and weights, of the square of the gradient at the sequences."""
    x = ops.convert_to_tensor(x)
    if BACKEND == "tensorflow":
        import tensorflow as tf

        def both(x):
            with tf.GradientTape() as outer:
                outer.watch(x)
                with tf.GradientTape() as inner:
                    inner.watch(x)
                    loss = tf.reduce_sum(layer(x, mask=mask) ** 2)
                length = tf.reduce_sum(inner.gradient(loss, x) ** 2)
            return outer.gradient(length, [x, *[w.value for w in layer.trainable_weights]])

        return (tf.function(both) if way == "compiled" else both)(x)
    if BACKEND == "jax":
        import jax

        others = [v.value for v in layer.non_trainable_variables]

        def length(x, weights):
            def loss(x):
                return ops.sum(layer.stateless_call(weights, others, x)[0] ** 2)

            return ops.sum(jax.grad(loss)(x) ** 2)

        weights = [v.value for v in layer.trainable_variables]
        gradient = jax.grad(length, (0, 1))
        found = (jax.jit(gradient) if way == "compiled" else gradient)(x, weights)
        return jax.tree.leaves(found)
    import torch

    x = x.detach().requires_grad_()
    weights = [w.value for w in layer.trainable_weights]
    (d,) = torch.autograd.grad(torch.sum(layer(x) ** 2), x, create_graph=True)
    return torch.autograd.grad(torch.sum(d**2), [x, *weights])


@reachable
@pytest.mark.skipif(BACKEND == "torch", reason="graphs of TensorFlow and JAX")
@of_kinds
def test_a_graph_has_each_of_its_operations_once(kind, rng, calls, monkeypatch):
    """The operations themselves, which need a GPU to run and none to be in a graph."""
    monkeypatch.undo()
    monkeypatch.setattr(cudnn, "is_near", lambda sequences=None: True)
    of_keras = sys.modules[f"keras.src.backend.{BACKEND}.rnn"]
    monkeypatch.setattr(of_keras, "_is_gpu_available", lambda: True)
    layer = kg.GatedRNN(UNITS, cell=kind, return_sequences=True)
    x = given(kind, rng)[0]
    layer.build(x.shape)
    if BACKEND == "tensorflow":
        import tensorflow as tf

        def step(x):
            with tf.GradientTape() as tape:
                loss = tf.reduce_sum(layer(x, mask=MASK, training=True) ** 2)
            return tape.gradient(loss, [w.value for w in layer.trainable_weights])

        graph = tf.function(step).get_concrete_function(tf.constant(x)).graph
        found = [operation.type for operation in graph.get_operations()]
        names = "CudnnRNNV3", "CudnnRNNBackpropV3"
        predicted = tf.function(lambda x: layer(x)).get_concrete_function(tf.constant(x)).graph
        assert "CudnnRNNV3" in [operation.type for operation in predicted.get_operations()]
    else:
        import jax
        from jax.experimental import rnn

        size = "compute_rnn_workspace_reserve_space_sizes"
        monkeypatch.setattr(rnn.gpu_rnn, size, lambda *_: (7, 11), raising=False)
        others = [v.value for v in layer.non_trainable_variables]

        def loss(weights):
            return ops.sum(layer.stateless_call(weights, others, x)[0] ** 2)

        weights = [v.value for v in layer.trainable_variables]
        found = str(jax.make_jaxpr(jax.grad(loss))(weights)).split()
        found = [word.partition("[")[0] for word in found]
        names = "rnn_fwd", "rnn_bwd"
        compiled = str(jax.make_jaxpr(jax.jit(jax.grad(loss)))(weights)).split()
        assert [sum(w.startswith(name) for w in compiled) for name in names] == [1, 1]

        def loss_of_one(weights, x):
            return ops.sum(layer.stateless_call(weights, others, x[None])[0] ** 2)

        each = jax.vmap(jax.grad(loss_of_one), (None, 0))  # which cuDNN has no rule for
        assert "rnn_fwd" not in str(jax.make_jaxpr(each)(weights, x))
    assert [found.count(name) for name in names] == [1, 1]


# ---------------------------------------------------------------------- where it does not


@reachable
def test_explain_says_why_not(rng, calls):
    x = given("lstm", rng)[0]
    layer = kg.GatedRNN(UNITS, cell="lstm", zoneout=0.1)
    layer(x)
    found = layer.explain().splitlines()
    if BACKEND == "tensorflow":  # which has no other kernel on a GPU, whatever is called
        assert found[0].endswith(
            "TensorFlow has a GPU here; not cuDNN, because cuDNN has no zoneout"
        )
    else:
        assert found[-1].startswith("  inference, when last traced: ")
        assert found[-1].endswith("; not cuDNN, because cuDNN has no zoneout")
    assert not calls
    layer = kg.GatedRNN(UNITS, cell="lstm")
    layer(x[:0])
    assert "not cuDNN, because there are no samples" in layer.explain()
    assert not calls
    layer(x)
    assert layer.explain().splitlines()[-1].endswith("traced: cuDNN, as in keras.layers")


@pytest.mark.skipif(BACKEND == "tensorflow", reason="TensorFlow takes masks")
def test_masks_of_other_backends_leave_cudnn(rng, calls):
    layer = kg.GatedRNN(UNITS, cell="lstm", return_sequences=True)
    layer(given("lstm", rng)[0], mask=MASK)
    assert not calls
    assert f"not cuDNN, because Keras gives cuDNN no mask on {BACKEND}" in layer.explain()


@of_kinds
def test_what_keras_cannot_call_runs_as_before(kind, rng, calls, monkeypatch):
    def fails(*args, **kwargs):
        raise NotImplementedError

    monkeypatch.setattr(keras_cudnn, "run", fails)
    ours, theirs = pair(kind, rng, return_sequences=True)
    x = given(kind, rng)[0]
    assert_close(ours(x), theirs(x), 1e-5)
    reason = f"not cuDNN, because Keras {keras.__version__} could not call it here"
    assert reason in ours.explain()


@pytest.mark.skipif(BACKEND != "torch", reason="what old versions have on PyTorch")
def test_an_lstm_without_gradients_is_not_taken(rng, calls, monkeypatch):
    from keras.src import backend

    monkeypatch.delattr(backend, "bidirectional_lstm", raising=False)  # as before Keras 3.15
    layer = kg.GatedRNN(UNITS, cell="lstm")
    layer(given("lstm", rng)[0])
    assert not calls
    assert "could not call it" in layer.explain()


@pytest.mark.skipif(BACKEND != "tensorflow", reason="a kernel for CPUs alone")
def test_explain_says_that_a_gpu_gains_nothing(calls):
    start = (
        "Keras' own loop, because the kernel is made for CPUs, and TensorFlow has a GPU here; not "
        "cuDNN, because cuDNN computes nothing but a GRU"
    )
    assert start in kg.GatedRNN(UNITS, candidate_activation="relu").explain()
    for arguments in ({}, {"candidate_activation": "relu", "backprop": "fused"}):
        assert "can run fused" in kg.GatedRNN(UNITS, **arguments).explain()


@pytest.mark.skipif(BACKEND != "tensorflow", reason="graphs of TensorFlow")
def test_xla_and_exports_leave_cudnn(rng, calls, tmp_path):
    import tensorflow as tf

    x = given("gru", rng)[0]
    layer = kg.GatedRNN(UNITS)
    compiled = tf.function(layer, jit_compile=True)(x)
    assert not calls
    assert "not cuDNN, because XLA compiles this function" in layer.explain()
    assert_close(compiled, layer(x), 1e-5)
    assert calls == ["gru"]
    assert not layer.supports_jit
    assert kg.GatedRNN(UNITS, zoneout=0.1).supports_jit
    # The kernel for CPUs that was asked for is no operation of XLA either.
    assert not kg.GatedRNN(UNITS, zoneout=0.1, backprop="fused").supports_jit

    model = keras.Sequential([keras.Input((None, FEATURES), name="x"), layer])
    calls.clear()
    model.export(tmp_path / "by_keras", verbose=False)
    kg.diagnose(model, x)
    assert not calls
    if ALL:
        kg.export(model, tmp_path / "exported")


@pytest.mark.slow
@pytest.mark.skipif(BACKEND != "tensorflow", reason="graphs of TensorFlow")
@of_kinds
def test_dynamic_shapes_and_gradients_of_a_graph_traced_before(kind, rng, calls):
    import tensorflow as tf

    ours, theirs = pair(kind, rng, return_sequences=True)
    x = given(kind, rng)[0]
    found = []
    for layer in (ours, theirs):
        signature = [tf.TensorSpec((None, None, FEATURES)), tf.TensorSpec((None, None), tf.bool)]
        run = tf.function(lambda x, mask, f=layer: f(x, mask=mask), input_signature=signature)
        run(x, MASK)
        found.append([])
        for time in (TIME, 5):
            shorter = tf.constant(x[:, :time])
            with tf.GradientTape() as tape:
                tape.watch(shorter)
                y = run(shorter, MASK[:, :time])
            weights = [w.value for w in layer.trainable_weights]
            found[-1] += [y, *tape.gradient(y, [shorter, *weights])]
    for one, other in zip(*found, strict=True):
        assert_close(one, other, 1e-4)
    assert set(calls) == {kind}


@pytest.mark.skipif(BACKEND != "tensorflow", reason="half precision of TensorFlow")
@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["mixed_float16", "mixed_bfloat16", "float64"])
@of_kinds
def test_other_dtypes(kind, dtype, rng, calls):
    x = given(kind, rng)[0]
    found = []
    for backprop in ("auto", "autodiff"):
        layer = kg.GatedRNN(UNITS, cell=kind, dtype=dtype, backprop=backprop)
        layer.build(x.shape)
        layer.set_weights(found[0][1] if found else layer.get_weights())
        found.append((layer(x, mask=MASK), layer.get_weights()))
        assert found[-1][0].dtype == layer.compute_dtype
    assert calls
    tolerance = {"float64": 1e-10, "mixed_float16": 1e-2, "mixed_bfloat16": 5e-2}[dtype]
    one, other = (ops.cast(output, "float64") for output, _ in found)
    assert_close(one, other, tolerance)
