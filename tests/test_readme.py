"""The code of the README and of the documentation runs as it stands; what it names exists."""

import functools
import importlib
import importlib.util
import os
import pathlib
import re

import keras
import numpy as np
import pytest
from helpers import leave_out_for_time

import keras_gates as kg
from keras_gates import checks, tuning
from keras_gates.cells.arguments import LAYER_ARGUMENTS

ROOT = pathlib.Path(__file__).parent.parent
DOCS = ROOT / "docs"
PAGES = {
    str(path.relative_to(ROOT)): path.read_text()
    for path in [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(DOCS.rglob("*.md"))]
    if "_build" not in path.parts
}


def blocks_of(page):
    return re.findall(r"^```python\n(.*?)^```", PAGES[page], re.DOTALL | re.MULTILINE)


# In other environments than that of the tests some of these packages are missing.
NEEDS = {
    "docs/deploy/index.md": "onnxruntime",
    "docs/deploy/onnx.md": "onnxruntime",
    "docs/deploy/openvino.md": "openvino",
    "docs/deploy/litert.md": "ai_edge_litert",
    "docs/forecasting.md": "onnxruntime",
    "docs/labelling.md": "onnxruntime",
}
WITH_CODE = [page for page in PAGES if blocks_of(page)]


def small_search(self, *arguments, make=tuning.RandomSearch.__init__, **options):
    make(self, *arguments, **{**options, "max_trials": 2, "executions_per_trial": 1})


def wrote_its_files(names):
    assert pathlib.Path("model.keras").stat().st_size > 1000
    assert pathlib.Path("served_model", "saved_model.pb").exists()


def found_where_it_began(names):
    assert names["found"].where == "loss"
    assert names["found"].training_step > 1
    assert names["monitor"].reason is None


def converted_what_computes_the_same(names):
    given, expected = (names[name](names["x_train"]) for name in ("clipped", "trained"))
    np.testing.assert_allclose(np.array(given), np.array(expected), atol=1e-6)
    again = names["unclipped"]
    assert names["clipped"].layers[0].grad_clip_norm == 1.0
    assert again.layers[0].grad_clip_norm is None
    np.testing.assert_allclose(np.array(again(names["x_train"])), np.array(expected), atol=1e-6)


def computes_what_addons_did(names):
    """The `call` of both of their cells in NumPy, with weights by their places there."""

    def sigmoid(a):
        return 1 / (1 + np.exp(-a))

    def layer_normalization(v, gamma, beta):
        centered = v - v.mean(axis=1, keepdims=True)
        return gamma * centered / np.sqrt((centered**2).mean(axis=1, keepdims=True) + 1e-3) + beta

    def peephole(x, h, c, kernel, recurrent_kernel, bias, p_i, p_f, p_o):
        z0, z1, z2, z3 = np.split(x @ kernel + h @ recurrent_kernel + bias, 4, axis=1)
        c = sigmoid(z1 + p_f * c) * c + sigmoid(z0 + p_i * c) * np.tanh(z2)
        return sigmoid(z3 + p_o * c) * np.tanh(c), c

    def layer_norm(x, h, c, kernel, recurrent_kernel, bias, *norms):
        z = layer_normalization(x @ kernel, *norms[:2])
        z = z + layer_normalization(h @ recurrent_kernel, *norms[2:4]) + bias
        z0, z1, z2, z3 = np.split(z, 4, axis=1)
        c = layer_normalization(sigmoid(z1) * c + sigmoid(z0) * np.tanh(z2), *norms[4:])
        return sigmoid(z3) * np.tanh(c), c

    for call, layer, weights in (
        (peephole, names["peephole"], names["weights"]),
        (layer_norm, names["normalized"], names["addons"]),
    ):
        x = names["x_train"].astype("float64")
        h = c = np.zeros((len(x), 64))
        for t in range(x.shape[1]):
            h, c = call(x[:, t], h, c, *weights)
        np.testing.assert_allclose(np.array(layer(x.astype("float32"))), h, atol=1e-4)


def moved(names):
    converted_what_computes_the_same(names)
    computes_what_addons_did(names)


def example(name):
    spec = importlib.util.spec_from_file_location(name, ROOT / "examples" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def some_weeks():
    forecast = example("forecast")
    x, y = forecast.windows(forecast.measurements(60))
    return {"x_train": x[:100], "y_train": y[:100], "x_test": x[100:], "y_test": y[100:]}


def some_lines():
    x, y = example("label").lines_of(["textwrap"])
    return {"x_train": x[:96], "y_train": y[:96], "x_test": x[96:], "y_test": y[96:]}


# Where it is not what it is on the other pages.
DATA = {"docs/forecasting.md": some_weeks, "docs/labelling.md": some_lines}


def forecasts_agree(names):
    expected = names["model"].predict(names["x_test"][:1], verbose=0)
    served = names["served"](week=names["tf"].constant(names["x_test"][:1]))["day"]
    for given in (names["session"].run(None, {"week": names["x_test"][:1]})[0], served):
        np.testing.assert_allclose(given, expected, atol=1e-5)


def labels_agree(names):
    assert 0.5 < names["accuracy"] < 1
    assert names["labels"].shape == (15,)
    assert (names["labels"] == np.argmax(names["probabilities"][0], axis=-1)).all()
    x, y = names["x"], names["y"]
    assert x.shape == y.shape == (2, 72)
    with_code = dict(example("label").labelled("\n".join(names["lines"])))
    assert [with_code[line] for line in names["lines"]] == names["kinds"]


AFTERWARDS = {
    "README.md": wrote_its_files,
    "docs/forecasting.md": forecasts_agree,
    "docs/labelling.md": labels_agree,
    "docs/diverging.md": found_where_it_began,
    "docs/migration.md": moved,
}


@pytest.mark.parametrize("page", WITH_CODE)
def test_the_code_of_a_page_runs(page, tmp_path, monkeypatch):
    """From top to bottom, in an empty folder."""
    usual = (
        not page.startswith(("docs/deploy/", "docs/tuning", "docs/tools", *DATA))
        or page == "docs/deploy/onnx.md"
    )
    leave_out_for_time(not usual)
    if page in NEEDS:
        pytest.importorskip(NEEDS[page])
    rng = np.random.default_rng(0)
    names = {
        "__name__": "page",
        "x_train": rng.normal(size=(20, 5, 12)).astype("float32"),
        "y_train": rng.integers(9, size=20),
        "x_test": rng.normal(size=(6, 5, 12)).astype("float32"),
        "y_test": rng.integers(9, size=6),
    }
    names |= DATA.get(page, dict)()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(tuning.RandomSearch, "__init__", small_search)
    for block in blocks_of(page):
        exec(compile(block, page, "exec"), names)
    AFTERWARDS.get(page, lambda names: None)(names)


@pytest.mark.parametrize("page", DATA)
def test_a_worked_example_has_the_model_of_its_script(page):
    name = {"docs/forecasting.md": "forecast", "docs/labelling.md": "label"}[page]
    names = {"keras": keras, "kg": kg}
    (code,) = (block for block in blocks_of(page) if "def build" in block)
    exec(code.partition("\n\n\n")[0], names)
    configs = [build().to_json() for build in (names["build"], example(name).build)]
    # Layers without a name have a number in theirs.
    one, other = (re.sub(r"_\d+\b", "", config) for config in configs)
    assert one == other


def test_there_is_code_on_most_pages():
    assert len(WITH_CODE) >= 15


def test_the_readme_is_short():
    assert len(PAGES["README.md"].splitlines()) <= 150
    (block,) = blocks_of("README.md")
    assert len(block.splitlines()) <= 15


def test_the_own_cell_is_short():
    (text,) = [block for block in blocks_of("docs/own_cell.md") if "class MGUCell" in block]
    assert len(text.partition("layer =")[0].strip().splitlines()) < 25


@pytest.fixture(scope="module")
def own_cell():
    """The minimal gated unit of "Write your own cell"."""
    names = {}
    exec(blocks_of("docs/own_cell.md")[0], names)
    return names["MGUCell"]


@pytest.mark.parametrize("check", checks.CHECKS)
def test_the_own_cell_keeps_the_contracts(check, own_cell):
    checks.CHECKS[check](own_cell, {})


def test_the_own_cell_is_the_minimal_gated_unit(own_cell, rng):
    layer = kg.GatedRNN(4, cell=own_cell, return_sequences=True)
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
    table = PAGES["docs/arguments.md"].partition("## Equations")[0]
    cells = (kg.GRUCell, kg.LSTMCell, kg.SimpleRNNCell)
    wanted = set().union(*(cell.options() for cell in cells), LAYER_ARGUMENTS) - {"autocast"}
    wanted |= {"cell", "return_sequences", "return_state", "go_backwards", "stateful", "unroll"}
    for name in wanted:
        shared = name.replace("kernel_", "").replace("recurrent_", "").replace("bias_", "")
        assert f"`{name}`" in table or f"`_{shared}`" in table, name


@pytest.mark.parametrize("page", PAGES)
def test_commands_and_files_exist(page):
    makefile = (ROOT / "Makefile").read_text()
    for command in commands_of(page):
        assert f"\n{command}:" in makefile, command
    for script in re.findall(r"python (?!-m)([\w/.]+\.py)", PAGES[page]):
        assert (ROOT / script).exists(), script
    for module in re.findall(r"python -m (keras_gates[\w.]*)", PAGES[page]):
        assert importlib.util.find_spec(module), module
    for link, anchor in re.findall(r"\]\(([\w/.-]*)(?:#([\w-]+))?\)", PAGES[page]):
        target = (
            pathlib.Path(os.path.normpath((ROOT / page).parent / link)) if link else ROOT / page
        )
        assert target.exists(), link
        if anchor:
            assert anchor in anchors_of(target.read_text()), (link, anchor)


def commands_of(page):
    return set(re.findall(r"(?:`|^|=\w+ )make ([a-z-]+)", PAGES[page], re.MULTILINE))


def anchors_of(text):
    """What a link to a heading is written as."""
    headings = re.findall(r"^#+ (.*)$", re.sub(r"^```.*?^```", "", text, flags=re.S | re.M), re.M)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_the_readme_names_the_commands_to_begin_with():
    assert {"demo", "test", "bench", "docs"} <= commands_of("README.md")


@pytest.mark.parametrize(
    "module", ["", "activations", "checks", "deployment", "diagnostics", "tuning"]
)
def test_the_reference_has_every_public_name(module):
    """Under that name, or the one that the same thing has at the top level."""
    found = importlib.import_module(f"keras_gates.{module}".rstrip("."))
    entries = {id(getattr_of(name)) for name in ENTRIES}
    missing = {name for name in found.__all__ if id(getattr(found, name)) not in entries}
    assert not missing


ENTRIES = [
    name
    for page, text in PAGES.items()
    if page.startswith("docs/api/")
    for name in re.findall(r"^\.\. (?:auto\w+|py:data):: ([\w.]+)$", text, re.MULTILINE)
]


def getattr_of(name):
    return functools.reduce(getattr, name.split(".")[1:], kg)


def test_the_reference_has_each_name_once():
    assert len(ENTRIES) == len(set(ENTRIES)) > 80
