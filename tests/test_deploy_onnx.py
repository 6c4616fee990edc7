"""ONNX files: their operators, and what ONNX Runtime makes of them against the Keras model."""

import doctest
import json
import pathlib
import re
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers import ALL, BACKEND, MASK, MGUCell, built, golden_files, unpacked

import keras_gates as kg
from keras_gates import activations, diagnostics
from keras_gates.deployment import NotExportableError, ParityError, export, inspect
from keras_gates.deployment import onnx as onnx_format
from keras_gates.deployment.onnx.activations import native
from keras_gates.deployment.onnx.graphs import names_read, nodes
from keras_gates.deployment.onnx.operators import attributes, operator
from keras_gates.deployment.onnx.recurrent import recurrent_operators
from keras_gates.deployment.spec import ModelSpec

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("tf2onnx")
if BACKEND != "tensorflow":
    pytest.skip("ONNX files are written by way of TensorFlow", allow_module_level=True)
pytestmark = pytest.mark.filterwarnings("ignore::keras_gates.UnstableActivationsWarning")

LAYERS = keras.layers
MANY = 129  # copies of a batch; a Scan takes over at fewer
RECURRENT = ("GRU", "LSTM", "RNN", "Loop")


class OwnRNN(kg.GatedRNN):
    """A layer whose loop may be anything."""


class Written:
    """A model as an ONNX file, and what is in it."""

    def __init__(self, model, folder):
        self.model, path = model, folder / "model.onnx"
        spec, file = ModelSpec(model), onnx_format.ONNX()
        file.check(spec)
        self.found = file.write(spec, path)
        self.file = onnx.load(path)
        onnx.checker.check_model(self.file, full_check=True)
        self.session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])

    def recurrent(self):
        """How often each recurrent operator occurs."""
        return {name: n for name, n in self.found.operators.items() if name in RECURRENT}

    def loops(self):
        """The notes on layers that have no operator, in the order of their names."""
        return [
            note
            for note in sorted(self.found.notes)
            if re.search(" runs as a (Scan|Loop), bec", note)
        ]

    def attributes(self, layer):
        """Those of the operator of a layer."""
        (node,) = [
            node
            for node in nodes(self.file.graph)
            if node.op_type in RECURRENT and f"/{layer}_1/" in node.name
        ]
        return {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}

    def run(self, inputs):
        names = [given.name for given in self.session.get_inputs()]
        return self.session.run(None, dict(zip(names, inputs, strict=True)))

    def assert_equal(self, *batches):
        """The file gives what the model gives, for each batch: an array, or a list of them."""
        for batch in batches:
            inputs = batch if isinstance(batch, list) else [batch]
            expected = keras.tree.flatten(self.model(batch, training=False))
            outputs = [given.name for given in self.session.get_outputs()]
            for name, y, other in zip(outputs, self.run(inputs), expected, strict=True):
                assert_close(y, other, name)
            # As many sequences as ONNX Runtime has another way for, and none.
            many = self.run([np.tile(x, (MANY, *[1] * (x.ndim - 1))) for x in inputs])
            none = self.run([x[:0] for x in inputs])
            for name, y, y_none, other in zip(outputs, many, none, expected, strict=True):
                assert_close(y, np.tile(other, (MANY, *[1] * (y.ndim - 1))), f"{name} of many")
                assert y_none.shape == (0, *other.shape[1:])


def assert_close(y, expected, name=""):
    expected = np.asarray(expected)
    assert y.shape == expected.shape
    scale = np.abs(expected).max()
    np.testing.assert_allclose(y, expected, rtol=0, atol=1e-5 * scale, err_msg=name)


def frames(time=None):
    return keras.Input((time, 3), name="frames")


def randomized(model, rng):
    """The model with random weights, biases too."""
    model.set_weights([0.5 * rng.normal(size=w.shape) for w in model.get_weights()])
    return model


def sequential(rng, *layers):
    return randomized(keras.Sequential([frames(), *layers]), rng)


def parallel(layers, rng, masked=False):
    """A model with the outputs of all layers, each of the same input."""
    x = frames()
    start = LAYERS.Masking()(x) if masked else x
    return randomized(keras.Model(x, [layer(start) for layer in layers]), rng)


def sequences(rng, masked=False):
    """Several batch sizes and lengths, with every kind of padding where there is a mask."""
    given = [rng.normal(size=(b, t, 3)).astype("float32") for b, t in ((1, 1), (6, 9), (3, 40))]
    if masked:
        given[1][~MASK] = 0
    return given


# ---------------------------------------------------------------------- activations

# Activation -> that of ONNX, its alpha and its beta.
NATIVE = {
    "celu": ("Elu", 1.0, None),
    "elu": ("Elu", 1.0, None),
    "hard_sigmoid": ("HardSigmoid", 1 / 6, 0.5),
    "hard_sigmoid_keras2": ("HardSigmoid", 0.2, 0.5),
    "leaky_relu": ("LeakyRelu", 0.2, None),
    "linear": ("Affine", 1.0, 0.0),
    "relu": ("Relu", None, None),
    "relu_gate": ("HardSigmoid", 1.0, 0.0),
    "sigmoid": ("Sigmoid", None, None),
    "softplus": ("Softplus", None, None),
    "softsign": ("Softsign", None, None),
    "tanh": ("Tanh", None, None),
    "tanh_gate": ("Sigmoid", None, None),  # of twice the pre-activation
    "tf_relu": ("Relu", None, None),
    "layer_elu": ("Elu", 0.7, None),
    "layer_leaky": ("LeakyRelu", 0.1, None),
    "layer_relu": ("Relu", None, None),
    "layer_slope": ("LeakyRelu", 0.3, None),
    "layer_threshold": ("ThresholdedRelu", 0.4, None),
    "layer_tanh": ("Tanh", None, None),
    "lecun": ("ScaledTanh", 1.7159, 2 / 3),
    "steep_relu": ("Relu", None, None),  # of three times the pre-activation
    "of_sigmoid": ("Tanh", None, None),  # of half the pre-activation
}
# What scales the weights before it: there are none before the output activation.
SCALING = ("tanh_gate", "steep_relu", "of_sigmoid")
MADE = {
    "tf_relu": lambda: tf.nn.relu,
    "layer_elu": lambda: LAYERS.ELU(0.7),
    "layer_leaky": lambda: LAYERS.LeakyReLU(0.1),
    "layer_relu": lambda: LAYERS.ReLU(),
    "layer_slope": lambda: LAYERS.ReLU(negative_slope=0.3),
    "layer_threshold": lambda: LAYERS.ReLU(threshold=0.4),
    "layer_tanh": lambda: LAYERS.Activation("tanh"),
    "lecun": lambda: lecun_tanh,
    "steep_relu": lambda: steep_relu,
    "of_sigmoid": lambda: tanh_of_sigmoid,
}


@keras.saving.register_keras_serializable("test_deploy_onnx")
def lecun_tanh(x):
    return 1.7159 * keras.ops.tanh(2 / 3 * x)


@keras.saving.register_keras_serializable("test_deploy_onnx")
def steep_relu(x):
    return 3 * keras.ops.relu(x)


@keras.saving.register_keras_serializable("test_deploy_onnx")
def tanh_of_sigmoid(x):
    return 2 * keras.ops.sigmoid(x) - 1


ROLES = {
    "gru": {"gate_activation": 0, "candidate_activation": 1},
    "lstm": {"gate_activation": 0, "candidate_activation": 1, "output_activation": 2},
    "simple": {"candidate_activation": 0},
}
USUAL = {"gru": ["Sigmoid", "Tanh"], "lstm": ["Sigmoid", "Tanh", "Tanh"], "simple": ["Tanh"]}


def test_an_activation_that_is_constant_is_none_of_onnx():
    assert native(lambda x: keras.ops.ones((1, 1))) is None


@pytest.mark.parametrize("cell", ROLES)
def test_activations_are_attributes_with_their_exact_parameters(cell, rng):
    x = rng.normal(size=(2, 3, 3)).astype("float32")
    for activation, kind in NATIVE.items():
        for role, position in ROLES[cell].items():
            if role == "output_activation" and activation in SCALING:
                continue
            if cell == "lstm" and role != "output_activation" and not ALL:
                continue  # as in a GRU
            given = {"output_activation": "tanh"} if cell == "lstm" else {}
            given[role] = MADE.get(activation, lambda name=activation: name)()
            layer = built(rng, scale=0.5, cell=cell, dtype="float32", **given)
            one = operator(layer.cell)
            found = attributes([one], "forward")
            expected = [(name, None, None) for name in USUAL[cell]]
            expected[position] = kind
            assert found["activations"] == [name for name, _, _ in expected]
            assert found.get("activation_alpha", []) == [a for _, a, _ in expected if a is not None]
            assert found.get("activation_beta", []) == [b for _, _, b in expected if b is not None]
            assert_close(run_node(one, found, x), steps(layer.cell, x), f"{role} {activation}")


def steps(cell, x):
    """The hidden states, (batch, time, units), of a cell that runs step by step."""
    states, hidden = cell.get_initial_state(batch_size=len(x)), []
    for t in range(x.shape[1]):
        h, states = cell(x[:, t], states)
        hidden.append(np.array(h))
    return np.stack(hidden, axis=1)


def run_node(one, attributes, x):
    """The hidden states, (batch, time, units), that ONNX Runtime computes by a single operator."""
    tensor = onnx.helper.make_tensor_value_info
    node = onnx.helper.make_node(one.op_type, ["x", "W", "R", "B"], ["y"], **attributes)
    weights = [
        onnx.numpy_helper.from_array(weight[None], name)
        for weight, name in zip(one.weights, "WRB", strict=True)
    ]
    graph = onnx.helper.make_graph(
        [node],
        "one_operator",
        [tensor("x", onnx.TensorProto.FLOAT, [None, None, x.shape[2]])],
        [tensor("y", onnx.TensorProto.FLOAT, [None, 1, None, None])],
        weights,
    )
    model = onnx.helper.make_model(
        graph, opset_imports=[onnx.helper.make_opsetid("", 15)], ir_version=8
    )
    onnx.checker.check_model(model, full_check=True)
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    (hidden,) = session.run(None, {"x": x.transpose(1, 0, 2)})
    return hidden[:, 0].transpose(1, 0, 2)


@pytest.mark.slow
def test_gates_share_an_operator_if_they_share_the_activation_of_onnx(tmp_path, rng):
    layers = [
        kg.GatedRNN(4, gate_activation={"update": "tanh_gate", "reset": "sigmoid"}),
        kg.GatedRNN(4, gate_activation={"update": "hard_sigmoid"}, name="apart"),
        kg.GatedRNN(4, "lstm", gate_activation={"forget": "tanh_gate"}),
        kg.GatedRNN(4, "lstm", output_activation="tanh_gate", name="outside"),
    ]
    written = Written(parallel(layers, rng), tmp_path)
    assert written.recurrent() == {"GRU": 1, "LSTM": 1}
    assert written.loops() == [
        "apart runs as a Scan, because all gates of an ONNX GRU share one activation, and update "
        "has hard_sigmoid, reset has sigmoid.",
        "outside runs as a Scan, because ONNX has no activation tanh_gate (of the cell state).",
    ]
    written.assert_equal(*sequences(rng))


# ---------------------------------------------------------------------- cells, masks, directions

CELLS = {
    "gru": lambda **k: kg.GatedRNN(4, gate_activation="hard_sigmoid", **k),
    "gru_before": lambda **k: kg.GatedRNN(4, reset_after=False, **k),
    "gru_without_bias": lambda **k: kg.GatedRNN(4, use_bias=False, **k),
    "lstm": lambda **k: kg.GatedRNN(4, "lstm", output_activation="softsign", **k),
    "simple": lambda **k: kg.GatedRNN(4, "simple", candidate_activation="relu", **k),
    "keras_gru": lambda **k: LAYERS.GRU(4, dropout=0.2, recurrent_dropout=0.1, **k),
    "keras_lstm": lambda **k: LAYERS.LSTM(4, activation="softsign", **k),
    "keras_simple": lambda **k: LAYERS.SimpleRNN(4, activation=None, use_bias=False, **k),
    "rnn": lambda **k: LAYERS.RNN(kg.GRUCell(4, grad_clip_norm=1.0), **k),
    "stack": lambda **k: LAYERS.RNN([kg.GRUCell(4), LAYERS.LSTMCell(5), kg.GRUCell(3)], **k),
}


def test_cells_are_operators(tmp_path, rng):
    layers = [make(name=name) for name, make in CELLS.items()]
    every = {"go_backwards": True, "return_sequences": True, "return_state": True}
    layers += [CELLS[name](name=f"{name}_back", **every) for name in ("gru", "lstm", "simple")]
    written = Written(parallel(layers, rng), tmp_path)
    assert written.recurrent() == {"GRU": 7 + 1, "LSTM": 3 + 1, "RNN": 2 + 1}
    assert written.loops() == []
    assert written.attributes("gru")["direction"] == b"forward"
    assert written.attributes("gru_back")["direction"] == b"reverse"
    assert written.attributes("gru")["linear_before_reset"] == 1
    assert written.attributes("gru_before")["linear_before_reset"] == 0
    written.assert_equal(*sequences(rng))


class TwinCell(kg.GatedCell):
    """The equations of a GRU, with blocks in another order."""

    blocks = ("reset", "update", "candidate")
    projected_blocks = ("reset", "update")

    def update(self, x, u, states):
        (h,) = states
        r = self.gate("reset", x.reset + u.reset)
        n = self.candidate(x.candidate + self.recurrent("candidate", r * h))
        z = self.gate("update", x.update + u.update)
        return (z * h + (1 - z) * n,)


class SumCell(kg.SimpleRNNCell):
    """A built-in cell with another equation."""

    def update(self, x, u, states):
        return (0.5 * states[0] + super().update(x, u, states)[0],)


class SquashedCell(kg.SimpleRNNCell):
    """The equation of a built-in cell in other words."""

    def update(self, x, u, states):
        preactivation = x.candidate + u.candidate
        return (self.candidate(preactivation),)


@pytest.mark.slow
def test_a_cell_is_an_operator_if_it_has_its_equations(tmp_path, rng):
    layers = [
        kg.GatedRNN(4, SumCell, name="sum"),
        kg.GatedRNN(4, SquashedCell),
        kg.GatedRNN(4, TwinCell, name="twin"),
    ]
    written = Written(parallel(layers, rng), tmp_path)
    assert written.recurrent() == {"GRU": 1, "RNN": 1}
    assert written.loops() == [
        "sum runs as a Scan, because ONNX has no operator for the cell SumCell."
    ]
    written.assert_equal(*sequences(rng))


@pytest.mark.slow
def test_many_sequences_run_as_a_scan(tmp_path, rng):
    """With every activation and option; `assert_equal` runs few, many and none."""
    activations = {**dict.fromkeys(NATIVE), **MADE}
    layers = [
        kg.GatedRNN(3, cell, candidate_activation=made() if made else name, go_backwards=back)
        for name, made in activations.items()
        for cell, back in (("gru", False), ("simple", True))
    ]
    layers += [CELLS[name](return_sequences=True, return_state=True) for name in CELLS]
    both = {"gate_activation": "hard_sigmoid", "candidate_activation": "leaky_relu"}
    layers += [LAYERS.Bidirectional(kg.GatedRNN(3, return_sequences=True, **both))]
    written = Written(parallel(layers, rng), tmp_path)
    found = written.recurrent()
    # One per direction.
    assert written.found.operators["Scan"] == found["GRU"] + 1 + found["RNN"]
    assert written.found.operators["If"] == 2 * (found["GRU"] + found["RNN"]) + found["LSTM"]
    written.assert_equal(*sequences(rng))


def test_no_time_steps_leave_the_states_as_they_are(tmp_path, rng):
    """ONNX Runtime's own operators end the process, as they do for no sequences."""
    x, h = frames(), keras.Input((4,), name="h")
    found = [
        value
        for cell in CELLS
        if cell != "stack"
        for value in CELLS[cell](return_sequences=True, return_state=True)(
            x, initial_state=[h, h] if "lstm" in cell else [h]
        )
    ]
    written = Written(randomized(keras.Model([x, h], found), rng), tmp_path)
    before = rng.normal(size=(5, 4)).astype("float32")
    for y in written.run([np.zeros((5, 0, 3), "float32"), before]):
        if y.ndim == 3:
            assert y.shape == (5, 0, 4)
        else:
            np.testing.assert_array_equal(y, before)


def test_no_time_steps_where_there_are_masks(tmp_path, rng):
    """(Where an own cell runs as a Scan, ONNX Runtime raises an error of its own.)"""
    x = frames()
    layers = [kg.GatedRNN(4, cell, return_sequences=True) for cell in ("gru", "lstm")]
    found = [layer(LAYERS.Masking()(x)) for layer in layers]
    written = Written(randomized(keras.Model(x, found), rng), tmp_path)
    for batch, time in ((5, 0), (0, 3), (0, 0)):
        for y in written.run([np.zeros((batch, time, 3), "float32")]):
            assert y.shape == (batch, time, 4)


def test_masks_are_obeyed_wherever_the_padding_is(tmp_path, rng):
    def masked(cell, zero, backwards, every):
        return CELLS[cell](
            zero_output_for_mask=zero,
            go_backwards=backwards,
            return_sequences=every,
            return_state=every,
        )

    layers = [
        masked("gru", False, False, False),
        masked("gru", False, True, True),
        masked("gru", True, False, True),
        masked("gru", True, True, False),
        masked("lstm", False, False, True),
        masked("stack", True, True, True),
    ]
    written = Written(parallel(layers, rng, masked=True), tmp_path)
    assert written.recurrent() == {"GRU": 4 + 2, "LSTM": 1 + 1}
    written.assert_equal(*sequences(rng, masked=True))


@pytest.mark.slow
def test_what_is_in_masked_steps_does_not_matter(tmp_path, rng):
    """Not even NaN. tf2onnx would multiply it by 0."""
    x, mask = frames(), keras.Input((None,), name="mask", dtype="bool")
    layers = [kg.GatedRNN(4), kg.GatedRNN(4, cell=MGUCell)]
    model = keras.Model([x, mask], [layer(x, mask=mask) for layer in layers])
    written = Written(randomized(model, rng), tmp_path)
    assert written.recurrent() == {"GRU": 1}
    assert written.found.operators["Scan"] == 1
    data = sequences(rng)[1]
    data[~MASK] = np.nan
    assert np.isfinite(written.run([data, MASK])).all()
    written.assert_equal([data, MASK])


@pytest.mark.slow
def test_embedded_tokens_with_a_mask(tmp_path, rng):
    tokens = keras.Input((None,), dtype="int32", name="tokens")
    x = LAYERS.Embedding(7, 3, mask_zero=True)(tokens)
    x = kg.GatedRNN(4, return_sequences=True)(x)
    model = keras.Model(tokens, kg.GatedRNN(4, "lstm")(LAYERS.LayerNormalization()(x)))
    written = Written(randomized(model, rng), tmp_path)
    assert written.recurrent() == {"GRU": 1, "LSTM": 1}
    data = rng.integers(1, 7, MASK.shape).astype("int32") * MASK
    written.assert_equal(data.astype("int32"), data[:2, :4].astype("int32"))


@pytest.mark.parametrize("merge_mode", ["concat", "sum", "mul", "ave", None])
def test_bidirectional_is_one_operator(merge_mode, tmp_path, rng):
    layers = [
        LAYERS.Bidirectional(kg.GatedRNN(4, return_sequences=True), merge_mode=merge_mode),
        LAYERS.Bidirectional(LAYERS.LSTM(4, return_state=True), merge_mode=merge_mode),
    ]
    masked = merge_mode == "concat"
    written = Written(parallel(layers, rng, masked), tmp_path)
    assert written.recurrent() == {"GRU": 1, "LSTM": 1}
    directions = [
        attribute.s
        for node in nodes(written.file.graph)
        for attribute in node.attribute
        if attribute.name == "direction"
    ]
    assert directions == [b"bidirectional"] * 2
    written.assert_equal(*sequences(rng, masked))


@pytest.mark.slow
def test_directions_that_differ_are_two_operators(tmp_path, rng):
    layers = [
        LAYERS.Bidirectional(
            kg.GatedRNN(4, "lstm"), backward_layer=kg.GatedRNN(3, go_backwards=True)
        ),
        LAYERS.Bidirectional(
            kg.GatedRNN(4, go_backwards=True, return_sequences=True),
            backward_layer=kg.GatedRNN(4, return_sequences=True),
        ),
        LAYERS.Bidirectional(
            kg.GatedRNN(4, "simple", candidate_activation=LAYERS.LeakyReLU(0.1)),
            backward_layer=kg.GatedRNN(
                4, "simple", candidate_activation="hard_sigmoid", go_backwards=True
            ),
        ),
    ]
    written = Written(parallel(layers, rng, masked=True), tmp_path)
    assert written.recurrent() == {"GRU": 3, "LSTM": 1, "RNN": 2}
    written.assert_equal(*sequences(rng, masked=True))


@pytest.mark.slow
def test_states_go_in_and_out(tmp_path, rng):
    x, later, h = frames(), keras.Input((None, 3), name="later"), keras.Input((4,), name="h")
    _, *states = kg.GatedRNN(4, "lstm", return_state=True)(x, initial_state=[h, h])
    y = kg.GatedRNN(4, "lstm", return_sequences=True)(later, initial_state=states)
    z = LAYERS.Bidirectional(LAYERS.GRU(4, return_sequences=True))(later, initial_state=states)
    written = Written(randomized(keras.Model([x, later, h], [y, z]), rng), tmp_path)
    assert written.recurrent() == {"GRU": 1, "LSTM": 2}
    one, other, _ = sequences(rng)
    written.assert_equal(
        [other, other[:, :5], rng.normal(size=(6, 4)).astype("float32")],
        [one, one, rng.normal(size=(1, 4)).astype("float32")],
    )


# ---------------------------------------------------------------------- models


class Subclassed(keras.Model):
    """A model whose graph Keras does not know."""

    def __init__(self):
        super().__init__()
        self.recurrent = kg.GatedRNN(4, return_sequences=True)
        self.scores = LAYERS.Dense(2)

    def call(self, x):
        return self.scores(self.recurrent(x))


class Shift(LAYERS.Layer):
    """A layer that holds a tensor that is no variable, and a layer that it never calls."""

    def build(self, shape):
        self.unused = kg.GatedRNN(4)
        self.by = tf.constant(np.arange(shape[-1], dtype="float32"))

    def call(self, x):
        return x + self.by


@pytest.mark.slow
def test_models_inside_of_models(tmp_path, rng):
    inner = keras.Sequential([keras.Input((None, 3)), kg.GatedRNN(3, return_sequences=True)])
    shared = kg.GatedRNN(4)
    x = frames()
    outputs = [shared(inner(x)), shared(inner(Shift()(x)))]
    written = Written(randomized(keras.Model(x, outputs), rng), tmp_path)
    assert written.recurrent() == {"GRU": 4}
    assert [given.name for given in written.session.get_inputs()] == ["frames"]
    written.assert_equal(*sequences(rng))


@pytest.mark.slow
def test_subclassed_model(tmp_path, rng):
    model = Subclassed()
    data = sequences(rng)
    model(data[1])
    written = Written(model, tmp_path)
    assert written.recurrent() == {"GRU": 1}
    written.assert_equal(*data)


@pytest.mark.slow
def test_repeated_over_an_axis_of_known_length(tmp_path, rng):
    x = keras.Input((2, None, 3), name="clips")
    model = keras.Model(x, LAYERS.TimeDistributed(kg.GatedRNN(4))(x))
    written = Written(randomized(model, rng), tmp_path)
    assert written.recurrent() == {"GRU": 2}
    written.assert_equal(*[np.stack([data, -data], axis=1) for data in sequences(rng)])


@pytest.mark.slow
def test_axes_and_tensors_have_lasting_names(tmp_path, rng):
    def described():
        x, other = keras.Input((None, 3)), keras.Input((None, 2), name="Pitch")
        y = kg.GatedRNN(4, name="ear")(x)
        model = keras.Model([x, other], [y, kg.GatedRNN(4, return_sequences=True)(other)])
        written = Written(model, tmp_path)
        given = [*written.session.get_inputs(), *written.session.get_outputs()]
        return {each.name: each.shape for each in given}, written.found.signatures

    shapes, signatures = described()
    assert shapes["inputs"] == ["batch", "inputs_time", 3]
    assert shapes["pitch"] == ["batch", "pitch_time", 2]
    assert shapes["ear"] == ["batch", 4]
    assert signatures["serving_default"]["inputs"] == {
        "inputs": {"shape": [None, None, 3], "dtype": "float32"},
        "pitch": {"shape": [None, None, 2], "dtype": "float32"},
    }
    assert signatures["serving_default"]["outputs"]["ear"]["shape"] == [None, 4]
    assert described() == (shapes, signatures)


# ---------------------------------------------------------------------- loops


def test_what_onnx_does_not_know_runs_as_a_scan_and_says_so(tmp_path, rng):
    clipped = {"grad_clip_norm": 1.0, "activation_l1": 0.1, "candidate_l1": 0.1}
    layers = [
        kg.GatedRNN(4, cell=MGUCell, name="mgu", return_sequences=True, **clipped),
        kg.GatedRNN(4, "lstm", candidate_activation="gelu", go_backwards=True, name="bent"),
        LAYERS.RNN([kg.GRUCell(4), kg.GRUCell(3, candidate_activation="relu6")], name="stack"),
        LAYERS.GRU(4, activation=LAYERS.PReLU(), name="prelu", return_state=True),
    ]
    written = Written(parallel(layers, rng, masked=True), tmp_path)
    assert written.recurrent() == {"Loop": 1}
    assert written.found.operators["Scan"] == 3
    assert written.loops() == [
        "bent runs as a Scan, because ONNX has no activation gelu (of candidate).",
        "mgu runs as a Scan, because ONNX has no operator for the cell MGUCell.",
        "prelu runs as a Scan, because ONNX has no activation PReLU (of candidate).",
        "stack runs as a Loop, because ONNX has no activation relu6 (of candidate).",
    ]
    assert onnx_format.ONNX().read(tmp_path / "model.onnx").notes == written.found.notes
    written.assert_equal(*sequences(rng, masked=True))


def test_the_file_of_a_scan_says_what_it_cannot_and_holds_its_weights_once(tmp_path, rng):
    own, gru = (sequential(rng, kg.GatedRNN(40, cell=cell)) for cell in (MGUCell, "gru"))
    written = Written(own, tmp_path)
    assert onnx_format._NO_STEPS in written.found.notes
    with pytest.raises(Exception, match="Scan"):
        written.run([np.zeros((2, 0, 3), "float32")])
    assert {given.name for given in written.file.graph.initializer} <= names_read(
        written.file.graph
    )
    held = 4 * own.count_params()
    assert held < (tmp_path / "model.onnx").stat().st_size < 1.5 * held
    written = Written(gru, tmp_path)
    assert onnx_format._NO_STEPS not in written.found.notes
    (h,) = written.run([np.zeros((2, 0, 3), "float32")])
    np.testing.assert_array_equal(h, np.zeros((2, 40)))


@pytest.mark.parametrize(
    ("cell", "masked", "told"),
    [("simple", True, True), ("gru", False, False), ("lstm", True, False)],
)
def test_the_file_says_where_a_mask_makes_many_sequences_slow(cell, masked, told, tmp_path, rng):
    start = [LAYERS.Masking()] if masked else []
    written = Written(sequential(rng, *start, kg.GatedRNN(4, cell)), tmp_path)
    assert (onnx_format._MASKED in written.found.notes) == told
    assert (onnx_format._TWICE in written.found.notes) == (not masked)


@pytest.mark.slow
def test_a_layer_with_code_of_its_own_is_left_alone(rng):
    model = sequential(rng, OwnRNN(4, name="own"))
    with recurrent_operators(model) as (_, notes):
        assert "inner_loop" not in vars(model.layers[0])
    assert notes == {
        "own": "own runs as a Loop, because OwnRNN is a subclass with a loop of its own, maybe."
    }


@pytest.mark.slow
def test_double_precision_runs_as_a_scan(tmp_path, rng):
    x = keras.Input((None, 3), dtype="float64", name="frames")
    model = randomized(keras.Model(x, kg.GatedRNN(4, name="gru", dtype="float64")(x)), rng)
    written = Written(model, tmp_path)
    assert written.loops() == [
        "gru runs as a Scan, because it computes in float64, and ONNX Runtime's GRU in float32."
    ]
    data = sequences(rng)[1].astype("float64")
    np.testing.assert_allclose(written.run([data])[0], model(data), rtol=1e-12)


# ---------------------------------------------------------------------- the whole way, and errors


def test_export_runs_the_file_without_this_package(tmp_path, rng):
    model = sequential(
        rng,
        LAYERS.Masking(),
        LAYERS.Bidirectional(kg.GatedRNN(4, candidate_activation="relu", return_sequences=True)),
        kg.GatedRNN(4, cell=MGUCell, name="mgu"),
        LAYERS.Dense(2, activation="softmax", name="scores"),
    )
    report = export(model, tmp_path / "model", "onnx")
    assert report.path == str(tmp_path / "model.onnx")
    assert report.operators["GRU"] == 1
    assert report.difference.relative < 1e-5
    assert {sample.mask for sample in report.samples} == {"none", "right", "any"}
    padding, *notes = report.notes
    assert padding.startswith("Steps in which all features are 0 are taken as padding")
    assert notes == [
        "mgu runs as a Scan, because ONNX has no operator for the cell MGUCell.",
        onnx_format._MASKED,
        onnx_format._NO_STEPS,
        onnx_format.NOT_A_NUMBER.format(runtime="ONNX Runtime"),
        onnx_format._ELSEWHERE,
    ]
    assert [*tmp_path.iterdir()] == [tmp_path / "model.onnx"]


def test_the_report_says_whether_a_file_was_replaced(tmp_path, rng, quick):
    model = sequential(rng, kg.GatedRNN(2))
    told = [str(export(model, tmp_path / "model.onnx")).splitlines()[0] for _ in range(2)]
    assert [line.endswith("; replaced an older file") for line in told] == [False, True]
    assert not inspect(tmp_path / "model.onnx").replaced


def refused(model):
    """The message with which a model is refused."""
    with pytest.raises(NotExportableError) as caught:
        onnx_format.ONNX().check(ModelSpec(model))
    return str(caught.value)


@pytest.mark.slow
def test_stateful_layers_are_refused(rng):
    x = keras.Input(batch_shape=(2, None, 3))
    model = keras.Model(x, kg.GatedRNN(4, stateful=True, name="memory")(x))
    assert refused(model).startswith("'memory' is stateful, and an ONNX file remembers nothing")


@pytest.mark.slow
def test_half_precision_is_refused(rng):
    keras.config.set_dtype_policy("mixed_bfloat16")  # the input's too, which computes nothing
    model = sequential(rng, kg.GatedRNN(4, name="half"))
    assert "'half' computes in bfloat16, for which ONNX Runtime lacks operators" in refused(model)


@pytest.mark.slow
def test_recurrent_layers_repeated_over_an_unknown_axis_are_refused(rng):
    x = keras.Input((None, 6, 3))
    model = keras.Model(x, LAYERS.TimeDistributed(kg.GatedRNN(4), name="each")(x))
    message = "'each' runs a recurrent layer once per step of an axis of unknown"
    assert message in refused(model)

    class Clips(keras.Model):
        def __init__(self):
            super().__init__()
            self.each = LAYERS.TimeDistributed(kg.GatedRNN(4), name="each")

        def call(self, x):
            return self.each(x)

    clips = Clips()
    clips(rng.normal(size=(2, 5, 6, 3)))
    assert message in refused(clips)


@pytest.mark.slow
def test_other_backends_are_refused(monkeypatch, rng):
    model = sequential(rng, kg.GatedRNN(4))
    monkeypatch.setattr(keras.backend, "backend", lambda: "jax")
    assert "this is Keras on jax. Load the model with KERAS_BACKEND=tensorflow" in refused(model)


@pytest.mark.slow
def test_a_stream_has_its_states_as_inputs_and_outputs(tmp_path, rng):
    """A stateful model too: two streams, in chunks of uneven sizes, against the whole sequence."""
    low = kg.GatedRNN(4, return_sequences=True, initial_state="learned", name="low")
    high = kg.GatedRNN(5, "lstm", candidate_activation="relu", stateful=True, name="high")
    model = keras.Sequential(
        [keras.Input(batch_shape=(2, None, 3), name="x"), low, high, LAYERS.Dense(2, name="y")]
    )
    randomized(model, rng)
    report = export(model, tmp_path / "stream", "onnx", streaming=True)
    assert list(report.signatures) == ["chunk"]
    assert any("ends in _next" in note for note in report.notes)
    session = onnxruntime.InferenceSession(report.path, providers=["CPUExecutionProvider"])
    metadata = session.get_modelmeta().custom_metadata_map
    first = json.loads(metadata["keras_gates.states"])
    assert [*first] == ["low_hidden", "high_hidden", "high_cell"]
    assert first["high_cell"] is None
    np.testing.assert_allclose(first["low_hidden"], low.initial_states[0], rtol=1e-6)
    states = {
        name: np.tile(np.float32(np.zeros(5) if value is None else value), (2, 1))
        for name, value in first.items()
    }
    x = rng.normal(size=(2, 11, 3)).astype("float32")
    names = [output.name for output in session.get_outputs()]
    for chunk in np.split(x, [1, 5, 6], axis=1):
        found = dict(zip(names, session.run(names, {"x": chunk, **states}), strict=True))
        states = {name: found[f"{name}_next"] for name in states}
    high.reset_state()
    np.testing.assert_allclose(found["y"], model(x), atol=1e-5)
    with pytest.raises(NotExportableError, match="'high' is stateful.*with streaming=True the sta"):
        export(model, tmp_path / "whole", "onnx")


@pytest.mark.slow
@pytest.mark.parametrize("opset", [13, 17])
def test_older_and_newer_operators(tmp_path, rng, opset):
    layers = [kg.GatedRNN(4, return_sequences=True), kg.GatedRNN(4, MGUCell)]
    model = sequential(rng, *layers, LAYERS.LayerNormalization())
    report = export(model, tmp_path / "x", "onnx", opset=opset)
    (used,) = [each for each in onnx.load(report.path).opset_import if not each.domain]
    assert used.version == opset


class Sine(LAYERS.Layer):
    """A layer that calls NumPy."""

    def call(self, x):
        return tf.ensure_shape(tf.numpy_function(np.sin, [x], tf.float32), x.shape)


@pytest.mark.slow
def test_operations_that_onnx_lacks_are_named_and_the_model_stays_as_it_was(tmp_path, rng):
    recurrent = kg.GatedRNN(4)
    model = sequential(rng, LAYERS.Bidirectional(LAYERS.GRU(3)), LAYERS.Reshape((1, 6)), recurrent)
    model.add(Sine(name="sine"))
    before = [{**vars(layer)} for layer in model._flatten_layers()]
    with pytest.raises(
        NotExportableError,
        match="no operator for TensorFlow's PyFunc, which the model uses in .*/sine_1/",
    ):
        onnx_format.ONNX().write(ModelSpec(model), tmp_path / "model.onnx")
    assert [*tmp_path.iterdir()] == []
    for layer, attributes_before in zip(model._flatten_layers(), before, strict=True):
        for name in ("inner_loop", "call", "backprop", "use_cudnn"):
            assert vars(layer).get(name) == attributes_before.get(name)


def test_missing_packages_come_with_the_command(monkeypatch, rng):
    monkeypatch.setitem(sys.modules, "tf2onnx", None)
    with pytest.raises(ImportError, match=r'pip install "keras_gates\[onnx\]"'):
        onnx_format.ONNX().check(ModelSpec(sequential(rng, kg.GatedRNN(4))))


@pytest.mark.slow
def test_examples_in_docstrings():
    names = {"keras": keras, "keras_gates": kg}
    for example in (native, operator):
        (test,) = doctest.DocTestFinder(recurse=False).find(example, globs=names)
        assert test.examples
        assert doctest.DocTestRunner().run(test).failed == 0


@pytest.mark.slow
def test_rounding_that_a_model_amplifies_is_named_and_accepted_on_request(tmp_path):
    layer = kg.GatedRNN(64, gate_activation="hard_sigmoid")
    model = keras.Sequential([keras.Input((None, 8)), layer])
    kernel, recurrent_kernel, bias = layer.get_weights()
    layer.set_weights([kernel, 5 * recurrent_kernel, bias])
    with pytest.raises(ParityError, match="a positive Lyapunov exponent, the model amplifies"):
        export(model, tmp_path / "model", "onnx")
    assert not list(tmp_path.iterdir())
    report = export(model, tmp_path / "model", "onnx", tolerance=0.1)
    assert 1e-5 < report.difference.relative < 0.1
    x = np.random.default_rng(0).normal(size=(20, 100, 8))
    (found,) = diagnostics.diagnose(model, x).layers
    assert found.lyapunov > 0


@pytest.mark.parametrize("path", golden_files("onnx"), ids=lambda path: path.stem)
def test_old_files_run(path, tmp_path):
    frames, scores = unpacked(path, tmp_path)
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx")
    (found,) = session.run(["scores"], {"frames": frames})
    np.testing.assert_allclose(found, scores, atol=1e-5)
    assert inspect(tmp_path / "model.onnx").operators["GRU"] == 1


def test_the_page_lists_the_activations_of_the_operators():
    page = (pathlib.Path(__file__).parent.parent / "docs/deploy/onnx.md").read_text()
    listed = page.split("ONNX's operators have these activations: ")[1].split(", and")[0]
    known = [n for n in activations.names() if n not in ("glu", "threshold")]
    found = [n for n in known if native(activations.get(n, "candidate_activation", warn=False))]
    assert [name.strip("` \n") for name in listed.split(",")] == found
