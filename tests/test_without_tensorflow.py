"""On JAX or PyTorch everything but export works where TensorFlow is not installed."""

import os
import subprocess
import sys

import keras
import pytest

CODE = """
import sys

sys.modules["tensorflow"] = None  # an import of it fails
import keras
import numpy as np

import keras_gates as kg
from keras_gates import tuning

x = np.random.default_rng(0).normal(size=(16, 6, 3)).astype("float32")


def build(hp):
    layers = [kg.GatedRNN(4, **tuning.activation_space(hp, activation_l1=1e-4))]
    model = keras.Sequential([keras.Input((None, 3)), *layers, keras.layers.Dense(1)])
    model.compile("adam", "mse")
    return model


tuner = tuning.RandomSearch(build, "val_loss", max_trials=1, directory=sys.argv[1], seed=0)
tuner.search(x, x[:, 0, :1], validation_split=0.25, epochs=1, verbose=0)
assert "val_loss" in str(tuning.search_report(tuner))
(model,) = tuner.get_best_models()
assert len(kg.diagnose(model, x).layers) == 1
assert kg.check_activations("lstm", "relu").level == "unstable"
model.save(f"{sys.argv[1]}/model.keras")
loaded = keras.saving.load_model(f"{sys.argv[1]}/model.keras")
assert np.array_equal(loaded.predict(x, verbose=0), model.predict(x, verbose=0))
try:
    kg.export(model, f"{sys.argv[1]}/exported")
except ImportError as error:
    print(error)
"""


@pytest.mark.skipif(keras.backend.backend() == "tensorflow", reason="needs another backend")
def test_a_process_without_tensorflow(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", CODE, tmp_path],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert "SavedModel files need tensorflow: pip install tensorflow" in done.stdout
