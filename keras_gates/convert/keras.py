"""From keras.layers.GRU, LSTM and SimpleRNN to GatedRNN."""

import os
import tempfile
import warnings
from collections.abc import Mapping
from typing import Unpack

import keras
import numpy as np
from keras import tree

from keras_gates._keras import graph
from keras_gates._keras.calls import stacklevel
from keras_gates._keras.compiled import not_compiled
from keras_gates.cells import CELLS, GatedCell, of_keras
from keras_gates.cells.arguments import KERAS_NAMES, LAYER_ARGUMENTS, sign
from keras_gates.convert.compiled import compile_as
from keras_gates.layers import OF_LAYER, GatedRNN
from keras_gates.types import LayerArguments

_LAYERS = {
    keras.layers.GRU: "gru",
    keras.layers.LSTM: "lstm",
    keras.layers.SimpleRNN: "simple",
}
# Changing one of these changes the shape of the weights, or their meaning.
_KEPT = ("cell", "units", "use_bias", "reset_after", "layer_norm")
# Arguments of a GatedRNN that are not its cell's.
_OF_LAYER = {*OF_LAYER, "name"}
# What layers around a recurrent one count on.
_OF_ONE_LAYER = ("return_sequences", "return_state", "return_gates", "go_backwards", "name")
# From what a cell of Keras or of this package calls an activation to its name here.
_ACTIVATIONS = {
    **KERAS_NAMES,
    **{name: name for name in (*KERAS_NAMES.values(), "output_activation")},
}
# Changing these leaves the outputs of inference as they are.
_OF_TRAINING = (
    "activation_l1", "candidate_l1", "grad_clip_norm", "grad_clip_value", "grad_clip_at",
    "backprop", "dropout", "recurrent_dropout", "seed", "name", "trainable",
)  # fmt: skip
# The largest difference of the copy, as a share of the largest output.
_TOLERANCE = {"float64": 1e-4, "float32": 1e-4}


def from_keras(
    model_or_layer: keras.layers.Layer, **changes: Unpack[LayerArguments]
) -> keras.layers.Layer:
    """A copy in which every GRU, LSTM and SimpleRNN is a GatedRNN with the same weights.

    GatedRNN layers that are there already stay, with the changes.

    Args:
        model_or_layer: a model, or a layer: `keras.layers.GRU`, `LSTM`, `SimpleRNN`, `RNN` of
            Keras' cells, a wrapper of one such as `Bidirectional`, or a layer or model of your own
            that holds some in its attributes and can be made from its config. It is left as it is.
        **changes: arguments of GatedRNN that differ in the copy, such as `grad_clip_norm=1.0` or
            `candidate_activation="relu"`. They apply to every recurrent layer, also to those that
            are GatedRNN already: `grad_clip_norm=None` takes the bound away. One that only some of
            the cells take, such as `output_activation` of LSTMs, is for those. Keras' names
            `activation` and `recurrent_activation` are taken too, for the candidate's and the
            gates' activation, and None there means the identity, as in Keras. Given a recurrent
            layer alone, also what it gives and is called: `return_sequences`, `return_state`,
            `return_gates`, `go_backwards`, `name`.

    Returns:
        The copy, with all that the original has learned, was adapted to, or keeps as states. A
        model that is compiled comes compiled in the same way, with the same losses and functions
        and a new optimizer and metrics. Both are run on random data, unless a change makes them
        differ, and must agree.

        Files of weights alone (.weights.h5) name layers by their class, so that a file of one does
        not load into the other. Load it into the model that it is of, and hand the weights on:
        `from_keras(model)` there, `model.set_weights(copy.get_weights())` back.

    Raises:
        TypeError: no layer, or a change that is no argument.
        ValueError: nothing in it to convert, a change that its weights or the layers around it do
            not fit, a layer or model of your own that cannot be made from its config, or a copy
            that computes something else.

    Warns:
        UserWarning: a .keras file of the copy would not bring it back, because a class of your own
            makes Keras' layers in its `__init__`; or the copy could not be compiled.

    Example:

    >>> model = keras.Sequential([keras.Input((None, 8)), keras.layers.GRU(16)])
    >>> clipped = keras_gates.from_keras(model, grad_clip_norm=1.0)
    """
    if not isinstance(model_or_layer, keras.layers.Layer):
        raise TypeError(
            "from_keras takes a Keras model or layer. Received: "
            f"{model_or_layer!r} of type {type(model_or_layer).__name__}"
        )
    if of_keras.counterpart(model_or_layer):
        raise ValueError(
            "from_keras takes a Keras model or layer, no cell alone. Received: "
            f"{model_or_layer!r}. The cell here is "
            f"keras_gates.{of_keras.counterpart(model_or_layer)}, whose weights are the same; or "
            "convert keras.layers.RNN(cell)"
        )
    refuse_kept("from_keras", changes)
    if changes.get("initialization") is not None:
        raise ValueError(
            "from_keras copies weights, so that `initialization` would do nothing: make a new "
            f"GatedRNN with it. Received: initialization={changes['initialization']!r}"
        )
    _refuse_of_one_layer(model_or_layer, changes)
    changes = _named_as_here(changes)
    copy = converted(model_or_layer, changes)
    if not set(changes) - set(_OF_TRAINING):
        _verify(model_or_layer, copy)
    return copy


sign(from_keras, GatedRNN.__init__)


def refuse_kept(owner, changes):
    """A ValueError for a change that the weights do not allow."""
    for name in _KEPT:
        if name in changes:
            raise ValueError(
                f"{owner} keeps the weights, and `{name}` changes their shape or meaning. "
                f"Received: {name}={changes[name]!r}"
            )


def _refuse_of_one_layer(original, changes):
    """A ValueError for a change that layers around the recurrent ones do not allow."""
    if isinstance(original, keras.layers.RNN):
        return
    for name in _OF_ONE_LAYER:
        if name in changes:
            why = "each keeps its own" if name == "name" else "what comes after them counts on it"
            raise ValueError(
                f"from_keras changes all recurrent layers of {original.name!r}, and `{name}` "
                f"cannot be changed in all: {why}. Make the model in code, with "
                f"GatedRNN({name}=...) where you want it, and hand the weights on: "
                "new.set_weights(from_keras(model).get_weights()). "
                f"Received: {name}={changes[name]!r}"
            )
    tensors = tree.flatten(graph.inputs(original))
    if changes.get("stateful") and any(t is None or t.shape[0] is None for t in tensors):
        raise ValueError(
            f"`stateful=True` needs a known batch size, and {original.name!r} takes any. Make it "
            "in code with keras.Input(batch_shape=(batch, time, features)), hand its weights on, "
            "and convert that; for live data keras_gates.export(model, path, streaming=True) takes "
            f"it as it is. Received: stateful={changes['stateful']!r}"
        )


def _named_as_here(changes):
    """The changes, with Keras' names of activations, where None is the identity, as ours."""
    changes = dict(changes)
    for theirs, ours in KERAS_NAMES.items():
        if theirs not in changes:
            continue
        if ours in changes:
            raise ValueError(
                f"`{theirs}` is Keras' name for `{ours}`: give one of them. Received: "
                f"{theirs}={changes[theirs]!r}, {ours}={changes[ours]!r}"
            )
        value = changes.pop(theirs)
        changes[ours] = "linear" if value is None else value
    return changes


def converted(original, changes=()):
    """As `from_keras`, without looking at the arguments or at what the copy computes."""
    parts = original._flatten_layers()
    conversion = _Conversion(dict(changes), {*map(_class_here, parts)} - {None})
    copy = conversion.layer(original)
    if not conversion.recurrent:
        gated = [part.name for part in parts if isinstance(part, GatedRNN)]
        already = (
            f", which has GatedRNN layers already ({', '.join(gated)}). To change their arguments, "
            "give those: from_keras(model, grad_clip_norm=None)"
        )
        raise ValueError(
            "from_keras found no keras.layers.GRU, LSTM or SimpleRNN to convert in "
            f"{original.name!r}{already if gated else ''}."
        )
    if original.built and not copy.built:
        copy.build_from_config(original.get_build_config())
    conversion.copy_state()
    for model, made in conversion.compiled:
        compile_as(model, made)
    if conversion.made_within:
        kinds = dict.fromkeys(type(part).__name__ for part in conversion.made_within)
        warnings.warn(
            f"the `__init__` of {' and '.join(kinds)} makes Keras' recurrent layers, so that a "
            f".keras file of {copy.name!r} brings those back when loaded. Keep the copy by "
            "save_weights, and load them into from_keras of a new model; or by keras_gates.export; "
            "or make GatedRNN layers in the `__init__`.",
            stacklevel=stacklevel(),
        )
    return copy


def cell_from_keras(cell):
    """A built cell of Keras as one of this package, with its weights; None if there is none."""
    if type(cell) not in of_keras.NAMES:
        return None
    conversion = _Conversion({}, ())
    copy = conversion.cell(cell)
    copy.build((None, cell.kernel.shape[0]))
    conversion.copy_state()
    return copy


def _class_here(part):
    """The class of this package that a cell has or gets; None of what is no cell."""
    if isinstance(part, GatedCell):
        return type(part)
    return CELLS[of_keras.NAMES[type(part)]] if type(part) in of_keras.NAMES else None


def _taken(cell_class):
    """The arguments that such a cell takes."""
    return cell_class.options() - (set() if cell_class.gate_names() else {"gate_activation"})


class _Conversion:
    """One call of `from_keras`: the changes, and which copy each original became; given the
    classes of all cells that there will be."""

    def __init__(self, changes, cell_classes):
        self.changes = changes
        self.known = set().union(*map(_taken, cell_classes))
        self.states = {state for cell in cell_classes for state in cell.state_names}
        self.copies = {}  # from the id of a layer to its copy: what is shared stays shared
        self.recurrent = []  # (a cell, the cell of its copy), and so GatedRNN layers themselves
        self.stateful = []  # (a layer with states, its copy)
        self.others = []  # (layer, its copy)
        self.made_within = []  # copies of layers of the user's own that make their recurrent layers
        self.compiled = []  # (a model that is compiled, its copy)

    def layer(self, layer):
        """The copy of a layer, or of an operation in the graph of a model."""
        if id(layer) not in self.copies:
            self.copies[id(layer)] = copy = self._copy(layer)
            if getattr(layer, "stateful", False) and isinstance(layer, keras.layers.RNN):
                self.stateful.append((layer, copy))
            if isinstance(layer, keras.Model) and layer.compiled:
                self.compiled.append((layer, copy))
        return self.copies[id(layer)]

    def _copy(self, layer):
        if not isinstance(layer, keras.layers.Layer):
            return graph.copied(layer)
        if isinstance(layer, keras.Sequential) and not layer.layers:
            return keras.Sequential(name=layer.name)  # which Keras cannot clone
        if isinstance(layer, keras.Sequential) or hasattr(layer, "_run_through_graph"):
            with not_compiled(layer):
                return keras.models.clone_model(layer, clone_function=self.layer)
        if type(layer) is keras.layers.Lambda:
            return graph.lambda_copied(layer)
        if type(layer) in _LAYERS:
            copy = GatedRNN(cell=_LAYERS[type(layer)], **self._layer_arguments(layer))
            self.recurrent.append((layer.cell, copy.cell))
            return copy
        if type(layer) is keras.layers.RNN and any(map(self._becomes_gated, _cells(layer))):
            return self._rnn(layer)
        if isinstance(layer, GatedRNN) and self.changes:
            return self._changed(layer)
        if type(layer) is keras.layers.Bidirectional:
            return self._bidirectional(layer)
        if type(layer) is keras.layers.TimeDistributed:
            return keras.layers.TimeDistributed(self.layer(layer.layer), name=layer.name)
        if isinstance(layer, tuple(_LAYERS)):
            raise ValueError(
                f"from_keras cannot see into {layer.name!r} of type {type(layer).__name__}, a "
                "subclass that may compute something else. Convert an instance of its base."
            )
        try:
            copy = type(layer).from_config(layer.get_config())
        except Exception as error:  # of a class of the user's own, of any kind
            raise ValueError(
                f"from_keras makes {layer.name!r} of type {type(layer).__name__} anew from its "
                f"config, and that raised {type(error).__name__}: {_quoted(error)}. "
                "Give the class a `get_config`, or convert its layers one by one."
            ) from error
        parts = layer._flatten_layers(include_self=False)
        if any(isinstance(part, keras.layers.RNN) for part in parts):
            self._replace_parts(layer, copy)
        else:
            self.others.append((layer, copy))
        return copy

    def _replace_parts(self, layer, copy):
        """Puts copies of its layers into the attributes of a layer of the user's own."""
        if isinstance(layer, keras.layers.Wrapper):
            raise ValueError(
                f"from_keras cannot see into {layer.name!r} of type {type(layer).__name__}, which "
                "holds a recurrent layer. Convert that layer by itself."
            )
        for name, value in graph.attributes(layer).items():
            parts = [p for p in tree.flatten(value) if isinstance(p, keras.layers.Layer)]
            if not parts:
                continue
            for old in tree.flatten(getattr(copy, name)):
                graph.forget(copy, old)
            made = tree.map_structure(
                lambda p: self.layer(p) if isinstance(p, keras.layers.Layer) else p, value
            )
            setattr(copy, name, made)
        if not _comes_back(copy):
            self.made_within.append(copy)

    def copy_state(self):
        """Gives every copy what its original has. What has no weights yet stays without."""
        for original, copy in self.others:
            if original.built:
                copy_state(original, copy)
        for original, copy in self.recurrent:
            if original.built:
                weights: dict = {}
                original.save_own_variables(weights)
                copy.load_own_variables({name: _apart(one) for name, one in weights.items()})
                for one, other in self._activations(original, copy):
                    copy_state(one, other)
        for original, copy in self.stateful:
            if original.built:
                for one, other in zip(
                    tree.flatten(original.states), tree.flatten(copy.states), strict=True
                ):
                    other.assign(_apart(one))

    def _rnn(self, layer):
        """keras.layers.RNN of Keras' cells: the cells change, a stack stays one."""
        config = layer.get_config()
        changes = {k: v for k, v in self.changes.items() if k in _OF_LAYER}
        if not isinstance(layer.cell, keras.layers.StackedRNNCells):
            return GatedRNN(**{**config, **changes, "cell": self.cell(layer.cell)})
        lost = [name for name in ("activation_l1", "candidate_l1") if self.changes.get(name)]
        lost += changes.keys() - config.keys()
        if lost:
            raise ValueError(
                f"{layer.name!r} is a stack of cells, which stays a keras.layers.RNN, where "
                f"`{lost[0]}` does nothing. Use one GatedRNN per cell."
            )
        cells = [self.cell(cell) for cell in layer.cell.cells]
        return keras.layers.RNN(**{**config, **changes, "cell": cells})

    def _changed(self, layer):
        """A GatedRNN with the changes."""
        names = {*_OF_LAYER, *LAYER_ARGUMENTS}
        changes = {k: v for k, v in self.changes.items() if k in names}
        cell = self.cell(layer.cell)
        copy = type(layer)(**{**layer.get_config(), "units": None, **changes, "cell": cell})
        if layer.initial_state == "learned" != copy.initial_state:
            raise ValueError(
                f"from_keras keeps the weights, and among those of {layer.name!r} are the initial "
                f"states that it has learned. Received: initial_state={copy.initial_state!r}"
            )
        if copy.initial_state == layer.initial_state:
            self.recurrent.append((layer, copy))
        return copy

    def _bidirectional(self, layer):
        forward, backward = layer.forward_layer, layer.backward_layer
        copy = keras.layers.Bidirectional(
            self.layer(forward),
            merge_mode=layer.merge_mode,
            backward_layer=self.layer(backward),
            name=layer.name,
        )
        # Bidirectional makes its forward layer anew from the one it is given.
        made, anew = self.layer(forward)._flatten_layers(), copy.forward_layer._flatten_layers()
        instead = {id(one): other for one, other in zip(made, anew, strict=True)}
        for pairs in (self.recurrent, self.stateful, self.others):
            pairs[:] = [(one, instead.get(id(other), other)) for one, other in pairs]
        return copy

    def _changes_of(self, cell):
        """Those for such a cell. What only some of the cells take is for them alone."""
        taken = _taken(_class_here(cell))
        found = {k: v for k, v in self.changes.items() if k in taken or k not in self.known}
        if isinstance(found.get("zoneout"), Mapping):  # by states, which not all cells have
            states = _class_here(cell).state_names
            found["zoneout"] = {
                state: share
                for state, share in found["zoneout"].items()
                if state in states or state not in self.states
            }
        return found

    def _activations(self, cell, copy):
        """The activations of a cell that are layers, which may have weights, each with its copy."""
        for theirs, ours in _ACTIVATIONS.items():
            if ours in self.changes or not hasattr(cell, theirs):
                continue
            found, made = tree.flatten(getattr(cell, theirs)), tree.flatten(getattr(copy, ours))
            for one, other in zip(found, made, strict=True):
                is_same = isinstance(one, keras.layers.Layer) and type(one) is type(other)
                if is_same and one.built:
                    yield one, other

    def _becomes_gated(self, cell):
        return type(cell) in of_keras.NAMES or (bool(self.changes) and isinstance(cell, GatedCell))

    def cell(self, cell):
        if not self._becomes_gated(cell):
            copy = type(cell).from_config(cell.get_config())
            self.others.append((cell, copy))
            return copy
        changes = {k: v for k, v in self._changes_of(cell).items() if k not in _OF_LAYER}
        if isinstance(cell, GatedCell):
            changes.pop("activity_regularizer", None)  # which is the layer's
            copy = type(cell).from_config({**cell.get_config(), **changes})
        else:
            copy = of_keras.unbuilt(cell, **changes)
        self.recurrent.append((cell, copy))
        return copy

    def _layer_arguments(self, layer):
        # The layer's config alone is not complete: SimpleRNN leaves out its seed.
        config = {**layer.cell.get_config(), **layer.get_config()}
        changes = self._changes_of(layer.cell)
        return of_keras.renamed({**config, **of_keras.activations(layer.cell), **changes})


def _quoted(error):
    """The first line of what an error says, in quotation marks."""
    return '"' + (str(error).splitlines() or [""])[0] + '"'


def _comes_back(copy):
    """Whether a layer of the user's own has the same recurrent layers when made from its config."""
    try:
        with graph.names_kept():
            again = type(copy).from_config(copy.get_config())
    except Exception:  # of any kind
        return False
    kinds = [
        [type(part) for part in one._flatten_layers() if isinstance(part, keras.layers.RNN)]
        for one in (copy, again)
    ]
    return kinds[0] == kinds[1]


def _cells(layer):
    cell = layer.cell
    return cell.cells if isinstance(cell, keras.layers.StackedRNNCells) else [cell]


def copy_state(original, copy):
    """Weights, states of random numbers, and what a layer was adapted to, such as a vocabulary."""
    for one, other in zip(original.variables, copy.variables, strict=True):
        other.assign(_apart(one))
    for one, other in zip(original._flatten_layers(), copy._flatten_layers(), strict=True):
        store: dict = {}
        one.save_own_variables(store)
        if store:
            other.load_own_variables({name: _apart(value) for name, value in store.items()})
        if hasattr(one, "save_assets"):
            with tempfile.TemporaryDirectory() as folder:
                one.save_assets(folder)
                if os.listdir(folder):
                    other.load_assets(folder)


def _apart(value):
    """A variable's value in memory of its own. JAX's variables share what one is assigned of the
    other, and Keras' training step gives it away."""
    return keras.ops.copy(value) if isinstance(value, keras.Variable) else value


def _verify(original, copy):
    """Raises a ValueError if the two compute something else, as far as they can be run."""
    given = graph.inputs(original)
    if given is None or not original.built:
        return
    rng = np.random.default_rng(0)
    x = tree.map_structure(lambda tensor: _random(tensor, rng), given)
    kept = [(v, keras.ops.convert_to_numpy(v)) for m in (original, copy) for v in _moving(m)]
    try:
        expected = original(x, training=False)
    except Exception:  # it takes other data than what can be made up here
        return
    try:
        found = copy(x, training=False)
    finally:
        for variable, value in kept:
            variable.assign(value)
    dtypes = {str(layer.compute_dtype) for layer in original._flatten_layers()}
    tolerance = max(_TOLERANCE.get(dtype, 0.05) for dtype in dtypes if "float" in dtype)
    for one, other in zip(tree.flatten(expected), tree.flatten(found), strict=True):
        one, other = (keras.ops.convert_to_numpy(v).astype("float64") for v in (one, other))
        scale = np.abs(one).max(initial=1e-3, where=np.isfinite(one))
        if not np.allclose(one, other, rtol=0, atol=tolerance * scale, equal_nan=True):
            raise ValueError(
                f"the copy of {original.name!r} computes something else, by "
                f"{np.nanmax(np.abs(one - other)):.3g} of {scale:.3g}: it has a layer whose config "
                "and weights do not say all. Convert its recurrent layers one by one."
            )


def _moving(model):
    """The variables that a run without training may change."""
    trained = {id(variable) for variable in model.trainable_variables}
    layers = [layer for layer in model._flatten_layers() if getattr(layer, "stateful", False)]
    states = tree.flatten([getattr(layer, "states", None) or [] for layer in layers])
    return [v for v in (*model.variables, *states) if id(v) not in trained]


def _random(tensor, rng):
    shape = [size or (2 if axis == 0 else 5) for axis, size in enumerate(tensor.shape)]
    if tensor.dtype == "string":
        return keras.ops.convert_to_tensor(np.full(shape, "a"))
    values = rng.normal(size=shape) if "float" in str(tensor.dtype) else rng.integers(0, 2, shape)
    return keras.ops.convert_to_tensor(values.astype(str(tensor.dtype)))
