"""How fast GatedRNN trains and runs, against keras.layers and PyTorch.

Every figure is a ratio: both sides alternate in one process, and the medians over the rounds are
compared, so that a machine that speeds up and slows down does so for both. A ratio above 1 means
that GatedRNN is faster. PyTorch takes part where it is installed (`pip install torch`).

GatedRNN has its default settings. The first training step, and a fit of 20 steps over 10 lengths,
are measured in new processes, and so are JAX and PyTorch as Keras' backends, where installed.

    python examples/benchmark.py            # all rows, about 15 minutes on two cores
    python examples/benchmark.py --quick    # the two small shapes, three rounds
    python examples/benchmark.py --device gpu   # another script: see benchmark_gpu.py
"""

import argparse
import collections
import importlib.util
import json
import os
import pathlib
import platform
import re
import subprocess
import sys
import time

if __name__ == "__main__" and re.search(r"--device[ =]gpu", " ".join(sys.argv)):
    # Before TensorFlow is imported, which there need not be.
    import benchmark_gpu

    benchmark_gpu.main()
    sys.exit()

os.environ.setdefault("KERAS_BACKEND", "tensorflow")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
import tensorflow as tf

import keras_gates as kg
from keras_gates.timing import OURS, alternate, compare

try:
    import torch
except ImportError:
    torch = None

Shape = collections.namedtuple("Shape", "batch time_steps features units")
SHAPES = [
    Shape(1, 100, 64, 128),
    Shape(32, 50, 32, 32),
    Shape(64, 100, 64, 128),
    Shape(64, 400, 64, 128),
    Shape(128, 200, 128, 256),
    Shape(32, 1600, 16, 64),
]
# name -> (cell, gate activation, candidate activation)
LAYERS = {
    "GRU(relu, sigmoid)": ("gru", "sigmoid", "relu"),
    "GRU(tanh, hard_sigmoid)": ("gru", "hard_sigmoid", "tanh"),
    "GRU(default)": ("gru", "sigmoid", "tanh"),
    "LSTM(softsign, hard_sigmoid)": ("lstm", "hard_sigmoid", "softsign"),
    "LSTM(default)": ("lstm", "sigmoid", "tanh"),
    "SimpleRNN(relu)": ("simple", None, "relu"),
}
KERAS = {"gru": keras.layers.GRU, "lstm": keras.layers.LSTM, "simple": keras.layers.SimpleRNN}
BLOCKS = {"gru": 3, "lstm": 4, "simple": 1}
# Those of them that keras.layers have on other backends too, and the shapes measured there.
ELSEWHERE = ["GRU(relu, sigmoid)", "LSTM(softsign, hard_sigmoid)", "SimpleRNN(relu)"]
SHAPES_ELSEWHERE = SHAPES[1:3]
# The memory of one training step is measured at this shape.
LONG = Shape(64, 1000, 64, 256)


# ---------------------------------------------------------------------- the sides


def keras_side(layer, shape, jit_compile="auto"):
    """What trains one batch, and what predicts it, of a Keras model of `layer` and a Dense."""
    model = keras.Sequential(
        [keras.Input((shape.time_steps, shape.features)), layer, keras.layers.Dense(1, name="head")]
    )
    model.compile(keras.optimizers.SGD(1e-3), "mse", jit_compile=jit_compile)
    x, y = map(tf.constant, data(shape))
    return {
        "train": lambda: model.train_on_batch(x, y),
        "inference": lambda: model.predict_on_batch(x),
    }


def torch_side(layer, shape):
    """The same of a PyTorch module from (batch, time, features) to a sequence of hidden states."""
    head = torch.nn.Linear(shape.units, 1)
    parameters = [*layer.parameters(), *head.parameters()]
    x, y = map(torch.from_numpy, data(shape))

    def output():
        return head(layer(x)[0][:, -1])

    def train():
        loss = torch.nn.functional.mse_loss(output(), y)
        # Gradient descent by hand: torch.optim loads a compiler that TensorFlow's cannot stand.
        with torch.no_grad():
            for weight, d in zip(parameters, torch.autograd.grad(loss, parameters), strict=True):
                weight -= 1e-3 * d

    def predict():
        with torch.no_grad():
            return output().numpy()

    return {"train": train, "inference": predict}


def stepwise_torch_gru(features, units):
    """The GRU with a relu candidate that users write step by step, for want of a fused one."""

    class StepwiseGRU(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.from_input = torch.nn.Linear(features, 3 * units)
            self.from_state = torch.nn.Linear(units, 3 * units)

        def forward(self, x):
            h = x.new_zeros(x.shape[0], units)
            outputs = []
            for t in range(x.shape[1]):
                x_z, x_r, x_n = self.from_input(x[:, t]).chunk(3, dim=-1)
                u_z, u_r, u_n = self.from_state(h).chunk(3, dim=-1)
                z, r = torch.sigmoid(x_z + u_z), torch.sigmoid(x_r + u_r)
                n = torch.relu(x_n + r * u_n)
                h = z * h + (1 - z) * n
                outputs.append(h)
            return torch.stack(outputs, dim=1), h

    return StepwiseGRU()


def sides(name, shape):
    """From the name of each side to its `train` and `inference`."""
    cell, gate, candidate = LAYERS[name]
    features, units = shape.features, shape.units
    ours = {"cell": cell, "candidate_activation": candidate}
    theirs = {"activation": candidate}
    if gate:
        ours["gate_activation"] = theirs["recurrent_activation"] = gate
    found = {
        OURS: keras_side(kg.GatedRNN(units, **ours), shape),
        "with clipping": keras_side(kg.GatedRNN(units, grad_clip_norm=1.0, **ours), shape),
        "keras.layers": keras_side(KERAS[cell](units, **theirs), shape),
        "keras.layers, XLA": keras_side(KERAS[cell](units, **theirs), shape, jit_compile=True),
    }
    if torch is not None:
        fused = {
            "GRU(default)": lambda: torch.nn.GRU(features, units, batch_first=True),
            "LSTM(default)": lambda: torch.nn.LSTM(features, units, batch_first=True),
            "SimpleRNN(relu)": lambda: torch.nn.RNN(
                features, units, nonlinearity="relu", batch_first=True
            ),
        }
        if name in fused:
            found["torch.nn"] = torch_side(fused[name](), shape)
        if name == "GRU(relu, sigmoid)":
            found["torch, step by step"] = torch_side(stepwise_torch_gru(features, units), shape)
    return found


def data(shape):
    rng = np.random.default_rng(0)
    x = rng.normal(size=shape[:3])
    return x.astype("float32"), rng.normal(size=(shape.batch, 1)).astype("float32")


# ---------------------------------------------------------------------- measuring


def measure(name, shape, rounds):
    """The two rows, training and inference, of one layer at one shape."""
    keras.utils.clear_session()
    made = sides(name, shape)
    rows = []
    for mode in ("train", "inference"):
        # PyTorch in a turn of its own, against the same: its threads disturb what comes next.
        ratios = {}
        for theirs in (False, True):
            calls = {
                side: calls[mode]
                for side, calls in made.items()
                if side == OURS or side.startswith("torch") == theirs
            }
            if len(calls) > 1:
                # PyTorch's threads spin on after their work, which is no concern of the next side.
                pauses = {side: 0.3 for side in calls if side.startswith("torch")}
                medians = alternate(calls, rounds, pauses=pauses)
                mine = medians.pop(OURS)
                ratios.update({side: t / mine for side, t in medians.items()})
                if not theirs:
                    seconds = mine
        rows.append(
            {
                "layer": name,
                "shape": list(shape),
                "mode": mode,
                "seconds": seconds,
                "ratio": ratios,
                "flops": floating_point_operations(name, shape, mode),
            }
        )
    return rows


def floating_point_operations(name, shape, mode):
    """Those of the matrix products: two per weight and time step forward, four more backward."""
    weights = BLOCKS[LAYERS[name][0]] * shape.units * (shape.features + shape.units)
    return (2 if mode == "inference" else 6) * weights * shape.batch * shape.time_steps


def matrix_product_rate(size=1024):
    """Floating-point operations per second of a large matrix product here."""
    a = tf.random.normal((size, size))
    product = tf.function(lambda: tf.linalg.matmul(a, a))
    seconds = alternate({"product": lambda: product().numpy()}, rounds=7)["product"]
    return 2 * size**3 / seconds


def growth_with_time(rounds):
    """How many times longer a training step takes at T = 1600 than at T = 100."""
    keras.utils.clear_session()
    steps = {}
    for time_steps in (100, 1600):
        shape = SHAPES[-1]._replace(time_steps=time_steps)
        layer = relu_gru(OURS, shape.units)
        steps[f"T={time_steps}"] = keras_side(layer, shape)["train"]
    medians = alternate(steps, rounds)
    return medians["T=1600"] / medians["T=100"]


def in_own_process(task, given, backend="tensorflow"):
    """What `task` prints for what it is given, such as a side."""
    command = [sys.executable, __file__, "--task", task, str(given)]
    environment = {**os.environ, "KERAS_BACKEND": backend}
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    return json.loads(done.stdout.strip().splitlines()[-1])


def relu_gru(side, units, **arguments):
    """The layer of the tasks; `arguments` are those of GatedRNN alone."""
    if side == OURS:
        return kg.GatedRNN(units, candidate_activation="relu", **arguments)
    return keras.layers.GRU(units, activation="relu")


def memory(side):
    """Bytes by which one training step at LONG raises the resident memory."""
    layer = relu_gru(side, LONG.units)
    model = keras.Sequential([keras.Input((None, LONG.features)), layer, keras.layers.Dense(1)])
    model.compile("sgd", "mse")
    x, y = map(tf.constant, data(LONG))
    for _ in range(2):  # the graph is made and the optimizer has its variables
        model.train_on_batch(x[:, :5], y)
    # The high-water mark of this process alone; `resource` would begin at that of its parent.
    pathlib.Path("/proc/self/clear_refs").write_text("5")
    before = resident("VmRSS")
    model.train_on_batch(x, y)
    return resident("VmHWM") - before


def resident(field):
    """Bytes of resident memory: now ("VmRSS"), or at most ("VmHWM")."""
    status = pathlib.Path("/proc/self/status").read_text()
    return 1024 * int(re.search(rf"{field}:\s+(\d+) kB", status).group(1))


def first_call(side):
    """Seconds of the very first training step at SHAPES[2]."""
    shape = SHAPES[2]
    step = keras_side(relu_gru(side, shape.units), shape)["train"]
    started = time.perf_counter()
    step()
    return time.perf_counter() - started


def short_fit(side):
    """Seconds of a fit of 20 steps over batches of 10 lengths from 20 to 155."""
    features = 16
    model = keras.Sequential([keras.Input((None, features)), relu_gru(side, 64)])
    model.compile("sgd", "mse")
    rng = np.random.default_rng(0)

    def batches():
        for i in range(20):
            x = rng.normal(size=(32, 20 + 15 * (i % 10), features))
            yield x.astype("float32"), rng.normal(size=(32, 64)).astype("float32")

    signature = (tf.TensorSpec((None, None, features)), tf.TensorSpec((None, 64)))
    dataset = tf.data.Dataset.from_generator(batches, output_signature=signature)
    started = time.perf_counter()
    model.fit(dataset, verbose=0)
    return time.perf_counter() - started


TASKS = {"memory": memory, "first call": first_call, "short fit": short_fit}


def against_keras(rounds):
    """From mode to the ratios of keras.layers' time to ours, on the backend of this process."""
    found = {"train": [], "inference": []}
    for shape in SHAPES_ELSEWHERE:
        for name in ELSEWHERE:
            cell, gate, candidate = LAYERS[name]
            activations = {"candidate_activation": candidate}
            if gate:
                activations["gate_activation"] = gate
            timing = compare(
                cell, shape.units, batch=shape.batch, steps=shape.time_steps,
                features=shape.features, rounds=int(rounds), **activations,
            )  # fmt: skip
            for mode, of in (("train", timing.train), ("inference", timing.predict)):
                (theirs,) = (of[side] for side in of if side.startswith("keras.layers"))
                found[mode].append(theirs / of[OURS])
    return found


def measure_backends(rounds):
    """From each other backend that is installed to what `against_keras` finds there."""
    installed = [b for b in ("jax", "torch") if importlib.util.find_spec(b)]
    return {b: in_own_process("against keras", rounds, backend=b) for b in installed}


def measure_tasks(rounds):
    """From each task to the median over `rounds` of each side; the sides take turns."""
    found = {}
    for task in TASKS:
        values = {OURS: [], "keras.layers": []}
        for _ in range(1 if task == "memory" else rounds):
            for side in values:
                values[side].append(in_own_process(task, side))
        found[task] = {side: float(np.median(v)) for side, v in values.items()}
    return found


# ---------------------------------------------------------------------- report


def geometric_mean(values):
    return float(np.exp(np.mean(np.log(list(values)))))


def summary(rows):
    """From mode and side to the geometric mean, the least and the number of ratios."""
    found = {}
    for row in rows:
        for side, ratio in row["ratio"].items():
            found.setdefault(row["mode"], {}).setdefault(side, []).append(ratio)
    return {
        mode: {
            side: {"mean": geometric_mean(r), "least": min(r), "rows": len(r)}
            for side, r in of_mode.items()
        }
        for mode, of_mode in found.items()
    }


def print_row(row, rate):
    ratios = "  ".join(f"{side} {ratio:.2f}" for side, ratio in row["ratio"].items())
    floor = row["flops"] / rate / row["seconds"]
    shape = "x".join(map(str, row["shape"]))
    print(
        f"{row['layer']:<29} {shape:<16} {row['mode']:<9}  {ratios}  floor {floor:.2f}", flush=True
    )


def print_summary(result):
    print("\nratios of time to that of keras_gates; above 1, keras_gates is faster")
    for mode, of_mode in result["summary"].items():
        for side, s in of_mode.items():
            print(
                f"  {mode:<9}  against {side:<20} geometric mean {s['mean']:.2f}, "
                f"least {s['least']:.2f}, {s['rows']} rows"
            )
    for task, of_side in (result["tasks"] or {}).items():
        ours, theirs = of_side[OURS], of_side["keras.layers"]
        unit = (2**20, "MiB") if task == "memory" else (1, "s")
        print(
            f"  {task}: {ours / unit[0]:.2f} {unit[1]} against {theirs / unit[0]:.2f} {unit[1]} "
            f"of keras.layers, {ours / theirs:.2f} times"
        )
    for backend, of_mode in (result["backends"] or {}).items():
        for mode, ratios in of_mode.items():
            print(
                f"  {mode:<9}  against keras.layers on {backend:<5} geometric mean "
                f"{geometric_mean(ratios):.2f}, least {min(ratios):.2f}, {len(ratios)} rows"
            )
    if result["growth"]:
        print(f"  a training step at T=1600 takes {result['growth']:.1f} times one at T=100")


def draw(rows, path):
    """The ratios of all rows, one panel for training and one for inference."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    # Okabe and Ito's colours and different markers: readable in print and for the colour-blind.
    styles = {
        "keras.layers": ("#0072B2", "o"),
        "keras.layers, XLA": ("#E69F00", "s"),
        "torch.nn": ("#D55E00", "^"),
        "torch, step by step": ("#CC79A7", "D"),
        "with clipping": ("#000000", "x"),
    }
    modes = ("train", "inference")
    figure, axes = plt.subplots(
        1, 2, sharey=True, figsize=(11, 1.5 + len(rows) / 2 * 0.22), layout="constrained"
    )
    for axis, mode in zip(axes, modes, strict=True):
        chosen = [row for row in rows if row["mode"] == mode]
        for side, (color, marker) in styles.items():
            points = [
                (row["ratio"][side], i) for i, row in enumerate(chosen) if side in row["ratio"]
            ]
            if points:
                axis.scatter(
                    *zip(*points, strict=True), color=color, marker=marker, s=22, label=side
                )
        axis.axvline(1, color="#000000", lw=0.8)
        axis.set(xscale="log", title=mode, xlabel="time / time of keras_gates")
        axis.xaxis.set_major_formatter("{x:g}")
        axis.xaxis.set_minor_formatter("")
        axis.set_yticks(
            range(len(chosen)),
            [f"{row['layer']}  {'x'.join(map(str, row['shape']))}" for row in chosen],
            fontsize=7,
        )
        axis.grid(alpha=0.3)
    axes[0].invert_yaxis()
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=5, frameon=False)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def machine():
    return {
        "processor": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "tensorflow": tf.__version__,
        "keras": keras.__version__,
        "torch": torch.__version__ if torch else None,
        "keras_gates": kg.__version__,
    }


def main(argv=None):
    """Runs the benchmark; returns what it also writes to benchmark.json."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--quick", action="store_true", help="two shapes, three rounds, no memory or first call"
    )
    parser.add_argument("--layers", nargs="+", choices=LAYERS, default=list(LAYERS), metavar="L")
    parser.add_argument("--device", choices=["cpu"], default="cpu", help="or gpu, in the shell")
    parser.add_argument("--rounds", type=int, help="default: 5")
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("out"))
    parser.add_argument("--task", nargs=2, help=argparse.SUPPRESS)
    arguments, unknown = parser.parse_known_args(argv)
    if unknown:
        parser.error(
            f"unrecognized arguments: {' '.join(unknown)}. With --device gpu, --rehearse and "
            "--turn can be given"
        )
    if arguments.task:
        task, given = arguments.task
        print(json.dumps({**TASKS, "against keras": against_keras}[task](given)))
        return None
    tf.get_logger().setLevel("ERROR")
    arguments.out.mkdir(parents=True, exist_ok=True)
    rounds = arguments.rounds or (3 if arguments.quick else 5)
    print("  ".join(f"{name} {value}" for name, value in machine().items()))
    rate = matrix_product_rate()
    print(f"matrix products: {rate / 1e9:.0f} GFLOP/s; `floor`: share of the time that they need\n")

    rows = []
    for shape in SHAPES[:2] if arguments.quick else SHAPES:
        for name in arguments.layers:
            for row in measure(name, shape, rounds):
                rows.append(row)
                print_row(row, rate)
    tasks = growth = backends = None
    if not arguments.quick:
        tasks, growth = measure_tasks(rounds), growth_with_time(rounds)
        backends = measure_backends(rounds)
    result = {
        "machine": machine(),
        "matrix_product_rate": rate,
        "rounds": rounds,
        "rows": rows,
        "summary": summary(rows),
        "tasks": tasks,
        "growth": growth,
        "backends": backends,
    }
    print_summary(result)
    (arguments.out / "benchmark.json").write_text(json.dumps(result, indent=2) + "\n")
    draw(rows, arguments.out / "benchmark.png")
    print(f"written: {arguments.out / 'benchmark.json'}, {arguments.out / 'benchmark.png'}")
    return result


if __name__ == "__main__":
    main()
