"""Recurrent layers with gate and candidate activations of your choice, from the command line.

    keras-gates check gru --gate relu --candidate tanh
    keras-gates export model.keras served_model --streaming
    keras-gates export model.keras model.onnx --sample data.npz
    keras-gates export model.keras model.tflite --quantize int8
    keras-gates inspect model.keras
    keras-gates inspect model.onnx
    keras-gates diagnose model.keras data.npz --html diagnosis.html
    keras-gates search --workers 2 search.py --epochs 20
    keras-gates search --workers 2 --worker 0 search.py --epochs 20
    keras-gates bench lstm --candidate softsign --units 128 --batch 32

`keras-gates COMMAND --help` tells more, and `python -m keras_gates` is the same. What was found
goes to the standard output, what is being done to the standard error. Exit status: 0 if it was
done, 1 if it could not be, 2 if the command line cannot be read, 130 after Ctrl-C.
"""

# This package is not inside keras_gates because importing that imports Keras and its backend, six
# seconds before a --help.

import contextlib
import importlib
import json
import logging
import math
import os
import sys
import time
import warnings

from keras_gates_command import without_backend
from keras_gates_command.arguments import check_files, in_terms_of_options, parse

__all__ = ["main"]


def main(argv=None):
    """Runs the command; returns the exit status."""
    given = parse(__doc__, argv)
    with _reporting(given.quiet):
        try:
            return _run(given)
        except KeyboardInterrupt:
            again = "; the same command goes on with the search" * (given.command == "search")
            print(f"interrupted{again}", file=sys.stderr)
            return 130
        except BrokenPipeError:  # who reads the output has seen enough
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 0


def _run(given):
    mendable: tuple = (ImportError, NotImplementedError, OSError, TypeError, ValueError)
    try:
        check_files(given)
        # What the packages print at work is no part of the report; what a search prints is.
        aside = given.command != "search"
        with contextlib.redirect_stdout(sys.stderr) if aside else contextlib.nullcontext():
            _import_keras(given.needs_backend(given))
            from keras_gates import commands

            mendable = (*mendable, *commands.ERRORS)
            found = getattr(commands, given.command)(given)
    except BrokenPipeError:
        raise
    except mendable as error:
        print(f"error: {in_terms_of_options(given, str(error))}", file=sys.stderr)
        return 1
    if isinstance(found, int):
        return found
    print(json.dumps(_plain(found.to_dict()), indent=2) if given.json else found, flush=True)
    return 0


def _plain(value):
    """For JSON, which has no numbers that are not finite: null stands for them."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _import_keras(backend):
    if not backend:
        without_backend.import_keras()
    elif "keras" not in sys.modules:
        os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
        logging.getLogger("keras_gates").info("importing Keras and its backend")
        with _silent():
            importlib.import_module("keras")


@contextlib.contextmanager
def _silent():
    """Lets go of what libraries in C++ print on being loaded, whatever they are asked."""
    sys.stderr.flush()
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        sys.stderr.flush()
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


@contextlib.contextmanager
def _reporting(quiet):
    """Shows what keras_gates logs, with the seconds since the beginning; if quiet, what matters."""
    log, began = logging.getLogger("keras_gates"), time.monotonic()

    class Seconds(logging.Formatter):
        def format(self, record):
            return f"{time.monotonic() - began:5.1f} s  {record.getMessage()}"

    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(Seconds())
    level, propagate, shown = log.level, log.propagate, warnings.formatwarning
    warnings.formatwarning = lambda text, *_, **__: f"warning: {' '.join(str(text).split())}\n"
    log.addHandler(handler)
    log.setLevel(logging.WARNING if quiet else logging.INFO)
    log.propagate = False
    try:
        yield
    finally:
        log.removeHandler(handler)
        log.setLevel(level)
        log.propagate = propagate
        warnings.formatwarning = shown
