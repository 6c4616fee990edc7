"""What a diagnosis says of a layer, in words and tables of strings."""

import math

import numpy as np

from keras_gates.diagnostics.figures import ALL

BACKWARDS = "reads the sequence backwards: steps in the order in which the layer reads them"


def ends(found):
    return f"At an end: within {found.margin:.0%} of the range of the activation."


def lines_of(layer):
    """The figures of one layer as lines of text."""
    lines = [f"{layer.name}: {summary(layer)}"]
    if layer.backwards:
        lines.append(f"  {BACKWARDS}")
    for rows in tables(layer):
        lines += _table(rows)
    if layer.lyapunov is not None:
        lines.append(f"  {exponent(layer)}")
    return lines


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
            _number(figures.first_norm),
            _number(figures.last_norm),
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
                _number(figures.first_norm),
                _number(figures.last_norm),
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


def _number(value):
    return "NaN" if math.isnan(value) else f"{value:.3g}"


def _share(value):
    if value is None or math.isnan(value):
        return "-" if value is None else "NaN"
    return f"{value:.1%}"


def _exp(value):
    with np.errstate(over="ignore"):
        return float(np.exp(value))
