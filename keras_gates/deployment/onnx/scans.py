"""Recurrent layers that ONNX has no operator for, as Scans of their cells' own equations.

A Scan runs a graph, its body, once per time step. The products of all inputs with the kernel are
computed before it, at once. As in `recurrent`, there is a stand-in while the model is traced;
`convert` puts the Scan in its place, and converts the body for it.
"""

import json
import warnings

import tensorflow as tf

from keras_gates import engine
from keras_gates.convert import converted
from keras_gates.deployment.loops import HoistedStep, known_program
from keras_gates.layers import GatedRNN
from keras_gates.verdicts import UnstableActivationsWarning

STAND_IN = "keras_gates:"  # begins the token of a stand-in; its description as JSON follows


class Bodies(list):
    """The bodies of the Scans of a model: a function and the `tf.TensorSpec`s of its arguments."""

    def engine_for(self, layer):
        """The `Engine` of a layer as a Scan; None where its equations are not known."""
        gated = _gated(layer)
        program = None if gated is None else known_program(gated)
        return None if program is None else _Scan(self, gated, program)


class _Scan(engine.Engine):
    """Without gradients or dropout."""

    def __init__(self, bodies, layer, program):
        self.bodies, self.layer = bodies, layer
        self.step = HoistedStep(layer.cell, program)

    def __call__(self, sequences, states, mask, dropout, return_sequences, gradients=True):
        over_time = self.step.project_all_inputs(tf.transpose(sequences, (1, 0, 2)))
        if mask is not None:
            over_time.append(tf.transpose(tf.cast(mask, tf.bool))[:, :, None])
        tensors = [*states, *over_time]
        specs = [
            tf.TensorSpec((None, x.shape[-1]), x.dtype, f"given_{index}")
            for index, x in enumerate(tensors)
        ]
        description = {"op_type": "Scan", "body": len(self.bodies), "over_time": len(over_time)}
        self.bodies.append((_body(self.step, mask is not None), specs))
        *last, hidden = tf.raw_ops.PyFunc(
            input=tensors,
            token=STAND_IN + json.dumps(description),
            Tout=[state.dtype for state in (*states, states[0])],
            name="Scan",
        )
        last = [tf.ensure_shape(x, state.shape) for x, state in zip(last, states, strict=True)]
        if not return_sequences:
            return None, last
        units = self.layer.cell.units
        hidden = tf.transpose(tf.ensure_shape(hidden, (None, None, units)), (1, 0, 2))
        return tf.ensure_shape(hidden, (*sequences.shape[:2], units)), last


def _body(step, masked):
    """One time step: from the states, and what a Scan reads, to the states and the output."""
    count = len(step.cell.state_names)

    def body(*given):
        states, x = given[:count], given[count:]
        x, mask = (x[:-1], x[-1]) if masked else (x, None)
        after = step.advance(x, states, mask)
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
            gated = converted(layer)
        except ValueError:  # cells of the user's own
            return None
    return gated if isinstance(gated, GatedRNN) else None
