"""What was written, and how it compares with its model: as text and as plain data."""

import dataclasses
import os
import pathlib
from typing import Any

from keras_gates import html
from keras_gates.deployment import card
from keras_gates.deployment.samples import Sample

# Operators that run over time: what to look for first.
_RECURRENT = (
    *("GRU", "LSTM", "RNN", "GRUSequence", "LSTMSequence", "RNNSequence"),
    *("Scan", "Loop", "TensorIterator", "While", "StatelessWhile", "WHILE"),
)
# Of a format that leaves the precision to who runs a file, the one that was asked for.
_PRECISION = {"openvino": " in float32"}


@dataclasses.dataclass
class Difference:
    """The largest difference between a written file and its model.

    Attributes:
        absolute: largest |file - model| of any output.
        relative: the same, as a share of the largest |model| of that output.
        tolerance: the largest `relative` that is accepted; None where any is.
        output: name of the output with the largest `relative`.
        sample: on which `Sample`, in words.
    """

    absolute: float
    relative: float
    tolerance: float | None
    output: str
    sample: str


@dataclasses.dataclass
class DataDifference:
    """How far a written file is from its model on data that were given, in one output.

    Attributes:
        output: its name.
        largest, mean: of |file - model|, without masked time steps.
        same_class: of an output that looks like the probabilities of classes, whose rows sum to 1,
            the share of sequences, or of their time steps, in which file and model agree on the
            most probable class; None of others.
    """

    output: str
    largest: float
    mean: float
    same_class: float | None = None


@dataclasses.dataclass
class Latency:
    """How long a call takes: medians, in milliseconds.

    Attributes:
        signature: which one: "serving_default", or "step" of a stream.
        batch, length: of the sequences.
        file: of the written file.
        model: of `predict_on_batch` of the Keras model; None for a step.
    """

    signature: str
    batch: int
    length: int
    file: float
    model: float | None


@dataclasses.dataclass
class ExportReport:
    """What `export` wrote, or what `inspect` found. `print` shows it.

    Attributes:
        path: of the file or folder.
        format: its format.
        size: in bytes, of all files together.
        signatures: from the name of a signature to its "inputs" and "outputs": dicts from a name
            to its "shape", with None for what is dynamic, and "dtype".
        operators: how often each operator occurs, by name.
        notes: sentences on what is worth knowing.
        difference: the largest `Difference` to the model; None from `inspect`.
        samples: the `Sample`s that were compared.
        latency: the `Latency`s that were measured.
        on_data: the `DataDifference` of each output, where data were given to compare on.
        replaced: whether there was an older file, whose place it took.
    """

    path: str
    format: str
    size: int
    signatures: dict[str, dict]
    operators: dict[str, int]
    notes: list[str]
    difference: Difference | None = None
    samples: list[Sample] = dataclasses.field(default_factory=list)
    latency: list[Latency] = dataclasses.field(default_factory=list)
    on_data: list[DataDifference] = dataclasses.field(default_factory=list)
    replaced: bool = False

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain dicts, lists, strings and numbers, for JSON."""
        return dataclasses.asdict(self)

    def __str__(self) -> str:
        lines = [self._title()]
        for name, signature in self.signatures.items():
            lines.append(f"  {name}({_tensors(signature['inputs'])})")
            lines.append(f"    -> {_tensors(signature['outputs'])}")
        lines.append(f"  {self._operators()}")
        lines += [f"  {figure}" for figure in self._figures()]
        return "\n".join([*lines, *(f"  note: {note}" for note in self.notes)])

    def to_model_card(
        self, path: str | os.PathLike | None = None, description: str = "", **metadata: Any
    ) -> str:
        """A model card: what the file takes and gives, code that runs it, and how it compares.

        Args:
            path: where to write it, "README.md" in a repository of the Hugging Face Hub.
            description: what only you know, in Markdown: what the model is for, what it was trained
                on, how well it does.
            **metadata: for the head of the card, such as `license="apache-2.0"`,
                `pipeline_tag="text-classification"`, `tags=[...]`.

        Returns:
            The card, in Markdown.
        """
        written = card.text(self, [*self._figures()], _named, description, metadata)
        if path is not None:
            pathlib.Path(path).write_text(written, encoding="utf-8")
        return written

    def _repr_html_(self) -> str:
        signatures = [
            [name, _tensors(signature["inputs"]), _tensors(signature["outputs"])]
            for name, signature in self.signatures.items()
        ]
        latency = [
            [t.signature, t.batch, t.length, *map(_milliseconds, (t.file, t.model))]
            for t in self.latency
        ]
        header = ["signature", "batch", "steps", f"file{self._precision()}, ms", "model, ms"]
        return html.block(
            html.element("h3", self._title()),
            html.table(["signature", "inputs", "outputs"], signatures),
            html.element("p", f"{self._operators()}."),
            self.difference and html.element("p", f"{self._difference()}."),
            *[html.element("p", f"{line}.") for line in self._on_data()],
            html.table(header, latency) if latency else None,
            *[html.finding("note", note) for note in self.notes],
        )

    def _title(self):
        replaced = "; replaced an older file" if self.replaced else ""
        return f"{self.path}: {self.format}, {size_as_text(self.size)}{replaced}"

    def _operators(self):
        names = sorted(self.operators, key=lambda name: name not in _RECURRENT)
        operators = [f"{name} {self.operators[name]}" for name in names]
        return f"operators: {', '.join(operators[:8])}{_and_more(len(operators) - 8)}"

    def _figures(self):
        if self.difference is not None:
            yield self._difference()
        yield from self._on_data()
        for given in self.latency:
            what = f"{given.signature}, batch {given.batch}"
            took = f"{given.file:.3g} ms{self._precision()}"
            if given.model is None:
                yield f"{what}: {took}"
            else:
                yield f"{what} of {given.length} steps: {took}, the model {given.model:.3g} ms"

    def _precision(self):
        return _PRECISION.get(self.format, "")

    def _difference(self):
        found = self.difference
        batches = [sample for sample in self.samples if sample.given is None]
        most, longest = max(s.batch for s in batches), max(s.length for s in batches)
        given = f"{self._given()} and " if self._given() else ""
        random = "" if given else " of random numbers"
        return (
            f"largest difference to the model{self._precision()}: {found.absolute:.2g}, "
            f"{found.relative:.2g} of the scale of {found.output!r}, on {given}"
            f"{_count(len(batches), 'batch', 'batches')}{random} of up to "
            f"{_count(most, 'sequence')} and {_count(longest, 'step')}"
        )

    def _given(self):
        """How many sequences of the user's data were compared, or nothing."""
        return "".join(
            f"{_count(s.given, 'sequence')} of the data given" for s in self.samples if s.given
        )

    def _on_data(self):
        for one in self.on_data:
            same = ""
            if one.same_class is not None:
                same = f", the most probable class is the same in {one.same_class:.1%} of cases"
            yield (
                f"on {self._given()}: {one.output!r} differs by {one.mean:.2g} on average, by "
                f"{one.largest:.2g} at most{same}"
            )


def _count(number, one, many=None):
    return f"{number} {one if number == 1 else many or one + 's'}"


def _milliseconds(value):
    return "-" if value is None else f"{value:.3g}"


def _tensors(tensors):
    return ", ".join(_named(tensors))


def _named(tensors):
    return [f"{name}: {t['dtype']} {_shape(t['shape'])}" for name, t in tensors.items()]


def _shape(shape):
    if shape is None:
        return "of any shape"
    return f"({', '.join('any' if size is None else str(size) for size in shape)})"


def size_as_text(size):
    for unit in ("bytes", "kB"):
        if size < 1000:
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:.3g} MB"


def _and_more(count):
    return f" and {count} more" if count > 0 else ""
