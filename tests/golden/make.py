"""Writes the golden file of a release: `python tests/golden/make.py 0.1.0`.

Run it with the oldest Keras that is supported: Keras reads files of its older versions, not of
newer ones. A file, once landed, is never written again: that old files load for ever is what it
tests.
"""

import pathlib
import sys

import keras
import numpy as np

import keras_gates as kg


def main(release):
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [
            keras.Input((None, 3), name="frames"),
            keras.layers.Masking(),
            keras.layers.Bidirectional(
                kg.GatedRNN(
                    3,
                    gate_activation={"update": "hard_sigmoid"},
                    candidate_activation="relu",
                    grad_clip_norm=1.0,
                    activation_l1=1e-4,
                    return_sequences=True,
                )
            ),
            kg.GatedRNN(
                3,
                cell="lstm",
                candidate_activation="softsign",
                output_activation="tanh",
                grad_clip_value=1.0,
                grad_clip_at="preactivation",
                candidate_l1=1e-4,
                return_sequences=True,
            ),
            kg.GatedRNN(3, cell="gru", reset_after=False, return_sequences=True),
            kg.GatedRNN(3, cell="simple", candidate_activation=keras.layers.LeakyReLU(0.2)),
            keras.layers.Dense(2, name="scores"),
        ]
    )
    path = pathlib.Path(__file__).parent / f"release_{release}.keras"
    if path.exists():
        sys.exit(f"{path} exists, and a golden file is never written again.")
    x = np.random.default_rng(0).normal(size=(4, 6, 3)).astype("float32")
    x[1, 4:] = x[2, :2] = 0
    model.save(path)
    np.savez(path.with_suffix(".npz"), x=x, y=model.predict(x, verbose=0))


if __name__ == "__main__":
    main(sys.argv[1])
