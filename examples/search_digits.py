"""Which activations read handwritten digits best, pixel by pixel? A search, and its report.

Searches all pairs of four gates and three candidates in a GRU and an LSTM, and the candidates in a
simple RNN, on the 8x8 images of scikit-learn as 64 steps of one pixel; two seeds each. Among the
gates is one that the verdict calls unstable, relu, to show what a search does with trials that
diverge. Prints the report, draws it, and saves the best model. Stopped at any moment, it goes on
where it was when it is started again.

    python examples/search_digits.py                                      # some six minutes
    python examples/search_digits.py --confirm 10  # is the best better? some minutes more
    python examples/search_digits.py --epochs 1 --trials 4 --out out/look   # at everything, quickly
"""

import argparse
import os
import pathlib

# Read when TensorFlow is imported. The tensors are so small that handing them from thread to
# thread takes longer than computing them.
os.environ.setdefault("KERAS_BACKEND", "tensorflow")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("TF_NUM_INTEROP_THREADS", "1")
os.environ.setdefault("TF_NUM_INTRAOP_THREADS", "1")

import numpy as np
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from keras_gates import tuning

CELLS = ["gru", "lstm", "simple"]
GATES = ["sigmoid", "hard_sigmoid", "tanh_gate", "relu"]
CANDIDATES = ["tanh", "softsign", "relu"]


def digits():
    """Training, validation and test images as sequences of 64 pixels in [0, 1], and the digits."""
    images, labels = load_digits(return_X_y=True)
    x = (images / 16).astype("float32").reshape(-1, 64, 1)
    x, x_test, y, y_test = train_test_split(x, labels, test_size=357, random_state=0)
    x, x_val, y, y_val = train_test_split(x, y, test_size=240, random_state=0)
    return (x, y), (x_val, y_val), (x_test, y_test)


def draw(report, path):
    """The scores of all pairs per cell, the trials in parallel, and learning curves."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(2, 3, figsize=(15, 8), layout="constrained")
    searched = {row["cell"] for row in report.trials}
    for axis, cell in zip(axes[0], CELLS, strict=True):
        if cell in searched:
            tuning.plot_scores(report, axis, cell=cell)
        else:
            axis.set_axis_off()
    grid = axes[1, 0].get_gridspec()
    axes[1, 0].remove()
    axes[1, 1].remove()
    tuning.plot_parallel(report, figure.add_subplot(grid[1, :2]))
    tuning.plot_learning_curves(report, axes[1, 2])
    figure.savefig(path, dpi=110)
    plt.close(figure)


def main(argv=None):
    """Prints the report and returns it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--epochs", type=int, default=8, help="default: %(default)s")
    parser.add_argument("--seeds", type=int, default=2, help="of each trial; default: %(default)s")
    parser.add_argument("--trials", type=int, default=None, help="default: all, 27")
    parser.add_argument(
        "--confirm",
        type=int,
        default=0,
        help="with so many further seeds the best is compared with the default pair; default: none",
    )
    parser.add_argument(
        "--out",
        type=pathlib.Path,
        default=pathlib.Path("out"),
        help="folder of the search and of what is written; default: %(default)s",
    )
    arguments = parser.parse_args(argv)
    training, validation, (x_test, y_test) = digits()
    hypermodel = tuning.GatedRNNHyperModel.from_data(
        *training,
        "classification",
        cell=CELLS,
        gates=GATES,
        candidates=CANDIDATES,
        unstable=True,
        layers=1,
        units=32,
        dropout=0.0,
        learning_rate=0.01,
        # What else activation_space would choose stays as it is, so that the pairs compare.
        grad_clip_norm=None,
        activation_l1=0.0,
        recurrent_initializer="orthogonal",
        initialization="keras",
    )
    tuner = tuning.GridSearch(
        hypermodel,
        "val_accuracy",
        max_trials=arguments.trials,
        executions_per_trial=arguments.seeds,
        directory=arguments.out,
        project_name="search_digits",
    )
    tuner.search(*training, validation_data=validation, epochs=arguments.epochs, batch_size=32)
    report = tuning.search_report(tuner)
    print(report)
    report.to_csv(arguments.out / "search_digits.csv")
    draw(report, arguments.out / "search_digits.png")
    if arguments.confirm:
        print(f"\n{tuner.confirm(seeds=arguments.confirm)}")
    (model,) = tuner.get_best_models()
    model.save(arguments.out / "search_digits.keras")
    accuracy = np.mean(model.predict(x_test, verbose=0).argmax(axis=1) == y_test)
    print(f"\naccuracy of the best model on the test images: {accuracy:.3f}")
    for name in ("csv", "png", "keras"):
        print(f"written: {arguments.out / f'search_digits.{name}'}")
    return report


if __name__ == "__main__":
    main()
