"""What Keras' layers are made with."""

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
    "to_snake_case",
]
