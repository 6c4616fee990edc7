"""Which start of the gates helps? Two of `initialization=` against Keras' start, paired over seeds.

GRU and LSTM of 32 units with four pairs of activations learn scikit-learn's handwritten digits
pixel by pixel (64 steps), and the adding problem over 150 steps. With sigmoid and tanh alone they
learn four further tasks: adding over 400 steps; to copy five of eight symbols after 50 steps; the
next characters of Python's help, 100 at a time; and four channels of an EEG (it comes with
Matplotlib) one step ahead, from 64 steps. All have batches of 32, Adam at 0.01, and gradients
clipped to a norm of 1. The trainings of one seed differ in the start alone. Prints the mean of the
differences with a 95% confidence interval (Student's t over the seeds), and writes every training
and a picture.

    python examples/initialization.py                   # about 45 minutes on two cores
    python examples/initialization.py --tasks digits    # one task
    python examples/initialization.py --quick           # one layer, two seeds, two epochs
"""

import argparse
import collections
import csv
import os
import pathlib
import typing
from collections.abc import Callable

os.environ.setdefault("KERAS_BACKEND", "tensorflow")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
# One per training, and the last digit does not depend on how many cores there are.
os.environ.setdefault("KERAS_GATES_THREADS", "1")

import keras
import numpy as np
from gallery import BATCH, EPOCHS, RATE, UNITS, train_all
from published import copying
from verdicts import adding, digits

import keras_gates as kg

STARTS = ["keras", "uniform_gates", "chrono"]
FIELDS = ["task", "cell", "gate", "candidate", "start", "seed", "score"]
PAIR = [("sigmoid", "tanh")]
PAIRS = [*PAIR, ("sigmoid", "softsign"), ("sigmoid", "elu"), ("tanh_gate", "tanh")]

# ---------------------------------------------------------------------- tasks


def adding_of(count, length):
    rng = np.random.default_rng(0)
    return adding(rng, count, length), adding(rng, 500, length)


def five_copied():
    """Five of eight symbols, a pause of 50 steps and a sign to give them back in the last five."""
    x, y = copying(np.random.default_rng(0), 4500, 50, 5)
    x, y = x[:, :, [*range(1, 9), 0, 9]], y[:, -5:] - 1  # symbols from 0 on
    return (x[:4000], y[:4000]), (x[4000:], y[4000:])


def text(symbols=64, length=100):
    """Python's own help, its 63 most frequent characters and one for all others."""
    from pydoc_data.topics import topics

    whole = "\n".join(topics[name] for name in sorted(topics))
    frequent = [c for c, _ in collections.Counter(whole).most_common(symbols - 1)]
    codes = np.array([frequent.index(c) if c in frequent else symbols - 1 for c in whole])
    rows = codes[: len(codes) // (length + 1) * (length + 1)].reshape(-1, length + 1)
    rows = np.random.default_rng(0).permutation(rows)[:4500]
    x, y = np.eye(symbols, dtype="float32")[rows[:, :-1]], rows[:, 1:]
    return (x[:4000], y[:4000]), (x[4000:], y[4000:])


def eeg(length=64):
    """Matplotlib's example of an electroencephalogram; the test part comes later in time."""
    from matplotlib import cbook

    with cbook.get_sample_data("eeg.dat") as file:
        channels = np.frombuffer(file.read(), float).reshape(800, 4)
    channels = (channels - channels.mean(axis=0)) / channels.std(axis=0)
    ends = range(length, 800)
    x = np.stack([channels[end - length : end] for end in ends]).astype("float32")
    y = np.stack([channels[end] for end in ends]).astype("float32")
    return (x[:540], y[:540]), (x[540 + length :], y[540 + length :])


class Task(typing.NamedTuple):
    """What is learned, and what is reported of it."""

    load: Callable
    length: int
    outputs: int
    score: str  # "accuracy", "error" (mean squared) or "nats" per character
    pairs: list = PAIR
    epochs: int = EPOCHS
    answered: int | None = 1  # how many of the last steps have a target; None: all


TASKS = {
    "digits": Task(digits, 64, 10, "accuracy", PAIRS),
    "adding": Task(lambda: adding_of(2000, 150), 150, 1, "error", PAIRS),
    "adding 400": Task(lambda: adding_of(4000, 400), 400, 1, "error"),
    "copy": Task(five_copied, 60, 8, "accuracy", answered=5),
    "text": Task(text, 100, 64, "nats", answered=None),
    "eeg": Task(eeg, 64, 4, "error", epochs=30),
}


def layers_of(task):
    return [(cell, *pair) for cell in ("gru", "lstm") for pair in TASKS[task].pairs]


# ---------------------------------------------------------------------- training


def make(task, layer, start):
    """A compiled model of one layer, whose metric is the score of the task."""
    task, (cell, gate, candidate) = TASKS[task], layer
    layers = [
        kg.GatedRNN(
            UNITS, cell=cell, gate_activation=gate, candidate_activation=candidate,
            initialization=kg.initializers.Chrono(task.length) if start == "chrono" else start,
            return_sequences=task.answered != 1,
        )
    ]  # fmt: skip
    if task.answered not in (1, None):
        layers.append(keras.layers.Cropping1D((task.length - task.answered, 0)))
    model = keras.Sequential([*layers, keras.layers.Dense(task.outputs)])
    loss, metric = "mse", "mse"
    if task.score != "error":
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        metric = "accuracy" if task.score == "accuracy" else loss
    model.compile(keras.optimizers.Adam(RATE, global_clipnorm=1.0), loss, metrics=[metric])
    return model


def train(task, layer, seed, epochs):
    """A row per start: the score on the test part."""
    (x, y), test = TASKS[task].load()
    model, rows = None, []
    for start in STARTS:
        keras.utils.set_random_seed(seed)
        new = make(task, layer, start)
        new.build((None, *x.shape[1:]))
        if model is None:
            model = new
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


# ---------------------------------------------------------------------- report


def scores_of(rows, task, layer, start):
    """The score of each seed, errors as logarithms; of what diverged NaN."""
    of = {r[5]: r[6] for r in rows if r[:5] == (task, *layer, start)}
    scores = np.array([of[seed] for seed in sorted(of)])
    scores = np.log(scores) if TASKS[task].score == "error" else scores
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
    if TASKS[task].score != "error":
        return f"{mean:+.3f} ± {half:.3f}"
    return f"x {np.exp(mean):.2g} ({np.exp(mean - half):.2g} to {np.exp(mean + half):.2g})"


def report(rows):
    for task in dict.fromkeys(row[0] for row in rows):
        score, layers = TASKS[task].score, list(dict.fromkeys(r[1:4] for r in rows if r[0] == task))
        what = f"{score}, and {'times how much' if score == 'error' else 'what is gained'}"
        columns = "".join(f"{start:<26}" for start in STARTS[1:])
        print(f"\n{task + ': ' + what:<42}{columns}".rstrip())
        for layer in layers:
            before = np.nanmean(scores_of(rows, task, layer, "keras"))
            first = f"{np.exp(before):.5f}" if score == "error" else f"{before:.3f}"
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


def draw(rows, path):
    """A panel per task, a group of three per layer, and a line per seed through it."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    tasks = list(dict.fromkeys(row[0] for row in rows))
    wide = [task for task in tasks if len(TASKS[task].pairs) > 1]
    rest = [task for task in tasks if task not in wide]
    # The wide panels below each other, the narrow ones in a row.
    columns = max(len(rest), 1)
    mosaic = [[task] * columns for task in wide] + ([rest] if rest else [])
    figure, axes = plt.subplot_mosaic(mosaic, figsize=(10, 3.6 * len(mosaic)), layout="constrained")
    shifts = np.linspace(-0.25, 0.25, len(STARTS))
    for task, axis in axes.items():
        score, layers = TASKS[task].score, list(dict.fromkeys(r[1:4] for r in rows if r[0] == task))
        for place, layer in enumerate(layers):
            scores = np.array([scores_of(rows, task, layer, start) for start in STARTS])
            scores = np.exp(scores) if score == "error" else scores
            axis.plot(place + shifts, scores, color="0.8", linewidth=0.8, zorder=1)
            for index, start in enumerate(STARTS):
                axis.plot(
                    [place + shifts[index]] * scores.shape[1], scores[index], "o",
                    color=f"C{index}", markersize=4, label=None if place else start,
                )  # fmt: skip
        names = [f"{cell}\n{gate}\n+ {candidate}" for cell, gate, candidate in layers]
        axis.set_xticks(range(len(layers)), names)
        if task.startswith("adding"):
            axis.set_yscale("log")
        axis.set_title(f"{task}: {score}")
        axis.grid(axis="y", alpha=0.3)
    handles, labels = next(iter(axes.values())).get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=len(STARTS))
    figure.savefig(path, dpi=130)
    plt.close(figure)
    return path


def main(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="one layer, two seeds, two epochs")
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS))
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("out"))
    arguments = parser.parse_args(argv)
    arguments.out.mkdir(parents=True, exist_ok=True)
    jobs = [
        (task, layer, seed, TASKS[task].epochs)
        for task in arguments.tasks
        for layer in layers_of(task)
        for seed in range(arguments.seeds)
    ]
    if arguments.quick:
        task = arguments.tasks[0]
        jobs = [(task, layers_of(task)[0], seed, 2) for seed in range(2)]
    rows = [row for trained in train_all(train, jobs) for row in trained]
    path = arguments.out / "initialization.csv"
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([FIELDS, *rows])
    report(rows)
    picture = draw(rows, arguments.out / "initialization.png")
    print(f"written: {path}, {picture}")
    return rows


if __name__ == "__main__":
    main()
