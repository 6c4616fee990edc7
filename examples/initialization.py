"""Which start of the gates helps? Two of `initialization=` against Keras' start, paired over seeds.

GRU and LSTM of 32 units with four pairs of activations learn scikit-learn's handwritten digits
pixel by pixel (64 steps), and the adding problem over 150 steps, each in ten epochs of batches of
32, with Adam at 0.01 and gradients clipped to a norm of 1. The trainings of one seed differ in the
start alone. Prints the mean of the differences with a 95% confidence interval (Student's t over the
seeds), and writes every training and a picture.

    python examples/initialization.py            # about 12 minutes on two cores
    python examples/initialization.py --quick    # one layer, two seeds, two epochs
"""

import argparse
import csv
import os
import pathlib

os.environ.setdefault("KERAS_BACKEND", "tensorflow")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
# One per training, and the last digit does not depend on how many cores there are.
os.environ.setdefault("KERAS_GATES_THREADS", "1")

import keras
import numpy as np
from gallery import BATCH, EPOCHS, load, make, train_all

import keras_gates as kg

LAYERS = [
    (cell, gate, candidate)
    for cell in ("gru", "lstm")
    for gate, candidate in (
        ("sigmoid", "tanh"), ("sigmoid", "softsign"), ("sigmoid", "elu"), ("tanh_gate", "tanh"),
    )
]  # fmt: skip
LENGTHS = {"digits": 64, "adding": 150}
STARTS = ["keras", "uniform_gates", "chrono"]
FIELDS = ["task", "cell", "gate", "candidate", "start", "seed", "score"]


def train(task, layer, seed, epochs):
    """A row per start: the accuracy or the mean squared error on the test part."""
    (x, y), test = load(task, LENGTHS[task])
    cell, gate, candidate = layer
    model, rows = None, []
    for start in STARTS:
        keras.utils.set_random_seed(seed)
        new = make(
            cell, task, gate_activation=gate, candidate_activation=candidate,
            initialization=kg.initializers.Chrono(LENGTHS[task]) if start == "chrono" else start,
        )  # fmt: skip
        if model is None:
            model = new
            model.optimizer.global_clipnorm = 1.0
            model.optimizer.build(model.trainable_variables)
            untouched = [np.array(variable) for variable in model.optimizer.variables]
        # One model is traced, and starts anew.
        model.set_weights(new.get_weights())
        for variable, value in zip(model.optimizer.variables, untouched, strict=True):
            variable.assign(value)
        # The order of the samples does not depend on what was drawn for the start.
        keras.utils.set_random_seed(1000 + seed)
        model.fit(x, y, batch_size=BATCH, epochs=epochs, verbose=0)
        rows.append((task, *layer, start, seed, model.evaluate(*test, verbose=0)[1]))
    return rows


def scores_of(rows, task, layer, start):
    """The score of each seed, errors as logarithms; of what diverged NaN."""
    of = {r[5]: r[6] for r in rows if r[:5] == (task, *layer, start)}
    scores = np.array([of[seed] for seed in sorted(of)])
    scores = scores if task == "digits" else np.log(scores)
    return np.where(np.isfinite(scores), scores, np.nan)


def differences(rows, task, layer, start):
    """What a start adds to the scores with Keras', by seed."""
    return scores_of(rows, task, layer, start) - scores_of(rows, task, layer, "keras")


def interval(values):
    """The mean, and half of its 95% confidence interval by Student's t; without NaNs."""
    from scipy import stats

    values = values[np.isfinite(values)]
    if len(values) < 2:
        return np.mean(values), np.nan
    half = stats.t.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / np.sqrt(len(values))
    return np.mean(values), half


def shown(task, values):
    mean, half = interval(values)
    if task == "digits":
        return f"{mean:+.3f} ± {half:.3f}"
    return f"x {np.exp(mean):.2g} ({np.exp(mean - half):.2g} to {np.exp(mean + half):.2g})"


def report(rows, layers, tasks):
    for task in tasks:
        what = "accuracy, and what is gained" if task == "digits" else "error, and times how much"
        columns = "".join(f"{start:<26}" for start in STARTS[1:])
        print(f"\n{task + ': ' + what:<42}{columns}".rstrip())
        for layer in layers:
            before = np.nanmean(scores_of(rows, task, layer, "keras"))
            first = f"{before:.3f}" if task == "digits" else f"{np.exp(before):.5f}"
            cells = [shown(task, differences(rows, task, layer, start)) for start in STARTS[1:]]
            diverged = [int(np.isnan(scores_of(rows, task, layer, s)).sum()) for s in STARTS]
            line = f"  {' '.join(layer):<28}{first:<12}" + "".join(f"{c:<26}" for c in cells)
            print((line + (f"diverged: {diverged}" if any(diverged) else "")).rstrip())
        # The mean over the layers is one number per seed.
        means = [
            np.nanmean([differences(rows, task, layer, start) for layer in layers], axis=0)
            for start in STARTS[1:]
        ]
        print(f"  {'mean of all':<40}{''.join(f'{shown(task, m):<26}' for m in means)}".rstrip())


def draw(rows, layers, tasks, path):
    """A line per seed, from Keras' start to the others."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(
        len(tasks), 1, figsize=(10, 3.6 * len(tasks)), layout="constrained", squeeze=False
    )
    shifts = np.linspace(-0.25, 0.25, len(STARTS))
    for axis, task in zip(axes[:, 0], tasks, strict=True):
        for place, layer in enumerate(layers):
            scores = np.array([scores_of(rows, task, layer, start) for start in STARTS])
            scores = scores if task == "digits" else np.exp(scores)
            axis.plot(place + shifts, scores, color="0.8", linewidth=0.8, zorder=1)
            for index, start in enumerate(STARTS):
                axis.plot(
                    [place + shifts[index]] * scores.shape[1], scores[index], "o",
                    color=f"C{index}", markersize=4, label=None if place else start,
                )  # fmt: skip
        names = [f"{cell}\n{gate}\n+ {candidate}" for cell, gate, candidate in layers]
        axis.set_xticks(range(len(layers)), names)
        if task == "adding":
            axis.set_yscale("log")
        axis.set_ylabel("accuracy on digits" if task == "digits" else "error on adding")
        axis.grid(axis="y", alpha=0.3)
        axis.legend()
    figure.savefig(path, dpi=130)
    plt.close(figure)
    return path


def main(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="one layer, two seeds, two epochs")
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("out"))
    arguments = parser.parse_args(argv)
    arguments.out.mkdir(parents=True, exist_ok=True)
    layers, tasks, seeds, epochs = LAYERS, list(LENGTHS), arguments.seeds, EPOCHS
    if arguments.quick:
        layers, tasks, seeds, epochs = LAYERS[:1], tasks[:1], 2, 2
    jobs = [
        (task, layer, seed, epochs) for task in tasks for layer in layers for seed in range(seeds)
    ]
    rows = [row for trained in train_all(train, jobs) for row in trained]
    path = arguments.out / "initialization.csv"
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([FIELDS, *rows])
    report(rows, layers, tasks)
    picture = draw(rows, layers, tasks, arguments.out / "initialization.png")
    print(f"written: {path}, {picture}")
    return rows


if __name__ == "__main__":
    main()
