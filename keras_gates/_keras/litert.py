"""What LiteRT's converter, as TensorFlow has it, raises."""

from tensorflow.lite.python.convert_phase import ConverterError

__all__ = ["ConverterError"]
