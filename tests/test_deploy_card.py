"""Model cards: their code runs the file, and their head is YAML."""

import json

import keras
import numpy as np
import pytest
from helpers import leave_out_for_time

import keras_gates as kg
from keras_gates.deployment import ExportReport

FILES = {"saved_model": "frames", "onnx": "m.onnx", "litert": "m.tflite", "openvino": "m.xml"}

TENSOR = {"shape": None, "dtype": "string"}
SIGNATURE = {"inputs": {"words": TENSOR}, "outputs": {"scores": TENSOR}}


def code_of(card):
    return card.split("```python\n")[1].split("```")[0]


@pytest.mark.parametrize("format", FILES)
def test_the_code_of_a_card_runs_the_file(format, quick, tmp_path, monkeypatch):
    leave_out_for_time(format in ("litert", "openvino"))
    inputs = keras.Input((None, 3), name="frames")
    hidden = kg.GatedRNN(4, bias_initializer="normal")(inputs)
    model = keras.Model(inputs, keras.layers.Dense(2, name="scores")(hidden))
    monkeypatch.chdir(tmp_path)
    report = kg.export(model, FILES[format], format=format)
    card = report.to_model_card("README.md", "For *tests*.", license="mit", tags=["a: b"])
    assert card == (tmp_path / "README.md").read_text(encoding="utf-8")
    ran = {}
    exec(code_of(card), ran)
    found = ran["outputs"]
    if not isinstance(found, list):
        (found,) = found.values()
    np.testing.assert_allclose(
        np.reshape(found, (1, 2)), model.predict(np.zeros((1, 10, 3)), verbose=0), atol=1e-5
    )
    head, _, body = card.removeprefix("---\n").partition("\n---\n")
    fields = {k: json.loads(v) for k, v in (line.split(": ", 1) for line in head.splitlines())}
    assert fields.pop("library_name")
    assert fields == {"license": "mit", "tags": ["a: b"]}
    assert body.index("For *tests*.") < body.index("- input `frames: float32 (")
    assert f"- {report._difference()}" in body
    assert all(f"- {note}" in body for note in report.notes)


@pytest.mark.parametrize("format", ["saved_model", "litert"])
def test_a_card_of_a_stream_goes_through_it_step_by_step(format, quick, tmp_path, monkeypatch):
    leave_out_for_time(format == "litert")
    inputs = keras.Input((None, 3), name="frames")
    hidden = kg.GatedRNN(4, bias_initializer="normal")(keras.layers.Masking(name="hides")(inputs))
    model = keras.Model(inputs, keras.layers.Dense(2, name="scores")(hidden))
    monkeypatch.chdir(tmp_path)
    report = kg.export(model, FILES[format], format=format, streaming=True)
    card = report.to_model_card()
    first, again = [block.split("```")[0] for block in card.split("```python\n")[1:]]
    ran = {}
    exec(first + again.replace("np.zeros", "np.ones"), ran)
    expected = model.predict(np.ones((1, 1, 3)), verbose=0)
    np.testing.assert_allclose(ran["found"]["scores"], expected, atol=1e-5)
    assert set(ran["states"]) == set(report.signatures["initial_state"]["outputs"])
    assert (
        "- Steps in which all features are 0 are taken as padding, and hidden from what follows "
        "(hides)." in card
    )


def test_the_card_of_an_openvino_file_names_that_of_its_weights():
    card = ExportReport("a/m.xml", "openvino", 10, {"chunk": SIGNATURE}, {}, []).to_model_card()
    assert "`m.xml`, with its weights in `m.bin` beside it, was written by keras_gates" in card


def test_a_card_of_a_file_that_was_only_read():
    card = ExportReport("a/m.onnx", "onnx", 10, {"serving_default": SIGNATURE}, {}, [])
    card = card.to_model_card()
    assert "compares" not in card
    assert "Good to know" not in card
    assert "- input `words: string of any shape`" in card
    assert "np.full((1, 10), '')" in code_of(card)
