"""How Keras records what is done with a KerasTensor."""

import contextlib

from keras.src.backend.common import global_state


def origin(tensor):
    """(operation, args, kwargs, index) that a KerasTensor is the output `index` of, or None."""
    history = getattr(tensor, "_keras_history", None)
    if history is None or history.operation is None:
        return None
    arguments = history.operation._inbound_nodes[history.node_index].arguments
    return history.operation, arguments.args, arguments.kwargs, history.tensor_index


@contextlib.contextmanager
def names_kept():
    """While it lasts, automatic names of layers and tensors are given out that do not count."""
    names = global_state.get_global_attribute("object_name_uids")
    before = None if names is None else names.copy()
    try:
        yield
    finally:
        global_state.set_global_attribute("object_name_uids", before)


def disconnected(layer):
    """Gives a copy of a layer records of its own of where it is called."""
    vars(layer)["_inbound_nodes"], vars(layer)["_outbound_nodes"] = [], []


def map_variable(scope, variable, value):
    """Has `variable` stand for any value, a KerasTensor too, in a `keras.StatelessScope`."""
    scope.state_mapping[id(variable)] = value
