"""Each private part of Keras that is used, by name: a release without it fails here first."""

import keras

from keras_gates._keras import graph


def test_the_origin_of_a_keras_tensor():
    x = keras.KerasTensor((None, 3), name="x")
    assert graph.origin(x) is None
    operation, args, kwargs, index = graph.origin(keras.ops.add(x, 2.0))
    assert type(operation).__name__ == "Add"
    assert args[0] is x
    assert (args[1], kwargs, index) == (2.0, {}, 0)


def test_automatic_names_are_kept():
    keras.layers.Dense(1)
    with graph.names_kept():
        keras.layers.Dense(1)
    assert keras.layers.Dense(1).name == "dense_1"


def test_a_variable_stands_for_a_keras_tensor():
    variable, x = keras.Variable(2.0), keras.KerasTensor((None, 3), name="x")
    with keras.StatelessScope() as scope:
        graph.map_variable(scope, variable, x)
        assert variable.value is x


def test_a_copy_of_a_layer_has_records_of_its_own():
    layer = keras.layers.Dense(1)
    copy = object.__new__(type(layer))
    vars(copy).update(vars(layer))
    graph.disconnected(copy)
    assert copy._inbound_nodes is not layer._inbound_nodes
    assert copy._outbound_nodes is not layer._outbound_nodes
