"""The monitor: what it records, and that it sees divergence before NaN."""

import copy
import csv
import math
import warnings

import helpers
import keras
import numpy as np
import pytest
from keras import ops

import keras_gates as kg
from keras_gates import verdicts
from keras_gates.diagnostics import GateMonitor, diagnose

pytestmark = pytest.mark.skipif(helpers.BACKEND != "tensorflow", reason="trains on TensorFlow")

SAMPLES, TIME, FEATURES, UNITS = 40, 7, 3, 4


def data(rng):
    x = rng.normal(size=(SAMPLES, TIME, FEATURES)).astype("float32")
    return x, x.sum(axis=(1, 2))[:, None] / 5


def small_model(learning_rate=0.01, **options):
    model = keras.Sequential(
        [
            keras.Input((None, FEATURES)),
            kg.GatedRNN(UNITS, name="rnn", **options),
            keras.layers.Dense(1),
        ]
    )
    model.compile(keras.optimizers.SGD(learning_rate), "mse")
    return model


class Grow(keras.callbacks.Callback):
    """Makes the recurrent kernel larger after every batch, until the state overflows."""

    def on_train_batch_end(self, batch, logs=None):
        kernel = self.model.get_layer("rnn").cell.recurrent_kernel
        kernel.assign(1.5 * kernel)


def growing(loss="mse", *below):
    """A linear recurrence that learns nothing, so that `Grow` alone changes it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", kg.UnstableActivationsWarning)
        model = small_model(0.0, cell="simple", candidate_activation="linear")
    if below:
        model = keras.Sequential([model.inputs[0], *below, *model.layers])
    model.compile(keras.optimizers.SGD(0.0), loss)
    return model


def fit(model, x, y, *callbacks, epochs=2, **options):
    return model.fit(
        x, y, epochs=epochs, batch_size=8, shuffle=False, verbose=0, callbacks=callbacks, **options
    )


class Losses(keras.callbacks.Callback):
    """The loss after every batch."""

    def on_train_begin(self, logs=None):
        self.losses = []

    def on_train_batch_end(self, batch, logs=None):
        self.losses.append(logs["loss"])


class Spoil(keras.callbacks.Callback):
    """Makes a weight NaN after an epoch."""

    def __init__(self, epoch):
        super().__init__()
        self.epoch = epoch

    def on_epoch_begin(self, epoch, logs=None):
        if epoch == self.epoch:
            kernel = self.model.get_layer("rnn").cell.kernel
            kernel.assign(np.full(kernel.shape, np.nan))


def test_records_what_diagnose_finds(rng, tmp_path):
    x, y = data(rng)
    model = small_model(grad_clip_norm=0.01)
    monitor = GateMonitor(x, y, every=1, csv=tmp_path / "figures.csv")
    begin = diagnose(model, x[::1][_kept()], y[_kept()], lyapunov=False).scalars()
    history = fit(model, x, y, monitor, epochs=3).history
    end = diagnose(model, x[_kept()], y[_kept()], lyapunov=False).scalars()
    assert monitor.history["epoch"] == [0, 1, 2, 3]
    assert set(monitor.history) == {"epoch", "sample/loss", *end}
    for name in (
        "rnn/update/mean",
        "rnn/update/saturated_high",
        "rnn/hidden/norm",
        "rnn/gradient/log_slope",
        "rnn/clipped",
    ):
        assert monitor.history[name][0] == pytest.approx(begin[name], rel=1e-4)
        assert monitor.history[name][-1] == pytest.approx(end[name], rel=1e-4)
        assert history[name] == monitor.history[name][1:]
    assert monitor.history["rnn/update/mean"][0] != monitor.history["rnn/update/mean"][-1]
    expected = np.mean((np.asarray(model(x[_kept()])) - y[_kept()]) ** 2)
    assert monitor.history["sample/loss"][-1] == pytest.approx(expected, rel=1e-4)
    assert monitor.reason is None
    with open(tmp_path / "figures.csv", newline="") as file:
        head, *rows = csv.reader(file)
    assert head == list(monitor.history)
    columns = [list(map(float, column)) for column in zip(*rows, strict=True)]
    assert columns == [pytest.approx(past) for past in monitor.history.values()]


def _kept():
    return np.linspace(0, SAMPLES - 1, 32).round().astype(int)


def test_training_is_the_same_with_it(rng):
    x, y = data(rng)

    def trained(*callbacks):
        keras.utils.set_random_seed(3)
        inputs = keras.Input((None, FEATURES))
        hidden = kg.GatedRNN(UNITS, dropout=0.3, seed=1)(inputs)
        hidden = keras.layers.BatchNormalization()(hidden)
        outputs = [keras.layers.Dense(1, name=name)(hidden) for name in ("a", "b")]
        model = keras.Model(inputs, outputs)
        model.compile("adam", {"a": "mse", "b": "mae"}, metrics={"a": "mae"})
        history = fit(model, x, {"a": y, "b": y}, *callbacks).history
        return model.get_weights(), history

    monitor = GateMonitor(x, {"a": y, "b": y}, every=1, unit="step")
    watched, history = trained(monitor)
    alone, expected = trained()
    for given, wanted in zip(watched, alone, strict=True):
        assert np.array_equal(given, wanted)
    assert history == expected
    assert monitor.history["step"] == list(range(2 * SAMPLES // 8 + 1))


def test_activations_are_judged_once_however_often_it_looks(rng, monkeypatch):
    judge, asked = verdicts.judge, []
    model = small_model()
    monkeypatch.setattr(verdicts, "judge", lambda cell: asked.append(cell) or judge(cell))
    x, y = data(rng)
    monitor = GateMonitor(x, y, every=1, unit="step")
    fit(model, x, y, monitor)
    assert len(monitor.history["step"]) > 2
    assert len(asked) == len(set(map(id, asked))) == len(monitor.diagnosis.layers)


@pytest.mark.parametrize(
    ("unit", "every", "expected"), [("epoch", 2, [0, 2, 4]), ("step", 3, [0, 3, 6, 9, 12, 15])]
)
def test_looks_when_it_should(rng, unit, every, expected):
    x, y = data(rng)
    monitor = GateMonitor(x, every=every, unit=unit, samples=5)
    history = fit(small_model(), x, y, monitor, epochs=5 if unit == "epoch" else 3).history
    assert monitor.history[unit] == expected
    assert "rnn/clipped" not in monitor.history
    if unit == "epoch":
        shown = history["rnn/hidden/norm"]
        assert list(map(math.isnan, shown)) == [True, False, True, False, True]
        assert shown[1::2] == monitor.history["rnn/hidden/norm"][1:]
    assert monitor.diagnosis.layers[0].samples == 5


def test_goes_on_in_a_second_fit(rng, tmp_path):
    x, y = data(rng)
    model, monitor = small_model(), GateMonitor(x, every=1, csv=tmp_path / "figures.csv")
    fit(model, x, y, monitor, epochs=1)
    fit(model, x, y, monitor, epochs=2)
    assert monitor.history["epoch"] == [0, 1, 2, 3]
    assert len((tmp_path / "figures.csv").read_text().splitlines()) == 5


@pytest.mark.parametrize(
    ("loss", "targets", "unit", "said"),
    [
        ("mse", True, "epoch", "the training loss is"),
        ("mse", False, "step", "the training loss is"),
        ("flat", False, "epoch", "norm of the hidden state of 'rnn' is"),
        ("late", True, "step", "gradient norm of 'rnn' is"),
    ],
)
def test_stops_before_nan(rng, loss, targets, unit, said):
    losses = {
        "mse": "mse",
        "flat": lambda y, p: 0 * ops.mean(p),  # NaN once a prediction is not finite
        "late": lambda y, p: 100 + ops.tanh(1e-4 * ops.mean(p)),
    }
    x, y = data(rng)
    alone = Losses()
    keras.utils.set_random_seed(1)
    fit(growing(losses[loss]), x, y, alone, Grow(), epochs=30)
    nan = np.flatnonzero(~np.isfinite(alone.losses))
    keras.utils.set_random_seed(1)
    model, watched = growing(losses[loss]), Losses()
    monitor = GateMonitor(x, y if targets else None, every=1, unit=unit, on_divergence="stop")
    with pytest.warns(UserWarning, match="Training diverged in .* It is stopped."):
        fit(model, x, y, watched, Grow(), monitor, epochs=30)
    assert len(watched.losses) < (nan[0] if len(nan) else 150)
    assert np.isfinite(watched.losses).all()
    assert np.isfinite(model(x)).all()
    assert said in monitor.reason
    assert "times what it was" in monitor.reason
    assert monitor.diverged_at == math.ceil(len(watched.losses) / (1 if unit == "step" else 5))
    assert f"in {unit} {monitor.diverged_at}:" in monitor.reason


def test_restores_the_weights_of_the_last_sound_look(rng):
    x, y = data(rng)
    model = small_model()
    seen = []

    class Remember(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            seen.append(self.model.get_weights())

    monitor = GateMonitor(x, y, every=1, on_divergence="restore")
    with pytest.warns(UserWarning, match="restored, those of epoch 2, .*replay_epochs=5"):
        fit(model, x, y, Remember(), monitor, Spoil(2), epochs=6)
    assert len(seen) == 3
    for given, wanted in zip(model.get_weights(), seen[1], strict=True):
        assert np.array_equal(given, wanted)
    assert "is nan" in monitor.reason


def test_says_in_which_epoch_training_diverged(rng):
    x, y = data(rng)
    monitor = GateMonitor(x, y, every=1)
    with pytest.warns(UserWarning, match="Training diverged in epoch 1: the training loss is nan"):
        fit(small_model(), x, y, monitor, Spoil(0), epochs=1)
    assert monitor.diverged_at == 1
    model = small_model()
    model.set_weights([np.full(w.shape, np.nan) for w in model.get_weights()])
    monitor = GateMonitor(x, y, on_divergence="stop")
    with pytest.warns(UserWarning, match="Training diverged before it began: .* It is stopped.$"):
        fit(model, x, y, monitor)
    assert monitor.diverged_at == 0
    assert monitor.history["epoch"] == [0, 1]


def test_a_sample_that_is_not_finite_is_named_before_training(rng):
    x, y = data(rng)
    x[30, 2, 1] = np.nan
    for policy in ("warn", "restore"):
        monitor = GateMonitor(x, y, samples=14, on_divergence=policy)  # of which it is one
        with pytest.raises(
            ValueError, match="^`x` must be of finite .*nan at time step 2 in sample 30$"
        ):
            fit(small_model(), x, y, monitor)
    x, y = data(rng)
    with pytest.raises(ValueError, match="^`y` must be of finite .*: y in which 40 "):
        fit(small_model(), x, y, GateMonitor(x, y * np.inf, samples=40))


def test_all_data_are_looked_at_for_what_is_not_finite(rng):
    import tensorflow as tf

    x, y = data(rng)
    x[31, 2, 1] = np.nan
    for given in ((x, y), (tf.data.Dataset.from_tensor_slices((x, y)).batch(16), None)):
        monitor = GateMonitor(*given, samples=2, on_divergence="restore")
        said = f"The data may be at fault: of `x` 1 of {x.size} values is NaN .* 2 in sample 31. It"
        with pytest.warns(UserWarning, match=said):
            fit(small_model(), x, y, monitor)


def test_gaps_that_the_model_fills_are_not_blamed(rng):
    x, y = data(rng)
    x[::3, 2] = np.nan
    model = growing("mse", keras.layers.Lambda(lambda x: ops.where(ops.isnan(x), 0.0, x)))
    monitor = GateMonitor(x, y, on_divergence="restore", unit="step")
    with pytest.warns(UserWarning, match="Training diverged.*locate_nonfinite"):
        fit(model, x, y, monitor, Grow(), epochs=30)
    assert "data" not in monitor.reason


def test_the_weights_of_samples_are_in_its_loss(rng):
    import tensorflow as tf

    x, y = data(rng)
    weights = rng.random(len(x)).astype("float32")
    for given in (
        {"x": x, "y": y, "sample_weight": weights},
        {"x": tf.data.Dataset.from_tensor_slices((x, y, weights)).batch(16)},
    ):
        model = small_model()
        monitor = GateMonitor(**given, samples=len(x))
        expected = model.evaluate(x, y, sample_weight=weights, batch_size=len(x), verbose=0)
        fit(model, x, y, monitor)
        assert monitor.history["sample/loss"][0] == pytest.approx(expected, rel=1e-4)
    with pytest.raises(ValueError, match="`sample_weight` must be left out where `x` is a dataset"):
        GateMonitor(given["x"], sample_weight=weights)


def test_labels_that_are_nan_are_named_before_training(rng):
    small = small_model()
    layers = [small.inputs[0], *small.layers[:-1], keras.layers.Dense(3, "softmax")]
    model = keras.Sequential(layers)
    model.compile("adam", "sparse_categorical_crossentropy")
    x, _ = data(rng)
    labels = np.zeros(len(x))
    labels[31] = np.nan
    with pytest.raises(ValueError, match="^`y` must be of finite .* 1 of 40 .*nan in sample 31"):
        fit(model, x, labels, GateMonitor(x, labels, samples=2))
    labels[:] = 5
    with pytest.raises(ValueError, match="Received: 5.0 in sample 0, and 1 more"):
        fit(model, x, labels, GateMonitor(x, labels, samples=2))


def test_refuses_to_restore_what_was_never_sound(rng):
    x, y = data(rng)
    model = small_model()
    model.set_weights([np.full(w.shape, np.nan) for w in model.get_weights()])
    monitor = GateMonitor(x, y, on_divergence="restore")
    with pytest.raises(
        ValueError, match="before it began: .* no sound weights to restore. kera"
    ) as error:
        fit(model, x, y, monitor)
    assert "locate_nonfinite(model, x, y) says where it begins" in str(error.value)
    assert "keras_gates.check_activations" in str(error.value)
    sound = small_model()
    fit(sound, x, y, monitor := GateMonitor(x, y, on_divergence="restore"))
    assert monitor.reason is None


def test_training_can_go_on_after_a_restore(rng):
    """Without its own state restored, Adam would put NaN into all weights at the next step."""
    x, y = data(rng)
    model = small_model()
    model.compile("adam", "mse")
    seen = []

    def state():
        return [np.array(v) for v in [*model.weights, *model.optimizer.variables]]

    class Remember(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            seen.append(state())

    def diverges(epoch, at):
        with pytest.warns(UserWarning, match=f"in epoch {at}: .* with the optimizer's state"):
            fit(model, x, y, Remember(), monitor, Spoil(epoch), epochs=4)
        assert monitor.diverged_at == at

    monitor = GateMonitor(x, y, every=1, on_divergence="restore")
    diverges(0, at=1)
    assert monitor.history["epoch"] == [0]
    for variable in model.optimizer.variables[2:]:  # after the count of steps, and the rate
        assert not np.any(np.array(variable)), variable.path
    diverges(2, at=4)
    assert monitor.history["epoch"] == [0, 2, 3]
    for given, wanted in zip(state(), seen[2], strict=True):
        assert np.array_equal(given, wanted)
    model.optimizer.learning_rate = 1e-4
    diverges(0, at=5)
    assert float(model.optimizer.learning_rate) == pytest.approx(1e-4)
    fit(model, x, y, monitor, epochs=2)
    assert monitor.reason is monitor.diverged_at is None
    assert monitor.history["epoch"] == [0, 2, 3, 6, 7]
    assert np.isfinite(state()[0]).all()


def test_warns_once_and_goes_on(rng):
    x, y = data(rng)
    monitor, model = GateMonitor(x, every=1), small_model()
    with pytest.warns(UserWarning, match="diverged") as caught:
        fit(model, x, y, monitor, Spoil(1), epochs=4)
    assert sum("diverged" in str(each.message) for each in caught) == 1
    assert monitor.history["epoch"] == [0, 1, 2, 3, 4]
    assert math.isnan(monitor.history["rnn/hidden/norm"][-1])


def test_what_was_small_may_grow_again(rng):
    monitor = GateMonitor(data(rng)[0], every=1, growth=100)
    for value in (2.0, 1e-6, 0.5, 19.0):
        assert monitor._check({"loss": value}, 1), value
    assert monitor._check({"negative": -3.0}, 1)
    assert monitor._check({"negative": 5.0}, 1)
    assert monitor.reason is None
    monitor.set_model(small_model())
    with pytest.warns(UserWarning, match="the loss is 21, 105 times"):
        assert not monitor._check({"loss": 21.0}, 1)


def test_tensorboard(rng, tmp_path):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    x, y = data(rng)
    monitor = GateMonitor(x, every=1, log_dir=tmp_path)
    fit(small_model(), x, y, monitor)
    events = accumulator.EventAccumulator(str(tmp_path), size_guidance={"tensors": 0})
    events.Reload()
    from tensorflow import make_ndarray

    written = [
        (event.step, float(make_ndarray(event.tensor_proto)))
        for event in events.Tensors("rnn/reset/p50")
    ]
    assert [step for step, _ in written] == [0, 1, 2]
    assert [value for _, value in written] == pytest.approx(monitor.history["rnn/reset/p50"])


def test_the_loss_scale_of_float16_does_not_matter(rng):
    x, y = data(rng)
    keras.config.set_dtype_policy("mixed_float16")
    monitor = GateMonitor(x, y, every=1)
    fit(small_model(), x, y, monitor)
    assert max(monitor.history["rnn/gradient/largest"]) < 10
    assert monitor.reason is None


def test_can_be_copied_before_training(rng, tmp_path):
    """As KerasTuner does for every trial."""
    x, y = data(rng)
    monitor = GateMonitor(x, y, every=1, log_dir=tmp_path)
    twin = copy.deepcopy(monitor)
    fit(small_model(), x, y, twin, epochs=1)
    assert twin.history
    assert not monitor.history


def test_errors(rng):
    x, y = data(rng)
    for options, said in [
        ({"every": 0}, "`every`"),
        ({"unit": "batch"}, "`unit` must be one of 'epoch', 'step'"),
        ({"samples": 0}, "`samples`"),
        ({"margin": 0}, "`margin`"),
        ({"on_divergence": "nothing"}, "`on_divergence` must be one of 'warn'"),
        ({"growth": 1}, "`growth`.*above 1. Received: 1"),
        ({"y": y[:3]}, "`y` must have as many samples"),
        ({"x": x[:0]}, "`x` must hold at least one sample"),
    ]:
        with pytest.raises(ValueError, match=said):
            GateMonitor(**{"x": x, **options})
    with pytest.raises(ValueError, match="`x` must fit"):
        fit(small_model(), x, y, GateMonitor(x[..., :2]))
    dense = keras.Sequential([keras.Input((None, FEATURES)), keras.layers.Dense(1)])
    dense.compile("sgd", lambda y, p: ops.mean(p))
    with pytest.raises(ValueError, match="must have a recurrent layer"):
        fit(dense, x, y, GateMonitor(x, every=1))


@pytest.mark.parametrize(("cost", "epochs"), [(0.0, [0, 1]), (1e9, [0, 1, 2, 3])])
def test_by_default_looks_stay_within_their_share_of_the_time(cost, epochs, rng, monkeypatch):
    monkeypatch.setattr("keras_gates.diagnostics.monitor.COST", cost)
    x, y = data(rng)
    monitor = GateMonitor(x)
    fit(small_model(), x, y, monitor, epochs=3)
    assert monitor.history["epoch"] == epochs
