"""What a file and its model are run on: several batch sizes, lengths and paddings."""

import dataclasses
import math

import numpy as np

from keras_gates.deployment.runners.shared import STATIC

# Beyond the longest chunk of the engine, and no multiple of the steps of a turn.
LONG = 230
# Beyond the batch sizes at which files choose between ways.
MANY = 130
# Of the user's data so many sequences are compared, if they have no more steps in all, or numbers
# in an input or output. Where each step is a call, it takes ten times as long.
MOST, MOST_STEPS, MOST_CALLS, MOST_NUMBERS = 256, 2**15, 2**12, 2**24


@dataclasses.dataclass(frozen=True)
class Sample:
    """One comparison of a file with its model.

    Attributes:
        batch, length: how many samples and time steps.
        mask: "none", "right" (padded at the end), or "any" (at the start and in between as well).
        mode: "whole", or how a stream was cut: "step" or "chunk".
        given: how many sequences of the user's data, evenly spaced over them, in such batches one
            after the other; None of one batch, which begins with the first of the data.
    """

    batch: int
    length: int
    mask: str = "none"
    mode: str = "whole"
    given: int | None = None

    def __str__(self):
        mask = {"none": "", "right": ", padded at the end", "any": ", padded anywhere"}[self.mask]
        mode = {"whole": "", "step": ", step by step", "chunk": ", in chunks"}[self.mode]
        if self.given is None:
            return f"batch {self.batch} of {self.length} steps{mask}{mode}"
        return f"{self.given} sequences of the data given, of {self.length} steps{mode}"


class Samples:
    """The samples for one file.

    Args:
        spec: the `ModelSpec`.
        sample: data of the user's, or None for random ones.
        signatures: of the file, as in `Written`. What is fixed in them is fixed in all samples.
        interior_masks: whether the format can hold masks other than of padding at the end.
    """

    def __init__(self, spec, sample, signatures, interior_masks):
        self.spec = spec
        self.data, self.is_users = spec.data(sample), sample is not None
        self.masked, self.interior_masks = spec.has_mask, interior_masks
        over_time = [i for i, one in enumerate(spec.inputs) if one.has_time]
        self.usual_length = 100
        if sample is not None and over_time:
            self.usual_length = self.data[over_time[0]].shape[1]
        shapes = {one.name: {"shape": list(one.shape)} for one in spec.inputs}
        self.of_model = _fixed(spec.inputs, shapes)
        self.signatures = {n: found for n, found in signatures.items() if n != "initial_state"}
        self.fixed = {n: _fixed(spec.inputs, s["inputs"]) for n, s in self.signatures.items()}

    def whole(self):
        """Of calls for whole sequences."""
        if "serving_default" not in self.fixed:
            return []
        wanted = [(1, 7), (17, self.usual_length), (8, LONG), (2, 1), (MANY, 3)]
        found = [Sample(batch, length) for batch, length in wanted]
        if self.masked:
            found += [Sample(5, 12, "right"), Sample(19, LONG, "right")]
            if self.interior_masks:
                found.append(Sample(18, 12, "any"))
        return self._fitted(found, "serving_default")

    def streamed(self):
        """Of streams."""
        found = []
        for mode in ("step", "chunk"):
            if mode not in self.fixed:
                continue
            wanted = [Sample(1, 40, "none", mode), Sample(3, 12, "none", mode)]
            if self.masked:
                mask = "any" if self.interior_masks else "right"
                wanted.append(Sample(6, 12, mask, mode))
            found += self._fitted(wanted, mode)
        return found

    def given(self):
        """Of the user's own data."""
        if not self.is_users:
            return []
        whole = "serving_default" in self.fixed
        signature = "serving_default" if whole else next(iter(self.fixed))
        mode = "whole" if whole else signature
        (sample,) = self._fitted([Sample(0, self.usual_length, mode=mode)], signature)
        length, calls = sample.length, MOST_CALLS if mode == "step" else MOST_STEPS
        shapes = [
            tensor["shape"] or []
            for tensors in self.signatures[signature].values()
            for tensor in tensors.values()
        ]
        numbers = max(math.prod(size or length for size in shape[1:]) for shape in shapes)
        numbers *= length if mode == "step" else 1
        most = max(1, min(MOST, calls // length, MOST_NUMBERS // numbers))
        count = min(len(self.data[0]), most)
        batch = sample.batch or count
        # Batches are full: of few data, they repeat them.
        count = max(count - count % batch, min(count, batch))
        return [dataclasses.replace(sample, batch=batch, given=count)]

    def parts(self, sample):
        """The numbers of the batches that it is run in."""
        return range(1 if sample.given is None else -(-sample.given // sample.batch))

    def timed(self):
        """Of what is timed: one sequence, and many."""
        if "serving_default" not in self.fixed:
            return []
        wanted = [Sample(batch, self.usual_length, mode="latency") for batch in (1, 64)]
        return self._fitted(wanted, "serving_default")

    def values(self, sample, length=None, part=0):
        """The flat list of the inputs of a sample, in its batch number `part`, or of its first
        `length` steps."""
        data = self.data
        if sample.given is not None:
            chosen = np.linspace(0, len(data[0]) - 1, sample.given).round().astype(int)
            chosen = chosen[part * sample.batch : (part + 1) * sample.batch]
            data = [value[chosen] for value in data]
        found = self.spec.sized(data, sample.batch, sample.length)
        if sample.mask != "none":
            valid = np.arange(sample.length) < _lengths(sample)[:, None]
            if sample.mask == "any":
                valid = _any_padding(valid)
            found = self.spec.padded(found, valid)
        if length is None:
            return found
        return [
            value[:, :length] if one.has_time else value
            for value, one in zip(found, self.spec.inputs, strict=True)
        ]

    def by_name(self, sample, part=0):
        """The inputs of a sample, in its batch number `part`, as a runner wants them."""
        return {
            one.name
            if one.has_time or sample.mode in ("whole", "latency")
            else STATIC + one.name: v
            for one, v in zip(self.spec.inputs, self.values(sample, part=part), strict=True)
        }

    def _fitted(self, samples, signature):
        """The samples in the batch size and length that a signature has fixed, each once."""
        batch, length = self.fixed[signature]
        if signature != "serving_default":  # which the model is run as, to compare
            of_model = self.fixed.get("serving_default", self.of_model)
            batch, length = batch or of_model[0], of_model[1]
        changed = {"batch": batch, "length": length}
        changed = {name: size for name, size in changed.items() if size is not None}
        return list(dict.fromkeys(dataclasses.replace(sample, **changed) for sample in samples))


def _fixed(inputs, tensors):
    """The batch size and the length that a signature has fixed, or None."""
    batch = length = None
    for one in inputs:
        shape = tensors[one.name]["shape"]
        if shape:
            batch = batch or shape[0]
            if one.has_time and len(shape) == len(one.shape):
                length = length or shape[1]
    return batch, length


def _lengths(sample):
    """Of each sequence, from the whole length down to one step."""
    return np.linspace(sample.length, 1, sample.batch).round()


def _any_padding(valid):
    """Padding at the end as it is, turned round, with holes, and everywhere; in turns."""
    valid = valid.copy()
    for row, steps in enumerate(valid):
        if row % 4 == 1:
            valid[row] = steps[::-1]
        elif row % 4 == 2:
            valid[row, 1::3] = False
        elif row % 4 == 3:
            valid[row] = False
    return valid
