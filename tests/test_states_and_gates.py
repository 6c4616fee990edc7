"""States that are learned or reset for some samples, and gates as outputs."""

import keras
import numpy as np
import pytest
from helpers import BACKEND, MASK, built
from keras import ops

import keras_gates as kg
from keras_gates import checks

X = np.random.default_rng(1).normal(size=(*MASK.shape, 3)).astype("float32")
UNITS = 5


def sigmoid(v):
    return 1 / (1 + np.exp(-v))


# ---------------------------------------------------------------------- learned


@pytest.mark.parametrize("cell", ["gru", "lstm", "min_gru"])
@pytest.mark.parametrize("backprop", ["auto", "autodiff"])
def test_a_learned_state_is_an_initial_state_with_a_gradient(rng, cell, backprop):
    options = {"cell": cell, "backprop": backprop, "return_sequences": True, "dtype": "float32"}
    learned = built(rng, initial_state="learned", **options)
    assert [w.path.rpartition("/")[2] for w in learned.initial_states] == [
        f"initial_{name}_state" for name in learned.cell.state_names
    ]
    starts = [rng.normal(size=UNITS).astype("float32") for _ in learned.initial_states]
    for weight, value in zip(learned.initial_states, starts, strict=True):
        weight.assign(value)
    plain = kg.GatedRNN(UNITS, **options)
    plain.build(X.shape)
    plain.cell.set_weights(learned.cell.get_weights())
    given = [np.tile(value, (len(X), 1)) for value in starts]

    def loss(outputs):
        return ops.sum(outputs[0] * ops.cos(outputs[0]))

    expected, (_, *d_states), _ = checks.gradients(plain, [X, *given], loss, MASK)
    found, _, d_weights = checks.gradients(learned, [X], loss, MASK)
    np.testing.assert_allclose(found, expected, atol=1e-6)
    by_id = dict(zip(map(id, learned.trainable_weights), d_weights, strict=True))
    for weight, d_state in zip(learned.initial_states, d_states, strict=True):
        np.testing.assert_allclose(by_id[id(weight)], d_state.sum(axis=0), atol=2e-5)


def test_a_learned_state_trains_and_is_saved(rng, tmp_path):
    layer = kg.GatedRNN(UNITS, "lstm", initial_state="learned", name="rnn")
    model = keras.Sequential([keras.Input((None, 3)), layer, keras.layers.Dense(1)])
    model.compile("adam", "mse")
    model.fit(X, np.ones((len(X), 1)), epochs=2, verbose=0)
    assert all(np.any(ops.convert_to_numpy(weight)) for weight in layer.initial_states)
    model.save(tmp_path / "model.keras")
    again = keras.models.load_model(tmp_path / "model.keras")
    np.testing.assert_allclose(again.predict(X, verbose=0), model.predict(X, verbose=0), atol=1e-6)
    assert again.get_layer("rnn").initial_state == "learned"
    # Of a layer that is told where to start it is left aside.
    zeros = [np.zeros((len(X), UNITS), "float32")] * 2
    with_zeros = layer(X, initial_state=zeros)
    assert np.abs(ops.convert_to_numpy(layer(X) - with_zeros)).max() > 1e-6


def test_bad_initial_states():
    with pytest.raises(ValueError, match="`initial_state` must be one of 'zeros', 'learned'"):
        kg.GatedRNN(4, initial_state="lerned")
    instead = "A stateful layer starts.*stateful=True. Keep .*stateful=False.*reset_state\\(values"
    with pytest.raises(ValueError, match=instead):
        kg.GatedRNN(4, initial_state="learned", stateful=True)


@pytest.mark.slow
@pytest.mark.skipif(BACKEND != "tensorflow", reason="exports are TensorFlow's")
def test_a_learned_state_is_exported(rng, tmp_path):
    layer = built(rng, cell="lstm", initial_state="learned", dtype="float32")
    for weight in layer.initial_states:
        weight.assign(rng.normal(size=UNITS))
    model = keras.Sequential([keras.Input((None, 3), name="x"), layer])
    report = kg.export(model, tmp_path / "served", streaming=True)
    assert report.difference.relative < 1e-5


# ---------------------------------------------------------------------- reset


def test_the_states_of_some_samples_are_reset(rng):
    layer = built(rng, cell="lstm", stateful=True, batch=4, dtype="float32")
    x = X[:4]
    layer(x)
    before = [np.array(ops.convert_to_numpy(state)) for state in layer.states]
    layer.reset_state(rows=[1, -1])
    for state, old in zip(layer.states, before, strict=True):
        state = ops.convert_to_numpy(state)
        assert not state[[1, 3]].any()
        np.testing.assert_array_equal(state[[0, 2]], old[[0, 2]])
    fresh = built(rng, cell="lstm", dtype="float32")
    fresh.set_weights(layer.get_weights())
    np.testing.assert_allclose(
        ops.convert_to_numpy(layer(x))[[1, 3]], ops.convert_to_numpy(fresh(x))[[1, 3]], atol=1e-6
    )
    values = [rng.normal(size=(2, UNITS)).astype("float32") for _ in range(2)]
    layer.reset_state(values, rows=np.array([False, False, True, True]))
    for state, value in zip(layer.states, values, strict=True):
        np.testing.assert_array_equal(ops.convert_to_numpy(state)[2:], value)
    layer.reset_state(rows=[])
    np.testing.assert_array_equal(ops.convert_to_numpy(layer.states[0])[2:], values[0])
    layer.reset_state()
    assert not any(ops.convert_to_numpy(state).any() for state in layer.states)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"rows": [4]}, r"`rows` must be indices of the 4 samples, none twice.*rows=\[4\]"),
        ({"rows": [1, 1]}, "none twice"),
        ({"rows": "a"}, "`rows` must be indices.*rows='a'"),
        ({"rows": [0.5]}, "`rows` must be indices"),
        ({"values": [np.zeros((4, 5))]}, r"`values` must be 2 array\(s\) \(hidden, cell\)"),
        ({"values": [np.zeros((4, 5))] * 2, "rows": [1]}, r"of shape \(1, 5\). Received: shapes"),
    ],
)
def test_bad_resets(rng, given, message):
    layer = built(rng, cell="lstm", stateful=True, batch=4, dtype="float32")
    with pytest.raises(ValueError, match=message):
        layer.reset_state(**given)


def test_a_layer_without_states_has_none_to_reset():
    layer = kg.GatedRNN(4)
    layer.reset_state()
    with pytest.raises(ValueError, match="has no states to reset"):
        layer.reset_state(rows=[0])


# ---------------------------------------------------------------------- gates


def test_gates_are_those_of_the_equations(rng):
    layer = built(rng, return_gates=True, return_sequences=True, dtype="float64", reset_after=False)
    outputs, found = layer(X)
    assert list(found) == ["update", "reset", "candidate"]
    kernel, recurrent, bias = layer.get_weights()
    h = np.zeros((len(X), UNITS))
    for t in range(X.shape[1]):
        x_z, x_r, x_n = np.split(X[:, t] @ kernel + bias, 3, axis=1)
        u_z, u_r, u_n = np.split(recurrent, 3, axis=1)
        z, r = sigmoid(x_z + h @ u_z), sigmoid(x_r + h @ u_r)
        n = np.tanh(x_n + (r * h) @ u_n)
        h = z * h + (1 - z) * n
        for name, value in (("update", z), ("reset", r), ("candidate", n)):
            np.testing.assert_allclose(found[name][:, t], value, atol=1e-6)
        np.testing.assert_allclose(outputs[:, t], h, atol=1e-6)


@pytest.mark.parametrize("cell", ["gru", "lstm", "simple", "janet"])
def test_the_other_outputs_stay_and_gradients_flow_through_gates(rng, cell):
    options = {"cell": cell, "return_state": True, "activation_l1": 0.1, "dtype": "float32"}
    layer, plain = (built(rng, return_gates=given, **options) for given in (True, False))
    plain.set_weights(layer.get_weights())
    outputs, expected = layer(X, mask=MASK), plain(X, mask=MASK)
    assert len(outputs) == len(expected) + 1
    for one, other in zip(outputs, expected, strict=False):
        np.testing.assert_allclose(one, other, atol=1e-6)
    np.testing.assert_allclose(layer.losses[0], plain.losses[0], rtol=1e-5)

    def loss(outputs):
        return sum(ops.mean(gate * gate) for gate in outputs[-1].values())

    _, (d_x,), d_weights = checks.gradients(layer, [X], loss)
    direction, step = rng.normal(size=X.shape).astype("float32"), 1e-2
    up, down = (
        float(loss(layer(X + sign * step * direction)) + sum(layer.losses)) for sign in (1, -1)
    )
    assert (d_x * direction).sum() == pytest.approx((up - down) / (2 * step), rel=0.02, abs=0.01)
    assert all(np.any(d) for d in d_weights)


@pytest.mark.skipif(BACKEND != "tensorflow", reason="gradients are TensorFlow's")
def test_a_model_trains_on_its_gates(rng, tmp_path):
    x = keras.Input((None, 3))
    masked = keras.layers.Masking()(x)
    h, gates = kg.GatedRNN(UNITS, return_gates=True, name="rnn")(masked)
    assert gates["update"].shape == (None, None, UNITS)
    open_share = keras.layers.GlobalAveragePooling1D()(gates["update"])
    model = keras.Model(x, [keras.layers.Dense(1)(h), open_share])
    model.compile("adam", ["mse", "mse"])
    assert "return_gates=True" in model.get_layer("rnn").explain()
    model.fit(X, [np.zeros((len(X), 1)), np.ones((len(X), UNITS))], epochs=2, verbose=0)
    model.save(tmp_path / "model.keras")
    again = keras.models.load_model(tmp_path / "model.keras")
    for one, other in zip(again.predict(X, verbose=0), model.predict(X, verbose=0), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-6)
    found = kg.diagnose(model, X, [np.zeros((len(X), 1)), np.ones((len(X), UNITS))], lyapunov=False)
    mean = np.mean([g.mean for g in [found.layers[0].gates["update"]]])
    assert mean == pytest.approx(float(ops.mean(model.predict(X, verbose=0)[1])), abs=0.05)


@pytest.mark.parametrize("merge_mode", ["concat", None])
def test_gates_of_both_directions(rng, merge_mode):
    options = {"return_gates": True, "return_state": True, "dtype": "float32"}
    wrapped = keras.layers.Bidirectional(built(rng, **options), merge_mode=merge_mode)
    symbolic = wrapped(keras.Input(X.shape[1:]))
    found = wrapped(X, mask=MASK)
    for one, other in zip(keras.tree.flatten(symbolic), keras.tree.flatten(found), strict=True):
        assert tuple(one.shape)[1:] == tuple(other.shape)[1:]
    for inner, expected in (
        (wrapped.forward_layer, found[-4:-2]), (wrapped.backward_layer, found[-2:]),
    ):  # fmt: skip
        alone = built(rng, go_backwards=inner.go_backwards, **options)
        alone.set_weights(inner.get_weights())
        _, *given = alone(X, mask=MASK)
        for one, other in zip(keras.tree.flatten(given), keras.tree.flatten(expected), strict=True):
            np.testing.assert_allclose(one, other, atol=1e-6)


@pytest.mark.parametrize("symbolic", [False, True])
def test_wrappers_that_have_no_place_for_gates_say_what_to_do(symbolic):
    def wrapped(make, outer=(), **arguments):
        layer = make(kg.GatedRNN(4, name="rnn", **arguments))
        return layer(keras.Input((*outer, 9, 3)) if symbolic else np.zeros((2, *outer, 9, 3)))

    with pytest.raises(ValueError, match="return_gates=True, return_state=False. Give it return_s"):
        wrapped(keras.layers.Bidirectional, return_gates=True)
    for given in ("return_gates", "return_state"):
        with pytest.raises(ValueError, match=f"Received: 'rnn' with {given}=True. Call the layer"):
            wrapped(keras.layers.TimeDistributed, (5,), **{given: True})

    def both(layer):
        return keras.layers.TimeDistributed(keras.layers.Bidirectional(layer))

    with pytest.raises(ValueError, match="TimeDistributed takes a layer with one output"):
        wrapped(both, (5,), return_gates=True, return_state=True)

    def model(layer):  # a model in between uses them up
        x = keras.Input((9, 3))
        h, state = layer(x)
        return keras.layers.TimeDistributed(keras.Model(x, h + state))

    assert tuple(wrapped(model, (5,), return_state=True).shape)[1:] == (5, 4)


@pytest.mark.slow
@pytest.mark.skipif(BACKEND != "tensorflow", reason="exports are TensorFlow's")
def test_gates_are_exported(rng, tmp_path):
    x = keras.Input((None, 3))
    h, gates = kg.GatedRNN(UNITS, return_gates=True)(x)
    report = kg.export(keras.Model(x, [h, gates["reset"]]), tmp_path / "served")
    assert report.difference.relative < 1e-5


def test_a_cell_that_leaves_a_gate_out_says_so():
    class Lazy(kg.GatedCell):
        blocks = ("update", "candidate")

        def update(self, x, u, states):
            return (self.candidate(x.candidate + u.candidate),)

    with pytest.raises(
        ValueError, match="`return_gates` returns update, candidate, and .*'update'"
    ):
        kg.GatedRNN(4, Lazy, return_gates=True)(X)
