"""Published results, again: what five papers found of a cell, at a scale of minutes.

Each cell has the task of its paper, smaller, beside the LSTM or GRU of the paper's comparison, with
several seeds. Every training step is on new data. Prints the paper's setting, ours, what the paper
found, and the scores on a test part; writes the learning curves and draws them.

    python examples/published.py            # about 25 minutes on one core
    python examples/published.py ind_rnn    # one of them; the others stay in the table and picture
    python examples/published.py --quick    # one seed, a few steps
"""

import argparse
import collections
import csv
import functools
import os
import pathlib
import time
import typing
from collections.abc import Callable

os.environ.setdefault("KERAS_BACKEND", "tensorflow")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
from gallery import train_all
from verdicts import adding

import keras_gates as kg

TEST, CURVE = 400, 25  # samples of the test part, points of a learning curve
FIELDS = ["result", "model", "seed", "step", "score", "ms_per_step"]


class Result(typing.NamedTuple):
    """A result of a paper.

    `level` is the score from which on the task counts as learned, `trivial` that of the best answer
    that does not look at the input; so the better scores are on the side of `level`. `models` has
    functions that make compiled models, `batch(rng, count)` gives inputs and targets, `test` those
    of the test part if they are others, `score(targets, outputs)` a number.
    """

    source: str
    theirs: str
    ours: str
    found: str
    measure: str
    trivial: float
    level: float
    models: dict[str, Callable]
    batch: Callable
    score: Callable
    size: int
    steps: int
    test: Callable | None = None


# ---------------------------------------------------------------------- tasks


def copying(rng, count, length, symbols):
    """Symbols 1 to 8 at the start are to be given back at the end, `length` steps after a signal,
    9, has come `length` steps after them; else 0. (Hochreiter, Schmidhuber, 1997; Arjovsky et al.,
    2016.)"""
    shown = rng.integers(1, 9, (count, symbols))
    x = np.zeros((count, length + 2 * symbols), "int32")
    y = np.zeros_like(x)
    x[:, :symbols], x[:, length + symbols - 1], y[:, -symbols:] = shown, 9, shown
    return np.eye(10, dtype="float32")[x], y


def selective_copying(rng, count, length, symbols):
    """Symbols 1 to 14 among `length` blanks, 0, are to be given back in their order at the 15s."""
    y = rng.integers(1, 15, (count, symbols)).astype("int32")
    places = np.sort(rng.permuted(np.tile(np.arange(length), (count, 1)), axis=1)[:, :symbols])
    x = np.zeros((count, length + symbols), "int32")
    np.put_along_axis(x, places, y, axis=1)
    x[:, length:] = 15
    return x, y


def first_input(rng, count, length):
    """The first of normally distributed numbers is to be given back at the end."""
    x = rng.normal(size=(count, length, 1)).astype("float32")
    return x, x[:, 0]


@functools.cache
def text():
    """Python's own reference manual, which comes with Python, as numbers, and how many there are.
    The last tenth is the test part."""
    from pydoc_data.topics import topics

    whole = "\n".join(topics[name] for name in sorted(topics))
    characters, codes = np.unique(list(whole), return_inverse=True)
    part = len(codes) * 9 // 10
    return codes[:part].astype("int32"), codes[part:].astype("int32"), len(characters)


def unigram_bits():
    """Those of the test part by how often each character is in the other."""
    train, test, characters = text()
    counts = 1 + np.bincount(train, minlength=characters)
    return float(-np.log2(counts[test] / counts.sum()).mean())


def excerpts(rng, count, length, part):
    """Pieces of the text, and the same one character later."""
    codes = text()[part]
    starts = rng.integers(len(codes) - length, size=(count, 1))
    pieces = codes[starts + np.arange(length + 1)]
    return pieces[:, :-1], pieces[:, 1:]


def test_part(batch):
    return batch(np.random.default_rng(1000), TEST)


def squared_error(y, output):
    return float(np.mean((y - output) ** 2))


def bits(y, output):
    """The cross entropy of logits, in bits."""
    output = output.astype("float64") - output.max(axis=-1, keepdims=True)
    log_sum = np.log2(np.exp(output).sum(axis=-1))
    return float(
        np.mean(log_sum - np.take_along_axis(output, y[..., None], -1)[..., 0] / np.log(2))
    )


def accuracy(y, output):
    """The share of symbols that are right, where there is one to give."""
    return float(np.mean((output.argmax(axis=-1) == y)[y > 0]))


# ---------------------------------------------------------------------- models


def compiled(model, rate, steps=None, loss="mse"):
    """With Adam, whose rate falls to zero along a cosine if there are `steps`, and gradients of a
    norm of 1 at most."""
    if steps is not None:
        rate = keras.optimizers.schedules.CosineDecay(rate, steps)
    model.compile(keras.optimizers.Adam(rate, global_clipnorm=1.0), loss)
    return model


def crossentropy():
    return keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def stacked(cell, features, units, outputs, *arguments, sequences=False):
    """A model of one layer per dict of arguments."""
    last = len(arguments) - 1
    layers = [
        kg.GatedRNN(units, cell=cell, return_sequences=sequences or place < last, **given)
        for place, given in enumerate(arguments)
    ]
    return keras.Sequential([keras.Input((None, features)), *layers, keras.layers.Dense(outputs)])


def independent(units, length, rate, steps):
    """Two layers of IndRNN, whose recurrent weights are at most 2^(1/T) (Li et al., 2018)."""
    bound = 2 ** (1 / length)
    uniform = keras.initializers.RandomUniform
    bounded = {
        "kernel_initializer": keras.initializers.RandomNormal(stddev=0.01),
        "recurrent_constraint": lambda u: keras.ops.clip(u, -bound, bound),
    }
    # The first layer remembers for any time, the last one to the end.
    starts = uniform(0, bound), uniform(0.5 ** (1 / length), bound)
    model = stacked(
        "ind_rnn", 2, units, 1, *({"recurrent_initializer": start, **bounded} for start in starts)
    )
    return compiled(model, rate, steps)


def copier(cell, units, length, rate, chrono):
    """A layer that gives an output at every step. With `chrono` the biases of forget gates start at
    log(Uniform(1, length - 1)), those of input gates at the opposite (Tallec, Ollivier, 2018)."""
    model = stacked(cell, 10, units, 9, {}, sequences=True)
    if chrono:
        cell = model.layers[0].cell
        bias = dict(zip(cell.blocks, np.zeros((len(cell.blocks), units)), strict=True))
        bias["forget"] = np.log(np.array(keras.random.uniform((units,), 1, length - 1)))
        if "input" in bias:
            bias["input"] = -bias["forget"]
        cell.bias.assign(np.concatenate([*bias.values()]))
    return compiled(model, rate, loss=crossentropy())


def residual(cell, layers, units, length, rate):
    """Residual blocks of layer normalization, a recurrent layer and a dense one; the outputs at the
    last steps, after the first `length`."""
    inputs = keras.Input((None,), dtype="int32")
    x = keras.layers.Embedding(16, units)(inputs)
    for _ in range(layers):
        normalized = keras.layers.LayerNormalization()(x)
        hidden = kg.GatedRNN(units, cell=cell, return_sequences=True)(normalized)
        x = x + keras.layers.Dense(units)(hidden)
    x = keras.layers.Cropping1D((length, 0))(keras.layers.LayerNormalization()(x))
    model = keras.Model(inputs, keras.layers.Dense(15)(x))
    return compiled(model, rate, loss=crossentropy())


def character_model(cell, units, rate):
    characters = text()[2]
    layers = [
        keras.Input((None,), dtype="int32"),
        keras.layers.Embedding(characters, 32),
        kg.GatedRNN(units, cell=cell, return_sequences=True),
        keras.layers.Dense(characters),
    ]
    return compiled(keras.Sequential(layers), rate, loss=crossentropy())


# ---------------------------------------------------------------------- results


def ind_rnn():
    length, units, steps, rate = 1000, 32, 2500, 2e-3
    batch = functools.partial(adding, length=length)
    return Result(
        source="Li et al., 2018: IndRNN on the adding problem",
        theirs="T = 1000, two layers of 128 units, the LSTM one, batches of 50, tens of thousands "
        "of steps",
        ours=f"T = {length}, layers of {units} units, {steps} steps",
        found="the IndRNN gets far below the variance, the LSTM does not",
        measure="squared error",
        trivial=float(np.var(test_part(batch)[1])),
        level=0.05,
        models={
            "IndRNN, 2 layers": lambda: independent(units, length, rate, steps),
            "LSTM": lambda: compiled(stacked("lstm", 2, units, 1, {}), rate, steps),
        },
        batch=batch,
        score=squared_error,
        size=50,
        steps=steps,
    )


def janet():
    length, symbols, steps, rate = 100, 3, 2500, 5e-3
    return Result(
        source="van der Westhuizen, Lasenby, 2018; Tallec, Ollivier, 2018: JANET and chrono start "
        "on the copy task",
        theirs="10 symbols, T = 500, 128 units, batches of 50, tens of thousands of steps",
        ours=f"{symbols} symbols, T = {length}, 64 units, {steps} steps",
        found="with the chrono start JANET and LSTM learn to copy, and an LSTM without it does not",
        measure="share of symbols recalled",
        trivial=1 / 8,
        level=0.9,
        models={
            label: functools.partial(copier, cell, 64, length, rate, chrono)
            for label, cell, chrono in (
                ("JANET, chrono", "janet", True),
                ("JANET", "janet", False),
                ("LSTM, chrono", "lstm", True),
                ("LSTM", "lstm", False),
            )
        },
        batch=functools.partial(copying, length=length, symbols=symbols),
        score=accuracy,
        size=50,
        steps=steps,
    )


def min_gru():
    length, symbols, steps, rate = 64, 4, 1000, 3e-3
    return Result(
        source="Feng et al., 2024: minGRU on selective copying",
        theirs="16 symbols among 4096 steps, one to three layers, 400,000 steps",
        ours=f"{symbols} symbols among {length} steps, 64 units, {steps} steps",
        found="one layer recalls 37%, two 97%, three 99.5%",
        measure="share of symbols recalled",
        trivial=1 / 14,
        level=0.9,
        models={
            label: functools.partial(residual, cell, layers, 64, length, rate)
            for label, cell, layers in (
                ("minGRU, 3 layers", "min_gru", 3),
                ("minGRU, 1 layer", "min_gru", 1),
                ("GRU, 1 layer", "gru", 1),
            )
        },
        batch=functools.partial(selective_copying, length=length, symbols=symbols),
        score=accuracy,
        size=64,
        steps=steps,
    )


def layer_norm_lstm():
    length, units, steps, rate = 64, 128, 500, 8e-3
    return Result(
        source="Ba et al., 2016: LSTM with layer normalization",
        theirs="sentence vectors, reading, drawing and handwriting, for days",
        ours=f"the next character of Python's manual, {units} units, {length} steps back, "
        f"{steps} steps",
        found="with layer normalization an LSTM gets to the same loss in fewer steps",
        measure="bits per character",
        trivial=unigram_bits(),
        level=2.6,
        models={
            label: functools.partial(character_model, cell, units, rate)
            for label, cell in (("layer-norm LSTM", "layer_norm_lstm"), ("LSTM", "lstm"))
        },
        batch=functools.partial(excerpts, length=length, part=0),
        test=functools.partial(excerpts, length=length, part=1),
        score=bits,
        size=32,
        steps=steps,
    )


def n_brc():
    length, units, steps, rate = 200, 32, 1200, 3e-3
    batch = functools.partial(first_input, length=length)
    return Result(
        source="Vecoven et al., 2021: nBRC copying its first input",
        theirs="T up to 600, two layers of 100 units, batches of 100, 30,000 steps",
        ours=f"T = {length}, two layers of {units} units, batches of 50, {steps} steps",
        found="the bistable cell learns it at every T, GRU and LSTM not at the longest",
        measure="squared error",
        trivial=float(np.var(test_part(batch)[1])),
        level=0.1,
        models={
            label: lambda cell=cell: compiled(stacked(cell, 1, units, 1, {}, {}), rate, steps)
            for label, cell in (("nBRC", "n_brc"), ("GRU", "gru"), ("LSTM", "lstm"))
        },
        batch=batch,
        score=squared_error,
        size=50,
        steps=steps,
    )


RESULTS = {
    function.__name__: function for function in (ind_rnn, janet, min_gru, layer_norm_lstm, n_brc)
}


# ---------------------------------------------------------------------- training


def train(name, label, seed, steps=None):
    """Rows of a learning curve: the scores on the test part after so many steps."""
    keras.utils.set_random_seed(seed)
    result = RESULTS[name]()
    model, rng = result.models[label](), np.random.default_rng(seed)
    x, y = test_part(result.test or result.batch)
    steps = steps or result.steps
    rows, seconds = [], 0.0
    for step in range(1, steps + 1):
        batch = result.batch(rng, result.size)
        started = time.process_time()
        model.train_on_batch(*batch)
        if step > 1:  # the first one traces
            seconds += time.process_time() - started
        if step % max(1, steps // CURVE) == 0:
            score = result.score(y, model.predict(x, batch_size=100, verbose=0))
            rows.append((name, label, seed, step, score, 1000 * seconds / max(1, step - 1)))
    return rows


# ---------------------------------------------------------------------- report


def read(path):
    """The rows of a table that was written before."""
    if not path.exists():
        return []
    with path.open(newline="") as file:
        _, *rows = csv.reader(file)
    return [(*row[:2], int(row[2]), int(row[3]), *map(float, row[4:])) for row in rows]


def curves(rows, name):
    """From each model of a result to its learning curves: steps and scores of each seed."""
    found = collections.defaultdict(lambda: collections.defaultdict(list))
    for of, label, seed, step, score, _ in rows:
        if of == name:
            found[label][seed].append((step, score))
    return {
        label: [np.array(curve).T for curve in of_seeds.values()]
        for label, of_seeds in found.items()
    }


def steps_to(level, curve, lower):
    """The first step from which on the score is as good as `level`, or None."""
    steps, scores = curve
    bad = np.flatnonzero(~(scores <= level if lower else scores >= level))
    first = bad[-1] + 1 if len(bad) else 0
    return int(steps[first]) if first < len(steps) else None


def table(rows, name):
    """Lines on one result."""
    result = RESULTS[name]()
    lower = result.level < result.trivial
    sign = "<=" if lower else ">="
    lines = [
        "",
        f"{name}: {result.source}",
        f"  the paper: {result.theirs}: {result.found}",
        f"  here: {result.ours}",
        f"  {'':<18}{result.measure:>26}{f'{sign} {result.level:g}':>12}{'after steps':>20}"
        f"{'CPU ms a step':>16}",
    ]
    for label, of_seeds in curves(rows, name).items():
        last = [scores[-1] for _, scores in of_seeds]
        reached = [steps_to(result.level, curve, lower) for curve in of_seeds]
        after = sorted(step for step in reached if step)
        taken = np.mean([row[5] for row in rows if row[:2] == (name, label)])
        spread = f"{after[0]} to {after[-1]}" if after else "-"
        lines.append(
            f"  {label:<18}{f'{np.mean(last):.4f} ({min(last):.4f} to {max(last):.4f})':>26}"
            f"{f'{len(after)} of {len(last)}':>12}{spread:>20}{taken:>16.1f}"
        )
    return lines


def draw(rows, names, path):
    """The learning curves, a panel for each result, a line for each seed."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    columns = min(len(names), 2)
    height = -(-len(names) // columns)
    figure, axes = plt.subplots(
        height, columns, figsize=(5 * columns, 3.2 * height), layout="constrained", squeeze=False
    )
    for axis in axes.flat[len(names) :]:
        axis.set_axis_off()
    for axis, name in zip(axes.flat, names, strict=False):
        result = RESULTS[name]()
        for number, (label, of_seeds) in enumerate(curves(rows, name).items()):
            for place, curve in enumerate(of_seeds):
                axis.plot(*curve, f"C{number}", alpha=0.7, label=None if place else label)
        axis.axhline(
            result.trivial, color="C3", linestyle=":", label="without looking at the input"
        )
        if result.measure == "squared error":
            axis.set_yscale("log")
        axis.set_title(result.source.split(": ")[1], fontsize=10)
        axis.set_xlabel("training steps")
        axis.set_ylabel(result.measure)
        axis.grid(alpha=0.3)
        axis.legend(fontsize=8)
    figure.savefig(path, dpi=130)
    plt.close(figure)
    return path


def main(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(RESULTS)}")
    parser.add_argument("--quick", action="store_true", help="one seed, two steps")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("out"))
    arguments = parser.parse_args(argv)
    for name in arguments.names:
        if name not in RESULTS:
            parser.error(f"NAME must be one of {', '.join(RESULTS)}. Received: {name}")
    arguments.out.mkdir(parents=True, exist_ok=True)
    names = arguments.names or list(RESULTS)
    seeds, steps = (1, 2) if arguments.quick else (arguments.seeds, None)
    jobs = [
        (name, label, seed, steps)
        for name in names for label in RESULTS[name]().models for seed in range(seeds)
    ]  # fmt: skip
    path = arguments.out / "published.csv"
    rows = [row for some in train_all(train, jobs) for row in some]
    rows += [row for row in read(path) if row[0] not in names]
    rows.sort(key=lambda row: list(RESULTS).index(row[0]))  # stable
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([FIELDS, *rows])
    for name in names:
        print("\n".join(table(rows, name)))
    drawn = [name for name in RESULTS if name in {row[0] for row in rows}]
    print(f"written: {path}, {draw(rows, drawn, arguments.out / 'published.png')}")
    return rows


if __name__ == "__main__":
    main()
