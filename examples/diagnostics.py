"""What is this network doing? Three GRUs on the digits, looked into while they learn and after.

Trains the default pair, tanh gates, and tanh gates with clipped gradients on scikit-learn's
handwritten digits, read pixel by pixel (64 steps). Prints the verdict before training and the
diagnosis after it, and writes two pictures: one of the networks as they are then, and one of what a
GateMonitor recorded on the way.

    python examples/diagnostics.py            # about two minutes on two cores
"""

import argparse
import os
import pathlib
import warnings

os.environ.setdefault("KERAS_BACKEND", "tensorflow")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np

import keras_gates as kg
from keras_gates import diagnostics

LAYERS = {
    "sigmoid gates": {},
    "tanh gates": {"gate_activation": "tanh"},
    "tanh gates, clipped": {"gate_activation": "tanh", "grad_clip_norm": 0.05},
}
UNITS, BATCH = 32, 32
STYLES = (("#0072B2", "-"), ("#D55E00", "--"), ("#009E73", "-."))


def digits():
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(images))
    return (images[order, :, None] / 16).astype("float32"), labels[order]


def train(name, arguments, x, y, epochs):
    keras.utils.set_random_seed(1)
    with warnings.catch_warnings():
        # The verdict has just been printed.
        warnings.simplefilter("ignore", kg.UnstableActivationsWarning)
        layer = kg.GatedRNN(UNITS, name=name, **arguments)
    model = keras.Sequential([keras.Input((None, 1), name="pixels"), layer, keras.layers.Dense(10)])
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(5e-3), loss, metrics=["accuracy"])
    monitor = diagnostics.GateMonitor(x[:256], y[:256], unit="step", every=10)
    model.fit(x, y, batch_size=BATCH, epochs=epochs, verbose=0, callbacks=[monitor])
    return model, monitor


def draw(traces, path):
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(2, 3, figsize=(13, 7), layout="constrained")
    diagnostics.plot_activation("hard_sigmoid", axes[0, 0])
    diagnostics.plot_gate(traces["sigmoid gates"], "update", axes[0, 1])
    diagnostics.plot_gate(traces["tanh gates"], "update", axes[0, 2])
    diagnostics.plot_saturation(traces["tanh gates"], "update", axes[1, 0])
    diagnostics.plot_gradient_norms(traces, axes[1, 1])
    diagnostics.plot_states(traces["tanh gates"], axes[1, 2])
    figure.savefig(path, dpi=110)
    plt.close(figure)


def draw_monitors(monitors, path):
    """What was recorded on the way, from the name of a model to its monitor."""
    import matplotlib.pyplot as plt

    figures = {
        "sample/loss": "loss on the sample",
        "gradient/largest": "largest norm of dL/dh",
        "hidden/norm": "norm of the state",
        "update/p5": "update gate, 5% are below",
    }
    figure, axes = plt.subplots(2, 2, figsize=(10, 6), sharex=True, layout="constrained")
    for (name, label), axis in zip(figures.items(), axes.flat, strict=True):
        for (model, monitor), (color, style) in zip(monitors.items(), STYLES, strict=True):
            (layer,) = monitor.diagnosis.layers
            history = monitor.history
            values = history.get(name) or history[f"{layer.name}/{name}"]
            axis.plot(history["step"], values, color=color, ls=style, label=model)
        axis.set(title=label)
    axes[0, 1].set(yscale="log")
    axes[0, 0].legend(frameon=False)
    for axis in axes[-1]:
        axis.set(xlabel="training step")
    figure.savefig(path, dpi=110)
    plt.close(figure)


def main(argv=None):
    """Prints verdicts and diagnoses; returns the diagnoses by name."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--samples", type=int, default=None, help="default: all, 1,797")
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("out"))
    arguments = parser.parse_args(argv)
    arguments.out.mkdir(parents=True, exist_ok=True)
    x, y = digits()
    x, y = x[: arguments.samples], y[: arguments.samples]
    found, traces, monitors = {}, {}, {}
    for name, layer in LAYERS.items():
        print(f"\n=== {name}\n{kg.check_activations('gru', **layer)}\n")
        identifier = name.replace(",", "").replace(" ", "_")
        model, monitors[name] = train(identifier, layer, x, y, arguments.epochs)
        found[name] = diagnostics.diagnose(model, x[:256], y[:256], batch_size=BATCH)
        print(found[name])
        (traces[name],) = diagnostics.traces(model, x[:256], y[:256], batch_size=BATCH)
    draw(traces, arguments.out / "diagnostics.png")
    draw_monitors(monitors, arguments.out / "diagnostics_monitor.png")
    print(f"written: {arguments.out / 'diagnostics.png'}, diagnostics_monitor.png")
    return found


if __name__ == "__main__":
    main()
