"""Recurrent layers that ONNX has no operator for, as Scans of their cells' own equations.

A Scan runs a graph, its body, once per time step. The products of all inputs with the kernel are
computed before it, at once. As in `recurrent`, the time loop of a layer is replaced by a stand-in
while the model is traced; `convert` puts the Scan in its place, and converts the body for it.
"""

import json
import warnings

import tensorflow as tf

from keras_gates import engine
from keras_gates.convert import from_keras
from keras_gates.deployment.loops import HoistedStep, known_program
from keras_gates.layers import GatedRNN
from keras_gates.verdicts import UnstableActivationsWarning

STAND_IN = "keras_gates:"  # begins the token of a stand-in; its description as JSON follows


class Bodies(list):
    """The bodies of the Scans of a model: a function and the `tf.TensorSpec`s of its arguments."""

    def inner_loop(self, layer):
        """What stands for the `inner_loop` of a layer; None where its equations are not known."""
        gated = _gated(layer)
        program = None if gated is None else known_program(gated)
        if program is None:
            return None

        def inner_loop(sequences, initial_state, mask, training=False):
            scan = self._scan(gated.cell, program)
            return engine.run(gated, scan, sequences, initial_state, mask, False)

        return inner_loop

    def _scan(self, cell, program):
        """Like an `Engine`, without gradients or dropout."""

        def run(sequences, states, mask, dropout, return_sequences, gradients=True):
            inputs = tf.transpose(sequences, (1, 0, 2))
            over_time = HoistedStep(cell, program).project_all_inputs(inputs)
            if mask is not None:
                over_time.append(tf.transpose(tf.cast(mask, tf.bool))[:, :, None])
            tensors = [*states, *over_time]
            specs = [
                tf.TensorSpec((None, x.shape[-1]), x.dtype, f"given_{index}")
                for index, x in enumerate(tensors)
            ]
            description = {"op_type": "Scan", "body": len(self), "over_time": len(over_time)}
            self.append((_body(cell, program, mask is not None), specs))
            *last, hidden = tf.raw_ops.PyFunc(
                input=tensors,
                token=STAND_IN + json.dumps(description),
                Tout=[state.dtype for state in (*states, states[0])],
                name="Scan",
            )
            last = [tf.ensure_shape(x, state.shape) for x, state in zip(last, states, strict=True)]
            if not return_sequences:
                return None, last
            hidden = tf.transpose(tf.ensure_shape(hidden, (None, None, cell.units)), (1, 0, 2))
            return tf.ensure_shape(hidden, (*sequences.shape[:2], cell.units)), last

        return run


def _body(cell, program, masked):
    """One time step: from the states, and what a Scan reads, to the states and the output."""
    count = len(cell.state_names)

    def body(*given):
        states, x = given[:count], given[count:]
        x, mask = (x[:-1], x[-1]) if masked else (x, None)
        after = HoistedStep(cell, program).advance(x, states, mask)
        found = {f"state_{index}": state for index, state in enumerate(after)}
        return {**found, "hidden": tf.identity(after[0])}

    return body


def _gated(layer):
    """The layer as a GatedRNN, or None."""
    if type(layer) is GatedRNN:
        return layer
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UnstableActivationsWarning)
        try:
            gated = from_keras(layer)
        except ValueError:  # cells of the user's own
            return None
    return gated if isinstance(gated, GatedRNN) else None
