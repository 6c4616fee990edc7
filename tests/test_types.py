"""Signatures: what editors, type checkers and `inspect` know of the public functions."""

import importlib
import inspect
import pathlib
import typing

import keras
import pytest

import keras_gates as kg
from keras_gates.cells import CELLS
from keras_gates.types import CellArguments, LayerArguments, NoArguments

VARIABLE = inspect.Parameter.VAR_KEYWORD
# What their further arguments are for is up to others: cells of one's own, KerasTuner.
OPEN = {
    "check_cell",
    "activation_space",
    "GatedRNNHyperModel",
    "Tuner",
    *("RandomSearch", "GridSearch", "BayesianOptimization", "Hyperband"),
    *("RandomSearchOracle", "GridSearchOracle", "BayesianOptimizationOracle", "HyperbandOracle"),
    "OptunaOracle",
}


def public():
    """All public functions and classes with a constructor, by name."""
    found = {"check_cell": kg.checks.check_cell}
    for name in ("", ".activations", ".deployment", ".diagnostics", ".tuning"):
        module = importlib.import_module(f"keras_gates{name}")
        found |= {n: getattr(module, n) for n in module.__all__}
    exceptions = (BaseException, type(kg), str)
    return {
        n: value
        for n, value in found.items()
        if callable(value)
        and not (isinstance(value, type) and issubclass(value, BaseException))
        and not isinstance(value, exceptions)
    }


@pytest.mark.parametrize("name", public())
def test_public_functions_have_annotated_parameters(name):
    value = public()[name]
    signature = inspect.signature(value)
    for parameter in signature.parameters.values():
        assert parameter.annotation is not inspect.Parameter.empty, parameter
        assert parameter.kind is not VARIABLE or name in OPEN, parameter
    if not isinstance(value, type):
        assert signature.return_annotation is not inspect.Signature.empty


def keyword_arguments(function):
    """From the name of each keyword argument to its type."""
    return {
        name: parameter.annotation
        for name, parameter in inspect.signature(function).parameters.items()
        if parameter.kind is inspect.Parameter.KEYWORD_ONLY
    }


def test_type_checkers_know_what_the_constructors_take():
    assert keyword_arguments(kg.GatedCell) == typing.get_type_hints(CellArguments)
    assert keyword_arguments(kg.SimpleRNNCell) == keyword_arguments(kg.GatedCell)
    expected = typing.get_type_hints(LayerArguments)
    assert keyword_arguments(kg.GatedRNN) == expected
    for cell in CELLS.values():
        assert keyword_arguments(cell).items() <= expected.items()
    assert keyword_arguments(kg.from_keras) == expected
    judged, *_ = typing.get_overloads(kg.check_activations)
    options = typing.get_args(inspect.signature(judged).parameters["options"].annotation)[0]
    assert typing.get_type_hints(options).items() <= expected.items()
    assert not typing.get_type_hints(NoArguments)


def test_cells_of_ones_own_show_all_that_they_take():
    class LeakyCell(kg.GatedCell):
        def __init__(self, units, *, leak=0.1, **kwargs):
            super().__init__(units, **kwargs)

    class ShortCell(kg.GatedCell):
        def __init__(self, units, seed=None):
            super().__init__(units, seed=seed)

    assert list(inspect.signature(LeakyCell).parameters)[:3] == ["units", "leak", "gate_activation"]
    assert LeakyCell.options() == kg.GatedCell.options() | {"leak"}
    assert ShortCell.options() == {"units", "seed"}
    assert kg.GatedRNN(4, cell=ShortCell, seed=3).cell.seed == 3
    with pytest.raises(TypeError, match=r"\(cell=ShortCell\) takes no argument `dropout`"):
        kg.GatedRNN(4, cell=ShortCell, dropout=0.1)


def test_activations_of_a_layer_can_be_read():
    layer = kg.GatedRNN(4, "lstm", gate_activation="hard_sigmoid", candidate_activation="relu")
    assert layer.gate_activation is keras.activations.hard_sigmoid
    assert layer.candidate_activation is layer.output_activation is keras.activations.relu
    apart = kg.GatedRNN(4, gate_activation={"reset": "hard_sigmoid"})
    assert apart.gate_activation == {
        "update": keras.activations.sigmoid,
        "reset": keras.activations.hard_sigmoid,
    }
    assert kg.GatedRNN(4, "simple").gate_activation is None


def test_the_package_says_that_it_has_types():
    assert pathlib.Path(kg.__file__).with_name("py.typed").exists()
