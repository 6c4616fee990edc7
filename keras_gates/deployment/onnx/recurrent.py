"""Recurrent layers that are traced as one ONNX operator each, instead of a loop.

While a model is traced, such a layer runs on an engine of TensorFlow operations around a stand-in
for the ONNX operator: a `PyFunc` node that is never run, whose inputs are those of the operator and
whose token says which it is. `convert` puts the operator in its place.

ONNX knows masks as lengths: every sequence ends with its padding. A masked step of Keras leaves the
states as they are, so the recurrence over all steps is that over the valid ones alone. These are
moved to the front, the operator gets their number as the length, and its outputs are moved back.
That is exact for every mask, padding on the left and in the middle too.
"""

import contextlib
import dataclasses
import functools
import json

import keras
import numpy as np
import tensorflow as tf
from keras import tree

from keras_gates import engine
from keras_gates._keras.layers import standing_in
from keras_gates.deployment.onnx.operators import NoOperatorError, attributes, operator
from keras_gates.deployment.onnx.scans import STAND_IN, Bodies
from keras_gates.layers import GatedRNN

_STATES = {"GRU": 1, "LSTM": 2, "RNN": 1}  # how many
_LAYERS = (
    GatedRNN,
    keras.layers.RNN,
    keras.layers.GRU,
    keras.layers.LSTM,
    keras.layers.SimpleRNN,
)


@dataclasses.dataclass(frozen=True)
class Runtime:
    """What runs ONNX's recurrent operators, and what it can.

    Attributes:
        name: of the runtime.
        activations: names of those of ONNX that its operators have; None for all.
        lengths: whether its operators obey the lengths of sequences.
    """

    name: str
    activations: frozenset | None = None
    lengths: bool = True


ONNX_RUNTIME = Runtime("ONNX Runtime")


@contextlib.contextmanager
def recurrent_operators(spec, runtime=ONNX_RUNTIME):
    """While it lasts, recurrent layers of a model are traced as ONNX operators where they can be.

    Others are traced as a Scan of their equations or, where these are not known, as a Loop.

    Yields:
        The `Bodies` of Scans, and from the name of each layer that is a Scan or a Loop to a
        sentence that says why; both grow while the model is traced.
    """
    bodies, notes, engines = Bodies(), {}, {}
    with contextlib.ExitStack() as stack:
        stack.enter_context(engine.use(engines.get))
        for layer in spec.layers:
            if hasattr(layer, "use_cudnn"):  # not even both layers of a Bidirectional at once
                stack.enter_context(standing_in(layer, use_cudnn=False))
            if isinstance(layer, keras.layers.RNN) and layer.built:
                found = _Operators(layer, runtime, bodies, notes)
                if found.reason and not found.scan:
                    notes[layer.name] = f"{layer.name} runs as a Loop, because {found.reason}."
                    continue
                engines[layer] = found
                if not isinstance(layer, GatedRNN):
                    loop = functools.partial(found.run, layer)
                    stack.enter_context(standing_in(layer, inner_loop=loop))
            if type(layer) is keras.layers.Bidirectional:
                call = functools.partial(_call_both, layer, engines)
                stack.enter_context(standing_in(layer, call=call))
        yield bodies, notes


class _Operators(engine.Engine):
    """A recurrent layer as ONNX operators, one per cell of a stack, from the bottom, or as a Scan.

    Attributes:
        operators: a list of `Operator`, empty if ONNX or the runtime has none.
        found: what the layer gives, if it is known beforehand, or None.
    """

    def __init__(self, layer, runtime, bodies, notes):
        self.layer, self.runtime, self.notes = layer, runtime, notes
        self.operators, self.reason, self.scan, self.found = [], None, None, None
        try:
            self.operators = _operators(layer, runtime)
        except NoOperatorError as error:
            self.reason = str(error)
        if type(layer) in _LAYERS and (self.reason or not runtime.lengths):
            self.scan = bodies.engine_for(layer)

    def __call__(self, *args, **kwargs):
        raise NotImplementedError("An ONNX operator knows lengths and directions: see `run`.")

    def run(self, layer, sequences, initial_state, mask, training=False):
        if self.found is not None:
            return self.found
        why = self.reason
        if why is None and mask is not None and not self.runtime.lengths:
            op_type = self.operators[0].op_type
            why = f"{self.runtime.name}'s own {op_type} passes over the lengths that masks become"
        if why is None:
            (found,) = _run([self], sequences, mask, [initial_state])
            return found
        kind = "Loop" if self.scan is None else "Scan"
        self.notes[layer.name] = f"{layer.name} runs as a {kind}, because {why}."
        if self.scan is not None:
            return self.scan.run(self.scan.layer, sequences, initial_state, mask, False)
        return type(layer).inner_loop(
            layer, sequences, initial_state, mask
        )  # a stack of Keras' cells


def _operators(layer, runtime):
    """The operators that a layer is; raises NoOperatorError."""
    if type(layer) not in _LAYERS:
        raise NoOperatorError(f"{type(layer).__name__} is a subclass with a loop of its own, maybe")
    stacked = isinstance(layer.cell, keras.layers.StackedRNNCells)
    found = [operator(cell) for cell in (layer.cell.cells if stacked else [layer.cell])]
    for each in found:
        names = {name for name, _, _ in each.activations}
        unknown = sorted(names - (runtime.activations or names))
        if unknown:
            raise NoOperatorError(
                f"{runtime.name}'s own {each.op_type} has no activation {' and '.join(unknown)}"
            )
    return found


def _call_both(layer, engines, sequences, initial_state=None, mask=None, training=None):
    """What stands for the `call` of a Bidirectional: Keras' own, with both directions at hand where
    they can be one operator."""
    pair = [engines.get(part) for part in (layer.forward_layer, layer.backward_layer)]
    given = {"initial_state": initial_state, "mask": mask, "training": training}
    if not _fit_together(*pair) or (mask is not None and not pair[0].runtime.lengths):
        return type(layer).call(layer, sequences, **given)
    if initial_state is None:
        batch = tf.shape(sequences)[0]
        states = [each.layer.get_initial_state(batch_size=batch) for each in pair]
    else:
        half = len(initial_state) // 2
        states = [initial_state[:half], initial_state[half:]]
    for each, found in zip(pair, _run(pair, sequences, mask, states), strict=True):
        each.found = found
    try:
        return type(layer).call(layer, sequences, **given)
    finally:
        for each in pair:
            each.found = None


def _fit_together(forward, backward):
    """Whether the two directions can be one operator.

    Their activations must be the same. ONNX allows others, but ONNX Runtime 1.20 reads past the
    end of the parameters of its RNN then.
    """
    if None in (forward, backward):
        return False
    if not len(forward.operators) == len(backward.operators) == 1:
        return False
    one, other = [
        (each.op_type, each.attributes, each.activations)
        for each in (forward.operators[0], backward.operators[0])
    ]
    return one == other and not forward.layer.go_backwards


def _run(directions, sequences, mask, states):
    """What `inner_loop` returns, for each layer of one operator.

    Args:
        directions: one `_Operators`, or two that fit together, the forward one first.
        sequences: (batch, time, features).
        mask: (batch, time) or None.
        states: for each of `directions` its initial states, each (batch, units).
    """
    packed = _Packed(sequences, mask)
    before = [tree.flatten(each) for each in states]
    after = [[] for _ in directions]
    hidden = packed.sequences
    for operators in zip(*[native.operators for native in directions], strict=True):
        given = [
            tf.stack([its.pop(0) for its in before]) for _ in range(_STATES[operators[0].op_type])
        ]
        backwards = directions[0].layer.go_backwards
        outputs, *last = _stand_in(operators, backwards, hidden, packed.lengths, given)
        for index, its in enumerate(after):
            for new, old in zip(last, given, strict=True):
                its.append(packed.kept(new[index], old[index]))
        hidden = outputs[:, 0]  # for the next cell of a stack, which has one direction
    found = []
    for index, native in enumerate(directions):
        shown = packed.unpacked(native.layer, outputs[:, index], last[0][index])
        found.append((*shown, tree.pack_sequence_as(states[index], after[index])))
    return found


def _stand_in(operators, backwards, x, lengths, states):
    """The outputs of an ONNX operator: (time, directions, batch, units), then the last states.

    Args:
        operators: one `Operator` per direction.
        backwards: whether a single one runs from the end.
        x: (time, batch, features).
        lengths: (batch,), or None.
        states: the initial states, each (directions, batch, units).
    """
    direction = "bidirectional" if operators[1:] else "reverse" if backwards else "forward"
    op_type = operators[0].op_type
    description = {
        "op_type": op_type,
        "masked": lengths is not None,
        "attributes": attributes(operators, direction),
    }
    weights = [np.stack(each) for each in zip(*[o.weights for o in operators], strict=True)]
    outputs = tf.raw_ops.PyFunc(
        input=[x, *weights, *([] if lengths is None else [lengths]), *states],
        token=STAND_IN + json.dumps(description),
        Tout=[tf.float32] * (1 + len(states)),
        name=op_type,
    )
    last = states[0].shape
    shapes = [(x.shape[0], last[0], x.shape[1], last[2]), *[last] * len(states)]
    return [tf.ensure_shape(y, shape) for y, shape in zip(outputs, shapes, strict=True)]


class _Packed:
    """Sequences with their valid steps first, and the way back.

    Attributes:
        sequences: (time, batch, features).
        lengths: (batch,), the number of valid steps and at least 1; None without a mask.
    """

    def __init__(self, sequences, mask):
        self.mask, self.lengths = mask, None
        if mask is not None:
            self.mask = tf.cast(mask, tf.bool)
            self.valid = tf.cast(mask, tf.int32)
            self.rank = tf.cumsum(self.valid, axis=1)  # valid steps so far, with this one
            self.count = tf.reduce_sum(self.valid, axis=1, keepdims=True)
            self.lengths = tf.maximum(self.count[:, 0], 1)
            self.time = tf.shape(mask)[1]
            left = self.time - tf.range(self.time)  # steps from each one on, so at least 1
            order = tf.math.top_k(self.valid * left, self.time).indices
            sequences = tf.gather(sequences, order, batch_dims=1)
        self.sequences = tf.transpose(sequences, (1, 0, 2))

    def kept(self, last, initial):
        """A state after the sequence: that before it, where all steps are masked."""
        return last if self.mask is None else tf.where(self.count > 0, last, initial)

    def unpacked(self, layer, hidden, last):
        """(last output, outputs) as Keras has them.

        Args:
            layer: the layer, which says what of them is wanted.
            hidden: the hidden states of the packed steps, (time, batch, units).
            last: the last of them, (batch, units).
        """
        if layer.return_sequences:
            hidden = tf.transpose(hidden, (1, 0, 2))
        if self.mask is not None:
            # Where in `hidden` the state is that a step shows. A masked step shows that of the
            # valid step before it, as the layer reads, and zero if there is none.
            at = self.rank - (self.valid if layer.go_backwards else 1)
            shown = (at >= 0) & (at < self.count)
            if layer.zero_output_for_mask:
                shown = self.mask
            end = slice(0, 1) if layer.go_backwards else slice(-1, None)
            last = tf.where(shown[:, end], last, 0.0)
            if layer.return_sequences:
                at = tf.clip_by_value(at, 0, self.time - 1)
                hidden = tf.gather(hidden, at, batch_dims=1)
                hidden = tf.where(shown[:, :, None], hidden, 0.0)
        if not layer.return_sequences:
            return last, last[:, None]
        if layer.go_backwards:
            hidden = tf.reverse(hidden, [1])
        return last, hidden
