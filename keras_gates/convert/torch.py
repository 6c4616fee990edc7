"""From PyTorch's GRU, LSTM and RNN to GatedRNN. Nothing of PyTorch is imported."""

import re
from collections.abc import Mapping
from typing import Any, Unpack

import keras
import numpy as np

from keras_gates.cells import CELLS
from keras_gates.cells.arguments import refuse_given, sign
from keras_gates.convert.keras import refuse_kept
from keras_gates.layers import GatedRNN
from keras_gates.types import LayerArguments

_MODULE = "torch.nn.modules.rnn"
_KINDS = ("GRU", "LSTM", "RNN", "GRUCell", "LSTMCell", "RNNCell")
# From how many blocks there are to the cell, and to where each of Keras' blocks is in PyTorch:
# its GRU has r, z, n, and its LSTM i, f, g, o as Keras has.
_CELLS = {1: ("simple", (0,)), 3: ("gru", (1, 0, 2)), 4: ("lstm", (0, 1, 2, 3))}
_OF_MODULE = (
    "batch_first", "num_layers", "bidirectional", "input_size", "hidden_size", "bias",
    "nonlinearity", "proj_size",
)  # fmt: skip
_WEIGHT = re.compile(r"(.*?)(weight_ih|weight_hh|weight_hr|bias_ih|bias_hh)(_l(\d+)(_reverse)?)?")


def from_torch(module: Any, **changes: Unpack[LayerArguments]) -> keras.layers.Layer:
    """What computes the same as a GRU, LSTM or RNN of PyTorch, with its weights.

    Args:
        module: a `torch.nn.GRU`, `LSTM` or `RNN` with any number of layers and directions, or a
            `GRUCell`, `LSTMCell` or `RNNCell`. Or a state dict of one, also within that of a model
            which has no other, of tensors or arrays, such as `torch.load` and safetensors give;
            what it does not say is then PyTorch's default: the nonlinearity of an RNN, tanh, and
            the dropout between layers, none.
        **changes: arguments of GatedRNN, for every layer, such as `grad_clip_norm=1.0`;
            `return_sequences` (True, as in PyTorch, unless given), `return_state` and `name` are
            those of the whole.

    Returns:
        Of one layer in one direction a `GatedRNN`, in two a `keras.layers.Bidirectional` of them;
        of several layers a `keras.Model` of those, with Dropout between them where the module has
        it; of a cell a cell. All are built, and take (batch, time, features), whether the module
        was `batch_first` or not. With `return_state` the last states follow the output, layer by
        layer, forward before backward, h before c: those that PyTorch stacks in h_n and c_n.
        Without `return_sequences` the output is the last layer's last h: in two directions the
        one after the last step beside the one after the first. The model of several layers begins
        with states of zeros and refuses an `initial_state`; the others take one.

    Raises:
        TypeError: something else than a recurrent module of PyTorch or its state dict.
        ValueError: an LSTM with projections (`proj_size`), a state dict without or with several
            recurrent modules or with weights that do not fit together, or a change that the
            weights do not fit.

    Example:

    >>> state = {"weight_ih_l0": numpy.ones((24, 3)), "weight_hh_l0": numpy.ones((24, 8))}
    >>> layer = keras_gates.from_torch(state, grad_clip_norm=1.0)  # or of a torch.nn.GRU(3, 8)
    >>> layer.cell.units, layer(numpy.zeros((2, 5, 3))).shape
    (8, TensorShape([2, 5, 8]))
    """
    refuse_given("from_torch", changes, _OF_MODULE, "the module says it")
    refuse_kept("from_torch", changes)
    if "go_backwards" in changes:
        raise ValueError(
            "from_torch keeps the directions of the module. "
            f"Received: go_backwards={changes['go_backwards']!r}"
        )
    arguments: dict[str, Any] = dict(changes)
    weights = _weights(_state_dict(module))
    if "relu" in (getattr(module, "nonlinearity", ""), getattr(module, "mode", "")[4:].lower()):
        arguments.setdefault("candidate_activation", "relu")
    if None in weights:
        return _cell(weights[None], arguments)
    return _layers(weights, arguments, getattr(module, "dropout", 0.0))


sign(from_torch, GatedRNN.__init__)


def _state_dict(module):
    if isinstance(module, Mapping):
        return module
    if isinstance(module, type):
        raise TypeError(
            "`module` must be a module of PyTorch, which has weights. Received: the class "
            f"{module.__name__}. Make one of it, or load its state dict"
        )
    classes = [c.__name__ for c in type(module).__mro__ if c.__module__ == _MODULE]
    kind = type(module).__name__
    if type(module).__module__ == _MODULE and kind in _KINDS:
        return module.state_dict()
    hint = ""
    if set(classes) & {*_KINDS}:
        hint = ", a subclass that may compute something else. Convert its `state_dict()`"
    elif hasattr(module, "named_modules"):
        parts = [
            name
            for name, part in module.named_modules()
            if type(part).__module__ == _MODULE and type(part).__name__ in _KINDS
        ]
        hint = f". Convert what is recurrent in it: {', '.join(parts)}" if parts else ""
    raise TypeError(
        "`module` must be a torch.nn.GRU, LSTM, RNN, GRUCell, LSTMCell, RNNCell, or the state "
        f"dict of one. Received: module of type {kind}{hint}"
    )


def _weights(state):
    """(layer, 0 forward or 1 backward) -> from "weight_ih" and so on to its array. The one of a
    cell is None."""
    matches = [(_WEIGHT.fullmatch(name), value) for name, value in state.items()]
    found = [(m.groups(), value) for m, value in matches if m]
    prefixes = sorted({prefix for (prefix, *_), _ in found})
    if len(prefixes) != 1:
        names = ", ".join(map(repr, prefixes or list(state)[:5])) or "nothing"
        raise ValueError(
            "`module` must be the state dict of one recurrent module, with weight_ih_l0, "
            "weight_hh_l0 and so on"
            + (
                f". Received several, under {names}: leave in what begins with one of them"
                if prefixes
                else f". Received: {names}"
            )
        )
    weights: dict = {}
    for (_, kind, numbered, layer, reverse), value in found:
        place = (int(layer), int(bool(reverse))) if numbered else None
        weights.setdefault(place, {})[kind] = _array(value)
    for one in weights.values():
        if "weight_hr" in one:
            raise ValueError(
                "`module` must be without projections, which GatedRNN has none of. Received: an "
                f"LSTM with proj_size={one['weight_hr'].shape[0]}"
            )
    given = {place: {k: v.shape for k, v in one.items()} for place, one in weights.items()}
    if given != _expected(given):
        raise ValueError(
            "`module` must have weight_ih and weight_hh of 1, 3 or 4 blocks of rows (RNN, GRU, "
            "LSTM) that fit each other in all layers and directions, with both biases or none. "
            f"Received: the shapes {given}"
        )
    return weights


def _expected(given):
    """The shapes that all weights have, judging by those of the first layer; None if there is
    nothing to go by."""
    first = None if None in given else (0, 0)
    if any(len(given.get(first, {}).get(name, ())) != 2 for name in ("weight_ih", "weight_hh")):
        return None
    (rows, features), (_, units) = given[first]["weight_ih"], given[first]["weight_hh"]
    if rows not in [units * blocks for blocks in _CELLS]:
        return None
    biases = dict.fromkeys(("bias_ih", "bias_hh") if "bias_ih" in given[first] else (), (rows,))
    places, directions = [None], 1
    if first:
        directions = 2 if (0, 1) in given else 1
        last = max(layer for layer, _ in given)
        places = [(layer, d) for layer in range(last + 1) for d in range(directions)]
    return {
        place: {
            "weight_ih": (rows, units * directions if place and place[0] else features),
            "weight_hh": (rows, units),
            **biases,
        }
        for place in places
    }


def _array(value):
    if hasattr(value, "detach"):
        value = value.detach().cpu().double().numpy()  # NumPy has no bfloat16
    return np.asarray(value, "float64")


def _arranged(one):
    """The name of the cell, and weights as Keras has them."""
    units = one["weight_hh"].shape[1]
    name, order = _CELLS[one["weight_hh"].shape[0] // units]
    arranged = {
        kind: np.concatenate([np.split(value, len(order))[block] for block in order])
        for kind, value in one.items()
    }
    weights = {"kernel": arranged["weight_ih"].T, "recurrent_kernel": arranged["weight_hh"].T}
    if "bias_ih" in one:
        both = np.stack([arranged["bias_ih"], arranged["bias_hh"]])
        weights["bias"] = both if name == "gru" else both.sum(0)
    return name, units, weights


def _cell(one, arguments):
    name, units, weights = _arranged(one)
    cell = CELLS[name](units, use_bias="bias" in weights, **arguments)
    cell.build((None, weights["kernel"].shape[0]))
    _assign(cell, weights)
    return cell


def _assign(cell, weights):
    for name, value in weights.items():
        getattr(cell, name).assign(value)


def _layers(weights, arguments, dropout):
    options = {"return_sequences": True, **arguments}
    name = options.pop("name", None)
    last = max(layer for layer, _ in weights)
    layers = [[weights[k, d] for d in (0, 1) if (k, d) in weights] for k in range(last + 1)]
    if not last:
        return _layer(layers[0], options, name)
    inner = {**options, "return_sequences": True}
    made = [_layer(one, options if k == last else inner) for k, one in enumerate(layers)]
    features = layers[0][0]["weight_ih"].shape[1]
    x = inputs = keras.Input((None, features), name="sequences", dtype=made[0].variable_dtype)
    states = []
    for k, layer in enumerate(made):
        if k and dropout:
            x = keras.layers.Dropout(dropout, dtype=options.get("dtype"))(x)
        x = layer(x)
        if options.get("return_state"):
            x, *own = x
            states += own
    return RNNLayers(inputs, [x, *states] if states else x, name=name)


@keras.saving.register_keras_serializable(package="keras_gates")
class RNNLayers(keras.Model):
    """Several recurrent layers. Keras' models ignore arguments that they do not know."""

    def __call__(self, *args, **kwargs):
        if kwargs.get("initial_state", args[1] if len(args) > 1 else None) is not None:
            raise ValueError(
                f"{self.name!r} begins with states of zeros and takes no `initial_state`, since it "
                "has several layers. Call those one after the other: for layer in "
                "model.layers[1:]: x = layer(x, initial_state=...)"
            )
        return super().__call__(*args, **kwargs)


def _layer(directions, options, name=None):
    """One layer, in one direction or in both."""
    found = [_arranged(one) for one in directions]
    cell, units, weights = found[0]
    options = {**options, "use_bias": "bias" in weights}
    if len(found) == 1:
        layer = GatedRNN(units, cell, name=name, **options)
        parts = [layer]
    else:
        backward = GatedRNN(units, cell, go_backwards=True, **options)
        layer = keras.layers.Bidirectional(
            GatedRNN(units, cell, **options),
            backward_layer=backward,
            name=name,
            dtype=options.get("dtype"),
        )
        parts = [layer.forward_layer, layer.backward_layer]
    layer.build((None, None, weights["kernel"].shape[0]))
    for part, (*_, values) in zip(parts, found, strict=True):
        _assign(part.cell, values)
    return layer
