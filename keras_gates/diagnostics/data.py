"""The data that a model is looked at with: checked, and cut into batches."""

import functools
import itertools
import warnings

import keras
import numpy as np
from keras import tree

from keras_gates._keras import graph
from keras_gates._keras.calls import stacklevel
from keras_gates.diagnostics.finite import not_finite
from keras_gates.inputs import PADDED

TAKEN = 256  # samples of a dataset
_SHOWN = 6  # shapes in an error
PADDED_LABELS = (
    "The label of padding is one of the classes too, such as 0; where a mask reaches the loss, it "
    "does not count"
)


def checked(model, x, y, purpose, sample_weight=None):
    """`x`, `y` and the weights of its samples (or None) as arrays that fit the model and each
    other; else an error."""
    check_model(model)
    if is_dataset(x):
        given = batches(x, y, sample_weight, getattr(model, "inputs", None))
        x, y, sample_weight = joined(given, model)
        if not model.compiled:
            y = sample_weight = None
    x = fitted(model, arrays("x", x))
    check_tokens(model, x)
    if y is not None:
        y = arrays("y", y)
        check_targets(model, y)
        check_same_length(x, y)
        check_compiled(model, purpose)
    return x, y, weights(sample_weight, y)


def is_dataset(x):
    """Whether it gives batches, and the same another time: `tf.data.Dataset` and its like."""
    if isinstance(x, keras.utils.PyDataset):
        return True
    other = ("__array__", "__next__")
    return hasattr(x, "__iter__") and not (
        any(hasattr(x, name) for name in other) or isinstance(x, (list, tuple, dict, str))
    )


def batches(dataset, y, sample_weight=None, announced=None):
    """The first batches of a dataset, up to some number of samples: tuples (x,), or with its
    targets where they are of use (x, y), or (x, y, sample_weight).

    Args:
        dataset: see `is_dataset`.
        y, sample_weight: must be None.
        announced: the symbolic inputs of the model, which tell single samples from batches.
    """
    for name, beside in (("y", y), ("sample_weight", sample_weight)):
        if beside is not None:
            raise ValueError(
                f"`{name}` must be left out where `x` is a dataset, which has it. Received: {name} "
                f"of type {type(beside).__name__}"
            )
    wanted = 3 if keras.backend.backend() == "tensorflow" else 1
    found, count = [], 0
    if isinstance(dataset, keras.utils.PyDataset):  # which ends nowhere by itself
        dataset = map(dataset.__getitem__, range(len(dataset)))
    for batch in dataset:
        given = batch if isinstance(batch, tuple) else (batch,)
        given = tree.map_structure(np.asarray, given[:wanted])
        if announced and tree.flatten(given[0])[0].ndim == len(announced[0].shape) - 1:
            given = tree.map_structure(lambda v: v[None], given)  # one sample
        if not tree.flatten(given[0])[0].ndim:
            raise ValueError(
                "`x` must give batches, with the samples along their first axis. Received: a "
                "dataset of single numbers"
            )
        size = samples(given[0])
        weights = tree.map_structure(
            lambda w, size=size: w if w.ndim else np.full(size, w), given[2:]
        )
        found.append((*given[:2], *weights))
        count += size
        if count >= TAKEN:
            break
    if not found:
        raise ValueError("`x` must hold at least one batch. Received: an empty dataset")
    return found


def spread(batches, most):
    """At most so many of the samples of batches, evenly spaced, as copies in smaller batches; and
    which they are."""
    ends = np.cumsum([samples(x) for x, *_ in batches])
    kept = np.linspace(0, ends[-1] - 1, min(most, ends[-1])).round().astype(int)
    parts = np.split(kept, np.searchsorted(kept, ends[:-1]))
    starts = [0, *ends[:-1]]
    taken = [
        take(batch, part - start)
        for batch, part, start in zip(batches, parts, starts, strict=True)
        if part.size
    ]
    return taken, kept


def not_finite_in(batches):
    """What is `NotFinite` in batches, from its argument to that and to some of those samples, all
    arguments of them; {} of batches of several lengths."""
    if len({_shapes(batch) for batch in batches}) > 1:
        return {}
    whole = batches[0]
    if len(batches) > 1:
        whole = tree.map_structure(lambda *parts: np.concatenate(parts), *batches)
    names = ("x", "y", "sample_weight")
    found = {name: not_finite(name, values) for name, values in zip(names, whole, strict=False)}
    return {name: (bad, take(whole, bad.tried)) for name, bad in found.items() if bad}


def joined(batches, model):
    """`x`, `y` and `sample_weight` (or None) of batches as one.

    Batches of different lengths are padded to the longest with what the model masks. Where it masks
    nothing of its inputs, those of one length stay, and a warning says so.
    """
    if len({_shapes(batch) for batch in batches}) > 1:
        batches = _padded(batches, model) or _of_one_length(batches, model)
    whole = tree.map_structure(lambda *parts: np.concatenate(parts), *batches)
    return (*whole, None, None)[:3]


def _shapes(batch):
    """The shapes of the arrays in a batch, without the number of samples."""
    return tuple(value.shape[1:] for value in tree.flatten(batch))


def _padded(batches, model):
    """The batches at the length of the longest; None where the model would not mask that."""
    batches = [(fitted(model, x), *rest) for x, *rest in batches]
    fills = [_masked_value(model, tensor) for tensor in getattr(model, "inputs", None) or ()]
    of_x = len(tree.flatten(batches[0][0]))
    columns = []
    for index, column in enumerate(zip(*map(tree.flatten, batches), strict=True)):
        if len({value.shape[1:] for value in column}) > 1:
            fill = 0 if index >= of_x else fills[index] if len(fills) == of_x else None
            column = None if fill is None else _of_longest(column, fill)
            if column is None:
                return None
        columns.append(column)
    return [
        tree.pack_sequence_as(batch, values)
        for batch, values in zip(batches, zip(*columns, strict=True), strict=True)
    ]


def _of_longest(arrays, fill):
    """Arrays (samples, time, ...) at the length of the longest; None if they differ otherwise."""
    if min(v.ndim for v in arrays) < 2 or len({v.shape[2:] for v in arrays}) > 1:
        return None
    longest = max(v.shape[1] for v in arrays)
    return [
        np.pad(
            v, [(0, 0), (0, longest - v.shape[1])] + [(0, 0)] * (v.ndim - 2), constant_values=fill
        )
        for v in arrays
    ]


def _masked_value(model, tensor):
    """The value at which a layer masks a step of an input of a model, a KerasTensor; or None."""
    for layer in _readers(model, tensor):
        if isinstance(layer, keras.layers.Masking):
            return layer.mask_value
        if isinstance(layer, keras.layers.Embedding) and layer.mask_zero:
            return 0
    return None


def _readers(model, tensor):
    """The layers that read an input of a model, a KerasTensor, those in nested models too."""
    for layer in model.layers:
        for args, _ in graph.calls(layer):
            given = tree.flatten(args)
            index = next((i for i, value in enumerate(given) if value is tensor), None)
            inside = getattr(layer, "inputs", None) if isinstance(layer, keras.Model) else None
            if index is not None and inside:
                yield from _readers(layer, inside[index])
            elif index is not None:
                yield layer


def check_tokens(model, x):
    """A ValueError if an Embedding reads integers of `x`, data that fit the model, that it does not
    have: TensorFlow says so in words of its own, and on a GPU not at all."""
    announced = getattr(model, "inputs", None) or []
    tensors, given = tree.flatten(announced and getattr(model, "input", announced)), tree.flatten(x)
    if len(tensors) != len(given):
        return
    for tensor, value in zip(tensors, given, strict=True):
        embeddings = (r for r in _readers(model, tensor) if isinstance(r, keras.layers.Embedding))
        size = min((each.input_dim for each in embeddings), default=None)
        wrong = np.zeros(1, bool) if size is None else (value < 0) | (value >= size)
        if wrong.any():
            index = tuple(map(int, np.argwhere(wrong)[0]))
            step = f" at time step {index[1]}" if len(index) > 1 else ""
            raise ValueError(
                f"`x` must hold integers from 0 to {size - 1} for {tensor.name!r}, which an "
                f"Embedding reads. Received: {value[index]}{step} in sample {index[0]}, and "
                f"{wrong.sum() - 1} more"
            )


def _of_one_length(batches, model):
    """The batches whose arrays have the shapes of the first; with a warning."""
    kept = [batch for batch in batches if _shapes(batch) == _shapes(batches[0])]
    shape = tree.flatten(kept[0])[0].shape[1:]
    warnings.warn(
        f"`x` has batches of different lengths, and {model.name!r} masks no padding of what "
        f"differs, by keras.layers.Masking or Embedding(mask_zero=True). So only the "
        f"{sum(samples(x) for x, *_ in kept)} samples of the first one's shape, {shape}, are "
        "looked at.",
        stacklevel=stacklevel(),
    )
    return kept


def check_model(model):
    """A TypeError or ValueError unless `model` is a built Keras model."""
    if not isinstance(model, keras.Model):
        hint = ""
        if isinstance(model, keras.layers.Layer):
            hint = ". Make one of it: keras.Sequential([keras.Input((None, features)), layer])"
        raise TypeError(
            "`model` must be a Keras model. Received: "
            f"model={model!r} of type {type(model).__name__}{hint}"
        )
    if not model.built:
        raise ValueError(
            f"`model` must be built, and {model.name!r} has no weights yet: begin it with a "
            "keras.Input, or call it once on data."
        )


def check_compiled(model, purpose):
    """A ValueError unless `model` has a loss."""
    if not model.compiled:
        raise ValueError(
            f"`y` was given, so that {purpose}, which needs the loss of a compiled model, and "
            f"{model.name!r} is not compiled: call model.compile(optimizer, loss) first, or leave "
            "`y` out."
        )


def arrays(argument, values):
    """`values`, one array or a list or dict of them, as NumPy arrays; none of them empty."""
    if isinstance(values, (list, tuple)) and not any(hasattr(v, "shape") for v in values):
        try:
            values = np.asarray(values)
        except ValueError as error:
            hint = f" {PADDED} the recurrent one." if _are_sequences(values) else ""
            raise ValueError(f"`{argument}` must be an array. NumPy says: {error}{hint}") from None
    values = tree.map_structure(functools.partial(_array, argument), values)
    if len({len(value) for value in tree.flatten(values)}) != 1:
        given = tree.flatten(values)
        hint = f". {PADDED} the recurrent one" if _are_sequences(given) else ""
        raise ValueError(
            f"The arrays of `{argument}` must have equally many samples. Received: shapes "
            f"{_listed([value.shape for value in given])}{hint}"
        )
    return values


def _listed(shapes):
    """The first of them as text."""
    more = f" and {len(shapes) - _SHOWN} more" if len(shapes) > _SHOWN else ""
    return ", ".join(map(str, shapes[:_SHOWN])) + more


def _are_sequences(values):
    """Whether these may be samples of several lengths, and not inputs of a model."""
    try:
        values = [np.asarray(value) for value in values]
    except ValueError:
        return False
    return all(v.ndim and v.shape[1:] == values[0].shape[1:] for v in values)


def fitted(model, x):
    """`x` in the structure of the inputs that the model announces, if it does: Keras warns of
    another. A ValueError unless it fits them."""
    announced = getattr(model, "inputs", None)
    given = tree.flatten(x)
    if not announced:
        return x
    expected = [tuple(tensor.shape) for tensor in announced]
    shapes = [value.shape for value in given]
    if not any(str(tensor.dtype) == "string" for tensor in announced):
        for value in given:
            _refuse_text("x", value)
    if isinstance(x, dict):
        by_name = {name: np.shape(value) for name, value in x.items()}
        if any(tensor.name not in by_name for tensor in announced):
            return x  # a nested structure, which Keras knows how to read
        shapes = [by_name[tensor.name] for tensor in announced]
        given = [x[tensor.name] for tensor in announced]
    if len(shapes) != len(expected) or not all(map(_fits, shapes, expected)):
        hint = ""
        if len(expected) == 1 and len(shapes) > 1 and len(set(shapes)) == 1:
            hint = f". A list of samples becomes one array by numpy.stack(x), {len(shapes)} samples"
        raise ValueError(
            f"`x` must fit the inputs of {model.name!r}, {', '.join(map(str, expected))}. "
            f"Received: x of shape {_listed(shapes)}{hint}"
        )
    structure = announced if len(announced) > 1 else announced[0]  # of a Sequential
    return tree.pack_sequence_as(getattr(model, "input", structure), given)


def check_targets(model, y):
    """A ValueError unless `y` is of numbers, and one array for a model with one output."""
    given, outputs = tree.flatten(y), getattr(model, "outputs", None) or ()
    for value in given:
        _refuse_text("y", value)
    named = isinstance(y, dict) and not set(y) <= {*getattr(model, "output_names", ())}
    if len(outputs) == 1 and (len(given) > 1 or named):
        received = f"the keys {list(y)}" if isinstance(y, dict) else f"{len(given)} of them"
        raise ValueError(
            f"`y` must be one array for {model.name!r}, which has one output. Received: {received}"
        )


def check_labels(model, y, indices=None, known=None):
    """A ValueError if a loss takes labels of classes, and `y` holds something else: TensorFlow says
    so in words of its own, and on a GPU the loss is NaN.

    Args:
        model, y: a compiled model, and arrays that fit it, or None.
        indices: which samples of all they are, if not all.
        known: what is `NotFinite` in all of `y`.
    """
    given, outputs = tree.flatten(() if y is None else y), getattr(model, "outputs", None) or ()
    losses = tree.flatten(getattr(model, "loss", None))
    if len(given) > 1:  # of which it may be another
        known = None
    if len(outputs) == len(given) == len(losses):
        for value, output, loss in zip(given, outputs, losses, strict=True):
            name = getattr(loss, "name", getattr(loss, "__name__", loss))
            if name == "sparse_categorical_crossentropy" and output.shape[-1] is not None:
                _check_labels(value, output, loss, name, indices, known)


def _check_labels(labels, output, loss, name, indices, known):
    classes = output.shape[-1]
    if labels.ndim == output.ndim and labels.shape[-1] == classes > 1:
        raise ValueError(
            f"`y` must have one label per {'step' if output.ndim > 2 else 'sample'} for {name}. "
            f"Received: y of shape {labels.shape}; for one number per class compile the model with "
            f"{name.removeprefix('sparse_')}"
        )
    if bad := known or not_finite("y", labels):
        raise bad.error()
    ignored = getattr(loss, "ignore_class", None)
    wrong = ((labels < 0) | (labels >= classes)) & (labels != ignored)
    if wrong.any():
        index = tuple(map(int, np.argwhere(wrong)[0]))
        sample = index[0] if indices is None else indices[index[0]]
        of_steps = len(index) > 1 and labels.shape[1] > 1
        at = f" at time step {index[1]}" if of_steps else ""
        hint = f". {PADDED_LABELS}" if of_steps and labels[index] < 0 else ""
        raise ValueError(
            f"`y` must have labels from 0 to {classes - 1} for {name} of {classes} outputs. "
            f"Received: {labels[index]}{at} in sample {sample}, and {wrong.sum() - 1} more{hint}"
        )


def check_same_length(x, y):
    """A ValueError unless `x` and `y` have equally many samples."""
    if samples(x) != samples(y):
        raise ValueError(
            f"`y` must have as many samples as `x`, {samples(x)}. Received: {samples(y)}"
        )


def weights(sample_weight, y):
    """Weights of samples, or of their steps, as arrays that fit the targets; None of None."""
    if sample_weight is None:
        return None
    if y is None:
        raise ValueError(
            "`sample_weight` is for the loss on `y`, which must be given too. Received: y=None"
        )
    found = arrays("sample_weight", sample_weight)
    shapes = [value.shape for value in tree.flatten(y)]
    for index, value in enumerate(tree.flatten(found)):
        _refuse_text("sample_weight", value)
        shape = shapes[min(index, len(shapes) - 1)]
        if value.shape not in {shape[:1], shape[:2], shape}:
            raise ValueError(
                "`sample_weight` must have one number per sample of `y`, or per step. Received: "
                f"sample_weight of shape {value.shape}, y of shape {shape}"
            )
    return found


def samples(values):
    """The number of samples in one array, or in a list or dict of arrays."""
    return len(tree.flatten(values)[0])


def take(values, indices):
    """The samples at `indices`, an array or a slice; None of None."""
    return None if values is None else tree.map_structure(lambda v: v[indices], values)


def some(count, most, given):
    """Indices of at most so many samples, at random; but where the data, given by argument, are not
    finite, some of those samples are among them, to show whether the model takes them."""
    bad = filter(None, itertools.starmap(not_finite, given.items()))
    order = [index for each in bad for index in each.tried]
    order += [*np.random.default_rng(0).permutation(count)]
    return np.sort([*dict.fromkeys(order)][:most])


def slices(count, batch_size):
    """Slices that cut `count` samples into batches of almost equal size, at most `batch_size`.

    A mean loss divides by the size of its batch, so that a remainder of one sample would send a
    gradient that is out of proportion.
    """
    batches = -(-count // batch_size)
    edges = np.linspace(0, count, batches + 1).round().astype(int)
    return [slice(a, b) for a, b in itertools.pairwise(edges)]


def _array(argument, value):
    # A dataset has none, and may have a length and items, all of which NumPy would read.
    array = np.asarray(value) if hasattr(value, "__array__") else None
    if array is not None and array.dtype == object and all(isinstance(v, str) for v in array.flat):
        array = array.astype(str)
    if array is None or array.ndim == 0 or array.dtype == object or array.dtype.kind == "c":
        received = "" if array is None else f", shape {array.shape} and dtype {array.dtype}"
        raise ValueError(
            f"`{argument}` must be an array, or a list or dict of arrays, of real numbers, with "
            "the samples along the first axis; of an iterator take one batch: x, y = next(x). "
            f"Received: {argument} of type {type(value).__name__}{received}"
        )
    if not array.size:
        raise ValueError(
            f"`{argument}` must hold at least one sample and one time step. Received: {argument} "
            f"of shape {array.shape}"
        )
    return array


def _refuse_text(argument, array):
    if array.dtype.kind in "US":
        raise ValueError(
            f"`{argument}` must be of numbers. Received: {argument} of dtype {array.dtype}"
        )


def _fits(shape, expected):
    """Whether a shape, with the batch first, is one that an announced shape allows."""
    if len(shape) == len(expected) - 1 and expected[-1] == 1:
        return True  # Keras adds a last axis of one
    return len(shape) == len(expected) and all(
        e is None or s == e for s, e in zip(shape[1:], expected[1:], strict=True)
    )
