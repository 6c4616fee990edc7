"""The cells of the literature, against float64 NumPy as their papers write them."""

import pathlib
import warnings

import keras
import numpy as np
import pytest
from helpers import BACKEND, DTYPE, assert_close, leave_out_for_time
from keras import ops

import keras_gates as kg
from keras_gates import checks, verdicts
from keras_gates.cells import CELLS
from keras_gates.cells.program import weights_by_name
from keras_gates.cells.reference import Reference

BATCH, TIME, FEATURES, UNITS = 4, 9, 3, 5
tanh = np.tanh


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def relu(x):
    return np.maximum(x, 0)


def split(a, count):
    return np.split(a, count, axis=-1)


def peephole_lstm(x, h, c, w):
    """Gers, Schraudolph, Schmidhuber, 2002."""
    i, f, g, o = split(x @ w["kernel"] + h @ w["recurrent_kernel"] + w["bias"], 4)
    i = sigmoid(i + w["input_peephole"] * c)
    f = sigmoid(f + w["forget_peephole"] * c)
    c = f * c + i * tanh(g)
    return sigmoid(o + w["output_peephole"] * c) * tanh(c), c


def cifg(x, h, c, w):
    """Greff et al., 2017: i = 1 - f."""
    f, g, o = split(x @ w["kernel"] + h @ w["recurrent_kernel"] + w["bias"], 3)
    i = 1 - sigmoid(f)
    c = sigmoid(f) * c + i * tanh(g)
    return sigmoid(o) * tanh(c), c


def janet(x, h, w):
    """van der Westhuizen, Lasenby, 2018, equations 5 to 8, β = 1."""
    s, g = split(x @ w["kernel"] + h @ w["recurrent_kernel"] + w["bias"], 2)
    return (sigmoid(s) * h + (1 - sigmoid(s - 1)) * tanh(g),)


def mgu(x, h, w):
    """Zhou et al., 2016, equations 10 to 12."""
    (w_f, w_n), (u_f, u_n) = split(w["kernel"], 2), split(w["recurrent_kernel"], 2)
    b_f, b_n = split(w["bias"], 2)
    f = sigmoid(x @ w_f + h @ u_f + b_f)
    return ((1 - f) * h + f * tanh(x @ w_n + (f * h) @ u_n + b_n),)


def li_gru(x, h, w):
    """Ravanelli et al., 2018, without normalization over the batch."""
    z, n = split(x @ w["kernel"] + h @ w["recurrent_kernel"] + w["bias"], 2)
    return (sigmoid(z) * h + (1 - sigmoid(z)) * relu(n),)


def ugrnn(x, h, w):
    """Collins, Sohl-Dickstein, Sussillo, 2017."""
    g, n = split(x @ w["kernel"] + h @ w["recurrent_kernel"] + w["bias"], 2)
    return (sigmoid(g) * h + (1 - sigmoid(g)) * tanh(n),)


def ind_rnn(x, h, w):
    """Li et al., 2018, equation 2."""
    return (relu(x @ w["kernel"] + w["recurrent_vector"] * h + w["bias"]),)


def min_gru(x, h, w):
    """Feng et al., 2024, section 3.1."""
    z, n = split(x @ w["kernel"] + w["bias"], 2)
    return ((1 - sigmoid(z)) * h + sigmoid(z) * n,)


def min_lstm(x, h, w):
    """Feng et al., 2024, section 3.2."""
    f, i, g = split(x @ w["kernel"] + w["bias"], 3)
    f, i = sigmoid(f), sigmoid(i)
    return (f / (f + i) * h + i / (f + i) * g,)


def fast_grnn(x, h, w):
    """Kusupati et al., 2018, equation 3, with the paper's two biases."""
    p = x @ w["kernel"] + h @ w["recurrent_kernel"]
    b_z, b_h = w["bias"] + w["gate_bias"], w["bias"]
    z = sigmoid(p + b_z)
    return ((sigmoid(w["zeta"]) * (1 - z) + sigmoid(w["nu"])) * tanh(p + b_h) + z * h,)


def n_brc(x, h, w):
    """Vecoven, Ernst, Drion, 2021, equations 7 to 9."""
    x_a, x_c, x_n = split(x @ w["kernel"] + w["bias"], 3)
    u_a, u_c = split(h @ w["recurrent_kernel"], 2)
    a, c = 1 + tanh(x_a + u_a), sigmoid(x_c + u_c)
    return (c * h + (1 - c) * tanh(x_n + a * h),)


def star(x, h, w):
    """Turkoglu et al., 2021, equations 6 to 8."""
    x_k, x_n = split(x @ w["kernel"] + w["bias"], 2)
    k = sigmoid(x_k + h @ w["recurrent_kernel"])
    return (tanh((1 - k) * h + k * tanh(x_n)),)


def sru(x, h, c, w):
    """Lei et al., 2018, equations 1 to 4 and section 3.2, with a projection for the highway."""
    x_f, x_r, x_n, x_s = split(x @ w["kernel"] + w["bias"], 4)
    f, r = sigmoid(x_f + w["forget_vector"] * c), sigmoid(x_r + w["reset_vector"] * c)
    c = f * c + (1 - f) * x_n
    return r * c + (1 - r) * np.sqrt(1 + 2 * np.exp(0)) * x_s, c


def antisymmetric(x, h, w):
    """Chang et al., 2019, with ε = 0.1, γ = 0.01; there h is a column."""
    return (h + 0.1 * tanh(damped(h, w) + x @ w["kernel"] + w["bias"]),)


def gated_antisymmetric(x, h, w):
    """Chang et al., 2019, with the gate of the input."""
    x_n, x_z = split(x @ w["kernel"] + w["bias"], 2)
    z = sigmoid(damped(h, w) + x_z)
    return (h + 0.1 * z * tanh(damped(h, w) + x_n),)


def damped(h, w):
    """(W - Wᵀ - γ I) h for each h, of which W is the transpose of the recurrent kernel."""
    matrix = w["recurrent_kernel"].T
    return np.stack([(matrix - matrix.T - 0.01 * np.eye(len(matrix))) @ row for row in h])


def lem(x, y, z, w):
    """Rusch et al., 2022, Δt = 1; y is the hidden state, z the memory."""
    (v_1, v_2, v_z, v_y), (w_1, w_2, w_z, w_y) = (
        split(w["kernel"], 4),
        split(w["recurrent_kernel"], 4),
    )
    b_1, b_2, b_z, b_y = split(w["bias"], 4)
    dt, dt_bar = sigmoid(y @ w_1 + x @ v_1 + b_1), sigmoid(y @ w_2 + x @ v_2 + b_2)
    z = (1 - dt) * z + dt * tanh(y @ w_z + x @ v_z + b_z)
    y = (1 - dt_bar) * y + dt_bar * tanh(z @ w_y + x @ v_y + b_y)
    return y, z


def multiplicative_lstm(x, h, c, w):
    """Krause et al., 2016, with a bias in m."""
    w_m, *of_input = split(w["kernel"], 5)
    u_m, *of_m = split(w["recurrent_kernel"], 5)
    b_m, *biases = split(w["bias"], 5)
    m = (x @ w_m + b_m) * (h @ u_m)
    i, f, g, o = (x @ a + m @ u + b for a, u, b in zip(of_input, of_m, biases, strict=True))
    c = sigmoid(f) * c + sigmoid(i) * tanh(g)
    return sigmoid(o) * tanh(c), c


def normalized(parts):
    """Ba, Kiros, Hinton, 2016, equation 3, of one vector that is given in parts."""
    v = np.concatenate(parts, axis=-1)
    v = (v - v.mean(-1, keepdims=True)) / np.sqrt(v.var(-1, keepdims=True) + 1e-3)
    return split(v, len(parts))


def gain_and_bias(v, w, which, name):
    return v * w[f"{which}_gain_{name}"] + w.get(f"{which}_bias_{name}", 0)


def layer_norm_lstm(x, h, c, w):
    """Ba, Kiros, Hinton, 2016, equations 20 to 22."""
    names = ("input", "forget", "candidate", "output")
    x = normalized(split(x @ w["kernel"], 4))
    u = normalized(split(h @ w["recurrent_kernel"], 4))
    i, f, g, o = (
        gain_and_bias(a, w, "kernel", n) + gain_and_bias(b, w, "recurrent", n)
        for n, a, b in zip(names, x, u, strict=True)
    )
    c = sigmoid(f) * c + sigmoid(i) * tanh(g)
    return sigmoid(o) * tanh(gain_and_bias(normalized([c])[0], w, "state", "cell")), c


def layer_norm_gru(x, h, w):
    """Ba, Kiros, Hinton, 2016, equations 25 to 28, where z is 1 - z."""
    names = ("update", "reset", "candidate")
    (x_z, x_r, x_n), (u_z, u_r, u_n) = (
        split(x @ w["kernel"], 3),
        split(h @ w["recurrent_kernel"], 3),
    )
    x = [*normalized([x_z, x_r]), *normalized([x_n])]
    u = [*normalized([u_z, u_r]), *normalized([u_n])]
    x = [gain_and_bias(v, w, "kernel", n) for v, n in zip(x, names, strict=True)]
    u = [gain_and_bias(v, w, "recurrent", n) for v, n in zip(u, names, strict=True)]
    z, r = sigmoid(x[0] + u[0]), sigmoid(x[1] + u[1])
    return (z * h + (1 - z) * tanh(x[2] + r * u[2]),)


REFERENCES = {
    function.__name__: function
    for function in (
        peephole_lstm, cifg, janet, mgu, li_gru, ugrnn, ind_rnn, min_gru, min_lstm, fast_grnn,
        n_brc, sru, star, layer_norm_lstm, layer_norm_gru, antisymmetric, gated_antisymmetric, lem,
        multiplicative_lstm,
    )
}  # fmt: skip
# Parameters per layer of n units and m features.
PARAMETERS = {
    "peephole_lstm": lambda n, m: 4 * (n * m + n * n + n) + 3 * n,
    "cifg": lambda n, m: 3 * (n * m + n * n + n),
    **dict.fromkeys(("janet", "mgu", "li_gru", "ugrnn"), lambda n, m: 2 * (n * m + n * n + n)),
    "ind_rnn": lambda n, m: n * m + 2 * n,
    "min_gru": lambda n, m: 2 * (n * m + n),
    "min_lstm": lambda n, m: 3 * (n * m + n),
    "fast_grnn": lambda n, m: n * m + n * n + 2 * n + 2,
    "n_brc": lambda n, m: 3 * (n * m + n) + 2 * n * n,
    "sru": lambda n, m: 4 * (n * m + n) + 2 * n,
    "star": lambda n, m: 2 * (n * m + n) + n * n,
    "antisymmetric": lambda n, m: n * m + n * n + n,
    "gated_antisymmetric": lambda n, m: 2 * (n * m + n) + n * n,
    "lem": lambda n, m: 4 * (n * m + n * n + n),
    "multiplicative_lstm": lambda n, m: 5 * (n * m + n * n + n),
    "layer_norm_lstm": lambda n, m: 4 * (n * m + n * n) + 8 * n + 4 * n + 2 * n,
    "layer_norm_gru": lambda n, m: 3 * (n * m + n * n) + 6 * n + 6 * n,
}
# Weights that do not start as those of all cells do.
STARTS = {
    "janet": {"bias": [1] * UNITS + [0] * UNITS},
    "ugrnn": {"bias": [1] * UNITS + [0] * UNITS},
    "cifg": {"bias": [1] * UNITS + [0] * 2 * UNITS},
    "multiplicative_lstm": {"bias": [0] * 2 * UNITS + [1] * UNITS + [0] * 2 * UNITS},
    "peephole_lstm": {"bias": [0] * UNITS + [1] * UNITS + [0] * 2 * UNITS},
    "layer_norm_lstm": {
        "kernel_gain_input": [1] * UNITS,
        "kernel_bias_forget": [1] * UNITS,
        "kernel_bias_input": [0] * UNITS,
        "state_gain_cell": [1] * UNITS,
    },
    "fast_grnn": {"bias": [1] * UNITS, "gate_bias": [0] * UNITS, "zeta": [1], "nu": [-4]},
}


def test_every_cell_has_a_reference():
    assert set(REFERENCES) == set(PARAMETERS) == set(CELLS) - {"gru", "lstm", "simple"}


def layer_of(name, rng=None, **arguments):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", kg.UnstableActivationsWarning)
        layer = kg.GatedRNN(UNITS, cell=name, **arguments)
    layer.build((None, None, FEATURES))
    if rng is not None:
        layer.set_weights([0.6 * rng.normal(size=w.shape) for w in layer.get_weights()])
    return layer


@pytest.mark.parametrize("backprop", ["auto", "autodiff"])
@pytest.mark.parametrize("name", REFERENCES)
def test_outputs_equal_the_paper(name, backprop, rng):
    layer = layer_of(
        name, rng, backprop=backprop, return_sequences=True, return_state=True, dtype=DTYPE
    )
    weights = {
        n: np.asarray(ops.convert_to_numpy(w), "float64")
        for n, w in weights_by_name(layer.cell).items()
    }
    x = rng.normal(size=(BATCH, TIME, FEATURES))
    states = [rng.normal(size=(BATCH, UNITS)) for _ in layer.cell.state_names]
    outputs, *last = layer(ops.cast(x, DTYPE), initial_state=[ops.cast(s, DTYPE) for s in states])
    expected = []
    for t in range(TIME):
        states = REFERENCES[name](x[:, t], *states, weights)
        expected.append(states[0])
    assert_close(outputs, np.stack(expected, 1))
    for one, other in zip(last, states, strict=True):
        assert_close(one, other)
    if backprop == "auto" and BACKEND == "tensorflow":
        assert layer._paths.fused.obstacles == {"inference": None}


@pytest.mark.parametrize("check", checks.CHECKS)
@pytest.mark.parametrize("name", REFERENCES)
@pytest.mark.filterwarnings("ignore::keras_gates.UnstableActivationsWarning")
def test_check(name, check):
    of_all = ("unrolled", "wrappers", "penalties", "half_precision", "directions", "clipping")
    leave_out_for_time(check in of_all)  # the same code for all cells
    leave_out_for_time(([*REFERENCES].index(name) + [*checks.CHECKS].index(check)) % 2)
    checks.CHECKS[check](CELLS[name], {})


@pytest.mark.parametrize("name", REFERENCES)
def test_parameters_and_their_start_are_those_of_the_paper(name):
    layer = layer_of(name)
    assert layer.count_params() == PARAMETERS[name](UNITS, FEATURES)
    weights = weights_by_name(layer.cell)
    for weight, start in STARTS.get(name, {}).items():
        np.testing.assert_array_equal(ops.convert_to_numpy(weights[weight]), start)


def test_starts_that_are_drawn():
    layer = kg.GatedRNN(2000, cell="ind_rnn")
    layer.build((None, None, 1))
    vector = ops.convert_to_numpy(layer.cell.recurrent_vector)
    assert 0 <= vector.min() < 0.01
    assert 0.99 < vector.max() <= 1
    sru = kg.GatedRNN(500, cell="sru")
    sru.build((None, None, 12))
    kernel, _, *vectors = map(ops.convert_to_numpy, sru.weights)
    np.testing.assert_allclose(abs(kernel).max(), np.sqrt(3 / 12), rtol=0.01)
    for vector in vectors:
        np.testing.assert_allclose([abs(vector).max(), vector.std()], np.sqrt([1.5, 0.5]), rtol=0.1)
    star = kg.GatedRNN(6, cell="star")
    star.build((None, None, 20))
    kernel = ops.convert_to_numpy(star.cell.kernel)
    np.testing.assert_allclose(kernel.T @ kernel, np.eye(12), atol=1e-5)
    lem = kg.GatedRNN(100, cell="lem")
    lem.build((None, None, 30))
    drawn = [ops.convert_to_numpy(w) for w in lem.weights]
    for weight in drawn:
        assert 0.095 < abs(weight).max() <= 0.1
    assert (drawn[0][:30, :100] != drawn[1][:30, :100]).all()
    antisymmetric = kg.GatedRNN(100, cell="antisymmetric")
    antisymmetric.build((None, None, 400))
    kernel, recurrent, _ = (ops.convert_to_numpy(w) for w in antisymmetric.weights)
    np.testing.assert_allclose([kernel.std(), recurrent.std()], [0.05, 0.1], rtol=0.05)


@pytest.mark.parametrize("name", REFERENCES)
def test_a_gradient_for_every_weight_and_a_file_that_loads(name, rng, tmp_path):
    leave_out_for_time(name not in ("peephole_lstm", "fast_grnn"))  # the unlike ones
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", category=kg.UnstableActivationsWarning)
        warnings.filterwarnings("ignore", category=DeprecationWarning)
        model = keras.Sequential(
            [
                keras.Input((None, FEATURES)),
                keras.layers.Masking(),
                kg.GatedRNN(UNITS, cell=name, return_sequences=True),
                keras.layers.Bidirectional(kg.GatedRNN(UNITS, cell=name, grad_clip_norm=1.0)),
                keras.layers.Dense(1),
            ]
        )
        model.compile("adam", "mse")
        before = model.get_weights()
        x = rng.normal(size=(BATCH, TIME, FEATURES)).astype("float32")
        x[1, 5:] = 0
        model.fit(x, x[:, 0, :1], epochs=2, verbose=0)
    for one, other, weight in zip(model.get_weights(), before, model.weights, strict=True):
        assert (one != other).any(), weight.path
    path = tmp_path / "model.keras"
    model.save(path)
    np.testing.assert_array_equal(keras.models.load_model(path).predict(x, verbose=0),
                                  model.predict(x, verbose=0))  # fmt: skip


def test_verdicts_of_the_papers_own_activations():
    levels = {name: verdicts.judge(CELLS[name](UNITS)).level for name in REFERENCES}
    unbounded = ("li_gru", "ind_rnn", "antisymmetric", "gated_antisymmetric")
    assert levels == {n: "caution" if n in unbounded else "sound" for n in REFERENCES}
    (reason,) = kg.check_activations("antisymmetric").reasons
    assert "h' = h + 0.1 * n: nothing is forgotten" in reason.what
    (reason,) = kg.check_activations("n_brc", gate_activation={"feedback": "relu"}).reasons
    assert "the gate feedback (relu)" in reason.what


def test_the_search_space():
    keras_tuner = pytest.importorskip("keras_tuner")
    from keras_gates import tuning

    hp = keras_tuner.HyperParameters()
    cells = ("gru", "ind_rnn", "peephole_lstm", "min_gru")
    tuning.activation_space(hp, cell=cells)
    again = keras_tuner.HyperParameters()
    tuning.space._judged.cache_clear()
    tuning.activation_space(again, cell=cells)
    assert again.get_config() == hp.get_config()
    by_name = {p.name: p for p in hp.space}
    assert by_name["cell"].values == list(cells)
    for p in hp.space:  # a vector can be neither
        if p.name.endswith("recurrent_initializer"):
            assert "ind_rnn" not in str([p.name, *(c.values for c in p.conditions)])


@pytest.mark.skipif(BACKEND != "tensorflow", reason="diagnosis of TensorFlow's models")
def test_a_feedback_below_zero_is_no_finding(rng):
    model = keras.Sequential([keras.Input((None, FEATURES)), layer_of("n_brc", rng)])
    diagnosis = kg.diagnose(model, rng.normal(size=(BATCH, TIME, FEATURES)))
    assert diagnosis.layers[0].gates["feedback"].p5 < 0
    assert not any("is negative" in str(f) for f in diagnosis.findings)


def test_equations_in_the_symbols_of_the_papers():
    text = kg.GatedRNN(3, cell="layer_norm_lstm").explain()
    assert "L(v) = v, normalized (x_k and u_k each over the units of all their blocks)" in text
    assert "f = sigmoid(L(x_f) + L(u_f))" in text
    assert "h' = o * tanh(L(c'))" in text
    text = kg.GatedRNN(3, cell="n_brc").explain()
    assert "a = tanh(x_a + u_a)" in text
    assert "n = tanh(x_n + (1 + a) * h)" in text
    assert "f = sigmoid(x_f + u_f + p_f * c)" in layer_of("peephole_lstm").explain()


@pytest.mark.parametrize("name", sorted(CELLS))
@pytest.mark.filterwarnings("ignore::keras_gates.UnstableActivationsWarning")
def test_every_cell_can_be_normalized(name, rng):
    """Scaling W and U changes nothing then, as far as ε lets it."""
    leave_out_for_time(name not in ("gru", "lstm", "simple", "cifg", "janet", "li_gru"))
    for check in ("input_gradients", "config_round_trip", "masks"):
        if check in checks.CHECKS:
            checks.CHECKS[check](CELLS[name], {"layer_norm": True})
    layer = layer_of(name, rng, layer_norm=True, dtype=DTYPE)
    assert not any(w.name == "bias" for w in layer.weights)
    x = ops.cast(10 * rng.normal(size=(BATCH, TIME, FEATURES)), DTYPE)
    kernel, *others = layer.get_weights()
    layer.set_weights([10 * kernel, *others])
    found = layer(x)
    layer.set_weights([1e3 * kernel, *others])
    assert_close(layer(x), found, 1e-3)


def test_messages():
    with pytest.raises(ValueError, match=r"`layer_norm` must be True or False. Received: layer_n"):
        kg.GatedRNN(3, layer_norm="yes")
    with pytest.raises(
        ValueError,
        match=r"MinGRUCell has no recurrent kernel, so `recurrent_dropout` has nothing to drop",
    ):
        kg.GatedRNN(3, cell="min_gru", recurrent_dropout=0.1)
    with pytest.raises(ValueError, match=r"`beta` must be a finite number. Received: beta='1'"):
        kg.GatedRNN(3, cell="janet", beta="1")
    with pytest.raises(TypeError, match=r"GRUCell.* takes no argument `beta`; it belongs to JANET"):
        kg.GatedRNN(3, cell="gru", beta=1)
    with pytest.raises(ValueError, match=r"must be one of 'gru', 'lstm', .*'ugrnn'.* mean 'mgu'"):
        kg.GatedRNN(3, cell="mgru")

    class Wrong(kg.GatedCell):
        blocks = ("update", "candidate")
        recurrent_blocks = ("candidate",)

    with pytest.raises(ValueError, match=r"`recurrent_blocks` of Wrong must be the first of its"):
        Wrong(3).build((None, 2))


@pytest.mark.skipif(BACKEND != "tensorflow", reason="exports of TensorFlow")
@pytest.mark.filterwarnings("ignore::keras_gates.UnstableActivationsWarning")
@pytest.mark.parametrize("format", ["onnx", "litert", "openvino", "saved_model"])
@pytest.mark.parametrize("name", REFERENCES)
def test_exports(name, format, tmp_path, quick):
    """`export` itself compares what it has written with the model, in another process."""
    leave_out_for_time(format != "onnx" and name != "peephole_lstm")
    leave_out_for_time([*REFERENCES].index(name) % 2)
    model = keras.Sequential(
        [
            keras.Input((None, FEATURES), name="x"),
            keras.layers.Masking(),
            kg.GatedRNN(UNITS, cell=name),
            keras.layers.Dense(2),
        ]
    )
    suffix = {"onnx": ".onnx", "litert": ".tflite", "openvino": ".xml"}.get(format, "")
    report = kg.export(model, tmp_path / f"model{suffix}", format=format)
    assert report is not None


class Structured(kg.GatedCell):
    """h' = tanh(x W + b + h P), with P made of U, once by the cell itself and once by hand."""

    def parametrize(self, recurrent_kernel):
        u = recurrent_kernel
        return ops.tanh(u) - 0.5 * ops.transpose(u)

    def update(self, x, u, states):
        return (self.candidate(x.candidate + u.candidate),)


def test_a_recurrent_kernel_with_a_structure(rng):
    """Outputs and gradients, dropout too, on both paths, and the reference of programs."""
    x = rng.normal(size=(BATCH, TIME, FEATURES))
    layers = [
        kg.GatedRNN(UNITS, cell=cell, backprop=backprop, grad_clip_norm=0.5, dtype=DTYPE)
        for cell, backprop in ((Structured, "auto"), (Structured, "autodiff"), ("simple", "auto"))
    ]
    for layer in layers:
        layer.build((None, None, FEATURES))
    w, u, b = (0.6 * rng.normal(size=v.shape) for v in layers[0].get_weights())
    found = []
    for layer, kernel in zip(layers, (u, u, np.tanh(u) - 0.5 * u.T), strict=True):
        layer.set_weights([w, kernel, b])
        found.append(
            checks.gradients(layer, [ops.cast(x, DTYPE)], lambda y: ops.sum(ops.sin(y[0])))
        )
    (out, d_x, d_w), *others = found
    for other_out, other_x, other_w in others:
        assert_close(out, other_out)
        assert_close(d_x[0], other_x[0])
        assert_close(d_w[0], other_w[0])
        assert_close(d_w[2], other_w[2])
    assert_close(d_w[1], others[0][2][1])
    d_p = np.asarray(others[1][2][1])
    assert_close(d_w[1], (1 - np.tanh(u) ** 2) * d_p - 0.5 * d_p.T)
    state = [rng.normal(size=(BATCH, UNITS))]
    (after,) = Reference(layers[0].cell).step(x[:, 0], state)
    assert_close(after, np.tanh(x[:, 0] @ w + b + state[0] @ (np.tanh(u) - 0.5 * u.T)))
    assert "u_k = h U_k, of U as Structured.parametrize makes it" in layers[0].explain()


def test_a_structure_of_another_shape_is_refused():
    class Wrong(Structured):
        def parametrize(self, recurrent_kernel):
            return recurrent_kernel[:, :-1]

    with pytest.raises(ValueError, match=r"`parametrize` of Wrong must return .*kernel, \(3, 3\)"):
        kg.GatedRNN(3, cell=Wrong).build((None, None, 2))


@pytest.mark.skipif(BACKEND != "tensorflow", reason="exports of TensorFlow")
def test_a_structure_in_the_operator_of_onnx(tmp_path, quick):
    """Its equations are those of ONNX' RNN, and its kernel is not the trained weight."""
    layer = kg.GatedRNN(UNITS, cell=Structured)
    model = keras.Sequential([keras.Input((None, FEATURES), name="x"), layer])
    kg.export(model, tmp_path / "model.onnx", format="onnx")


def test_the_page_of_cells_has_the_number_of_weights_of_each():
    page = (pathlib.Path(__file__).parents[1] / "docs" / "cells.md").read_text()
    found = {}
    for line in page.splitlines():
        if line.startswith('| `"'):
            names, numbers = line.split("|")[1:3]
            names = [name.strip(' `"') for name in names.split(",")]
            numbers = [int(number.replace(",", "")) for number in numbers.strip().split(", ")]
            found.update(zip(names, numbers, strict=True))
    assert set(found) == set(CELLS) - {"gru", "lstm", "simple"}
    for name, number in found.items():
        layer = kg.GatedRNN(32, cell=name)
        layer.build((None, None, 8))
        assert layer.count_params() == number, name
