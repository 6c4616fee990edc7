"""What is in a .keras file, read from its config and weights without making the model."""

import contextlib
import dataclasses
import inspect
import io
import json
import os
import pathlib
import zipfile
from typing import Any

import keras

from keras_gates._keras.layers import to_snake_case
from keras_gates.deployment.report import size_as_text
from keras_gates.initializers import Chrono

# What says nothing about a layer that its place, its name and its class do not.
_LEFT_OUT = {
    "name", "trainable", "dtype", "layers", "input_layers", "output_layers", "build_input_shape",
}  # fmt: skip


@dataclasses.dataclass
class SavedLayer:
    """A layer, model or cell in a .keras file.

    Attributes:
        name: its own.
        class_name: name of its class.
        arguments: those of its config that differ from the defaults of the class, and all
            activations; everything, where the class is not known in this process.
        parameters: the number of its weights, of what is inside it too; None of what is inside a
            layer or cell.
        layers: what is inside it: layers of a model, the layer of a wrapper, cells.
    """

    name: str
    class_name: str
    arguments: dict[str, Any]
    parameters: int | None
    layers: list["SavedLayer"]


@dataclasses.dataclass
class KerasFile:
    """What `inspect_keras` finds. `print` shows it.

    Attributes:
        path: of the file.
        size: in bytes.
        keras_version: of the Keras that wrote it.
        saved: when that was, "2026-05-31 12:00:00".
        parameters: the number of weights, without those of the optimizer.
        model: the `SavedLayer` that the model is, with all that is inside it.
        optimizer, loss: what it was compiled with, by name; None where it was not.
    """

    path: str
    size: int
    keras_version: str
    saved: str
    parameters: int
    model: SavedLayer
    optimizer: str | None
    loss: Any

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain dicts, lists, strings and numbers, for JSON."""
        return dataclasses.asdict(self)

    def __str__(self) -> str:
        lines = [
            f"{self.path}: {self.model.class_name} {self.model.name!r}, {self.parameters:,} "
            f"parameters, {size_as_text(self.size)}; written by Keras {self.keras_version}, "
            f"{self.saved}"
        ]
        rows = [row for layer in self.model.layers for row in _rows(layer, 1)]
        width = max([len(name) for name, _ in rows], default=0)
        lines += [f"{name:<{width}}  {text}" for name, text in rows]
        if self.optimizer is not None:
            lines.append(f"  compiled: optimizer {self.optimizer}, loss {self.loss}")
        return "\n".join(lines)


def inspect_keras(path: str | os.PathLike) -> KerasFile:
    """What layers and cells are in a .keras file, with what arguments and how many weights.

    The model is not made: that takes no module of its own cells and functions, and no backend.

    Args:
        path: of the file.

    Returns:
        A `KerasFile`.

    Raises:
        FileNotFoundError: nothing is there.
        ValueError: no .keras file, or one that is damaged.
        TypeError: `path` is no path.

    Example:

    >>> import os, tempfile
    >>> path = os.path.join(tempfile.mkdtemp(), "model.keras")
    >>> layer = keras_gates.GatedRNN(4, candidate_activation="relu", name="rnn")
    >>> keras.Sequential([keras.Input((None, 3), name="x"), layer], name="model").save(path)
    >>> found = keras_gates.deployment.inspect_keras(path)
    >>> found.model.layers[1].layers[0].arguments
    {'units': 4, 'gate_activation': 'sigmoid', 'candidate_activation': 'relu'}
    """
    if not isinstance(path, (str, os.PathLike)):
        raise TypeError(f"`path` must be a path. Received: path={path!r}")
    if not os.path.exists(path):
        raise FileNotFoundError(f"there is no file `path`. Received: path={str(path)!r}")
    try:
        with zipfile.ZipFile(path) as packed:
            config = json.loads(packed.read("config.json"))
            metadata = json.loads(packed.read("metadata.json"))
            weights = io.BytesIO(packed.read("model.weights.h5"))
        import h5py

        with h5py.File(weights) as tree:
            compiled = config.get("compile_config") or {}
            return KerasFile(
                path=str(path),
                size=pathlib.Path(path).stat().st_size,
                keras_version=metadata["keras_version"],
                saved=metadata["date_saved"].replace("@", " "),
                parameters=_count(tree),
                model=_layer(config, tree),
                optimizer=_text(compiled.get("optimizer")),
                loss=_text(compiled.get("loss")),
            )
    except (OSError, KeyError, ValueError, zipfile.BadZipFile) as error:
        raise ValueError(
            f"`path` is not a .keras file, or damaged: {error}. Received: path={str(path)!r}"
        ) from error


def _layer(entry, weights):
    """The `SavedLayer` of an entry of a config; `weights` is its group in the file, if known."""
    config = entry["config"]
    groups = {}
    if weights is not None:
        groups = {_name(group): group for group in weights.get("layers", {}).values()}
    name = config.get("name", "")
    return SavedLayer(
        name=name,
        class_name=entry["class_name"],
        arguments=_arguments(entry),
        parameters=None if weights is None else _count(weights),
        layers=[_layer(part, groups.get(part["config"].get("name"))) for part in _parts(config)],
    )


def _parts(config):
    """The entries of layers and cells in a config."""
    for value in config.values():
        for part in value if isinstance(value, list) else [value]:
            if _is_layer(part):
                yield part


def _is_layer(value):
    config = value.get("config") if isinstance(value, dict) else None
    return isinstance(config, dict) and bool({"trainable", "batch_shape", "cells"} & set(config))


def _name(group):
    return group["vars"].attrs.get("name") if "vars" in group else None


def _count(group):
    """The numbers in all arrays of a group, without those of the optimizer and of random seeds."""
    found = []

    def visit(name, item):
        if "vars/" in name and not name.startswith("optimizer/") and "seed_generator" not in name:
            found.append(item.size)

    group.visititems(visit)
    return int(sum(found))


def _arguments(entry):
    defaults = _defaults(entry)
    arguments = {}
    for name, value in entry["config"].items():
        if name in _LEFT_OUT or _is_layer(value) or value is None:
            continue
        if isinstance(value, list) and any(map(_is_layer, value)):
            continue
        value, default = _text(value), defaults.get(name) or False
        alike = value == (list(default) if isinstance(default, tuple) else default)
        if name.endswith("activation") or not alike:
            arguments[name] = value
    dtype = _text(entry["config"].get("dtype"))
    if dtype not in (None, "float32"):
        arguments["dtype"] = dtype
    return arguments


def _defaults(entry):
    """The default of each argument of a class, where the class is known."""
    found = keras.saving.get_registered_object(entry.get("registered_name") or "")
    if found is None and str(entry.get("module")).startswith("keras"):
        found = getattr(keras.layers, entry["class_name"], None)
    defaults: dict[str, Any] = {}
    for each in reversed(getattr(found, "__mro__", [])):
        with contextlib.suppress(TypeError, ValueError):
            parameters = inspect.signature(each.__init__).parameters.values()
            defaults.update({p.name: p.default for p in parameters})
    return defaults


def _text(value):
    """A value of a config; of what stands for an object its name and, if it has any, arguments."""
    if isinstance(value, list):
        return [_text(item) for item in value]
    if not isinstance(value, dict):
        return value
    if "class_name" not in value:
        return {name: _text(item) for name, item in value.items()}
    kind, config = value["class_name"], value.get("config")
    if kind == "function" or kind == "DTypePolicy":
        return config if isinstance(config, str) else config["name"]
    given = {n: v for n, v in (config or {}).items() if isinstance(v, float) and n != "gain"}
    name = to_snake_case(kind)
    if value.get("module") in ("keras.regularizers", "keras.constraints"):
        return f"{name}({', '.join(f'{n}={v:g}' for n, v in given.items())})"
    if value.get("registered_name") == "keras_gates>Chrono":
        return str(Chrono(**config))
    return name


def _rows(layer, depth):
    """Pairs of the indented name, and what it is."""
    arguments = ", ".join(f"{name}={value!r}" for name, value in layer.arguments.items())
    text = f"{layer.class_name}({arguments})"
    if layer.parameters:
        text += f", {layer.parameters:,} parameters"
    yield "  " * depth + layer.name, text
    for inside in layer.layers:
        yield from _rows(inside, depth + 1)
