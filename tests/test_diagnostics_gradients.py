"""Gradients inside backpropagation through time and Lyapunov exponents, against other ways."""

import math

import helpers
import keras
import numpy as np
import pytest
import reference
from diagnosed import TENSORFLOW, dense, followed, model_of, needs_gradients, sequences
from helpers import BATCH, CASES, FEATURES, MASK, TIME, UNITS

import keras_gates as kg
from keras_gates.diagnostics import diagnose, figures, lyapunov, trace, traces

pytestmark = pytest.mark.filterwarnings("ignore::keras_gates.UnstableActivationsWarning")


def _arriving(loop, d_last, d_hidden=0.0):
    """From each state s to dL/ds_t before it is clipped at t, (samples, time, units) in reading
    order, by hand."""
    cell = loop.cell
    d_states = [d_last, *[np.zeros_like(d_last) for _ in range(cell.states - 1)]]
    found = []
    for _, m, saved in reversed(loop.saved):
        new = cell.forward(saved[0], saved[1 : 1 + cell.states])[0]
        into = [np.where(m, d, 0) for d in d_states]
        into[0] = into[0] + np.where(m, d_hidden * np.sign(new[0]), 0)
        found.insert(0, into)
        _, before, _ = cell.backward(into, saved)
        d_states = [np.where(m, 0, d) + b for d, b in zip(d_states, before, strict=True)]
    return np.stack(found, axis=2)  # (states, samples, time, units)


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
    d, *further = _arriving(loop, d_output @ kernel.T, 0.3 / MASK.sum())
    together = np.concatenate([d, *further], axis=-1)
    assert [*found.gradients] == (["cell", "all"] if further else [])
    expected = [d, *further, together] if further else [d]
    for gradient, arriving in zip(
        [found.gradient, *found.gradients.values()], expected, strict=True
    ):
        norms = np.linalg.norm(arriving, axis=-1)
        per_step = np.array([norms[valid[:, t], t].mean() for t in range(TIME)])
        np.testing.assert_allclose(gradient.norm_per_step, per_step, rtol=2e-4, atol=1e-6)
        own = [(n[v][0], n[v][-1]) for n, v in zip(norms, valid, strict=True) if v.any()]
        ends = (gradient.first_norm, gradient.last_norm)
        np.testing.assert_allclose(ends, np.mean(own, axis=0), rtol=2e-4, atol=1e-6)
    gradient, norms = found.gradient, np.linalg.norm(d, axis=-1)
    per_step = np.array([norms[valid[:, t], t].mean() for t in range(TIME)])
    np.testing.assert_allclose(gradient.norm_per_step, per_step, rtol=2e-4, atol=1e-6)
    assert gradient.largest == pytest.approx(norms[valid].max(), rel=2e-4)
    # From step to step over the samples that have both.
    both = [valid[:, t] & valid[:, t + 1] for t in range(TIME - 1)]
    steps = [np.log(norms[b, t + 1].mean() / norms[b, t].mean()) for t, b in enumerate(both)]
    weights = np.sqrt(valid.sum(axis=0))  # np.polyfit squares them
    slope = np.polyfit(np.arange(TIME), np.cumsum([0, *steps]), 1, w=weights)[0]
    assert gradient.log_slope == pytest.approx(-slope, rel=1e-3, abs=1e-4)
    if not clip:
        assert gradient.clipped is None
    else:
        acts = norms > clip["norm"] if "norm" in clip else (np.abs(d) > clip["value"]).any(-1)
        expected = acts[valid].mean()
        assert 0 < expected < 1
        assert gradient.clipped == pytest.approx(expected)
        if further:
            (c,) = further
            norms = np.linalg.norm(c, axis=-1)
            acts = norms > clip["norm"] if "norm" in clip else (np.abs(c) > clip["value"]).any(-1)
            shown = [found.gradients[name].clipped for name in ("cell", "all")]
            assert shown == [pytest.approx(acts[valid].mean()), None]


@needs_gradients
def test_weights_of_samples_and_of_steps_count_as_in_fit(rng):
    top = dense(rng)
    layer = helpers.built(rng, dtype="float32", cell="gru")
    model = model_of(layer, top)
    x, y = sequences(rng), rng.normal(size=(BATCH, 2))
    weights = np.arange(BATCH) / 2
    (found,) = traces(model, x, y, sample_weight=weights, batch_size=BATCH)
    d_output = 2 * weights[:, None] * (np.asarray(model(x), "float64") - y) / y.size
    expected = d_output @ np.asarray(top.get_weights()[0], "float64").T
    np.testing.assert_allclose(found.gradient[:, -1], expected, rtol=1e-4, atol=1e-6)
    whole = diagnose(model, x, y, sample_weight=weights, batch_size=BATCH)
    assert whole.layers[0].gradient.largest == pytest.approx(
        np.linalg.norm(found.gradient, axis=-1).max()
    )

    layer = helpers.built(rng, dtype="float32", cell="lstm", return_sequences=True)
    model = model_of(layer, dense(rng))
    y = rng.normal(size=(BATCH, TIME, 2))
    weights = np.ones((BATCH, TIME))
    weights[:, 4:], weights[2] = 0, 0
    for given in (weights, weights.astype(bool)):
        (found,) = traces(model, x, y, sample_weight=given, batch_size=4)
        norms = np.linalg.norm(found.gradient, axis=-1)
        assert (norms[:, 4:] == 0).all()
        assert (norms[2] == 0).all()
        assert (np.delete(norms, 2, axis=0)[:, :4] > 0).all()


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


def test_a_padded_batch_is_compared_with_itself():
    """Longer sequences have larger states and smaller gradients here, and nothing changes with time
    but the gradient, by 0.9 per step back."""
    rng, time = np.random.default_rng(4), 40
    lengths = rng.integers(8, time + 1, 30)
    lengths[0] = time
    t = np.arange(time)
    valid = t < lengths[:, None]
    unit = rng.normal(size=(30, time, 3))
    unit /= np.linalg.norm(unit, axis=-1, keepdims=True)
    states = unit * (lengths**2.0)[:, None, None]
    bounds = (-np.inf, np.inf)
    assert figures.state(states, valid, bounds, 0.05).growth == pytest.approx(1)
    assert figures.state(states * (t**2.0)[:, None], valid, bounds, 0.05).growth > 4
    for steps in (7, 15):
        assert figures.state(states[:, :steps], valid[:, :steps], bounds, 0.05).growth is None
    back = unit * 0.9 ** (time - t)[:, None] / (lengths**3.0)[:, None, None]
    cell = kg.GRUCell(3)
    found = figures.gradient(back, valid, cell)
    assert np.exp(found.log_slope) == pytest.approx(0.9)
    backwards = figures.gradient(back[:, ::-1], valid[:, ::-1], cell)
    assert np.exp(backwards.log_slope) == pytest.approx(1 / 0.9)
