"""A hypermodel for sequences: recurrent layers whose activations and sizes are searched."""

import inspect
import numbers
from collections.abc import Callable, Sequence
from typing import Any, Literal

import keras
import keras_tuner
import numpy as np

from keras_gates import validation
from keras_gates.cells.arguments import refuse_given
from keras_gates.diagnostics.data import PADDED_LABELS
from keras_gates.diagnostics.finite import not_finite
from keras_gates.layers import GatedRNN
from keras_gates.tuning import space
from keras_gates.tuning.space import CANDIDATES, GATES, CellChoice, activation_space
from keras_gates.validation import finite_number, one_of, positive_integer

# From each task to its loss and its metrics.
_CLASSES = ("sparse_categorical_crossentropy", ["accuracy"])
TASKS = {"classification": _CLASSES, "sequence": _CLASSES, "regression": ("mse", ["mae"])}


class GatedRNNHyperModel(keras_tuner.HyperModel):
    """Stacked `GatedRNN` layers for a task, ready for any KerasTuner.

    A model is: input, `stem`, recurrent layers with one choice of activations for all of them,
    `head`. Every argument from `cell` to `learning_rate` is one value, which is then fixed, or a
    list to choose from, of which the first is the default.

    Args:
        task: "classification" of whole sequences, "sequence" (classification of every step), or
            "regression" of whole sequences. Labels are integers from 0.
        input_shape: shape of one input, (time, features); time may be None. With a `stem`, whatever
            that takes.
        outputs: the number of classes, or of numbers to predict.
        cell, gates, candidates: see `activation_space`.
        layers: how many recurrent layers. The hyperparameter of it, and of each argument that
            follows, has the argument's name.
        units: of each recurrent layer, in each direction.
        bidirectional: whether sequences are read in both directions.
        dropout: share of the inputs of each recurrent layer dropped, in [0, 1).
        learning_rate: of Adam.
        mask_value: steps at which all features have this value are masked. Default: none is.
        stem: your own layers between the input and the recurrent layers: a list of layers, of which
            each trial gets new ones of the same configuration, or a function of (inputs, hp) that
            returns (batch, time, features).
        head: your own layers after the recurrent ones, likewise. They get (batch, units), or
            (batch, time, units) for the task "sequence", and return the outputs: probabilities of
            the classes, or numbers. Default: one Dense layer.
        name, tunable: as in `keras_tuner.HyperModel`.
        **options: further arguments of `activation_space`: `unstable`, `double_one_sided`, and
            arguments of the cell.

    Raises:
        ValueError, TypeError: an argument that is out of its range or unknown, a `stem` or `head`
            that returns no tensor.

    Example:

    >>> import keras_tuner
    >>> from keras_gates.tuning.hypermodel import GatedRNNHyperModel
    >>> hypermodel = GatedRNNHyperModel(
    ...     "classification", (None, 12), 9, cell=["gru", "lstm"], units=[32, 64], dropout=0.1)
    >>> hp = keras_tuner.HyperParameters()
    >>> hypermodel.build(hp).output_shape
    (None, 9)
    >>> sorted(hp.values)[:3]
    ['cell', 'gru/candidate_activation', 'gru/gate_activation']

    Shapes and the number of classes can be read from data:

    >>> x = numpy.zeros((20, 5, 12))
    >>> y = numpy.arange(20) % 9
    >>> GatedRNNHyperModel.from_data(x, y, "classification", units=8).outputs
    9
    """

    def __init__(
        self,
        task: Literal["classification", "sequence", "regression"],
        input_shape: tuple[int | None, ...],
        outputs: int,
        *,
        cell: CellChoice = "gru",
        gates: str | Sequence[str] = GATES,
        candidates: str | Sequence[str] = CANDIDATES,
        layers: int | Sequence[int] = (1, 2),
        units: int | Sequence[int] = (64, 32, 128),
        bidirectional: bool | Sequence[bool] = False,
        dropout: float | Sequence[float] = (0.0, 0.2),
        learning_rate: float | Sequence[float] = (1e-3, 3e-4, 3e-3, 1e-2),
        mask_value: float | None = None,
        stem: Callable | None = None,
        head: Callable | None = None,
        name: str | None = None,
        tunable: bool = True,
        **options: Any,
    ) -> None:
        super().__init__(name=name, tunable=tunable)
        self.task = one_of("task", task, tuple(TASKS))
        self.input_shape = _input_shape(input_shape, stem, mask_value)
        self.outputs = positive_integer("outputs", outputs)
        if outputs < 2 and task != "regression":
            expected = f"the number of classes, at least 2, for task={task!r}"
            raise validation.invalid("outputs", expected, outputs)
        self.activations = {"cell": cell, "gates": gates, "candidates": candidates, **options}
        of_cell = {name: options[name] for name in options if name not in space.SPACE_ARGUMENTS}
        own = inspect.signature(type(self)).parameters
        space.cell_options(space.named_cells(cell), of_cell, type(self).__name__, own)  # its errors
        activation_space(keras_tuner.HyperParameters(), units=1, **self.activations)  # its errors
        self.values = {
            "layers": _values("layers", layers, positive_integer),
            "units": _values("units", units, positive_integer),
            "bidirectional": _values("bidirectional", bidirectional, validation.true_or_false),
            "dropout": _values("dropout", dropout, validation.fraction),
            "learning_rate": _values("learning_rate", learning_rate, validation.rate),
        }
        self.mask_value = mask_value
        self.stem, self.head = _part("stem", stem), _part("head", head)

    @classmethod
    def from_data(cls, x, y, task, **arguments):
        """A hypermodel for arrays, whose shapes say what it takes and returns.

        Args:
            x: (samples, time, features); with a `stem`, whatever that takes.
            y: integers from 0, (samples,) for "classification" or (samples, time) for "sequence";
                numbers, (samples,) or (samples, outputs), for "regression".
            task: see the class.
            **arguments: further arguments of the class.

        Returns:
            A `GatedRNNHyperModel` for sequences of any length.

        Raises:
            ValueError: arrays that do not fit the task or each other.
        """
        refuse_given(
            "from_data", arguments, ("input_shape", "outputs"), "the shape of the data says it"
        )
        x, y = _array("x", x), _array("y", y)
        one_of("task", task, tuple(TASKS))
        if x.ndim < 2 or (x.ndim != 3 and arguments.get("stem") is None):
            raise ValueError(
                "`x` must be (samples, time, features), with a `stem` at least (samples, time). "
                f"Received: x of shape {x.shape}"
            )
        if x.dtype.kind not in "biufV" and arguments.get("stem") is None:  # V: of bfloat16
            raise ValueError(
                "`x` must be of numbers; only a `stem` can take others. Received: x of dtype "
                f"{x.dtype}"
            )
        return cls(task, (None, *x.shape[2:]), _outputs(x, y, task), **arguments)

    def build(self, hp):
        """A compiled model with the choices of `hp`."""
        space.hyper_parameters("hp", hp)
        drawn = {
            name: values[0] if len(values) == 1 else space.choice(hp, name, values)
            for name, values in self.values.items()
        }
        activated = activation_space(hp, units=drawn["units"], **self.activations)
        inputs = keras.Input(self.input_shape, name="sequence")
        x = inputs
        if self.mask_value is not None:
            x = keras.layers.Masking(self.mask_value)(x)
        x = _applied("stem", self.stem, x, hp)
        if len(x.shape) != 3 or x.shape[-1] is None:
            raise ValueError(
                "`stem` must return (batch, time, features), with a known feature size. Received: "
                f"shape {tuple(x.shape)}"
            )
        for number in range(1, drawn["layers"] + 1):
            layer = GatedRNN(
                dropout=drawn["dropout"],
                return_sequences=number < drawn["layers"] or self.task == "sequence",
                **activated,
            )
            x = (keras.layers.Bidirectional(layer) if drawn["bidirectional"] else layer)(x)
        if self.head is None:
            activation = "linear" if self.task == "regression" else "softmax"
            outputs = keras.layers.Dense(self.outputs, activation=activation)(x)
        else:
            outputs = _applied("head", self.head, x, hp)
            self._check_outputs(outputs, x)
        model = keras.Model(inputs, outputs)
        loss, metrics = TASKS[self.task]
        model.compile(keras.optimizers.Adam(drawn["learning_rate"]), loss, metrics=metrics)
        return model

    def _check_outputs(self, outputs, x):
        """Raises a ValueError if a head of one's own does not return what the loss takes."""
        expected = (*x.shape[:-1], self.outputs)
        if outputs.shape != expected:
            raise ValueError(
                f"`head` must return outputs of shape {expected}, as outputs={self.outputs} and "
                f"task={self.task!r} say. Received: {outputs.shape}"
            )
        last = outputs._keras_history.operation
        linear = getattr(last, "activation", None) is keras.activations.linear
        if self.task != "regression" and linear:
            raise ValueError(
                "`head` must return probabilities, as a Dense layer with activation='softmax' "
                f"does. Received: {last.name!r}, which has no activation"
            )


def _array(argument, values):
    try:
        return np.asarray(values)
    except ValueError as error:
        raise ValueError(f"`{argument}` must be an array. NumPy says: {error}") from None


def _applied(argument, part, x, hp):
    """A user's part of the model, after `x`."""
    if not callable(part):
        for layer in part or ():
            x = type(layer).from_config(layer.get_config())(x)
        return x
    y = part(x, hp)
    if not isinstance(y, keras.KerasTensor):
        raise ValueError(f"`{argument}` must return a tensor of the model. Received: {y!r}")
    return y


def _part(argument, part):
    """A function or a list of layers that have no weights yet; None if there is none."""
    if isinstance(part, keras.Layer):
        part = [part]
    layers = isinstance(part, (list, tuple)) and all(isinstance(p, keras.Layer) for p in part)
    if not (part is None or layers or callable(part)) or isinstance(part, type):
        expected = "a list of Keras layers, or a function of a tensor and `hp`"
        raise validation.invalid(argument, expected, part)
    for layer in part if layers else ():
        if layer.weights:
            raise ValueError(
                f"`{argument}` must be layers without weights, because every trial makes its own "
                "of their configuration. Give a function (tensor, hp) that applies those which are "
                f"trained or adapted already. Received: {layer.name!r}, which has weights"
            )
    return part


def _values(argument, given, check):
    """The values to choose from, checked, each once."""
    values = given if isinstance(given, (list, tuple)) else [given]
    if not values:
        raise validation.invalid(argument, "a value, or a list of values to choose from", given)
    return tuple(dict.fromkeys(check(argument, value) for value in values))


def _input_shape(shape, stem, mask_value):
    sizes = tuple(shape) if isinstance(shape, (list, tuple)) else ()
    known = [size for size in sizes if size is not None]
    whole = all(isinstance(s, numbers.Integral) and not isinstance(s, bool) for s in known)
    fits = len(sizes) == 2 and sizes[1] is not None if stem is None else bool(sizes)
    if not (fits and whole and all(size > 0 for size in known)):
        raise ValueError(
            "`input_shape` must be (time, features), without the samples, where time may be None; "
            f"only a `stem` can take another. Received: input_shape={shape!r}"
        )
    if mask_value is not None:
        finite_number("mask_value", mask_value)
    if mask_value is not None and len(sizes) != 2:
        raise ValueError(
            "`mask_value` is looked for in all features of a step, so that `input_shape` must be "
            "(time, features). An Embedding in the `stem` has mask_zero=True. Received: "
            f"mask_value={mask_value!r}, input_shape={shape!r}"
        )
    return sizes


def _outputs(x, y, task):
    """The number of outputs that `y` asks for."""
    described, ranks = {
        "classification": ("integers, (samples,)", (1,)),
        "sequence": ("integers, (samples, time)", (2,)),
        "regression": ("numbers, (samples,) or (samples, outputs)", (1, 2)),
    }[task]
    classes = task != "regression"
    error = (
        f"`y` must be {described}, for task={task!r}, with x of shape {x.shape}. Received: y of "
        f"shape {y.shape} and dtype {y.dtype}"
    )
    shared = y.ndim if classes else 1
    if y.ndim not in ranks or y.shape[:shared] != x.shape[:shared]:
        one_more = classes and y.ndim == ranks[0] + 1
        cure = "Take y[..., 0]" if y.shape[-1:] == (1,) else "Of one-hot labels take y.argmax(-1)"
        raise ValueError(f"{error}. {cure}" if one_more else error)
    if y.dtype.kind not in ("iu" if classes else "iuf"):
        hint = ". Of whole numbers take y.astype(int)" if y.dtype.kind in "fb" else ""
        raise ValueError(error + hint)
    if not y.size:
        raise ValueError(f"{error}, which holds nothing")
    if bad := not_finite("y", y):
        raise ValueError(f"{error}, in which {bad}")
    if not classes:
        return 1 if y.ndim == 1 else y.shape[1]
    if y.min() < 0:
        hint = f". {PADDED_LABELS}" if y.ndim > 1 else ""
        raise ValueError(f"{error}, with labels down to {y.min()}, and the least must be 0{hint}")
    if y.max() == 0:
        raise ValueError(f"{error}, with one class alone")
    return int(y.max()) + 1
