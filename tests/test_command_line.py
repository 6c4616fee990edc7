"""`keras-gates`: the same functions, from the command line."""

import configparser
import importlib.util
import json
import pathlib
import re
import runpy
import sys
import zipfile

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers import GOLDEN, run_python

import keras_gates as kg
import keras_gates_command
from keras_gates import commands, deployment, diagnostics, timing
from keras_gates.deployment import core
from keras_gates.deployment.spec import ModelSpec
from keras_gates_command import arguments, without_backend

TEXT = keras_gates_command.__doc__
EXAMPLES = [line.split() for line in TEXT.splitlines() if line.startswith("    keras-gates")]
COMMANDS = ("check", "export", "inspect", "diagnose", "search", "bench")


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
    status = keras_gates_command.main([*map(str, command)])
    printed = capsys.readouterr()
    return status, printed.out, printed.err


@pytest.mark.slow
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
    command = ["diagnose", "model.keras", "data.npz", "--html", "page.html", "--samples", 4]
    status, out, _ = run(capsys, *command, "--batch-size", 2)
    assert "4 samples of up to 6 steps" in out
    assert "4 samples of up to 6 steps" in pathlib.Path("page.html").read_text("utf-8")


def test_diagnose_takes_the_weights_of_samples(saved, here, capsys):
    model, x, y = saved
    weights = np.linspace(0, 1, len(x), dtype="float32")
    np.savez("weighted.npz", frames=x, y=y, sample_weight=weights, x=x, other=y)
    status, out, err = run(capsys, "diagnose", "model.keras", "weighted.npz", "--json")
    assert status == 0
    assert "weighted.npz holds x, other too, which is left out" in err
    expected = diagnostics.diagnose(model, x, y, sample_weight=weights).layers[0].gradient
    found = json.loads(out)["layers"][0]["gradient"]["norm_per_step"]
    np.testing.assert_allclose(found, expected.norm_per_step, rtol=1e-4)


def test_diagnose_looks_at_all_data(saved, here, capsys):
    _, x, y = saved
    x[7, 3, 1] = np.nan
    np.savez("bad.npz", x=x, y=y)
    status, out, _ = run(capsys, "diagnose", "model.keras", "bad.npz", "--samples", 2)
    assert status == 0
    assert "ERROR x: 1 of 180 values is NaN or infinite: nan at time step 3 in sample 7" in out


@pytest.mark.filterwarnings("error::UserWarning")
def test_diagnose_of_a_model_that_was_never_trained_warns_of_nothing(here, rng, capsys):
    model = small_model()
    model.save("model.keras")  # with an optimizer that has no weights yet
    np.savez("data.npz", frames=rng.normal(size=(3, 4, 3)), y=rng.normal(size=(3, 2)))
    status, out, err = run(capsys, "diagnose", "model.keras", "data.npz", "--quiet")
    assert (status, err) == (0, "")
    assert "dL/dh" in out


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
    assert "y is left out: the model was saved without a loss" in err
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
    assert "`data` must hold the array x or left, right. Received: data='one.npz', which" in err


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


def test_a_flag_in_an_error_has_no_value():
    given = arguments.parse(TEXT, ["export", "model.keras", "out", "--streaming"])
    told = "of streaming=True, `length` or length=3. Export without streaming=True."
    assert arguments.in_terms_of_options(given, told) == (
        "of --streaming, `--length` or --length=3. Export without --streaming."
    )


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("export nope.keras out", "`model` must be a file that is there. Received: model='nope"),
        ("export model.keras nowhere/out", "the folder that `path` is in must exist"),
        ("export model.keras out --quantize int8", "takes no option `--quantize`"),
        ("export model.keras out --sample nope.npz", "`--sample` must be a file that is there"),
        ("export model.keras out --sample text.npz", "`--sample` must be a .npz file of arrays"),
        ("export model.keras out --opset 15", "takes no option `--opset`"),
        ("export model.keras m.tflite --representative-data x.npy", "`--representative-data` mus"),
        ("inspect nope", "`path` must be a file or folder that is there. Received: path='nope'"),
        ("inspect other.npz", "a file that ends in .onnx, .tflite, .xml or .keras. Received: p"),
        ("inspect text.keras --import no_such", "`--import` must be a module that can be"),
        ("inspect text.keras", "`path` is not a .keras file, or damaged"),
        ("diagnose model.keras short.npz --samples 3", "`y` must have as many samples as `x`, 20"),
        ("diagnose model.keras other.npz", "`data` must hold the array x or frames. Received"),
        ("diagnose model.keras data.npz --import no_such", "`--import` must be a module that"),
        ("diagnose text.keras data.npz", "`model` is not a .keras file, or damaged: it is not a z"),
        ("export cut.keras out", "`model` is not a .keras file, or damaged: Bad CRC-32 for file"),
        ("diagnose model.keras data.npz --html no/d.html", "the folder that `--html` is in must"),
        ("check gur", "`cell` must be one of 'gru', 'lstm'"),
        ("check grruu", "or module:Class for one of your own, such as my_module:MyCell. Received"),
        ("check MyCell", "'ugrnn', or module:Class for one of your own, such as my_module:MyC"),
        ("check keras_gates:GRUCel", "no attribute 'GRUCel'; did you mean 'GRUCell'"),
        (
            "check ./cells:MyCell",
            "Received: cell=./cells, which is a path: write it as in `im",
        ),
        ("check cells.py:MyCell", "Received: cell=cells.py, which is a path: write it as in `im"),
        ("check gru --gate rleu", "Unknown name: --gate='rleu'; did you mean 'relu'"),
        ("check gru --gate relu --gate tanh", "`--gate` must be one activation, or GATE="),
        ("check gru --gate output=relu", "`--gate`"),
        ("check gru --candidate 3", "`--candidate` must be"),
        ("check gru --with grad_clip_norm=-1", "`grad_clip_norm` must be a positive"),
        ("check gru --with bate=1", "takes no argument `bate`"),
        (
            "check gru --with nonsense=1",
            "activations of gru takes no argument `nonsense`. It",
        ),
        (
            "check gru --gate sigmod",
            "or GATE=ACTIVATION for each. Unknown name: --gate='sig",
        ),
        ("check gru --gate update=rleu", "`--gate update` must be the name of an activation. Unk"),
        (
            "check gru --gate updte=relu",
            "['update', 'reset']. Received: --gate updte=relu\n",
        ),
        ("check gru --output relu", "argument `--output`; it belongs to lstm, cifg, la"),
        ("check gru --candidate blub", "Unknown name: --candidate='blub'. There are celu, elu, "),
        ("bench gru --with backprop=fused", "bench takes no argument `backprop`: it measures the"),
        ("bench gru --with units=3", "takes no argument `--units`: bench is given it by itself"),
        ("check no_such:Cell", "`cell` must be a module that can be imported"),
        ("check keras_gates:Cell", "`cell` must be module:Class. Received: cell='keras_gates:Cel"),
        ("check keras:Model", "`cell` must be one of"),
        ("search nope.py", "`script` must be a file that is there"),
    ],
)
def test_mistakes_are_told_without_a_traceback(command, message, saved, here, capsys):
    (here / "text.npz").write_text("no arrays")
    (here / "text.keras").write_text("no model")
    whole = bytearray((here / "model.keras").read_bytes())
    whole[len(whole) // 2] ^= 1
    (here / "cut.keras").write_bytes(whole)
    np.savez("other.npz", z=np.ones(3))
    np.savez("short.npz", x=np.zeros((20, 5, 3), "float32"), y=np.zeros(2))
    before = sorted(here.iterdir())
    status, out, err = run(capsys, *command.split(), "--quiet")
    assert (status, out) == (1, "")
    assert err.startswith("error: ")
    assert message in err
    assert sorted(here.iterdir()) == before


def test_files_are_looked_at_before_keras_is_imported(saved, here):
    (here / "gates.csv").write_text("a,b\n1,2\n")
    (here / "empty.keras").touch()
    (here / "other.onnx").touch()
    (here / "m.weights.h5").touch()
    (here / "wrong.py").write_text("for x in\n")
    (here / "folder").mkdir()
    np.savez("empty.npz")
    np.savez("other.npz", y=np.ones(3), z=np.ones(3))
    objects = np.array([np.ones(2), np.ones(3)], dtype=object)
    np.savez("objects.npz", y=np.ones(2), frames=objects)
    data = "must be a .npz file of arrays, or a .npy file with x alone. Received: "
    pad = "in which {} is an array of Python objects. Sequences of several lengths get one length"
    told = {
        "diagnose model.keras gates.csv": f"`data` {data}data='gates.csv'. numpy.savez(",
        "export model.keras m.onnx --sample gates.csv": f"`--sample` {data}--sample='gates.csv'.",
        "diagnose model.keras no.npz": "`data` must be a file that is there. Received: data='no",
        "diagnose model.keras folder": "`data` must be a file that is there. Received: data='folde",
        "diagnose model.keras empty.npz": "array x or frames. Received: data='empty.npz', which "
        "holds no arrays",
        "diagnose model.keras model.keras": "data='model.keras', which holds no arrays",
        "diagnose model.keras other.npz": "array x or frames. Received: data='other.npz', which "
        "holds y, z",
        "diagnose model.keras objects.npz": pad.format("frames"),
        "diagnose data.npz model.keras": "`model` must be a .keras file, or a model that Keras 2 s",
        "export other.onnx m.onnx": "`model` must be a .keras file, or a model that Keras 2 saved",
        "export folder m.onnx": "`model` must be a file that is there. Received: model='folder'",
        "export empty.keras m.onnx": "`model` is not a .keras file, or damaged: it is not a zip",
        "export m.weights.h5 m.onnx": "`model` must be a whole model, as model.save('model.keras')",
        "search model.keras": "`script` must be a Python script. Received: script='model.keras'; ",
        "search wrong.py": "Received: script='wrong.py'; invalid syntax (wrong.py, line 1)",
        "inspect m.keras --import no_such": "`--import` must be a module that can be imported. "
        f"Received: --import=no_such; no module of this name is in {here} or installed",
        "check no_such.py:Cell": "cell=no_such.py, which is a path: write it as in `import`",
        "bench no_such:Cell": "`cell` must be a module that can be imported. Received: cell=no_suc",
    }
    out = run_python(
        """
        import contextlib, sys
        import keras_gates_command
        for command in sys.argv[1:]:
            with contextlib.redirect_stderr(sys.stdout):
                assert keras_gates_command.main(command.split()) == 1, command
        assert not {"keras", "numpy"} & set(sys.modules)
        """,
        *told,
    )
    for message, line in zip(told.values(), out.splitlines(), strict=True):
        assert line.startswith("error: "), line
        assert message in line


def test_what_a_file_of_a_model_does_not_say_is_seen_in_the_model(here, capsys):
    with zipfile.ZipFile(max(GOLDEN.glob("keras_2*.zip"))) as packed:
        packed.extract("sequential.h5", here)
    np.savez("data.npz", z=np.ones(3))
    status, _, err = run(capsys, "diagnose", "sequential.h5", "data.npz", "--quiet")
    assert status == 1
    assert "`data` must hold the array x. Received: data='data.npz', which holds z" in err


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("chekc gru", "argument COMMAND: invalid choice: 'chekc'"),
        ("", "the following arguments are required: COMMAND"),
        ("check", "the following arguments are required: cell"),
        (
            "check gru --gates relu --wiht=1",
            "--gates relu --wiht=1; did you mean --gate and --with?",
        ),
        (
            "check gru --gate-activation relu --candidate-activation tanh --helpp",
            "--helpp; did you mean --gate and --candidate?",
        ),
        ("diagnose m d --nonsense", "diagnose: error: unrecognized arguments: --nonsense\n"),
        ("check gru --with grad_clip_norm", "argument --with: must be ARGUMENT=VALUE. Received"),
        ("export m out --format onxn", "argument --format: invalid choice: 'onxn'"),
        ("export m out --quantize int4", "argument --quantize: invalid choice: 'int4'"),
        ("search --quiet s.py", "unrecognized arguments: --quiet"),
        ("export m out --tolerance -1", "argument --tolerance: must be a positive number. Rec"),
        ("export m out --tolerance nan", "argument --tolerance: must be a positive number. Rec"),
        ("export m out --batch-size 1.5", "argument --batch-size: must be a positive integer."),
        ("diagnose m d --samples 0", "argument --samples: must be a positive integer. Received: 0"),
        ("search --workers 0 s.py", "argument --workers: must be a positive integer. Received: 0"),
        ("bench gru --unit 3", "unrecognized arguments: --unit 3; did you mean --units?\n"),
        ("bench gru --units many", "argument --units: must be a positive integer. Received: many"),
    ],
)
def test_malformed_arguments_are_refused_by_name(command, message, capsys):
    with pytest.raises(SystemExit) as left:
        keras_gates_command.main(command.split())
    assert left.value.code == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("command", EXAMPLES, ids=" ".join)
def test_the_examples_are_valid_commands(command):
    assert command[0] == "keras-gates"
    assert arguments.parse(TEXT, command[1:]).command == command[1]


def test_the_commands_in_the_documentation_are_valid():
    root = pathlib.Path(__file__).parent.parent
    pages = [root / "README.md", *(root / "docs").rglob("*.md")]
    text = "\n".join(page.read_text() for page in pages if "_build" not in page.parts)
    found = re.findall(r"(?:^|`)keras-gates ([a-z][^`#\n]* [^`#\n]*)", text, re.MULTILINE)
    assert len(found) > 8
    for command in found:
        arguments.parse(TEXT, command.split())


def test_every_command_has_an_example():
    assert {command[1] for command in EXAMPLES} == set(COMMANDS)


def test_help_is_told_without_importing_keras():
    """Which is why it takes a tenth of a second."""
    out = run_python(
        """
        import sys
        import keras_gates_command
        for command in ["", *sys.argv[1:]]:
            try:
                keras_gates_command.main([*command.split(), "--help"])
            except SystemExit as left:
                assert left.code == 0, command
        for package in ("keras", "keras_gates", "numpy", "tensorflow"):
            assert package not in sys.modules, package
        """,
        *COMMANDS,
    )
    assert out.count("usage: keras-gates") == 1 + len(COMMANDS)
    for command in EXAMPLES:
        assert out.count(" ".join(command)) == 2


def test_the_version_is_told(capsys):
    with pytest.raises(SystemExit) as left:
        keras_gates_command.main(["--version"])
    assert left.value.code == 0
    assert capsys.readouterr().out == f"keras_gates {kg.__version__}\n"


def test_it_is_installed_as_a_command():
    config = configparser.ConfigParser()
    config.read(pathlib.Path(__file__).parent.parent / "setup.cfg")
    (script,) = config["options.entry_points"]["console_scripts"].split("\n")[1:]
    assert script == "keras-gates = keras_gates_command:main"


def test_it_is_a_module_too(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["keras_gates", "--help"])
    with pytest.raises(SystemExit) as left:
        runpy.run_module("keras_gates", run_name="__main__", alter_sys=True)
    assert left.value.code == 0
    assert "keras-gates diagnose model.keras data.npz" in capsys.readouterr().out


# ---------------------------------------------------------------------- verdicts


ASKED = {
    "check gru --gate relu --candidate tanh": ("gru", "relu", "tanh"),
    "check gru --gate update=tanh --candidate relu --with grad_clip_norm=1": (
        *("gru", {"update": "tanh"}, "relu", None),
        {"grad_clip_norm": 1},
    ),
    "check simple --candidate relu --with recurrent_initializer=identity": (
        *("simple", None, "relu", None),
        {"recurrent_initializer": "identity"},
    ),
    "check gru --with initialization=keras_gates.initializers.Chrono(150)": (
        *("gru", None, None, None),
        {"initialization": kg.initializers.Chrono(150)},
    ),
}


def expected_verdict(cell, gate, candidate, output=None, options=None):
    return kg.check_activations(cell, gate, candidate, output, **(options or {}))


def test_arguments_of_a_cell_are_read_as_they_are_in_python():
    command = "check lstm --gate forget=relu --gate input=tanh --output tanh --with layer_norm=True"
    given = arguments.parse(TEXT, [*command.split(), "--with", "recurrent_initializer=identity"])
    assert commands._chosen(given) == {
        "gate_activation": {"forget": "relu", "input": "tanh"},
        "output_activation": "tanh",
        "layer_norm": True,
        "recurrent_initializer": "identity",
    }


def test_check_prints_what_check_activations_returns(capsys):
    command, asked = next(iter(ASKED.items()))
    status, out, err = run(capsys, *command.split())
    assert (status, err) == (0, "")
    assert out == f"{expected_verdict(*asked)}\n"
    status, out, _ = run(capsys, *command.split(), "--json")
    found = json.loads(out)
    assert found["level"] == "unstable"
    assert found["carry"] == {"hidden": [0, None]}
    _, out, err = run(capsys, "check", "gru", "--gate", "softmax")
    assert (out[:23], err) == ("GRUCell: gates softmax;", "")  # Keras warns of its one unit
    _, out, _ = run(capsys, "check", "gru", "--steps", 7, "--units", 5)
    assert out == f"{kg.check_activations('gru', steps=7, units=5)}\n"


def test_check_does_without_tensorflow():
    """The same words and figures, but for those of weights that NumPy has drawn."""
    out = run_python(
        """
        import os, sys
        import keras_gates_command
        os.environ["TF_FORCE_GPU_ALLOW_GROWTH"] = "false"
        os.environ.pop("KERAS_BACKEND", None)
        environment = dict(os.environ)  # which processes of a search would have
        for command in sys.argv[1:]:
            assert keras_gates_command.main(command.split()) == 0
        assert "tensorflow" not in sys.modules
        assert dict(os.environ) == environment
        import keras
        assert keras.backend.backend() == "numpy"
        assert not getattr(sys.modules.get("jax"), "anything", None)
        assert not {"matplotlib", "sklearn"} & set(sys.modules)  # can be imported again
        """,
        *ASKED,
    )
    expected = "\n".join(str(expected_verdict(*asked)) for asked in ASKED.values())
    radii = [
        [float(line.rpartition(": ")[2]) for line in text.splitlines() if "spectral" in line]
        for text in (out, expected)
    ]
    np.testing.assert_allclose(*radii, rtol=0.25)
    estimates = [re.findall(r"clipped\): (?:below|about) (\d+)%", text) for text in (out, expected)]
    np.testing.assert_allclose(*np.array(estimates, float), atol=3)
    drawn = {"spectral", "left", "rest", "probability"}
    lines = [
        [line for line in text.splitlines() if not drawn & set(line.split())]
        for text in (out, expected)
    ]
    assert lines[0] == lines[1]


@pytest.mark.slow
def test_keras_is_imported_as_usual_where_it_cannot_be_without_a_backend():
    out = run_python(
        """
        import sys
        from keras_gates_command import without_backend
        without_backend._EMPTY = ()
        sys.modules["jax"] = None  # which then is missing
        without_backend.import_keras()
        assert "keras" not in sys.modules
        import keras
        print(keras.backend.backend(), keras.ops.add(1, 1))
        """
    )
    assert out.split()[0] == "tensorflow"


def test_a_cell_of_ones_own_is_judged_by_its_place(here, capsys, monkeypatch):
    (here / "leaky.py").write_text(
        "import keras_gates as kg\n"
        "class LeakyCell(kg.GatedCell):\n"
        "    blocks = ('candidate',)\n"
        "    def update(self, x, u, states):\n"
        "        (h,) = states\n"
        "        return (1.5 * h + 0.1 * self.candidate(x.candidate + u.candidate),)\n"
    )
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path])
    status, out, err = run(capsys, "check", "leaky:LeakyCell", "--candidate", "softsign")
    assert status == 0, err
    assert "LeakyCell: candidate softsign: unstable" in out
    assert "reaches 1.5" in out
    sys.modules.pop("leaky")


def test_an_activation_of_ones_own_is_judged_once_it_is_registered(here, capsys, monkeypatch):
    (here / "steep.py").write_text(
        "import keras\n"
        "@keras.saving.register_keras_serializable(package='steep')\n"
        "def steep_gate(x):\n"
        "    return keras.ops.sigmoid(4 * x)\n"
    )
    command = ["check", "gru", "--gate", "steep>steep_gate"]
    assert run(capsys, *command)[0] == 1
    status, out, err = run(capsys, *command, "--import", "steep")
    assert status == 0, err
    assert "GRUCell: gates steep_gate; candidate tanh: sound" in out
    keras.saving.get_custom_objects().pop("steep>steep_gate")
    sys.modules.pop("steep")


# ---------------------------------------------------------------------- the others


@pytest.mark.slow
def test_what_is_being_done_is_said_on_stderr(saved, capsys, quick):
    status, out, err = run(capsys, "export", "model.keras", "served")
    assert status == 0
    assert "saved_model" in out
    said = [line.partition(" s  ")[2] for line in err.splitlines()]
    assert said[0] == "loading model.keras"
    assert said[1].startswith("writing ")
    assert said[2].startswith("running the file in a process of its own")
    assert said[3].startswith("running the model")
    assert run(capsys, "inspect", "served")[2].endswith(" s  reading served\n")
    assert run(capsys, "inspect", "served", "--quiet")[2] == ""


def test_models_of_keras_2_are_loaded(here, capsys):
    with zipfile.ZipFile(max(GOLDEN.glob("keras_2*.zip"))) as packed:
        packed.extractall(here)
    frames = np.load("expected.npz")["frames"]
    np.save("x.npy", frames)
    for path in ("sequential.h5", "functional.keras"):
        status, out, err = run(capsys, "diagnose", path, "x.npy")
        assert status == 0, err
        assert f"{len(frames)} samples" in out


def test_inspect_shows_layers_and_cells_of_a_keras_file(here, rng, capsys):
    rnn = kg.GatedRNN(
        4, gate_activation="hard_sigmoid", grad_clip_norm=1.0, return_sequences=True, name="first"
    )
    inner = keras.Sequential([keras.Input((None, 5)), keras.layers.Dense(2)], name="inner")
    model = keras.Sequential(
        [
            keras.Input((None, 3), name="frames"),
            keras.layers.Bidirectional(rnn, name="both"),
            keras.layers.GRU(
                5,
                kernel_regularizer=keras.regularizers.L2(0.01),
                name="second",
                return_sequences=True,
            ),
            inner,
        ],
        name="model",
    )
    model.compile("adam", "mse")
    model.fit(rng.normal(size=(2, 6, 3)), rng.normal(size=(2, 6, 2)), verbose=0)
    model.save("model.keras")
    status, out, _ = run(capsys, "inspect", "model.keras", "--json")
    assert status == 0
    found = json.loads(out)
    assert found["parameters"] == model.count_params()
    assert found["keras_version"] == keras.__version__
    assert (found["optimizer"], found["loss"]) == ("adam", "mse")
    layers = {layer["name"]: layer for layer in found["model"]["layers"]}
    assert list(layers) == ["frames", "both", "second", "inner"]
    for layer in model.layers:
        assert layers[layer.name]["parameters"] == layer.count_params()
        assert layers[layer.name]["class_name"] == type(layer).__name__
    (forward, backward) = layers["both"]["layers"]
    assert forward["name"] == "forward_first"
    assert backward["arguments"]["go_backwards"] is True
    (cell,) = forward["layers"]
    assert cell["class_name"] == "GRUCell"
    assert cell["arguments"] == {
        "units": 4,
        "gate_activation": "hard_sigmoid",
        "candidate_activation": "tanh",
        "grad_clip_norm": 1.0,
    }
    assert layers["inner"]["layers"][-1]["arguments"] == {"units": 2, "activation": "linear"}
    status, out, _ = run(capsys, "inspect", "model.keras")
    assert "GRUCell(units=4, gate_activation='hard_sigmoid', candidate_activation='tanh'" in out
    assert "kernel_regularizer='l2(l2=0.01)'" in out
    assert "compiled: optimizer adam, loss mse" in out


def test_inspect_of_a_keras_file_needs_neither_its_classes_nor_a_backend(here):
    @keras.saving.register_keras_serializable(package="elsewhere")
    class Own(kg.GatedCell):
        def update(self, x, u, states):
            return (self.candidate(x.candidate + u.candidate),)

    layer = kg.GatedRNN(4, cell=Own, candidate_activation="relu")
    keras.Sequential([keras.Input((None, 3)), layer]).save("own.keras")
    out = run_python(
        """
        import sys
        import keras_gates_command
        assert keras_gates_command.main(["inspect", "own.keras"]) == 0
        assert "tensorflow" not in sys.modules
        """
    )
    assert "Own(units=4" in out
    assert "candidate_activation='relu'" in out
    assert "32 parameters" in out


def test_inspect_leaves_out_the_defaults_of_classes_that_are_imported(here, capsys, monkeypatch):
    (here / "my_cells.py").write_text(
        """
import keras, keras_gates
@keras.saving.register_keras_serializable("my_cells")
class Scaled(keras_gates.GatedCell):
    def __init__(self, units, scale=2.0, **arguments):
        super().__init__(units, **arguments)
        self.scale = scale
    def update(self, x, u, states):
        return (self.candidate(x.candidate + self.scale * u.candidate),)
    def get_config(self):
        return {**super().get_config(), "scale": self.scale}
"""
    )
    monkeypatch.syspath_prepend(str(here))
    import my_cells

    layer = kg.GatedRNN(4, cell=my_cells.Scaled)
    keras.Sequential([keras.Input((None, 3)), layer]).save("own.keras")
    keras.saving.get_custom_objects().pop("my_cells>Scaled")
    monkeypatch.delitem(sys.modules, "my_cells")
    _, out, _ = run(capsys, "inspect", "own.keras")
    assert "scale=2.0" in out
    status, out, _ = run(capsys, "inspect", "own.keras", "--import", "my_cells")
    assert status == 0
    assert "Scaled(units=4, " in out
    assert "scale=" not in out
    given = arguments.parse(TEXT, ["inspect", "own.keras", "--import", "my_cells"])
    assert given.needs_backend(given)


def test_inspect_of_what_was_exported_does_without_tensorflow(here):
    """And tells the same of it."""
    inputs = [keras.Input((None, 3), name="frames"), keras.Input((2,), name="of", dtype="int32")]
    one = keras.ops.cast(keras.layers.Dense(2)(inputs[0]), "float16")
    spec = ModelSpec(keras.Model(inputs, [one, keras.ops.sum(inputs[1], -1)]))
    files = {"served": "saved_model"}
    for name, needed, format in (
        ("m.onnx", "tf2onnx", "onnx"),
        ("m.tflite", "ai_edge_litert", "litert"),
        ("m.xml", "openvino", "openvino"),
    ):
        if importlib.util.find_spec(needed):
            files[name] = format
    for name, format in files.items():
        core._format(format).write(spec, here / name)
    out = run_python(
        """
        import os, sys
        os.environ.pop("KERAS_BACKEND", None)
        import keras_gates_command
        for path in sys.argv[1:]:
            assert keras_gates_command.main(["inspect", path, "--json"]) == 0
        assert not [name for name in sys.modules if name.partition(".")[0] == "tensorflow"]
        """,
        *files,
    )
    for name in files:
        found, end = json.JSONDecoder().raw_decode(out)
        out = out[end:].lstrip()
        assert found == json.loads(json.dumps(deployment.inspect(name).to_dict()))


def test_bench_measures_what_it_names(capsys):
    command = "bench lstm --candidate relu --units 3 --batch 2 --steps 4 --features 2 --rounds 1"
    status, out, err = run(capsys, *command.split(), "--json")
    assert status == 0, err
    assert "measuring train" in err
    found = json.loads(out)
    sides = ["keras_gates", "keras.layers.LSTM", "Keras' own loop"]
    assert [*found["train"]] == [*found["predict"]] == sides
    assert all(0 < seconds < 1 for of in ("train", "predict") for seconds in found[of].values())
    assert found["layer"] == "lstm(candidate_activation='relu')"
    status, out, _ = run(
        capsys, "bench", "mgu", "--units", 2, "--steps", 2, "--batch", 2, "--rounds", 1
    )
    assert "2 units, batch 2, 2 steps, 32 features" in out
    assert "keras.layers" not in out


def test_bench_runs_layers_with_further_outputs_and_with_states(monkeypatch):
    models = []

    def made(layer, *given):
        models.append(model(layer, *given))
        return models[-1]

    model = timing._model
    monkeypatch.setattr(timing, "_model", made)
    sizes = {"batch": 2, "steps": 4, "features": 2, "rounds": 1}
    found = timing.compare("lstm", 3, return_gates=True, return_state=True, **sizes)
    assert found.path.endswith("return_gates=True was given")
    # h, c, and the gates i, f, o and the candidate beside the Dense layer's, in the loss too.
    assert [len(one.outputs) for one in models] == [7, 7]
    assert models[0].loss == ["mse"] * 7
    found = timing.compare("gru", 3, stateful=True, return_sequences=True, **sizes)
    assert min(*found.train.values(), *found.predict.values()) > 0
    assert models[-1].output_shape == (2, 4, 1)


def test_the_columns_of_bench_stand_below_each_other():
    sides = {"keras_gates": 1.5, "keras.layers.SimpleRNN": 9.471, "Keras' own loop": 20.0}
    lines = str(
        timing.Timing("simple", 2, 3, 4, 5, "tensorflow", "a path", sides, sides)
    ).splitlines()
    assert lines[1:-1] == [
        "                          training step           prediction",
        "  keras_gates             1.5e+03 ms              1.5e+03 ms",
        "  keras.layers.SimpleRNN  9.47e+03 ms  x 6.31     9.47e+03 ms  x 6.31",
        "  Keras' own loop         2e+04 ms  x 13.33       2e+04 ms  x 13.33",
    ]


def test_search_launches_the_script(here, capsys, monkeypatch):
    from keras_gates.tuning import launch

    (here / "search.py").write_text("")
    launched = []
    monkeypatch.setattr(launch, "launch", lambda *given: launched.append(given))
    command = "search --workers 4 search.py --epochs 2 --quiet"
    status, _, _ = run(capsys, *command.split())
    assert status == 0
    assert launched == [("search.py", ["--epochs", "2", "--quiet"], 4)]


def test_search_runs_workers_and_shows_what_they_print(here):
    """Of a script that runs no search, which is an error in the end."""
    (here / "search.py").write_text("import os, sys; print(sys.argv[1], sorted(os.environ))")
    out = run_python(
        """
        import os, sys
        os.environ.pop("KERAS_BACKEND", None)
        import keras_gates_command
        assert keras_gates_command.main(["search", "--workers", "2", "search.py", "hello"]) == 1
        assert "tensorflow" not in sys.modules
        """
    )
    assert "worker-0  | hello" in out
    assert "worker-1  | hello" in out
    assert "KERAS_GATES_WORKERS" in out
    assert "KERAS_BACKEND" not in out


def test_an_interrupt_ends_it(capsys, monkeypatch):
    def interrupted(given):
        raise KeyboardInterrupt

    monkeypatch.setattr(commands, "check", interrupted)
    assert run(capsys, "check", "gru") == (130, "", "interrupted\n")


def test_who_reads_no_further_gets_no_traceback():
    run_python(
        """
        import os, sys
        import keras_gates_command
        read, write = os.pipe()
        os.close(read)
        os.dup2(write, 1)
        assert keras_gates_command.main(["check", "gru"]) == 0
        """
    )


def test_warnings_and_logging_are_as_before(capsys):
    import logging
    import warnings

    log = logging.getLogger("keras_gates")
    before = log.level, log.propagate, list(log.handlers), warnings.formatwarning
    run(capsys, "check", "gru")
    assert before == (log.level, log.propagate, list(log.handlers), warnings.formatwarning)


def test_keras_that_is_there_already_is_left_alone():
    without_backend.import_keras()
    assert keras.backend.backend() == "tensorflow"
