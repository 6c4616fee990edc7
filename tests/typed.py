"""Calls as a type checker sees them: those that are right, and, marked, those that are not.

`make lint` checks this file. Of an ignored error that does not occur mypy complains as well.
"""

import pathlib

import keras

import keras_gates as kg


class OwnCell(kg.GatedCell):
    def __init__(self, units: int, *, leak: float = 0.1, **kwargs) -> None:
        super().__init__(units, **kwargs)
        self.leak = leak


def right(model: keras.Model, x, folder: pathlib.Path) -> None:
    kg.GatedRNN(8)
    kg.GatedRNN(8, "lstm", output_activation=keras.ops.tanh, return_sequences=True)
    kg.GatedRNN(units=8, cell="gru", gate_activation={"update": "relu"}, reset_after=False)
    kg.GatedRNN(8, grad_clip_norm=1, activation_l1=1e-4, dropout=0.1, name="rnn", dtype="float32")
    kg.GatedRNN(8, initialization="uniform_gates")
    kg.LSTMCell(8, initialization=kg.initializers.Chrono(150, spread="uniform"))
    for name in ("gru", "simple"):
        kg.GatedRNN(8, name, backprop="autodiff")
    kg.GatedRNN(8, OwnCell, leak=0.2)
    kg.GatedRNN(8, cell=OwnCell, leak=0.2)
    kg.GatedRNN(cell=OwnCell(8, leak=0.2, seed=3))
    kg.GRUCell(8, reset_after=False, candidate_activation=keras.layers.LeakyReLU(0.1))
    kg.LSTMCell(8, unit_forget_bias=False, grad_clip_at="preactivation", grad_clip_value=1.0)
    kg.SimpleRNNCell(8, candidate_activation="relu", recurrent_initializer="identity")
    kg.check_activations("gru", "relu", "tanh", reset_after=False).level.upper()
    kg.check_activations(OwnCell, candidate_activation="tanh", leak=0.2)
    kg.from_keras(model, grad_clip_norm=1.0)
    kg.from_torch(x, return_state=True, grad_clip_norm=1.0)
    kg.load_keras2(folder / "model.h5", {"OwnCell": OwnCell}).summary()
    kg.export(model, folder, "litert", batch_size=1, quantize="int8").to_dict()
    kg.diagnose(model, x, x, margin=0.1)
    kg.GateMonitor(x, every=1, on_divergence="stop")
    kg.profile("relu")


def wrong(model: keras.Model) -> None:
    kg.GatedRNN(8, gate_activaton="relu")  # type: ignore[call-overload]
    kg.GatedRNN(8, grad_clip_norm="one")  # type: ignore[call-overload]
    kg.GatedRNN(8, grad_clip_at="output")  # type: ignore[call-overload]
    kg.GatedRNN(8, initialization="chrono")  # type: ignore[call-overload]
    kg.initializers.Chrono("150")  # type: ignore[arg-type]
    kg.GatedRNN(8, backprop="fast")  # type: ignore[call-overload]
    kg.GatedRNN("8")  # type: ignore[call-overload]
    kg.LSTMCell(8, output_activaton="relu")  # type: ignore[call-arg]
    kg.GRUCell(8, reset_aftr=False)  # type: ignore[call-arg]
    kg.GRUCell(8, unit_forget_bias=False)  # type: ignore[call-arg]
    kg.SimpleRNNCell(8, candidate_l2=0.1)  # type: ignore[call-arg]
    kg.check_activations("gru", grad_clip=1.0)  # type: ignore[call-overload]
    kg.from_keras(model, grad_clip=1.0)  # type: ignore[call-arg]
    kg.from_torch({}, grad_clip=1.0)  # type: ignore[call-arg]
    kg.export(model, "path", format="tflite")  # type: ignore[arg-type]
    kg.export(model, "path", quantise="int8")  # type: ignore[call-arg]
    kg.GateMonitor(None, on_divergence="halt")  # type: ignore[arg-type]
