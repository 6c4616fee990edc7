"""`python -m keras_gates`: the same functions, from the command line."""

import json
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers import run_python

import keras_gates as kg
from keras_gates import __main__ as command_line
from keras_gates import diagnostics

EXAMPLES = [line.split()[2:] for line in command_line.__doc__.splitlines() if "python -m" in line]


def small_model(**options):
    model = keras.Sequential(
        [
            keras.Input((None, 3), name="frames"),
            keras.layers.Masking(),
            kg.GatedRNN(4, candidate_activation="relu"),
            keras.layers.Dense(2, **options),
        ]
    )
    model.compile("adam", "mse")
    return model


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A folder to work in; commands are run in this process."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def saved(here, rng):
    """A saved model and data for it."""
    model = small_model()
    model.save("model.keras")
    x, y = rng.normal(size=(10, 6, 3)).astype("float32"), rng.normal(size=(10, 2))
    np.savez("data.npz", x=x, y=y)
    return model, x, y


def run(capsys, *command):
    status = command_line.main([*map(str, command)])
    printed = capsys.readouterr()
    return status, printed.out, printed.err


def test_export_writes_a_file_and_inspect_shows_it(saved, capsys):
    model, x, _ = saved
    status, out, _ = run(
        capsys, "export", "model.keras", "served", "--sample", "data.npz", "--streaming", "--json"
    )
    exported = json.loads(out)
    assert status == 0
    assert {sample["length"] for sample in exported["samples"]} > {6, 230}
    served = tf.saved_model.load("served").signatures["serving_default"]
    np.testing.assert_allclose(served(frames=tf.constant(x))["outputs"], model(x), atol=1e-5)

    status, out, _ = run(capsys, "inspect", "served", "--json")
    assert status == 0
    assert json.loads(out)["signatures"] == exported["signatures"]
    assert "step" in exported["signatures"]
    status, out, _ = run(capsys, "inspect", "served")
    assert "serving_default(frames: float32 (any, any, 3))" in out


def test_diagnose_prints_what_diagnose_returns(saved, capsys):
    model, x, y = saved
    status, out, _ = run(capsys, "diagnose", "model.keras", "data.npz", "--json")
    assert status == 0
    expected = diagnostics.diagnose(model, x, y).to_dict()
    found = json.loads(out)
    assert found["layers"][0]["gradient"] is not None
    assert found["layers"][0]["gates"].keys() == expected["layers"][0]["gates"].keys()
    np.testing.assert_allclose(
        found["layers"][0]["gradient"]["norm_per_step"],
        expected["layers"][0]["gradient"]["norm_per_step"],
        rtol=1e-4,
    )
    status, out, _ = run(
        capsys, "diagnose", "model.keras", "data.npz", "--samples", 4, "--batch-size", 2
    )
    assert "4 samples of up to 6 steps" in out


def test_diagnose_without_targets_or_loss(saved, capsys):
    model, x, _ = saved
    np.save("x.npy", x)
    status, out, _ = run(capsys, "diagnose", "model.keras", "x.npy")
    assert status == 0
    assert "dL/dh" not in out
    model = keras.Sequential([model.inputs[0], *model.layers])  # without a loss
    model.save("bare.keras")
    status, out, err = run(capsys, "diagnose", "bare.keras", "data.npz")
    assert status == 0
    assert "saved without a loss" in err
    assert "dL/dh" not in out


def test_inputs_are_found_by_their_names(here, rng, capsys):
    left, right = keras.Input((None, 3), name="left"), keras.Input((None, 2), name="right")
    both = [kg.GatedRNN(2)(left), kg.GatedRNN(3)(right)]
    keras.Model([left, right], keras.layers.Concatenate()(both)).save("two.keras")
    np.savez("two.npz", right=rng.normal(size=(5, 4, 2)), left=rng.normal(size=(5, 6, 3)))
    status, out, err = run(capsys, "diagnose", "two.keras", "two.npz")
    assert status == 0, err
    assert "2 units; 5 samples of up to 6 steps" in out
    assert "3 units; 5 samples of up to 4 steps" in out
    np.savez("one.npz", left=rng.normal(size=(5, 6, 3)))
    status, _, err = run(capsys, "diagnose", "two.keras", "one.npz")
    assert status == 1
    assert "must hold the array x, or left, right. Received: left" in err


def test_a_module_is_imported_first(here, monkeypatch, capsys):
    (here / "my_functions.py").write_text(
        "import keras\n"
        "@keras.saving.register_keras_serializable(package='my_functions')\n"
        "def half(x):\n"
        "    return x / 2\n"
    )
    monkeypatch.syspath_prepend(str(here))
    import my_functions

    model = keras.Sequential(
        [keras.Input((None, 3)), kg.GatedRNN(4, candidate_activation=my_functions.half)]
    )
    model.save("model.keras")
    np.save("x.npy", np.ones((3, 4, 3)))
    keras.saving.get_custom_objects().pop("my_functions>half")
    monkeypatch.delitem(sys.modules, "my_functions")
    status, _, err = run(capsys, "diagnose", "model.keras", "x.npy")
    assert status == 1
    assert "--import my_module" in err
    assert "Could not locate function 'my_functions>half'" in err
    assert "config" not in err
    status, _, err = run(capsys, "diagnose", "model.keras", "x.npy", "--import", "my_functions")
    assert status == 0, err


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("export nope.keras out", "nope.keras"),
        ("export model.keras nowhere/out", "the folder that `path` is in must exist"),
        ("export model.keras out --quantize int8", "takes no option `quantize`"),
        ("export model.keras out --sample nope.npz", "--sample: there is no file 'nope.npz'"),
        ("export model.keras out --sample text.npz", "--sample: 'text.npz' must be a .npz file"),
        ("export model.keras out --tolerance -1", "`tolerance` must be"),
        ("inspect nope", "there is no file or folder `path`"),
        ("diagnose model.keras other.npz", "must hold the array x, or frames. Received: z"),
        ("diagnose model.keras data.npz --samples 0", "`--samples` must be"),
        ("diagnose model.keras data.npz --import no_such_module", "no_such_module"),
    ],
)
def test_mistakes_are_told_without_a_traceback(command, message, saved, here, capsys):
    (here / "text.npz").write_text("no arrays")
    np.savez("other.npz", z=np.ones(3))
    before = sorted(here.iterdir())
    status, out, err = run(capsys, *command.split())
    assert (status, out) == (1, "")
    assert err.startswith("error: ")
    assert message in err
    assert sorted(here.iterdir()) == before


@pytest.mark.parametrize("command", EXAMPLES, ids=" ".join)
def test_the_examples_are_valid_commands(command):
    assert command[0] == "keras_gates"
    assert command_line.parse_arguments(command[1:]).command == command[1]


def test_it_is_a_command(here):
    out = run_python(
        """
        import runpy, sys
        sys.argv = ["keras_gates", "--help"]
        runpy.run_module("keras_gates", run_name="__main__", alter_sys=True)
        """
    )
    assert "python -m keras_gates diagnose model.keras data.npz" in out
