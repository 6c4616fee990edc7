"""Equality, clipping and penalties, for every cell, against a float64 NumPy reference.

These tests run on every Keras backend (`make test-backend`).
"""

import keras
import numpy as np
import pytest
from helpers import (
    BACKEND,
    BATCH,
    CASES,
    DTYPE,
    FEATURES,
    FIRST_OUTPUT,
    MASK,
    TIME,
    TOLERANCE,
    UNITS,
    assert_close,
    built,
    every_other,
    leave_out_for_time,
    weights_of,
)
from keras import ops
from reference import Clip, Sequence

import keras_gates as kg
from keras_gates import checks

CELLS = [
    (kg.GRUCell, {}),
    (kg.GRUCell, {"reset_after": False}),
    (kg.GRUCell, {"gate_activation": {"update": "hard_sigmoid"}, "use_bias": False}),
    (kg.LSTMCell, {}),
    (kg.LSTMCell, {"output_activation": "softsign", "unit_forget_bias": False}),
    (kg.SimpleRNNCell, {}),
]
CLIPS = [
    {},
    {"grad_clip_value": 0.05},
    {"grad_clip_norm": 0.1},
    {"grad_clip_value": 0.02, "grad_clip_at": "preactivation"},
    {"grad_clip_norm": 0.05, "grad_clip_at": "preactivation"},
]
DIRECTIONS = [{}, {"go_backwards": True}, {"zero_output_for_mask": True}]


@pytest.fixture(autouse=True, params=["autodiff", "fused", *["scans"] * (BACKEND == "jax")])
def backprop(request, monkeypatch):
    """Every test here runs through the plain loop and through the engines."""
    backprop = request.param
    if backprop == "scans":  # those of accelerators
        monkeypatch.setattr("keras_gates.engine._kernel_serves_jax", lambda: False)
        backprop = "fused"
    monkeypatch.setitem(kg.GatedRNN.__init__.__kwdefaults__, "backprop", backprop)
    return backprop


@pytest.mark.parametrize("check", checks.CHECKS)
@pytest.mark.parametrize(("cell", "arguments"), CELLS)
def test_check(check, cell, arguments, backprop):
    if check == "unrolled" and backprop == "fused":
        pytest.skip("unroll=True asks for a loop of its own")
    leave_out_for_time(check in ("clipping", "penalties") and arguments)  # which take longest
    if arguments:
        every_other(backprop, (check, checks.CHECKS))
    checks.CHECKS[check](cell, arguments)


def reference_of(case, layer, clip):
    options = {key.replace("grad_clip_", ""): value for key, value in clip.items()}
    return CASES[case][1](weights_of(layer), Clip(**options))


@pytest.mark.parametrize("clip", CLIPS, ids=str)
@pytest.mark.parametrize("options", DIRECTIONS, ids=str)
@pytest.mark.parametrize("case", CASES)
def test_outputs_and_gradients_equal_the_reference(case, options, clip, rng, backprop):
    every_other(backprop, (case, CASES), (options, DIRECTIONS), (clip, CLIPS))
    arguments = CASES[case][0]
    layer = built(rng, **arguments, **options, **clip, return_sequences=True, return_state=True)
    x = rng.normal(size=(BATCH, TIME, FEATURES))
    states = [rng.normal(size=(BATCH, UNITS)) for _ in layer.cell.state_names]
    d_outputs = rng.normal(size=(BATCH, TIME, UNITS))
    d_states = [rng.normal(size=(BATCH, UNITS)) for _ in layer.cell.state_names]

    expected = Sequence(reference_of(case, layer, clip), first=FIRST_OUTPUT, **options)
    outputs, last = expected.forward(x, MASK, states)
    dx, d_initial, d_weights = expected.backward(d_outputs, d_states)

    def loss(found):
        wanted = [d_outputs, *d_states]
        return sum(
            ops.sum(output * ops.convert_to_tensor(d, DTYPE))
            for output, d in zip(found, wanted, strict=True)
        )

    given = [value.astype(DTYPE) for value in (x, *states)]
    for found, wanted in zip(
        layer(given[0], initial_state=given[1:], mask=MASK), [outputs, *last], strict=True
    ):
        assert_close(found, wanted)
    _, of_inputs, of_weights = checks.gradients(layer, given, loss, mask=MASK)
    for found, wanted in zip([*of_inputs, *of_weights], [dx, *d_initial, *d_weights], strict=True):
        assert_close(found, wanted)


@pytest.mark.parametrize("case", CASES)
def test_the_reference_agrees_with_finite_differences(case, rng):
    """The judge is judged: its hand-written BPTT against its own forward pass."""
    layer = built(rng, **CASES[case][0])
    cell = reference_of(case, layer, {})
    sequence = Sequence(cell)
    x = rng.normal(size=(BATCH, TIME, FEATURES))
    d = rng.normal(size=(BATCH, TIME, UNITS))
    zero = [np.zeros((BATCH, UNITS)) for _ in layer.cell.state_names]

    def loss():
        return float((sequence.forward(x, MASK)[0] * d).sum())

    loss()
    dx, _, d_weights = sequence.backward(d, zero)
    for array, gradient in zip((x, cell.W, cell.U, cell.b), (dx, *d_weights), strict=True):
        direction = rng.normal(size=array.shape)
        array += 1e-6 * direction
        above = loss()
        array -= 2e-6 * direction
        below = loss()
        array += 1e-6 * direction
        assert (above - below) / 2e-6 == pytest.approx(float((gradient * direction).sum()), 1e-5)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("case", CASES)
def test_penalties_and_their_gradients_equal_the_formula(case, masked, rng):
    mask = MASK if masked else np.ones_like(MASK)
    strengths = {"activation_l1": 0.4, "candidate_l1": 0.3}
    layer = built(rng, **CASES[case][0], **strengths, return_sequences=True)
    sequence = Sequence(reference_of(case, layer, {}))
    x = rng.normal(size=(BATCH, TIME, FEATURES)).astype(DTYPE)
    outputs, _ = sequence.forward(x, mask)
    count = mask.sum()
    candidates = sum(
        np.abs(activated["candidate"])[valid[:, 0]].sum() for valid, activated in sequence.activated
    )
    expected = [0.4 * np.abs(outputs[mask]).sum() / count, 0.3 * candidates / count]
    layer(x, mask=mask if masked else None)
    assert_close(ops.stack(layer.losses), np.array(expected, "float32"), 1e-5)

    zero = [np.zeros((BATCH, UNITS)) for _ in layer.cell.state_names]
    _, _, d_weights = sequence.backward(
        np.zeros_like(outputs), zero, d_hidden=0.4 / count, d_candidate=0.3 / count
    )
    _, _, of_weights = checks.gradients(
        layer, [x], lambda found: 0.0 * ops.sum(found[0]), mask=mask if masked else None
    )
    for found, wanted in zip(of_weights, d_weights, strict=True):
        assert_close(found, wanted, max(TOLERANCE, 1e-6))


@pytest.mark.parametrize("clip", [{"grad_clip_value": 0.1}, {"grad_clip_norm": 0.1}])
@pytest.mark.parametrize("case", CASES)
def test_forward_is_bit_identical_with_clipping(case, clip, rng):
    plain = built(rng, **CASES[case][0], return_sequences=True, dtype="float32")
    clipped = built(rng, **CASES[case][0], **clip, return_sequences=True, dtype="float32")
    clipped.set_weights(plain.get_weights())
    x = rng.normal(size=(BATCH, TIME, FEATURES)).astype("float32")
    for training in (False, True):
        given, expected = (
            ops.convert_to_numpy(layer(x, training=training)) for layer in (clipped, plain)
        )
        assert np.array_equal(given, expected)


@pytest.mark.parametrize("mode", ["grad_clip_value", "grad_clip_norm"])
def test_an_exploding_gradient_stays_finite_with_clipping(mode, rng, request):
    """A relu-gated GRU whose gradient overflows float32 without clipping, at T=500."""
    leave_out_for_time("autodiff" in request.node.name)
    time, units = 500, 8
    x = (0.01 * rng.normal(size=(4, time, FEATURES))).astype("float32")

    def gradient(**clip):
        # The update gate is 1.05 at every step, and so much does dL/dh grow: 4e10 times in all.
        # The state grows as much, from inputs so small that it stays finite.
        layer = kg.GatedRNN(units, gate_activation="relu", dtype="float32", **clip)
        layer.build((None, time, FEATURES))
        kernel, recurrent, bias = (1e-9 * rng.normal(size=w.shape) for w in layer.get_weights())
        bias[0, :units] = 1.05
        layer.set_weights([kernel, recurrent, bias])
        assert np.isfinite(ops.convert_to_numpy(layer(x))).all()
        return checks.gradients(layer, [x], lambda outputs: ops.sum(1e30 * outputs[0]))

    _, _, exploded = gradient()
    assert not all(np.isfinite(g).all() for g in exploded)
    _, of_inputs, of_weights = gradient(**{mode: 1.0})
    assert all(np.isfinite(g).all() for g in (*of_inputs, *of_weights))


def test_penalties_are_independent_of_padding_and_return(rng):
    x = rng.normal(size=(BATCH, TIME, FEATURES)).astype("float32")
    padded = np.concatenate([x, 9 * np.ones_like(x)], axis=1)
    both = np.concatenate([MASK, np.zeros_like(MASK)], axis=1)
    found = []
    for options in (
        {},
        {"return_sequences": True},
        {"return_sequences": True, "return_state": True},
    ):
        layer = kg.GatedRNN(UNITS, activation_l1=0.2, candidate_l1=0.1, seed=1, **options)
        layer.build(x.shape)
        layer.set_weights([0.3 * np.ones(w.shape) for w in layer.get_weights()])
        for sequences, mask in (
            (x, MASK),
            (padded, both),
            (np.concatenate([x, x]), np.concatenate([MASK, MASK])),
        ):
            layer(sequences, mask=mask)
            found.append([float(loss) for loss in layer.losses])
    np.testing.assert_allclose(found, [found[0]] * len(found), rtol=1e-5)


def test_penalties_inside_bidirectional_are_those_of_its_two_layers(rng):
    x = rng.normal(size=(BATCH, TIME, FEATURES)).astype("float32")
    both = keras.layers.Bidirectional(
        kg.GatedRNN(UNITS, activation_l1=0.2, return_sequences=True), merge_mode=None
    )
    forward, backward = (ops.convert_to_numpy(y) for y in both(x, mask=MASK))
    expected = [0.2 * np.abs(y[MASK]).sum() / MASK.sum() for y in (forward, backward)]
    np.testing.assert_allclose([float(loss) for loss in both.losses], expected, rtol=1e-5)


def test_l1_is_absent_without_strength(rng):
    layer = built(rng)
    layer(np.zeros((2, 4, FEATURES)))
    assert layer.losses == []


def test_all_masked_batch_has_no_penalty(rng):
    layer = built(rng, activation_l1=1.0, dtype="float32")
    layer(rng.normal(size=(2, 4, FEATURES)), mask=np.zeros((2, 4), bool))
    assert float(layer.losses[0]) == 0.0


KERAS = {
    "gru": (keras.layers.GRU, {}),
    "gru_reset_before": (keras.layers.GRU, {"reset_after": False}),
    "lstm": (keras.layers.LSTM, {}),
    "simple": (keras.layers.SimpleRNN, {}),
}
OPTIONS = [
    {},
    {"return_sequences": True},
    {"return_sequences": True, "go_backwards": True},
    {"return_state": True},
    {"return_sequences": True, "zero_output_for_mask": True},
    {"unroll": True, "return_sequences": True},
    {"use_bias": False},
    {"dropout": 0.3, "seed": 3},
    {"dropout": 0.3, "recurrent_dropout": 0.4, "seed": 3, "return_sequences": True},
]


@pytest.mark.parametrize("mask", [None, MASK], ids=["no mask", "mask"])
@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("name", KERAS)
def test_equals_keras(name, options, mask, rng, backprop):
    """Outputs and gradients in float32, dropout included: its masks come from the same seed."""
    if options.get("unroll") and backprop == "fused":
        pytest.skip("unroll=True asks for a loop of its own")
    if "unroll" not in options:
        every_other(backprop, (name, KERAS), (options, OPTIONS), (mask is None, (True, False)))
    if BACKEND == "jax" and options.get("unroll") and mask is not None:
        options = {**options, "return_sequences": False}
    theirs_class, variant = KERAS[name]
    theirs = theirs_class(UNITS, **variant, **options)
    ours = kg.GatedRNN(UNITS, cell=name.partition("_")[0], **variant, **options)
    for layer in (theirs, ours):
        layer.build((None, TIME, FEATURES))
    theirs.set_weights([rng.normal(size=w.shape) for w in theirs.get_weights()])
    ours.set_weights(theirs.get_weights())
    x = rng.normal(size=(BATCH, TIME, FEATURES)).astype("float32")
    weighting = rng.normal(size=(UNITS,)).astype("float32")

    def loss(outputs):
        return sum(ops.sum(output * ops.convert_to_tensor(weighting)) for output in outputs)

    for training in (False, True):
        if training and BACKEND == "jax" and "seed" in options:
            continue  # JAX keeps the state of the seed outside the layer
        for given, expected in zip(
            _flat(ours(x, mask=mask, training=training)),
            _flat(theirs(x, mask=mask, training=training)),
            strict=True,
        ):
            assert_close(given, expected, 1e-5)
    _, of_inputs, of_weights = checks.gradients(ours, [x], loss, mask=mask)
    _, their_inputs, their_weights = checks.gradients(theirs, [x], loss, mask=mask)
    for given, expected in zip(
        [*of_inputs, *of_weights], [*their_inputs, *their_weights], strict=True
    ):
        scale = max(1.0, np.abs(expected).max())
        assert_close(given / scale, expected / scale, 1e-5)


def _flat(outputs):
    return outputs if isinstance(outputs, (list, tuple)) else [outputs]


@pytest.mark.parametrize("name", KERAS)
def test_stateful_equals_keras(name, rng):
    theirs_class, variant = KERAS[name]
    theirs = theirs_class(UNITS, stateful=True, **variant)
    ours = kg.GatedRNN(UNITS, cell=name.partition("_")[0], stateful=True, **variant)
    for layer in (theirs, ours):
        layer.build((BATCH, TIME, FEATURES))
    ours.set_weights(theirs.get_weights())
    for _ in range(3):
        x = rng.normal(size=(BATCH, TIME, FEATURES)).astype("float32")
        assert_close(ours(x), theirs(x), 1e-5)
    for layer in (theirs, ours):
        layer.reset_state()
    assert_close(ours(x), theirs(x), 1e-5)


def test_the_cells_arguments_are_read_through_the_layer_and_not_set():
    layer = kg.GatedRNN(4, grad_clip_norm=0.5, candidate_activation="relu")
    assert (layer.units, layer.grad_clip_norm) == (4, 0.5)
    assert layer.candidate_activation is keras.activations.relu
    with pytest.raises(AttributeError, match="`grad_clip_norm` belongs to the cell of 'gated_rnn'"):
        layer.grad_clip_norm = 0.1
    with pytest.raises(AttributeError, match="'GatedRNN' object has no attribute 'unitss'"):
        _ = layer.unitss


@pytest.mark.skipif(BACKEND != "jax", reason="the engine of JAX")
@pytest.mark.parametrize("cell", ["gru", "lstm"])
@pytest.mark.parametrize("time", [3, 30])
def test_several_steps_of_a_turn_compute_the_same(cell, time, rng, monkeypatch):
    import jax

    x = rng.normal(size=(4, time, 3)).astype("float32")

    def new():
        layer = kg.GatedRNN(5, cell=cell, candidate_activation="softsign", backprop="auto")
        layer.build(x.shape)
        return layer

    layer = new()
    weights = [v.value for v in layer.trainable_variables]
    others = [v.value for v in layer.non_trainable_variables]

    def loss(weights, x):
        return jax.numpy.sum(layer.stateless_call(weights, others, x)[0] ** 2)

    def compiled():
        return jax.jit(jax.value_and_grad(lambda *given: loss(*given), argnums=(0, 1)))

    each = compiled()(weights, x)
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    layer = new()
    turns = compiled()
    assert "unroll=8" in str(jax.make_jaxpr(jax.grad(loss))(weights, x))
    for one, other in zip(jax.tree.leaves(each), jax.tree.leaves(turns(weights, x)), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)


@pytest.mark.skipif(BACKEND != "jax", reason="transformations of JAX")
@pytest.mark.parametrize("cell", ["gru", "lstm"])
def test_transformations_of_jax(cell, rng, backprop):
    """Third derivatives, gradients of each sequence of a batch, and the same compiled."""
    import jax

    layers = [
        kg.GatedRNN(5, cell=cell, return_sequences=True, backprop=b) for b in (backprop, "autodiff")
    ]
    x = rng.normal(size=(4, 6, 3)).astype("float32")
    found = []
    for layer in layers:
        layer.build(x.shape)
        layer.set_weights(layers[0].get_weights())
        others = [v.value for v in layer.non_trainable_variables]

        def loss(weights, x, layer=layer, others=others):
            return jax.numpy.sum(layer.stateless_call(weights, others, x)[0] ** 2)

        def length(weights, x, f=loss):
            return sum(jax.numpy.sum(g**2) for g in jax.tree.leaves(jax.grad(f)(weights, x)))

        def of_length(weights, x, f=length):
            return length(weights, x, f)

        weights = [v.value for v in layer.trainable_variables]
        each = jax.vmap(jax.grad(lambda w, x, f=loss: f(w, x[None])), (None, 0))
        values = [jax.grad(length)(weights, x), jax.grad(of_length)(weights, x), each(weights, x)]
        values += [jax.jit(jax.grad(length))(weights, x), jax.jit(each)(weights, x)]
        found.append(jax.tree.leaves(values))
    for one, other in zip(*found, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-3, atol=1e-4)


@pytest.mark.skipif(BACKEND == "jax", reason="Keras keeps no states in what JAX compiles")
@pytest.mark.parametrize("arguments", [{"cell": "gru", "activation_l1": 0.1}, {"cell": "lstm"}])
def test_training_with_states_equals_that_with_given_ones(arguments, rng):
    """On PyTorch states are set in place, and gradients need them as they were."""
    frames = keras.Input((TIME, FEATURES), batch_size=BATCH)
    ours = kg.GatedRNN(UNITS, stateful=True, **arguments)
    model = keras.Model(frames, ours(frames))
    layer = kg.GatedRNN(UNITS, return_state=True, **arguments)
    given = [keras.Input((UNITS,), batch_size=BATCH) for _ in ours.cell.state_names]
    output, *last = layer(frames, initial_state=given)
    stateless = keras.Model([frames, *given], output)
    states_after = keras.Model([frames, *given], last)
    layer.set_weights([rng.normal(size=w.shape) for w in layer.get_weights()])
    ours.set_weights(layer.get_weights())
    for one in (model, stateless):
        one.compile(keras.optimizers.SGD(0.5), "mse")
    states = [np.zeros((BATCH, UNITS), "float32") for _ in given]
    for _ in range(3):
        x = rng.normal(size=(BATCH, TIME, FEATURES)).astype("float32")
        y = rng.normal(size=(BATCH, UNITS)).astype("float32")
        after = keras.tree.flatten(states_after.predict([x, *states], verbose=0))
        loss = model.train_on_batch(x, y)
        np.testing.assert_allclose(loss, stateless.train_on_batch([x, *states], y), 1e-5)
        states = after
        for one, other in zip(ours.states, states, strict=True):
            np.testing.assert_allclose(ops.convert_to_numpy(one), other, 1e-5, 1e-5)
    for one, other in zip(ours.get_weights(), layer.get_weights(), strict=True):
        np.testing.assert_allclose(one, other, 1e-4, 1e-5)


class Wrapping(keras.layers.Layer):
    """A layer of one's own that says nothing of the shape of its outputs."""

    def __init__(self, inner):
        super().__init__()
        self.masking, self.inner = keras.layers.Masking(), inner

    def call(self, x):
        return self.inner(self.masking(x))


INNER = {
    "penalty": lambda: kg.GatedRNN(UNITS, activation_l1=0.1),
    "noise": lambda: kg.GatedRNN(UNITS, "lstm", return_sequences=True, dropout=0.2, zoneout=0.2),
    "start": lambda: kg.GatedRNN(UNITS, initial_state="learned", go_backwards=True),
    "both ways": lambda: keras.layers.Bidirectional(
        kg.GatedRNN(UNITS, "simple", return_sequences=True)
    ),
}


@pytest.mark.parametrize("name", INNER)
def test_in_a_layer_of_ones_own_with_any_batch_and_length(name, rng, backprop):
    """Keras finds its shapes by calling it with symbols of the backend, on JAX of dimensions."""
    every_other(backprop, (name, INNER))
    inner = INNER[name]()
    inputs = keras.Input((None, FEATURES))
    model = keras.Model(inputs, Wrapping(inner)(inputs))
    assert model.output_shape == inner.compute_output_shape((None, None, FEATURES))
    x = rng.normal(size=(BATCH, TIME, FEATURES)).astype("float32")
    x[:2, 3:] = 0
    found = model.predict(x, verbose=0)
    expected = inner(ops.convert_to_tensor(x), mask=ops.any(x != 0, axis=-1))
    np.testing.assert_allclose(found, ops.convert_to_numpy(expected), 1e-5, 1e-6)
    model.compile("sgd", "mse")
    model.fit(x, np.zeros_like(found), verbose=0)
