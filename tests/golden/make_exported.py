"""Writes the golden exported files of a release: `python tests/golden/make_exported.py 0.1.0`.

One .zip per format. Run it with the oldest TensorFlow that is supported for "saved_model", because
it reads files of its older versions, not of newer ones. A file, once landed, is never written
again: that old files load for ever is what it tests.
"""

import pathlib
import sys
import tempfile
import zipfile

import keras
import numpy as np

import keras_gates as kg
from keras_gates import export

SAMPLES = 4
OPTIONS = {
    "saved_model": {"streaming": True},
    "onnx": {},
    "litert": {"streaming": True, "batch_size": SAMPLES},
    "openvino": {},
}


def main(release, *formats):
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [
            keras.Input((None, 2), name="frames"),
            keras.layers.Masking(),
            kg.GatedRNN(
                3,
                gate_activation="hard_sigmoid",
                candidate_activation="relu",
                grad_clip_norm=1.0,
                return_sequences=True,
            ),
            kg.GatedRNN(2, cell="lstm", name="ear"),
            keras.layers.Dense(2, name="scores"),
        ]
    )
    frames = np.random.default_rng(0).normal(size=(SAMPLES, 19, 2)).astype("float32")
    frames[1, 15:] = frames[2, :6] = frames[3, 4:6] = 0
    for format in formats or OPTIONS:
        path = pathlib.Path(__file__).parent / f"release_{release}_{format}.zip"
        if path.exists():
            print(f"{path} exists, and a golden file is never written again.")
            continue
        with tempfile.TemporaryDirectory() as folder:
            folder = pathlib.Path(folder)
            export.export(model, folder / "model", format, **OPTIONS[format])
            scores = model.predict(frames, verbose=0)
            np.savez(folder / "expected.npz", frames=frames, scores=scores)
            with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as packed:
                for file in sorted(folder.rglob("*")):
                    packed.write(file, file.relative_to(folder))


if __name__ == "__main__":
    main(*sys.argv[1:])
