"""`.keras` files, read in a fresh process that has imported the package and nothing else."""

import pathlib

import keras
import numpy as np
import pytest
from helpers import run_python

import keras_gates as kg

GOLDEN = pathlib.Path(__file__).parent / "golden"

LOAD = """
    import pathlib, sys, keras, numpy as np, keras_gates
    folder = pathlib.Path(sys.argv[1])
    x = np.load(folder / "x.npy")
    for path in folder.glob("*.keras"):
        if path.stem == "registered activation":
            @keras.saving.register_keras_serializable(package="tests_saving")
            def bent(x):
                return keras.ops.tanh(0.7 * x)
        np.save(path.with_suffix(".npy"), keras.models.load_model(path).predict(x, verbose=0))
"""


@keras.saving.register_keras_serializable(package="tests_saving")
def bent(x):
    return keras.ops.tanh(0.7 * x)


def sequential(*layers):
    return keras.Sequential([keras.Input((None, 3), name="x"), *layers, keras.layers.Dense(2)])


ALL = {
    "use_bias": True,
    "kernel_regularizer": "l2",
    "recurrent_constraint": keras.constraints.MaxNorm(3.0),
    "recurrent_initializer": keras.initializers.Identity(),
    "dropout": 0.1,
    "recurrent_dropout": 0.1,
    "zoneout": 0.1,
    "seed": 4,
    "grad_clip_norm": 0.5,
    "grad_clip_at": "preactivation",
    "activation_l1": 1e-3,
    "candidate_l1": 1e-4,
    "return_sequences": True,
    "activity_regularizer": "l1",
}
MODELS = {
    "every argument": lambda: sequential(
        kg.GatedRNN(4, cell="simple", **ALL),
        kg.GatedRNN(4, cell="lstm", output_activation="softsign", unit_forget_bias=False),
    ),
    "per gate": lambda: sequential(
        kg.GatedRNN(4, gate_activation={"reset": "hard_sigmoid"}, candidate_activation="relu"),
    ),
    "bidirectional": lambda: sequential(
        keras.layers.Masking(),
        keras.layers.Bidirectional(kg.GatedRNN(4, reset_after=False, grad_clip_value=1.0)),
    ),
    "nested": lambda: sequential(
        keras.Sequential([keras.Input((None, 3)), kg.GatedRNN(4)], name="inner")
    ),
    "registered activation": lambda: sequential(
        kg.GatedRNN(4, gate_activation={"update": bent}, candidate_activation=bent)
    ),
    "layers as activations": lambda: sequential(
        kg.GatedRNN(
            4,
            cell="lstm",
            candidate_activation=keras.layers.PReLU(alpha_initializer="ones"),
            gate_activation=keras.layers.LeakyReLU(0.1),
        )
    ),
    "stack of cells": lambda: sequential(
        keras.layers.RNN([kg.GRUCell(4, grad_clip_norm=1.0), kg.SimpleRNNCell(3)])
    ),
}


@pytest.fixture(scope="module")
def loaded_elsewhere(tmp_path_factory):
    """name -> (outputs here, outputs of the file in a process that imported the package alone)."""
    folder = tmp_path_factory.mktemp("models")
    x = np.random.default_rng(7).normal(size=(4, 6, 3)).astype("float32")
    x[:, 4:] = 0
    np.save(folder / "x.npy", x)
    here = {}
    for name, make in MODELS.items():
        model = make()
        model.compile("adam", "mse")
        model.fit(x, np.zeros((4, 2)), verbose=0)
        model.save(folder / f"{name}.keras")
        here[name] = model.predict(x, verbose=0)
    run_python(LOAD, folder)
    return {name: (outputs, np.load(folder / f"{name}.npy")) for name, outputs in here.items()}


@pytest.mark.parametrize("name", MODELS)
def test_round_trip_in_a_fresh_process(name, loaded_elsewhere):
    here, there = loaded_elsewhere[name]
    np.testing.assert_allclose(there, here, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("name", MODELS)
def test_config_is_complete(name):
    """What is built from the config has the same config, every constructor argument in it."""
    model = MODELS[name]()
    copy = model.__class__.from_config(model.get_config())
    assert copy.get_config() == model.get_config()
    for layer in model._flatten_layers():
        if isinstance(layer, kg.GatedCell):
            assert type(layer).options() <= set(layer.get_config())


def test_a_model_loaded_goes_on_training(tmp_path, rng):
    model = MODELS["every argument"]()
    model.compile("adam", "mse")
    x, y = rng.normal(size=(4, 6, 3)), rng.normal(size=(4, 2))
    model.fit(x, y, verbose=0)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert loaded.layers[0].cell.grad_clip_norm == 0.5
    assert loaded.layers[0].cell.seed == 4
    assert np.isfinite(loaded.fit(x, y, verbose=0).history["loss"]).all()
    assert len(loaded.losses) == len(model.losses)


@pytest.mark.parametrize("path", sorted(GOLDEN.glob("*.keras")), ids=lambda path: path.stem)
def test_files_of_every_release_load(path):
    model = keras.models.load_model(path)
    expected = np.load(path.with_suffix(".npz"))
    np.testing.assert_allclose(model.predict(expected["x"], verbose=0), expected["y"], atol=1e-5)


def test_there_is_a_golden_file():
    assert list(GOLDEN.glob("*.keras"))
