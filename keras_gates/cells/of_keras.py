"""Keras' own cells, as cells of this package."""

import keras

from keras_gates.cells import CELLS
from keras_gates.cells.arguments import KERAS_NAMES

NAMES = {
    keras.layers.GRUCell: "gru",
    keras.layers.LSTMCell: "lstm",
    keras.layers.SimpleRNNCell: "simple",
}


def counterpart(cell):
    """The name of the class that stands here for that of a cell of Keras; None if there is none."""
    name = NAMES.get(cell if isinstance(cell, type) else type(cell))
    return name and CELLS[name].__name__


def unbuilt(cell, **changes):
    """One of these with the arguments of a cell of Keras, but for the changes."""
    arguments = {**cell.get_config(), **activations(cell), **changes}
    return CELLS[NAMES[type(cell)]](**renamed(arguments))


def activations(cell):
    """The cell's activations by Keras' names: the functions themselves, which a config may not
    hold; a layer as a copy, for the weights that it may have."""
    return {name: _copied(getattr(cell, name)) for name in KERAS_NAMES if hasattr(cell, name)}


def renamed(arguments):
    """Arguments of Keras' cells by the names that they have here."""
    return {KERAS_NAMES.get(name, name): value for name, value in arguments.items()}


def _copied(activation):
    if isinstance(activation, keras.layers.Layer):
        return type(activation).from_config(activation.get_config())
    return activation
