"""What is wrong with the files that a command is given, told before Keras is imported.

Only the standard library is needed to see it. What is inside of arrays and weights is seen later.
"""

import importlib.util
import json
import os
import sys
import zipfile

_NPY, _HDF5 = b"\x93NUMPY", b"\x89HDF\r\n\x1a\n"
_CONFIG = "config.json"  # of a .keras file
_HEADER = 10_000  # bytes, within which a .npy file says what it holds


def check_there(argument, path, kind="file"):
    if not os.path.exists(path) or (kind == "file" and not os.path.isfile(path)):
        raise FileNotFoundError(
            f"`{argument}` must be a {kind} that is there. Received: {argument}={path!r}"
        )


def check_module(argument, module):
    """An error unless Python finds it, or the package that it is in, from where it runs."""
    if os.getcwd() not in sys.path:  # where an installed script does not look by itself
        sys.path.insert(0, os.getcwd())
    hint = f"; no module of this name is in {os.getcwd()} or installed"
    if "/" in module or module.endswith(".py"):
        hint = ", which is a path: write it as in `import`, such as my_module or package.module"
    elif importlib.util.find_spec(module.partition(".")[0] or " ") is not None:
        return
    raise ImportError(
        f"`{argument}` must be a module that can be imported. Received: {argument}={module}{hint}"
    )


def check_script(argument, path):
    """An error unless it is Python."""
    check_there(argument, path)
    with open(path, "rb") as file:
        try:
            compile(file.read(), path, "exec", dont_inherit=True)
        except (SyntaxError, ValueError) as error:
            raise ValueError(
                f"`{argument}` must be a Python script. Received: {argument}={path!r}; {error}"
            ) from error


def check_model(argument, path):
    """An error unless Keras may load the file."""
    check_there(argument, path)
    received = f"Received: {argument}={path!r}"
    if path.lower().endswith(".weights.h5"):
        raise ValueError(
            f"`{argument}` must be a whole model, as model.save('model.keras') writes it, and not "
            f"its weights alone. {received}"
        )
    zipped = zipfile.is_zipfile(path)
    if path.lower().endswith(".keras") and not zipped:
        raise ValueError(
            f"`{argument}` is not a .keras file, or damaged: it is not a zip file. {received}"
        )
    if not (_CONFIG in _members(path) if zipped else _starts_with(path, _HDF5)):
        raise ValueError(
            f"`{argument}` must be a .keras file, or a model that Keras 2 saved as .h5 or .keras. "
            f"{received}"
        )


def check_data(argument, path, model):
    """An error unless the file has arrays that the model in another may take."""
    check_there(argument, path)
    with open(path, "rb") as file:
        header = file.read(_HEADER)
    if header.startswith(_NPY):
        headers = {"x": header}
    elif zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            members = [name for name in archive.namelist() if name.endswith(".npy")]
            headers = {name.removesuffix(".npy"): _header(archive, name) for name in members}
    else:
        raise ValueError(
            f"`{argument}` must be a .npz file of arrays, or a .npy file with x alone. Received: "
            f"{argument}={path!r}. numpy.savez('data.npz', x=x, y=y) writes one"
        )
    check_names(argument, path, headers, _input_names(model))
    for name, header in headers.items():
        if b"'descr': '|O'" in header:
            raise ValueError(
                f"`{argument}` must hold arrays of numbers. Received: {argument}={path!r}, in "
                f"which {name} is an array of Python objects. Sequences of several lengths get one "
                "length with keras.utils.pad_sequences(x, dtype='float32', padding='post')"
            )


def check_names(argument, path, held, inputs):
    """An error unless arrays of these names are inputs of a model; these may not be known."""
    if "x" in held or (inputs and set(inputs) <= set(held)):
        return
    wanted = " or ".join(dict.fromkeys(["x", ", ".join(inputs) or "x"]))
    raise ValueError(
        f"`{argument}` must hold the array {wanted}. Received: {argument}={path!r}, which holds "
        f"{', '.join(held) or 'no arrays'}"
    )


def _header(archive, name):
    try:
        with archive.open(name) as file:
            return file.read(_HEADER)
    except zipfile.BadZipFile:  # NumPy says more of it
        return b""


def _input_names(model):
    """What a .keras file calls the inputs of its model; nothing where it does not say."""
    if _CONFIG not in _members(model):
        return []
    with zipfile.ZipFile(model) as archive:
        try:
            found = json.loads(archive.read(_CONFIG))
        except (ValueError, zipfile.BadZipFile):  # Keras says more of it
            return []
    if found.get("class_name") not in ("Functional", "Sequential"):
        return []
    layers = found["config"]["layers"]
    return [layer["config"]["name"] for layer in layers if layer["class_name"] == "InputLayer"]


def _members(path):
    if not zipfile.is_zipfile(path):
        return []
    with zipfile.ZipFile(path) as archive:
        return archive.namelist()


def _starts_with(path, beginning):
    with open(path, "rb") as file:
        return file.read(len(beginning)) == beginning
