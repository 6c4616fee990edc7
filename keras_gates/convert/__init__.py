"""What others have trained, as layers of Keras and of this package."""

from keras_gates.convert.keras import cell_from_keras, converted, from_keras
from keras_gates.convert.keras2 import load_keras2
from keras_gates.convert.torch import from_torch

__all__ = ["cell_from_keras", "converted", "from_keras", "from_torch", "load_keras2"]
