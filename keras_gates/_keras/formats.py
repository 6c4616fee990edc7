"""What TensorFlow's files consist of, as modules of its own describe it.

These modules need nothing of TensorFlow but each other, and importing TensorFlow takes seconds. So
where it has not been imported yet they are imported without it.
"""

import functools
import importlib
import importlib.util
import sys
import types


def saved_model():
    """What is in a saved_model.pb."""
    return _module("SavedModel", "tensorflow.core.protobuf.saved_model_pb2")


def litert():
    """What is in a .tflite file."""
    return _module("LiteRT", "tensorflow.lite.python.schema_py_generated")


@functools.cache
def _module(files, name):
    whole, *inner = name.split(".")[:-1]
    found = None if whole in sys.modules else importlib.util.find_spec(whole)
    if found is None:
        try:
            return importlib.import_module(name)
        except ImportError as error:
            needed = "tensorflow: pip install tensorflow"
            raise ImportError(f"{files} files need {needed}") from error
    before = set(sys.modules)
    places = [*found.submodule_search_locations]
    try:
        for part in [None, *inner]:
            if part is not None:
                whole = f"{whole}.{part}"
                places = [f"{place}/{part}" for place in places]
            empty = sys.modules[whole] = types.ModuleType(whole)
            empty.__path__ = places  # so that there are modules in it
        return importlib.import_module(name)
    finally:
        # So that TensorFlow can still be imported as it is.
        for other in set(sys.modules) - before:
            if other.partition(".")[0] == found.name:
                del sys.modules[other]
