"""Forecast the next day of an hourly measurement from the week before, which has gaps.

The data are made by a formula: the load of a power grid, with a day, a week, the weather and noise.
One hour in twenty was not measured, and every third meter is new; both are masked. Prints the
verdict before training, the error beside that of simple forecasts, and the diagnosis; writes a
picture, a SavedModel and, where onnxruntime is installed, an ONNX file, which it then runs.

    python examples/forecast.py            # a minute on two cores
"""

import argparse
import importlib.util
import os
import pathlib

os.environ.setdefault("KERAS_BACKEND", "tensorflow")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np

import keras_gates as kg

DAY, WEEK = 24, 7 * 24  # hours


def measurements(days, seed=0):
    """The load in each hour, 0.5 on average: a day with two peaks, less of it at weekends, warm and
    cold spells of some days, and noise."""
    rng = np.random.default_rng(seed)
    hours = np.arange(days * DAY)
    angle = 2 * np.pi * hours / DAY
    day = 0.5 - 0.3 * np.cos(angle - 1) - 0.15 * np.cos(2 * angle)
    weekend = hours // DAY % 7 >= 5
    weather = np.zeros(len(hours))
    for t in range(1, len(hours)):
        weather[t] = 0.98 * weather[t - 1] + 0.03 * rng.normal()
    return day * np.where(weekend, 0.6, 1.0) + weather + 0.02 * rng.normal(size=len(hours))


def windows(load, seed=0):
    """Of every week of the load: x, (samples, 168, 5), and of the day after it: y, (samples, 24).

    The features are the load, and sine and cosine of the time of the day and of the week. A step
    that was not measured is all zeros, and so are those before a meter was there.
    """
    rng = np.random.default_rng(seed)
    hours = np.arange(len(load))
    angles = [2 * np.pi * hours / period for period in (DAY, WEEK)]
    features = np.stack([load, *[f(a) for a in angles for f in (np.sin, np.cos)]], axis=1)
    starts = range(0, len(load) - WEEK - DAY, 7)  # at any hour
    x = np.stack([features[t : t + WEEK] for t in starts])
    y = np.stack([load[t + WEEK : t + WEEK + DAY] for t in starts])
    x[rng.random(x.shape[:2]) < 0.05] = 0
    for sample in x[::3]:
        sample[: rng.integers(1, 5) * DAY] = 0
    return x.astype("float32"), y.astype("float32")


def build():
    layers = [
        keras.Input((None, 5), name="week"),
        keras.layers.Masking(),
        kg.GatedRNN(32, return_sequences=True, grad_clip_norm=0.05, name="hours"),
        kg.GatedRNN(
            32,
            gate_activation="hard_sigmoid",
            candidate_activation="relu",
            grad_clip_norm=0.05,
            activation_l1=1e-4,
            name="summary",
        ),
        keras.layers.Dense(DAY, name="day"),
    ]
    model = keras.Sequential(layers)
    model.compile(keras.optimizers.Adam(5e-3), "mse", metrics=["mae"])
    return model


def run_onnx(path, x):
    """What a program without TensorFlow and keras_gates does."""
    import onnxruntime

    session = onnxruntime.InferenceSession(path)
    return session.run(None, {"week": x})[0]


def draw(x, y, forecast, path):
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(3, 1, figsize=(9, 6), sharex=True, layout="constrained")
    for axis, week, day, its in zip(axes, x, y, forecast, strict=True):
        known = np.where(week.any(axis=-1), week[:, 0], np.nan)
        axis.plot(np.arange(-WEEK, 0), known, color="#0072B2", label="measured")
        axis.plot(np.arange(DAY), day, color="#0072B2", ls=":", label="what came")
        axis.plot(np.arange(DAY), its, color="#D55E00", label="forecast")
    axes[0].legend(ncols=3, fontsize="small")
    axes[-1].set(xlabel="hours from now", xticks=np.arange(-WEEK, DAY + 1, DAY))
    figure.savefig(path, dpi=110)
    plt.close(figure)


def main(argv=None):
    """Returns the mean absolute errors by name, and the reports of the exports."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--days", type=int, default=3 * 365)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("out"))
    arguments = parser.parse_args(argv)
    arguments.out.mkdir(parents=True, exist_ok=True)
    keras.utils.set_random_seed(0)

    x, y = windows(measurements(arguments.days))
    last = int(0.8 * len(x))
    first = last + (WEEK + DAY) // 7 + 1  # no hour is in both
    x_train, y_train, x_test, y_test = x[:last], y[:last], x[first:], y[first:]
    print(kg.check_activations("gru", "hard_sigmoid", "relu", steps=WEEK, grad_clip_norm=0.05))

    model = build()
    monitor = kg.GateMonitor(x_test, y_test, on_divergence="restore")
    options = {"batch_size": 64, "epochs": arguments.epochs, "validation_data": (x_test, y_test)}
    model.fit(x_train, y_train, verbose=2, callbacks=[monitor], **options)
    forecast = model.predict(x_test, verbose=0)
    measured = x_test.any(axis=-1)
    before = np.where(measured, x_test[..., 0], np.nan)
    errors = {
        "the model": np.abs(forecast - y_test).mean(),
        "as the day before": np.nanmean(np.abs(before[:, -DAY:] - y_test)),
        "as a week before": np.nanmean(np.abs(before[:, :DAY] - y_test)),
    }
    for name, error in errors.items():
        print(f"mean absolute error, {name}: {error:.3f}")
    print(kg.diagnose(model, x_test, y_test, batch_size=64))
    draw(x_test[:3], y_test[:3], forecast[:3], arguments.out / "forecast.png")

    path = str(arguments.out / "forecast.onnx")
    reports = [kg.export(model, arguments.out / "forecast", sample=x_test)]
    if importlib.util.find_spec("onnxruntime"):
        reports.append(kg.export(model, path, sample=x_test))
        np.testing.assert_allclose(run_onnx(path, x_test[:3]), forecast[:3], atol=1e-4)
    for report in reports:
        print(report)
    return errors, reports


if __name__ == "__main__":
    main()
