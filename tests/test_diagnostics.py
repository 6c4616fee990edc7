"""Figures against NumPy and the reference; planted faults are found where they were planted."""

import json
import math
import sys
import types

import helpers
import keras
import numpy as np
import pytest
import reference
from helpers import BATCH, CASES, FEATURES, MASK, TIME, UNITS
from keras import ops

import keras_gates as kg
from keras_gates.diagnostics import (
    Diagnosis,
    diagnose,
    figures,
    findings,
    locate_nonfinite,
    lyapunov,
    trace,
)

TENSORFLOW = helpers.BACKEND == "tensorflow"
pytestmark = pytest.mark.filterwarnings("ignore::keras_gates.UnstableActivationsWarning")
needs_gradients = pytest.mark.skipif(not TENSORFLOW, reason="gradients are for TensorFlow")

# Where the reference keeps gates and candidate among what it saves of a step.
SAVED = {
    "gru": {"update": 6, "reset": 7, "candidate": 8},
    "lstm": {"input": 4, "forget": 5, "candidate": 6, "output": 7},
    "simple": {},
}


def sequences(rng, batch=BATCH, time=TIME, features=FEATURES):
    return rng.normal(size=(batch, time, features)).astype("float32")


def model_of(layer, *behind, mask=False, loss="mse"):
    """A compiled model around a layer. With `mask`, steps of zeros are masked."""
    masking = [keras.layers.Masking()] if mask else []
    model = keras.Sequential([keras.Input((None, FEATURES)), *masking, layer, *behind])
    model.compile("sgd", loss)
    return model


def dense(rng, units=2):
    layer = keras.layers.Dense(units)
    layer.build((None, UNITS))
    layer.set_weights([rng.normal(size=w.shape) for w in layer.get_weights()])
    return layer


def followed(case, layer, x, mask=None, clip=None):
    """The reference after its forward pass over `x`, and its hidden states in reading order."""
    cell = CASES[case][1](helpers.weights_of(layer), clip)
    loop = reference.Sequence(cell, go_backwards=layer.go_backwards)
    loop.forward(x.astype("float64"), mask)
    hidden = np.stack([cell.forward(s[0], s[1 : 1 + cell.states])[0][0] for *_, s in loop.saved], 1)
    return loop, hidden


# ---------------------------------------------------------------------- forward figures


@pytest.mark.parametrize("backwards", [False, True])
@pytest.mark.parametrize("case", CASES)
def test_figures_of_gates_candidate_and_states(rng, case, backwards):
    layer = helpers.built(rng, dtype="float32", scale=1.5, go_backwards=backwards, **CASES[case][0])
    x = sequences(rng)
    x[~MASK] = 0
    margin = 0.1
    result = diagnose(model_of(layer, mask=True), x, margin=margin, batch_size=4, lyapunov=False)
    (found,) = result.layers
    loop, hidden = followed(case, layer, x, MASK)
    valid = MASK[:, ::-1] if backwards else MASK
    kind = case.split("_")[0]
    assert found.pairs == MASK.sum()
    assert list(found.gates) == [name for name in layer.cell.blocks if name != "candidate"]
    for name, place in SAVED[kind].items():
        values = np.stack([saved[place] for *_, saved in loop.saved], 1)[valid]
        figures = found.candidate if name == "candidate" else found.gates[name]
        expected = [values.mean(), *np.percentile(values, [5, 50, 95])]
        np.testing.assert_allclose(
            [figures.mean, figures.p5, figures.p50, figures.p95], expected, rtol=1e-4, atol=1e-5
        )
        if name == "candidate":
            assert figures.sparsity == pytest.approx((values == 0).mean(), abs=1e-9)
            continue
        tanh_like = layer.cell.gate_activations[name].__name__ in ("tanh", "softsign")
        lower, near = (-1, 2 * margin) if tanh_like else (0, margin)
        assert figures.saturated_low == pytest.approx((values <= lower + near).mean(), abs=0.005)
        assert figures.saturated_high == pytest.approx((values >= 1 - near).mean(), abs=0.005)
    state = found.states["hidden"]
    norms = np.linalg.norm(hidden, axis=-1)
    per_step = [norms[valid[:, t], t].mean() if valid[:, t].any() else np.nan for t in range(TIME)]
    np.testing.assert_allclose(state.norm_per_step, per_step, rtol=1e-4)
    assert state.norm == pytest.approx(norms[valid].mean(), rel=1e-4)
    assert state.largest == pytest.approx(np.abs(hidden[valid]).max(), rel=1e-4)
    assert state.sparsity == pytest.approx((hidden[valid] == 0).mean(), abs=1e-9)
    assert list(found.states) == list(layer.cell.state_names)


def test_share_of_the_state_at_its_bound(rng):
    layer = helpers.built(rng, dtype="float32", scale=2.0, cell="simple")
    x = sequences(rng)
    _, hidden = followed("simple", layer, x)
    (found,) = diagnose(model_of(layer), x, margin=0.02, lyapunov=False).layers
    expected = (np.abs(hidden) >= 1 - 0.04).mean()
    assert 0.1 < expected < 0.95
    assert found.states["hidden"].at_bound == pytest.approx(expected, abs=0.005)


@pytest.mark.parametrize(
    ("options", "bounded"),
    [
        ({"cell": "gru"}, True),
        ({"cell": "gru", "gate_activation": "tanh"}, False),
        ({"cell": "gru", "candidate_activation": "relu"}, False),
        ({"cell": "lstm"}, True),
        ({"cell": "lstm", "candidate_activation": "relu", "output_activation": "tanh"}, True),
        ({"cell": "lstm", "gate_activation": "relu"}, False),
    ],
)
def test_a_state_has_bounds_where_the_equations_give_it_some(rng, options, bounded):
    (found,) = diagnose(
        model_of(helpers.built(rng, dtype="float32", **options)), sequences(rng)
    ).layers
    assert (found.states["hidden"].at_bound is not None) == bounded
    if "cell" in found.states:
        assert found.states["cell"].at_bound is None
    for gate in found.gates.values():
        assert (gate.saturated_high is None) == (options.get("gate_activation") == "relu")
        assert gate.saturated_low is not None


def test_planted_dead_units_are_named(rng):
    layer = helpers.built(rng, dtype="float32", cell="gru", candidate_activation="relu")
    kernel, recurrent, bias = layer.get_weights()
    first = 2 * UNITS  # the columns of the candidate
    bias[0, first:] = [1, -1e3, 0.25, 1, -1e3]
    kernel[:, first + 2] = recurrent[:, first + 2] = bias[1, first + 2] = 0  # 0.25 for ever
    layer.set_weights([kernel, recurrent, bias])
    result = diagnose(model_of(layer), sequences(rng))
    assert result.layers[0].candidate.dead_units == [1, 2, 4]
    (found,) = [finding for finding in result.findings if "dead" in finding.what]
    assert found.severity == "warning"
    assert "3 of 5 units" in found.what


def test_padding_changes_no_figure(rng):
    layer = helpers.built(rng, dtype="float32", cell="lstm", activation_l1=0.1)
    model = model_of(layer, dense(rng), mask=True)
    x, y = sequences(rng), rng.normal(size=(BATCH, 2))
    x[~MASK] = 0
    padded = np.concatenate([np.zeros((BATCH, 2, FEATURES)), x, np.zeros((BATCH, 3, FEATURES))], 1)
    y = y if TENSORFLOW else None
    expected, found = (diagnose(model, inputs, y) for inputs in (x, padded))
    assert found.scalars().keys() == expected.scalars().keys()
    for name, value in expected.scalars().items():
        assert found.scalars()[name] == pytest.approx(value, rel=1e-4, abs=1e-6), name
    per_step = found.layers[0].states["hidden"].norm_per_step
    assert np.isnan(per_step[:2]).all()
    assert np.isnan(per_step[-3:]).all()
    np.testing.assert_allclose(
        per_step[2:-3], expected.layers[0].states["hidden"].norm_per_step, rtol=1e-5
    )


def test_forward_figures_do_not_depend_on_the_batches(rng, monkeypatch):
    model, x = model_of(helpers.built(rng, dtype="float32", cell="gru")), sequences(rng, batch=11)
    one, many = diagnose(model, x).scalars(), diagnose(model, x, batch_size=3).scalars()
    assert one == pytest.approx(many, rel=1e-5, abs=1e-6)
    monkeypatch.setattr(trace, "EAGER_STEPS", 0)  # in a graph
    y = np.ones((11, UNITS)) if TENSORFLOW else None
    compiled = diagnose(model, x, y, batch_size=3).scalars()
    assert {name: compiled[name] for name in one} == pytest.approx(one, rel=1e-5, abs=1e-6)


# ---------------------------------------------------------------------- in models


@pytest.mark.parametrize("mask", [False, True])
@pytest.mark.parametrize(
    "make",
    [
        lambda: keras.layers.GRU(UNITS, reset_after=False, recurrent_activation="hard_sigmoid"),
        lambda: keras.layers.GRU(UNITS, go_backwards=True),
        lambda: keras.layers.LSTM(UNITS, activation="softsign"),
        lambda: keras.layers.SimpleRNN(UNITS, activation=lambda a: ops.tanh(2 * a)),
        lambda: keras.layers.RNN(keras.layers.LSTMCell(UNITS)),
    ],
    ids=["gru", "gru_backwards", "lstm", "simple_lambda", "rnn_of_cell"],
)
@pytest.mark.filterwarnings("ignore:.*works for training.*")
def test_layers_of_keras_agree_with_their_gated_copies(rng, make, mask):
    layer = make()
    model = model_of(layer, dense(rng), mask=mask)
    layer.set_weights([rng.normal(size=w.shape) for w in layer.get_weights()])
    copy = kg.from_keras(layer)
    other = model_of(copy, model.layers[-1], mask=mask)
    x = sequences(rng)
    x[:, -2:] = 0
    y = rng.normal(size=(BATCH, 2)) if TENSORFLOW else None
    found, expected = diagnose(model, x, y).scalars(), diagnose(other, x, y).scalars()
    assert found == pytest.approx(expected, rel=1e-5, abs=1e-6)
    assert f"{layer.name}/hidden/norm" in found


def test_present_weights_count(rng):
    model = model_of(keras.layers.GRU(UNITS))
    tracer = trace.Tracer(model)
    x = sequences(rng)
    before = tracer(x).traces[0].states["hidden"]
    model.set_weights([rng.normal(size=w.shape) for w in model.get_weights()])
    after = tracer(x).traces[0].states["hidden"]
    assert np.abs(after - before).max() > 0.1
    helpers.assert_close(after[:, -1], model(x), 1e-5)


@pytest.mark.parametrize("kind", ["keras", "gated"])
def test_directions_of_a_bidirectional_layer_stand_alone(rng, kind):
    inner = keras.layers.LSTM(UNITS) if kind == "keras" else kg.GatedRNN(UNITS, cell="lstm")
    layer = keras.layers.Bidirectional(inner, name="both")
    model = model_of(layer, mask=True)
    model.set_weights([rng.normal(size=w.shape) for w in model.get_weights()])
    x = sequences(rng)
    x[~MASK] = 0
    found = diagnose(model, x)
    assert [each.name for each in found.layers] == [
        f"both/{layer.forward_layer.name}",
        f"both/{layer.backward_layer.name}",
    ]
    for each, direction in zip(
        found.layers, (layer.forward_layer, layer.backward_layer), strict=True
    ):
        alone = kg.GatedRNN(UNITS, cell="lstm", go_backwards=direction.go_backwards)
        alone.build(x.shape)
        alone.set_weights(direction.get_weights())
        (expected,) = diagnose(model_of(alone, mask=True), x).layers
        expected.name = each.name
        assert each.scalars() == pytest.approx(expected.scalars(), rel=1e-5, abs=1e-6)


def _embedded(rng):
    return keras.Sequential(
        [
            keras.Input((None,), dtype="int32"),
            keras.layers.Embedding(7, FEATURES, mask_zero=True),
            keras.layers.Bidirectional(keras.layers.GRU(4, return_sequences=True)),
            keras.layers.LSTM(5, go_backwards=True, return_sequences=True),
            kg.GatedRNN(6, zero_output_for_mask=True, return_sequences=True),
            kg.GatedRNN(3, candidate_l1=0.1),
        ]
    ), rng.integers(0, 3, size=(4, 6))


def _states_handed_on(rng):
    x = keras.Input((None, FEATURES))
    _, *state = keras.layers.LSTM(4, return_state=True, name="encoder")(x)
    y = kg.GatedRNN(4, cell="lstm", return_sequences=True, name="decoder")(x, initial_state=state)
    return keras.Model(x, keras.layers.TimeDistributed(keras.layers.Dense(2))(y)), sequences(rng)


def _stack(rng):
    stack = [keras.layers.GRUCell(4), keras.layers.LSTMCell(3), keras.layers.SimpleRNNCell(5)]
    x = keras.Input((None, FEATURES))
    y, *states = keras.layers.RNN(stack, return_state=True, name="stack")(keras.layers.Masking()(x))
    merged = keras.layers.Concatenate()([y, *keras.tree.flatten(states)])
    return keras.Model(x, merged), np.where(MASK[:, :, None], sequences(rng), 0)


def _nested(rng):
    inner = keras.Sequential(
        [keras.Input((None, FEATURES)), keras.layers.GRU(4, return_sequences=True, name="low")],
        name="inner",
    )
    x = keras.Input((None, FEATURES))
    shared = kg.GatedRNN(FEATURES, return_sequences=True, name="shared")
    once = keras.Model(x, keras.layers.GRU(3)(inner(shared(shared(x)))))
    return once, sequences(rng)


def _zeroed(rng):
    layer = kg.GatedRNN(4, return_sequences=True, zero_output_for_mask=True)
    model = keras.Sequential([keras.Input((None, FEATURES)), keras.layers.Masking(), layer])
    return model, np.where(MASK[:, :, None], sequences(rng), 0)


def _stateful(rng):
    model = keras.Sequential(
        [keras.Input(batch_shape=(BATCH, None, FEATURES)), kg.GatedRNN(4, stateful=True)]
    )
    model(sequences(rng))
    return model, sequences(rng)


@pytest.mark.parametrize(
    ("make", "names"),
    [
        (_embedded, None),
        (_states_handed_on, ["encoder", "decoder"]),
        (_stack, ["stack/0", "stack/1", "stack/2"]),
        (_nested, ["shared", "shared#2", "inner/low", "gru"]),
        (_zeroed, None),
        (_stateful, None),
    ],
    ids=["embedded", "states_handed_on", "stack", "nested", "zeroed", "stateful"],
)
def test_looking_runs_the_model_as_it_is_and_changes_nothing(rng, make, names):
    model, x = make(rng)
    model.set_weights([0.7 * rng.normal(size=w.shape) for w in model.get_weights()])
    for layer in model.layers:
        if getattr(layer, "stateful", False):
            layer.reset_state()
            model(x)
    variables = [np.array(v) for v in model.variables]
    tracer = trace.Tracer(model, everything=True)
    run = tracer(x)
    for variable, value in zip(model.variables, variables, strict=True):
        assert np.array_equal(variable, value), variable.path
    (output,) = run.calls[-1].outputs
    helpers.assert_close(output, model(x), 1e-5)
    for layer in model._flatten_layers():
        assert "call" not in vars(layer)
    result = diagnose(model, x)
    if names:
        assert [layer.name for layer in result.layers] == names
    assert len(result.layers) == len(run.traces)


class TwoInputs(keras.Model):
    """A subclassed model on a dict of inputs, with a cell of its own in keras.layers.RNN."""

    def __init__(self):
        super().__init__()
        self.recurrent = keras.layers.RNN(MinimalCell(UNITS), name="minimal")
        self.head = keras.layers.Dense(1)

    def call(self, inputs):
        return self.head(self.recurrent(inputs["sequence"])) + inputs["offset"]


class MinimalCell(kg.GatedCell):
    """f = σ(x W_f + b_f + h U_f); n = φ(x W_n + b_n + (f * h) U_n); h' = (1 - f) h + f n"""

    blocks = ("forget", "candidate")
    projected_blocks = ("forget",)

    def update(self, x, u, states):
        (h,) = states
        f = self.gate("forget", x.forget + u.forget)
        n = self.candidate(x.candidate + self.recurrent("candidate", f * h))
        return ((1 - f) * h + f * n,)


def test_a_cell_of_ones_own_in_a_subclassed_model(rng):
    x = {"sequence": sequences(rng), "offset": np.ones((BATCH, 1), "float32")}
    model = TwoInputs()
    model(x)
    model.compile("sgd", "mse")
    model.set_weights([rng.normal(size=w.shape) for w in model.get_weights()])
    y = np.zeros((BATCH, 1)) if TENSORFLOW else None
    (found,) = diagnose(model, x, y).layers
    kernel, recurrent, bias = (np.asarray(w, "float64") for w in model.recurrent.get_weights())
    h, gates = np.zeros((BATCH, UNITS)), []
    for t in range(TIME):
        a = x["sequence"][:, t] @ kernel + bias
        f = reference.sigmoid(a[:, :UNITS] + h @ recurrent[:, :UNITS])
        n = np.tanh(a[:, UNITS:] + (f * h) @ recurrent[:, UNITS:])
        h = (1 - f) * h + f * n
        gates.append(f)
    assert (found.name, found.cell, list(found.gates)) == ("minimal", "MinimalCell", ["forget"])
    assert found.gates["forget"].mean == pytest.approx(np.mean(gates), rel=1e-4)
    assert found.gates["forget"].saturated_high == pytest.approx(
        np.mean(np.array(gates) >= 0.95), abs=1e-3
    )
    assert found.states["hidden"].norm_per_step[-1] == pytest.approx(
        np.linalg.norm(h, axis=1).mean(), rel=1e-4
    )
    assert found.states["hidden"].at_bound is None


@pytest.mark.parametrize("dtype", ["mixed_bfloat16", "float16"])
def test_half_precision(rng, dtype):
    x = sequences(rng)
    y = np.zeros((BATCH, UNITS)) if TENSORFLOW else None
    layer = helpers.built(rng, dtype="float32", cell="lstm")
    half = kg.GatedRNN(UNITS, cell="lstm", dtype=dtype, name=layer.name)
    half.build(x.shape)
    half.set_weights(layer.get_weights())
    found, expected = (diagnose(model_of(each), x, y).scalars() for each in (half, layer))
    assert found.pop(f"{layer.name}/lyapunov", None) is None  # too coarse to be measured
    assert f"{layer.name}/hidden/norm" in found
    for name, value in found.items():
        assert value == pytest.approx(expected[name], rel=0.1, abs=0.03), name


def test_a_stateful_layer_is_looked_at_in_its_own_batches(rng):
    model, x = _stateful(rng)
    twice = np.concatenate([x, x])
    states = diagnose(model, twice).layers[0].states["hidden"]
    assert states.norm == pytest.approx(diagnose(model, x).layers[0].states["hidden"].norm)
    with pytest.raises(ValueError, match=f"multiple of {BATCH} samples.*Received: 7"):
        diagnose(model, twice[:7])


# ---------------------------------------------------------------------- gradients


def _arriving(loop, d_last, d_hidden=0.0):
    """dL/dh_t before it is clipped at t, (samples, time, units) in reading order, by hand."""
    cell = loop.cell
    d_states = [d_last, *[np.zeros_like(d_last) for _ in range(cell.states - 1)]]
    found = []
    for _, m, saved in reversed(loop.saved):
        new = cell.forward(saved[0], saved[1 : 1 + cell.states])[0]
        into = [np.where(m, d, 0) for d in d_states]
        into[0] = into[0] + np.where(m, d_hidden * np.sign(new[0]), 0)
        found.insert(0, into[0])
        _, before, _ = cell.backward(into, saved)
        d_states = [np.where(m, 0, d) + b for d, b in zip(d_states, before, strict=True)]
    return np.stack(found, axis=1)


@needs_gradients
@pytest.mark.parametrize(
    ("clip", "backwards"), [({}, False), ({"norm": 0.12}, True), ({"value": 0.06}, False)]
)
@pytest.mark.parametrize("case", ["gru", "lstm_three_activations", "simple"])
def test_gradient_norms_against_bptt_by_hand(rng, case, clip, backwards):
    options = {f"grad_clip_{name}": bound for name, bound in clip.items()}
    layer = helpers.built(
        rng,
        dtype="float32",
        scale=0.9,
        go_backwards=backwards,
        activation_l1=0.3,
        **options,
        **CASES[case][0],
    )
    top = dense(rng)
    model = model_of(layer, top, mask=True)
    x, y = sequences(rng), rng.normal(size=(BATCH, 2))
    x[~MASK] = 0
    (found,) = diagnose(model, x, y, lyapunov=False).layers

    loop, _ = followed(case, layer, x, MASK, reference.Clip(**clip))
    valid = MASK[:, ::-1] if backwards else MASK
    kernel = np.asarray(top.get_weights()[0], "float64")
    d_output = 2 * (np.asarray(model(x), "float64") - y) / y.size
    d = _arriving(loop, d_output @ kernel.T, 0.3 / MASK.sum())
    norms = np.linalg.norm(d, axis=-1)
    per_step = np.array([norms[valid[:, t], t].mean() for t in range(TIME)])
    gradient = found.gradient
    np.testing.assert_allclose(gradient.norm_per_step, per_step, rtol=2e-4, atol=1e-6)
    assert gradient.largest == pytest.approx(norms[valid].max(), rel=2e-4)
    weights = np.sqrt(valid.sum(axis=0))  # np.polyfit squares them
    slope = np.polyfit(np.arange(TIME), np.log(per_step), 1, w=weights)[0]
    assert gradient.log_slope == pytest.approx(-slope, rel=1e-3, abs=1e-4)
    if not clip:
        assert gradient.clipped is None
    else:
        acts = norms > clip["norm"] if "norm" in clip else (np.abs(d) > clip["value"]).any(-1)
        expected = acts[valid].mean()
        assert 0 < expected < 1
        assert gradient.clipped == pytest.approx(expected)


@needs_gradients
def test_gradients_reach_every_layer_of_a_model(rng):
    """dL/dh_t of a lower layer, by finite differences of the loss in its output."""
    lower = kg.GatedRNN(4, return_sequences=True, name="lower")
    upper = keras.layers.LSTM(3, return_sequences=True)
    model = model_of(lower, upper, keras.layers.Dense(1))
    model.set_weights([0.8 * rng.normal(size=w.shape) for w in model.get_weights()])
    x, y = sequences(rng, batch=2, time=4), rng.normal(size=(2, 4, 1)).astype("float32")
    (found,) = [t for t in trace.Tracer(model, gradients=True)(x, y).traces if t.name == "lower"]
    hidden = found.states["hidden"].astype("float64")
    t, step = 3, 1e-2  # the last step: nothing flows on inside `lower`
    direct = np.zeros((2, 4))
    for index in np.ndindex(2, 4):
        losses = []
        for sign in (1, -1):
            moved = hidden.copy()
            moved[index[0], t, index[1]] += sign * step
            out = np.asarray(model.layers[2](model.layers[1](moved.astype("float32"))))
            losses.append(((out - y) ** 2).mean())
        direct[index] = (losses[0] - losses[1]) / (2 * step)
    np.testing.assert_allclose(found.gradient[:, t], direct, rtol=1e-2, atol=1e-4)


@needs_gradients
def test_clipping_that_acts_everywhere_is_found(rng):
    options = {"grad_clip_norm": 1e-9, "return_sequences": True}
    layer = helpers.built(rng, dtype="float32", cell="simple", **options)
    result = diagnose(model_of(layer), sequences(rng), np.ones((BATCH, TIME, UNITS)))
    assert result.layers[0].gradient.clipped == 1
    assert any("clipping acts on 100%" in finding.what for finding in result.findings)


@needs_gradients
def test_clipping_at_the_preactivation_has_no_share(rng):
    options = {"grad_clip_norm": 1e-3, "grad_clip_at": "preactivation"}
    layer = helpers.built(rng, dtype="float32", cell="gru", **options)
    (found,) = diagnose(model_of(layer), sequences(rng), np.zeros((BATCH, UNITS))).layers
    assert found.gradient.clipped is None


@pytest.mark.skipif(TENSORFLOW, reason="TensorFlow has gradients")
def test_gradients_elsewhere_are_refused(rng):
    model = model_of(helpers.built(rng, dtype="float32", cell="gru"))
    with pytest.raises(NotImplementedError, match=helpers.BACKEND):
        diagnose(model, sequences(rng), np.zeros((BATCH, UNITS)))


# ---------------------------------------------------------------------- Lyapunov exponent


@pytest.mark.parametrize("largest", [0.6, 1.25])
def test_lyapunov_exponent_of_a_linear_recurrence(rng, largest):
    """It is the log of the largest |eigenvalue|, whatever the input."""
    layer = kg.GatedRNN(4, cell="simple", candidate_activation="linear")
    layer.build((None, None, FEATURES))
    basis = rng.normal(size=(4, 4)) + 2 * np.eye(4)
    recurrent = basis @ np.diag([-largest, 0.4, 0.2, -0.1]) @ np.linalg.inv(basis)
    kernel, _, bias = layer.get_weights()
    layer.set_weights([kernel, recurrent, bias])
    x = sequences(rng, batch=3, time=100)
    (found,) = diagnose(model_of(layer, mask=True), x).layers
    assert found.lyapunov == pytest.approx(math.log(largest), abs=2e-3)
    x[0, 5:15] = x[1, -20:] = 0  # masked
    (found,) = diagnose(model_of(layer, mask=True), x).layers
    assert found.lyapunov == pytest.approx(math.log(largest), abs=2e-3)


def test_lyapunov_exponent_is_a_mean_over_settled_valid_steps():
    growth = np.array([[9.0, np.nan, 1, 2, 3, 4], [9.0, 5, 6, 7, 8, np.nan]])
    valid = ~np.isnan(growth)
    assert lyapunov.exponent(growth, valid) == pytest.approx(np.mean([1, 2, 3, 4, 5, 6, 7, 8]))
    assert lyapunov.exponent(growth[:, :1], valid[:, :1]) == 9
    assert lyapunov.exponent(growth, np.zeros_like(valid)) is None


def test_lyapunov_exponent_against_jacobians(rng):
    """An LSTM's, with the Jacobians of the reference by finite differences in float64."""
    layer = helpers.built(rng, dtype="float32", scale=1.2, cell="lstm")
    x = sequences(rng, batch=2, time=30)
    cell = reference.LSTM(helpers.weights_of(layer))
    exponents = []
    for sample in x.astype("float64"):
        states = [np.zeros((1, UNITS)), np.zeros((1, UNITS))]
        v = rng.normal(size=2 * UNITS)
        logs = []
        for inputs in sample:

            def step(flat, inputs=inputs):
                new, *_ = cell.forward(inputs[None], np.split(flat[None], 2, axis=1))
                return np.concatenate(new, axis=1)[0]

            flat = np.concatenate(states, axis=1)[0]
            v /= np.linalg.norm(v)
            v = (step(flat + 1e-6 * v) - step(flat - 1e-6 * v)) / 2e-6
            logs.append(math.log(np.linalg.norm(v)))
            states = np.split(step(flat)[None], 2, axis=1)
        exponents.append(np.mean(logs[6:]))
    (found,) = diagnose(model_of(layer), x).layers
    # The tangent vectors begin in another direction.
    assert found.lyapunov == pytest.approx(np.mean(exponents), abs=0.03)
    assert diagnose(model_of(layer), x, lyapunov=False).layers[0].lyapunov is None


# ---------------------------------------------------------------------- findings and report


def planted(rng, **changes):
    """What a GRU is found to be when its weights are planted: from a part to (bias, scale)."""
    options = {k: changes.pop(k) for k in [*changes] if k in kg.GRUCell.options()}
    layer = helpers.built(rng, dtype="float32", cell="gru", scale=0.3, **options)
    kernel, recurrent, bias = layer.get_weights()
    for part, (value, scale) in changes.items():
        columns = slice(*(UNITS * (layer.cell.blocks.index(part) + i) for i in (0, 1)))
        bias[0, columns] += value
        kernel[:, columns] *= scale
        recurrent[:, columns] *= scale
    layer.set_weights([kernel, recurrent, bias])
    return diagnose(model_of(layer), sequences(rng, time=24))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"update": (6, 0.1)}, "update gate is saturated at its high end"),
        ({"reset": (-6, 0.1)}, "reset gate is saturated at its low end"),
        ({"gate_activation": {"reset": "tanh"}}, "reset gate is negative"),
        ({"gate_activation": {"reset": "relu"}, "reset": (2, 1)}, "reset gate exceeds 1"),
        ({"update": (0, 0.01)}, "neither near 0 nor near 1: update"),
        ({"candidate_activation": "relu", "candidate": (-0.9, 1)}, "candidate's values are zero"),
        ({"candidate": (6, 0.1), "update": (-6, 0.1)}, "the hidden state is at its bound"),
        (
            {"gate_activation": {"update": "relu"}, "update": (1.3, 0.0)},
            "hidden state grows with time",
        ),
        ({"gate_activation": {"update": "relu"}, "update": (1.5, 0.0)}, "a difference doubles"),
        ({"update": (-6, 0.1), "candidate": (0, 0.1)}, "Lyapunov exponent is -"),
    ],
)
def test_planted_faults_are_found(rng, changes, said):
    plain = [finding.what for finding in planted(rng).findings]
    found = planted(rng, **changes).findings
    assert any(said in finding.what for finding in found), "\n".join(map(str, found))
    if said not in ("neither near 0 nor near 1: update", "Lyapunov exponent is -"):
        assert not any(said in what for what in plain)


@needs_gradients
@pytest.mark.parametrize(
    ("eigenvalue", "said"),
    [(0.5, "vanishes: by a factor of 0.5"), (2.0, "explodes: by a factor of 2")],
)
def test_vanishing_and_exploding_gradients_are_found(rng, eigenvalue, said):
    layer = kg.GatedRNN(UNITS, cell="simple", candidate_activation="linear")
    layer.build((None, None, FEATURES))
    kernel, _, bias = layer.get_weights()
    layer.set_weights([kernel, eigenvalue * np.eye(UNITS), bias])
    x = sequences(rng, time=30)
    result = diagnose(model_of(layer), x, np.zeros((BATCH, UNITS)))
    assert math.exp(result.layers[0].gradient.log_slope) == pytest.approx(eigenvalue, rel=1e-3)
    assert any(said in finding.what for finding in result.findings), result


@needs_gradients
def test_a_gradient_that_is_uneven_from_above_is_no_finding(rng):
    """The layer behind forgets, so that the first steps of the backward direction get little."""
    inner = kg.GatedRNN(UNITS, cell="simple", return_sequences=True, go_backwards=True, name="back")
    below = keras.layers.Lambda(lambda h: h[:, ::-1])
    model = model_of(inner, below, keras.layers.SimpleRNN(UNITS, name="top"))
    for name in ("back", "top"):
        cell = model.get_layer(name).cell
        cell.recurrent_kernel.assign(0.5 * np.eye(UNITS))
    x = sequences(rng, time=24)
    result = diagnose(model, x, np.zeros((BATCH, UNITS)))
    assert result.layers[0].gradient.log_slope > 0.5
    said = [(f.layer, f.what) for f in result.findings if "gradient" in f.what]
    assert [layer for layer, what in said if "vanishes" in what] == ["top"]
    assert not any("explodes" in what for _, what in said)


def test_findings_are_sorted_and_name_the_layer(rng):
    layer = helpers.built(rng, dtype="float32", cell="gru", name="broken")
    weights = layer.get_weights()
    weights[2][0, 0] = np.nan
    layer.set_weights(weights)
    result = diagnose(model_of(layer), sequences(rng))
    severities = [findings.SEVERITIES.index(finding.severity) for finding in result.findings]
    assert severities == sorted(severities)
    assert result.findings[0].severity == "error"
    assert "locate_nonfinite" in result.findings[0].advice
    assert {finding.layer for finding in result.findings} == {"broken"}
    assert result.layers[0].nonfinite > 0


def test_what_cannot_be_looked_into_is_said(rng):
    class Own(keras.layers.Layer):
        state_size = output_size = 2

        def call(self, inputs, states):
            return inputs[:, :2], states

    model = keras.Sequential(
        [
            keras.Input((None, FEATURES)),
            keras.layers.RNN(Own(), return_sequences=True, name="own"),
            kg.GatedRNN(3),
        ]
    )
    result = diagnose(model, sequences(rng))
    assert len(result.layers) == 1
    assert any(f.layer == "own" and "its cell Own" in f.what for f in result.findings)
    with pytest.raises(ValueError, match="must have a recurrent layer.*'own' is left out.*Own"):
        diagnose(keras.Sequential([keras.Input((None, FEATURES)), model.layers[0]]), sequences(rng))


def test_report_as_text_and_as_data(rng):
    layer = helpers.built(rng, dtype="float32", cell="lstm", name="memory")
    y = np.zeros((BATCH, UNITS)) if TENSORFLOW else None
    result = diagnose(model_of(layer), sequences(rng), y)
    text = str(result)
    for word in ("memory", "LSTMCell", "forget", "candidate", "hidden", "cell", "Lyapunov"):
        assert word in text
    assert f"{result.layers[0].gates['forget'].mean:.3g}" in text
    assert text.index("Lyapunov") < text.index("Findings")
    plain = json.loads(json.dumps(result.to_dict(), allow_nan=False))
    assert plain["layers"][0]["gates"]["forget"]["p50"] == result.layers[0].gates["forget"].p50
    assert len(plain["layers"][0]["states"]["cell"]["norm_per_step"]) == TIME
    assert (plain["layers"][0]["gradient"] is None) == (y is None)


def test_data_of_a_diagnosis_that_is_not_finite_are_still_json():
    result = Diagnosis("m", 0.05, [], [])
    result.layers = [float("nan"), [float("inf")]]
    assert json.loads(json.dumps(result.to_dict(), allow_nan=False))["layers"] == [None, [None]]


def test_dataframe(rng, monkeypatch):
    result = diagnose(model_of(helpers.built(rng, dtype="float32", cell="gru")), sequences(rng))
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(ImportError, match="pip install pandas"):
        result.to_dataframe()
    monkeypatch.setitem(sys.modules, "pandas", types.SimpleNamespace(DataFrame=list))
    rows = result.to_dataframe()
    name = result.layers[0].name
    assert {
        "layer": name,
        "part": "update",
        "figure": "mean",
        "value": result.scalars()[f"{name}/update/mean"],
    } in rows
    assert len(rows) == len(result.scalars())


# ---------------------------------------------------------------------- errors


def test_errors_name_the_argument(rng):
    x, y = sequences(rng), np.zeros((BATCH, UNITS))
    model = model_of(helpers.built(rng, dtype="float32", cell="gru"))
    for changes, error, said in [
        ({"model": "gru"}, TypeError, "`model` must be a Keras model. Received: model='gru'"),
        ({"model": keras.Sequential([kg.GatedRNN(3)])}, ValueError, "`model` must be built"),
        ({"x": x[:0]}, ValueError, "`x` must hold at least one sample.*\\(0, 9, 3\\)"),
        ({"x": x[:, :0]}, ValueError, "at least one sample and one time step"),
        ({"x": x[..., :2]}, ValueError, "`x` must fit.*\\(None, None, 3\\).*\\(6, 9, 2\\)"),
        ({"x": x[0]}, ValueError, "`x` must fit.*Received: x of shape \\(9, 3\\)"),
        ({"margin": 0.5}, ValueError, "`margin`.*margin=0.5"),
        ({"batch_size": 0}, ValueError, "`batch_size`"),
        ({"y": y[:4]}, ValueError, "`y` must have as many samples as `x`, 6. Received: 4"),
    ]:
        given = {"model": model, "x": x, **changes}
        with pytest.raises(error, match=said):
            diagnose(given.pop("model"), given.pop("x"), **given)
    plain = keras.Sequential([keras.Input((None, FEATURES)), keras.layers.Dense(2)])
    with pytest.raises(ValueError, match="`model` must have a recurrent layer: .*has none"):
        diagnose(plain, x)
    uncompiled = keras.Sequential([keras.Input((None, FEATURES)), kg.GatedRNN(UNITS)])
    for look in (diagnose, locate_nonfinite):
        with pytest.raises(ValueError, match="`y` was given.*is not compiled"):
            look(uncompiled, x, y)


# ---------------------------------------------------------------------- locate_nonfinite


def spiked(a):
    """tanh, but NaN beyond 50."""
    return ops.where(a > 50, ops.full_like(a, np.nan), ops.tanh(a))


def rooted(a):
    """Finite for a >= 0, but its derivative at 0 is not."""
    return ops.sqrt(ops.relu(a))


@pytest.mark.filterwarnings("ignore:.*works for training.*")
class TestLocate:
    def layer(self, rng, **options):
        return helpers.built(rng, dtype="float32", scale=0.5, name="rnn", **options)

    def test_nothing(self, rng):
        model = model_of(self.layer(rng, cell="lstm", return_sequences=True), dense(rng))
        y = np.zeros((BATCH, TIME, 2)) if TENSORFLOW else None
        found = locate_nonfinite(model, sequences(rng), y)
        assert not found
        assert str(found) == "Everything is finite."

    def test_in_the_data(self, rng):
        model = model_of(self.layer(rng, cell="gru"), dense(rng))
        x, y = sequences(rng), np.zeros((BATCH, 2))
        x[4, 7, 1] = -np.inf
        found = locate_nonfinite(model, x)
        assert (found.where, found.sample, found.time_step, found.value) == ("x", 4, 7, -np.inf)
        y[2, 0] = np.nan
        found = locate_nonfinite(model, sequences(rng), y)
        assert (found.where, found.sample) == ("y", 2)

    def test_in_the_weights(self, rng):
        layer = self.layer(rng, cell="gru")
        model = model_of(layer, dense(rng))
        recurrent = np.array(layer.cell.recurrent_kernel)
        recurrent[2, 3] = np.nan
        layer.cell.recurrent_kernel.assign(recurrent)
        found = locate_nonfinite(model, sequences(rng))
        assert (found.where, found.quantity) == ("weights", "recurrent_kernel")
        assert "rnn" in found.layer
        assert math.isnan(found.value)
        assert "recurrent_kernel of layer" in str(found)

    @pytest.mark.parametrize("backwards", [False, True])
    @pytest.mark.parametrize("batch_size", [32, 2])
    def test_in_a_gate_at_one_step(self, rng, backwards, batch_size):
        layer = self.layer(
            rng, cell="lstm", gate_activation={"forget": spiked}, go_backwards=backwards
        )
        kernel = layer.get_weights()[0]
        x = sequences(rng)
        x[3, 5] = 1e3 * kernel[:, UNITS]  # along one column of the forget gate
        below = kg.GatedRNN(FEATURES, cell="simple", return_sequences=True)
        below.build(x.shape)
        below.set_weights([np.eye(FEATURES), np.zeros((FEATURES, FEATURES)), np.zeros(FEATURES)])
        below.cell.candidate_activation = keras.activations.linear
        model = model_of(below, layer)
        found = locate_nonfinite(model, x, batch_size=batch_size)
        assert (found.where, found.layer) == ("forward", "rnn")
        assert (found.quantity, found.time_step, found.sample) == ("gate forget", 5, 3)
        assert math.isnan(found.value)
        assert "gate forget of layer 'rnn' at time step 5 in sample 3 is nan" in str(found)

    def test_overflow_at_the_step_where_it_happens(self, rng):
        """h doubles from 2**100 at the first step: 2**127 is the last that float32 holds."""
        layer = kg.GatedRNN(1, cell="simple", candidate_activation="linear", name="rnn")
        layer.build((None, None, 1))
        layer.set_weights([np.ones((1, 1)), 2 * np.ones((1, 1)), np.zeros(1)])
        model = keras.Sequential([keras.Input((None, 1)), layer])
        x = np.zeros((3, 40, 1), "float32")
        x[1, 0] = 2.0**100
        found = locate_nonfinite(model, x)
        assert (found.quantity, found.time_step, found.sample) == ("candidate", 28, 1)
        assert found.value == np.inf

    def test_masked_steps_are_passed_over(self, rng):
        layer = self.layer(rng, cell="gru", gate_activation={"update": spiked})
        x = sequences(rng)
        x[2, 4] = 1e3 * layer.get_weights()[0][:, 0]
        mask = np.ones((BATCH, TIME), bool)
        mask[2, 4] = False
        inputs = [keras.Input((None, FEATURES)), keras.Input((None,), dtype="bool")]
        model = keras.Model(inputs, layer(inputs[0], mask=inputs[1]))
        assert not locate_nonfinite(model, [x, mask])
        found = locate_nonfinite(model, [x, np.ones_like(mask)])
        assert (found.quantity, found.time_step, found.sample) == ("gate update", 4, 2)

    def test_in_a_layer_that_is_not_recurrent(self, rng):
        model = keras.Sequential(
            [
                keras.Input((None, FEATURES)),
                keras.layers.Lambda(ops.log, name="log"),
                kg.GatedRNN(3),
            ]
        )
        x = np.abs(sequences(rng)) + 0.1
        assert not locate_nonfinite(model, x)
        x[1, 6, 2] = 0
        found = locate_nonfinite(model, x)
        assert (found.where, found.layer, found.quantity) == ("forward", "log", "output")
        assert (found.sample, found.time_step, found.value) == (1, 6, -np.inf)

    @needs_gradients
    def test_in_the_loss(self, rng):
        layer = self.layer(rng, cell="gru")
        model = model_of(layer, loss=lambda y, p: ops.log(ops.sum(p - p)))
        found = locate_nonfinite(model, sequences(rng), np.zeros((BATCH, UNITS)))
        assert (found.where, found.value) == ("loss", -np.inf)

    @needs_gradients
    @pytest.mark.parametrize("backwards", [False, True])
    def test_in_the_backward_pass(self, rng, backwards):
        """sqrt at 0 has no finite derivative: at step 4 of sample 2 alone its argument is 0."""
        layer = kg.GatedRNN(
            1,
            cell="simple",
            candidate_activation=rooted,
            go_backwards=backwards,
            return_sequences=True,
            name="rnn",
        )
        layer.build((None, None, 1))
        layer.set_weights([np.ones((1, 1)), np.zeros((1, 1)), np.zeros(1)])
        model = keras.Sequential([keras.Input((None, 1)), layer])
        model.compile("sgd", "mse")
        x = rng.uniform(0.5, 1, size=(3, 9, 1))
        x[2, 4] = 0
        found = locate_nonfinite(model, x, -np.ones((3, 9, 1)))
        assert (found.where, found.layer) == ("backward", "rnn")
        assert found.quantity == "gradient of the hidden state"
        # What the equations of step 4 make of it arrives at the step that is read before.
        assert (found.time_step, found.sample) == (5 if backwards else 3, 2)

    @needs_gradients
    def test_in_the_gradient_of_a_weight_alone(self, rng):
        """At the first step nothing before it can show what its equations do."""
        layer = kg.GatedRNN(1, cell="simple", candidate_activation=rooted, name="rnn")
        layer.build((None, None, 1))
        layer.set_weights([np.ones((1, 1)), np.ones((1, 1)), np.zeros(1)])
        model = keras.Sequential([keras.Input((None, 1)), layer])
        model.compile("sgd", "mse")
        x = rng.uniform(0.5, 1, size=(3, 4, 1))
        x[2, 0] = 0
        found = locate_nonfinite(model, x, -np.ones((3, 1)))
        assert (found.where, found.quantity) == ("backward", "gradient of kernel")
        assert "rnn" in found.layer


def test_shares_are_of_values_that_are_numbers():
    values = np.array([[np.nan, 0.01], [np.nan, 0.5]])
    found = figures.gate(values, (0.0, 1.0), 0.05)
    assert (found.saturated_low, found.saturated_high) == (0.5, 0.0)
    found = figures.gate(np.full((2, 2), np.nan), (0.0, 1.0), 0.05)
    assert np.isnan([found.saturated_low, found.saturated_high]).all()
    assert np.isnan(figures.candidate(np.full((2, 2), np.nan)).sparsity)
