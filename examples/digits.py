"""Handwritten digits, read row by row and pixel by pixel, with several pairs of activations.

Trains the same small GRU with each pair of gate and candidate activations on two tasks, the 8x8
images of scikit-learn as 8 steps of 8 features and as 64 steps of 1 feature. Prints a table per
task, draws the learning curves and the gradient norm along time, saves the best model, and writes
it as a SavedModel, which is run with TensorFlow alone.

    python examples/digits.py                         # a few minutes on two cores
    python examples/digits.py --epochs 1 --seeds 1    # a look at everything
"""

import argparse
import dataclasses
import json
import os
import pathlib
import sys
import time
import warnings

# Read when TensorFlow is imported. The tensors are so small that handing them from thread to
# thread takes longer than computing them.
os.environ.setdefault("KERAS_BACKEND", "tensorflow")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("TF_NUM_INTEROP_THREADS", "1")
os.environ.setdefault("TF_NUM_INTRAOP_THREADS", "1")

import keras
import numpy as np
import tensorflow as tf
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

import keras_gates as kg
from keras_gates import export

UNITS = 32
BATCH = 32
LEARNING_RATE = 0.01
TRAINING_IMAGES = 1440  # of 1797

# Bound on each sample's gradient of the mean loss of a batch. The output of an untrained model
# sends about 1 / BATCH = 0.03 to the last step; growth from there on is what the bound stops.
BOUND = 0.05

# gate activation + candidate activation -> arguments of GatedRNN
PAIRS = {
    "sigmoid + tanh (default)": {},
    "sigmoid + softsign": {"candidate_activation": "softsign"},
    "hard_sigmoid + relu": {
        "gate_activation": "hard_sigmoid",
        "candidate_activation": "relu",
    },
    "hard_sigmoid + relu, clipped, L1": {
        "gate_activation": "hard_sigmoid",
        "candidate_activation": "relu",
        "grad_clip_norm": BOUND,
        "activation_l1": 1e-2,
    },
    "tanh + tanh": {"gate_activation": "tanh"},
    "tanh + tanh, clipped": {"gate_activation": "tanh", "grad_clip_norm": BOUND},
    "relu + tanh": {"gate_activation": "relu"},
    "relu + tanh, clipped": {"gate_activation": "relu", "grad_clip_norm": BOUND},
    "sigmoid + sigmoid": {"candidate_activation": "sigmoid"},
}

# Colours of Okabe and Ito, which colour-blind readers tell apart; a clipped pair has the colour
# of its activations, and a line of its own for prints without colour.
LINES = {
    "sigmoid + tanh (default)": ("#000000", "-"),
    "sigmoid + softsign": ("#009E73", "-."),
    "hard_sigmoid + relu": ("#0072B2", "--"),
    "hard_sigmoid + relu, clipped, L1": ("#0072B2", "-"),
    "tanh + tanh": ("#D55E00", "--"),
    "tanh + tanh, clipped": ("#D55E00", "-"),
    "relu + tanh": ("#E69F00", "--"),
    "relu + tanh, clipped": ("#E69F00", "-"),
    "sigmoid + sigmoid": ("#CC79A7", ":"),
}


@dataclasses.dataclass
class Task:
    """A way to read the images: (steps, features) each."""

    name: str
    steps: int
    epochs: int

    @property
    def features(self):
        return 64 // self.steps

    def data(self):
        """Training images and digits, test images and digits."""
        images, digits = load_digits(return_X_y=True)
        images = (images / 16).astype("float32").reshape(-1, self.steps, self.features)
        x, x_test, y, y_test = train_test_split(
            images, digits, train_size=TRAINING_IMAGES, stratify=digits, random_state=0
        )
        return x, y, x_test, y_test


ROWS = Task("row by row", steps=8, epochs=6)
PIXELS = Task("pixel by pixel", steps=64, epochs=10)


@dataclasses.dataclass
class Run:
    """What one training leaves: of one pair, with one seed."""

    pair: str
    seed: int
    curve: list  # test accuracy before training and after every epoch
    largest_norm: float  # see `Monitor`
    weights_at_largest_norm: list
    weights: list
    mean_size: float  # see `sizes`
    sparsity: float
    diverged: bool


# ---------------------------------------------------------------------- model and measurements


def build_model(task, options):
    """A GRU and a softmax over the ten digits, compiled."""
    model = keras.Sequential(
        [
            keras.Input((None, task.features), name="pixels"),
            kg.GatedRNN(UNITS, cell="gru", **options),
            keras.layers.Dense(10, activation="softmax", name="digits"),
        ]
    )
    model.compile(
        keras.optimizers.Adam(LEARNING_RATE),
        "sparse_categorical_crossentropy",
        # A whole epoch per call of the training function, which saves time on so small a model.
        steps_per_execution=TRAINING_IMAGES // BATCH,
        jit_compile=False,
    )
    # Keras would do so in the first training step, and TensorFlow then trace that step twice.
    model.optimizer.build(model.trainable_variables)
    return model


def with_weights(task, options, weights):
    """`build_model`, with these weights."""
    model = build_model(task, options)
    model.set_weights(weights)
    return model


def hidden_states(cell, x, step=None):
    """The hidden state after every time step, a list of (samples, units).

    Args:
        cell: the cell of a GatedRNN.
        x: (samples, steps, features).
        step: what to call instead of the cell, such as `tf.function(cell)`.
    """
    step = step or cell
    # One running sum per penalty rides along with the states, as in GatedRNN.
    sums = [tf.zeros((len(x), 1)) for _ in cell.penalties]
    states = [*cell.get_initial_state(len(x)), *sums]
    hidden = []
    for t in range(x.shape[1]):
        _, states = step(x[:, t], states)
        hidden.append(states[0])
    return hidden


def gradient_norms(model, x, y, step=None):
    """Norm of the gradient that BPTT takes back through each time step, (steps, samples).

    That is, for each sample, the L2 norm of dL/dh_t as it enters the equations of step t: after
    gradient clipping, where the model clips. L is the mean cross-entropy of the batch `x`, `y`,
    as in training with batches of this size; the gradient of a sample's own loss is larger by
    the batch size.
    """
    layer, dense = model.layers
    with tf.GradientTape() as tape:
        hidden = hidden_states(layer.cell, x, step)
        losses = keras.losses.sparse_categorical_crossentropy(y, dense(hidden[-1]))
        loss = tf.reduce_mean(losses)
    # float64, so that squares of exploded gradients do not overflow.
    gradients = np.array([g.numpy() for g in tape.gradient(loss, hidden)], dtype="float64")
    norms = np.linalg.norm(gradients, axis=-1)
    # The tape gives the gradient as it arrives at h_t: clipped at all later steps, not yet at t.
    bound = layer.cell.grad_clip_norm
    return norms if bound is None else np.minimum(norms, bound)


def sizes(model, x):
    """The mean of |h|, and the share of zeros, over all values of the hidden state.

    NaN if a hidden state is not finite.
    """
    hidden = np.abs(hidden_states(model.layers[0].cell, x))
    if not np.isfinite(hidden).all():
        return np.nan, np.nan
    return float(np.mean(hidden)), float(np.mean(hidden < 1e-6))


def accuracy(probabilities, digits):
    """Share of the images whose digit is the most probable one; NaN is no answer."""
    answered = np.isfinite(probabilities).all(axis=-1)
    return float(np.mean(answered & (np.argmax(probabilities, axis=-1) == digits)))


def all_finite(arrays):
    return all(np.isfinite(a).all() for a in arrays)


class Monitor(keras.callbacks.Callback):
    """Test accuracy and largest gradient norm after every epoch, on a progress bar.

    The largest gradient norm is the finite maximum of `gradient_norms` over the time steps and the
    samples of one fixed training batch, and over all epochs, the start included. Training stops
    after an epoch whose loss is not finite.
    """

    def __init__(self, data, epochs):
        super().__init__()
        x, y, self.x_test, self.y_test = data
        self.batch = x[:BATCH], y[:BATCH]
        self.epochs = epochs
        self.curve = []
        self.largest_norm = -np.inf
        self.weights_at_largest_norm = None

    def on_train_begin(self, logs=None):
        # On a terminal a bar that moves; elsewhere, such as in a log, its last line.
        self.bar = keras.utils.Progbar(
            self.epochs,
            verbose=1 if sys.stdout.isatty() else 2,
            stateful_metrics=["loss", "test_accuracy", "gradient_norm"],
            unit_name="epoch",
        )
        # Traced at its first call, which is under a GradientTape: elsewhere a cell does not clip.
        self.step = tf.function(self.model.layers[0].cell)
        self._measure_accuracy()
        self._measure_norm()

    def on_epoch_end(self, epoch, logs=None):
        values = [
            ("loss", logs["loss"]),
            ("test_accuracy", self._measure_accuracy()),
            ("gradient_norm", self._measure_norm()),
        ]
        self.model.stop_training = not np.isfinite(logs["loss"])
        last = self.model.stop_training or epoch + 1 == self.epochs
        self.bar.update(epoch + 1, values, finalize=last)

    def _measure_accuracy(self):
        self.curve.append(accuracy(self.model.predict_on_batch(self.x_test), self.y_test))
        return self.curve[-1]

    def _measure_norm(self):
        norm = gradient_norms(self.model, *self.batch, self.step).max()
        if self.largest_norm < norm < np.inf:
            self.largest_norm = float(norm)
            self.weights_at_largest_norm = self.model.get_weights()
        return norm


def train(task, data, pair, seed, epochs):
    """One `Run`."""
    keras.utils.clear_session()
    keras.utils.set_random_seed(seed)
    model = build_model(task, PAIRS[pair])
    monitor = Monitor(data, epochs)
    x, y, x_test, _ = data
    history = model.fit(
        x, y, batch_size=BATCH, epochs=epochs, verbose=0, callbacks=[monitor]
    ).history
    weights = model.get_weights()
    mean_size, sparsity = sizes(model, x_test)
    diverged = not (np.isfinite(history["loss"]).all() and all_finite(weights))
    return Run(
        pair=pair,
        seed=seed,
        # A run that stopped early stays where it stopped.
        curve=monitor.curve + [monitor.curve[-1]] * (1 + epochs - len(monitor.curve)),
        largest_norm=monitor.largest_norm,
        weights_at_largest_norm=monitor.weights_at_largest_norm,
        weights=weights,
        mean_size=mean_size,
        sparsity=sparsity,
        diverged=diverged,
    )


def train_all(tasks, pairs, seeds):
    """From each task's name to its runs, pair after pair."""
    total, number, runs = len(tasks) * len(pairs) * seeds, 0, {}
    for task in tasks:
        data, runs[task.name] = task.data(), []
        for pair in pairs:
            for seed in range(seeds):
                number += 1
                print(f"[{number:2}/{total}] {task.name} | {pair} | seed {seed}", flush=True)
                run = train(task, data, pair, seed, task.epochs)
                if run.diverged:
                    print("        diverged: the loss or a weight is not finite")
                runs[task.name].append(run)
    return runs


# ---------------------------------------------------------------------- table


def summarize(runs):
    """One row per pair: statistics over its seeds."""
    pairs = dict.fromkeys(run.pair for run in runs)
    return [_row(pair, [run for run in runs if run.pair == pair]) for pair in pairs]


def _row(pair, runs):
    last = [run.curve[-1] for run in runs]
    finite = [run for run in runs if np.isfinite(run.mean_size)]
    return {
        "pair": pair,
        "accuracy": float(np.mean(last)),
        "accuracy_deviation": float(np.std(last)),
        "mean_size": float(np.mean([run.mean_size for run in finite])) if finite else None,
        "sparsity": float(np.mean([run.sparsity for run in finite])) if finite else None,
        "largest_gradient_norm": max(run.largest_norm for run in runs),
        "diverged": sum(run.diverged for run in runs),
        "seeds": len(runs),
        "accuracy_by_epoch": np.mean([run.curve for run in runs], axis=0).tolist(),
    }


def format_table(rows):
    """The rows as text."""
    head = ("gate + candidate", "test accuracy", "|h|", "zeros", "largest gradient", "diverged")
    lines = [head, *map(_cells, rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    lines.insert(1, tuple("-" * width for width in widths))
    return "\n".join(
        "  ".join([line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])])
        for line in lines
    )


def _cells(row):
    finite = row["mean_size"] is not None
    return (
        row["pair"],
        f"{row['accuracy']:.3f} ± {row['accuracy_deviation']:.3f}",
        f"{row['mean_size']:.2g}" if finite else "-",
        f"{row['sparsity']:.1%}" if finite else "-",
        f"{row['largest_gradient_norm']:.2g}",
        f"{row['diverged']} of {row['seeds']}" if row["diverged"] else "no",
    )


LEGEND = f"""\
test accuracy: mean ± standard deviation over the seeds, after the last epoch
|h|, zeros: mean size of the hidden state's values, and share of them with |h| < 1e-6, over all
  test images and time steps
largest gradient: largest finite norm of dL/dh_t that went back through a time step, over the
  samples of one training batch, time steps, epochs and seeds; clipped pairs have the bound {BOUND}
diverged: seeds with a loss or a weight that is not finite; their predictions count as wrong"""


# ---------------------------------------------------------------------- figure


def steepest(runs):
    """The run without clipping that met the largest finite gradient norm; any, if all clip."""
    unclipped = [run for run in runs if "grad_clip_norm" not in PAIRS[run.pair]]
    return max(unclipped or runs, key=lambda run: run.largest_norm)


def norms_with_and_without(task, run):
    """`gradient_norms` at the weights of the largest norm, with and without clipping.

    Each is the maximum over the samples of a training batch: (steps,).
    """
    x, y, _, _ = task.data()
    models = [
        with_weights(task, {**PAIRS[run.pair], **options}, run.weights_at_largest_norm)
        for options in ({"grad_clip_norm": BOUND}, {"grad_clip_norm": None})
    ]
    return [gradient_norms(model, x[:BATCH], y[:BATCH]).max(axis=1) for model in models]


def draw(tasks, rows, runs, path):
    """The figure: learning curves of every task, and the gradient norm along time."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(2, 2, figsize=(11, 8.5), layout="constrained")
    for axis, task in zip(axes[0], tasks, strict=True):
        _draw_curves(axis, task, rows[task.name])
    _draw_norms(axes[1, 0], PIXELS, steepest(runs[PIXELS.name]))
    axes[1, 1].axis("off")
    handles, labels = axes[0, 0].get_legend_handles_labels()
    axes[1, 1].legend(
        handles,
        labels,
        loc="center",
        frameon=False,
        fontsize=11,
        handlelength=4,
        title="gate + candidate activation",
        title_fontsize=11,
    )
    axes[1, 1].text(0.5, 0, "A diverged run predicts NaN: accuracy 0.", ha="center")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def _draw_curves(axis, task, rows):
    for row in rows:
        color, style = LINES[row["pair"]]
        curve = row["accuracy_by_epoch"]
        axis.plot(curve, color=color, linestyle=style, lw=1.8, label=row["pair"])
    axis.set(
        title=f"Read {task.name} ({task.steps} steps)",
        xlabel="epoch",
        ylabel="test accuracy, mean over seeds",
        ylim=(-0.02, 1.02),
    )
    axis.locator_params(axis="x", integer=True)
    axis.grid(alpha=0.3)


def _draw_norms(axis, task, run):
    clipped, unclipped = norms_with_and_without(task, run)
    steps, color = range(1, len(clipped) + 1), LINES[run.pair][0]
    axis.semilogy(steps, unclipped, color=color, linestyle="--", label="without clipping")
    axis.semilogy(steps, clipped, color=color, label="with clipping")
    axis.axhline(BOUND, color="#000000", linestyle=":", lw=1, label=f"bound {BOUND}")
    axis.set(
        title=f"Gradient along time: {run.pair}, the same weights",
        xlabel="time step t (BPTT runs from right to left)",
        ylabel="largest norm of dL/dh_t in a batch",
    )
    axis.legend(loc="best")
    axis.grid(alpha=0.3)


# ---------------------------------------------------------------------- saving and serving


def best_run(runs, rows):
    """The best seed of the pair with the best mean accuracy."""
    best = max(rows, key=lambda row: row["accuracy"])["pair"]
    return max((run for run in runs if run.pair == best), key=lambda run: run.curve[-1])


def save_and_export(task, run, out):
    """Saves the model and writes it as a SavedModel; returns the `ExportReport`."""
    model = with_weights(task, PAIRS[run.pair], run.weights)
    model.save(out / "best.keras")
    _, _, images, _ = task.data()
    # A model whose gradient explodes amplifies rounding as well.
    return export(model, out / "saved_model", sample=images, tolerance=1e-3)


# ---------------------------------------------------------------------- command line


def parse_arguments(argv):
    def positive(text):
        number = int(text)
        if number < 1:
            raise argparse.ArgumentTypeError(f"must be at least 1, not {number}")
        return number

    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--epochs",
        type=positive,
        help=f"per run (default: {ROWS.epochs} {ROWS.name}, {PIXELS.epochs} {PIXELS.name})",
    )
    parser.add_argument("--seeds", type=positive, default=2, help="runs per pair (default: 2)")
    parser.add_argument(
        "--pairs",
        nargs="+",
        choices=PAIRS,
        default=list(PAIRS),
        metavar="PAIR",
        help=f"which to train (default: all of {', '.join(map(repr, PAIRS))})",
    )
    parser.add_argument(
        "--out", type=pathlib.Path, default=pathlib.Path("out"), help="folder (default: out)"
    )
    parser.add_argument(
        "--figure", type=pathlib.Path, help="where the figure goes (default: OUT/digits.png)"
    )
    arguments = parser.parse_args(argv)
    arguments.figure = arguments.figure or arguments.out / "digits.png"
    return arguments


def main(argv=None):
    """Runs it all; returns what it also writes to results.json."""
    if keras.backend.backend() != "tensorflow":
        raise SystemExit("This example needs the TensorFlow backend: KERAS_BACKEND=tensorflow")
    arguments, started = parse_arguments(argv), time.time()
    # TensorFlow warns of functions traced again and again; each model here has its own.
    tf.get_logger().setLevel("ERROR")
    # What is said of unstable pairs beforehand is what the tables are to show.
    warnings.simplefilter("ignore", kg.UnstableActivationsWarning)
    arguments.out.mkdir(parents=True, exist_ok=True)
    tasks = [
        dataclasses.replace(task, epochs=arguments.epochs or task.epochs) for task in (ROWS, PIXELS)
    ]

    runs = train_all(tasks, arguments.pairs, arguments.seeds)
    rows = {name: summarize(task_runs) for name, task_runs in runs.items()}
    for task in tasks:
        print(f"\n{task.name}; epochs: {task.epochs}, seeds: {arguments.seeds}\n")
        print(format_table(rows[task.name]))
    print(f"\n{LEGEND}\n")

    draw(tasks, rows, runs, arguments.figure)
    best = best_run(runs[PIXELS.name], rows[PIXELS.name])
    report = save_and_export(PIXELS, best, arguments.out)
    print(f"best {PIXELS.name}: {best.pair}, seed {best.seed}, accuracy {best.curve[-1]:.3f}")
    print(report)

    results = {
        "seeds": arguments.seeds,
        "epochs": {task.name: task.epochs for task in tasks},
        "tasks": rows,
        "best": {"pair": best.pair, "seed": best.seed, "accuracy": best.curve[-1]},
        "savedmodel_difference": report.difference.absolute,
        "files": {
            "model": str(arguments.out / "best.keras"),
            "savedmodel": str(arguments.out / "saved_model"),
            "figure": str(arguments.figure),
            "results": str(arguments.out / "results.json"),
        },
    }
    (arguments.out / "results.json").write_text(json.dumps(results, indent=2) + "\n")
    print(f"\n{time.time() - started:.0f} s. Written:")
    for name, path in results["files"].items():
        print(f"  {name:<10}  {path}")
    return results


if __name__ == "__main__":
    main()
