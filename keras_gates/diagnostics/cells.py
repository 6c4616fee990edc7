"""The recurrent layers in a model, and the cell that shows what each of them computes."""

import dataclasses
import warnings

import keras
from keras import ops

from keras_gates.cells import GatedCell
from keras_gates.cells.step import noting
from keras_gates.convert import converted
from keras_gates.diagnostics import lyapunov

_KERAS_LAYERS = (keras.layers.GRU, keras.layers.LSTM, keras.layers.SimpleRNN, keras.layers.RNN)
_KERAS_CELLS = (keras.layers.GRUCell, keras.layers.LSTMCell, keras.layers.SimpleRNNCell)


@dataclasses.dataclass
class Recurrent:
    """A recurrent layer of a model.

    Attributes:
        name: of the layer, after those of the layers that it is inside of.
        layer: the layer itself.
        cells: its GatedCell; of a stack all of them, from the bottom; of a layer of Keras' own,
            those of its copy by `from_keras`.
    """

    name: str
    layer: keras.layers.RNN
    cells: list

    def refresh(self):
        """Gives copied cells the present weights of their originals."""
        for original, copy in zip(_cells(self.layer), self.cells, strict=True):
            if type(original) in _KERAS_CELLS:
                for name in ("kernel", "recurrent_kernel", "bias"):
                    weight = getattr(original, name)
                    if weight is not None:
                        getattr(copy, name).assign(weight)
            elif original is not copy:
                copy.set_weights(original.get_weights())


def find(model):
    """The recurrent layers of a model, its other layers, and what cannot be looked into.

    Returns:
        A list of `Recurrent`; a list of (name, layer) of the others, the model among them; and a
        list of (name, reason) of recurrent layers that are left out.
    """
    recurrent, others, left_out, seen = [], [], [], set()

    def walk(layer, prefix):
        if id(layer) in seen:  # used twice
            return
        seen.add(id(layer))
        name = prefix + layer.name
        if isinstance(layer, keras.layers.RNN):
            reason = _obstacle(layer)
            if reason is None:
                recurrent.append(Recurrent(name, layer, _gated_cells(layer)))
                return
            left_out.append((name, reason))
        elif isinstance(layer, keras.layers.TimeDistributed):
            inside = layer._flatten_layers(include_self=False)
            if any(isinstance(part, keras.layers.RNN) for part in inside):
                left_out.append((name, "it runs its layer once per step of another time axis"))
        else:
            for child in layer._flatten_layers(include_self=False, recursive=False):
                walk(child, f"{name}/")
        others.append((name, layer))

    for child in model._flatten_layers(include_self=False, recursive=False):
        walk(child, "")
    others.append((model.name, model))
    return recurrent, others, left_out


def describe(left_out):
    """The layers that are left out, as text for an error."""
    return "".join(f". {name!r} is left out: {reason}" for name, reason in left_out)


class ShowingCell:
    """Cells, one above the other, whose output is all that they compute in a time step.

    It runs as the cell of a `keras.layers.RNN`, so that Keras' own loop sees to masks and to the
    direction. Its states are that output, the states of the cells, and the tangent vector of the
    Lyapunov exponent, if it is wanted.

    Args:
        cells: GatedCells.
        features: size of the layer's input. A perturbation δ of all states s may stand beside it,
            one column per unit and state: s_t + δ_t is what goes on from step t. The derivative
            by δ_t is the whole gradient dL/ds_t, before it is clipped at step t.
        tangents: whether the growth of a tangent vector is computed as well.

    Attributes:
        parts: what the columns of the output are, known after the first step: tuples (index of
            the cell, "activated" or "state", name, size). The first is the output of the layer;
            the last, with tangents, is (None, "growth", "growth", 1).
    """

    state_size = output_size = 1  # asked for by keras.layers.RNN, and not used

    def __init__(self, cells, features, tangents=False):
        self.cells, self.features, self.tangents = cells, features, tangents
        self.parts = None

    def initial_states(self, first_inputs, states):
        """The states before the first step, from those of the cells."""
        extra = []
        if self.tangents:
            side_by_side = ops.concatenate(states, axis=-1)
            extra = [lyapunov.first_tangents(side_by_side)]
        outputs, _ = self(first_inputs, [None, *states, *extra])
        hidden = states[-len(self.cells[-1].state_names)]
        others = ops.zeros_like(outputs[:, self.cells[-1].units :])
        return [ops.concatenate([hidden, others], axis=-1), *states, *extra]

    def call(self, inputs, states):
        """One time step: the output, (batch, columns), and the states after it."""
        inputs, moves = inputs[:, : self.features], inputs[:, self.features :]
        states = list(states)[1:]
        before = states[:-1] if self.tangents else states
        found = []
        after = self._advance(inputs, before, moves if moves.shape[-1] else None, found)
        extra = []
        if self.tangents:
            tangent, growth = lyapunov.advance(
                lambda moved: self._from_one_tensor(ops.concatenate([inputs, inputs]), moved),
                ops.concatenate(before, axis=-1),
                states[-1],
            )
            extra = [tangent]
            found.append(((None, "growth", "growth", 1), growth))
        # The output of the layer stands first.
        top = [part[:2] for part, _ in found].index((len(self.cells) - 1, "state"))
        found.insert(0, found.pop(top))
        self.parts = [part for part, _ in found]
        outputs = ops.concatenate([value for _, value in found], axis=-1)
        return outputs, [outputs, *after, *extra]

    __call__ = call

    def _advance(self, inputs, states, moves=None, found=None):
        """The states after a step of all cells; `found` receives pairs of a part and its value."""
        after = []
        for index, cell in enumerate(self.cells):
            count = len(cell.state_names)
            own, states = states[:count], states[count:]
            move = None
            if moves is not None:
                size = count * cell.units
                move, moves = ops.split(moves[:, :size], count, axis=-1), moves[:, size:]
            # GatedRNN adds up its penalties in further states.
            sums = [ops.zeros_like(own[0][:, :1]) for _ in cell.penalties]
            with noting(cell, move) as activated:
                inputs, new = cell(inputs, [*own, *sums], training=False)
            after += new[:count]
            if found is not None:
                noted = [("activated", *pair) for pair in activated.items()]
                noted += [("state", *pair) for pair in zip(cell.state_names, new, strict=False)]
                found += [((index, k, n, v.shape[-1]), v) for k, n, v in noted]
        return after

    def _from_one_tensor(self, inputs, states):
        parts = []
        for units in [cell.units for cell in self.cells for _ in cell.state_names]:
            parts.append(states[:, :units])
            states = states[:, units:]
        return ops.concatenate(self._advance(inputs, parts), axis=-1)


def _obstacle(layer):
    """Why a recurrent layer cannot be looked into, or None."""
    for cell in _cells(layer):
        if isinstance(cell, GatedCell):
            continue
        if type(cell) not in _KERAS_CELLS:
            return (
                f"its cell {type(cell).__name__} is neither a keras_gates.GatedCell nor a cell of "
                "keras.layers"
            )
        if type(layer) not in _KERAS_LAYERS:
            return f"{type(layer).__name__} is a subclass with a loop of its own, maybe"
    return None


def _cells(layer):
    cell = layer.cell
    return list(cell.cells) if isinstance(cell, keras.layers.StackedRNNCells) else [cell]


def _gated_cells(layer):
    cells = _cells(layer)
    if all(isinstance(cell, GatedCell) for cell in cells):
        return cells
    with warnings.catch_warnings():
        # Of activations that a copy could not be saved with, or that nobody chose here.
        warnings.simplefilter("ignore", UserWarning)
        return _cells(converted(layer))
