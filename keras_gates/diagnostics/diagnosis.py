"""Figures and findings of a model on data."""

from typing import Any

import keras

from keras_gates.diagnostics import data, figures, findings, trace
from keras_gates.diagnostics.report import Diagnosis
from keras_gates.diagnostics.trace import Trace
from keras_gates.validation import positive_integer, share, true_or_false


def diagnose(
    model: keras.Model,
    x: Any,
    y: Any = None,
    *,
    sample_weight: Any = None,
    margin: float = 0.05,
    batch_size: int = 32,
    lyapunov: bool = True,
) -> Diagnosis:
    """Looks into every recurrent layer of a model while it runs on data.

    For each GatedRNN, keras.layers.GRU, LSTM, SimpleRNN, or keras.layers.RNN of one of their cells
    or of a GatedCell (in nested models, each direction of a Bidirectional and each cell of a stack
    by itself):

    - gates: mean, percentiles, and the share of values at the low and high end of their range;
    - candidate: percentiles, zeros, dead units;
    - states: norm per time step, zeros, the largest value, the share at the bound;
    - with `y`, the gradient dL/dh_t, and of a cell with several states those of the others and of
      all together: norm per time step, the factor by which it changes per step back in time, and
      the share of (sample, step) pairs on which clipping acts;
    - the largest Lyapunov exponent of the recurrence on these data, in nats per step.

    The model is run for inference: no dropout, and nothing of it changes. Masked steps do not
    count. A stateful layer begins every batch with its present states. Figures per step have the
    steps in the order in which the layer reads them: where that is backwards, the first is the last
    one of the sequence.

    On TensorFlow every call traces the model anew, which takes three or four seconds with `y`,
    however few the samples are; about half of that with `lyapunov=False`, a third without `y`.

    Args:
        model: a built Keras model; compiled, if `y` is given.
        x: its inputs: an array (samples, time, features), or what else the model takes, or a list
            or dict of arrays; or a dataset (`tf.data.Dataset`, `keras.utils.PyDataset`, ...), of
            which the first 256 samples are taken, and their targets and weights if the model is
            compiled. Some hundred samples are enough. The memory needed is a few arrays of
            (samples, time, units) per layer.
        y: the targets, for the gradients of the loss that the model was compiled with. On the
            TensorFlow backend.
        sample_weight: as `fit` takes it: of each sample, (samples,), or each step, (samples, time).
        margin: a value counts as saturated, or at the bound, when it is within this share of the
            range of its activation from a bound of it. In (0, 0.5).
        batch_size: samples per batch. Gradients are of the loss of a batch, whose mean holds a
            factor 1 / batch size: give the batch size of training to see what clipping sees
            there. Batches are of almost equal size.
        lyapunov: whether to estimate the Lyapunov exponent, which triples the forward pass. It is
            left out in half precision.

    Returns:
        A `Diagnosis`, with `.layers`, `.findings`, `.scalars()`, `.to_dict()`, `.to_dataframe()`;
        `print` shows it.

    Raises:
        TypeError: `model` is not a Keras model.
        ValueError: it is not built, or not compiled though `y` is given, or has no recurrent
            layer; `x` is empty or does not fit the model; `y` has another number of samples;
            `sample_weight` does not fit `y`; `margin` or `batch_size` is out of range.
        NotImplementedError: `y` on a backend other than TensorFlow.

    Example:

    >>> model = keras.Sequential([keras.Input((None, 3)), keras_gates.GatedRNN(8, name="gated_rnn"),
    ...                           keras.layers.Dense(1)])
    >>> model.compile("adam", "mse")
    >>> x, y = numpy.random.normal(size=(20, 30, 3)), numpy.zeros((20, 1))
    >>> found = keras_gates.diagnose(model, x, y)  # print(found) shows it all
    >>> found.layers[0].name, sorted(found.layers[0].gates)
    ('gated_rnn', ['reset', 'update'])

    Sources: Karpathy, Johnson, Fei-Fei, "Visualizing and understanding recurrent networks", 2015,
    for saturation; Pascanu, Mikolov, Bengio, "On the difficulty of training recurrent neural
    networks", 2013, for gradient norms; Engelken, Wolf, Abbott, "Lyapunov spectra of chaotic
    recurrent neural networks", 2023, and Vogt et al., "On Lyapunov exponents for RNNs", 2022.
    """
    return of_some(model, x, y, None, sample_weight, margin, batch_size, lyapunov)


def of_some(model, x, y, samples, sample_weight=None, margin=0.05, batch_size=32, lyapunov=True):
    """`diagnose`, which runs the model on at most so many of the samples, chosen at random; but
    what it says of the data is of all of them."""
    margin = share("margin", margin)
    tracer, runs, given = _started(model, x, y, sample_weight, batch_size, lyapunov, samples)
    return of_runs(tracer, runs, margin, given)


def traces(
    model: keras.Model,
    x: Any,
    y: Any = None,
    *,
    sample_weight: Any = None,
    batch_size: int = 32,
) -> list[Trace]:
    """What every recurrent layer of a model computes on data, as arrays over samples and time.

    This is what `diagnose` takes its figures from, and what the plots show.

    Args:
        model, x, y, sample_weight, batch_size: as in `diagnose`.

    Returns:
        A list of `Trace`, one per cell, in the order of execution.

    Raises:
        As `diagnose`.

    Example:

    >>> model = keras.Sequential([keras.Input((None, 3)), keras_gates.GatedRNN(8)])
    >>> found = keras_gates.diagnostics.traces(model, numpy.zeros((4, 6, 3)))
    >>> found[0].activated["update"].shape
    (4, 6, 8)
    """
    _, runs, _ = _started(model, x, y, sample_weight, batch_size, lyapunov=False)
    return trace.joined(runs)


def _started(model, x, y, sample_weight, batch_size, lyapunov, samples=None):
    """The `Tracer`, the runs of the batches of at most so many samples, or of all, and all data by
    argument, of checked arguments."""
    batch_size = positive_integer("batch_size", batch_size)
    lyapunov = true_or_false("lyapunov", lyapunov)
    x, y, weights = data.checked(model, x, y, "gradients are asked for", sample_weight)
    data.check_labels(model, y)
    tracer = trace.Tracer(model, gradients=y is not None, tangents=lyapunov)
    given = {"x": x, "y": y, "sample_weight": weights}
    count = data.samples(x)
    chosen = slice(None) if samples is None else data.some(count, samples, given)
    run_on = [data.take(values, chosen) for values in (x, y)]
    weights = data.take(weights, chosen)
    return tracer, trace.runs(tracer, *run_on, batch_size, weights), given


def of_runs(tracer, runs, margin, given=None):
    """The `Diagnosis` of what a tracer gave; `given` are the data that it names, by argument."""
    layers = [
        figures.of_trace(each, margin, tracer.verdict(each.cell)) for each in trace.joined(runs)
    ]
    found = findings.of_layers(layers, tracer.left_out, given, tracer.model)
    return Diagnosis(tracer.model.name, margin, layers, found)
