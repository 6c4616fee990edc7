"""The diagnosis of a model: figures and findings, as text, as plain data, as a table."""

import dataclasses
import math

import numpy as np

from keras_gates.diagnostics.figures import ALL, LayerDiagnosis
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
        from keras_gates.diagnostics import page

        page.write(self, path)

    def _repr_html_(self):
        from keras_gates.diagnostics import page

        return page.block(self)

    def __str__(self):
        lines = [f"Diagnosis of {self.model!r}"]
        for layer in self.layers:
            lines += ["", *_layer(layer)]
        if any(layer.gates for layer in self.layers):
            lines += ["", ends(self)]
        if not self.findings:
            return "\n".join([*lines, "", "Findings: none."])
        lines += ["", "Findings"]
        for finding in self.findings:
            lines.append(f"  {finding.severity.upper()} {finding.layer}: {finding.what}.")
            lines.append(f"      {finding.advice}")
        return "\n".join(lines)


def ends(found):
    return f"At an end: within {found.margin:.0%} of the range of the activation."


def _layer(layer):
    """The figures of one layer as lines of text."""
    lines = [f"{layer.name}: {summary(layer)}"]
    if layer.backwards:
        lines.append(f"  {BACKWARDS}")
    for rows in tables(layer):
        lines += _table(rows)
    if layer.lyapunov is not None:
        lines.append(f"  {exponent(layer)}")
    return lines


BACKWARDS = "reads the sequence backwards: steps in the order in which the layer reads them"


def summary(layer):
    return (
        f"{layer.cell}, {layer.units} units; {layer.samples} samples of up to "
        f"{layer.steps} steps, {layer.pairs} valid pairs"
    )


def exponent(layer):
    if not math.isfinite(layer.lyapunov):
        return "Lyapunov exponent: not finite"
    return f"Lyapunov exponent {layer.lyapunov:+.3f} nats per step"


def tables(layer):
    """The figures of one layer: tables of strings, each with its header first."""
    spread = ("mean", "5%", "50%", "95%")
    found = []
    if layer.gates:
        rows = [
            (name, *_distribution(gate), _share(gate.saturated_low), _share(gate.saturated_high))
            for name, gate in layer.gates.items()
        ]
        found.append([("gate", *spread, "at low end", "at high end"), *rows])
    if layer.candidate:
        figures = layer.candidate
        dead = f"{len(figures.dead_units)} of {layer.units}"
        found.append(
            [
                ("", *spread, "zeros", "dead units"),
                ("candidate", *_distribution(figures), _share(figures.sparsity), dead),
            ]
        )
    rows = [
        (
            name,
            _number(figures.norm),
            *_ends(figures.norm_per_step),
            _number(figures.largest),
            _share(figures.sparsity),
            _share(figures.at_bound),
        )
        for name, figures in layer.states.items()
    ]
    found.append(
        [("state", "norm", "first step", "last step", "max value", "zeros", "at bound"), *rows]
    )
    if layer.gradient:
        header = ("gradient", "", "first step", "last step", "max norm", "per step back", "clipped")
        rows = [
            (
                name,
                "",
                *_ends(figures.norm_per_step),
                _number(figures.largest),
                "-" if figures.log_slope is None else f"x {_number(_exp(figures.log_slope))}",
                _share(figures.clipped),
            )
            for name, figures in gradients(layer).items()
        ]
        found.append([header, *rows])
    return found


def gradients(layer):
    """The figures of the gradients of each state and of all together, by what they are shown as."""
    if layer.gradient is None:
        return {}
    further = {f"{n} states" if n == ALL else n: g for n, g in layer.gradients.items()}
    return {"dL/dh": layer.gradient, **further}


def _table(rows):
    """Rows in columns that stand below those of the other tables."""
    widths = (10, 10, 11, 11, 10, 14, 13)
    return [
        "  " + rows_0.ljust(widths[0]) + "".join(map(str.rjust, rest, widths[1:]))
        for rows_0, *rest in rows
    ]


def _distribution(figures):
    return [_number(getattr(figures, name)) for name in ("mean", "p5", "p50", "p95")]


def _ends(per_step):
    known = [value for value in per_step if not math.isnan(value)] or [math.nan]
    return _number(known[0]), _number(known[-1])


def _number(value):
    return "NaN" if math.isnan(value) else f"{value:.3g}"


def _share(value):
    if value is None or math.isnan(value):
        return "-" if value is None else "NaN"
    return f"{value:.1%}"


def _exp(value):
    with np.errstate(over="ignore"):
        return float(np.exp(value))


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
