"""from_keras: the same function of the input, in one line, for every way of nesting."""

import warnings

import keras
import numpy as np
import pytest

import keras_gates as kg


def functional():
    inputs = keras.Input((None, 3))
    shared = keras.layers.GRU(4, return_sequences=True)
    a = shared(inputs)
    b = shared(keras.layers.Dense(3)(a))
    nested = keras.Sequential([keras.Input((None, 4)), keras.layers.LSTM(2)], name="nested")
    return keras.Model(inputs, keras.layers.Add()([nested(a), nested(b)]))


def operations():
    """What Keras records beside layers."""
    inputs = keras.Input((None, 3))
    h = keras.layers.GRU(4, return_sequences=True)(keras.layers.Masking()(inputs))
    last, total = h[:, -1] * 2, keras.ops.sum(h, axis=1)
    return keras.Model(inputs, keras.layers.Dense(2)(last + total / 3 - 1))


def embedded():
    inputs = keras.Input((None,), dtype="int32")
    h = keras.layers.Embedding(6, 3, mask_zero=True)(inputs)
    return keras.Model(inputs, keras.layers.Bidirectional(keras.layers.LSTM(4))(h))


def encoder_decoder():
    """Several inputs and outputs, and states that go from layer to layer."""
    source, target = keras.Input((None, 3), name="source"), keras.Input((None, 3), name="target")
    _, *states = keras.layers.LSTM(4, return_state=True)(source)
    out = keras.layers.LSTM(4, return_sequences=True)(target, initial_state=states)
    return keras.Model(
        {"source": source, "target": target}, {"last": out[:, -1], "all": keras.layers.ReLU()(out)}
    )


@keras.saving.register_keras_serializable("test_convert")
class Block(keras.layers.Layer):
    """A layer of one's own with recurrent layers in its attributes."""

    def __init__(self, units, **kwargs):
        super().__init__(**kwargs)
        self.units = units
        self.stack = [keras.layers.GRU(units, return_sequences=True), keras.layers.Dense(units)]
        self._last = keras.layers.Bidirectional(keras.layers.LSTM(units))

    def build(self, shape):
        for layer in self.stack:
            layer.build(shape)
            shape = layer.compute_output_shape(shape)
        self._last.build(shape)
        self.built = True

    def call(self, x):
        for layer in self.stack:
            x = layer(x)
        return self._last(x)

    def get_config(self):
        return {**super().get_config(), "units": self.units}


@keras.saving.register_keras_serializable("test_convert")
class Own(keras.Model):
    def __init__(self, units, **kwargs):
        super().__init__(**kwargs)
        self.units, self.block, self.out = units, Block(units), keras.layers.Dense(2)

    def call(self, x):
        return self.out(self.block(x))

    def get_config(self):
        return {**super().get_config(), "units": self.units}


def subclassed():
    model = Own(4)
    model(np.zeros((1, 2, 3), "float32"))
    return model


MODELS = {
    "operations": operations,
    "embedded": embedded,
    "encoder decoder": encoder_decoder,
    "block": lambda: keras.Sequential([keras.Input((None, 3)), Block(4), keras.layers.Dense(2)]),
    "subclassed": subclassed,
    "sequential": lambda: keras.Sequential(
        [
            keras.Input((None, 3)),
            keras.layers.Masking(),
            keras.layers.GRU(4, return_sequences=True, reset_after=False, use_bias=False),
            keras.layers.BatchNormalization(),
            keras.layers.LSTM(4, return_sequences=True, recurrent_activation="hard_sigmoid"),
            keras.layers.SimpleRNN(4, activation="relu"),
            keras.layers.Dense(2),
        ]
    ),
    "bidirectional": lambda: keras.Sequential(
        [
            keras.Input((None, 3)),
            keras.layers.Bidirectional(keras.layers.GRU(4), merge_mode="sum"),
            keras.layers.Dense(2),
        ]
    ),
    "two directions": lambda: keras.Sequential(
        [
            keras.Input((None, 3)),
            keras.layers.Bidirectional(
                keras.layers.GRU(4), backward_layer=keras.layers.LSTM(4, go_backwards=True)
            ),
        ]
    ),
    "stack of cells": lambda: keras.Sequential(
        [
            keras.Input((None, 3)),
            keras.layers.RNN(
                [keras.layers.GRUCell(4), keras.layers.LSTMCell(3)], return_sequences=True
            ),
            keras.layers.RNN(keras.layers.SimpleRNNCell(4)),
        ]
    ),
    "time distributed": lambda: keras.Sequential(
        [
            keras.Input((2, 5, 3)),
            keras.layers.TimeDistributed(keras.layers.GRU(4)),
            keras.layers.Flatten(),
        ]
    ),
    "functional": functional,
}


def recurrent(model):
    kinds = (keras.layers.GRU, keras.layers.LSTM, keras.layers.SimpleRNN)
    return [layer for layer in model._flatten_layers() if isinstance(layer, kinds)]


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.filterwarnings("ignore:the `__init__` of:UserWarning")
def test_the_copy_computes_the_same(name, rng):
    model = MODELS[name]()
    model.set_weights([rng.uniform(0.1, 1.0, size=w.shape) for w in model.get_weights()])
    before = [w.copy() for w in model.get_weights()]
    copy = kg.from_keras(model)
    assert not recurrent(copy)
    assert any(isinstance(layer, kg.GatedCell) for layer in copy._flatten_layers())
    x = rng.normal(size=(4, 2, 5, 3) if name == "time distributed" else (4, 5, 3))
    if name in ("sequential", "operations"):
        x[:, 3:] = 0
    if name == "embedded":
        x = rng.integers(0, 6, size=(4, 5))
    if name == "encoder decoder":
        x = {"source": x, "target": x[:, ::-1]}
    expected, found = model.predict(x, verbose=0), copy.predict(x, verbose=0)
    keras.tree.map_structure(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), expected, found
    )
    assert all(np.array_equal(a, b) for a, b in zip(before, model.get_weights(), strict=True))


@pytest.mark.parametrize("kind", ["GRU", "LSTM", "SimpleRNN"])
def test_a_layer_and_its_options(kind, rng):
    layer = getattr(keras.layers, kind)(
        4,
        return_sequences=True,
        go_backwards=True,
        dropout=0.1,
        recurrent_dropout=0.2,
        kernel_regularizer="l2",
        seed=3,
        name="mine",
        trainable=False,
    )
    x = rng.normal(size=(2, 5, 3)).astype("float32")
    expected = layer(x)
    copy = kg.from_keras(layer)
    np.testing.assert_allclose(copy(x), expected, atol=1e-6)
    assert (copy.name, copy.trainable) == ("mine", False)
    ours, theirs = copy.cell.get_config(), layer.cell.get_config()
    for option in ("dropout", "recurrent_dropout", "seed", "units", "use_bias"):
        assert ours[option] == theirs[option]
    assert isinstance(copy.cell.kernel_regularizer, keras.regularizers.L2)


def test_changes_apply_to_every_layer(rng):
    model = MODELS["sequential"]()
    copy = kg.from_keras(model, grad_clip_norm=0.5, activation_l1=1e-3, candidate_activation="elu")
    layers = [layer for layer in copy.layers if isinstance(layer, kg.GatedRNN)]
    assert len(layers) == 3
    for layer in layers:
        assert layer.cell.grad_clip_norm == 0.5
        assert layer.cell.candidate_activation is keras.activations.elu
    copy.compile("adam", "mse")
    copy.fit(rng.normal(size=(4, 5, 3)), np.zeros((4, 2)), verbose=0)
    assert len(copy.losses) == 3


@keras.saving.register_keras_serializable("test_convert")
class OwnCell(kg.GRUCell):
    pass


def changed():
    """Every place that a GatedRNN or a cell of one can be in."""
    clipped = {"return_sequences": True, "grad_clip_norm": 1.0}
    inputs = keras.Input(batch_shape=(2, 5, 3))
    prelu = keras.layers.PReLU()
    h = keras.layers.Bidirectional(
        kg.GatedRNN(4, "lstm", candidate_activation=prelu, output_activation="tanh", **clipped)
    )(inputs)
    learned = kg.GatedRNN(3, "peephole_lstm", initial_state="learned", **clipped)
    h = keras.Sequential([keras.Input((5, 8)), learned])(h)
    h = kg.GatedRNN(cell=OwnCell(3, grad_clip_norm=1.0), return_sequences=True)(h)
    cells = [kg.GRUCell(3, grad_clip_norm=1.0), keras.layers.GRUCell(2)]
    h = keras.layers.RNN(cells, return_sequences=True)(h)
    h = keras.layers.RNN(kg.MGUCell(3, grad_clip_norm=1.0), return_sequences=True)(h)
    h = keras.layers.Bidirectional(kg.GatedRNN(3, layer_norm=True, stateful=True, **clipped))(h)
    h = keras.layers.TimeDistributed(kg.GatedRNN(2, "simple", grad_clip_norm=1.0))(
        keras.layers.Reshape((5, 2, 3))(h)
    )
    return keras.Model(inputs, h)


def test_layers_that_are_gated_already_change_too(rng):
    model = changed()
    model.set_weights([0.5 * rng.normal(size=w.shape) for w in model.get_weights()])
    x = rng.normal(size=(2, 5, 3)).astype("float32")
    model(x)  # moves the states
    copy = kg.from_keras(model, grad_clip_norm=None)
    cells = [part for part in copy._flatten_layers() if isinstance(part, kg.GatedCell)]
    assert len(cells) == 10
    assert {cell.grad_clip_norm for cell in cells} == {None}
    np.testing.assert_allclose(copy(x), model(x), atol=1e-6)
    np.testing.assert_allclose(copy(x), model(x), atol=1e-6)  # of states that have moved
    assert [layer.name for layer in copy.layers[1:]] == [layer.name for layer in model.layers[1:]]
    again = kg.from_keras(model, candidate_activation="softsign", dropout=0.3)
    softsign = keras.activations.softsign
    cells = [part for part in again._flatten_layers() if isinstance(part, kg.GatedCell)]
    assert {(cell.candidate_activation, cell.dropout) for cell in cells} == {(softsign, 0.3)}
    learned = kg.from_keras(kg.GatedRNN(3, initial_state="learned"), return_sequences=True)
    assert (learned.initial_state, learned.return_sequences) == ("learned", True)


@pytest.mark.parametrize("kind", ["GRU", "LSTM"])
def test_weights_of_an_activation_come_along(kind, rng):
    layer = getattr(keras.layers, kind)(4, activation=keras.layers.PReLU())
    model = keras.Sequential([keras.Input((5, 3)), keras.layers.Bidirectional(layer)])
    x = rng.normal(size=(2, 5, 3)).astype("float32")
    model(x)  # which builds the activation
    model.set_weights([0.5 * rng.normal(size=w.shape) for w in model.get_weights()])
    copy = kg.from_keras(model, grad_clip_norm=1.0)
    np.testing.assert_allclose(copy(x), model(x), atol=1e-6)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"return_gates": True}, "what comes after them counts on it.*return_gates=True"),
        ({"return_state": True}, r"with GatedRNN\(return_state=...\) where you want it"),
        ({"return_sequences": False}, "return_sequences=False"),
        ({"go_backwards": True}, "cannot be changed in all"),
        ({"name": "ear"}, "each keeps its own.*name='ear'"),
        ({"stateful": True}, r"takes any. Make it in code with keras.Input\(batch_shape"),
    ],
)
def test_what_layers_give_and_are_called_is_changed_one_by_one(change, message):
    for name in ("functional", "bidirectional", "block"):
        with pytest.raises(ValueError, match=message):
            kg.from_keras(MODELS[name](), **change)


def test_states_are_kept_where_the_batch_is_known():
    model = keras.Sequential([keras.Input(batch_shape=(2, 5, 3)), keras.layers.GRU(4)])
    copy = kg.from_keras(model, stateful=True)
    assert copy.layers[0].states[0].shape == (2, 4)


def test_activations_by_the_names_of_keras():
    lstm = keras.layers.LSTM(3)
    copy = kg.from_keras(lstm, activation="softsign", recurrent_activation=None)
    softsign, linear = keras.activations.softsign, keras.activations.linear
    assert (copy.candidate_activation, copy.output_activation) == (softsign, softsign)
    assert set(copy.cell.gate_activations.values()) == {linear}
    assert kg.from_keras(lstm, activation=None).candidate_activation is linear
    tanh = keras.activations.tanh
    assert kg.from_keras(lstm, candidate_activation=None).candidate_activation is tanh
    message = "Keras' name for `candidate_activation`: give one.*activation='relu', candidate_act"
    with pytest.raises(ValueError, match=message):
        kg.from_keras(lstm, activation="relu", candidate_activation="softsign")


def test_a_change_that_only_some_cells_take_is_for_them():
    model = keras.Sequential(
        [
            keras.Input((None, 3)),
            keras.layers.LSTM(4, return_sequences=True),
            keras.layers.RNN(keras.layers.LSTMCell(4), return_sequences=True),
            keras.layers.GRU(4, return_sequences=True),
            keras.layers.SimpleRNN(4),
        ]
    )
    copy = kg.from_keras(model, gate_activation="hard_sigmoid", output_activation="softsign")
    softsign, hard = keras.activations.softsign, keras.activations.hard_sigmoid
    assert [getattr(layer.cell, "output_activation", None) for layer in copy.layers] == [
        softsign, softsign, None, None,
    ]  # fmt: skip
    assert [{*layer.cell.gate_activations.values()} for layer in copy.layers] == [
        {hard}, {hard}, {hard}, set(),
    ]  # fmt: skip
    with pytest.raises(TypeError, match="takes no argument `output_activation`"):
        kg.from_keras(keras.layers.GRU(4), output_activation="softsign")


def test_an_activation_with_weights_can_be_put_in():
    model = MODELS["sequential"]()
    copy = kg.from_keras(model.layers[1], candidate_activation=keras.layers.PReLU())
    assert len(copy.weights) == 3
    for ours, theirs in zip(copy.get_weights(), model.layers[1].get_weights(), strict=False):
        assert np.array_equal(ours, theirs)


def test_arguments_of_the_layer_reach_a_layer_of_cells(rng):
    x = rng.normal(size=(2, 5, 3)).astype("float32")
    for cells in (keras.layers.GRUCell(4), [keras.layers.GRUCell(3), keras.layers.GRUCell(4)]):
        layer = keras.layers.RNN(cells)
        expected = layer(x)
        copy = kg.from_keras(layer, return_sequences=True, name="ear", dropout=0.25)
        assert copy.name == "ear"
        assert copy(x).shape == (2, 5, 4)
        np.testing.assert_allclose(copy(x)[:, -1], expected, atol=1e-6)
    copy = kg.from_keras(keras.layers.RNN(keras.layers.GRUCell(4)), backprop="autodiff")
    assert copy.backprop == "autodiff"


def test_an_unbuilt_layer_stays_unbuilt():
    copy = kg.from_keras(keras.layers.GRU(4), activation_l1=0.1)
    assert not copy.built
    assert copy.cell.activation_l1 == 0.1


def test_an_unsavable_activation_is_carried_over(rng):
    def bent(x):
        return 0.3 * x

    layer = keras.layers.GRU(4, activation=bent)
    x = rng.normal(size=(2, 5, 3)).astype("float32")
    expected = layer(x)
    with pytest.warns(UserWarning, match="works for training"):
        copy = kg.from_keras(layer)
    np.testing.assert_allclose(copy(x), expected, atol=1e-6)


def test_what_is_no_weight_comes_along(rng):
    inputs, words = keras.Input((None, 3)), keras.Input((None,), dtype="string")
    normal = keras.layers.Normalization()
    normal.adapt(5 + 3 * rng.normal(size=(20, 4, 3)))
    lookup = keras.layers.StringLookup()
    lookup.adapt(["a", "b", "b", "c"])
    numbers = keras.layers.IntegerLookup()
    numbers.adapt([1, 1, 2, 3])
    embedded = keras.layers.Embedding(5, 3)(numbers(lookup(words)))
    h = keras.layers.Concatenate(axis=1)([normal(inputs), embedded])
    h = keras.layers.Dropout(0.5, seed=3)(keras.layers.GRU(4)(h))
    model = keras.Model([inputs, words], h)
    x = [rng.normal(size=(2, 4, 3)), np.array([["b", "x"], ["c", "a"]])]
    x = [keras.ops.convert_to_tensor(x[0], "float32"), keras.ops.convert_to_tensor(x[1])]
    model(x, training=True)  # moves the state of the random numbers
    copy = kg.from_keras(model)
    np.testing.assert_allclose(copy(x), model(x), atol=1e-6)
    np.testing.assert_allclose(copy(x, training=True), model(x, training=True), atol=1e-6)


def test_states_come_along_and_stay(rng):
    model = keras.Sequential(
        [keras.Input(batch_shape=(2, 4, 3)), keras.layers.GRU(4, stateful=True)]
    )
    x = rng.normal(size=(2, 4, 3)).astype("float32")
    model(x)
    before = model.layers[0].states[0].numpy()
    copy = kg.from_keras(model)
    np.testing.assert_array_equal(model.layers[0].states[0], before)
    np.testing.assert_array_equal(copy.layers[0].states[0], before)
    np.testing.assert_allclose(copy(x), model(x), atol=1e-6)


@keras.saving.register_keras_serializable("test_convert")
class Forgetful(keras.layers.Layer):
    """Its config leaves out what it computes with."""

    def __init__(self, factor=1.0, **kwargs):
        super().__init__(**kwargs)
        self.factor = factor

    def call(self, x):
        return x * self.factor

    def get_config(self):
        return {"name": self.name}


def test_a_lambda_layer_is_copied_with_its_function(rng):
    factor = 3.0

    def of_training(x, training=None):
        return x if training else factor * x

    inputs = keras.Input((None, 3))
    h = keras.layers.GRU(4, return_sequences=True)(keras.layers.Masking()(inputs))
    h = keras.layers.Lambda(of_training, mask=lambda x, mask: None, name="mine")(h)
    h = keras.layers.Lambda(
        lambda x, power: x[:, -1] ** power, output_shape=(4,), arguments={"power": 2}
    )(h)
    model = keras.Model(inputs, h)
    x = rng.normal(size=(2, 5, 3)).astype("float32")
    copy = kg.from_keras(model)
    for training in (True, False):
        found, expected = copy(x, training=training), model(x, training=training)
        np.testing.assert_allclose(found, expected, atol=1e-6)
    assert copy.get_layer("mine") is not model.get_layer("mine")


def test_a_copy_that_computes_something_else_is_an_error():
    layers = [keras.Input((None, 3)), Forgetful(2.0), keras.layers.GRU(4)]
    with pytest.raises(ValueError, match="the copy of .* computes something else, by"):
        kg.from_keras(keras.Sequential(layers))


def test_a_layer_that_cannot_be_made_anew_is_named():
    class Unsaid(keras.layers.Layer):
        def __init__(self, gru):
            super().__init__(name="unsaid")
            self.gru = gru

        def call(self, x):
            return self.gru(x)

        def get_config(self):
            return {"unknown": 1}

    model = keras.Sequential([keras.Input((None, 3)), Unsaid(keras.layers.GRU(2))])
    with pytest.raises(
        ValueError, match=r"makes 'unsaid' of type Unsaid anew.*TypeError: \".*\"\. Give"
    ):
        kg.from_keras(model)


@keras.saving.register_keras_serializable("test_convert")
class Around(keras.layers.Layer):
    """A layer of one's own that is given its recurrent layer."""

    def __init__(self, inner, **kwargs):
        super().__init__(**kwargs)
        self.inner = inner

    def build(self, shape):
        self.inner.build(shape)

    def call(self, x):
        return self.inner(x)

    def get_config(self):
        inner = keras.saving.serialize_keras_object(self.inner)
        return {**super().get_config(), "inner": inner}

    @classmethod
    def from_config(cls, config):
        inner = keras.saving.deserialize_keras_object(config.pop("inner"))
        return cls(inner, **config)


def test_a_class_that_makes_its_layers_itself_is_warned_of(tmp_path, rng):
    with pytest.warns(UserWarning, match="of Block and Own makes.*keras_gates.export") as caught:
        copy = kg.from_keras(subclassed())
    (ours,) = [w for w in caught if "__init__` of" in str(w.message)]
    assert ours.filename == __file__
    copy.save_weights(tmp_path / "own.weights.h5")
    with pytest.warns(UserWarning, match="__init__` of"):
        again = kg.from_keras(subclassed())  # what the warning says to do
    again.load_weights(tmp_path / "own.weights.h5")
    x = rng.normal(size=(2, 5, 3)).astype("float32")
    np.testing.assert_array_equal(again(x), copy(x))


def test_a_class_that_is_given_its_layers_comes_back_from_a_file(tmp_path, rng):
    model = keras.Sequential([keras.Input((5, 3)), Around(keras.layers.GRU(4))])
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        copy = kg.from_keras(model, candidate_activation="softsign")
    copy.save(tmp_path / "around.keras")
    x = rng.normal(size=(2, 5, 3)).astype("float32")
    again = keras.models.load_model(tmp_path / "around.keras")
    np.testing.assert_array_equal(again(x), copy(x))


@pytest.mark.parametrize("how", ["layer", "model"])
def test_warnings_point_to_the_line_of_the_caller(how):
    layer = keras.layers.LSTM(4, activation="relu", recurrent_activation="relu")
    given = layer if how == "layer" else keras.Sequential([keras.Input((None, 3)), layer])
    with pytest.warns(kg.UnstableActivationsWarning) as caught:
        kg.from_keras(given)
    ours = [w for w in caught if w.category is kg.UnstableActivationsWarning]
    assert {warning.filename for warning in ours} == {__file__}


def test_changes_of_states_are_for_the_cells_that_have_them(rng):
    model = keras.Sequential(
        [
            keras.Input((5, 3)),
            keras.layers.LSTM(4, return_sequences=True),
            keras.layers.GRU(3),
        ]
    )
    copy = kg.from_keras(model, zoneout={"hidden": 0.1, "cell": 0.3})
    lstm, gru = (layer.cell.zoneout for layer in copy.layers)
    assert (lstm, gru) == ({"hidden": 0.1, "cell": 0.3}, {"hidden": 0.1})
    with pytest.raises(ValueError, match="names a state that .* does not have: 'cel'"):
        kg.from_keras(model, zoneout={"cel": 0.3})


def test_what_states_have_learned_is_not_lost(rng):
    layer = kg.GatedRNN(4, initial_state="learned", name="begun")
    model = keras.Sequential([keras.Input((5, 3)), layer])
    with pytest.raises(ValueError, match="those of 'begun' are the initial states that it has lea"):
        kg.from_keras(model, initial_state="zeros")
    assert kg.from_keras(model, grad_clip_norm=1.0).layers[0].initial_state == "learned"


def test_a_shape_of_tensorflow_builds_a_layer():
    tf = pytest.importorskip("tensorflow")
    layer = kg.GatedRNN(3)
    layer.build(tf.TensorShape([None, 6, 8]))
    assert layer.cell.kernel.shape == (8, 9)
