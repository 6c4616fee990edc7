"""Models of many kinds: each recurrent layer is looked into as it runs there."""

import dataclasses

import helpers
import keras
import numpy as np
import pytest
import reference
from diagnosed import TENSORFLOW, dense, model_of, sequences
from helpers import BATCH, FEATURES, MASK, TIME, UNITS, MGUCell
from keras import ops

import keras_gates as kg
from keras_gates.cells import program
from keras_gates.diagnostics import diagnose, trace, traces

pytestmark = pytest.mark.filterwarnings("ignore::keras_gates.UnstableActivationsWarning")


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


@pytest.mark.parametrize("cell", ["gru", "lstm", "simple", MGUCell])
def test_what_is_recorded_has_the_names_of_the_program(cell, rng):
    layer = kg.GatedRNN(UNITS, cell=cell, return_sequences=True)
    (found,) = trace.Tracer(model_of(layer))(sequences(rng)).traces
    traced = program.trace(layer.cell)
    assert list(found.activated) == [name for name, _ in traced.named]
    assert list(found.states) == [name for name, _ in traced.outputs]


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


@pytest.mark.filterwarnings("error::UserWarning")
def test_data_may_come_in_any_structure_and_keras_warns_of_none(rng):
    x, layer = sequences(rng), helpers.built(rng, dtype="float32", name="rnn")
    one = keras.Input((None, FEATURES), name="x")
    two = {"a": keras.Input((None, FEATURES), name="a"), "b": keras.Input((2,), name="b")}
    both = keras.layers.Concatenate()([layer(two["a"]), two["b"]])
    of_two = {"a": x, "b": rng.normal(size=(BATCH, 2))}
    (expected,) = diagnose(keras.Sequential([one, layer]), x).layers
    for inputs, outputs, data in (
        (one, layer(one), {"x": x}),
        ([one], layer(one), {"x": x}),
        ({"x": one}, layer(one), {"x": x}),
        (two, both, of_two),
        ([two["b"], two["a"]], both, of_two),
    ):
        model = keras.Model(inputs, outputs)
        listed = [data[tensor.name] for tensor in model.inputs]
        for given in (data, listed, *(listed if len(listed) == 1 else [])):
            assert diagnose(model, given).layers == [expected]
    model = keras.Sequential([one, layer])
    assert diagnose(model, {"x": x}).layers == [expected]
    if TENSORFLOW:
        model.compile("sgd", "mse")
        monitor = kg.GateMonitor({"x": x})
        model.fit(x, np.zeros((BATCH, UNITS)), callbacks=[monitor], verbose=0)


class TwoInputs(keras.Model):
    """A subclassed model on a dict of inputs, with a cell of its own in keras.layers.RNN."""

    def __init__(self):
        super().__init__()
        self.recurrent = keras.layers.RNN(MinimalCell(UNITS), name="minimal")
        self.head = keras.layers.Dense(1)

    def call(self, inputs):
        return self.head(self.recurrent(inputs["sequence"])) + inputs["offset"]


class MinimalCell(MGUCell):
    """A cell that is not registered."""


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


def test_a_trace_is_shown_in_one_line(rng):
    layer = helpers.built(rng, dtype="float32", cell="lstm", name="memory", go_backwards=True)
    (found,) = traces(model_of(layer), sequences(rng))
    assert repr(found) == str(found)
    assert repr(found) == (
        "<Trace of 'memory': LSTMCell, 6 samples x 9 steps x 5 units, read backwards: input, "
        "forget, candidate, output, hidden state, cell state>"
    )
    assert "backwards" not in repr(dataclasses.replace(found, backwards=False))
    assert "cell state, gradient>" in repr(
        dataclasses.replace(found, gradients={"hidden": np.zeros(1)})
    )
