"""Planted faults are found; the report as text and as data; errors."""

import dataclasses
import json
import math
import sys
import types

import helpers
import keras
import numpy as np
import pytest
from diagnosed import TENSORFLOW, model_of, needs_gradients, sequences
from helpers import BATCH, FEATURES, TIME, UNITS

import keras_gates as kg
from keras_gates.diagnostics import (
    Diagnosis,
    GateMonitor,
    data,
    diagnose,
    findings,
    locate_nonfinite,
)
from keras_gates.diagnostics.diagnosis import of_some

pytestmark = pytest.mark.filterwarnings("ignore::keras_gates.UnstableActivationsWarning")


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
        (
            {"gate_activation": {"update": "relu"}, "update": (1.3, 0.0)},
            "hidden state grows with time",
        ),
        ({"gate_activation": {"update": "relu"}, "update": (1.5, 0.0)}, "a difference doubles"),
        ({"update": (-6, 0.1), "candidate": (0, 0.1)}, "Lyapunov exponent is -"),
        (
            {"gate_activation": {"update": "softplus"}},
            "its activations are unstable: the gate update (softplus) has no upper bound",
        ),
    ],
)
def test_planted_faults_are_found(rng, changes, said):
    plain = [finding.what for finding in planted(rng).findings]
    found = planted(rng, **changes).findings
    assert any(said in finding.what for finding in found), "\n".join(map(str, found))
    if said not in ("neither near 0 nor near 1: update", "Lyapunov exponent is -"):
        assert not any(said in what for what in plain)


def test_advice_that_is_followed_already_is_not_given(rng):
    grows = {"gate_activation": {"update": "relu"}, "update": (1.5, 0.0)}

    def advice(said, **options):
        found = planted(rng, **options).findings
        return next(finding.advice for finding in found if said in finding.what)

    plain = advice("a difference doubles", **grows)
    assert "keep the gates in [0, 1]" in plain
    assert "set grad_clip_norm" in plain
    clipped = advice("a difference doubles", **grows, grad_clip_norm=2.0)
    assert "lower grad_clip_norm from 2" in clipped
    assert "set grad_clip" not in clipped

    sparse = {"candidate_activation": "relu", "candidate": (-1.2, 1)}
    assert "l1" not in advice("candidate's values are zero", **sparse)
    assert "Lower activation_l1, or give" in advice(
        "candidate's values are zero", **sparse, activation_l1=1e-4
    )
    forgets = {"update": (-6, 0.1), "candidate": (0, 0.1)}
    assert "gates that remember longer (initialization=keras_gates.initializers.Chrono" in advice(
        "Lyapunov exponent is -", **forgets, initialization="uniform_gates"
    )
    assert "an orthogonal or identity recurrent kernel" in advice(
        "Lyapunov exponent is -", **forgets, recurrent_initializer="glorot_uniform"
    )
    assert 'initialization="uniform_gates"' in advice("Lyapunov exponent is -", **forgets)
    assert "uniform_gates" not in advice(
        "Lyapunov exponent is -", **forgets, gate_activation={"reset": "relu"}
    )


def at_its_bound(rng, cell, gates=(), **options):
    """What is advised where hidden states are at their bounds, and by what factor the gradient
    changes there per step back."""
    layer = helpers.built(rng, dtype="float32", cell=cell, scale=0.3, **options)
    bias = np.array(layer.cell.bias)
    for part, value in {"candidate": 4.0, **dict(gates)}.items():
        start = UNITS * layer.cell.blocks.index(part)
        bias[..., start : start + UNITS] = value
    layer.cell.bias.assign(bias)
    result = diagnose(model_of(layer), sequences(rng, time=48), np.zeros((BATCH, UNITS)))
    (found,) = result.layers
    assert found.states["hidden"].at_bound > 0.6
    said = [f.advice for f in result.findings if "hidden state is at its bound" in f.what]
    return said, math.exp(found.gradient.log_slope)


@needs_gradients
def test_a_state_at_its_bound_is_a_fault_where_nothing_carries_it_on(rng):
    (said,), factor = at_its_bound(rng, "simple")
    assert factor < 0.1
    assert said == (
        "Hardly any gradient comes through a unit at its bound. Scale the inputs down, begin with "
        "smaller weights, or take a candidate with slower tails, such as softsign."
    )
    (said,), _ = at_its_bound(rng, "lstm", {"output": 6.0, "input": 6.0, "forget": 6.0})
    assert "from such a unit to the cell state; what that carries on itself still arrives" in said
    assert "an output_activation with slower tails" in said
    (said,), _ = at_its_bound(rng, "simple", {"candidate": 20.0}, candidate_activation="softsign")
    assert "slower tails" not in said


@pytest.mark.parametrize(
    ("cell", "options"),
    [("gru", {"gates": {"update": 1.0}}), ("simple", {"zoneout": 0.8})],
    ids=["gru", "zoneout"],
)
@needs_gradients
def test_a_state_at_its_bound_that_is_carried_on_is_none(rng, cell, options):
    said, factor = at_its_bound(rng, cell, **options)
    assert not said
    assert factor > 0.7


def test_a_cell_without_a_recurrent_kernel_is_not_told_to_start_it_elsewhere(rng):
    (layer,) = diagnose(
        model_of(helpers.built(rng, dtype="float32", cell="min_gru")), sequences(rng, time=24)
    ).layers
    assert layer.options["recurrent_initializer"] is None
    layer = dataclasses.replace(layer, lyapunov=-2.0)
    (said,) = [f for f in findings.of_layers([layer]) if "Lyapunov" in f.what]
    assert "Begin with gates that remember" in said.advice
    assert "recurrent kernel" not in said.advice
    layer = dataclasses.replace(layer, lyapunov=2.0)
    (said,) = [f for f in findings.of_layers([layer]) if "Lyapunov" in f.what]
    assert "recurrent kernel" not in said.advice


@pytest.mark.parametrize(("time", "said"), [(8, False), (24, True)])
def test_a_state_is_told_to_grow_of_enough_steps(rng, time, said):
    """It doubles at every step."""
    layer = kg.GatedRNN(UNITS, cell="simple", candidate_activation="linear")
    layer.build((None, None, FEATURES))
    kernel, _, bias = layer.get_weights()
    layer.set_weights([kernel, 2 * np.eye(UNITS), bias])
    found = diagnose(model_of(layer), sequences(rng, time=time)).findings
    grows = [f.advice for f in found if "state grows with time" in f.what]
    assert bool(grows) == said
    assert all("keep the recurrent kernel small (recurrent_regularizer or _c" in a for a in grows)


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
@pytest.mark.parametrize(
    ("options", "forget", "vanishes"),
    [
        ({"cell": "sru", "zoneout": {"hidden": 0.1}}, 6.0, False),
        ({"cell": "sru", "zoneout": {"hidden": 0.1}}, -2.0, True),
        ({"cell": "sru"}, 6.0, False),
        ({"cell": "lstm"}, 6.0, False),
        ({"cell": "lstm"}, -1.0, True),
    ],
)
def test_a_gradient_vanishes_where_no_state_carries_it(rng, options, forget, vanishes):
    """What tells is whether outputs depend on the first inputs as much as on those before the last,
    which goes past the states of an SRU."""
    layer = helpers.built(rng, dtype="float32", scale=0.3, name="r", **options)
    index = layer.cell.blocks.index("forget") * UNITS
    bias = np.array(layer.cell.bias)
    bias[..., index : index + UNITS] = forget
    layer.cell.bias.assign(bias)
    model = model_of(layer)
    x, y = sequences(rng, time=20), rng.normal(size=(BATCH, UNITS))
    result = diagnose(model, x, y)
    moved, changes = [np.copy(x), np.copy(x)], []
    for one, step in zip(moved, (0, -2), strict=True):
        one[:, step] += 1e-2
        changes.append(np.abs(model.predict(one, verbose=0) - model.predict(x, verbose=0)).max())
    assert (changes[0] < 1e-3 * changes[1]) == vanishes
    said = [f.what for f in result.findings if "gradient of all states vanishes" in f.what]
    assert bool(said) == vanishes, result
    lines = str(result).splitlines()
    assert [line.split()[0] for line in lines if " x 0." in line or " x -" in line][-2:] == [
        "cell",
        "all",
    ]


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
    assert {finding.layer for finding in result.findings} == {"weights", "broken"}
    assert all("NaN" in f.what or "finite" in f.what for f in result.findings)  # nothing of others
    assert result.layers[0].nonfinite > 0


class Filled(keras.layers.Layer):
    """Zeros for what is not there."""

    def call(self, x):
        return keras.ops.where(keras.ops.isfinite(x), x, 0.0)


@needs_gradients
def test_data_that_are_not_finite_are_named_where_the_model_does_not_take_them(rng):
    model = model_of(helpers.built(rng, dtype="float32"))
    x, y = sequences(rng), np.zeros((BATCH, UNITS))
    bad, targets = x.copy(), y.copy()
    bad[1, 2, 0], bad[2, 1], targets[3, 1] = np.inf, np.nan, np.nan
    first, *others = diagnose(model, bad, y).findings
    assert str(first).startswith(
        f"error: x: {1 + FEATURES} of {x.size} values are NaN or infinite, first inf at time step "
        "2 in sample 1. Clean the data"
    )
    assert {finding.layer for finding in others} == {model.layers[-1].name}
    first = diagnose(model, {model.inputs[0].name: x}, targets).findings[0]
    assert (first.layer, first.what) == (
        "y",
        f"1 of {y.size} values is NaN or infinite: nan in sample 3",
    )
    found = locate_nonfinite(model, bad, y)
    assert (found.where, found.sample, found.time_step, found.value) == ("x", 1, 2, np.inf)
    found = of_some(model, bad, y, 2).findings[0]
    assert found.what.startswith(f"{1 + FEATURES} of {x.size}")  # of all, though two are run
    filled = keras.Sequential([model.inputs[0], Filled(), *model.layers])
    assert not any(finding.layer == "x" for finding in diagnose(filled, bad).findings)


def test_a_gate_with_one_bound_is_at_its_end_for_half_of_the_inputs(rng):
    found = planted(rng, gate_activation={"reset": "relu"}, reset=(-6, 0.1))
    (said,) = [f for f in found.findings if "reset gate is saturated at its low" in f.what]
    assert "Use an activation that is bounded on both sides" in said.advice
    assert "slower tails" not in str(found)


def test_integers_that_an_embedding_does_not_have_are_named(rng):
    words = keras.Input((None,), dtype="int32", name="words")
    rest = keras.Input((None, FEATURES), name="a_number")
    inside = keras.Sequential([keras.Input((None,), dtype="int32"), keras.layers.Embedding(9, 2)])
    joined = keras.layers.Concatenate()([inside(words), rest])
    model = keras.Model({"words": words, "a_number": rest}, kg.GatedRNN(3)(joined))
    model.compile("sgd", "mse")
    x = {"words": rng.integers(0, 9, (BATCH, TIME)), "a_number": sequences(rng)}
    assert diagnose(model, x).layers
    x["words"][2, 1] = 9
    x["words"][3, 0] = -1
    said = (
        "^`x` must hold integers from 0 to 8 for 'words', which an Embedding reads. Received: 9 at "
        "time step 1 in sample 2, and 1 more$"
    )
    for look in (diagnose, locate_nonfinite):
        with pytest.raises(ValueError, match=said):
            look(model, x)
    with pytest.raises(ValueError, match=said):
        model.fit(x, np.zeros((BATCH, 3)), verbose=0, callbacks=[GateMonitor(x, samples=BATCH)])


def test_a_model_of_nothing_but_nan_is_reported_in_words(rng):
    layer = helpers.built(rng, dtype="float32", cell="lstm", grad_clip_norm=1.0)
    layer.set_weights([np.full_like(weight, np.nan) for weight in layer.get_weights()])
    model = model_of(layer)
    found = diagnose(model, sequences(rng), np.zeros((BATCH, UNITS)))
    for text in (str(found), found._repr_html_()):
        assert "nan" not in text
        assert "NaN%" not in text
        assert text.count("NaN") > 20
        assert "Lyapunov exponent: not finite" in text
    assert found.findings[0].what == (
        f"NaN or infinite in {len(model.weights)} of {len(model.weights)}, the first "
        f"'{layer.name}/{layer.cell.name}/kernel'"
    )


def test_weights_are_named_by_the_layers_around_them_in_a_loaded_model_too(rng, tmp_path):
    both = keras.layers.Bidirectional(kg.GatedRNN(UNITS), name="both")
    model = keras.Sequential([keras.Input((None, FEATURES)), both])
    weights = model.get_weights()
    weights[-2][0, 0] = np.nan
    model.set_weights(weights)
    model.save(tmp_path / "model.keras")
    for one in (model, keras.saving.load_model(tmp_path / "model.keras")):
        layer = one.layers[0].backward_layer
        name = f"both/{layer.name}/{layer.cell.name}/recurrent_kernel"
        found = diagnose(one, sequences(rng)).findings[0]
        assert found.what == f"NaN or infinite in 1 of 6, the first {name!r}"
        where = kg.diagnostics.locate_nonfinite(one, sequences(rng))
        assert f"{where.layer}/{where.quantity}" == name
        with pytest.raises(ValueError, match=f"{name}' has a value of nan"):
            kg.export(one, tmp_path / "out")


@needs_gradients
def test_padding_changes_no_finding(rng):
    x, y = sequences(rng, time=60), rng.normal(size=(BATCH, UNITS))
    layer = helpers.built(rng, dtype="float32", cell="lstm", scale=0.3)
    found = [
        diagnose(model_of(layer, mask=True), np.pad(x, [(0, 0), around, (0, 0)]), y)
        for around in ((0, 0), (0, 90), (90, 0))
    ]
    first, *others = ([*map(str, one.findings)] for one in found)
    assert any("vanishes" in finding for finding in first)
    assert others == [first, first]
    assert [one.layers[0].steps for one in found] == [60] * 3


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
    assert not any("is_share" in name for name in result.scalars())  # is no figure
    plain = json.loads(json.dumps(result.to_dict(), allow_nan=False))
    assert plain["layers"][0]["gates"]["forget"]["p50"] == result.layers[0].gates["forget"].p50
    assert len(plain["layers"][0]["states"]["cell"]["norm_per_step"]) == TIME
    assert (plain["layers"][0]["gradient"] is None) == (y is None)


def test_the_report_says_which_layer_reads_backwards(rng):
    result = diagnose(
        model_of(keras.layers.Bidirectional(keras.layers.GRU(UNITS))),
        sequences(rng),
        lyapunov=False,
    )
    forward, backward = result.layers
    assert (forward.backwards, backward.backwards) == (False, True)
    before, after = str(result).split(f"\n{backward.name}: ")
    said = "reads the sequence backwards: steps in the order in which the layer reads them"
    assert said in after
    assert said not in before


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
        (
            {"x": np.array([None, 3])},
            ValueError,
            "`x` must be an array.*ndarray, shape \\(2,\\) and dtype object",
        ),
        ({"x": x[0]}, ValueError, "`x` must fit.*Received: x of shape \\(9, 3\\)"),
        ({"x": [x[0, :4], x[1]]}, ValueError, "`x` must have equally.*(4, 3).*pad_sequences"),
        ({"x": [x[0, :4].tolist(), x[1].tolist()]}, ValueError, "NumPy says.*pad_sequences"),
        ({"x": [*x, *x]}, ValueError, r"\(9, 3\) and 6 more. A list of samples.*numpy.stack"),
        ({"y": [[1], [1, 0]]}, ValueError, "`y` must be an array.*keras.utils.pad_sequences"),
        ({"margin": 0.5}, ValueError, "`margin`.*margin=0.5"),
        ({"batch_size": 0}, ValueError, "`batch_size`"),
        ({"y": y[:4]}, ValueError, "`y` must have as many samples as `x`, 6. Received: 4"),
        ({"x": x * 1j}, ValueError, "`x` must be an array.*of real numbers.*dtype complex"),
        ({"x": x.astype(str)}, ValueError, "`x` must be of numbers. Received: x of dtype <U"),
        ({"y": y[:, :2]}, ValueError, r"`y` must fit.*\(2,\) per sample, with outputs of \(5,\); "),
        ({"y": y.astype(str)}, ValueError, "`y` must be of numbers. Received: y of dtype <U"),
        ({"y": {"q": y}}, ValueError, "`y` must be one array for .*Received: the keys ..q"),
        ({"y": [y, y]}, ValueError, "`y` must be one array for .*Received: 2 of them"),
        ({"lyapunov": "no"}, ValueError, "`lyapunov` must be True or False"),
        ({"sample_weight": y[:, 0]}, ValueError, "`sample_weight` is for the loss on `y`"),
        ({"y": y, "sample_weight": y[:3, 0]}, ValueError, r"of shape \(3,\), y of shape \(6, 5\)"),
        ({"y": y, "sample_weight": y[:, :2]}, ValueError, "one number per sample of `y`, or per s"),
        ({"y": y, "sample_weight": 2.0}, ValueError, "`sample_weight` must be an array"),
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


def test_datasets_give_their_first_samples(rng, monkeypatch):
    class Batches(keras.utils.PyDataset):
        def __len__(self):
            return 100

        def __getitem__(self, index):
            assert index < 2, "more was read than is needed"
            return x[2 * index : 2 * index + 2], y[2 * index : 2 * index + 2]

    monkeypatch.setattr(data, "TAKEN", 4)
    model = model_of(helpers.built(rng, dtype="float32", cell="gru"))
    x, y = sequences(rng, batch=6), rng.normal(size=(6, UNITS))
    given = [Batches(workers=1)]
    if TENSORFLOW:
        import tensorflow as tf

        whole = tf.data.Dataset.from_tensor_slices((x, y))
        given += [whole.batch(2), whole, whole.batch(2).map(lambda x, y: (x, y, 1.0))]
    expected = diagnose(model, x[:4], y[:4] if TENSORFLOW else None).scalars()
    for dataset in given:
        assert diagnose(model, dataset).scalars() == pytest.approx(expected, nan_ok=True)
    monitor = GateMonitor(given[-1] if TENSORFLOW else given[0], samples=3)
    model.fit(x, y, callbacks=[monitor], verbose=0)
    assert monitor.diagnosis.layers[0].samples == 3
    uncompiled = keras.Sequential([keras.Input((None, FEATURES)), model.layers[0]])
    assert "gradient" not in str([*diagnose(uncompiled, given[0]).scalars()])
    with pytest.raises(ValueError, match="`y` must be left out where `x` is a dataset"):
        diagnose(model, given[0], y)


class Lengths(keras.utils.PyDataset):
    """Batches of different lengths, the last of them with one sample, each padded by itself."""

    def __init__(self, x, y, lengths, padding):
        super().__init__(workers=1)
        self.x, self.y, self.lengths, self.padding = x, y, lengths, padding

    def __len__(self):
        return -(-len(self.x) // 2)

    def __getitem__(self, index):
        own = slice(2 * index, 2 * index + 2)
        x, y = np.copy(self.x[own]), self.y[own]
        for sample, length in zip(x, self.lengths[own], strict=True):
            sample[length:] = self.padding
        longest = max(self.lengths[own])
        return x[:, :longest], y[:, :longest] if y.ndim > 2 else y


def masked_models(layer):
    """Models that mask a value of their input, in different places."""
    masking = [keras.layers.Masking(-7.0), layer, keras.layers.Dense(2)]
    yield keras.Sequential([keras.Input((None, FEATURES)), *masking]), -7.0
    nested = keras.Sequential([keras.Input((None, FEATURES)), *masking])
    x = keras.Input((None, FEATURES))
    yield keras.Model(x, nested(x)), -7.0
    embedded = keras.layers.Embedding(9, FEATURES, mask_zero=True)
    yield keras.Sequential([keras.Input((None,), dtype="int32"), embedded, *masking[1:]]), 0


@pytest.mark.parametrize("sequences_of_y", [pytest.param(False, marks=pytest.mark.slow), True])
def test_batches_of_different_lengths_are_masked_at_their_end(rng, sequences_of_y):
    layer = helpers.built(rng, dtype="float32", cell="gru", return_sequences=sequences_of_y)
    lengths = [6, 9, 7, 4, 3]
    for model, padding in masked_models(layer):
        model.compile("sgd", "mse")
        x = rng.integers(1, 9, size=(5, 9)) if padding == 0 else sequences(rng, batch=5)
        y = rng.normal(size=(5, 9, 2) if sequences_of_y else (5, 2))
        batches = Lengths(x, y, lengths, padding)
        for sample, length in zip(x, lengths, strict=True):
            sample[length:] = padding
        given = y if TENSORFLOW else None
        expected = diagnose(model, x, given)
        assert expected.layers[0].pairs == sum(lengths)
        found = diagnose(model, batches)
        assert found.scalars() == pytest.approx(expected.scalars(), nan_ok=True)
        monitor = GateMonitor(batches)
        model.fit(batches, callbacks=[monitor], verbose=0)
        first = {name: past[0] for name, past in monitor.history.items()}
        assert first["sample/loss"] > 0 if TENSORFLOW else "sample/loss" not in first
        assert monitor.diagnosis.layers[0].pairs == sum(lengths)
        assert not locate_nonfinite(model, batches)


def test_of_lengths_that_nothing_masks_one_is_looked_at(rng):
    model = model_of(helpers.built(rng, dtype="float32", cell="gru", name="rnn"))
    x, y = sequences(rng, batch=6), rng.normal(size=(6, UNITS))
    batches = Lengths(x, y, [9, 9, 7, 7, 9, 9], 0)
    expected = diagnose(model, x[[0, 1, 4, 5]], y[[0, 1, 4, 5]] if TENSORFLOW else None).scalars()
    with pytest.warns(UserWarning, match="only the 4 samples of .* shape, .9, 3., are looked at"):
        found = diagnose(model, batches)
    assert found.scalars() == pytest.approx(expected, nan_ok=True)
    assert found.layers[0].pairs == 4 * 9
    if TENSORFLOW:
        with pytest.warns(UserWarning, match="are looked at"):
            assert not locate_nonfinite(model, batches, replay_epochs=1)


def test_an_iterator_is_left_alone(rng):
    model = model_of(helpers.built(rng, dtype="float32", cell="gru"))
    with pytest.raises(ValueError, match="of an iterator take one batch: x, y = next.x.*list_iter"):
        diagnose(model, iter([sequences(rng)]))
