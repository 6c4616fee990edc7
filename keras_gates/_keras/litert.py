"""LiteRT's converter, as TensorFlow has it: what it raises, and the format of its files."""

from tensorflow.lite.python import schema_py_generated as schema
from tensorflow.lite.python.convert_phase import ConverterError

__all__ = ["ConverterError", "schema"]
