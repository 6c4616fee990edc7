"""The weights of a model by names that say where they are, and those that are not finite."""

import keras
import numpy as np


def named(model):
    """Pairs (name, weight) of a model's weights; the name follows those of the layers it is in.

    The path of a variable lacks the layers around its own once the model was loaded from a file.
    """
    names, seen = {}, set()

    def walk(layer, prefix):
        if id(layer) in seen:  # used twice
            return
        seen.add(id(layer))
        for child in layer._flatten_layers(include_self=False, recursive=False):
            walk(child, f"{prefix}{child.name}/")
        for weight in layer.weights:
            names.setdefault(id(weight), prefix + weight.name)

    walk(model, "")
    return [(names[id(weight)], weight) for weight in model.weights]


def nonfinite(model):
    """(name, index, value) of the first NaN or infinite value of each weight that has one."""
    for name, weight in named(model):
        values = keras.ops.convert_to_numpy(weight.value)
        if values.dtype.kind not in "fV":  # bfloat16 is not one of NumPy's own types
            continue
        bad = ~np.isfinite(values.astype("float64"))
        if bad.any():
            index = tuple(map(int, np.unravel_index(bad.argmax(), bad.shape)))
            yield name, index, float(values[index])
