"""How fast GatedRNN trains and runs on a GPU, against keras.layers and cuDNN.

    python examples/benchmark.py --device gpu               # on TensorFlow, under four minutes
    KERAS_BACKEND=jax python examples/benchmark.py --device gpu
    python examples/benchmark.py --device gpu --rehearse    # tiny, on a CPU, and writes nothing

It takes keras_gates and a backend that sees the GPU: `pip install "tensorflow[and-cuda]"`, or
`pip install "jax[cuda12]"`, or PyTorch built with CUDA and `pip install triton`.

A training step is the layer over the batch, the gradients of the mean of squares of all hidden
states at its weights, and gradient descent: one compiled function on JAX and on TensorFlow (by XLA
where Keras would). The sides take turns, and a call ends when the GPU is done. Each row also says
how far outputs and gradients are from those of keras.layers, and which path the layers took;
in brackets stands how many times as long keras.layers takes.

PyTorch's own layers, which cuDNN runs, and haste (`haste_pytorch`) are measured where they are
installed, in a process of their own: two libraries that bring cuDNN do not go together in one.

Rows that there is no time for are named at the end; a side that fails is noted, and the rest goes
on.
"""

import argparse
import collections
import contextlib
import importlib
import importlib.util
import itertools
import json
import os
import pathlib
import platform
import subprocess
import sys
import time
import warnings

import numpy as np

os.environ.setdefault("KERAS_BACKEND", "tensorflow")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
# No library takes the whole GPU: the process of PyTorch's layers uses it too.
os.environ.setdefault("TF_FORCE_GPU_ALLOW_GROWTH", "true")
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")

Shape = collections.namedtuple("Shape", "batch time_steps features units")
SHAPES = [
    Shape(64, 100, 64, 128),
    Shape(64, 400, 64, 256),
    Shape(256, 200, 128, 512),
    Shape(32, 1000, 64, 128),
]
REHEARSED = [Shape(3, 5, 4, 6)]
CELLS, ACTIVATIONS = ("gru", "lstm"), ("relu", "softsign", "tanh")
THEIRS, AUTO, FUSED = "keras.layers", 'backprop="auto"', 'backprop="fused"'
MODES = ("train", "inference")
RATE = 1e-6  # of gradient descent: the weights stay about where they are
SECONDS = 225  # all in all


# ---------------------------------------------------------------------- the sides


def sequences(shape):
    return np.random.default_rng(0).normal(size=shape[:3]).astype("float32")


def layers_of(cell, activation, shape):
    """From the name of each side to its layer, all with the same weights."""
    import keras

    import keras_gates as kg

    kind = {"gru": keras.layers.GRU, "lstm": keras.layers.LSTM}[cell]
    units = shape.units
    made = {THEIRS: kind(units, activation=activation, return_sequences=True)}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", kg.UnstableActivationsWarning)
        for side, backprop in ((AUTO, "auto"), (FUSED, "fused")):
            made[side] = kg.GatedRNN(
                units, cell, candidate_activation=activation, backprop=backprop,
                return_sequences=True,
            )  # fmt: skip
    for layer in made.values():
        layer.build((shape.batch, shape.time_steps, shape.features))
    kernel, recurrent_kernel, bias = made[THEIRS].get_weights()
    for layer in made.values():
        # Smaller recurrent weights: states of relu stay finite over a thousand steps.
        layer.set_weights([kernel, 0.5 * recurrent_kernel, bias])
    return made


class OnTensorFlow:
    """What a layer does for a batch, as functions that return when it is done.

    Attributes:
        train, inference: one training step, one prediction.
        values: the list of the outputs and the gradients at the weights, as arrays.
    """

    def __init__(self, layer, x):
        import tensorflow as tf

        tf.get_logger().setLevel("ERROR")  # each row is traced anew, which it warns of
        x = tf.constant(x)
        compiled = {"jit_compile": self.compiled(layer), "autograph": False}
        variables = layer.trainable_variables

        def loss_and_gradients():
            with tf.GradientTape() as tape:
                output = layer(x, training=True)
                loss = tf.reduce_mean(tf.square(output))
            return loss, output, tape.gradient(loss, [v.value for v in variables])

        @tf.function(**compiled)
        def train():
            loss, _, gradients = loss_and_gradients()
            for variable, gradient in zip(variables, gradients, strict=True):
                variable.assign_sub(RATE * gradient)
            return loss

        @tf.function(**compiled)
        def predict():
            output = layer(x)
            return output, output[0, -1, 0]

        @tf.function(**compiled)
        def values():
            _, output, gradients = loss_and_gradients()
            return [output, *gradients]

        self.train = lambda: train().numpy()
        self.inference = lambda: predict()[1].numpy()
        self.values = lambda: [value.numpy() for value in values()]

    @staticmethod
    def compiled(layer):
        """Whether Keras would have XLA compile a model with the layer."""
        return bool(layer.supports_jit and gpu_name())

    @staticmethod
    def gpu():
        import tensorflow as tf

        found = tf.config.list_physical_devices("GPU")
        details = [tf.config.experimental.get_device_details(gpu) for gpu in found]
        return details[0].get("device_name", "unknown") if details else None


class OnJax:
    """See `OnTensorFlow`."""

    def __init__(self, layer, x):
        import jax

        x = jax.numpy.asarray(x)
        weights = [v.value for v in layer.trainable_variables]
        others = [v.value for v in layer.non_trainable_variables]

        # Of x too: what jit is not told of is a constant, which is no sequence to be compiled for.
        def loss_of(weights, x):
            output, _ = layer.stateless_call(weights, others, x, training=True)
            return jax.numpy.mean(output**2), output

        @jax.jit
        def step(weights, x):
            (loss, _), gradients = jax.value_and_grad(loss_of, has_aux=True)(weights, x)
            return [w - RATE * g for w, g in zip(weights, gradients, strict=True)], loss

        @jax.jit
        def predict(weights, x):
            return layer.stateless_call(weights, others, x)[0]

        @jax.jit
        def values(weights, x):
            (_, output), gradients = jax.value_and_grad(loss_of, has_aux=True)(weights, x)
            return [output, *gradients]

        def train():
            weights[:], loss = jax.block_until_ready(step(weights, x))
            return loss

        self.train = train
        self.inference = lambda: jax.block_until_ready(predict(weights, x))
        self.values = lambda: [np.asarray(value) for value in values(weights, x)]

    @staticmethod
    def gpu():
        import jax

        return jax.devices()[0].device_kind if jax.default_backend() == "gpu" else None


class OnTorch:
    """See `OnTensorFlow`. A layer of PyTorch gives a tuple, with the hidden states first."""

    def __init__(self, layer, x, training=True):
        import torch

        device = "cuda" if torch.cuda.is_available() else "cpu"
        x = torch.from_numpy(x).to(device)
        given = {"training": True} if training else {}
        weights = [w for w in layer.parameters() if w.requires_grad]

        def output_of(**given):
            found = layer(x, **given)
            return found[0] if isinstance(found, tuple) else found

        def loss_and_gradients():
            output = output_of(**given)
            loss = torch.mean(output**2)
            return loss, output, torch.autograd.grad(loss, weights)

        def train():
            loss, _, gradients = loss_and_gradients()
            with torch.no_grad():
                for weight, gradient in zip(weights, gradients, strict=True):
                    weight -= RATE * gradient
            self._wait()
            return loss

        def predict():
            with torch.no_grad():
                output = output_of()
            self._wait()
            return output

        def values():
            _, output, gradients = loss_and_gradients()
            return [value.detach().cpu().numpy() for value in (output, *gradients)]

        self.train, self.inference, self.values = train, predict, values

    @staticmethod
    def _wait():
        import torch

        if torch.cuda.is_available():
            torch.cuda.synchronize()

    @staticmethod
    def gpu():
        import torch

        return torch.cuda.get_device_name(0) if torch.cuda.is_available() else None


BACKENDS = {"tensorflow": OnTensorFlow, "jax": OnJax, "torch": OnTorch}


def backend():
    import keras

    return keras.backend.backend()


def gpu_name():
    """The name of the GPU that the backend sees, or None."""
    return BACKENDS[backend()].gpu()


# ---------------------------------------------------------------------- measuring


def alternate(calls, seconds, failed):
    """From the name of each call to the time of the first one, which may compile, and the median,
    the least and the longest of its turns, in seconds.

    Args:
        calls: from a name to a function that returns when it is done.
        seconds: how long this may take, about, after the first calls: three turns at least, or one
            where that takes over a second.
        failed: from a name to what went wrong, which is added to.
    """
    first, once, times = {}, {}, {}
    for name, call in calls.items():
        with noting(failed, name):
            first[name] = timed(call)
            once[name] = timed(call)
            times[name] = []
    fewest = 3 if sum(once.values()) < 1 else 1
    for turn in range(25):
        started = time.perf_counter()
        for name in [name for name in times if name not in failed]:
            with noting(failed, name):
                # As many calls in one turn as last 20 ms.
                repeats = max(1, min(20, int(0.02 / once[name])))
                times[name].append(timed(calls[name], repeats))
        seconds -= time.perf_counter() - started
        if turn + 1 >= fewest and seconds <= 0:
            break
    return {
        name: {
            "first": first[name],
            "median": float(np.median(found)),
            "least": min(found),
            "most": max(found),
            "turns": len(found),
        }
        for name, found in times.items()
        if found and name not in failed
    }


def timed(call, repeats=1):
    started = time.perf_counter()
    for _ in range(repeats):
        call()
    return (time.perf_counter() - started) / repeats


@contextlib.contextmanager
def noting(failed, name):
    """One side that fails, of memory perhaps, is no reason to measure no other."""
    try:
        yield
    except Exception as error:
        failed.setdefault(name, f"{type(error).__name__}: {error}".splitlines()[0][:300])


def deviation(found, expected):
    """The largest difference of two arrays, relative to the largest expected value."""
    largest = float(np.abs(expected).max())
    return float(np.abs(found - expected).max()) / largest if largest else 0.0


def measure(cell, activation, shape, seconds):
    """The row of one layer at one shape."""
    import keras

    keras.utils.clear_session()
    keras.utils.set_random_seed(0)
    x, failed = sequences(shape), {}
    layers = layers_of(cell, activation, shape)
    sides = {side: BACKENDS[backend()](layer, x) for side, layer in layers.items()}
    values, deviations = {}, {}
    for side in sides:
        with noting(failed, side):
            values[side] = sides[side].values()
            if side != THEIRS and THEIRS in values:
                pairs = list(zip(values[side], values[THEIRS], strict=True))
                deviations[side] = {
                    "output": deviation(*pairs[0]),
                    "gradients": max(deviation(*pair) for pair in pairs[1:]),
                }
    del values
    row = {"cell": cell, "activation": activation, "shape": list(shape), "deviation": deviations}
    for mode in MODES:
        calls = {side: getattr(s, mode) for side, s in sides.items() if side not in failed}
        row[mode] = alternate(calls, seconds, failed)
    row["path"] = {side: path(layers[side]) for side in (AUTO, FUSED)}
    row["failed"] = failed
    return row


def path(layer):
    """What `explain` says of the paths that the layer took."""
    lines = [line.strip() for line in layer.explain().splitlines()]
    return [line for line in lines if "when last traced" in line] or lines[:1]


# ---------------------------------------------------------------------- PyTorch's layers and haste


def others(shapes, seconds):
    """From "cell, shape" to the same measurements of layers of PyTorch and of haste."""
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    makers = {"torch.nn": torch.nn}
    if device == "cuda" and importlib.util.find_spec("haste_pytorch"):
        makers["haste"] = importlib.import_module("haste_pytorch")
    found = {}
    for shape in shapes:
        for cell in CELLS:
            sides, failed = {}, {}
            for name, module in makers.items():
                with noting(failed, name):
                    kind = getattr(module, cell.upper())
                    layer = kind(shape.features, shape.units, batch_first=True).to(device)
                    sides[name] = OnTorch(layer, sequences(shape), training=False)
            row = {
                mode: alternate({n: getattr(s, mode) for n, s in sides.items()}, seconds, failed)
                for mode in MODES
            }
            found[key(cell, shape)] = {**row, "failed": failed}
    return {"torch": torch.__version__, "rows": found}


def key(cell, shape):
    return f"{cell} {'x'.join(map(str, shape))}"


def in_own_process(rehearse):
    """What `others` finds; None where PyTorch is not installed or sees no GPU."""
    if importlib.util.find_spec("torch") is None:
        return None
    command = [sys.executable, str(pathlib.Path(__file__).resolve()), "--others"]
    done = subprocess.run(
        [*command, *["--rehearse"] * rehearse], capture_output=True, text=True, check=False
    )
    if done.returncode:
        print(f"torch.nn was not measured: {done.stderr.strip().splitlines()[-1:]}")
        return None
    return json.loads(done.stdout.strip().splitlines()[-1])


# ---------------------------------------------------------------------- report


def machine():
    import keras

    import keras_gates as kg

    name = backend()
    return {
        "gpu": gpu_name(),
        "processor": platform.processor() or platform.machine(),
        "python": platform.python_version(),
        "backend": name,
        name: importlib.import_module(name).__version__,
        "keras": keras.__version__,
        "keras_gates": kg.__version__,
    }


def ratios(row, mode):
    """How many times as long keras.layers takes as each other side."""
    medians = {side: of["median"] for side, of in row[mode].items()}
    theirs = medians.pop(THEIRS, None)
    return {side: theirs / median for side, median in medians.items()} if theirs else {}


def print_means(rows):
    """The same over the rows of each activation: the geometric mean and the least."""
    print("how many times as long keras.layers takes, geometric mean (least):")
    for activation, mode in itertools.product(ACTIVATIONS, MODES):
        found = collections.defaultdict(list)
        for row in rows:
            if row["activation"] == activation:
                for side, ratio in ratios(row, mode).items():
                    found[side].append(ratio)
        text = "  ".join(
            f"{side} {np.exp(np.mean(np.log(over))):.2f} ({min(over):.2f})"
            for side, over in found.items()
        )
        print(f"    {activation}, {mode}: {text}")


def print_row(row):
    for mode in MODES:
        faster = ratios(row, mode)
        text = "  ".join(
            f"{side} {1e3 * of['median']:.3g} ms"
            + (f" ({faster[side]:.2f})" if side in faster else "")
            for side, of in row[mode].items()
        )
        name = f"{row['cell'].upper()}({row['activation']})"
        print(f"{name:<15} {'x'.join(map(str, row['shape'])):<16} {mode:<10} {text}", flush=True)
    for side, of in row["deviation"].items():
        parts = ", ".join(f"{name} {value:.1e}" for name, value in of.items())
        print(f"    {side}: {parts} from keras.layers; {'; '.join(row['path'][side])}")
    for side, error in row["failed"].items():
        print(f"    {side} failed: {error}", flush=True)


def positive_integer(text):
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"must be a positive integer. Received: {text}")
    return int(text)


def main(argv=None):
    """Runs the benchmark; returns what it also writes to benchmark_gpu_<backend>.json."""
    started = time.perf_counter()
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", choices=["gpu"], default="gpu", help=argparse.SUPPRESS)
    parser.add_argument(
        "--rehearse", action="store_true", help="tiny shapes, on a CPU if need be; writes nothing"
    )
    parser.add_argument(
        "--turn",
        type=positive_integer,
        help="on JAX: time steps of one turn of a loop, in the place of 8",
    )
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("out"))
    parser.add_argument("--others", action="store_true", help=argparse.SUPPRESS)
    arguments, unknown = parser.parse_known_args(argv)
    if unknown:
        parser.error(
            f"unrecognized arguments: {' '.join(unknown)}. With --device gpu, --rehearse (tiny "
            "shapes), --turn and --out can be given"
        )
    shapes = REHEARSED if arguments.rehearse else SHAPES
    seconds = 0.0 if arguments.rehearse else 1.0  # of one mode of one row, about
    if arguments.others:
        if OnTorch.gpu() is None and not arguments.rehearse:
            sys.exit("PyTorch sees no GPU")
        print(json.dumps(others(shapes, seconds / 2)))
        return None
    chosen = os.environ["KERAS_BACKEND"]
    if importlib.util.find_spec(chosen) is None:
        sys.exit(
            f"The {chosen} backend is not installed here. Install it with CUDA, or choose another "
            f"one of {', '.join(BACKENDS)} with KERAS_BACKEND"
        )
    if gpu_name() is None and not arguments.rehearse:
        sys.exit(
            f"The {backend()} backend sees no GPU here. Install it with CUDA, choose another one "
            "with KERAS_BACKEND=jax or torch, or try the script out on this CPU: --rehearse"
        )
    if arguments.turn:
        importlib.import_module("keras_gates.engine.jax").STEPS_OF_A_TURN = arguments.turn
    result = {"machine": machine(), "turn": arguments.turn, "rows": [], "left_out": []}
    print("  ".join(f"{name} {value}" for name, value in result["machine"].items()))
    print(
        "Shapes are batch x time steps x features x units; (1.50) says that keras.layers takes 1.5 "
        "times as long."
    )
    result["others"] = in_own_process(arguments.rehearse)
    path = arguments.out / f"benchmark_gpu_{backend()}.json"
    longest = 0.0
    for shape in shapes:
        for cell in CELLS:
            for activation in ACTIVATIONS:
                before = time.perf_counter()
                if result["rows"] and before - started + longest > SECONDS:
                    result["left_out"].append([cell, activation, *shape])
                    continue
                row = measure(cell, activation, shape, seconds)
                measured = (result["others"] or {"rows": {}})["rows"].get(key(cell, shape))
                if activation == "tanh" and measured:
                    for mode in MODES:
                        row[mode] |= measured[mode]
                    row["failed"] |= measured["failed"]
                result["rows"].append(row)
                print_row(row)
                if not arguments.rehearse:
                    arguments.out.mkdir(parents=True, exist_ok=True)
                    path.write_text(json.dumps(result, indent=2) + "\n")
                longest = max(longest, time.perf_counter() - before)
    print_means(result["rows"])
    if result["left_out"]:
        print(f"left out for time: {result['left_out']}")
    if arguments.rehearse:
        print("a rehearsal: times of tiny shapes tell nothing, and nothing is written")
    else:
        print(f"written: {path}")
    return result


if __name__ == "__main__":
    main()
