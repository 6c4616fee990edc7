"""Which cell for which job? All cells of the package, on two tasks, with their cost.

Each cell has 32 units and the activations and start of its paper. It learns scikit-learn's
handwritten digits pixel by pixel (64 steps), and the adding problem (Hochreiter, Schmidhuber,
1997) over 100 steps, with several seeds, Adam at 0.01 and gradients clipped to a norm of 1. Prints
a table of parameters, time per training step, accuracy and error, and draws them.

    python examples/gallery.py            # about 5 minutes on two cores
    python examples/gallery.py --quick    # three cells, one seed, one epoch
"""

import argparse
import csv
import os
import pathlib
import time
import warnings

os.environ.setdefault("KERAS_BACKEND", "tensorflow")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
from verdicts import adding, digits, processes

import keras_gates as kg
from keras_gates.cells import CELLS

UNITS, BATCH, RATE, EPOCHS, LENGTH = 32, 32, 0.01, 10, 100
TASKS = {"digits": "accuracy on digits", "adding": "error on adding"}
FIELDS = ["cell", "task", "seed", "score"]


def load(task):
    if task == "digits":
        return digits()
    rng = np.random.default_rng(0)
    return adding(rng, 2000, LENGTH), adding(rng, 500, LENGTH)


def make(cell, task, **arguments):
    """A compiled model of one layer, whose metric is the accuracy or the mean squared error."""
    warnings.simplefilter("ignore", kg.UnstableActivationsWarning)
    features, outputs = (1, 10) if task == "digits" else (2, 1)
    layer = kg.GatedRNN(UNITS, cell=cell, **arguments)
    model = keras.Sequential([keras.Input((None, features)), layer, keras.layers.Dense(outputs)])
    loss, metrics = "mse", ["mse"]
    if task == "digits":
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        metrics = ["accuracy"]
    model.compile(keras.optimizers.Adam(RATE), loss, metrics=metrics)
    return model


def train_all(function, jobs):
    """What `function(*job)` gives for each job, in their order."""
    found = []
    with processes() as pool:
        for count, row in enumerate(pool.map(function, *zip(*jobs, strict=True)), 1):
            found.append(row)
            print(f"\r{count} of {len(jobs)} trained", end="", flush=True)
    return found


def train(cell, task, seed, epochs):
    """A row: the score on the test part."""
    keras.utils.set_random_seed(seed)
    (x, y), test = load(task)
    model = make(cell, task, grad_clip_norm=1.0)
    model.fit(x, y, batch_size=BATCH, epochs=epochs, verbose=0)
    return cell, task, seed, model.evaluate(*test, verbose=0)[1]


def times(cells, rounds=9):
    """From each cell to the time of its training step over that of a GRU; both alternate."""
    (x, y), _ = load("digits")
    x, y = x[:BATCH], y[:BATCH]
    models = {
        cell: make(cell, "digits", grad_clip_norm=1.0) for cell in dict.fromkeys(["gru", *cells])
    }
    for model in models.values():
        model.train_on_batch(x, y)
    taken = {cell: [] for cell in models}
    for _ in range(rounds):
        for cell, model in models.items():
            started = time.perf_counter()
            for _ in range(10):
                model.train_on_batch(x, y)
            taken[cell].append(time.perf_counter() - started)
    medians = {cell: np.median(t) for cell, t in taken.items()}
    return {cell: medians[cell] / medians["gru"] for cell in cells}


def table(rows, seconds):
    """Lines of the table: cell, parameters, time, and the scores' mean and spread."""
    found = []
    for cell in seconds:
        scores = {t: [float(r[3]) for r in rows if r[0] == cell and r[1] == t] for t in TASKS}
        parameters = make(cell, "digits").layers[0].count_params()
        found.append((cell, parameters, seconds[cell], scores))
    lines = [f"{'cell':<16}{'parameters':>11}{'time (GRU = 1)':>16}" + "".join(
        f"{title:>26}" for title in TASKS.values()
    )]  # fmt: skip
    for cell, parameters, ratio, scores in found:
        shown = "".join(f"{f'{np.mean(s):.4f} ± {np.std(s):.4f}':>26}" for s in scores.values())
        lines.append(f"{cell:<16}{parameters:>11}{ratio:>16.2f}{shown}")
    return lines


def draw(rows, path):
    """A dot per training, a panel per task; the best cells are at the top."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, len(TASKS), figsize=(10, 5), layout="constrained")
    for axis, (task, title) in zip(axes, TASKS.items(), strict=True):
        scores = {}
        for cell, of, _, score in rows:
            if of == task:
                scores.setdefault(cell, []).append(float(score))
        best_last = sorted(scores, key=lambda c: np.mean(scores[c]), reverse=task == "adding")
        for place, cell in enumerate(best_last):
            axis.plot(scores[cell], [place] * len(scores[cell]), "o", color="C0", alpha=0.5)
            axis.plot(np.mean(scores[cell]), place, "|", color="black", markersize=14)
        axis.set_yticks(range(len(best_last)), best_last)
        axis.set_xlabel(f"{title}, mean and each seed")
        axis.grid(axis="x", alpha=0.3)
        if task == "adding":
            axis.set_xscale("log")
            axis.axvline(1 / 6, color="C3", linestyle=":", label="always the same answer")
            axis.legend(loc="lower left")
    figure.savefig(path, dpi=130)
    plt.close(figure)
    return path


def main(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="three cells, one seed, one epoch")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("out"))
    arguments = parser.parse_args(argv)
    arguments.out.mkdir(parents=True, exist_ok=True)
    cells, seeds, epochs = list(CELLS), arguments.seeds, EPOCHS
    if arguments.quick:
        cells, seeds, epochs = ["gru", "min_gru", "ind_rnn"], 1, 1
    jobs = [(c, t, s, epochs) for c in cells for t in TASKS for s in range(seeds)]
    rows = train_all(train, jobs)
    path = arguments.out / "gallery.csv"
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([FIELDS, *rows])
    print("\n" + "\n".join(table(rows, times(cells))))
    print(f"written: {path}, {draw(rows, arguments.out / 'gallery.png')}")
    return rows


if __name__ == "__main__":
    main()
