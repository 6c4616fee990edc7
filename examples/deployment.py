"""How fast a trained layer runs as a file of each format, against the SavedModel that Keras writes.

Each layer exists twice with the same weights: as one of keras.layers, which `model.export` of Keras
writes as a SavedModel, and as a GatedRNN, which `keras_gates.export` writes in every format whose
packages are installed (`pip install "keras_gates[onnx,litert,openvino]"`). Every file is run in a
process of its own, with nothing but its runtime; the files take turns, round after round, and the
medians of ratios within a round are compared. A ratio above 1 means faster than Keras' SavedModel.

    python examples/deployment.py            # about five minutes on two cores
    python examples/deployment.py --quick    # one layer, one round
"""

import argparse
import dataclasses
import importlib.util
import json
import os
import pathlib
import platform
import statistics
import tempfile

os.environ.setdefault("KERAS_BACKEND", "tensorflow")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np

import keras_gates as kg
from keras_gates.deployment import export, verify

TIME, FEATURES, UNITS = 100, 64, 128
BATCHES = (1, 64)
KERAS = "SavedModel by Keras"
LAYERS = {
    "GRU(relu, hard_sigmoid)": lambda: keras.layers.GRU(UNITS, "relu", "hard_sigmoid"),
    "GRU(default)": lambda: keras.layers.GRU(UNITS),
    "LSTM(default)": lambda: keras.layers.LSTM(UNITS),
    "SimpleRNN(relu)": lambda: keras.layers.SimpleRNN(UNITS, "relu"),
}
# From a label to the format, what it needs, and its options.
FILES = {
    "SavedModel": ("saved_model", "tensorflow", {}),
    "ONNX": ("onnx", "onnxruntime", {}),
    "LiteRT": ("litert", "ai_edge_litert", {}),
    "LiteRT, int8": ("litert", "ai_edge_litert", {"quantize": "int8"}),
    "OpenVINO": ("openvino", "openvino", {}),
}


@dataclasses.dataclass
class File:
    """A written file and its times.

    Attributes:
        label: of its format.
        format: which runner runs it.
        paths: from a batch size to the file for it.
        size: in bytes.
        difference: the largest to the model, as a share of the output's scale.
        seconds: from a batch size to one median per round.
    """

    label: str
    format: str
    paths: dict
    size: int = 0
    difference: float = 0.0
    seconds: dict = dataclasses.field(default_factory=lambda: {batch: [] for batch in BATCHES})


def main(argv=None):
    """Measures, prints, writes deployment.json and deployment.png; returns what is in the JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="one layer, one round")
    parser.add_argument("--rounds", type=int, default=5, help="default: %(default)s")
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("out"), help="folder")
    arguments = parser.parse_args(argv)
    rounds = 1 if arguments.quick else arguments.rounds
    labels = [label for label, (_, needs, _) in FILES.items() if importlib.util.find_spec(needs)]
    arguments.out.mkdir(parents=True, exist_ok=True)
    rows = []
    for layer in list(LAYERS)[: 1 if arguments.quick else None]:
        with tempfile.TemporaryDirectory() as folder:
            files = write(layer, labels, pathlib.Path(folder))
            measure(files, rounds)
        rows += summarize(layer, files)
        print(format_table([row for row in rows if row["layer"] == layer]), flush=True)
    result = {
        "shape": {"time": TIME, "features": FEATURES, "units": UNITS},
        "rounds": rounds,
        "machine": f"{os.cpu_count()} x {platform.machine()}",
        "rows": rows,
        "mean": means(rows),
    }
    print(format_means(result["mean"]))
    (arguments.out / "deployment.json").write_text(json.dumps(result, indent=2) + "\n")
    draw(rows, arguments.out / "deployment.png")
    return result


def write(layer, labels, folder):
    """The `File`s of a layer: the one that Keras writes first."""
    theirs = keras.Sequential([keras.Input((None, FEATURES), name="frames"), LAYERS[layer]()])
    rng = np.random.default_rng(0)  # biases too, which Keras begins with zeros
    theirs.set_weights([w + 0.05 * rng.normal(size=w.shape) for w in theirs.get_weights()])
    theirs.export(folder / "keras", verbose=False)
    size = sum(file.stat().st_size for file in (folder / "keras").rglob("*") if file.is_file())
    files = [File(KERAS, "saved_model", dict.fromkeys(BATCHES, folder / "keras"), size)]
    ours = kg.from_keras(theirs)
    for label in labels:
        format, _, options = FILES[label]
        file = File(label, format, {})
        for batch in BATCHES:
            fixed = {"batch_size": batch} if format == "litert" else {}
            if batch != BATCHES[0] and not fixed:
                file.paths[batch] = file.paths[BATCHES[0]]
                continue
            path = folder / f"{len(files)}_{batch}"
            report = export(ours, path, format, **options, **fixed)
            file.paths[batch] = pathlib.Path(report.path)
            file.size = report.size
            file.difference = max(file.difference, report.difference.relative)
        files.append(file)
    return files


def measure(files, rounds):
    """Runs all files in turns."""
    rng = np.random.default_rng(0)
    frames = {batch: rng.normal(size=(batch, TIME, FEATURES)) for batch in BATCHES}
    for _ in range(rounds):
        for file in files:
            for batch in BATCHES:
                calls = {"latency/0": {"frames": frames[batch].astype("float32")}}
                found = verify.run(file.format, file.paths[batch], calls)
                file.seconds[batch].append(float(np.median(found["latency/0/seconds"])))


def summarize(layer, files):
    """One row per file."""
    keras_file = files[0]
    return [
        {
            "layer": layer,
            "file": file.label,
            "kB": round(file.size / 1000),
            "difference": file.difference,
            "milliseconds": {b: 1e3 * statistics.median(s) for b, s in file.seconds.items()},
            "ratio": {
                batch: statistics.median(
                    theirs / own
                    for theirs, own in zip(keras_file.seconds[batch], seconds, strict=True)
                )
                for batch, seconds in file.seconds.items()
            },
        }
        for file in files
    ]


def means(rows):
    """From a file's label to the geometric mean and the least of its ratios per batch size."""
    found = {}
    for label in dict.fromkeys(row["file"] for row in rows):
        of_file = [row["ratio"] for row in rows if row["file"] == label]
        found[label] = {
            batch: [
                statistics.geometric_mean(ratio[batch] for ratio in of_file),
                min(ratio[batch] for ratio in of_file),
            ]
            for batch in BATCHES
        }
    return found


def format_table(rows):
    lines = [
        f"\n{rows[0]['layer']}: {TIME} steps, {FEATURES} features, {UNITS} units\n",
        f"{'':20} {'kB':>6} {'difference':>11} "
        + " ".join(f"{f'batch {batch}':>18}" for batch in BATCHES),
    ]
    for row in rows:
        times = [
            f"{row['ratio'][batch]:6.2f} ({row['milliseconds'][batch]:6.2f} ms)"
            for batch in BATCHES
        ]
        difference = f"{row['difference']:.1e}" if row["difference"] else "-"
        lines.append(
            f"{row['file']:20} {row['kB']:6} {difference:>11} "
            + " ".join(f"{text:>18}" for text in times)
        )
    return "\n".join(lines)


def format_means(found):
    lines = [
        "\nTimes faster than Keras' SavedModel: geometric mean over the layers (least)\n",
        "| file | " + " | ".join(f"batch {batch}" for batch in BATCHES) + " |",
        "|---" * (1 + len(BATCHES)) + "|",
    ]
    for label, of_batch in found.items():
        if label != KERAS:
            cells = [f"{mean:.1f} ({least:.1f})" for mean, least in of_batch.values()]
            lines.append(f"| {label} | {' | '.join(cells)} |")
    return "\n".join(lines)


def draw(rows, path):
    """The ratios, one panel per batch size."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    # Okabe and Ito's colours: readable for the colour-blind.
    colors = ["#0072B2", "#E69F00", "#009E73", "#CC79A7", "#D55E00"]
    layers = list(dict.fromkeys(row["layer"] for row in rows))
    labels = [label for label in dict.fromkeys(row["file"] for row in rows) if label != KERAS]
    figure, axes = plt.subplots(1, len(BATCHES), figsize=(11, 3.4), layout="constrained")
    for axis, batch in zip(axes, BATCHES, strict=True):
        for index, (label, color) in enumerate(zip(labels, colors, strict=False)):
            ratios = {r["layer"]: r["ratio"][batch] for r in rows if r["file"] == label}
            places = np.arange(len(layers)) + (index - (len(labels) - 1) / 2) * 0.8 / len(labels)
            axis.bar(places, ratios.values(), 0.8 / len(labels), color=color, label=label)
        axis.axhline(1, color="black", linewidth=1)
        axis.set_xticks(np.arange(len(layers)), layers, fontsize=8)
        axis.set_title(f"batch {batch}")
        axis.set_yscale("log")
        axis.set_yticks([t for t in (0.5, 1, 1.5, 2, 3, 5, 10, 20) if t <= axis.get_ylim()[1]])
        axis.yaxis.set_major_formatter("{x:g}")
        axis.yaxis.set_minor_formatter("")
        axis.grid(axis="y", alpha=0.3)
    axes[0].set_ylabel(f"times faster than\n{KERAS}")
    handles = axes[0].get_legend_handles_labels()
    figure.legend(*handles, loc="outside lower center", ncols=len(labels), fontsize=8)
    figure.savefig(path, dpi=110)
    plt.close(figure)


if __name__ == "__main__":
    main()
