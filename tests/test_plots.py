"""The plots show what they say: their lines and images hold the figures of the traces."""

import dataclasses
import sys

import keras
import numpy as np
import pytest
from helpers import BACKEND

import keras_gates as kg
from keras_gates import diagnostics

plt = pytest.importorskip("matplotlib.pyplot")
if BACKEND != "tensorflow":
    pytest.skip("gradients are computed on TensorFlow", allow_module_level=True)


@pytest.fixture(autouse=True)
def close():
    plt.switch_backend("Agg")
    yield
    plt.close("all")


@pytest.fixture(scope="module")
def trace():
    keras.utils.set_random_seed(2)
    rng = np.random.default_rng(2)
    layer = kg.GatedRNN(5, gate_activation="hard_sigmoid", return_sequences=True)
    model = keras.Sequential(
        [keras.Input((None, 3)), keras.layers.Masking(), layer, keras.layers.Dense(1)]
    )
    model.compile("sgd", "mse")
    layer.set_weights([2 * rng.normal(size=w.shape) for w in layer.get_weights()])
    x = rng.normal(size=(7, 9, 3)).astype("float32")
    x[:3, 6:] = 0
    return diagnostics.traces(model, x, rng.normal(size=(7, 9, 1)))[0]


def test_activation_and_slope():
    axes = diagnostics.plot_activation("hard_sigmoid", reach=5)
    value, slope = axes.lines[:2]
    x = value.get_xdata()
    np.testing.assert_allclose(value.get_ydata(), np.clip(x / 6 + 0.5, 0, 1), atol=1e-6)
    assert slope.get_ydata().max() == pytest.approx(1 / 6, abs=1e-3)
    assert axes.get_xlabel()
    assert axes.get_ylabel()


def test_gate_bands_are_percentiles_of_valid_values(trace):
    axes = diagnostics.plot_gate(trace, "update")
    median = axes.lines[0].get_ydata()
    values = trace.activated["update"]
    for t in range(9):
        valid = values[3:, t] if t >= 6 else values[:, t]
        assert median[t] == pytest.approx(np.median(valid), abs=1e-6)
    assert "update (hard_sigmoid)" in axes.get_title()
    assert diagnostics.plot_gate(trace, "candidate", axes) is axes


def test_lines_end_where_few_samples_are_left():
    rng = np.random.default_rng(3)
    model = keras.Sequential(
        [keras.Input((None, 3)), keras.layers.Masking(), kg.GatedRNN(4), keras.layers.Dense(1)]
    )
    model.compile("sgd", "mse")
    x = rng.normal(size=(30, 9, 3)).astype("float32")
    x[1:, 5:] = 0  # one of thirty is longer
    traces = diagnostics.traces(model, x, rng.normal(size=(30, 1)))
    lines = [
        diagnostics.plot_gate(traces, "update").lines[0],
        diagnostics.plot_gradient_norms(traces).lines[0],
        *diagnostics.plot_states(traces, sample=0).lines,
    ]
    ends = [np.flatnonzero(np.isfinite(line.get_ydata()))[-1] for line in lines]
    assert ends == [4, 4, *[8] * 4]
    image = np.ma.filled(
        diagnostics.plot_saturation(traces, "update").images[0].get_array(), np.nan
    )
    assert np.isfinite(image).all(axis=0).tolist() == [True] * 5 + [False] * 4


def test_saturation_is_the_share_at_either_end(trace):
    axes = diagnostics.plot_saturation(trace, "reset")
    shown = axes.images[0].get_array()
    values = trace.activated["reset"]
    share = ((values <= 0.05) | (values >= 0.95))[3:].mean(axis=0).T  # unmasked samples
    assert shown.shape == (5, 9)
    assert 0 < shown.mean() < 1
    for t in (6, 8):
        np.testing.assert_allclose(np.sort(shown[:, t]), np.sort(share[:, t]))


def test_gradient_norms(trace):
    axes = diagnostics.plot_gradient_norms({"one": trace, "again": trace})
    norms = np.linalg.norm(trace.gradient, axis=2)
    shown = axes.lines[0].get_ydata()
    np.testing.assert_allclose(shown[:6], norms[:, :6].mean(axis=0), rtol=1e-5)
    np.testing.assert_allclose(shown[6:], norms[3:, 6:].mean(axis=0), rtol=1e-5)
    assert axes.lines[0].get_linestyle() != axes.lines[1].get_linestyle()
    assert [t.get_text() for t in axes.get_legend().get_texts()] == ["one", "again"]


def test_states(trace):
    axes = diagnostics.plot_states(trace, sample=4, units=2)
    assert len(axes.lines) == 2
    moving = np.argsort(-trace.states["hidden"][4].var(axis=0))[:2]
    np.testing.assert_allclose(axes.lines[0].get_ydata(), trace.states["hidden"][4][:, moving[0]])


def test_every_plot_takes_what_traces_returns(trace, recwarn):
    rng = np.random.default_rng(3)
    model = keras.Sequential(
        [
            keras.Input((None, 3)),
            keras.layers.Masking(),
            kg.GatedRNN(3, return_sequences=True, name="below"),
            kg.GatedRNN(4, cell="lstm", gate_activation="hard_sigmoid", name="above"),
            keras.layers.Dense(1),
        ]
    )
    model.compile("sgd", "mse")
    x = rng.normal(size=(4, 6, 3)).astype("float32")
    x[:, 4:] = 0  # steps that no sample has
    found = diagnostics.traces(model, x, np.zeros((4, 1)))
    below, above = diagnostics.plot_gate(found, "candidate")
    assert (below.get_title()[:5], above.get_title()[:5]) == ("below", "above")
    np.testing.assert_allclose(
        above.lines[0].get_ydata()[:4],
        np.median(found[1].activated["candidate"], axis=(0, 2))[:4],
        atol=1e-6,
    )
    above = diagnostics.plot_gate(found, "forget")
    assert [axes.get_title() for axes in np.ravel(above)] == ["above: forget (hard_sigmoid)"]
    said = (
        "`gate` must be one of 'update', 'reset', 'candidate', which is what the GRUCell of 'below'"
    )
    with pytest.raises(ValueError, match=said):
        diagnostics.plot_gate(found, "forgets")
    with pytest.raises(TypeError, match="plot_saturation: missing a required argument: 'gate'"):
        diagnostics.plot_saturation(found)
    given = plt.subplots(2, 1)[1]
    assert list(diagnostics.plot_saturation(found, "candidate", given)) == list(given)
    for panel, of in zip(diagnostics.plot_states(found, units=3), found, strict=True):
        assert panel.get_title() == f"{of.name}: sample 0"
        assert len(panel.get_legend().get_texts()) == 3
    axes = diagnostics.plot_gradient_norms(found)
    assert [t.get_text() for t in axes.get_legend().get_texts()] == ["below", "above"]
    assert diagnostics.plot_gradient_norms([trace]).lines[0].get_label() == trace.name
    assert diagnostics.plot_gate([trace], "update").get_title().startswith(trace.name)
    for line in axes.lines:
        assert np.isnan(line.get_ydata()[4:]).all()
    for axes in map(plt.figure, plt.get_fignums()):
        axes.canvas.draw()
    assert not [w for w in recwarn if issubclass(w.category, RuntimeWarning)]
    with pytest.raises(ValueError, match="`axes` must have one for each trace, below, above. Rec"):
        diagnostics.plot_gate(found, "candidate", plt.subplots()[1])
    with pytest.raises(ValueError, match="`trace` must hold at least one"):
        diagnostics.plot_states([])


def test_verdicts():
    outcomes = {("relu", "tanh"): "3d"}
    axes = diagnostics.plot_verdicts("gru", ["sigmoid", "relu"], ["tanh"], outcomes=outcomes)
    assert [t.get_text() for t in axes.texts] == ["S\n", "U\n3d"]
    assert [t.get_text() for t in axes.get_yticklabels()] == ["sigmoid", "relu"]
    assert len({p.get_facecolor() for p in axes.patches}) == 2
    legend = [t.get_text() for t in axes.get_legend().get_texts()]
    assert legend == ["S: sound", "C: caution", "U: unstable"]
    simple = diagnostics.plot_verdicts("simple", None, ["tanh", "relu"])
    assert [t.get_text() for t in simple.texts] == ["S", "C"]


def test_verdicts_compute_nothing_that_is_not_shown(monkeypatch):
    monkeypatch.setattr("keras_gates.verdicts.probe.spectral_radius", None)
    axes = diagnostics.plot_verdicts(kg.LSTMCell, ["sigmoid"], ["tanh"])
    assert axes.get_title().startswith("LSTMCell")
    with pytest.raises(ValueError, match="`cell` must be one of.*'gruu'.*'gru'"):
        diagnostics.plot_verdicts("gruu", ["sigmoid"], ["tanh"])


def test_time_of_a_layer_that_reads_backwards_is_said_so(trace):
    backwards = dataclasses.replace(trace, backwards=True)
    for plot in (
        lambda t: diagnostics.plot_gate(t, "update"),
        lambda t: diagnostics.plot_saturation(t, "update"),
        diagnostics.plot_states,
        lambda t: diagnostics.plot_gradient_norms({"one": trace, "other": t}),
    ):
        assert plot(trace).get_xlabel() == "time step"
        assert plot(backwards).get_xlabel() == "time step, in reading order"


def test_bad_input(trace, monkeypatch):
    with pytest.raises(ValueError, match="`gate` must be one of 'update', 'reset', 'candidate'"):
        diagnostics.plot_gate(trace, "updat")
    with pytest.raises(TypeError, match="`trace` must be one of.*Received: Sequential"):
        diagnostics.plot_gate(keras.Sequential(), "update")
    with pytest.raises(ValueError, match="`state` must be 'hidden'"):
        diagnostics.plot_states(trace, state="cell")
    with pytest.raises(ValueError, match="`traces` must be a trace, a list of them.*Rec"):
        diagnostics.plot_gradient_norms("update")
    with pytest.raises(ValueError, match="`sample` must be the index of one of the 7 samples"):
        diagnostics.plot_states(trace, sample=7)
    model = keras.Sequential([keras.Input((None, 3)), kg.GatedRNN(4, candidate_activation="relu")])
    (without,) = diagnostics.traces(model, np.zeros((2, 3, 3)))
    with pytest.raises(ValueError, match="'a' has none: give `y`"):
        diagnostics.plot_gradient_norms({"a": without})
    with pytest.raises(ValueError, match="`gate` must have a bounded activation.*relu"):
        diagnostics.plot_saturation(without, "candidate")
    twice = diagnostics.plot_gradient_norms([trace, trace])
    assert [line.get_label() for line in twice.lines] == [f"0: {trace.name}", f"1: {trace.name}"]
    with pytest.raises(TypeError, match="`axes` must be of matplotlib.*Received: 3"):
        diagnostics.plot_gate(trace, "update", 3)
    with pytest.raises(TypeError, match="`axes` must be one of matplotlib's. Received: axes=.None"):
        diagnostics.plot_gate(trace, "update", [None])
    with pytest.raises(ValueError, match="`sample` must be the index of one .*sample=True"):
        diagnostics.plot_states(trace, sample=True)
    with pytest.raises(ValueError, match=r"`margin` is a share.*margin=-1"):
        diagnostics.plot_saturation(trace, "update", margin=-1)
    with pytest.raises(ValueError, match=r"`reach` must be a positive.*reach=0"):
        diagnostics.plot_activation("tanh", reach=0)
    with pytest.raises(ValueError, match=r"`gates` must be a list of activations.*'tanh'"):
        diagnostics.plot_verdicts("gru", "tanh", ["tanh"])
    with pytest.raises(ValueError, match=r"`gate` must be one of.*\['update'\]"):
        diagnostics.plot_gate(trace, ["update"])
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)
    with pytest.raises(ImportError, match=r'pip install "keras_gates\[plots\]"'):
        diagnostics.plot_activation("relu")
