"""Is the verdict on a pair of activations right? Every pair is trained, and the two are compared.

Eight gates x nine candidates in a GRU and an LSTM, and the nine candidates in a simple RNN, each
with three seeds on two tasks: the adding problem (Hochreiter, Schmidhuber, 1997) and scikit-learn's
handwritten digits read pixel by pixel. Nothing is clipped. Prints what became of the pairs under
each verdict, and writes a table and a picture.

    python examples/verdicts.py            # about 30 minutes on two cores; goes on where it stopped
    python examples/verdicts.py --quick    # a few pairs, one seed
"""

import argparse
import collections
import concurrent.futures
import csv
import multiprocessing
import os
import pathlib
import time

os.environ.setdefault("KERAS_BACKEND", "tensorflow")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np

import keras_gates as kg
from keras_gates.diagnostics import plots
from keras_gates.verdicts import LEVELS

GATES = [
    "sigmoid", "hard_sigmoid", "tanh_gate", "softsign_gate", "relu_gate", "tanh", "relu",
    "softplus",
]  # fmt: skip
CANDIDATES = [
    "tanh", "softsign", "hard_tanh", "penalized_tanh", "sigmoid", "relu", "leaky_relu", "elu",
    "linear",
]  # fmt: skip
CELLS = ["gru", "lstm", "simple"]
TASKS = ["adding", "digits"]
OUTCOMES = ["diverged", "failed", "learned"]
FIELDS = ["cell", "gate", "candidate", "task", "seed", "outcome", "loss", "score"]
UNITS, BATCH, RATE = 24, 64, 0.01
STEPS = {"adding": 400, "digits": 250}
LENGTH = 10  # of the sequences of the adding problem


# ---------------------------------------------------------------------- tasks


def adding(rng, count, length=LENGTH):
    """Two numbers among many are marked; the target is their sum. Always saying 1 errs by 1/6."""
    values = rng.random((count, length))
    marks = np.zeros_like(values)
    half = length // 2
    for row in range(count):
        marks[row, rng.integers(half)] = marks[row, half + rng.integers(half)] = 1
    x = np.stack([values, marks], axis=2).astype("float32")
    return x, (values * marks).sum(axis=1, keepdims=True).astype("float32")


def digits():
    """Training and test part of the digits, 64 steps of one pixel."""
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(images))
    x, y = (images[order, :, None] / 16).astype("float32"), labels[order]
    return (x[:1400], y[:1400]), (x[1400:], y[1400:])


def load(task):
    if task == "digits":
        return digits()
    rng = np.random.default_rng(0)
    return adding(rng, 4000), adding(rng, 500)


def trivial_loss(task):
    """The loss of always giving the same answer, the best one."""
    return 1 / 6 if task == "adding" else np.log(10)


# ---------------------------------------------------------------------- training


def make(task, cell, gate, candidate):
    features, outputs = (2, 1) if task == "adding" else (1, 10)
    arguments = {} if gate is None else {"gate_activation": gate}
    layer = kg.GatedRNN(
        UNITS, cell=cell, candidate_activation=candidate, backprop="autodiff", **arguments
    )
    model = keras.Sequential(
        [keras.Input((None, features), name="x"), layer, keras.layers.Dense(outputs)]
    )
    loss = "mse"
    if task == "digits":
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(RATE), loss)
    return model


def train(cell, gate, candidate, task, seeds):
    """One row for each seed: what became of it."""
    import warnings

    warnings.simplefilter("ignore", kg.UnstableActivationsWarning)
    (x, y), test = load(task)
    model, fresh, rows = make(task, cell, gate, candidate), None, []
    for seed in seeds:
        keras.utils.set_random_seed(seed)
        # The weights of a new model in the one that is traced already.
        model.set_weights(make(task, cell, gate, candidate).get_weights())
        if fresh is None:
            model.optimizer.build(model.trainable_variables)
            fresh = [np.array(v) for v in model.optimizer.variables]
        for variable, value in zip(model.optimizer.variables, fresh, strict=True):
            variable.assign(value)
        rng = np.random.default_rng(seed)
        loss = np.nan
        for _ in range(STEPS[task]):
            rows_of_batch = rng.integers(len(x), size=BATCH)
            loss = float(model.train_on_batch(x[rows_of_batch], y[rows_of_batch]))
            if not np.isfinite(loss):
                break
        outcome, score = judged(model, task, loss, test)
        rows.append([cell, gate or "", candidate, task, seed, outcome, loss, score])
    return rows


def judged(model, task, loss, test):
    """What became of a training: its outcome, and its score on the test part.

    Diverged: the loss or an output is not finite, or the loss ended ten times above that of the
    trivial answer. Learned: it beats the trivial answer, with an error below 0.8 of its error, or
    with twice its accuracy.
    """
    x, y = test
    output = np.asarray(model.predict_on_batch(x))
    if not np.isfinite(loss) or not np.isfinite(output).all() or loss > 10 * trivial_loss(task):
        return "diverged", np.nan
    if task == "adding":
        score = float(np.mean((output - y) ** 2))
        return ("learned" if score < 0.8 * trivial_loss(task) else "failed"), score
    score = float(np.mean(output.argmax(axis=1) == y))
    return ("learned" if score > 0.2 else "failed"), score


def one_thread():
    import tensorflow as tf

    tf.config.threading.set_intra_op_parallelism_threads(1)
    tf.config.threading.set_inter_op_parallelism_threads(1)


def processes(workers=None):
    """A pool of processes with one thread each."""
    context = multiprocessing.get_context("spawn")
    return concurrent.futures.ProcessPoolExecutor(
        workers or os.cpu_count(), mp_context=context, initializer=one_thread
    )


def pairs():
    for cell in CELLS:
        for gate in [None] if cell == "simple" else GATES:
            for candidate in CANDIDATES:
                yield cell, gate, candidate


# ---------------------------------------------------------------------- report


def read(path):
    if not path.exists():
        return []
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def pair_of(row):
    return row["cell"], row["gate"], row["candidate"]


def report(rows):
    """Prints the confusion of verdict and outcome, of single trainings and of pairs."""
    worst = {}
    for row in rows:
        before = worst.get(pair_of(row), "learned")
        worst[pair_of(row)] = min(before, row["outcome"], key=OUTCOMES.index)
    verdicts = {pair: kg.check_activations(*[p or None for p in pair]).level for pair in worst}
    found = [(verdicts[pair], outcome) for pair, outcome in worst.items()]
    for title, outcomes in (
        ("trainings", [(verdicts[pair_of(row)], row["outcome"]) for row in rows]),
        ("pairs, by their worst training", found),
    ):
        counts = collections.Counter(outcomes)
        print(f"\n{title:<32}" + "".join(f"{outcome:>10}" for outcome in OUTCOMES))
        for verdict in LEVELS:
            numbers = [counts[verdict, outcome] for outcome in OUTCOMES]
            print(f"  {verdict:<30}" + "".join(f"{number:>10}" for number in numbers))
    diverged = [verdict for verdict, outcome in found if outcome == "diverged"]
    sound = [outcome for verdict, outcome in found if verdict == "sound"]
    share = collections.namedtuple("Share", "part whole")
    for what, s in (
        ("pairs that diverge, called unstable", share(diverged.count("unstable"), len(diverged))),
        (
            "pairs called sound, that do not diverge",
            share(len(sound) - sound.count("diverged"), len(sound)),
        ),
        ("pairs called sound, that learn every time", share(sound.count("learned"), len(sound))),
    ):
        print(f"{what}: {s.part} of {s.whole}" + (f", {s.part / s.whole:.0%}" if s.whole else ""))


def draw(rows, path):
    """What became of every pair, on top of the verdict on it, one panel per cell."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    counts = collections.defaultdict(collections.Counter)
    for row in rows:
        counts[row["cell"], row["gate"], row["candidate"]][row["outcome"]] += 1
    heights = [1 if cell == "simple" else len(GATES) for cell in CELLS]
    figure, axes = plt.subplots(
        len(CELLS), 1, figsize=(8, 9.5), layout="constrained",
        gridspec_kw={"height_ratios": [h + 1 for h in heights]},
    )  # fmt: skip
    for axis, cell in zip(axes, CELLS, strict=True):
        gates = None if cell == "simple" else GATES
        outcomes = {
            (gate, candidate): " ".join(
                f"{counts[cell, gate or '', candidate][outcome]}{outcome[0]}"
                for outcome in OUTCOMES
                if counts[cell, gate or "", candidate][outcome]
            )
            for gate in gates or [None]
            for candidate in CANDIDATES
        }
        plots.plot_verdicts(cell, gates, CANDIDATES, axis, outcomes=outcomes)
    figure.supxlabel(
        "letter and colour: the verdict; below, of six trainings: d diverged, f failed, l learned",
        fontsize=9,
    )
    figure.savefig(path, dpi=130)
    plt.close(figure)
    return path


def main(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="a few pairs, one seed, few steps")
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("out"))
    parser.add_argument("--workers", type=int, default=os.cpu_count())
    arguments = parser.parse_args(argv)
    arguments.out.mkdir(parents=True, exist_ok=True)
    path = arguments.out / "verdicts.csv"
    chosen, seeds = list(pairs()), (0, 1, 2)
    if arguments.quick:
        chosen = [("gru", "sigmoid", "tanh"), ("gru", "relu", "tanh"), ("simple", None, "tanh")]
        seeds = (0,)
    done = {(row["cell"], row["gate"], row["candidate"], row["task"]) for row in read(path)}
    jobs = [(*pair, task) for task in TASKS for pair in chosen]
    jobs = [job for job in jobs if (job[0], job[1] or "", *job[2:]) not in done]
    if not done:
        with path.open("w", newline="") as file:
            csv.writer(file).writerow(FIELDS)
    started = time.time()
    with processes(arguments.workers) as pool:
        futures = [pool.submit(train, *job, seeds) for job in jobs]
        for count, future in enumerate(concurrent.futures.as_completed(futures), 1):
            with path.open("a", newline="") as file:
                csv.writer(file).writerows(future.result())
            minutes = (time.time() - started) / 60
            print(f"\r{count} of {len(jobs)} trained, {minutes:.1f} min", end="", flush=True)
    rows = read(path)
    report(rows)
    print(f"written: {path}, {draw(rows, arguments.out / 'verdicts.png')}")
    return rows


if __name__ == "__main__":
    main()
