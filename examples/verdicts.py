"""Is the verdict on a pair of activations right? Every pair is trained, and the two are compared.

Eight gates x nine candidates in a GRU and an LSTM, and the nine candidates in a simple RNN. In the
first grid each learns two tasks, the adding problem (Hochreiter, Schmidhuber, 1997) over 10 steps
and scikit-learn's handwritten digits read pixel by pixel, with Adam and nothing clipped. The second
was made after the rules of the verdicts were fixed: other tasks and lengths, SGD, RMSprop and Adam,
and the digits again with gradients clipped and with an L1 penalty. The third was made after the
estimates of divergence were fitted to the first two; one rule on long sequences was made with all
in view. Prints what became of the pairs under each verdict, and writes tables and a picture.

    python examples/verdicts.py            # 90 minutes on two cores; goes on where it stopped
    python examples/verdicts.py --quick    # a few pairs, one seed
    python examples/verdicts.py --fit      # what the probabilities of divergence are made of
"""

import argparse
import collections
import concurrent.futures
import csv
import itertools
import multiprocessing
import os
import pathlib
import time
import typing

os.environ.setdefault("KERAS_BACKEND", "tensorflow")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np

import keras_gates as kg
from keras_gates.diagnostics import plots
from keras_gates.verdicts import LEVELS

CELLS = ["gru", "lstm", "simple"]
GATES = [
    "sigmoid", "hard_sigmoid", "tanh_gate", "softsign_gate", "relu_gate", "tanh", "relu",
    "softplus",
]  # fmt: skip
CANDIDATES = [
    "tanh", "softsign", "hard_tanh", "penalized_tanh", "sigmoid", "relu", "leaky_relu", "elu",
    "linear",
]  # fmt: skip
GATES_AGAIN = ["sigmoid", "hard_sigmoid", "tanh_gate", "tanh", "relu"]
CANDIDATES_AGAIN = ["tanh", "softsign", "relu", "elu", "linear", "selu", "gelu", "silu"]
GATES_THIRD = ["sigmoid", "hard_sigmoid", "softsign_gate", "tanh", "relu"]
CANDIDATES_THIRD = ["tanh", "hard_tanh", "relu", "leaky_relu", "elu", "linear", "mish"]
OUTCOMES = ["diverged", "failed", "learned"]
FIELDS = ["cell", "gate", "candidate", "task", "seed", "outcome", "loss", "score"]
UNITS, BATCH = 24, 64


class Setting(typing.NamedTuple):
    """A task, the length of its sequences, and how it is trained in how many updates."""

    task: str
    length: int
    optimizer: type[keras.optimizers.Optimizer]
    rate: float
    updates: int
    seeds: int
    cure: str = ""


FIRST = {
    "adding": Setting("adding", 10, keras.optimizers.Adam, 0.01, 400, 3),
    "digits": Setting("digits", 64, keras.optimizers.Adam, 0.01, 250, 11),
}
SECOND = {
    "rows, SGD": Setting("rows", 8, keras.optimizers.SGD, 0.1, 300, 10),
    "adding 20, RMSprop": Setting("adding", 20, keras.optimizers.RMSprop, 0.01, 400, 10),
    "waves 150, Adam": Setting("waves", 150, keras.optimizers.Adam, 0.01, 200, 20),
    "digits, clipped": Setting("digits", 64, keras.optimizers.Adam, 0.01, 250, 2, "clipped"),
    "digits, L1": Setting("digits", 64, keras.optimizers.Adam, 0.01, 250, 2, "L1"),
}
THIRD = {
    "recall 30, RMSprop": Setting("recall", 30, keras.optimizers.RMSprop, 0.01, 300, 5),
    "recall 100, Adam": Setting("recall", 100, keras.optimizers.Adam, 0.01, 200, 5),
    "walk 200, Adam": Setting("walk", 200, keras.optimizers.Adam, 0.01, 150, 5),
}
SETTINGS = FIRST | SECOND | THIRD
# From the name of a table to its settings, gates and candidates.
GRIDS = {
    "verdicts": (FIRST, GATES, CANDIDATES),
    "verdicts_again": (SECOND, GATES_AGAIN, CANDIDATES_AGAIN),
    "verdicts_third": (THIRD, GATES_THIRD, CANDIDATES_THIRD),
}
FITTED = ["verdicts", "verdicts_again"]  # the tables that the probabilities come from


# ---------------------------------------------------------------------- tasks


def adding(rng, count, length=10):
    """Two numbers among many are marked; the target is their sum. Always saying 1 errs by 1/6."""
    values = rng.random((count, length))
    marks = np.zeros_like(values)
    half = length // 2
    for row in range(count):
        marks[row, rng.integers(half)] = marks[row, half + rng.integers(half)] = 1
    x = np.stack([values, marks], axis=2).astype("float32")
    return x, (values * marks).sum(axis=1, keepdims=True).astype("float32")


def digits(length=64):
    """Training and test part of the digits: 64 steps of one pixel, or 8 of a row."""
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(images))
    x, y = (images[order].reshape(-1, length, 64 // length) / 16).astype("float32"), labels[order]
    return (x[:1400], y[:1400]), (x[1400:], y[1400:])


def waves(rng, count, length):
    """The next value of a noisy wave of unknown frequency and phase."""
    t = np.arange(length + 1)
    frequency, phase = rng.uniform(0.1, 0.5, (count, 1)), rng.uniform(0, 2 * np.pi, (count, 1))
    x = np.sin(frequency * t + phase)
    noisy = x[:, :-1] + 0.1 * rng.normal(size=(count, length))
    return noisy[:, :, None].astype("float32"), x[:, -1:].astype("float32")


def recall(rng, count, length):
    """What the first of all numbers was."""
    x = rng.normal(size=(count, length, 1)).astype("float32")
    return x, x[:, 0]


def walk(rng, count, length):
    """Whether the steps so far have led above where they began."""
    x = rng.normal(size=(count, length, 1)).astype("float32")
    return x, (x.sum(axis=(1, 2)) > 0).astype("int64")


def load(setting):
    if setting.task in ("digits", "rows"):
        return digits(setting.length)
    tasks = {"adding": adding, "waves": waves, "recall": recall, "walk": walk}
    rng, make_task = np.random.default_rng(0), tasks[setting.task]
    return make_task(rng, 4000, setting.length), make_task(rng, 500, setting.length)


# From each task to its features and outputs: one number, or classes.
SIZES = {
    "adding": (2, 1),
    "waves": (1, 1),
    "recall": (1, 1),
    "rows": (8, 10),
    "digits": (1, 10),
    "walk": (1, 2),
}


def trivial_loss(task):
    """The loss of always giving the same answer, the best one."""
    return {"adding": 1 / 6, "waves": 1 / 2, "recall": 1.0}.get(task, np.log(SIZES[task][1]))


# ---------------------------------------------------------------------- training


CURES = {"": {}, "clipped": {"grad_clip_norm": 1.0}, "L1": {"activation_l1": 1e-3}}


def make(setting, cell, gate, candidate):
    features, outputs = SIZES[setting.task]
    arguments = {} if gate is None else {"gate_activation": gate}
    layer = kg.GatedRNN(
        UNITS, cell=cell, candidate_activation=candidate, **arguments, **CURES[setting.cure]
    )
    model = keras.Sequential(
        [keras.Input((None, features), name="x"), layer, keras.layers.Dense(outputs)]
    )
    loss = "mse"
    if outputs > 1:
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(setting.optimizer(setting.rate), loss)
    return model


def train(cell, gate, candidate, name, seeds):
    """One row for each seed: what became of it in the setting of this name."""
    import warnings

    warnings.simplefilter("ignore", kg.UnstableActivationsWarning)
    setting = SETTINGS[name]
    (x, y), test = load(setting)
    model, fresh, rows = make(setting, cell, gate, candidate), None, []
    for seed in seeds:
        keras.utils.set_random_seed(seed)
        # The weights of a new model in the one that is traced already.
        model.set_weights(make(setting, cell, gate, candidate).get_weights())
        if fresh is None:
            model.optimizer.build(model.trainable_variables)
            fresh = [np.array(v) for v in model.optimizer.variables]
        for variable, value in zip(model.optimizer.variables, fresh, strict=True):
            variable.assign(value)
        rng = np.random.default_rng(seed)
        loss = np.nan
        for _ in range(setting.updates):
            rows_of_batch = rng.integers(len(x), size=BATCH)
            loss = float(model.train_on_batch(x[rows_of_batch], y[rows_of_batch]))
            if not np.isfinite(loss):
                break
        outcome, score = judged(model, setting.task, loss, test)
        numbers = f"{loss:.4g}", f"{score:.4g}"
        rows.append([cell, gate or "", candidate, name, seed, outcome, *numbers])
    return rows


def judged(model, task, loss, test):
    """What became of a training: its outcome, and its score on the test part.

    Diverged: the loss or an output is not finite, or the loss ended ten times above that of the
    trivial answer. Learned: it beats the trivial answer, with an error below 0.8 of its error, or
    with twice its accuracy, 3 / 4 of two classes.
    """
    x, y = test
    output = np.asarray(model.predict_on_batch(x))
    if not np.isfinite(loss) or not np.isfinite(output).all() or loss > 10 * trivial_loss(task):
        return "diverged", np.nan
    classes = SIZES[task][1]
    if classes == 1:
        score = float(np.mean((output - y) ** 2))
        return ("learned" if score < 0.8 * trivial_loss(task) else "failed"), score
    score = float(np.mean(output.argmax(axis=1) == y))
    return ("learned" if score > min(2 / classes, 0.75) else "failed"), score


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


def pairs(gates, candidates):
    for cell in CELLS:
        for gate in [None] if cell == "simple" else gates:
            for candidate in candidates:
                yield cell, gate, candidate


# ---------------------------------------------------------------------- report


def read(path):
    if not path.exists():
        return []
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def judged_of(row):
    """What a verdict is about: the pair, and what it is to be cured with."""
    return row["cell"], row["gate"], row["candidate"], SETTINGS[row["task"]].cure


def verdicts_of(rows):
    """From what is judged to its verdict on the longest sequences that it is trained on."""
    longest = collections.Counter()
    for row in rows:
        longest[judged_of(row)] = max(longest[judged_of(row)], SETTINGS[row["task"]].length)
    return {
        judged: kg.check_activations(
            *[name or None for name in judged[:3]], steps=steps, **CURES[judged[3]]
        ).level
        for judged, steps in longest.items()
    }


def report(rows):
    """Prints the confusion of verdict and outcome, of single trainings and of pairs."""
    worst = {}
    for row in rows:
        before = worst.get(judged_of(row), "learned")
        worst[judged_of(row)] = min(before, row["outcome"], key=OUTCOMES.index)
    verdicts = verdicts_of(rows)
    found = [(verdicts[pair], outcome) for pair, outcome in worst.items()]
    for title, outcomes in (
        ("trainings", [(verdicts[judged_of(row)], row["outcome"]) for row in rows]),
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
        (
            "pairs called unstable, that learn every time",
            share(found.count(("unstable", "learned")), list(verdicts.values()).count("unstable")),
        ),
    ):
        print(f"{what}: {s.part} of {s.whole}" + (f", {s.part / s.whole:.0%}" if s.whole else ""))


def cured(first, second):
    """Prints what clipping and an L1 penalty make of the digits, for what is in both tables."""
    columns = ["digits", "digits, clipped", "digits, L1"]
    outcomes = {task: {} for task in columns}
    for row in first + second:
        if row["task"] in outcomes:
            outcomes[row["task"]][*judged_of(row)[:3], row["seed"]] = row["outcome"]
    both = set.intersection(*map(set, outcomes.values()))
    for outcome in ("diverged", "learned"):
        print(f"\n{outcome:<20}{'trainings':>10}" + "".join(f"{task:>17}" for task in columns))
        for layer, keys in itertools.groupby(sorted(both), key=lambda key: key[:2]):
            keys = list(keys)
            counts = [[outcomes[task][key] for key in keys].count(outcome) for task in columns]
            shown = "".join(f"{count:>17}" for count in counts)
            print(f"{' '.join(layer):<20}{len(keys):>10}{shown}")


def predicted(rows):
    """From each pair and length of sequences to the probability of divergence beforehand."""
    asked = dict.fromkeys((*judged_of(row)[:3], SETTINGS[row["task"]].length) for row in rows)
    return {
        key: kg.check_activations(*[name or None for name in key[:3]], steps=key[3]).divergence
        for key in asked
    }


def calibration(rows):
    """Prints how many trainings diverged of those of about the same probability beforehand."""
    rows = [row for row in rows if not SETTINGS[row["task"]].cure]
    estimates = predicted(rows)
    pairs_found = [
        (estimates[*judged_of(row)[:3], SETTINGS[row["task"]].length], row["outcome"] == "diverged")
        for row in rows
    ]
    print("\nestimated probability of divergence, trainings, share that diverged")
    for low, high in itertools.pairwise([0, 0.01, 0.05, 0.2, 0.5, 1]):
        diverged = [d for p, d in pairs_found if low <= p < high]
        if diverged:
            print(f"  {low:>4.0%} to {high:<5.0%}{len(diverged):>6}{np.mean(diverged):>8.1%}")


def fit(rows):
    """Prints the logistic regression that the probabilities of divergence come from."""
    from sklearn.linear_model import LogisticRegression

    from keras_gates.cells.program import built_copy
    from keras_gates.verdicts import judge, make, probe

    found = {}
    for row in rows:
        key = (*judged_of(row)[:3], SETTINGS[row["task"]].length)
        if key not in found:
            gate = {"gate_activation": key[1]} if key[1] else {}
            cell = make(key[0], UNITS, {"candidate_activation": key[2], **gate})
            copy = built_copy(cell, units=UNITS, features=2)
            figures = probe.stressed(copy, key[3])
            found[key] = probe.signs(figures, key[3], judge(cell).growth)
    x = [found[*judged_of(row)[:3], SETTINGS[row["task"]].length] for row in rows]
    model = LogisticRegression(C=np.inf, max_iter=1000)
    model.fit(x, [row["outcome"] == "diverged" for row in rows])
    fitted = (*model.intercept_, *model.coef_[0])
    print("keras_gates.verdicts.probe.FITTED:", ", ".join(f"{w:.2f}" for w in fitted))


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
        axis.set_title("")
        axis.set_title(cell, loc="right")  # beside the legend
        if cell != CELLS[0]:
            axis.get_legend().remove()
    figure.supxlabel(
        "letter and colour: the verdict; below, of the trainings: d diverged, f failed, l learned",
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
    parser.add_argument("--fit", action="store_true", help="trains nothing")
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("out"))
    parser.add_argument("--workers", type=int, default=os.cpu_count())
    arguments = parser.parse_args(argv)
    arguments.out.mkdir(parents=True, exist_ok=True)
    if arguments.fit:
        tables = [read(arguments.out / f"{name}.csv") for name in FITTED]
        return fit([row for table in tables for row in table if not SETTINGS[row["task"]].cure])
    grids, most = GRIDS, None
    if arguments.quick:
        grids, most = {"verdicts": (FIRST, ["sigmoid", "relu"], ["tanh"])}, 1
    with processes(arguments.workers) as pool:
        for name, (settings, *of) in grids.items():
            run(pool, list(pairs(*of)), settings, most, arguments.out / f"{name}.csv")
    for name in grids:
        rows = read(arguments.out / f"{name}.csv")
        for cure in CURES:
            of = [row for row in rows if SETTINGS[row["task"]].cure == cure]
            if of:
                print(f"\n{name}: {'; '.join(dict.fromkeys(row['task'] for row in of))}")
                report(of)
        calibration(rows)
    if not arguments.quick:
        cured(*[read(arguments.out / f"{name}.csv") for name in FITTED])
    rows = read(arguments.out / "verdicts.csv")
    print(f"written: {arguments.out}/*.csv, {draw(rows, arguments.out / 'verdicts.png')}")
    return rows


def run(pool, chosen, settings, most, path):
    """Trains what is not in the table yet, and adds it there as it comes."""
    done = {tuple(row[name] for name in FIELDS[:5]) for row in read(path)}
    jobs = []
    for name, setting in settings.items():
        for cell, gate, candidate in chosen:
            of = cell, gate or "", candidate, name
            seeds = [s for s in range(most or setting.seeds) if (*of, str(s)) not in done]
            if seeds:
                jobs.append((cell, gate, candidate, name, seeds))
    if not done:
        with path.open("w", newline="") as file:
            csv.writer(file).writerow(FIELDS)
    started = time.time()
    futures = [pool.submit(train, *job) for job in jobs]
    for count, future in enumerate(concurrent.futures.as_completed(futures), 1):
        with path.open("a", newline="") as file:
            csv.writer(file).writerows(future.result())
        minutes = (time.time() - started) / 60
        print(f"\r{path.stem}: {count} of {len(jobs)}, {minutes:.1f} min", end="", flush=True)


if __name__ == "__main__":
    main()
