"""What happens inside the recurrent layers of a model: figures, findings, the source of a NaN."""

from keras_gates.diagnostics.diagnosis import diagnose, traces
from keras_gates.diagnostics.figures import (
    CandidateFigures,
    GateFigures,
    GradientFigures,
    LayerDiagnosis,
    StateFigures,
)
from keras_gates.diagnostics.findings import Finding
from keras_gates.diagnostics.monitor import GateMonitor
from keras_gates.diagnostics.nonfinite import NonFinite, locate_nonfinite
from keras_gates.diagnostics.plots import (
    plot_activation,
    plot_gate,
    plot_gradient_norms,
    plot_saturation,
    plot_states,
    plot_verdicts,
)
from keras_gates.diagnostics.report import Diagnosis
from keras_gates.diagnostics.trace import Trace

__all__ = [
    "CandidateFigures",
    "Diagnosis",
    "Finding",
    "GateFigures",
    "GateMonitor",
    "GradientFigures",
    "LayerDiagnosis",
    "NonFinite",
    "StateFigures",
    "Trace",
    "diagnose",
    "locate_nonfinite",
    "plot_activation",
    "plot_gate",
    "plot_gradient_norms",
    "plot_saturation",
    "plot_states",
    "plot_verdicts",
    "traces",
]
