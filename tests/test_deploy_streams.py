"""Streams of exported models: equal to the whole sequence, or refused with the reason."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from deployed import of, random_weights, small_model, subclassed_model

import keras_gates as kg
from keras_gates import deployment
from keras_gates.deployment.names import output_names
from keras_gates.deployment.spec import ModelSpec
from keras_gates.deployment.streaming import Stream


@pytest.mark.slow
@of("cells", "masked", "stateful")
def test_interleaved_streams_do_not_mix(artifact, rng):
    """Six sessions, each at its own pace, by step and by chunk, equal their whole sequences."""
    model, path, _ = artifact
    serve = tf.saved_model.load(path).signatures
    (name,) = ModelSpec(model).names
    output = output_names(model)[0]
    sequences = rng.normal(size=(6, 11, 3)).astype("float32")
    states = [serve["initial_state"](batch_size=tf.constant(1)) for _ in sequences]
    done, last = [0] * 6, [None] * 6
    while min(done) < 11:
        i = rng.integers(6)
        if done[i] == 11:
            continue
        size = 0 if i % 2 else int(min(rng.integers(1, 4), 11 - done[i]))
        at = slice(done[i], done[i] + size) if size else done[i]
        outputs = serve["chunk" if size else "step"](
            **{name: tf.constant(sequences[i : i + 1, at])}, **states[i]
        )
        last[i] = outputs.pop(output).numpy()
        states[i] = (
            outputs if set(outputs) == set(states[i]) else {key: outputs[key] for key in states[i]}
        )
        done[i] += size or 1
    expected = []
    for pair in np.split(sequences, 3):  # the stateful model takes two
        found = model.predict_on_batch(pair)
        found = dict(zip(output_names(model, found), keras.tree.flatten(found), strict=True))
        expected.append(found[output])
        for layer in model.layers:  # which other tests find as it was
            if getattr(layer, "stateful", False):
                layer.reset_state()
    np.testing.assert_allclose(np.concatenate(last), np.concatenate(expected), atol=1e-5)


@pytest.mark.slow
def test_a_stream_with_an_input_without_time(quick, tmp_path):
    frames, speaker = keras.Input((None, 3), name="frames"), keras.Input((2,), name="speaker")
    wide = keras.layers.Dense(4)(speaker)[:, None]
    inner = [keras.Input((None, 4)), keras.layers.LSTM(4, return_sequences=True)]
    hidden = keras.Sequential(inner, name="inner")(keras.layers.Dense(4)(frames) + wide)
    hidden = keras.layers.SimpleRNN(3, return_sequences=True)(2.0 * hidden)
    decoded = keras.layers.RepeatVector(5)(kg.GatedRNN(2)(hidden))
    decoded = kg.GatedRNN(2, return_sequences=True, name="decoder")(decoded)
    model = random_weights(keras.Model([frames, speaker], [hidden, decoded]))
    report = deployment.export(model, tmp_path / "model", streaming=True)
    step = report.signatures["step"]
    assert step["inputs"]["speaker"]["shape"] == [None, 2]
    names = {"frames", "speaker", "lstm_hidden", "lstm_cell", "simple_rnn_hidden"}
    assert set(step["inputs"]) == {*names, "gated_rnn_hidden"}  # none of the decoder
    # As if the sequence ended at each step.
    assert step["outputs"]["decoder"]["shape"] == [None, 5, 2]


@pytest.mark.slow
def test_a_stack_of_cells_repeats_its_output_at_masked_steps(rng):
    cells = [kg.GRUCell(3), keras.layers.LSTMCell(4)]
    rnn = keras.layers.RNN(cells, return_sequences=True)
    model = small_model(keras.layers.Masking(), rnn)
    x = rng.normal(size=(2, 6, 3)).astype("float32")
    x[0, 2:5] = 0
    stream = Stream(ModelSpec(model))
    first, states = stream.chunk([x[:, :3]], stream.initial_state(2))
    last, _ = stream.chunk([x[:, 3:]], states)
    found = np.concatenate([first["outputs"], last["outputs"]], axis=1)
    np.testing.assert_allclose(found, model(x), atol=1e-6)


@pytest.mark.slow
def test_names_of_states_differ_from_those_of_inputs_and_outputs():
    frames = keras.Input((None, 3), name="ear_hidden")
    heard = kg.GatedRNN(2, cell="lstm", name="ear")(frames)
    stream = Stream(ModelSpec(keras.Model(frames, keras.layers.Dense(1, name="ear_cell")(heard))))
    assert [state.name for state in stream.states] == ["ear_hidden_1", "ear_cell_1"]


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["step", "chunk"])
@pytest.mark.parametrize("return_sequences", [True, False])
def test_a_stream_that_differs_is_caught(mode, return_sequences, quick, tmp_path, monkeypatch):
    right = getattr(Stream, mode)

    def wrong(self, values, states):
        outputs, states = right(self, values, states)
        # A step is a chunk as well, of one.
        factor = 1 if mode == "chunk" and values[0].shape[1] == 1 else 1.01
        return {name: factor * value for name, value in outputs.items()}, states

    monkeypatch.setattr(Stream, mode, wrong)
    model = small_model(kg.GatedRNN(3, return_sequences=return_sequences))
    with pytest.raises(
        deployment.ParityError, match="step by step" if mode == "step" else "in chunks"
    ):
        deployment.export(model, tmp_path / "model", streaming=True)
    assert not list(tmp_path.iterdir())


def attention(x):
    return keras.layers.MultiHeadAttention(2, 2, name="attention")(x, x)


def with_initial_state(x):
    state = keras.layers.Dense(4)(kg.GatedRNN(4)(x))
    return kg.GatedRNN(4, name="decoder")(x, initial_state=[state])


def with_the_end(x):
    last = keras.layers.RepeatVector(1)(kg.GatedRNN(3)(x))
    return keras.layers.Add(name="sum")([x, last])


NOT_STREAMED = {
    "bidirectional": (
        lambda x: keras.layers.Bidirectional(kg.GatedRNN(4), name="both")(x),
        "'both' (Bidirectional) reads the sequence from its end as well",
    ),
    "backwards": (
        lambda x: kg.GatedRNN(4, go_backwards=True, name="back")(x),
        "'back' (GatedRNN) has go_backwards=True",
    ),
    "convolution": (
        lambda x: kg.GatedRNN(4)(keras.layers.Conv1D(4, 3, padding="causal", name="conv")(x)),
        "'conv' (Conv1D) mixes time steps",
    ),
    "pooling": (
        lambda x: keras.layers.GlobalAveragePooling1D(name="pool")(
            kg.GatedRNN(4, return_sequences=True)(x)
        ),
        "'pool' (GlobalAveragePooling1D) mixes time steps",
    ),
    "attention": (
        lambda x: attention(kg.GatedRNN(4, return_sequences=True)(x)),
        "'attention' (MultiHeadAttention) mixes time steps",
    ),
    "initial state": (with_initial_state, "'decoder' (GatedRNN) begins in a state that the model"),
    "the end": (with_the_end, "'sum' (Add) gives every time step something of the end"),
    "no recurrent layer": (
        lambda x: keras.layers.Dense(2)(x),
        "'model' has no recurrent layer along the time axis",
    ),
}


@pytest.mark.parametrize("name", NOT_STREAMED)
def test_what_cannot_stream_is_refused_with_the_layer(name, tmp_path):
    make, message = NOT_STREAMED[name]
    frames = keras.Input((None, 3))
    model = keras.Model(frames, make(frames), name="model")
    with pytest.raises(deployment.NotExportableError) as error:
        deployment.export(model, tmp_path / "model", streaming=True)
    assert str(error.value).startswith(message)
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_other_models_that_cannot_stream(tmp_path):
    with pytest.raises(
        deployment.NotExportableError, match="is a subclassed model, whose layers cannot"
    ):
        deployment.export(subclassed_model(), tmp_path / "model", streaming=True)
    flat = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)], name="flat")
    with pytest.raises(deployment.NotExportableError, match="'flat' has no input with a time axis"):
        deployment.export(flat, tmp_path / "model", streaming=True)

    class Cell(keras.layers.Layer):
        state_size = output_size = 3

        def call(self, inputs, states):
            return 2 * inputs, [inputs + states[0]]

    cell = keras.layers.RNN(Cell(), name="rnn")
    masked = small_model(keras.layers.Masking(), cell)
    with pytest.raises(
        deployment.NotExportableError, match=r"'rnn' \(RNN\) has a cell of your own"
    ):
        deployment.export(masked, tmp_path / "model", streaming=True)
    assert [state.name for state in Stream(ModelSpec(small_model(cell))).states] == ["rnn_state_0"]


@pytest.mark.slow
def test_a_stream_that_would_begin_otherwise_is_refused(tmp_path):
    """A layer with a learned state puts out zeros before the first valid step."""

    def model(**options):
        layer = kg.GatedRNN(4, initial_state="learned", name="ear", **options)
        layers = [keras.Input((None, 3), name="x"), keras.layers.Masking(), layer]
        made = keras.Sequential([*layers, keras.layers.Dense(2)])
        return random_weights(made)

    with pytest.raises(deployment.NotExportableError, match="'ear'.*initial_state='learned'"):
        kg.export(model(), tmp_path / "a", streaming=True)
    report = kg.export(model(zero_output_for_mask=True), tmp_path / "b", streaming=True)
    assert report.difference.relative < 1e-5


@pytest.mark.slow
def test_a_stream_of_a_layer_that_returns_gates_is_refused(tmp_path):
    x = keras.Input((None, 3))
    h, gates = kg.GatedRNN(4, return_gates=True, return_sequences=True, name="ear")(x)
    for outputs in (h, gates["update"]):
        with pytest.raises(deployment.NotExportableError, match="'ear'.*return_gates=True"):
            kg.export(keras.Model(x, outputs), tmp_path / "a", streaming=True)
