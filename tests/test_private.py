"""Each private part of Keras that is used, by name: a release without it fails here first."""

import gc
import importlib.util
import inspect
import pathlib
import re
import weakref

import keras
import numpy as np
import pytest
from helpers import BACKEND, run_python

import keras_gates
from keras_gates._keras import calls, cudnn, formats, graph, layers, tuner


def test_the_origin_of_a_keras_tensor():
    x = keras.KerasTensor((None, 3), name="x")
    assert graph.origin(x) is None
    operation, args, kwargs, index = graph.origin(keras.ops.add(x, 2.0))
    assert type(operation).__name__ == "Add"
    assert args[0] is x
    assert (args[1], kwargs, index) == (2.0, {}, 0)


def test_automatic_names_are_kept():
    keras.layers.Dense(1)
    with graph.names_kept():
        keras.layers.Dense(1)
    assert keras.layers.Dense(1).name == "dense_1"


def test_names_are_reserved():
    graph.reserve_names(["dense_3", "dense", "lstm"])
    assert keras.layers.Dense(1).name == "dense_4"
    assert keras.layers.LSTM(1).name == "lstm_1"
    assert keras.layers.GRU(1).name == "gru"


def test_the_calls_of_a_layer():
    x = keras.KerasTensor((None, 3), name="x")
    layer = keras.layers.Dense(1)
    layer(x, training=True)
    ((args, kwargs),) = graph.calls(layer)
    assert args[0] is x
    assert kwargs["training"] is True


def test_a_variable_stands_for_a_keras_tensor():
    variable, x = keras.Variable(2.0), keras.KerasTensor((None, 3), name="x")
    with keras.StatelessScope() as scope:
        graph.map_variable(scope, variable, x)
        assert variable.value is x


def test_keras_tensors_in_operators():
    x = keras.KerasTensor((None, 3), name="x")
    one = keras.ops.ones(())
    with graph.operators_of_tensors():
        found = [np.float64(2) * x, np.ones(3) - x, one / x, x == 0.0, x != np.float32(1), x == x]
    names = [type(graph.origin(y)[0]).__name__ for y in found]
    assert names == ["Multiply", "Subtract", "TrueDivide", "Equal", "NotEqual", "Equal"]
    assert graph.origin(found[0])[1][1] is x
    assert (x == 0.0) is False
    assert len({x: 1, found[0]: 2}) == 2
    with pytest.raises(ValueError, match="cannot convert it to a NumPy array"):
        np.float64(2) * x


def test_a_copy_of_a_layer_has_records_of_its_own():
    layer = keras.layers.Dense(1)
    copy = object.__new__(type(layer))
    vars(copy).update(vars(layer))
    graph.disconnected(copy)
    assert copy._inbound_nodes is not layer._inbound_nodes
    assert copy._outbound_nodes is not layer._outbound_nodes


@pytest.mark.skipif(BACKEND != "tensorflow", reason="it is TensorFlow that keeps them")
def test_gradients_are_forgotten_with_their_graphs():
    import tensorflow as tf

    def graph_of_a_model():
        @tf.custom_gradient
        def doubled(x):
            return 2 * x, lambda dy: 3 * dy

        @tf.function
        def gradient(x):
            with tf.GradientTape() as tape:
                tape.watch(x)
                y = doubled(x)
            return tape.gradient(y, x)

        x = tf.constant(1.0)
        assert float(gradient(x)) == 3.0
        return gradient, weakref.ref(gradient.get_concrete_function(x).graph)

    gradient, kept = graph_of_a_model()
    del gradient
    gc.collect()
    assert kept() is not None  # else TensorFlow has mended it, and we need not
    with graph.gradients_forgotten():
        gradient, let_go = graph_of_a_model()
    assert float(gradient(tf.constant(1.0))) == 3.0
    del gradient
    gc.collect()
    assert let_go() is None
    assert kept() is not None  # what was there before is not touched


def test_private_parts_are_imported_in_one_place():
    private = re.compile(r"(keras|keras_tuner)\.src|tensorflow(\.\w+)*\.python|jax\._src")
    package = pathlib.Path(keras_gates.__file__).parent
    for file in package.rglob("*.py"):
        if file.parent.name != "_keras":
            assert not private.search(file.read_text()), file


def test_parts_of_layers():
    with layers.AutocastScope("float16"):
        assert keras.Variable(1.0).value.dtype == "float16"
    assert layers.to_snake_case("GatedRNN") == "gated_rnn"
    mask = keras.layers.Masking()
    assert layers.get_keras_mask(mask(np.zeros((1, 2, 3)))) is not None
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    model.build((None, 2))
    assert layers.get_input_signature(model)
    cell = keras.layers.GRUCell(2, dropout=0.5)
    assert isinstance(cell, layers.DropoutRNNCell)
    assert cell.get_dropout_mask(np.ones((1, 3))) is not None


@pytest.mark.parametrize(("kind", "blocks"), [("gru", 3), ("lstm", 4)])
def test_how_keras_calls_cudnn(kind, blocks, monkeypatch):
    """What it is given and gives; tests/test_cudnn.py has it compute."""
    from keras.src import backend

    heard = []

    def hear(*args, **kwargs):
        heard.append((args, kwargs))
        states = args[1:-1]
        last = list(states) if kind == "lstm" else states[0]  # as before Keras 3.14
        return "last", "hidden", last

    names = inspect.signature(getattr(backend, kind)).parameters
    if BACKEND == "tensorflow":  # the others come with later versions of Keras
        wanted = "kernel recurrent_kernel bias activation recurrent_activation return_sequences"
        assert {*wanted.split()} <= {*names}
    monkeypatch.setattr(backend, kind, hear)
    if BACKEND == "torch":
        monkeypatch.setattr(backend, "bidirectional_lstm", 0, raising=False)  # as from 3.15 on
    states = ["h", "c"][: blocks - 2]
    hidden, last = cudnn.run(kind, "x", states, "mask", ["W", "U", "b"], False)
    assert (hidden, last) == (None, states)
    assert cudnn.run(kind, "x", states, "mask", ["W", "U", "b"], True) == ("hidden", states)
    args, kwargs = heard[-1]
    assert args == ("x", *states, "mask")
    assert (kwargs["kernel"], kwargs["recurrent_kernel"], kwargs["bias"]) == ("W", "U", "b")


@pytest.mark.skipif(BACKEND != "tensorflow", reason="it is TensorFlow that is asked")
def test_what_is_being_traced_is_known(tmp_path):
    seen = []

    class Look(keras.layers.Layer):
        def call(self, x, training=False):
            models = {
                type(frame.f_locals.get("self"))
                for module, frame in calls.callers()
                if module == calls.TRAINER
            }
            seen.append((calls.is_exporting(), calls.may_be_recorded(), keras.Sequential in models))
            return x

    model = keras.Sequential([keras.Input((2,)), Look(), keras.layers.Dense(1)])
    model.compile("sgd", "mse")
    x = np.zeros((2, 2))
    for act, expected in (
        (lambda: model.fit(x, x[:, :1], verbose=0), (False, True, True)),
        (lambda: model.predict(x, verbose=0), (False, False, True)),
        (lambda: model.export(tmp_path / "exported", verbose=False), (True, False, False)),
    ):
        seen.clear()
        act()
        assert seen[-1] == expected


def test_the_steps_of_time_distributed_layers_are_known():
    seen = []

    class Look(keras.layers.Layer):
        def call(self, x):
            seen.append(int(calls.outer_steps()))
            return x

    keras.layers.TimeDistributed(keras.layers.TimeDistributed(Look()))(np.zeros((2, 3, 4, 5)))
    assert set(seen) == {12}
    assert calls.outer_steps() == 1


@pytest.mark.skipif(BACKEND != "tensorflow", reason="LiteRT's converter is TensorFlow's")
def test_parts_of_litert():
    from keras_gates._keras import litert

    assert issubclass(litert.ConverterError, Exception)


@pytest.mark.skipif(not importlib.util.find_spec("tensorflow"), reason="they are TensorFlow's")
def test_formats_of_tensorflow():
    assert formats.litert().ModelT().subgraphs is None
    assert not formats.saved_model().SavedModel().meta_graphs


@pytest.mark.slow
@pytest.mark.skipif(BACKEND != "tensorflow", reason="needs TensorFlow")
def test_tensorflow_can_be_imported_after_the_formats_of_its_files(tmp_path):
    run_python(
        """
        import sys
        from keras_gates_command import without_backend
        without_backend.import_keras()
        from keras_gates._keras import formats
        formats.litert(), formats.saved_model()
        assert not [name for name in sys.modules if name.partition(".")[0] == "tensorflow"]
        import tensorflow as tf
        made = tf.Module()
        made.double = tf.function(lambda x: 2 * x, [tf.TensorSpec([None])])
        tf.saved_model.save(made, sys.argv[1])
        assert tf.saved_model.load(sys.argv[1]).double([1.0, 3.0])[1] == 6
        content = open(f"{sys.argv[1]}/saved_model.pb", "rb").read()
        assert len(formats.saved_model().SavedModel.FromString(content).meta_graphs) == 1
        """,
        tmp_path,
    )


def test_parts_of_keras_tuner():
    with tuner.maybe_distribute(None):
        pass

    class Heard:
        def on_epoch_end(self, trial, model, epoch, logs):
            self.heard = trial, model, epoch, logs

    callback = tuner.TunerCallback(heard := Heard(), "trial")
    callback.on_epoch_end(3, {"loss": 1.0})
    assert heard.heard == ("trial", None, 3, {"loss": 1.0})
