"""Models as files that run elsewhere, each compared with its model before it counts as written.

`export` writes one, `inspect` tells what is in one; both return an `ExportReport`.
"""

from keras_gates.deployment.core import export, inspect
from keras_gates.deployment.errors import NotExportable, NotExportableError, ParityError
from keras_gates.deployment.report import Difference, ExportReport, Latency
from keras_gates.deployment.samples import Sample

__all__ = [
    "Difference",
    "ExportReport",
    "Latency",
    "NotExportable",
    "NotExportableError",
    "ParityError",
    "Sample",
    "export",
    "inspect",
]
