"""The package as a whole: what importing it does, and what it says of itself."""

import configparser
import doctest
import pathlib
import re
import textwrap
import tomllib

import keras
import numpy as np
import pytest
from helpers import run_python

import keras_gates as kg

ROOT = pathlib.Path(__file__).parent.parent


def test_import_registers_and_stays_light():
    printed = run_python(
        """
        import sys, keras
        before = set(sys.modules)  # keras imports matplotlib and scikit-learn where they are
        import keras_gates
        for name in ("GatedRNN", "GRUCell", "LSTMCell", "SimpleRNNCell"):
            found = keras.saving.get_registered_object(f"keras_gates>{name}")
            assert found is getattr(keras_gates, name), name
        heavy = {"keras_tuner", "matplotlib", "sklearn", "pandas", "tensorboard"}
        print(sorted(heavy & (set(sys.modules) - before)))
        """
    )
    assert printed.strip() == "[]"


def test_packages_are_imported_when_they_are_asked_for():
    printed = run_python(
        """
        import sys, keras_gates
        assert "keras_gates.deployment.core" not in sys.modules
        print(keras_gates.export.__name__, "tuning" in dir(keras_gates))
        assert keras_gates.export is keras_gates.deployment.export
        try:
            keras_gates.nothing
        except AttributeError as error:
            print(error)
        """
    )
    assert printed.splitlines() == [
        "export True",
        "module 'keras_gates' has no attribute 'nothing'",
    ]


def test_the_former_name_of_deployment_still_imports():
    printed = run_python(
        """
        import warnings
        import keras_gates as kg
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            from keras_gates.export import NotExportableError, ParityError, export, inspect
        (warning,) = [w for w in caught if w.category is DeprecationWarning]
        print(warning.message, warning.filename)
        assert export is kg.deployment.export and inspect is kg.deployment.inspect
        try:
            kg.export(1, "path")  # is one that can be called all the same
        except TypeError as error:
            print(error)
        """
    )
    assert "keras_gates.deployment: import from there" in printed
    assert "<string>" in printed
    assert "`model` must be a Keras model" in printed


def test_every_public_name_is_there_and_documented():
    for name in kg.__all__:
        assert getattr(kg, name)
        if name not in {"__version__", *PACKAGES}:
            assert len(getattr(kg, name).__doc__) > 200, name


PACKAGES = {"activations", "checks", "deployment", "diagnostics", "tuning"}
PUBLIC = [getattr(kg, name) for name in kg.__all__ if name not in {"__version__", *PACKAGES}]


@pytest.mark.parametrize("public", PUBLIC, ids=lambda public: public.__name__)
def test_the_example_of_every_public_name_runs(public):
    names = {"keras": keras, "numpy": np, "keras_gates": kg, "kg": kg}
    blocks = re.findall(r"```python\n(.*?)```", public.__doc__, re.DOTALL)
    for block in blocks:
        exec(textwrap.dedent(block), names)
    found = doctest.DocTestFinder().find(public, public.__name__, globs=names)  # of methods, too
    own = next(test for test in found if test.name == public.__name__)
    assert blocks or own.examples, f"{public.__name__} has no example"
    for test in found:
        assert doctest.DocTestRunner(optionflags=doctest.ELLIPSIS).run(test).failed == 0


def test_pyproject_names_the_build_system_alone():
    assert set(tomllib.loads((ROOT / "pyproject.toml").read_text())) == {"build-system"}


def test_version_is_in_the_changelog():
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    assert config["metadata"]["name"] == "keras-gates"
    assert f"## {kg.__version__}" in (ROOT / "CHANGELOG.md").read_text()
    assert f"\nversion: {kg.__version__}\n" in (ROOT / "CITATION.cff").read_text()
