"""Bad input: every error names the argument, what was expected and what came."""

import functools
import pathlib
import re

import keras
import numpy as np
import pytest
from helpers import BACKEND
from keras import ops

import keras_gates as kg
from keras_gates import checks

BAD_ARGUMENTS = [
    ({"units": 0}, ValueError, "`units` must be a positive integer. Received: units=0"),
    ({"units": -3}, ValueError, "units=-3"),
    ({"units": 2.5}, ValueError, "units=2.5"),
    ({"units": True}, ValueError, "units=True"),
    ({"units": "8"}, ValueError, "units='8'"),
    ({"units": None}, ValueError, "units=None"),
    ({"cell": "grru"}, ValueError, "'gru', 'lstm', 'simple'.*cell='grru'; did you mean 'gru'"),
    ({"cell": "GRU"}, ValueError, "cell='GRU'; did you mean 'gru'"),
    ({"cell": "relu"}, ValueError, "activation 'relu' goes into candidate_activation="),
    ({"cell": 3}, ValueError, "subclass of GatedCell.*Received: cell=3"),
    ({"cell": keras.layers.GRUCell}, ValueError, "subclass of GatedCell"),
    ({"cell": [kg.GRUCell(3)]}, ValueError, "several GatedRNN layers"),
    ({"cell": kg.GRUCell(5)}, ValueError, "Received beside it: units"),
    (
        {"gate_activation": "sigmiod"},
        ValueError,
        "`gate_activation`.*gate_activation='sigmiod'; did you mean 'sigmoid'",
    ),
    ({"candidate_activation": "rellu"}, ValueError, "candidate_activation='rellu'.*'relu'"),
    ({"candidate_activation": 3}, ValueError, "candidate_activation=3"),
    ({"candidate_activation": keras.layers.ReLU}, ValueError, "a class: pass an instance"),
    (
        {"gate_activation": {"updat": "relu"}},
        ValueError,
        r"GRUCell does not have: 'updat'; did you mean 'update'\? Its gates: \['update', 'reset'\]",
    ),
    (
        {"gate_activation": {"candidate": "relu"}},
        ValueError,
        r"does not have: 'candidate', whose activation is `candidate_activation`\. Its gates: \[",
    ),
    ({"candidate": "relu"}, TypeError, "`candidate`; did you mean 'candidate_activation'"),
    ({"gate": "relu"}, TypeError, "`gate`; did you mean 'gate_activation'"),
    (
        {"cell": "simple", "zoneout": {"hiden": 0.1}},
        ValueError,
        r"does not have: 'hiden'; did you mean 'hidden'\? Its states: ",
    ),
    (
        {"gate_activation": {"reset": "nope"}},
        ValueError,
        r"`gate_activation\['reset'\]`.*'nope'",
    ),
    (
        {"cell": "simple", "gate_activation": "sigmoid"},
        ValueError,
        "SimpleRNNCell has no gates.*gate_activation='sigmoid'",
    ),
    ({"implementation": 1}, TypeError, "no argument `implementation`; there is one impl"),
    ({"use_cudnn": True}, TypeError, "`use_cudnn`; `backprop` chooses how the layer runs"),
    ({"time_major": True}, TypeError, r"`time_major`; sequences are \(batch, time, features\)"),
    ({"input_shape": (5, 3)}, TypeError, r"`input_shape`; begin .* keras.Input\(\(time, feat"),
    ({"input_dim": 3}, TypeError, r"`input_dim`; begin the model with keras.Input\(\("),
    ({"batch_input_shape": (2, 5, 3)}, TypeError, r"keras.Input\(batch_shape=\(batch, time"),
    ({"grad_clip_value": 0}, ValueError, "`grad_clip_value` must be a positive finite.*value=0"),
    ({"grad_clip_value": -1.0}, ValueError, "grad_clip_value=-1.0"),
    ({"grad_clip_norm": float("nan")}, ValueError, "`grad_clip_norm` must.*grad_clip_norm=nan"),
    ({"grad_clip_norm": float("inf")}, ValueError, "grad_clip_norm=inf"),
    ({"grad_clip_norm": "1"}, ValueError, "grad_clip_norm='1'"),
    ({"grad_clip_norm": True}, ValueError, "grad_clip_norm=True"),
    (
        {"grad_clip_norm": 1.0, "grad_clip_value": 2.0},
        ValueError,
        "not both. Received: grad_clip_value=2.0, grad_clip_norm=1.0",
    ),
    (
        {"grad_clip_norm": 1.0, "grad_clip_at": "preactivatoin"},
        ValueError,
        "'state', 'preactivation'.*did you mean 'preactivation'",
    ),
    ({"grad_clip_at": "preactivation"}, ValueError, "no bound to clip to"),
    ({"activation_l1": -1e-4}, ValueError, "`activation_l1` must be a finite number >= 0"),
    ({"candidate_l1": float("nan")}, ValueError, "candidate_l1=nan"),
    ({"candidate_l1": None}, ValueError, "candidate_l1=None"),
    ({"dropout": 1.0}, ValueError, r"`dropout` must be in \[0, 1\). Received: dropout=1.0"),
    ({"recurrent_dropout": -0.1}, ValueError, "recurrent_dropout=-0.1"),
    ({"zoneout": 1}, ValueError, r"`zoneout` must be in \[0, 1\). Received: zoneout=1"),
    ({"zoneout": {"hidden": "0.1"}}, ValueError, r"`zoneout\['hidden'\]` must be in \[0, 1\)"),
    (
        {"zoneout": {"cell": 0.5}},
        ValueError,
        r"a state that GRUCell does not have: 'cell'. Its states: \['hidden'\]. Received: zoneout=",
    ),
    ({"unit_forget_bias": True}, TypeError, "`unit_forget_bias`; it belongs to LSTMCell"),
    ({"output_activation": "tanh"}, TypeError, r"it belongs to LSTMCell, .*\w, \w+ and \w+$"),
    ({"cell": "lstm", "reset_after": True}, TypeError, "`reset_after`; it belongs to GRUCell"),
    ({"activation": "relu"}, TypeError, "what Keras calls activation is candidate_activation"),
    ({"recurrent_activation": "relu"}, TypeError, "is gate_activation here"),
    ({"return_sequence": True}, TypeError, r"did you mean 'return_sequences'\?$"),
    ({"nonsense": 1}, TypeError, "takes no argument `nonsense`. It takes .* zoneout$"),
    ({"cell": kg.GRUCell(4), "stateful_": True}, TypeError, r"did you mean 'stateful'\?$"),
    ({"gate_activation": "blub"}, ValueError, "Unknown name: .*='blub'. There are celu, .* tanh"),
    ({"grad_clip": 1.0}, TypeError, "no argument `grad_clip`; did you mean .*grad_clip_"),
    *(
        ({name: 2}, ValueError, f"`{name}` must be True or False. Received: {name}=2")
        for name in ("return_sequences", "stateful", "use_bias", "reset_after")
    ),
    ({"go_backwards": "false"}, ValueError, "`go_backwards` must be True.*'false'"),
    ({"grad_clip_at": ["state"], "grad_clip_norm": 1.0}, ValueError, "`grad_clip_at` must be one"),
    ({"backprop": np.array([1, 2])}, ValueError, "`backprop` must be one of.*Received"),
    ({"recurrent_initializer": None}, ValueError, "`recurrent_initializer` must be.*=None"),
    ({"kernel_initializer": "glorot"}, ValueError, "`kernel_initializer` must be.*'glorot'"),
    ({"bias_initializer": 3}, ValueError, "`bias_initializer` must be the name of an .*=3"),
    ({"kernel_regularizer": "l3"}, ValueError, "`kernel_regularizer` must be the name.*'l3'"),
    ({"bias_constraint": 3}, ValueError, "`bias_constraint` must be the name.*=3"),
    (
        {"gate_activation": {"class_name": "NoSuch", "config": {}}},
        ValueError,
        "`gate_activation` is the config of something that Keras does not find",
    ),
    ({"seed": True}, ValueError, "`seed` must be an integer from 0.*seed=True"),
    ({"seed": 2**70}, ValueError, "`seed` must be an integer from 0"),
    ({"dtype": "int32"}, ValueError, "`dtype` must be of floating.*dtype='int32'"),
    (
        {"grad_clip_norm": 1.0, "dtype": "mixed_float16"},
        ValueError,
        "float16.*loss scaling.*Received: dtype='mixed_float16'",
    ),
]


@pytest.mark.parametrize(("arguments", "error", "message"), BAD_ARGUMENTS, ids=str)
def test_bad_argument(arguments, error, message):
    with pytest.raises(error, match=f"(?s){message}"):
        kg.GatedRNN(**{"units": 4, **arguments})


@pytest.mark.parametrize("cell", [kg.GRUCell, kg.LSTMCell, kg.SimpleRNNCell])
def test_cells_check_their_own_arguments(cell):
    with pytest.raises(ValueError, match="`units` must be a positive integer"):
        cell(-1)
    with pytest.raises(TypeError, match=f"{cell.__name__} takes no argument `grad_clip`"):
        cell(3, grad_clip=1.0)


@pytest.mark.parametrize(
    ("given", "hint"),
    [
        ({"step": 5}, "`step`; did you mean 'steps'?"),
        ({"unit": 5}, "`unit`; did you mean 'units'?"),
        ({"grad_clip": 1.0}, "`grad_clip`; did you mean 'grad_clip_at' or 'grad_clip_norm'"),
        ({"beta": 1.0}, "`beta`; it belongs to JANETCell"),
        ({"nonsense": 1}, "`nonsense`. It takes activation_l1, activity_regularizer, "),
    ],
)
def test_check_activations_names_what_it_does_not_take(given, hint):
    with pytest.raises(TypeError) as error:
        kg.check_activations("lstm", **given)
    assert str(error.value).startswith(f"check_activations of LSTMCell takes no argument {hint}")


@pytest.mark.parametrize(
    ("part", "given", "message"),
    [
        ("cell", "candidate_activaton", "GRUCell takes no .*; did you mean 'candidate_activation'"),
        ("cell", "nonsense", "GRUCell takes no argument `nonsense`. It takes activation_l1, "),
        (
            "layer",
            "retrun_state",
            r"GatedRNN\(cell=GRUCell.* `retrun_state`; did .* 'return_state'",
        ),
    ],
)
def test_a_config_that_does_not_fit_is_told_without_all_of_it(part, given, message):
    model = keras.Sequential([keras.Input((None, 3)), kg.GatedRNN(4)])
    config = model.get_config()
    layer = config["layers"][-1]["config"]
    (layer["cell"]["config"] if part == "cell" else layer)[given] = 1
    made = [lambda: keras.Sequential.from_config(config), lambda: kg.GatedRNN.from_config(layer)]
    if part == "cell":
        made.append(lambda: kg.GRUCell.from_config(layer["cell"]["config"]))
    for make in made:
        with pytest.raises(ValueError, match=f"cannot be made of its config: {message}") as error:
            make()
        assert len(str(error.value)) < 600
        assert "module" not in str(error.value)


@pytest.mark.parametrize("shape", [(2, 4), (2, 3, 4, 5)])
def test_sequences_must_be_3d(shape):
    with pytest.raises(ValueError, match=r"`sequences` of shape \(batch, time, features\).*shape"):
        kg.GatedRNN(4)(np.zeros(shape, "float32"))


@pytest.mark.parametrize(
    ("given", "hint"),
    [
        ([[[1.0]], [[1.0], [2.0]]], "type list. Sequences of several lengths .*pad_sequences"),
        ((np.zeros((1, 2, 3)), np.zeros((1, 4))), "an initial state is `initial_state`"),
        (np.array([[["a"]]]), "type ndarray and dtype <U1"),
        (np.array([[[None]]]), "dtype object"),
        (None, "type NoneType"),
        ("x", "type str"),
    ],
)
def test_sequences_that_are_no_tensor(given, hint):
    with pytest.raises(TypeError, match=f"takes `sequences` as one tensor or array.*{hint}"):
        kg.GatedRNN(4)(given)


@pytest.mark.skipif(BACKEND != "tensorflow", reason="kinds of tensors that TensorFlow has")
def test_tensors_that_are_ragged_or_sparse_are_told_what_to_become():
    import tensorflow as tf

    ragged = tf.ragged.constant([[[1.0, 2.0]], [[1.0, 2.0], [3.0, 4.0]]], ragged_rank=1)
    layer = kg.GatedRNN(4)
    with pytest.raises(TypeError, match="RaggedTensor.*x.to_tensor.*mask=tf.sequence_mask"):
        layer(ragged)
    mask = tf.sequence_mask(ragged.row_lengths())  # what it says works
    assert layer(ragged.to_tensor(), mask=mask).shape == (2, 4)
    with pytest.raises(TypeError, match="SparseTensor.*tf.sparse.to_dense"):
        kg.GatedRNN(4)(tf.sparse.from_dense(np.ones((1, 2, 3))))


@pytest.mark.parametrize("backprop", ["auto", "fused"])
def test_a_leftover_batch_of_a_stateful_layer_is_named(backprop):
    inputs = keras.Input(batch_shape=(4, 5, 3))
    model = keras.Sequential([inputs, kg.GatedRNN(4, stateful=True, name="ear", backprop=backprop)])
    x = np.zeros((6, 5, 3), "float32")
    assert model.predict(x[:4], batch_size=4, verbose=0).shape == (4, 4)
    with pytest.raises(
        Exception,
        match="ear is stateful and keeps the states of 4|same as the batch size of the initial",
    ):
        model.predict(x, batch_size=4, verbose=0)


def test_sequences_need_a_feature_size():
    with pytest.raises(ValueError, match=r"known feature size. Received: shape \(None, 5, None\)"):
        kg.GatedRNN(4)(keras.Input((5, None)))


def test_another_feature_size_after_building():
    layer = kg.GatedRNN(4)
    layer(np.zeros((2, 5, 3), "float32"))
    with pytest.raises(ValueError, match="expected axis -1 .* to have value 3"):
        layer(np.zeros((2, 5, 6), "float32"))


@pytest.mark.parametrize(
    "states",
    [
        np.zeros((2, 5)),
        np.zeros((3, 4)),
        np.zeros((4,)),
        [np.zeros((2, 4)), np.zeros((2, 4))],
    ],
)
def test_initial_state_of_the_wrong_shape(states):
    with pytest.raises(ValueError, match=r"`initial_state` as 1 tensor\(s\) \(hidden\) of shape"):
        kg.GatedRNN(4)(np.zeros((2, 5, 3), "float32"), initial_state=states)


@pytest.mark.parametrize(
    ("states", "received"),
    [
        ([np.zeros((2, 4)), None], r"\[\(2, 4\), 'NoneType'\]"),
        ({"hidden": np.zeros((2, 4))}, r"\['dict'\]"),
        ([np.zeros((2, 4))] * 3, r"\[\(2, 4\), \(2, 4\), \(2, 4\)\]"),
    ],
)
def test_initial_states_that_are_none(states, received):
    layer = kg.GatedRNN(4, cell="lstm")
    layer.build((None, None, 3))  # Keras 3.8 asks None for its shape otherwise
    message = rf"`initial_state` as 2 tensor\(s\) \(hidden, cell\).*Received: shapes {received}"
    with pytest.raises(ValueError, match=message):
        layer(np.zeros((2, 5, 3), "float32"), initial_state=states)


@pytest.mark.parametrize("backprop", ["auto", "fused", "autodiff"])
def test_no_samples_give_no_outputs_and_no_steps_are_refused(backprop):
    layer = kg.GatedRNN(4, backprop=backprop if BACKEND == "tensorflow" else "auto")
    assert tuple(layer(np.zeros((0, 5, 3), "float32")).shape) == (0, 4)
    with pytest.raises(ValueError, match=r"at least one time step \(axis 1\). .*shape \(2, 0, 3\)"):
        layer(np.zeros((2, 0, 3), "float32"))


def test_lstm_needs_two_initial_states():
    with pytest.raises(ValueError, match=r"2 tensor\(s\) \(hidden, cell\) of shape \(2, 4\)"):
        kg.GatedRNN(4, cell="lstm")(np.zeros((2, 5, 3), "float32"), initial_state=np.zeros((2, 4)))


@pytest.mark.parametrize("shape", [(2, 6), (3, 5), (5,), (2, 5, 1)])
def test_mask_of_the_wrong_shape(shape):
    with pytest.raises(ValueError, match=r"`mask` of shape \(batch, time\) = \(2, 5\)"):
        kg.GatedRNN(4)(np.zeros((2, 5, 3), "float32"), mask=np.ones(shape, bool))


def test_a_penalty_that_nobody_would_collect():
    layer = keras.layers.RNN(kg.GRUCell(4, activation_l1=1e-3))
    with pytest.raises(ValueError, match=r"activation_l1.*Use GatedRNN\(cell=GRUCell"):
        layer(np.zeros((2, 5, 3), "float32"))
    layer = kg.GatedRNN(cell=kg.GRUCell(4, activation_l1=1e-3))
    layer(np.zeros((2, 5, 3), "float32"))
    assert len(layer.losses) == 1


def test_a_cell_whose_update_returns_no_tuple():
    class Bare(kg.GatedCell):
        def update(self, x, u, states):
            return returned(self.candidate(x.candidate + u.candidate))

    said = (
        r"Bare.update must return a tuple of the new states, \(hidden,\), .*\(\w+, 4\). Receiv.*: "
    )
    for returned, received in (  # noqa: B007
        (lambda h: h, r"a tensor of shape \(\w+, 4\), not a tuple: write `return \(h,\)`"),
        (lambda h: (h, h), r"a tuple of \[\(\w+, 4\), \(\w+, 4\)\]"),
        (lambda h: None, "None"),
        # Of one number for all units the kernel would make as many.
        (lambda h: (ops.sum(h, axis=-1, keepdims=True),), r"a tuple of \[\(\w+, 1\)\]"),
    ):
        layer = kg.GatedRNN(4, cell=Bare)
        with pytest.raises(ValueError, match=said + received):
            layer(np.zeros((2, 5, 3), "float32"))
        of_any = (said + received).replace("4", r"\d+")
        shown = kg.GatedRNN(4, cell=Bare, name="rnn").explain()
        failing = "rnn: cannot run, because `update` of Bare fails. ValueError: "
        assert re.fullmatch(failing + said + received, shown)
        for cell in (Bare, Bare(4), layer):
            with pytest.raises(ValueError, match=f"`update` of Bare fails.*{of_any}"):
                kg.check_activations(cell)
        with pytest.raises(AssertionError, match=f"Bare fails the check(?s:.)*{of_any}"):
            checks.check_cell(Bare)


def test_mistakes_in_a_cell_of_ones_own():
    class NoTuple(kg.GatedCell):
        blocks = "candidate"

    class NoSuchGate(kg.GatedCell):
        blocks = ("forget", "candidate")

        def update(self, x, u, states):
            return (self.gate("forgett", x.forget + u.forget),)

    class NotTheFirst(kg.GatedCell):
        blocks = ("forget", "candidate")
        projected_blocks = ("candidate",)

    class OfItsOwn(kg.GatedCell):
        def __init__(self, units, **kwargs):
            super().__init__(units, **kwargs)
            self.recurrent_blocks = ("candidat",)

    said = "`projected_blocks` of NotTheFirst must be the first of its blocks.*`blocks` begin with"
    for make in (NotTheFirst, lambda units: kg.GatedRNN(units, cell=NotTheFirst)):
        with pytest.raises(ValueError, match=said):
            make(3)
    with pytest.raises(ValueError, match="`recurrent_blocks` of OfIts.*mean 'candidate'"):
        OfItsOwn(3).build((None, 2))
    for attribute in ("projected_blocks", "recurrent_blocks", "gates"):
        with pytest.raises(TypeError, match=f"must have a tuple of names as `{attribute}`.*'forg"):
            type("Bad", (NoSuchGate,), {attribute: "forget"})(3)
    with pytest.raises(TypeError, match="NoTuple must have a tuple.*blocks='candidate'"):
        NoTuple(3)
    with pytest.raises(ValueError, match="NoSuchGate has no gate 'forgett'.*did you mean 'forget'"):
        kg.GatedRNN(4, cell=NoSuchGate)(np.zeros((2, 5, 3), "float32"))
    with pytest.raises(AssertionError, match="NoSuchGate fails the check 'config_round_trip'"):
        checks.check_cell(NoSuchGate)
    failing = "`update` of NoSuchGate fails.*ValueError: NoSuchG"
    with pytest.raises(ValueError, match=failing):
        kg.check_activations(NoSuchGate)
    assert re.search(f"cannot run, because {failing}", kg.GatedRNN(4, cell=NoSuchGate).explain())


def test_weights_of_ones_own():
    class Scaled(kg.GatedCell):
        def build(self, input_shape):
            if self.more is not None:
                super().build(input_shape)
            self.scale = self.add_weight((self.units + (self.more or 0),), name="scale")

        def update(self, x, u, states):
            return (self.scale * self.candidate(x.candidate + u.candidate),)

    x = np.zeros((2, 5, 3), "float32")
    for more, said in (
        (None, r"`build` of Scaled must call super\(\).build\(input_shape\)"),
        (1, r"`scale` of Scaled has the shape \(\d+,\), and one number per unit would be \(\d+,\)"),
    ):
        Scaled.more = more
        with pytest.raises(ValueError, match=said):
            kg.GatedRNN(4, cell=Scaled)(x)
        with pytest.raises(ValueError, match=said):
            kg.check_activations(Scaled)
        with pytest.raises(AssertionError, match=f"(?s)Scaled fails the check.*{said}"):
            checks.check_cell(Scaled)
        shown = kg.GatedRNN(4, cell=Scaled).explain()
        assert re.search(f"cannot run, because `(build|update)` of Scaled fails.*{said}", shown)
    Scaled.more = 0
    assert "h' = scale * n" in kg.GatedRNN(4, cell=Scaled).explain()


def test_arguments_that_a_cell_of_ones_own_does_not_pass_on():
    class Kept(kg.GatedCell):
        def __init__(self, units, leak=0.1):
            super().__init__(units)
            self.leak = leak

        def update(self, x, u, states):
            return (self.leak * self.candidate(x.candidate + u.candidate),)

    class Derived(Kept):
        pass

    said = (
        r"no argument `{}`: Kept.__init__ does not take it. Let it take \*\*kwargs, and pass these"
    )
    for cell in (Kept, Derived):
        for given in ({"grad_clip_norm": 1.0}, {"dtype": "float32"}):
            with pytest.raises(TypeError, match=said.format(*given)):
                kg.GatedRNN(4, cell=cell, **given)
        with pytest.raises(TypeError, match=said.format("dtype")):
            kg.check_activations(cell)
        with pytest.raises(AssertionError, match=said.format("dtype")):
            checks.check_cell(cell)
        with pytest.raises(TypeError, match=r"`beta`; it belongs to JANETCell$"):
            kg.GatedRNN(4, cell=cell, beta=1.0)
        assert kg.GatedRNN(4, cell=cell, leak=0.2).cell.leak == 0.2


def test_failed_checks_say_what_may_be_why():
    @keras.saving.register_keras_serializable(package="test_errors")
    class Doubted(kg.GatedCell):
        def update(self, x, u, states):
            n = self.candidate(x.candidate + u.candidate)
            return (what(self, n, u.candidate),)

    for argument, value in (("initial_state", "learned"), ("backprop", "fused"), ("units", 3)):
        with pytest.raises(TypeError, match=f"check_cell takes no argument `{argument}`: it makes"):
            checks.check_cell(kg.MGUCell, **{argument: value})
    checks.CHECKS["penalties"](kg.MGUCell, {"initialization": "uniform_gates"})

    class Forgetful(kg.MGUCell):
        def __init__(self, units, sharpness=1.0, **kwargs):
            super().__init__(units, **kwargs)
            self.sharpness = sharpness

        def update(self, x, u, states):
            return (self.sharpness * super().update(x, u, states)[0],)

    register = keras.saving.register_keras_serializable("test_errors")
    for given in ({}, {"sharpness": 3.0}):
        with pytest.raises(AssertionError, match=r"get_config lacks \['sharpness'\]"):
            checks.check_cell(register(Forgetful), **given)

    class Unbounded(kg.GatedCell):
        state_names = ("hidden", "memory")

        def update(self, x, u, states):
            m = 0.9 * states[1] + self.candidate(x.candidate + u.candidate)
            return ops.tanh(m), m

    said = r"does not bound the gradient of the state 'memory'.*return self.clip_state\(memory\)"
    with pytest.raises(AssertionError, match=f"fails the check 'clipping': grad_clip_.*{said}"):
        checks.check_cell(keras.saving.register_keras_serializable("test_errors")(Unbounded))
    what = lambda cell, n, u: n + cell.candidate(u)  # noqa: E731
    with pytest.raises(
        AssertionError, match=r"candidate_l1 \(.* calls self.candidate 2 times.*dif"
    ):
        checks.check_cell(Doubted)
    what = lambda cell, n, u: u + np.sin(n)  # noqa: E731
    if BACKEND != "tensorflow":  # where NumPy is refused at once
        return
    said = r"'finite_differences': gradient .* cannot be traced: functions of NumPy are called in"
    with pytest.raises(AssertionError, match=said):
        checks.check_cell(Doubted)


def test_the_checks_are_documented():
    page = pathlib.Path(__file__).parents[1] / "docs/api/checks.md"
    assert re.findall(r"``(\w+)``", page.read_text().partition("CHECKS\n")[2]) == [*checks.CHECKS]


def test_the_value_of_a_tensor_is_not_asked_for():
    class Asking(kg.GatedCell):
        def update(self, x, u, states):
            return (x.candidate if x.candidate > 0.5 else u.candidate,)

    said = (
        r"of Asking fails.* The value of a tensor is asked for in `update` \(test_errors.py, .*"
        "keras.ops.where"
    )
    with pytest.raises(ValueError, match=said):
        kg.check_activations(Asking)
    assert re.search(said, kg.GatedRNN(4, cell=Asking).explain())


def test_a_block_that_is_not_projected():
    class NotProjected(kg.GatedCell):
        blocks = ("forget", "candidate")
        projected_blocks = ("forget",)

        def update(self, x, u, states):
            return (self.candidate(x.candidate + u.candidate),)

    class NoSuchBlock(NotProjected):
        def update(self, x, u, states):
            return (self.candidate(self.recurrent("candidat", states[0])),)

    x = np.zeros((2, 5, 3), "float32")
    said = "no projection of a block 'candidate' here, only of forget.*`projected_blocks`"
    with pytest.raises(AttributeError, match=said):
        kg.GatedRNN(4, cell=NotProjected)(x)
    with pytest.raises(ValueError, match=f"of NotProjected fails.*AttributeError: there is {said}"):
        kg.check_activations(NotProjected)
    with pytest.raises(
        ValueError, match="`block` must be one of 'forget', 'candidate'.*'candidat'"
    ):
        kg.GatedRNN(4, cell=NoSuchBlock)(x)


def test_a_cell_that_applies_no_candidate_activation():
    class Linear(kg.GatedCell):
        def update(self, x, u, states):
            return (x.candidate + u.candidate,)

    x = np.zeros((2, 5, 3), "float32")
    assert kg.GatedRNN(4, cell=Linear, activation_l1=0.1)(x).shape == (2, 4)
    with pytest.raises(ValueError, match="`candidate_l1` .*of Linear calls no self.candidate"):
        kg.GatedRNN(4, cell=Linear, candidate_l1=0.1)(x)


@keras.saving.register_keras_serializable(package="test_errors")
class Gated(kg.GatedCell):
    """A cell with a gate that `update` never calls, and no candidate."""

    blocks = ("forget", "reset", "content")
    gates = ("forget", "reset")

    def update(self, x, u, states):
        (h,) = states
        f = self.gate("forget", x.forget + u.forget)
        return (f * h + (1 - f) * keras.ops.tanh(x.content + u.content),)


@keras.saving.register_keras_serializable(package="test_errors")
class GatedAlone(Gated):
    gates = ("forget",)


def test_an_activation_that_update_never_calls_is_refused(tmp_path):
    prelu = keras.layers.PReLU()
    for given, said in (
        (
            {"candidate_activation": "relu"},
            "`candidate_activation` .* never calls self.candidate. ",
        ),
        ({"candidate_activation": prelu}, "`candidate_activation` makes no difference in Gated, w"),
        ({"gate_activation": {"reset": "tanh"}}, r"`gate_activation\['reset'\]` .* self.gate\('r"),
    ):
        for make in (functools.partial(kg.GatedRNN, 4), kg.check_activations):
            with pytest.raises(ValueError, match=said):
                make(Gated, **given)
        with pytest.raises(AssertionError, match=f"Gated fails the check .*{said}"):
            checks.check_cell(Gated, **given)
    with pytest.raises(
        AssertionError, match=r"never calls self.gate\('reset', ...\), so gate_acti"
    ):
        checks.check_cell(Gated)
    # The defaults, and what else makes a difference. A config has all of them.
    same = {"candidate_activation": "tanh", "gate_activation": {"reset": "sigmoid"}}
    for given in (same, {"gate_activation": "hard_sigmoid"}):
        assert kg.GatedRNN(4, Gated, **given).cell.gate_activations
    layer = kg.GatedRNN(
        cell=Gated(4, candidate_activation="relu")
    )  # as one was once made and saved
    model = keras.Sequential([keras.Input((None, 3)), layer])
    model.save(tmp_path / "m.keras")
    loaded = keras.models.load_model(tmp_path / "m.keras").layers[0]
    assert loaded.candidate_activation is keras.activations.relu


@pytest.mark.filterwarnings("error::RuntimeWarning")
def test_a_cell_of_gates_alone_keeps_the_contracts():
    checks.CHECKS["activations"](GatedAlone, {})
    checks.CHECKS["penalties"](GatedAlone, {})


@pytest.mark.parametrize("of", ["an attribute", "a function", "the argument"])
def test_an_activation_that_is_called_by_another_name_makes_a_difference(of):
    class Other(kg.GatedCell):
        def __init__(self, units, **kwargs):
            super().__init__(units, **kwargs)
            activation = self.candidate_activation
            self.named = {
                "an attribute": activation,
                "a function": lambda x: activation(x),
                "the argument": None,
            }[of]

        def update(self, x, u, states):
            return ((self.named or self.candidate_activation)(x.candidate + u.candidate),)

    assert kg.GatedRNN(4, Other, candidate_activation="relu").candidate_activation
    assert kg.check_activations(Other, candidate_activation="relu").candidate == "relu"


def test_activations_of_equations_that_cannot_be_traced_are_let_be():
    class Rolling(Gated):
        def update(self, x, u, states):
            return (keras.ops.roll(states[0] + x.content, 1, axis=-1),)

    assert kg.GatedRNN(4, Rolling, candidate_activation="relu").cell
    assert kg.check_activations(Rolling, "tanh", "relu").candidate == "relu"


def test_a_mask_that_keras_would_lose_is_announced():
    sequences = keras.layers.Masking()(np.zeros((2, 5, 3), "float32"))
    with pytest.warns(UserWarning, match="ignores the mask.*Pass `mask=`"):
        kg.GatedRNN(4)(sequences, initial_state=np.zeros((2, 4), "float32"))


def test_clipping_under_a_loss_scale_optimizer_is_refused():
    model = keras.Sequential([keras.Input((5, 3)), kg.GatedRNN(4, grad_clip_norm=1.0)])
    model.compile(keras.optimizers.LossScaleOptimizer(keras.optimizers.Adam()), "mse")
    with pytest.raises(ValueError, match="(?s)LossScaleOptimizer of 'sequential'"):
        model.fit(np.zeros((2, 5, 3)), np.zeros((2, 4)), verbose=0)
    model.predict(np.zeros((2, 5, 3)), verbose=0)


def test_a_model_has_several_layers_to_judge():
    model = keras.Sequential([keras.Input((None, 3)), kg.GatedRNN(2)])
    with pytest.raises(ValueError, match="or a layer with one. .*Of a model give a layer"):
        kg.check_activations(model)
    both = keras.layers.Bidirectional(kg.GatedRNN(3))
    with pytest.raises(ValueError, match="Of a wrapper give the layer inside, such as wrapper.f"):
        kg.check_activations(both)


def test_from_keras_errors():
    with pytest.raises(TypeError, match="takes a Keras model or layer. Received: 3"):
        kg.from_keras(3)
    for kind in ("GRU", "LSTM", "SimpleRNN"):
        theirs = getattr(keras.layers, f"{kind}Cell")
        for cell in (theirs, theirs(3)):
            with pytest.raises(ValueError, match=f"The cell here is keras_gates.{kind}Cell$"):
                kg.GatedRNN(3, cell=cell)
        with pytest.raises(ValueError, match=f"no cell alone.*here is keras_gates.{kind}Cell"):
            kg.from_keras(theirs(3))
    with pytest.raises(ValueError, match="found no keras.layers.GRU, LSTM or SimpleRNN"):
        kg.from_keras(keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)]))
    low = kg.GatedRNN(2, name="low", return_sequences=True)
    both = keras.layers.Bidirectional(kg.GatedRNN(3, name="rnn"))
    already = r"convert in '\w+', which has GatedRNN layers already \(low, (\w+ward_rnn(, )?){2}\)"
    with pytest.raises(ValueError, match=already):
        kg.from_keras(keras.Sequential([keras.Input((None, 3)), low, both]))
    with pytest.raises(ValueError, match=r"give those: from_keras\(model, grad_clip_norm=None"):
        kg.from_keras(kg.GatedRNN(3))
    with pytest.raises(TypeError, match="no argument `grad_clip`"):
        kg.from_keras(keras.layers.GRU(3), grad_clip=1.0)

    with pytest.raises(ValueError, match="keeps the weights, and `units` changes.*units=5"):
        kg.from_keras(keras.layers.GRU(3), units=5)
    with pytest.raises(ValueError, match="keeps the weights, and `layer_norm` changes"):
        kg.from_keras(keras.layers.GRU(3), layer_norm=True)
    with pytest.raises(ValueError, match="found no keras.layers.GRU, LSTM or SimpleRNN"):
        kg.from_keras(keras.Sequential([]))
    stack = keras.layers.RNN([keras.layers.GRUCell(3), keras.layers.LSTMCell(3)])
    for name, value in (("activation_l1", 1e-3), ("backprop", "fused")):
        with pytest.raises(ValueError, match=f"'rnn' is a stack of cells, .* `{name}` does noth"):
            kg.from_keras(stack, **{name: value})

    class Subclassed(keras.Model):
        def __init__(self):
            super().__init__()
            self.rnn = keras.layers.GRU(3)

    with pytest.raises(
        ValueError, match="Subclassed anew from its .*convert its layers one by one"
    ):
        kg.from_keras(Subclassed())

    class MyGRU(keras.layers.GRU):
        pass

    with pytest.raises(ValueError, match="cannot see into 'my_gru' of type MyGRU"):
        kg.from_keras(keras.Sequential([keras.Input((None, 3)), MyGRU(3)]))


@pytest.mark.parametrize(
    ("activation", "came"),
    [
        (lambda x: None, "None"),
        (lambda x: keras.ops.mean(x), r"shape \(\)"),
        (lambda x: x[:, :2], r"shape \(\w+, 2\)"),
        (keras.layers.Dense(7), r"shape \(\w+, 7\)"),
    ],
)
@pytest.mark.filterwarnings("ignore:.*works for training")
@pytest.mark.filterwarnings("ignore::keras_gates.UnstableActivationsWarning")
def test_an_activation_keeps_the_shape(activation, came):
    x = np.zeros((2, 5, 3), "float32")
    with pytest.raises(ValueError, match=f"`candidate_activation` must give a value.*{came}"):
        kg.GatedRNN(4, candidate_activation=activation)(x)
    with pytest.raises(ValueError, match=r"`gate_activation\['reset'\]` must give a value"):
        kg.GatedRNN(4, gate_activation={"reset": activation})(x)
    with pytest.raises(ValueError, match="`output_activation` must give a value"):
        kg.GatedRNN(4, "lstm", output_activation=activation)(x)


def test_a_mask_means_the_same_on_every_path():
    x = np.random.default_rng(0).normal(size=(2, 5, 3)).astype("float32")
    mask = np.array([[1, 0.4, 0, -1, 0], [0, 0, 2, 1, 1]])
    layer = kg.GatedRNN(4)
    expected = np.asarray(layer(x, mask=mask.astype(bool)))
    for backprop in ("fused", "autodiff"):
        other = kg.GatedRNN(4, backprop=backprop)
        other.build(x.shape)
        other.set_weights(layer.get_weights())
        for given in (mask, mask.tolist()):
            np.testing.assert_allclose(other(x, mask=given), expected, atol=1e-6)
    for given in ("abc", {}, np.array([["a"] * 5] * 2), [[True], [True, False]]):
        with pytest.raises(ValueError, match="takes `mask` as a tensor or array|of shape"):
            layer(x, mask=given)


@pytest.mark.parametrize("given", [np.array([["a"] * 4] * 2), np.ones((2, 4)) * 1j])
def test_states_and_sequences_are_real_numbers(given):
    layer, x = kg.GatedRNN(4), np.zeros((2, 5, 3), "float32")
    with pytest.raises(ValueError, match="`initial_state` of real numbers. Received: dtype"):
        layer(x, initial_state=given)
    with pytest.raises(TypeError, match="as one tensor or array of numbers.*dtype complex64"):
        layer(x * 1j)


def test_a_cell_checks_its_states_and_what_its_class_says():
    with pytest.raises(ValueError, match="GRUCell takes `states` as a list of hidden. Received: 2"):
        kg.GRUCell(4)(np.zeros((2, 3)), [np.zeros((2, 4))] * 2)

    class Own(kg.GatedCell):
        def update(self, x, u, states):
            return (returned(self.candidate(x.candidate + u.candidate)),)

    for returned in (lambda h: None, lambda h: h[:, :2], lambda h: h[0]):  # noqa: B007
        with pytest.raises(ValueError, match=r"Own.update must return .*\(hidden,\), each of"):
            kg.GatedRNN(4, cell=Own)(np.zeros((2, 5, 3), "float32"))

    for attribute, value in (
        ("blocks", ("a b",)),
        ("blocks", ("candidate", "candidate")),
        ("blocks", ("class",)),
        ("state_names", ()),
    ):
        bad = type("Bad", (Own,), {attribute: value})
        with pytest.raises(ValueError, match=f"`{attribute}` of Bad must be at least one name"):
            bad(4)
    with pytest.raises(TypeError, match="Bad must have a tuple of names as `blocks`"):
        type("Bad", (Own,), {"blocks": (1,)})(4)
    with pytest.raises(ValueError, match="`ones_in_bias of Bad` must be 'candidate'"):
        type("Bad", (Own,), {"ones_in_bias": "forget"})(4)


def test_initializers_keep_the_shape_that_they_are_asked_for():
    x = np.zeros((2, 5, 3), "float32")
    for name in ("kernel_initializer", "recurrent_initializer", "bias_initializer"):
        given = {name: lambda shape, dtype=None: keras.ops.zeros((2, 2), dtype)}
        with pytest.raises(ValueError, match=f"`{name}` must give values.*Received: shape .2, 2"):
            kg.GatedRNN(4, **given)(x)


def test_symbolic_states_and_masks_are_checked_when_the_model_is_made():
    sequences = keras.Input((5, 3))
    with pytest.raises(ValueError, match=r"takes `initial_state` as 1 tensor.*\(None, 7\)"):
        kg.GatedRNN(4)(sequences, initial_state=keras.Input((7,)))
    with pytest.raises(ValueError, match=r"takes a `mask` of shape \(batch, time\) = \(None, 5\)"):
        kg.GatedRNN(4)(sequences, mask=keras.Input((4,), dtype="bool"))
    for shape in (None, 3):
        with pytest.raises(ValueError, match="takes `sequences` of shape .*Received: shape"):
            kg.GatedRNN(4).build(shape)
        with pytest.raises(ValueError, match="takes `input_shape` of shape .*Received: shape"):
            kg.GRUCell(4).build(shape)


@pytest.mark.parametrize(
    ("inputs", "states", "message"),
    [
        (
            (2, 3),
            [(2, 5), (2, 4)],
            r"`states` as a list of hidden, cell, .*\(2, 4\). Rec.*\(2, 5\)",
        ),
        ((2, 3), [(2, 4), (1, 4)], r"`states` as a list of hidden, cell, .*\(1, 4\)\]"),
        ((2, 3), [(2, 4), None], r"`states` as a list .*Received: \[\(2, 4\), 'NoneType'\]"),
        ((2, 5, 3), [(2, 4), (2, 4)], r"`inputs` as one tensor \(batch, features\).*\(2, 5, 3\)"),
        (None, [(2, 4), (2, 4)], "`inputs` as one tensor .* of type NoneType"),
    ],
)
def test_a_step_that_fails_names_what_does_not_fit(inputs, states, message):
    def made(shape):
        return None if shape is None else np.zeros(shape, "float32")

    cell = kg.LSTMCell(4)
    cell.build((2, 3))
    with pytest.raises(ValueError, match=message):
        cell(made(inputs), [made(shape) for shape in states])
    if inputs == (2, 3) and None not in states:
        with pytest.raises(ValueError, match=message):
            keras.layers.RNN(cell)(made((2, 5, 3)), initial_state=[*map(made, states)])


def test_an_error_of_a_step_that_was_given_what_it_takes_stays():
    class Own(kg.GatedCell):
        def update(self, x, u, states):
            raise ZeroDivisionError("mine")

    with pytest.raises(ZeroDivisionError, match="mine"):
        Own(4)(np.zeros((2, 3), "float32"), [np.zeros((2, 4), "float32")])


@pytest.mark.parametrize("size", [None, "a", -1, True])
def test_initial_states_are_of_a_batch(size):
    with pytest.raises(ValueError, match="`batch_size` must be an integer >= 0. Received: batch"):
        kg.GRUCell(4).get_initial_state(size)


@pytest.mark.parametrize(
    "shape", [None, 3, (2, 5), (2, 5, None), (2, 5, 0), (2, 5, -3), (2, 5, "3")]
)
def test_shapes_have_features(shape):
    message = r"`sequences` of shape \(batch, time, features\) with a known feature size. Received"
    for method in (kg.GatedRNN(4).build, kg.GatedRNN(4).compute_output_shape):
        with pytest.raises(ValueError, match=message):
            method(shape)


def test_there_are_features():
    with pytest.raises(ValueError, match=r"known feature size. Received: shape \(2, 5, 0\)"):
        kg.GatedRNN(4)(np.zeros((2, 5, 0), "float32"))


@pytest.mark.parametrize("training", ["no", float("nan"), np.array([True, False])])
def test_training_is_true_or_false(training):
    with pytest.raises(ValueError, match="`training` must be True or False. Received: training="):
        kg.GatedRNN(4, dropout=0.5)(np.zeros((2, 5, 3), "float32"), training=training)


@pytest.mark.parametrize("training", [True, 0, None, np.bool_(True)])
def test_training_as_keras_takes_it(training):
    kg.GatedRNN(4, dropout=0.5)(np.zeros((2, 5, 3), "float32"), training=training)


@pytest.mark.parametrize("config", [None, {}, {"units": 4}, "gru"])
def test_a_config_has_a_cell(config):
    with pytest.raises(ValueError, match="`config` must be a dict as `get_config` returns it"):
        kg.GatedRNN.from_config(config)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"cell": "ind_rnn", "recurrent_initializer": "identity"},
            r"`recurrent_initializer` must .* 'recurrent_vector' of shape \(4,\): Identity",
        ),
        (
            {"kernel_initializer": lambda shape: 0},
            r"`kernel_initializer` must give values .* for 'kernel' of shape \(3, 12\): .*'dtype'",
        ),
        (
            {"gate_activation": keras.layers.GRU(4)},
            r"`gate_activation`, where it is a layer, must take \(batch, units\) = \(None, 4\)",
        ),
        (
            {"cell": "lstm", "output_activation": keras.layers.Concatenate()},
            "`output_activation`, where it is a layer, must take .*=<Concatenate",
        ),
        (
            {"initialization": "uniform_gates", "candidate_activation": lambda x: None},
            "`initialization` is read off the equations of GRUCell, which cannot be traced: ",
        ),
    ],
)
@pytest.mark.filterwarnings("ignore:.*works for training")
def test_what_fails_while_weights_are_made_is_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        kg.GatedRNN(4, **arguments).build((None, None, 3))


@pytest.mark.filterwarnings("ignore:.*works for training")
def test_verdicts_on_what_cannot_be_judged():
    def complex_valued(x):
        return keras.ops.cast(x, "complex64")

    with pytest.raises(ValueError, match="must give real numbers. Received: complex_valued"):
        kg.profile(complex_valued)

    def failing(x):
        raise ArithmeticError

    for given in (("lstm", None, None, failing), (kg.LSTMCell(4, output_activation=failing),)):
        verdict = kg.check_activations(*given)
        assert "cannot be judged" in verdict.reasons[0].what
    with pytest.raises(TypeError, match="check_cell takes no argument `units`"):
        checks.check_cell(kg.GRUCell, units=4)


def test_normalized_states_are_those_that_the_class_names():
    class Own(kg.GatedCell):
        normalized_states = ("cell",)

        def update(self, x, u, states):
            return (self.normalize("memory", self.candidate(x.candidate + u.candidate)),)

    with pytest.raises(ValueError, match="`name` must be 'cell'. Received: name='memory'"):
        kg.GatedRNN(4, Own, layer_norm=True)(np.zeros((2, 5, 3), "float32"))


def test_checks_are_of_classes_and_of_built_layers():
    with pytest.raises(TypeError, match="`cell_class` must be a subclass.*'gru'"):
        checks.check_cell("gru")
    with pytest.raises(ValueError, match="`layer` must be a built recurrent layer"):
        checks.gradients(kg.GatedRNN(4), [np.zeros((2, 5, 3))], None)


def test_paths_of_a_monitor_can_be_written_to(tmp_path):
    for csv in (1, ["a"]):
        with pytest.raises(ValueError, match="`csv` must be a path of a file. Received: csv="):
            kg.GateMonitor(np.zeros((2, 5, 3)), csv=csv)
    with pytest.raises(ValueError, match="`csv` must be a path of a file"):
        kg.GateMonitor(np.zeros((2, 5, 3)), csv=tmp_path)
    with pytest.raises(ValueError, match="`csv` must lie in a folder that is there"):
        kg.GateMonitor(np.zeros((2, 5, 3)), csv=tmp_path / "nowhere" / "f.csv")
    with pytest.raises(ValueError, match="`log_dir` must be a path"):
        kg.GateMonitor(np.zeros((2, 5, 3)), log_dir=["a"])
