"""Files of Keras 2."""

import collections
import io
import json
import os
import pathlib
import re
import tempfile
import warnings
import zipfile
from collections.abc import Mapping
from typing import Any

import h5py
import keras
import numpy as np

from keras_gates._keras import graph
from keras_gates._keras.calls import stacklevel
from keras_gates._keras.layers import get_keras_mask, to_snake_case
from keras_gates.convert.keras2_config import layers_of, translated
from keras_gates.validation import invalid


def load_keras2(
    path: str | os.PathLike[str], custom_objects: Mapping[str, Any] | None = None
) -> keras.Model:
    """A model that Keras 2 saved whole, as a model of Keras 3 that computes the same.

    `keras.models.load_model` of Keras 3 refuses such a file if it has a recurrent layer
    ("Unrecognized keyword arguments passed to GRU: {'time_major': False}"), and takes
    `hard_sigmoid` for another function than it was.

    Args:
        path: a .h5, .hdf5 or .keras file, written by Keras 2.0 to 2.15, by tf.keras of TensorFlow
            1.4 to 2.15, or by tf_keras.
        custom_objects: dict from names of classes and functions of your own, which the file
            mentions, to them.

    Returns:
        The model, of Keras' own layers, with its weights; it is not compiled. What was CuDNNGRU or
        CuDNNLSTM is GRU or LSTM. `hard_sigmoid` is `keras_gates.activations.hard_sigmoid_keras2`,
        0.2x + 0.5, as it was in Keras 2. With `from_keras` its recurrent layers become GatedRNN.

    Raises:
        ValueError: the file is none of Keras 2, holds weights alone, or has layers that Keras 3
            cannot have, with what to do instead.
        FileNotFoundError: there is no such file.

    Example:

    >>> model = keras_gates.load_keras2("trained_in_2019.h5")  # doctest: +SKIP
    >>> gated = keras_gates.from_keras(model, grad_clip_norm=1.0)  # doctest: +SKIP
    """
    if not isinstance(path, str | os.PathLike):
        raise invalid("path", "a .h5 or .keras file of Keras 2", path)
    path = pathlib.Path(path)
    objects = dict(custom_objects or {})
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            version = json.loads(archive.read("metadata.json"))["keras_version"]
            entry = json.loads(archive.read("config.json"))
            weights: Any = io.BytesIO(archive.read("model.weights.h5"))
    elif path.is_file() and h5py.is_hdf5(path):
        with h5py.File(path) as file:
            version = _text(file.attrs.get("keras_version", b"1"))
            entry = json.loads(_text(file.attrs.get("model_config", b"null")))
        weights = path
    else:
        raise _unreadable(path)
    if entry is None:
        raise _weights_alone(path)
    if not version.startswith("2"):
        hint = " It is loaded by keras.models.load_model" if version >= "3" else ""
        raise ValueError(f"`path` must be a file of Keras 2. Received: one of {version}.{hint}")
    config = translated(entry, objects)
    # Masks make operations in the model of Keras 3, whose names must be new.
    graph.reserve_names(one["config"]["name"] for one in config["config"].get("layers", ()))
    with keras.saving.custom_object_scope(objects):
        model = keras.saving.deserialize_keras_object(config)
    if not model.built:
        raise ValueError(
            f"{str(path)!r} does not say what shape the model takes. Make the model in code, build "
            "it, and call `model.load_weights(path)`"
        )
    _warn_of_masks(model)
    with h5py.File(weights) as file:
        if weights is path:
            _assign(model, file["model_weights"])
        else:
            _load(model, entry["config"], file)
    return model


def _warn_of_masks(model):
    for layer in model._flatten_layers():
        for args, kwargs in graph.calls(layer):
            if kwargs.get("initial_state") is not None and get_keras_mask(args[0]) is not None:
                warnings.warn(
                    f"{layer.name!r} had a mask and an initial state in Keras 2. Keras 3 hands "
                    "it no mask then, so that padded sequences give something else. In code, call "
                    "the layer with `mask=` as well.",
                    stacklevel=stacklevel(),
                )


def _unreadable(path):
    if not path.exists():
        return FileNotFoundError(
            f"`path` must be a file of Keras 2. There is none at {str(path)!r}"
        )
    hint = ""
    if (path / "saved_model.pb").exists():
        hint = (
            ", a SavedModel. keras.layers.TFSMLayer runs it; or load it with tf_keras and save it "
            "as a .h5 file"
        )
    return ValueError(
        f"`path` must be a .h5 or .keras file of Keras 2. Received: {str(path)!r}{hint}"
    )


def _weights_alone(path):
    how = "with keras.layers, call `model.load_weights(path)`, and convert it: from_keras(model)"
    with h5py.File(path) as file:
        if _names(file, "layer_names"):  # the older of two formats, a list per layer
            how = "with GatedRNN or Keras' layers, and call `model.load_weights(path)`"
            if path.name.endswith(".weights.h5"):
                how += ", after the file has got a name that ends in .h5, not in .weights.h5"
    return ValueError(
        f"`path` must be a whole model, and {str(path)!r} holds weights alone. Make the model in "
        f"code, {how}"
    )


def _text(value):
    return value.decode() if isinstance(value, bytes) else value


# ---------------------------------------------------------------------- .h5: a list per layer


def _assign(model, group):
    """Gives layers the weights that they have by name. Keras goes by their order."""
    for name in _names(group, "layer_names"):
        values = [np.asarray(group[name][one]) for one in _names(group[name], "weight_names")]
        if not values:
            continue
        layer = model.get_layer(name)
        weights = [*layer.trainable_weights, *layer.non_trainable_weights]
        if len(weights) == len(values):
            values = _without_cudnn(values, weights)
        shapes = [tuple(one.shape) for one in weights], [one.shape for one in values]
        if shapes[0] != shapes[1]:
            raise ValueError(
                f"{name!r} has weights of shapes {shapes[0]}, and the file has {shapes[1]} for it"
            )
        for weight, value in zip(weights, values, strict=True):
            weight.assign(value)


def _names(group, attribute):
    """A list of names, which is in several attributes if it is long."""
    parts = [attribute] if attribute in group.attrs else []
    while f"{attribute}{len(parts)}" in group.attrs:
        parts.append(f"{attribute}{len(parts)}")
    return [_text(name) for part in parts for name in group.attrs[part]]


def _without_cudnn(values, weights):
    """Weights of CuDNNGRU and CuDNNLSTM, which have two biases, as GRU and LSTM have them."""
    values = list(values)
    for k in range(2, len(values)):
        bias, wanted = values[k], tuple(weights[k].shape)
        if bias.ndim != 1 or bias.shape == wanted:
            continue
        units = values[k - 1].shape[0]
        if (bias.shape, wanted) == ((6 * units,), (2, 3 * units)):
            values[k] = bias.reshape(2, -1)
        elif (bias.shape, wanted) == ((8 * units,), (4 * units,)):
            values[k] = bias.reshape(2, -1).sum(0)
        else:
            continue
        blocks = values[k - 1].shape[1] // units
        kernels = np.split(values[k - 2], blocks, axis=1)
        values[k - 2] = np.hstack([v.T.reshape(v.shape, order="F") for v in kernels])
        values[k - 1] = np.hstack([v.T for v in np.split(values[k - 1], blocks, axis=1)])
    return values


# ---------------------------------------------------------------------- .keras: a tree


def _load(model, config, file):
    """Has Keras 3 load the weights, from where it looks for them."""
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "model.weights.h5")
        with h5py.File(path, "w") as target:
            _arrange(file, target, model, config)
        model.load_weights(path)


def _arrange(source, target, model, config):
    """Copies groups to the names that Keras 3 has for layers: their class, and how many before are
    of the same. Keras 2 counts some twice, and keeps an order of its own."""
    if "layers" not in config and not isinstance(config, list):  # a class of the user's own
        for key in source:
            source.copy(key, target)
        return
    names = ("_layer_checkpoint_dependencies", "layers")  # until Keras 2.14, and after
    old = next((source[name] for name in names if name in source), {})
    counted = collections.defaultdict(list)
    for key in sorted(old, key=lambda key: [int(n) for n in re.findall(r"_(\d+)$", key)]):
        counted[re.sub(r"_\d+$", "", key)].append(key)
    groups = {}
    for entry in layers_of(config):
        left = counted[to_snake_case(entry["class_name"].split(">")[-1])]
        if left:
            groups[entry["config"]["name"]] = old[left.pop(0)], entry["config"]
    target.create_group("vars")
    used: collections.Counter[str] = collections.Counter()
    for layer in model.layers:
        kind = to_snake_case(type(layer).__name__)
        key = f"layers/{kind}_{used[kind]}" if used[kind] else f"layers/{kind}"
        used[kind] += 1
        if layer.name not in groups:
            continue
        group, inner = groups[layer.name]
        if isinstance(layer, keras.Model):
            _arrange(group, target.create_group(key), layer, inner)
            continue
        source.copy(group, target, key)
        wrapped = getattr(layer, "layer", None)  # that of TimeDistributed
        if isinstance(wrapped, keras.Model):
            del target[key]["layer"]
            inner = inner["layer"]["config"]
            _arrange(group["layer"], target.create_group(f"{key}/layer"), wrapped, inner)
