"""The cells, and the names that `GatedRNN(cell=...)` knows them by."""

from keras_gates.cells.base import GatedCell
from keras_gates.cells.gru import GRUCell
from keras_gates.cells.lstm import LSTMCell
from keras_gates.cells.simple import SimpleRNNCell

CELLS = {
    "gru": GRUCell,
    "lstm": LSTMCell,
    "simple": SimpleRNNCell,
}

__all__ = ["CELLS", "GRUCell", "GatedCell", "LSTMCell", "SimpleRNNCell"]
