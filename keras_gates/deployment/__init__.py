"""Models as files that run elsewhere, each compared with its model before it counts as written.

`export` writes one, `inspect` tells what is in one; both return an `ExportReport`. What is in
a .keras file `inspect_keras` tells.
"""

from keras_gates.deployment.core import export, inspect
from keras_gates.deployment.errors import NotExportable, NotExportableError, ParityError
from keras_gates.deployment.keras_file import KerasFile, SavedLayer, inspect_keras
from keras_gates.deployment.report import DataDifference, Difference, ExportReport, Latency
from keras_gates.deployment.samples import Sample

__all__ = [
    "DataDifference",
    "Difference",
    "ExportReport",
    "KerasFile",
    "Latency",
    "NotExportable",
    "NotExportableError",
    "ParityError",
    "Sample",
    "SavedLayer",
    "export",
    "inspect",
    "inspect_keras",
]
