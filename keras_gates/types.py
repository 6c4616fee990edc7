"""What the public functions take, for editors and type checkers."""

from collections.abc import Callable, Mapping
from typing import Any, Literal, TypedDict, Union

import keras

from keras_gates.initializers import Chrono

# A name, a function of a tensor, a Keras layer, or the config of one.
Activation = Union[str, Callable[[Any], Any], keras.layers.Layer, dict[str, Any]]  # noqa: UP007
GateActivation = Activation | Mapping[str, Activation | None]
CellName = Literal[
    "gru", "lstm", "simple", "antisymmetric", "cifg", "fast_grnn", "gated_antisymmetric",
    "ind_rnn", "janet", "layer_norm_gru", "layer_norm_lstm", "lem", "li_gru", "mgu", "min_gru",
    "min_lstm", "multiplicative_lstm", "n_brc", "peephole_lstm", "sru", "star",
    "ugrnn",
]  # fmt: skip
ClipPlace = Literal["state", "preactivation"]
InitializationName = Literal["keras", "uniform_gates"]
Initialization = InitializationName | Chrono
Backprop = Literal["auto", "fused", "autodiff"]
Verbose = Literal["auto", 0, 1]
InitialState = Literal["zeros", "learned"]
Format = Literal["saved_model", "onnx", "litert", "openvino"]


class NoArguments(TypedDict):
    """Of what takes no further arguments, and says so at run time in words of its own."""


class CellOptions(TypedDict, total=False):
    """What cells take beside `units` and activations; see `keras_gates.GatedCell`."""

    use_bias: bool
    kernel_initializer: Any
    recurrent_initializer: Any
    bias_initializer: Any
    kernel_regularizer: Any
    recurrent_regularizer: Any
    bias_regularizer: Any
    kernel_constraint: Any
    recurrent_constraint: Any
    bias_constraint: Any
    dropout: float
    recurrent_dropout: float
    zoneout: float | Mapping[str, float]
    grad_clip_value: float | None
    grad_clip_norm: float | None
    grad_clip_at: ClipPlace
    initialization: Initialization | None
    layer_norm: bool
    activation_l1: float
    candidate_l1: float
    seed: int | None
    name: str | None
    dtype: Any
    trainable: bool
    autocast: bool
    activity_regularizer: Any


class CellArguments(CellOptions, total=False):
    """What every cell takes beside `units`."""

    gate_activation: GateActivation | None
    candidate_activation: Activation | None


class BuiltInOptions(CellOptions, total=False):
    """Also what single built-in cells take; see `keras_gates.GRUCell`, `LSTMCell`."""

    reset_after: bool
    unit_forget_bias: bool
    beta: float
    dt: float
    epsilon: float
    gamma: float


class LayerArguments(BuiltInOptions, total=False):
    """What `keras_gates.GatedRNN` takes beside `units` and `cell`."""

    gate_activation: GateActivation | None
    candidate_activation: Activation | None
    output_activation: Activation | None
    return_sequences: bool
    return_state: bool
    go_backwards: bool
    stateful: bool
    unroll: bool
    zero_output_for_mask: bool
    return_gates: bool
    initial_state: InitialState
    backprop: Backprop
