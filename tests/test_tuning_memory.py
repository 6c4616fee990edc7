"""A search does not grow with its trials."""

import json

import pytest
from helpers import BACKEND, leave_out_for_time, run_python

pytestmark = pytest.mark.skipif(
    BACKEND != "tensorflow", reason="it is TensorFlow that keeps graphs"
)

SEARCH = """
    import gc, json, os, sys, tempfile
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
    import keras, numpy as np
    import keras_gates as kg
    from keras_gates import tuning

    trials, warm = map(int, sys.argv[1:])
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(64, 10, 4)).astype("float32"), rng.integers(0, 3, 64)

    def build(hp):
        activations = tuning.activation_space(hp, ["gru", "lstm"], units=hp.Int("units", 8, 32))
        model = keras.Sequential([keras.Input((None, 4)), kg.GatedRNN(**activations),
                                  keras.layers.Dense(3, activation="softmax")])
        model.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
        return model

    def memory():
        with open("/proc/self/status") as status:
            (line,) = [line for line in status if line.startswith("VmRSS")]
        return int(line.split()[1]) / 1024

    def graphs():
        gc.collect()
        return sum(type(o).__name__ == "FuncGraph" for o in gc.get_objects())

    class Measured(tuning.RandomSearch):
        found = []

        def on_trial_end(self, trial):
            super().on_trial_end(trial)
            self.found.append((memory(), graphs()))

    with tempfile.TemporaryDirectory() as folder:
        tuner = Measured(build, "val_accuracy", trials, seed=0, directory=folder)
        tuner.search(x, y, validation_split=0.25, epochs=1, verbose=0)
    (begin, _), (end, _) = Measured.found[warm - 1], Measured.found[-1]
    print(json.dumps({"growth": (end - begin) / (trials - warm),
                      "graphs": [graphs for _, graphs in Measured.found]}))
"""


def test_neither_memory_nor_graphs_grow_with_the_trials():
    leave_out_for_time(True)
    found = json.loads(run_python(SEARCH, 30, 10, timeout=600).splitlines()[-1])
    assert found["growth"] < 3.0  # MB a trial
    assert found["graphs"][-1] <= found["graphs"][0]
