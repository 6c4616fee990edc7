"""Do uniform gates help? initialization="uniform_gates" against Keras' start, paired over seeds.

GRU and LSTM of 32 units with four pairs of activations learn scikit-learn's handwritten digits
pixel by pixel, and the adding problem over 150 steps. In a pair of trainings all is the same, the
seed too, but the start. Prints the mean of the differences with a 95% confidence interval, and
writes every training and a picture.

    python examples/initialization.py            # about 15 minutes on two cores
    python examples/initialization.py --quick    # one layer, two seeds, two epochs
"""

import argparse
import csv
import os
import pathlib

os.environ.setdefault("KERAS_BACKEND", "tensorflow")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
from gallery import EPOCHS, load, make, train_all

LAYERS = [
    (cell, gate, candidate)
    for cell in ("gru", "lstm")
    for gate, candidate in (
        ("sigmoid", "tanh"), ("sigmoid", "softsign"), ("sigmoid", "elu"), ("tanh_gate", "tanh"),
    )
]  # fmt: skip
TASKS = ["digits", "adding"]
STARTS = [None, "uniform_gates"]
FIELDS = ["task", "cell", "gate", "candidate", "start", "seed", "score"]
LENGTH = 150


def train(task, layer, start, seed, epochs):
    """A row: the accuracy or the mean squared error on the test part."""
    keras.utils.set_random_seed(seed)
    (x, y), test = load(task, LENGTH)
    cell, gate, candidate = layer
    model = make(
        cell, task, gate_activation=gate, candidate_activation=candidate, initialization=start
    )
    # The order of the samples does not depend on what was drawn for the start.
    keras.utils.set_random_seed(1000 + seed)
    model.fit(x, y, batch_size=32 if task == "digits" else 50, epochs=epochs, verbose=0)
    return task, *layer, start or "keras", seed, model.evaluate(*test, verbose=0)[1]


def differences(rows, task, layer):
    """Scores with Keras' start and with uniform gates, each by seed, errors as logarithms; and how
    many of each diverged. Their pairs are left out."""
    scores = []
    for start in STARTS:
        of = {r[5]: r[6] for r in rows if r[:5] == (task, *layer, start or "keras")}
        scores.append([of[seed] for seed in sorted(of)])
    scores = np.array(scores) if task == "digits" else np.log(scores)
    finite = np.isfinite(scores)
    return *scores[:, finite.all(axis=0)], (~finite).sum(axis=1)


def interval(values):
    """The mean, and half of its 95% confidence interval by Student's t."""
    from scipy import stats

    if len(values) < 2:
        return np.mean(values), np.nan
    half = stats.t.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / np.sqrt(len(values))
    return np.mean(values), half


def report(rows, layers, tasks):
    for task in tasks:
        if task == "digits":
            print("\ndigits, accuracy: Keras' start, and the gain of uniform gates")
        else:
            print("\nadding, error: Keras' start, and the error of uniform gates over it")
        means = []
        for layer in layers:
            before, after, diverged = differences(rows, task, layer)
            mean, half = interval(after - before)
            means.append(mean)
            name = f"{layer[0]} {layer[1]} + {layer[2]}"
            also = f"   diverged: {diverged[0]} and {diverged[1]}" if diverged.any() else ""
            if task == "digits":
                print(f"  {name:<26}{before.mean():.3f}   {mean:+.3f} ± {half:.3f}{also}")
            else:
                low, high = np.exp([mean - half, mean + half])
                shown = f"x {np.exp(mean):.2f} ({low:.2f} to {high:.2f})"
                print(f"  {name:<26}{np.exp(before.mean()):.4f}   {shown}{also}")
        overall = np.mean(means)
        print(
            "  mean of all"
            + (f" {overall:+.3f}" if task == "digits" else f" x {np.exp(overall):.2f}")
        )


def draw(rows, layers, tasks, path):
    """A line per pair of trainings, from Keras' start to uniform gates."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(
        len(tasks), 1, figsize=(10, 3.6 * len(tasks)), layout="constrained", squeeze=False
    )
    for axis, task in zip(axes[:, 0], tasks, strict=True):
        for place, layer in enumerate(layers):
            before, after, _ = differences(rows, task, layer)
            if task == "adding":
                before, after = np.exp(before), np.exp(after)
            for pair in zip(before, after, strict=True):
                axis.plot([place - 0.2, place + 0.2], pair, color="0.7", linewidth=0.8, zorder=1)
            for shift, scores, color, label in (
                (-0.2, before, "C0", "Keras' start"),
                (0.2, after, "C1", "uniform gates"),
            ):
                axis.plot(
                    [place + shift] * len(scores), scores, "o", color=color, markersize=4,
                    label=label if place == 0 else None,
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
    layers, tasks, seeds, epochs = LAYERS, TASKS, arguments.seeds, EPOCHS
    if arguments.quick:
        layers, tasks, seeds, epochs = LAYERS[:1], TASKS[:1], 2, 2
    jobs = [
        (task, layer, start, seed, epochs)
        for task in tasks for layer in layers for seed in range(seeds) for start in STARTS
    ]  # fmt: skip
    rows = train_all(train, jobs)
    path = arguments.out / "initialization.csv"
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([FIELDS, *rows])
    report(rows, layers, tasks)
    picture = draw(rows, layers, tasks, arguments.out / "initialization.png")
    print(f"written: {path}, {picture}")
    return rows


if __name__ == "__main__":
    main()
