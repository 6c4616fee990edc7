"""Model cards: their code runs the file, and their head is YAML."""

import json

import keras
import numpy as np
import pytest
from helpers import leave_out_for_time

import keras_gates as kg
from keras_gates.deployment import ExportReport

FILES = {"saved_model": "frames", "onnx": "m.onnx", "litert": "m.tflite", "openvino": "m.xml"}


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


def test_a_card_of_a_file_that_was_only_read():
    tensor = {"shape": None, "dtype": "string"}
    signatures = {"serving_default": {"inputs": {"words": tensor}, "outputs": {"scores": tensor}}}
    card = ExportReport("a/m.onnx", "onnx", 10, signatures, {}, []).to_model_card()
    assert "compares" not in card
    assert "Good to know" not in card
    assert "- input `words: string of any shape`" in card
    assert "np.full((1, 10), '')" in code_of(card)
