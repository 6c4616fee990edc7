"""How long a layer trains and runs here, against what Keras takes for the same."""

import dataclasses
import logging
import time
from typing import Any

import keras
import numpy as np

from keras_gates.cells.arguments import refuse_given
from keras_gates.layers import GatedRNN
from keras_gates.validation import positive_integer

_KERAS = {"gru": keras.layers.GRU, "lstm": keras.layers.LSTM, "simple": keras.layers.SimpleRNN}
# What keras.layers call these arguments, which are all that they have of a cell's.
_KERAS_NAMES = {"gate_activation": "recurrent_activation", "candidate_activation": "activation"}
OURS, LOOP = "keras_gates", "Keras' own loop"
_log = logging.getLogger("keras_gates")


@dataclasses.dataclass
class Timing:
    """What `compare` measures. `print` shows it.

    Attributes:
        layer: the cell and its arguments, in words.
        batch, steps, features, units: sizes.
        backend: of Keras.
        path: what the layer of keras_gates runs in, as its `explain` says.
        train, predict: from the name of each side to the median seconds of one training step, and
            of one prediction, of a batch.
    """

    layer: str
    batch: int
    steps: int
    features: int
    units: int
    backend: str
    path: str
    train: dict[str, float]
    predict: dict[str, float]

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    def __str__(self) -> str:
        width = 2 + max(map(len, self.train))
        lines = [
            f"{self.layer}: {self.units} units, batch {self.batch}, {self.steps} steps, "
            f"{self.features} features, on {self.backend}",
            f"  {'':<{width}}{'training step':<24}prediction",
        ]
        for side in self.train:
            columns = [self._column(of[side], of[OURS]) for of in (self.train, self.predict)]
            lines.append(f"  {side:<{width}}{columns[0]:<24}{columns[1]}".rstrip())
        return "\n".join([*lines, f"  {self.path}"])

    def _column(self, seconds, ours):
        text = f"{1e3 * seconds:.3g} ms"
        return text if seconds is ours else f"{text}  x {seconds / ours:.2f}"


def compare(cell, units=64, *, batch=32, steps=100, features=32, rounds=5, **arguments):
    """Measures a GatedRNN, the same in Keras' own loop, and Keras' layer where there is one.

    Each is the first layer of a model with a Dense layer on top, on random data. What else it
    returns, states or gates, the model returns too, and is trained on. The sides take turns, so
    that a machine that speeds up and slows down does so for all.

    Args:
        cell: the name or class of a cell.
        units, batch, steps, features: sizes.
        rounds: medians are over so many.
        **arguments: of the cell, or of the layer but for `backprop`.

    Returns:
        A `Timing`.
    """
    refuse_given(
        "bench", arguments, ("backprop",), "it measures the layer with 'auto' and with 'autodiff'"
    )
    shape = [positive_integer(n, v) for n, v in (("steps", steps), ("features", features))]
    rng = np.random.default_rng(0)
    x = rng.normal(size=(positive_integer("batch", batch), *shape)).astype("float32")
    ours = GatedRNN(units, cell, **arguments)
    layers = {OURS: ours}
    if cell in _KERAS and {*arguments} <= {*_KERAS_NAMES}:
        theirs = {_KERAS_NAMES[name]: value for name, value in arguments.items()}
        if not isinstance(arguments.get("gate_activation"), dict):
            layers[f"keras.layers.{_KERAS[cell].__name__}"] = _KERAS[cell](units, **theirs)
    layers[LOOP] = GatedRNN(units, cell, backprop="autodiff", **arguments)
    calls: dict[str, dict] = {"train": {}, "predict": {}}
    for side, layer in layers.items():
        model = _model(layer, shape, batch)
        sizes = [(batch, *output.shape[1:]) for output in model.outputs]
        y = [rng.normal(size=size).astype("float32") for size in sizes]
        calls["train"][side] = lambda model=model, y=y: model.train_on_batch(x, y)
        calls["predict"][side] = lambda model=model: model.predict_on_batch(x)
    found = {}
    for what, of in calls.items():
        _log.info("measuring %s: %s", what, ", ".join(of))
        found[what] = alternate(of, positive_integer("rounds", rounds))
    named = [f"{name}={value!r}" for name, value in arguments.items()]
    name = cell if isinstance(cell, str) else cell.__name__
    return Timing(
        layer=f"{name}({', '.join(named)})" if named else name,
        batch=batch,
        steps=steps,
        features=features,
        units=units,
        backend=keras.backend.backend(),
        path=_path(ours),
        **found,
    )


def _model(layer, shape, batch):
    inputs = keras.Input(shape, batch_size=batch if getattr(layer, "stateful", False) else None)
    output, *others = keras.tree.flatten(layer(inputs))
    model = keras.Model(inputs, [keras.layers.Dense(1)(output), *others])
    model.compile("sgd", ["mse"] * len(model.outputs))
    return model


def _path(layer):
    first, *lines = layer.explain().splitlines()
    traced = [line.strip() for line in lines if "when last traced" in line]
    return "; ".join(traced) or first


def alternate(calls, rounds, least=0.02, pauses=None):
    """From name to the median time of one call, in seconds; the sides take turns in every round.

    A turn repeats its call until it lasts `least` seconds, after one that is not timed: memory that
    the side before gave back has to be got again, which happens to nobody who trains one model.

    Args:
        calls: from name to a function.
        rounds: how many.
        least: seconds.
        pauses: from name to seconds to wait after each of its turns.
    """
    repeats = {}
    for name, call in calls.items():
        call()
        started = time.perf_counter()
        call()
        repeats[name] = max(1, int(least / (time.perf_counter() - started)))
    times: dict[str, list] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            call()
            started = time.perf_counter()
            for _ in range(repeats[name]):
                call()
            times[name].append((time.perf_counter() - started) / repeats[name])
            time.sleep((pauses or {}).get(name, 0))
    return {name: float(np.median(values)) for name, values in times.items()}
