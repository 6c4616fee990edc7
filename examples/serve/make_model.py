"""Trains a GRU on handwritten digits, row by row, and exports it for the servers.

    python examples/serve/make_model.py    # half a minute; writes out/served/digits/1

The only program here that needs keras_gates. A folder per version is what TensorFlow Serving wants.
"""

import argparse
import os
import pathlib

os.environ.setdefault("KERAS_BACKEND", "tensorflow")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
from sklearn.datasets import load_digits

import keras_gates as kg
from keras_gates import export

PADDING = -1.0


def main(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("out/served/digits/1"))
    parser.add_argument("--epochs", type=int, default=15, help="default: %(default)s")
    arguments = parser.parse_args(argv)
    digits = load_digits()
    images = (digits.images / 16).astype("float32")
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [
            keras.Input((None, 8), name="rows"),
            keras.layers.Masking(PADDING),
            kg.GatedRNN(
                64,
                gate_activation="hard_sigmoid",
                candidate_activation="relu",
                grad_clip_norm=1.0,
                return_sequences=True,
            ),
            kg.GatedRNN(64, cell="lstm"),
            keras.layers.Dense(10, activation="softmax", name="digit"),
        ]
    )
    model.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
    model.fit(images, digits.target, validation_split=0.2, epochs=arguments.epochs, verbose=2)
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    print(export(model, arguments.out, streaming=True, sample=images))


if __name__ == "__main__":
    main()
