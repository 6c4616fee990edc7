"""What Keras' layers are made with."""

import contextlib

import keras

# Without it as a base `keras.layers.RNN` does not renew the dropout masks of a cell.
# A layer's own `__call__` casts its weights with the scope.
from keras.src.backend import get_keras_mask
from keras.src.backend.common.variables import AutocastScope
from keras.src.export.export_utils import get_input_signature
from keras.src.layers.rnn.dropout_rnn_cell import DropoutRNNCell
from keras.src.utils.naming import to_snake_case

__all__ = [
    "AutocastScope",
    "DropoutRNNCell",
    "get_input_signature",
    "get_keras_mask",
    "not_converted",
    "standing_in",
    "to_snake_case",
]


def not_converted(method):
    """`method`, with its Python code left alone by TensorFlow's AutoGraph, as Keras' own is."""
    if keras.backend.backend() != "tensorflow":
        return method
    import tensorflow as tf

    return tf.autograph.experimental.do_not_convert(method)


@contextlib.contextmanager
def standing_in(layer, **attributes):
    """While it lasts, one of Keras' own layers, which know no engine, has attributes or methods of
    its own instead of those of its class, past Keras' tracking."""
    own = vars(layer)
    before = {name: own[name] for name in attributes if name in own}
    own.update(attributes)
    try:
        yield
    finally:
        for name in attributes:
            del own[name]
        own.update(before)
