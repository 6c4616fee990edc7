"""A value that is not finite is found where it was planted."""

import math

import helpers
import keras
import numpy as np
import pytest
from diagnosed import TENSORFLOW, dense, model_of, needs_gradients, sequences
from helpers import BATCH, FEATURES, TIME, UNITS
from keras import ops

import keras_gates as kg
from keras_gates.diagnostics import diagnose, locate_nonfinite

pytestmark = pytest.mark.filterwarnings("ignore::keras_gates.UnstableActivationsWarning")


@keras.saving.register_keras_serializable(package="tests_nonfinite")
def spiked(a):
    """tanh, but NaN beyond 50."""
    return ops.where(a > 50, ops.full_like(a, np.nan), ops.tanh(a))


def rooted(a):
    """Finite for a >= 0, but its derivative at 0 is not."""
    return ops.sqrt(ops.relu(a))


@pytest.mark.filterwarnings("ignore:.*works for training.*")
class TestLocate:
    def layer(self, rng, **options):
        return helpers.built(rng, dtype="float32", scale=0.5, name="rnn", **options)

    def test_nothing(self, rng):
        model = model_of(self.layer(rng, cell="lstm", return_sequences=True), dense(rng))
        y = np.zeros((BATCH, TIME, 2)) if TENSORFLOW else None
        found = locate_nonfinite(model, sequences(rng), y)
        assert not found
        assert str(found) == "Everything is finite."

    def test_in_the_data(self, rng):
        model = model_of(self.layer(rng, cell="gru"), dense(rng))
        x, y = sequences(rng), np.zeros((BATCH, 2))
        x[4, 7, 1] = -np.inf
        found = locate_nonfinite(model, x)
        assert (found.where, found.sample, found.time_step, found.value) == ("x", 4, 7, -np.inf)
        y[2, 0] = np.nan
        found = locate_nonfinite(model, sequences(rng), y)
        assert (found.where, found.sample) == ("y", 2)

    @needs_gradients
    def test_gaps_that_a_model_fills_are_not_what_broke_it(self, rng):
        def known_alone(y, p):
            return ops.mean(ops.square(ops.where(ops.isnan(y), 0.0, p - y)))

        filled = keras.layers.Lambda(lambda x: ops.where(ops.isnan(x), 0.0, x))
        layer = self.layer(rng, cell="simple", candidate_activation="linear")
        model = model_of(keras.layers.Rescaling(2.0), filled, layer, dense(rng), loss=known_alone)
        x, y = sequences(rng), np.zeros((BATCH, 2))
        x[1, 2], y[3, 0] = np.nan, np.nan
        before = [np.array(v.value) for v in model.variables]
        assert not locate_nonfinite(model, x, y)
        for variable, value in zip(model.variables, before, strict=True):
            np.testing.assert_array_equal(variable.value, value)
        layer.set_weights([3e38 * np.sign(w) for w in layer.get_weights()])
        found = locate_nonfinite(model, x, y)
        assert (found.where, found.layer, found.quantity) == ("forward", "rnn", "candidate")
        assert {finding.layer for finding in diagnose(model, x, y).findings} == {"rnn"}
        model.layers[1].function = lambda x: x
        assert locate_nonfinite(model, x, y).where == "x"
        assert diagnose(model, x, y).findings[0].layer == "x"
        model.compile("sgd", "mse")
        x[1, 2] = 0.0
        assert locate_nonfinite(model, x, y).where == "y"

    @needs_gradients
    def test_the_weights_of_samples(self, rng):
        model = model_of(self.layer(rng, cell="gru"), dense(rng))
        x, y, weight = sequences(rng), np.zeros((BATCH, 2)), np.ones(BATCH)
        y[4] = 1e30
        found = locate_nonfinite(model, x, y)
        assert (found.where, found.value) == ("loss", np.inf)
        assert locate_nonfinite(model, x, y, replay_epochs=1).training_step == 1
        weight[4] = 0.0
        assert not locate_nonfinite(model, x, np.minimum(y, 1e18), sample_weight=weight)
        assert not locate_nonfinite(
            model, x, np.minimum(y, 1e18), sample_weight=weight, replay_epochs=1
        )
        weight[2] = np.nan
        found = locate_nonfinite(model, x, np.minimum(y, 1.0), sample_weight=weight)
        assert (found.where, found.sample) == ("sample_weight", 2)
        assert "the weights of the samples" in str(found)

    def test_in_the_weights(self, rng):
        layer = self.layer(rng, cell="gru")
        model = model_of(layer, dense(rng))
        recurrent = np.array(layer.cell.recurrent_kernel)
        recurrent[2, 3] = np.nan
        layer.cell.recurrent_kernel.assign(recurrent)
        found = locate_nonfinite(model, sequences(rng))
        assert (found.where, found.quantity) == ("weights", "recurrent_kernel")
        assert "rnn" in found.layer
        assert math.isnan(found.value)
        assert "recurrent_kernel of layer" in str(found)

    @pytest.mark.parametrize("backwards", [False, True])
    @pytest.mark.parametrize("batch_size", [32, 2])
    def test_in_a_gate_at_one_step(self, rng, backwards, batch_size):
        layer = self.layer(
            rng, cell="lstm", gate_activation={"forget": spiked}, go_backwards=backwards
        )
        kernel = layer.get_weights()[0]
        x = sequences(rng)
        x[3, 5] = 1e3 * kernel[:, UNITS]  # along one column of the forget gate
        below = kg.GatedRNN(FEATURES, cell="simple", return_sequences=True)
        below.build(x.shape)
        below.set_weights([np.eye(FEATURES), np.zeros((FEATURES, FEATURES)), np.zeros(FEATURES)])
        below.cell.candidate_activation = keras.activations.linear
        model = model_of(below, layer)
        found = locate_nonfinite(model, x, batch_size=batch_size)
        assert (found.where, found.layer) == ("forward", "rnn")
        assert (found.quantity, found.time_step, found.sample) == ("gate forget", 5, 3)
        assert math.isnan(found.value)
        assert "gate forget of layer 'rnn' at time step 5 in sample 3 is nan" in str(found)

    def test_overflow_at_the_step_where_it_happens(self, rng):
        """h doubles from 2**100 at the first step: 2**127 is the last that float32 holds."""
        layer = kg.GatedRNN(1, cell="simple", candidate_activation="linear", name="rnn")
        layer.build((None, None, 1))
        layer.set_weights([np.ones((1, 1)), 2 * np.ones((1, 1)), np.zeros(1)])
        model = keras.Sequential([keras.Input((None, 1)), layer])
        x = np.zeros((3, 40, 1), "float32")
        x[1, 0] = 2.0**100
        found = locate_nonfinite(model, x)
        assert (found.quantity, found.time_step, found.sample) == ("candidate", 28, 1)
        assert found.value == np.inf
        assert "states before it are as large as 1.7e+38. If they grow with time" in found.advice

    @pytest.mark.parametrize("cell", ["gru", "lstm"])
    def test_an_activation_without_a_value(self, rng, cell):
        which = "candidate" if cell == "gru" else "output"
        layer = self.layer(rng, cell=cell, **{f"{which}_activation": ops.log})
        found = locate_nonfinite(model_of(layer), sequences(rng))
        assert found.quantity == ("candidate" if cell == "gru" else "hidden state")
        assert "the activation log is NaN for some finite inputs: it has no finite" in found.advice
        assert "gates in" not in found.advice

    def test_weights_that_overflow(self, rng):
        layer = self.layer(rng, cell="simple", candidate_activation="linear")
        layer.set_weights([3e38 * np.sign(w) for w in layer.get_weights()])
        found = locate_nonfinite(model_of(layer), 10 * sequences(rng))
        assert (found.quantity, found.time_step) == ("candidate", 0)
        assert "no state before it is above 0: look at the weights" in found.advice

    def test_a_layer_that_overflows(self, rng):
        model = model_of(self.layer(rng), keras.layers.Lambda(lambda h: (1e10 * h) ** 4))
        found = locate_nonfinite(model, sequences(rng))
        assert "no finite value there" in found.advice
        wide = keras.layers.Rescaling(1e25)
        model = model_of(self.layer(rng), wide, keras.layers.Lambda(ops.square))
        found = locate_nonfinite(model, sequences(rng))
        assert "which overflows here: scale the data" in found.advice

    def test_which_of_several_inputs_and_targets(self, rng):
        inputs = [keras.Input((None, FEATURES), name=name) for name in "qp"]
        hidden = [kg.GatedRNN(3)(each) for each in inputs]
        outputs = [keras.layers.Dense(2, name=n)(h) for n, h in zip("vu", hidden, strict=True)]
        model = keras.Model(inputs, outputs)
        model.compile("sgd", ["mse", "mse"])
        q, p, y = sequences(rng), sequences(rng), [np.zeros((BATCH, 2)) for _ in outputs]
        p[3, 2] = np.nan
        for x in ([q, p], {"q": q, "p": p}):
            found = locate_nonfinite(model, x)
            assert (found.where, found.quantity, found.sample) == ("x", "p", 3)
            assert "in the inputs: 'p' at time step 2 in sample 3 is nan" in str(found)
        y[1][4] = np.inf
        for targets in (y, {"v": y[0], "u": y[1]}) if TENSORFLOW else ():
            found = locate_nonfinite(model, [q, q], targets)
            assert "in the targets: 'u' in sample 4 is inf" in str(found)

    @needs_gradients
    def test_labels_of_classes_that_there_are_not(self, rng):
        losses = keras.losses.SparseCategoricalCrossentropy
        labels = np.array([0, 1, 3, 0, 5, -1])
        for loss, first in [
            ("sparse_categorical_crossentropy", "Received: 3 in sample 2, and 2 more"),
            (keras.losses.sparse_categorical_crossentropy, "Received: 3 in sample 2"),
            (losses(), "Received: 3 in sample 2, and 2 more"),
            (losses(ignore_class=-1), "Received: 3 in sample 2, and 1 more"),
        ]:
            top = keras.layers.Dense(3, "softmax")
            model = model_of(self.layer(rng), top, loss=loss)
            said = f"`y` must have labels from 0 to 2 for sparse_categorical_cross.*{first}"
            with pytest.raises(ValueError, match=said):
                locate_nonfinite(model, sequences(rng), labels)
        labels[labels > 2] = 2
        with pytest.raises(ValueError, match="one label per sample .* with categorical_cross"):
            diagnose(model, sequences(rng), np.eye(3)[labels])
        unknown = np.where(labels < 0, np.nan, labels)
        with pytest.raises(
            ValueError, match="^`y` must be of finite numbers.*nan in sample 5. For what nobody"
        ):
            diagnose(model, sequences(rng), unknown)
        assert locate_nonfinite(model, sequences(rng), unknown).where == "y"
        assert not locate_nonfinite(model, sequences(rng), labels)

    def test_masked_steps_are_passed_over(self, rng):
        layer = self.layer(rng, cell="gru", gate_activation={"update": spiked})
        x = sequences(rng)
        x[2, 4] = 1e3 * layer.get_weights()[0][:, 0]
        mask = np.ones((BATCH, TIME), bool)
        mask[2, 4] = False
        inputs = [keras.Input((None, FEATURES)), keras.Input((None,), dtype="bool")]
        model = keras.Model(inputs, layer(inputs[0], mask=inputs[1]))
        assert not locate_nonfinite(model, [x, mask])
        found = locate_nonfinite(model, [x, np.ones_like(mask)])
        assert (found.quantity, found.time_step, found.sample) == ("gate update", 4, 2)

    def test_in_a_layer_that_is_not_recurrent(self, rng):
        model = keras.Sequential(
            [
                keras.Input((None, FEATURES)),
                keras.layers.Lambda(ops.log, name="log"),
                kg.GatedRNN(3),
            ]
        )
        x = np.abs(sequences(rng)) + 0.1
        assert not locate_nonfinite(model, x)
        x[1, 6, 2] = 0
        found = locate_nonfinite(model, x)
        assert (found.where, found.layer, found.quantity) == ("forward", "log", "output")
        assert (found.sample, found.time_step, found.value) == (1, 6, -np.inf)
        assert "finite: this layer has no finite value there, as a log" in found.advice
        assert "gates" not in found.advice

    @needs_gradients
    def test_in_the_loss(self, rng):
        layer = self.layer(rng, cell="gru")
        model = model_of(layer, loss=lambda y, p: ops.log(ops.sum(p - p)))
        found = locate_nonfinite(model, sequences(rng), np.zeros((BATCH, UNITS)))
        assert (found.where, found.value) == ("loss", -np.inf)

    @needs_gradients
    @pytest.mark.parametrize("backwards", [False, True])
    def test_in_the_backward_pass(self, rng, backwards):
        """sqrt at 0 has no finite derivative: at step 4 of sample 2 alone its argument is 0."""
        layer = kg.GatedRNN(
            1,
            cell="simple",
            candidate_activation=rooted,
            go_backwards=backwards,
            return_sequences=True,
            name="rnn",
        )
        layer.build((None, None, 1))
        layer.set_weights([np.ones((1, 1)), np.zeros((1, 1)), np.zeros(1)])
        model = keras.Sequential([keras.Input((None, 1)), layer])
        model.compile("sgd", "mse")
        x = rng.uniform(0.5, 1, size=(3, 9, 1))
        x[2, 4] = 0
        found = locate_nonfinite(model, x, -np.ones((3, 9, 1)))
        assert (found.where, found.layer) == ("backward", "rnn")
        assert found.quantity == "gradient of the hidden state"
        # What the equations of step 4 make of it arrives at the step that is read before.
        assert (found.time_step, found.sample) == (5 if backwards else 3, 2)

    @needs_gradients
    def test_in_the_gradient_of_a_weight_alone(self, rng):
        """At the first step nothing before it can show what its equations do."""
        layer = kg.GatedRNN(1, cell="simple", candidate_activation=rooted, name="rnn")
        layer.build((None, None, 1))
        layer.set_weights([np.ones((1, 1)), np.ones((1, 1)), np.zeros(1)])
        model = keras.Sequential([keras.Input((None, 1)), layer])
        model.compile("sgd", "mse")
        x = rng.uniform(0.5, 1, size=(3, 4, 1))
        x[2, 0] = 0
        found = locate_nonfinite(model, x, -np.ones((3, 1)))
        assert (found.where, found.quantity) == ("backward", "gradient of kernel")
        assert "rnn" in found.layer


@needs_gradients
def test_a_loss_that_overflows_is_one(rng):
    layer = kg.GatedRNN(UNITS, "simple", candidate_activation="linear", name="rnn")
    model = model_of(layer, keras.layers.Dense(1))
    x = sequences(rng, batch=9)
    x[6] *= 1e30
    found = locate_nonfinite(model, x, np.zeros((9, 1)))
    assert (found.where, found.sample) == ("loss", 6)
    assert "their loss overflows. Scale the data" in str(found)


@needs_gradients
class TestReplay:
    """A training that ended in NaN, of which nothing but the model is left."""

    def lost(self, **options):
        layer = kg.GatedRNN(UNITS, dtype="float32", name="rnn", **options)
        model = model_of(layer, keras.layers.Dense(2))
        model.compile(keras.optimizers.SGD(30.0), "mse")
        return model

    def test_names_the_step_where_it_began(self, rng):
        x, y = sequences(rng, batch=20), rng.normal(size=(20, 2))
        model = self.lost(candidate_activation=spiked)
        model.set_weights([np.full(w.shape, np.nan) for w in model.get_weights()])
        found = locate_nonfinite(model, x, y, batch_size=6, replay_epochs=5, seed=3)
        assert (found.where, found.layer, found.quantity) == ("forward", "rnn", "candidate")
        assert all(np.isnan(w).all() for w in model.get_weights())

        # The same training by hand.
        keras.utils.set_random_seed(3)
        again = keras.models.clone_model(model)
        again.compile(keras.optimizers.SGD(30.0), "mse")
        order, losses = np.random.default_rng(3), []
        while not losses or np.isfinite(losses[-1]):
            batches = np.split(order.permutation(20), [6, 12, 18])
            for batch in batches:
                before = again.get_weights()
                losses.append(again.train_on_batch(x[batch], y[batch]))
                if not np.isfinite(losses[-1]):
                    break
        assert found.training_step == len(losses) > 1
        assert found.epoch == -(-len(losses) // 4)
        again.set_weights(before)
        nan = np.isnan(again.predict(x[batch], verbose=0)).any(axis=1)
        assert found.sample in batch[nan]
        when = f"in training step {len(losses)} (epoch {found.epoch}) of a copy with new weights"
        assert f"{when}: candidate" in str(found)

    def test_an_update_that_overflows(self, rng):
        x, y = sequences(rng), np.zeros((BATCH, 2))
        model = self.lost()
        model.compile(keras.optimizers.SGD(3e38), "mse")
        found = locate_nonfinite(model, x, y + 1e3, replay_epochs=1)
        assert (found.where, found.training_step, found.epoch) == ("update", 1, 1)
        assert "Lower the learning rate" in str(found)

    def test_a_training_that_stays_finite(self, rng):
        model = self.lost()
        model.compile("adam", "mse")
        found = locate_nonfinite(
            model, sequences(rng), np.zeros((BATCH, 2)), batch_size=4, replay_epochs=2
        )
        assert not found
        steps = 2 * -(-BATCH // 4)
        said = (
            f"stayed finite in a training of {steps} steps (2 epochs), of a copy with new weights."
        )
        assert said in str(found)

    def test_keeps_what_a_layer_was_adapted_to(self, rng):
        norm = keras.layers.Normalization()
        x = 100 + sequences(rng)
        norm.adapt(x)
        model = keras.Sequential([keras.Input((None, FEATURES)), norm, kg.GatedRNN(UNITS)])
        model.compile("adam", "mse")
        from keras_gates.diagnostics import replay

        (mean, *_), copy = norm.get_weights(), replay._copy(model, x)
        np.testing.assert_allclose(copy.layers[0].get_weights()[0], mean)
        assert np.abs(copy.layers[0](x)).max() < 10

    def test_bad_arguments(self, rng):
        model = self.lost()
        with pytest.raises(ValueError, match="`y` must be given with `replay_epochs`"):
            locate_nonfinite(model, sequences(rng), replay_epochs=3)
        with pytest.raises(ValueError, match="`replay_epochs` must be"):
            locate_nonfinite(model, sequences(rng), np.zeros((BATCH, 2)), replay_epochs=0)

        class Own(keras.Model):
            def __init__(self, size):
                super().__init__()
                self.rnn = kg.GatedRNN(size)

            def call(self, x):
                return self.rnn(x)

        own = Own(UNITS)
        own.compile("sgd", "mse")
        own(sequences(rng))
        with pytest.raises(ValueError, match="`replay_epochs` needs 'own.*get_config"):
            locate_nonfinite(own, sequences(rng), np.zeros((BATCH, UNITS)), replay_epochs=1)
