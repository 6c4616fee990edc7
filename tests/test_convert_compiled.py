"""A compiled model comes compiled: the same losses and metrics of the same data."""

import warnings

import keras
import numpy as np
import pytest
from test_convert import subclassed

import keras_gates as kg


def halved(y, found):
    return keras.ops.mean(keras.ops.abs(y - found), axis=-1) / 2


class Scaled(keras.metrics.Mean):
    """A metric of one's own, which is registered nowhere."""

    def __init__(self, factor=1.0, name="scaled", **kwargs):
        super().__init__(name=name, **kwargs)
        self.factor = factor

    def update_state(self, y, found, sample_weight=None):
        super().update_state(self.factor * keras.ops.mean(found))


class Said(Scaled):
    def get_config(self):
        return {**super().get_config(), "factor": self.factor}


class Slowing(keras.optimizers.schedules.LearningRateSchedule):
    def get_config(self):
        return {}

    def __call__(self, step):
        return 0.1 / (1 + keras.ops.cast(step, "float32"))


def model_of(**compiled):
    inputs = keras.Input((5, 3))
    h = keras.layers.GRU(4)(inputs)
    outputs = [keras.layers.Dense(2, name="a")(h), keras.layers.Dense(1, name="b")(h)]
    model = keras.Model(inputs, outputs[1] if "loss" not in compiled else outputs)
    model.compile(**{"loss": "mse", "run_eagerly": True, **compiled})
    return model


def quietly(model, **changes):
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        return kg.from_keras(model, **changes)


@pytest.mark.parametrize(
    "compiled",
    [
        {"loss": halved},
        {"loss": lambda y, found: keras.ops.mean(y - found, axis=-1) ** 2},
        {"loss": {"a": keras.losses.Huber(0.3), "b": halved}, "loss_weights": {"a": 2.0, "b": 1}},
        {"loss": [halved, "mae"], "metrics": [["mae"], [Said(3.0), halved]]},
        {"loss": ["mse", None], "weighted_metrics": {"a": [keras.metrics.RootMeanSquaredError()]}},
    ],
)
def test_the_copy_has_the_losses_and_metrics_themselves(compiled, rng):
    model = model_of(**compiled)
    x, y = rng.normal(size=(6, 5, 3)), [rng.normal(size=(6, 2)), rng.normal(size=(6, 1))]
    expected = model.evaluate(x, y, verbose=0, return_dict=True)
    copy = quietly(model)
    found = copy.evaluate(x, y, verbose=0, return_dict=True)
    assert found.keys() == expected.keys()
    np.testing.assert_allclose([*found.values()], [*expected.values()], rtol=1e-5)
    losses = zip(keras.tree.flatten(copy.loss), keras.tree.flatten(model.loss), strict=True)
    assert all(one is other for one, other in losses)
    assert model.compiled
    assert not {id(m) for m in model.metrics} & {id(m) for m in copy.metrics}


def test_the_optimizer_is_a_new_one_of_the_same_kind():
    optimizer = keras.optimizers.SGD(Slowing(), momentum=0.5, clipnorm=2.0)
    model = model_of(optimizer=optimizer, steps_per_execution=3)
    copy = quietly(model, grad_clip_norm=1.0)
    assert (copy.run_eagerly, copy.steps_per_execution) == (True, 3)
    made = copy.optimizer
    assert made is not optimizer
    assert (made.momentum, made.clipnorm, made.built) == (0.5, 2.0, True)
    assert isinstance(made, keras.optimizers.SGD)
    np.testing.assert_allclose(made.learning_rate, 0.1)


def test_a_model_of_ones_own_class(rng):
    model = subclassed()
    model.compile("adam", halved, run_eagerly=True)
    x, y = rng.normal(size=(4, 5, 3)), rng.normal(size=(4, 2))
    model.fit(x, y, verbose=0)
    with pytest.warns(UserWarning, match="`__init__` of") as caught:
        copy = kg.from_keras(model)
    assert not [w for w in caught if "is not compiled" in str(w.message)]
    np.testing.assert_allclose(
        copy.evaluate(x, y, verbose=0), model.evaluate(x, y, verbose=0), rtol=1e-5
    )


def test_training_either_leaves_the_other_as_it_is(rng):
    stateful = keras.backend.backend() != "torch"  # where Keras cannot train layers with states
    model = keras.Sequential(
        [
            keras.Input(batch_shape=(4, 5, 3)),
            keras.layers.GRU(4, activation="softsign", return_sequences=True, stateful=stateful),
            keras.layers.Bidirectional(kg.GatedRNN(3, dropout=0.2, return_sequences=True)),
            keras.layers.RNN([keras.layers.LSTMCell(2), keras.layers.SimpleRNNCell(2)]),
            keras.layers.BatchNormalization(),
            keras.layers.Dropout(0.2),
            keras.layers.Dense(1),
        ]
    )
    model.compile("adam", "mse", metrics=["mae"])
    x, y = rng.normal(size=(8, 5, 3)), rng.normal(size=(8, 1))
    models = model, quietly(model, grad_clip_norm=1.0)
    for trained, other in (models, models[::-1]):
        variables = [*other.variables, *other.optimizer.variables]
        before = [np.array(v) for v in variables]
        trained.fit(x, y, batch_size=4, verbose=0)  # JAX reuses the memory of variables
        for variable, value in zip(variables, before, strict=True):
            np.testing.assert_array_equal(np.array(variable), value)
        assert np.isfinite(other.predict(x, batch_size=4, verbose=0)).all()
    for each in models:
        assert np.isfinite(each.fit(x, y, batch_size=4, verbose=0).history["loss"]).all()


def test_a_model_within_a_model_is_compiled_too():
    inner = keras.Sequential([keras.Input((5, 3)), keras.layers.GRU(4)])
    inner.compile("sgd", halved)
    copy = quietly(keras.Sequential([inner, keras.layers.Dense(1)]))
    assert not copy.compiled
    assert copy.layers[0].loss is halved


class OwnCompile(keras.Sequential):
    def compile(self, rate):
        super().compile(keras.optimizers.SGD(rate), "mse")


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda: model_of(metrics=[Scaled(2.0)]), "the config of its metric 'scaled' does not say"),
        (lambda: OwnCompile([keras.Input((5, 3)), keras.layers.GRU(4)]), "a `compile` of its own"),
    ],
)
def test_what_cannot_be_compiled_is_said(make, reason):
    model = make()
    if not model.compiled:
        model.compile(0.1)
    with pytest.warns(UserWarning, match=f"is not compiled: .*{reason}.*Call its") as caught:
        copy = kg.from_keras(model)
    assert not copy.compiled
    (ours,) = [w for w in caught if "is not compiled" in str(w.message)]
    assert ours.filename == __file__
