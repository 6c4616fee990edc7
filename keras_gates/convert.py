"""From keras.layers.GRU, LSTM and SimpleRNN to GatedRNN."""

from typing import Unpack

import keras

from keras_gates.cells import CELLS
from keras_gates.cells.arguments import KERAS_NAMES, sign
from keras_gates.layers import GatedRNN
from keras_gates.types import LayerArguments

_LAYERS = {
    keras.layers.GRU: "gru",
    keras.layers.LSTM: "lstm",
    keras.layers.SimpleRNN: "simple",
}
_CELLS = {
    keras.layers.GRUCell: "gru",
    keras.layers.LSTMCell: "lstm",
    keras.layers.SimpleRNNCell: "simple",
}
# Changing one of these changes the shape of the weights, or their meaning.
_KEPT = ("cell", "units", "use_bias", "reset_after")


def from_keras(
    model_or_layer: keras.layers.Layer, **changes: Unpack[LayerArguments]
) -> keras.layers.Layer:
    """A copy in which every GRU, LSTM and SimpleRNN is a GatedRNN with the same weights.

    Args:
        model_or_layer: a Sequential or functional model, or a layer: `keras.layers.GRU`, `LSTM`,
            `SimpleRNN`, `RNN` of Keras' cells, or a wrapper of one such as `Bidirectional`.
            It is left as it is.
        **changes: arguments of GatedRNN that differ in the copy, such as `grad_clip_norm=1.0` or
            `candidate_activation="relu"`. They apply to every converted layer.

    Returns:
        The copy; a model comes uncompiled, like one from `keras.models.clone_model`.

    Raises:
        TypeError: neither a layer nor a Sequential or functional model (the layers of a
            subclassed model can be converted one by one), or a change that is no argument.
        ValueError: nothing in it to convert, or a change that its weights do not fit.

    Example:

    >>> model = keras.Sequential([keras.Input((None, 8)), keras.layers.GRU(16)])
    >>> clipped = keras_gates.from_keras(model, grad_clip_norm=1.0)
    """
    if not isinstance(model_or_layer, keras.layers.Layer):
        raise TypeError(
            "from_keras takes a Keras model or layer. Received: "
            f"{model_or_layer!r} of type {type(model_or_layer).__name__}"
        )
    for name, value in changes.items():
        if name in _KEPT:
            raise ValueError(
                f"from_keras keeps the weights, and `{name}` changes their shape or meaning. "
                f"Received: {name}={value!r}"
            )
    conversion = _Conversion(changes)
    copy = conversion.layer(model_or_layer)
    if not conversion.recurrent:
        raise ValueError(
            "from_keras found no keras.layers.GRU, LSTM or SimpleRNN to convert in "
            f"{model_or_layer.name!r}"
        )
    if model_or_layer.built and not copy.built:
        copy.build_from_config(model_or_layer.get_build_config())
    conversion.copy_weights()
    return copy


sign(from_keras, GatedRNN.__init__)


def cell_from_keras(cell):
    """A built cell of Keras as one of this package, with its weights; None if there is none."""
    if type(cell) not in _CELLS:
        return None
    conversion = _Conversion({})
    copy = conversion.cell(cell)
    copy.build((None, cell.kernel.shape[0]))
    conversion.copy_weights()
    return copy


class _Conversion:
    """One call of `from_keras`: the changes, and which copy each original became."""

    def __init__(self, changes):
        self.changes = changes
        self.recurrent = []  # (Keras' cell, the cell of its copy)
        self.others = []  # (layer, its copy)

    def layer(self, layer):
        """The copy of `layer`."""
        if isinstance(layer, keras.Model):
            return self._model(layer)
        if type(layer) in _LAYERS:
            copy = GatedRNN(cell=_LAYERS[type(layer)], **self._layer_arguments(layer))
            self.recurrent.append((layer.cell, copy.cell))
            return copy
        if type(layer) is keras.layers.RNN and self._holds_keras_cells(layer.cell):
            return self._rnn(layer)
        if type(layer) is keras.layers.Bidirectional:
            return self._bidirectional(layer)
        if type(layer) is keras.layers.TimeDistributed:
            return keras.layers.TimeDistributed(self.layer(layer.layer), name=layer.name)
        inside = [part.name for part in layer._flatten_layers() if isinstance(part, tuple(_LAYERS))]
        if inside:
            raise ValueError(
                f"from_keras cannot see into {layer.name!r} of type {type(layer).__name__}, which "
                f"holds {inside[0]!r}. Convert that layer by itself."
            )
        copy = type(layer).from_config(layer.get_config())
        self.others.append((layer, copy))
        return copy

    def copy_weights(self):
        """Gives every copy the weights of its original. What has none yet stays without."""
        for original, copy in self.others:
            if original.built and original.weights:
                copy.set_weights(original.get_weights())
        for original, copy in self.recurrent:
            if not original.built:
                continue
            for name in ("kernel", "recurrent_kernel", "bias"):
                weight = getattr(original, name)
                if weight is not None:
                    getattr(copy, name).assign(weight)

    def _model(self, model):
        if not (isinstance(model, keras.Sequential) or hasattr(model, "operations")):
            raise TypeError(
                "from_keras copies Sequential and functional models; a subclassed model makes its "
                f"layers itself: convert them one by one. Received: {type(model).__name__}"
            )
        return keras.models.clone_model(model, clone_function=self.layer)

    def _rnn(self, layer):
        """keras.layers.RNN of Keras' cells: the cells change, a stack stays one."""
        if not isinstance(layer.cell, keras.layers.StackedRNNCells):
            config = {k: v for k, v in layer.get_config().items() if k != "cell"}
            return GatedRNN(cell=self.cell(layer.cell), **config)
        lost = [name for name in ("activation_l1", "candidate_l1") if self.changes.get(name)]
        if lost:
            raise ValueError(
                f"{layer.name!r} is a stack of cells, where nobody adds {lost[0]} to the loss. "
                "Use one GatedRNN per cell."
            )
        config = {**layer.get_config(), "cell": [self.cell(cell) for cell in layer.cell.cells]}
        return keras.layers.RNN(**config)

    def _bidirectional(self, layer):
        forward, backward = layer.forward_layer, layer.backward_layer
        copy = keras.layers.Bidirectional(
            self.layer(forward),
            merge_mode=layer.merge_mode,
            backward_layer=self.layer(backward),
            name=layer.name,
        )
        # Bidirectional makes its forward layer anew from the one it is given.
        self.recurrent = [
            (original, copy.forward_layer.cell if original is forward.cell else made)
            for original, made in self.recurrent
        ]
        return copy

    def cell(self, cell):
        if type(cell) not in _CELLS:
            copy = type(cell).from_config(cell.get_config())
            self.others.append((cell, copy))
            return copy
        arguments = {**cell.get_config(), **_activations(cell), **self.changes}
        copy = CELLS[_CELLS[type(cell)]](**_renamed(arguments))
        self.recurrent.append((cell, copy))
        return copy

    def _layer_arguments(self, layer):
        # The layer's config alone is not complete: SimpleRNN leaves out its seed.
        config = {**layer.cell.get_config(), **layer.get_config()}
        return _renamed({**config, **_activations(layer.cell), **self.changes})

    @staticmethod
    def _holds_keras_cells(cell):
        cells = cell.cells if isinstance(cell, keras.layers.StackedRNNCells) else [cell]
        return any(type(cell) in _CELLS for cell in cells)


def _activations(cell):
    """The cell's activations by Keras' names: the functions themselves, which a config may not
    hold; a layer as a copy, for the weights that it may have."""
    return {name: _copied(getattr(cell, name)) for name in KERAS_NAMES if hasattr(cell, name)}


def _copied(activation):
    if isinstance(activation, keras.layers.Layer):
        return type(activation).from_config(activation.get_config())
    return activation


def _renamed(arguments):
    return {KERAS_NAMES.get(name, name): value for name, value in arguments.items()}
