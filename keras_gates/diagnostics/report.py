"""The diagnosis of a model: figures and findings, as text, as plain data, as a table."""

import dataclasses
import math

from keras_gates.diagnostics import page, text
from keras_gates.diagnostics.figures import LayerDiagnosis
from keras_gates.diagnostics.findings import Finding


@dataclasses.dataclass
class Diagnosis:
    """What `diagnose` finds. `print` shows the figures, and then what to do.

    Attributes:
        model: name of the model.
        margin: the margin that saturation is measured with.
        layers: a list of `LayerDiagnosis`, in the order of execution.
        findings: a list of `Finding`, the most severe first.
    """

    model: str
    margin: float
    layers: list[LayerDiagnosis]
    findings: list[Finding]

    def scalars(self):
        """All figures that are one number, by flat names such as "gated_rnn/update/mean"."""
        return {name: value for layer in self.layers for name, value in layer.scalars().items()}

    def to_dict(self):
        """Everything as plain dicts, lists and numbers, for JSON. None stands for what is not
        finite."""
        return plain(dataclasses.asdict(self))

    def to_dataframe(self):
        """The figures that are one number as a pandas.DataFrame: layer, part, figure, value.

        Raises:
            ImportError: pandas is not installed.
        """
        rows = []
        for layer in self.layers:
            for name, value in layer.scalars().items():
                part, _, figure = name.removeprefix(f"{layer.name}/").rpartition("/")
                rows.append({"layer": layer.name, "part": part, "figure": figure, "value": value})
        return dataframe("Diagnosis", rows)

    def to_html(self, path):
        """Writes a page with the findings, the figures and, where matplotlib is installed, pictures
        of them. It is one file, which needs no network and runs no script.

        Raises:
            TypeError: `path` is no path.
            FileNotFoundError: the folder that it is in is not there.
        """
        page.write(self, path)

    def _repr_html_(self):
        return page.block(self)

    def __str__(self):
        lines = [f"Diagnosis of {self.model!r}"]
        for layer in self.layers:
            lines += ["", *text.lines_of(layer)]
        if any(layer.gates for layer in self.layers):
            lines += ["", text.ends(self)]
        if not self.findings:
            return "\n".join([*lines, "", "Findings: none."])
        lines += ["", "Findings"]
        for finding in self.findings:
            lines.append(f"  {finding.severity.upper()} {finding.layer}: {finding.what}.")
            lines.append(f"      {finding.advice}")
        return "\n".join(lines)


def dataframe(owner, rows, **options):
    """A pandas.DataFrame of a list of dicts, for a report of this class."""
    try:
        import pandas
    except ImportError as error:
        raise ImportError(
            f"{owner}.to_dataframe needs pandas, which is not installed: pip install pandas"
        ) from error
    return pandas.DataFrame(rows, **options)


def plain(value):
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
