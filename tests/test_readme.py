"""The README's code runs as it stands, and its commands exist."""

import pathlib
import re

import keras
import numpy as np
import pytest

import keras_gates as kg
from keras_gates import checks, tuning
from keras_gates.cells.arguments import LAYER_ARGUMENTS

ROOT = pathlib.Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


@pytest.fixture(scope="module")
def namespace(tmp_path_factory):
    """What the README's code, run from top to bottom, leaves behind."""
    rng = np.random.default_rng(0)
    names = {
        "x_train": rng.normal(size=(20, 5, 12)).astype("float32"),
        "y_train": rng.integers(9, size=20),
    }
    folder = tmp_path_factory.mktemp("readme")
    make = tuning.RandomSearch.__init__

    def small(self, *arguments, **options):
        make(self, *arguments, **{**options, "max_trials": 2, "executions_per_trial": 1})

    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(tuning.RandomSearch, "__init__", small)
        for block in BLOCKS:
            exec(compile(block, "README.md", "exec"), names)
    names["folder"] = folder
    return names


def test_the_code_runs(namespace):
    assert len(BLOCKS) >= 4
    assert (namespace["folder"] / "model.keras").stat().st_size > 1000
    assert (namespace["folder"] / "served_model" / "saved_model.pb").exists()
    x = namespace["x_train"]
    np.testing.assert_allclose(
        namespace["clipped"].predict(x, verbose=0),
        namespace["trained"].predict(x, verbose=0),
        atol=1e-6,
    )


def test_the_own_cell_is_short():
    (text,) = [block for block in BLOCKS if "class MGUCell" in block]
    assert len(text.strip().splitlines()) < 25


@pytest.mark.parametrize("check", checks.CHECKS)
def test_the_own_cell_keeps_the_contracts(check, namespace):
    checks.CHECKS[check](namespace["MGUCell"], {})


def test_the_own_cell_is_the_minimal_gated_unit(namespace, rng):
    layer = kg.GatedRNN(4, cell=namespace["MGUCell"], return_sequences=True)
    x = rng.normal(size=(2, 6, 3)).astype("float32")
    given = np.array(layer(x))
    (w_f, w_n), (u_f, u_n), (b_f, b_n) = (
        np.split(np.array(w), 2, axis=-1) for w in layer.get_weights()
    )
    h = np.zeros((2, 4))
    for t in range(6):
        f = 1 / (1 + np.exp(-(x[:, t] @ w_f + b_f + h @ u_f)))
        h = (1 - f) * h + f * np.tanh(x[:, t] @ w_n + b_n + (f * h) @ u_n)
        np.testing.assert_allclose(given[:, t], h, atol=1e-5)


def test_the_table_names_every_argument():
    table = README.partition("## Arguments of GatedRNN")[2].partition("## Equations")[0]
    cells = (kg.GRUCell, kg.LSTMCell, kg.SimpleRNNCell)
    wanted = set().union(*(cell.options() for cell in cells), LAYER_ARGUMENTS) - {"autocast"}
    wanted |= {"cell", "return_sequences", "return_state", "go_backwards", "stateful", "unroll"}
    for name in wanted:
        shared = name.replace("kernel_", "").replace("recurrent_", "").replace("bias_", "")
        assert f"`{name}`" in table or f"`_{shared}`" in table, name


def test_commands_and_files_exist():
    makefile = (ROOT / "Makefile").read_text()
    commands = set(re.findall(r"(?:`|^|=\w+ )make ([a-z-]+)", README, re.MULTILINE))
    assert {"demo", "test", "bench"} <= commands
    for command in commands:
        assert f"\n{command}:" in makefile, command
    for path in re.findall(r"\]\(([\w/.]+)\)", README):
        assert (ROOT / path).exists(), path
    assert keras.__version__
