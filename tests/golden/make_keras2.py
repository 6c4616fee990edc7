"""Writes files as Keras 2 did: `python tests/golden/make_keras2.py`, with TensorFlow 2.12 to 2.15
or, with TF_USE_LEGACY_KERAS=1, the package tf_keras.

One .zip per version of Keras, with every model as .h5 and as .keras, and what it computes. A file,
once landed, is never written again.
"""

import json
import pathlib
import tempfile
import zipfile

import numpy as np
import tensorflow as tf

keras = tf.keras
layers = keras.layers
SAMPLES, TIME, FEATURES = 4, 6, 3


def sequential():
    """All three cells, the order of reset_after, the hard_sigmoid of Keras 2, a nested model."""
    return keras.Sequential(
        [
            layers.Masking(input_shape=(None, FEATURES)),
            layers.Bidirectional(layers.GRU(2, return_sequences=True)),
            layers.GRU(
                4, reset_after=False, recurrent_activation="hard_sigmoid", return_sequences=True
            ),
            layers.BatchNormalization(),
            keras.Sequential(
                [
                    layers.InputLayer((None, 4)),
                    layers.LSTM(3, recurrent_activation="hard_sigmoid", return_sequences=True),
                    layers.LSTM(4, return_sequences=True),
                ]
            ),
            layers.SimpleRNN(3, activation="relu"),
            layers.Dense(3, activation="hard_sigmoid"),
        ]
    )


def functional():
    """Branches, masks, shared and nested layers, states as inputs, tensors as arguments."""
    x = keras.Input((TIME, FEATURES))
    inner = keras.Model(x, layers.GRU(3, return_sequences=True)(layers.Dense(4)(x)), name="inner")

    frames = keras.Input((TIME, FEATURES), name="frames")
    h = layers.Masking()(frames)
    left = layers.LSTM(3, return_sequences=True)(h)
    right, *states = layers.LSTM(3, return_sequences=True, return_state=True)(h)
    both = layers.Concatenate()([right, left])
    decoded = layers.LSTM(3, return_sequences=True)(layers.Dense(2)(frames), initial_state=states)
    shared = layers.TimeDistributed(
        keras.Sequential([layers.InputLayer((3,)), layers.Dense(3), layers.Dense(3)])
    )
    h = layers.Subtract()([shared(decoded), inner(inner(frames))])
    h = layers.MultiHeadAttention(2, 3)(shared(h), value=decoded)
    last = layers.Bidirectional(layers.GRU(2), merge_mode="mul")
    return keras.Model(frames, [last(h), layers.LSTM(2)(both)])


def cudnn(gru=None, lstm=None):
    """Layers that TensorFlow 1 had for GPUs."""
    v1 = tf.compat.v1.keras.layers
    gru, lstm = gru or v1.CuDNNGRU, lstm or v1.CuDNNLSTM
    return keras.Sequential(
        [
            layers.InputLayer((None, FEATURES)),
            layers.Bidirectional(gru(3, return_sequences=True)),
            lstm(4, return_sequences=True),
            lstm(2),
        ]
    )


def main():
    version = json.loads(sequential().to_json())["keras_version"]
    path = pathlib.Path(__file__).parent / f"keras_{version}.zip"
    if path.exists():
        print(f"{path} exists, and a golden file is never written again.")
        return
    rng = np.random.default_rng(0)
    frames = rng.normal(size=(SAMPLES, TIME, FEATURES)).astype("float32")
    frames[1, 4:] = frames[2, :2] = 0
    arrays = {"frames": frames}
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        for make in (sequential, functional, cudnn):
            keras.backend.clear_session()
            if make is cudnn and not hasattr(tf.compat.v1.keras.layers, "CuDNNGRU"):
                continue
            model, name = make(), make.__name__
            for weight in model.weights:
                value = 0.5 * rng.normal(size=weight.shape)
                weight.assign(abs(value) + 0.5 if "variance" in weight.name else value)
            model.save(folder / f"{name}.h5")
            if make is cudnn:  # it runs on GPUs alone, and Keras 2 itself has others read it
                model = cudnn(layers.GRU, layers.LSTM)
                model.load_weights(folder / "cudnn.h5")
            else:
                as_zip = {"save_format": "keras_v3"} if version.startswith("2.12") else {}
                model.save(folder / f"{name}.keras", **as_zip)
            for k, value in enumerate(_listed(model(frames))):
                arrays[f"{name}_{k}"] = value.numpy()
        np.savez(folder / "expected.npz", **arrays)
        with zipfile.ZipFile(path, "w", zipfile.ZIP_LZMA) as packed:
            for file in sorted(folder.iterdir()):
                packed.write(file, file.name)


def _listed(outputs):
    return outputs if isinstance(outputs, list) else [outputs]


if __name__ == "__main__":
    main()
