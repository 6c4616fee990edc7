"""The config of a model of Keras 2 as one of Keras 3."""

import re

import keras

from keras_gates.activations import hard_sigmoid_keras2

_RECURRENT = ("GRU", "LSTM", "SimpleRNN", "RNN", "Bidirectional")
_MODELS = ("Functional", "Model", "Sequential")
# Layers of Keras 2 that ran on cuDNN alone; their weights are arranged when they are loaded.
_CUDNN = {"CuDNNGRU": ("GRU", {"reset_after": True}), "CuDNNLSTM": ("LSTM", {})}
# Arguments that are gone, with nothing lost.
_GONE = {
    r".*": ("implementation", "input_length", "rng_type"),
    r"MultiHeadAttention": ("query_shape", "key_shape", "value_shape", "softmax_robust_masking"),
    r"SpatialDropout\dD": ("trainable", "noise_shape"),
    r"Discretization": ("trainable",),
    r"(Depthwise|Separable)Conv.*|Conv.*Transpose": ("groups",),
    r"SeparableConv.*": ("kernel_initializer", "kernel_regularizer", "kernel_constraint"),
}
_IN_CODE = "Make the model in code, of Keras 3, and call its `load_weights` with a .h5 file"


def translated(entry, custom_objects):
    """What `keras.saving.deserialize_keras_object` takes, of a model or layer of Keras 2.

    Args:
        entry: {"class_name": ..., "config": ...}; is left as it is.
        custom_objects: dict of what the user gave.

    Raises:
        ValueError: there is something in it that Keras 3 cannot do, with what to do instead.
    """
    name, implied = _CUDNN.get(entry["class_name"], (entry["class_name"], {}))
    if hasattr(keras.layers, name[:-2]) and name.endswith(("V1", "V2")):
        name = name[:-2]  # BatchNormalizationV1 of TensorFlow 1
    if name == "Sequential":
        return _sequential(entry, custom_objects)
    if name in ("Functional", "Model") and "input_layers" in entry["config"]:
        return _functional(entry, custom_objects)
    config = {**implied, **entry["config"]}
    _change_of_any(config, name == "InputLayer")
    if keras.saving.get_registered_object(entry["class_name"], custom_objects) is not None:
        made = _found(None, entry["class_name"], config)
        return {**made, "build_config": entry["build_config"]} if "build_config" in entry else made
    if name.endswith(("OpLambda", "OpLayer")):
        raise ValueError(
            f"{config['name']!r} is an operation of TensorFlow, and Keras 3 takes layers and "
            f"keras.ops alone. {_IN_CODE}"
        )
    if not hasattr(keras.layers, name):
        raise ValueError(
            f"{config.get('name')!r} is a {name}, which Keras 3 no longer has. Give a class that "
            f"takes the same config: custom_objects={{{name!r}: ...}}. Or: {_IN_CODE}"
        )
    if name == "Lambda" and not isinstance(config["function"], str):
        raise ValueError(
            f"{config['name']!r} is a Lambda layer of compiled Python, which only the version of "
            f"Python that wrote it can read, and which could do anything. {_IN_CODE}"
        )
    _change(name, config, custom_objects)
    for key in ("layer", "backward_layer", "cell"):
        if isinstance(config.get(key), dict):
            config[key] = translated(config[key], custom_objects)
    if isinstance(config.get("cells"), list):
        config["cells"] = [translated(cell, custom_objects) for cell in config["cells"]]
    return _found("keras.layers", name, config)


def _found(module, name, config):
    registered = name if module is None else None
    name = name.split(">")[-1]
    return {"module": module, "class_name": name, "config": config, "registered_name": registered}


def _change_of_any(config, inputs):
    """What every layer of Keras 2 had, those of the user's own too."""
    if config.pop("time_major", False):
        raise ValueError(
            f"{config['name']!r} has time_major=True, which Keras 3 no longer has. {_IN_CODE}, for "
            "sequences (batch, time, features)"
        )
    shape = config.pop("batch_input_shape", None)
    if shape is not None and inputs:
        config["batch_shape"] = shape
    if isinstance(config.get("dtype"), dict):
        config["dtype"] = config["dtype"]["config"]["name"]


def _change(name, config, custom_objects):
    """What is called or meant otherwise in Keras 3."""
    if config.pop("ragged", False):
        raise ValueError(
            f"{config['name']!r} takes ragged tensors, which Keras 3 does not. {_IN_CODE}, with "
            "padded sequences and keras.layers.Masking"
        )
    for kind, gone in _GONE.items():
        for key in gone if re.fullmatch(kind, name) else ():
            config.pop(key, None)
    if name == "LeakyReLU" and "alpha" in config:
        config["negative_slope"] = config.pop("alpha")
    if name in ("GRU", "GRUCell"):
        config.setdefault("reset_after", False)  # before there was a choice
    if isinstance(config.get("axis"), list) and len(config["axis"]) == 1:
        config["axis"] = config["axis"][0]
    for key, value in config.items():
        if key.endswith("activation") and _is_hard_sigmoid(value):
            config[key] = keras.activations.serialize(hard_sigmoid_keras2)
        elif key.endswith("activation") and isinstance(value, str) and value in custom_objects:
            config[key] = {"module": None, "class_name": "function", "config": value}
            config[key]["registered_name"] = value
        elif key.endswith("_initializer") and isinstance(value, dict):
            kept = {k: v for k, v in (value["config"] or {}).items() if k != "dtype"}
            if kept.get("distribution") == "normal":
                kept["distribution"] = "truncated_normal"
            config[key] = {**value, "config": kept}


def _is_hard_sigmoid(value):
    return (value.get("config") if isinstance(value, dict) else value) == "hard_sigmoid"


def layers_of(config):
    """The entries of a Sequential or functional model, in the order of its layers."""
    return config if isinstance(config, list) else config["layers"]  # a list before Keras 2.2.3


def input_shape(entry):
    """The shape, with the batch size, that a Sequential model takes; None if it says none."""
    config, first = entry["config"], layers_of(entry["config"])[0]
    shape = first["config"].get("batch_input_shape") or first["config"].get("batch_shape")
    if shape is None and first["class_name"] in _MODELS:
        return input_shape(first) if first["class_name"] == "Sequential" else None
    if shape is None and isinstance(config, dict):
        built = entry.get("build_config") or {}
        shape = config.get("build_input_shape") or built.get("input_shape")
    return shape


def _sequential(entry, custom_objects):
    config = entry["config"]
    entries, shape = layers_of(config), input_shape(entry)
    layers = [translated(one, custom_objects) for one in entries]
    if shape is not None and entries[0]["class_name"] not in ("InputLayer", *_MODELS):
        dtype = entries[0]["config"].get("dtype")
        made = {"batch_shape": shape, "name": f"{entries[0]['config']['name']}_input"}
        if isinstance(dtype, str) and not dtype.startswith("mixed"):
            made["dtype"] = dtype
        layers.insert(0, _found("keras.layers", "InputLayer", made))
    name = config.get("name") if isinstance(config, dict) else None
    return _found("keras", "Sequential", {"name": name, "layers": layers})


def _functional(entry, custom_objects):
    config = dict(entry["config"])
    # References to calls of a model begin at 1 in Keras 2, if it has an input of its own.
    shifts = {
        one["name"]: int(one["class_name"] != "Sequential" or input_shape(one) is not None)
        for one in config["layers"]
        if one["class_name"] in _MODELS
    }
    config["layers"] = [
        {
            **translated(one, custom_objects),
            "name": one["name"],
            "inbound_nodes": [_node(node, one, shifts) for node in one["inbound_nodes"]],
        }
        for one in config["layers"]
    ]
    # Keras 3 takes the 1 away itself where a functional model gives an output.
    sequential = {
        one["name"]: shifts[one["name"]]
        for one in entry["config"]["layers"]
        if one["class_name"] == "Sequential"
    }
    config["output_layers"] = _mapped(
        config["output_layers"],
        lambda name, node, index: [name, node - sequential.get(name, 0), index],
    )
    for key in ("input_layers", "output_layers"):  # in Keras 2 a list of one was that one
        if isinstance(config[key], list) and len(config[key]) == 1:
            config[key] = config[key][0]
    return _found("keras", "Model", config)


def _mapped(value, change):
    """A structure with [layer, node, tensor] changed by a function of the three."""
    if isinstance(value, dict):
        return {key: _mapped(one, change) for key, one in value.items()}
    if not isinstance(value, (list, tuple)):
        return value
    if _is_reference(value):
        return change(*value)
    return [_mapped(one, change) for one in value]


def _is_reference(value):
    return len(value) == 3 and isinstance(value[0], str) and all(type(v) is int for v in value[1:])


def _node(node, entry, shifts):
    """A call of a layer."""

    def tensor(name, index, which):
        history = [name, index - shifts.get(name, 0), which]
        config = {"shape": [], "dtype": "float32", "keras_history": history}
        return {"class_name": "__keras_tensor__", "config": config}

    if isinstance(node, dict):
        given = {key: _mapped(one[:3], tensor) for key, one in node.items()}
        return {"args": [given], "kwargs": {}}
    node = [node] if isinstance(node[0], str) else node
    given = [one[2] if one[0] == "_CONSTANT_VALUE" else tensor(*one[:3]) for one in node]
    kwargs = {
        key: _mapped(value, tensor)
        for one in node
        for key, value in (one[3:] or [{}])[0].items()
        if value is not None
    }
    if entry["class_name"] in _RECURRENT and len(given) > 1:
        given, kwargs["initial_state"] = given[:1], given[1:]
    return {"args": given if len(given) == 1 else [given], "kwargs": kwargs}
