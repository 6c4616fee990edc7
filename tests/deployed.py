"""What the tests of written files share: models of every kind, one process that runs files."""

import contextlib
import json
import subprocess
import sys
import textwrap
import types

import keras
import numpy as np
import pytest
from helpers import MGUCell

import keras_gates as kg
from keras_gates.deployment import verify

# One process for many runs: each line names a runner and its arguments.
WORKER = """
    import json, runpy, sys, traceback
    sys.modules["keras_gates"] = None
    sys.path.insert(0, sys.argv[1])
    for line in sys.stdin:
        sys.argv, before = json.loads(line), dict(sys.modules)
        try:
            runpy.run_path(sys.argv[0], run_name="__main__")
        except Exception:
            print(json.dumps(traceback.format_exc()), flush=True)
        else:
            print("null", flush=True)
        # What one runner does without the next may need.
        blocked = [name for name, module in sys.modules.items() if module is None]
        for name in blocked:
            del sys.modules[name]
            if name in before:
                sys.modules[name] = before[name]
"""


@contextlib.contextmanager
def worker():
    """A process that runs runners, and lasts."""
    command = [sys.executable, "-c", textwrap.dedent(WORKER), str(verify.RUNNERS)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as process:
        yield process
        process.stdin.close()


def run_in(process, command, **_):
    """As `subprocess.run` of a runner, in a `worker`."""
    print(json.dumps(command[1:]), file=process.stdin, flush=True)
    error = json.loads(process.stdout.readline())
    return types.SimpleNamespace(returncode=int(error is not None), stderr=error)


@keras.saving.register_keras_serializable(package="tests_deploy")
class DoublingCell(kg.GRUCell):
    """A cell with a step of its own, which no loop but Keras' can run."""

    def call(self, inputs, states, training=False):
        return super().call(2 * inputs, states, training=training)


CLIP = {"grad_clip_norm": 1.0, "activation_l1": 1e-3}
CELLS = {
    "gru": {"cell": "gru", **CLIP},
    "gru_reset_before": {"cell": "gru", "reset_after": False, "candidate_l1": 1e-3},
    "gru_per_gate": {
        "gate_activation": {"update": "hard_sigmoid", "reset": "softsign_gate"},
        "candidate_activation": "relu",
    },
    "lstm": {
        "cell": "lstm",
        "gate_activation": {"forget": "hard_sigmoid"},
        "candidate_activation": "softsign",
        "output_activation": "tanh",
        "grad_clip_value": 1.0,
        "grad_clip_at": "preactivation",
    },
    "simple": {"cell": "simple", **CLIP},
    "own": {"cell": MGUCell, **CLIP},
    "own_step": {"cell": DoublingCell, **CLIP},
}


def random_weights(model):
    """Weights that leave nothing at zero, biases and normalizations too."""
    rng = np.random.default_rng(3)
    model.set_weights([w + 0.3 * rng.normal(size=w.shape) for w in model.get_weights()])
    return model


def cells_model():
    """Every cell; every other one with the outputs of all steps."""
    frames = keras.Input((None, 3), name="frames")
    return random_weights(
        keras.Model(
            frames,
            {
                name: kg.GatedRNN(4, return_sequences=bool(i % 2), **arguments)(frames)
                for i, (name, arguments) in enumerate(CELLS.items())
            },
        )
    )


def masked_model():
    """A stack of what makes, keeps or uses a mask; what it puts out at masked steps is seen."""
    frames = keras.Input((None, 3))
    first = keras.layers.Masking(-1.0)(frames)
    first = kg.GatedRNN(5, return_sequences=True, name="first", **CLIP)(first)
    hidden = keras.layers.Dropout(0.5)(keras.layers.LayerNormalization()(first))
    hidden = keras.layers.GRU(4, return_sequences=True)(hidden)
    hidden = keras.layers.Dense(4, "relu")(hidden)
    cells = [kg.GRUCell(3), keras.layers.LSTMCell(4)]
    stack = keras.layers.RNN(cells, return_sequences=True, zero_output_for_mask=True, name="stack")
    stacked = stack(hidden)
    last = kg.GatedRNN(4, cell="lstm")(stacked)
    return random_weights(
        keras.Model(frames, [keras.layers.Dense(2, name="scores")(last), first, stacked])
    )


def whole_model():
    """What has to see the end of a sequence, two inputs, two outputs in a list, fixed features."""
    words = keras.Input((None,), dtype="int32", name="words")
    speaker = keras.Input((2,))
    hidden = keras.layers.Embedding(7, 4, mask_zero=True)(words)
    both = keras.layers.Bidirectional(kg.GatedRNN(3, return_sequences=True, **CLIP))(hidden)
    back = kg.GatedRNN(3, cell="simple", go_backwards=True, zero_output_for_mask=True)(both)
    last = keras.layers.Bidirectional(keras.layers.GRU(2), merge_mode="sum")(both)
    joined = keras.layers.Concatenate()([back, last, speaker])
    return random_weights(
        keras.Model([words, speaker], [keras.layers.Dense(2, name="Scores.1")(joined), 2.0 * last])
    )


def stateful_model():
    frames = keras.Input(batch_shape=(2, None, 3), name="frames")
    layer = kg.GatedRNN(3, stateful=True, name="memory", **CLIP)
    return random_weights(keras.Model(frames, layer(frames)))


def small_model(*layers, name="small"):
    return random_weights(
        keras.Sequential([keras.Input((None, 3), name="frames"), *layers], name=name)
    )


@keras.saving.register_keras_serializable(package="tests_deploy")
class Subclassed(keras.Model):
    def __init__(self):
        super().__init__()
        self.layer = kg.GatedRNN(4, return_sequences=True)
        self.head = keras.layers.Dense(2)

    def call(self, x):
        return {"scores": self.head(self.layer(x))}


def subclassed_model():
    model = Subclassed()
    model(np.zeros((1, 5, 3)))
    return model


def bfloat_model():
    return small_model(kg.GatedRNN(4, dtype="mixed_bfloat16"))


MODELS = {
    "cells": (cells_model, True),
    "masked": (masked_model, True),
    "whole": (whole_model, False),
    "stateful": (stateful_model, True),
    "subclassed": (subclassed_model, False),
    "bfloat16": (bfloat_model, True),
}


def contents(folder):
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None
        for path in folder.rglob("*")
    }


def of(*names):
    """Parametrizes a test with the `artifact` of `MODELS` by their names."""
    return pytest.mark.parametrize("artifact", names, indirect=True)
