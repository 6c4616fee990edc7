"""Figures of gates, candidate and states against NumPy and the reference."""

import helpers
import numpy as np
import pytest
from diagnosed import TENSORFLOW, dense, followed, model_of, sequences
from helpers import BATCH, CASES, FEATURES, MASK, TIME, UNITS

from keras_gates.diagnostics import diagnose, figures, trace

pytestmark = pytest.mark.filterwarnings("ignore::keras_gates.UnstableActivationsWarning")

# Where the reference keeps gates and candidate among what it saves of a step.
SAVED = {
    "gru": {"update": 6, "reset": 7, "candidate": 8},
    "lstm": {"input": 4, "forget": 5, "candidate": 6, "output": 7},
    "simple": {},
}


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
    own = [(n[v][0], n[v][-1]) for n, v in zip(norms, valid, strict=True) if v.any()]
    ends = (state.first_norm, state.last_norm)
    np.testing.assert_allclose(ends, np.mean(own, axis=0), rtol=1e-4)
    assert found.samples_per_step == valid.sum(axis=0).tolist()
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


def test_shares_are_of_values_that_are_numbers():
    values = np.array([[np.nan, 0.01], [np.nan, 0.5]])
    found = figures.gate(values, (0.0, 1.0), 0.05)
    assert (found.saturated_low, found.saturated_high) == (0.5, 0.0)
    assert found.mean == found.p50 == pytest.approx(0.255)  # of the values that are finite
    found = figures.gate(np.full((2, 2), np.nan), (0.0, 1.0), 0.05)
    assert np.isnan([found.saturated_low, found.saturated_high]).all()
    assert np.isnan(figures.candidate(np.full((2, 2), np.nan)).sparsity)
