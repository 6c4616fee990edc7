"""What all cells share: arguments, weights, the time step around their equations, config."""

import itertools
import typing
from collections.abc import Mapping
from typing import Any, Unpack

import keras
from keras import ops

from keras_gates import activations, regularizers
from keras_gates._keras.calls import may_be_recorded
from keras_gates._keras.layers import DropoutRNNCell
from keras_gates.cells import arguments, clipping, normalization, weights
from keras_gates.cells import initialization as starting
from keras_gates.cells import zoneout as zoning
from keras_gates.cells.checking import (
    check_class,
    check_states,
    keras_object,
    naming_weights,
    same_shapes,
    shape_or_type,
    with_weights,
)
from keras_gates.cells.step import (
    INPUT_MASKS,
    RECURRENT_MASKS,
    Step,
    entered,
    named,
    observed,
    recurrent_blocks,
    running,
    step_of,
)
from keras_gates.types import (
    Activation,
    ClipPlace,
    GateActivation,
    Initialization,
    NoArguments,
)
from keras_gates.validation import (
    close_matches,
    fraction,
    known_features,
    nonnegative_integer,
    nonnegative_number,
    one_of,
    positive_integer,
    seed_or_none,
    true_or_false,
)

CANDIDATE = "candidate"
# Arguments that a config holds as they are, and as Keras writes its objects.
_PLAIN = (
    "units", "use_bias", "dropout", "recurrent_dropout", "grad_clip_value", "grad_clip_norm",
    "grad_clip_at", "layer_norm", "activation_l1", "candidate_l1", "seed",
)  # fmt: skip
_OF_WEIGHTS = itertools.product(
    ("kernel", "recurrent", "bias"), ("initializer", "regularizer", "constraint")
)
_OBJECTS = ("initialization", *map("_".join, _OF_WEIGHTS))
_INPUT_AXES = ("batch", "features")  # at each time step


class GatedCell(keras.layers.Layer, DropoutRNNCell):
    """Base class of the cells: one time step of a recurrent layer.

    With input x (batch, features) and hidden state h (batch, units), a cell computes per block k
    the projections `x W_k + b_k` and `h U_k (+ c_k)`, each (batch, units), and hands them to
    `update`, which holds the cell's equations. A subclass sets `blocks` and writes `update`:

    ```python
    @keras.saving.register_keras_serializable(package="my_package")
    class LeakyCell(kg.GatedCell):
        "h' = 0.9 h + 0.1 φ(x W + b + h U)"
        blocks = ("candidate",)

        def update(self, x, u, states):
            (h,) = states
            return (0.9 * h + 0.1 * self.candidate(x.candidate + u.candidate),)

    layer = kg.GatedRNN(8, cell=LeakyCell)
    ```

    Class attributes:
        blocks: names of the blocks of columns of the kernel W, the recurrent kernel U and the
            bias b, in order. The block "candidate" is the proposed new content; every other
            one is a gate.
        recurrent_blocks: the leading ones of these that U has columns for, where not all; with ()
            there is no U.
        gates: names of the gates, where they are not the blocks: of those that share a block.
        state_names: names of the states, the hidden state first. Each is (batch, units).

    Args:
        units: positive integer, the size of the hidden state.
        gate_activation: σ, for all gates, or a dict from gate to activation (a gate that it does
            not name gets the default). A name, a function, or a Keras layer. Default: "sigmoid".
        candidate_activation: φ, likewise. Default: "tanh".
        use_bias: whether there are biases b.
        kernel_initializer, recurrent_initializer, bias_initializer: for W, U, b.
        kernel_regularizer, recurrent_regularizer, bias_regularizer: for W, U, b.
        kernel_constraint, recurrent_constraint, bias_constraint: for W, U, b.
        dropout: share of the inputs dropped, in [0, 1), the same at every time step.
        recurrent_dropout: share of the hidden state dropped, likewise. With it, every block has
            dropout masks of its own, as in Keras.
        zoneout: share p of the units that keep their states, in [0, 1), or a dict from the name of
            a state to its share: {"hidden": 0.05, "cell": 0.5}. In training the units are drawn
            anew at every time step, and s' = s in them; otherwise s' = p s + (1 - p) s* with what
            the equations give, s*. (The h* of an LSTM is made of c*, before zoneout.)
        grad_clip_value: c > 0. The gradient d_t = dL/dh_t, with what comes from the output at t
            and from step t+1, becomes its elementwise clip to [-c, c] before it enters the
            equations of step t. (d_t is of the loss as Keras averages it: under a mean loss each
            sample's holds a factor of 1 / batch size.)
        grad_clip_norm: c > 0. Each sample's d_t is scaled to an L2 norm of at most c instead.
        grad_clip_at: "state" (above), or "preactivation": the same operation on the gradients of
            the stacked projections `x W + b` and `h U`, where LSTM and simple RNN add the two
            before any activation, so that both see the gradient at the pre-activation.
        initialization: where the cell starts. None or "keras": as the initializers say. An
            instance of `keras_gates.initializers.Chrono`: the biases of the gates that carry the
            states on start so that units remember for 1 to as many steps as it is given.
            "uniform_gates": so that the gates' values are spread over (0, 1), and the recurrent
            weights of the candidate a little larger. Which gates these are is derived from the
            cell's equations.
        layer_norm: whether `x W` and `h U` are normalized, each over the units of all its blocks
            together, before the biases are added, with a gain per unit (in an LSTM the cell state
            as well, before its activation).
        activation_l1: strength of an L1 penalty on the hidden state, added to the loss by
            `GatedRNN`: strength * mean over valid steps of sum over units of |h|.
        candidate_l1: the same on the candidate's activation.
        seed: for the masks of dropout and zoneout.
        name, dtype, trainable: as in every Keras layer.

    Raises:
        TypeError: an unknown argument; the message names the cell that has it.
        ValueError: an argument out of its range. Clipping under float16 or under a
            `LossScaleOptimizer`: gradients are multiplied by a changing scale there, and the bound
            would silently mean another.

    Source of layer normalization: Ba, Kiros, Hinton, "Layer normalization", 2016; of clipping
    inside BPTT: Graves, "Generating sequences with recurrent neural networks",
    2013; of per-sample norms: Pascanu, Mikolov, Bengio, "On the difficulty of training recurrent
    neural networks", 2013; of zoneout: Krueger et al., "Zoneout: regularizing RNNs by randomly
    preserving hidden activations", 2016.
    """

    blocks: tuple[str, ...] = (CANDIDATE,)
    state_names: tuple[str, ...] = ("hidden",)
    recurrent_blocks: tuple[str, ...] | None = None
    # The leading blocks whose recurrent product is taken of h itself. A cell that takes one of
    # something else (a GRU with reset_after=False: of r * h) leaves that block out here and calls
    # `self.recurrent(block, value)` in its equations. None: all that U has columns for.
    projected_blocks: tuple[str, ...] | None = None
    gates: tuple[str, ...] | None = None
    # Whether U has a bias c of its own; the bias is then (2, columns) instead of (columns,).
    two_biases = False
    # From a block, state or weight to its symbol in equations, where it is not the usual one.
    symbols: typing.ClassVar[dict[str, str]] = {}
    # The block whose bias starts at 1, whatever `bias_initializer` gives the others.
    ones_in_bias: str | None = None
    # A name, or a dict from gates to names.
    default_gate_activation: typing.ClassVar[str | dict[str, str]] = "sigmoid"
    default_candidate_activation = "tanh"
    # With `layer_norm`: the blocks that are normalized together (None: all of them), and the
    # states that the equations normalize.
    norm_groups: tuple[tuple[str, ...], ...] | None = None
    normalized_states: tuple[str, ...] = ()

    def __init__(
        self,
        units: int,
        *,
        gate_activation: GateActivation | None = None,
        candidate_activation: Activation | None = None,
        use_bias: bool = True,
        kernel_initializer: Any = "glorot_uniform",
        recurrent_initializer: Any = "orthogonal",
        bias_initializer: Any = "zeros",
        kernel_regularizer: Any = None,
        recurrent_regularizer: Any = None,
        bias_regularizer: Any = None,
        kernel_constraint: Any = None,
        recurrent_constraint: Any = None,
        bias_constraint: Any = None,
        dropout: float = 0.0,
        recurrent_dropout: float = 0.0,
        zoneout: float | Mapping[str, float] = 0.0,
        grad_clip_value: float | None = None,
        grad_clip_norm: float | None = None,
        grad_clip_at: ClipPlace = "state",
        initialization: Initialization | None = None,
        layer_norm: bool = False,
        activation_l1: float = 0.0,
        candidate_l1: float = 0.0,
        seed: int | None = None,
        name: str | None = None,
        dtype: Any = None,
        trainable: bool = True,
        autocast: bool = True,
        activity_regularizer: Any = None,
        **unknown: Unpack[NoArguments],
    ) -> None:
        arguments.refuse_unknown(type(self).__name__, unknown, self.options(), _all_cells())
        super().__init__(
            name=name,
            dtype=dtype,
            trainable=trainable,
            autocast=autocast,
            activity_regularizer=activity_regularizer,
        )
        check_class(type(self))  # type: ignore[arg-type]  # classes are hashable
        if not keras.backend.is_float_dtype(self.compute_dtype):
            raise ValueError(
                "`dtype` must be of floating-point numbers, such as 'float32'. "
                f"Received: dtype={dtype!r}"
            )
        self.units = positive_integer("units", units)
        self.state_size = [self.units] * len(self.state_names)
        if len(self.state_names) == 1:
            self.state_size = self.units
        self.output_size = self.units

        self.gate_activations = self._activation_per_gate(gate_activation)
        self.candidate_activation = activations.get(
            self.default_candidate_activation
            if candidate_activation is None
            else candidate_activation,
            "candidate_activation",
        )

        self.use_bias = true_or_false("use_bias", use_bias)
        self.kernel_initializer = keras_object("kernel_initializer", kernel_initializer)
        self.recurrent_initializer = keras_object("recurrent_initializer", recurrent_initializer)
        self.bias_initializer = keras_object("bias_initializer", bias_initializer)
        self.kernel_regularizer = keras_object("kernel_regularizer", kernel_regularizer)
        self.recurrent_regularizer = keras_object("recurrent_regularizer", recurrent_regularizer)
        self.bias_regularizer = keras_object("bias_regularizer", bias_regularizer)
        self.kernel_constraint = keras_object("kernel_constraint", kernel_constraint)
        self.recurrent_constraint = keras_object("recurrent_constraint", recurrent_constraint)
        self.bias_constraint = keras_object("bias_constraint", bias_constraint)

        self.dropout = fraction("dropout", dropout)
        self.recurrent_dropout = fraction("recurrent_dropout", recurrent_dropout)
        if self.recurrent_dropout:
            self.dropout_mask_count = len(self.blocks)
            if not recurrent_blocks(self):
                raise ValueError(
                    f"{type(self).__name__} has no recurrent kernel, so `recurrent_dropout` has "
                    f"nothing to drop. Received: recurrent_dropout={recurrent_dropout!r}"
                )
        self.zoneout = zoning.checked(self, zoneout)
        self.seed = seed_or_none("seed", seed)
        self.seed_generator = keras.random.SeedGenerator(seed)

        self.initialization = starting.checked(self, initialization)
        self.layer_norm = true_or_false("layer_norm", layer_norm)
        self.norm_weights: dict = {}
        self.grad_clip_value, self.grad_clip_norm, self.grad_clip_at = clipping.checked(
            grad_clip_value, grad_clip_norm, grad_clip_at, self.dtype_policy
        )
        self.activation_l1 = nonnegative_number("activation_l1", activation_l1)
        self.candidate_l1 = nonnegative_number("candidate_l1", candidate_l1)

    # ------------------------------------------------------------------ equations

    def update(self, x, u, states):
        """The cell's equations: one time step.

        Args:
            x: the projected input, a named tuple with one (batch, units) tensor per block.
            u: the projected hidden state, likewise, for each of `projected_blocks`.
            states: the states, in the order of `state_names`, each (batch, units).

        Returns:
            The new states, in the same order.
        """
        raise NotImplementedError(f"{type(self).__name__} must define update(x, u, states).")

    def gate(self, name, preactivation):
        """The gate `name`: its activation of the pre-activation."""
        if name not in self.gate_activations:
            raise ValueError(
                f"{type(self).__name__} has no gate {name!r}; its gates are {self.gate_names()}"
                f"{close_matches(name, self.gate_activations)}"
            )
        return self.step.activate(name, self.gate_activations[name], preactivation)

    def candidate(self, preactivation):
        """The candidate: its activation of the pre-activation. To be called once in `update`."""
        return self.step.activate(CANDIDATE, self.candidate_activation, preactivation)

    def recurrent(self, block, value):
        """`value U_k (+ c_k)` for a block k that is not among `projected_blocks`."""
        product = self.step.recurrent(block, value)
        if not self.layer_norm:
            return product
        return normalization.applied(self, "recurrent", {block: product})[block]

    def normalize(self, name, state):
        """With `layer_norm`, one of `normalized_states` normalized; else the state as it is."""
        if not self.layer_norm:
            return state
        if name not in self.normalized_states:
            one_of("name", name, self.normalized_states)
        return normalization.applied(self, "state", {name: state})[name]

    def parametrize(self, recurrent_kernel):
        """U as the equations use it, of the shape of the trainable weight: by default that itself.

        A cell whose U has a structure, such as `U - Uᵀ`, makes it here with `keras.ops`.
        """
        return recurrent_kernel

    def clip_state(self, state):
        """`state`, with its gradient clipped. `call` does this to the hidden state; a cell with a
        further state that gradients flow along does it in its equations."""
        return self.step.clip("state", state)

    # ------------------------------------------------------------------ one time step

    def __call__(self, inputs, states, *args, **kwargs):
        """One time step; see `call`. `GatedRNN` appends to the states one running sum, (batch, 1),
        per penalty in `penalties`. They are added up here, outside `call`, because Keras casts
        all that goes into `call` to the compute dtype, too short for a sum over many steps."""
        nested = isinstance(states, (list, tuple))
        states = list(states) if nested else [states]
        if len(states) not in (len(self.state_names), len(self.state_names) + len(self.penalties)):
            raise ValueError(
                f"{type(self).__name__} takes `states` as a list of {', '.join(self.state_names)}. "
                f"Received: {len(states)} of them"
            )
        states, sums = states[: len(self.state_names)], states[len(self.state_names) :]
        self._refuse_lost_penalties(sums)
        with running(self):
            try:
                hidden, states = super().__call__(inputs, states, *args, **kwargs)
            except Exception as error:
                self._check_step(inputs, states)  # a look before each step would take its time
                named_error = naming_weights(self, error)
                if named_error is error:
                    raise
                raise named_error from error
            sums = self.add_penalized(sums, hidden)
        return hidden, [*states, *sums] if nested else hidden

    def _check_step(self, inputs, states):
        """Raises if a time step has failed because of what it was given."""
        shape = tuple(getattr(inputs, "shape", ()))
        if len(shape) != 2:
            raise ValueError(
                f"{type(self).__name__} takes `inputs` as one tensor (batch, features). Received: "
                f"inputs of type {type(inputs).__name__} and shape {shape}"
            )
        if not same_shapes(states, [(shape[0], self.units)] * len(self.state_names)):
            raise ValueError(
                f"{type(self).__name__} takes `states` as a list of {', '.join(self.state_names)}, "
                f"each of shape (batch, units) = {(shape[0], self.units)}. Received: "
                f"{[*map(shape_or_type, states)]}"
            )

    def call(self, inputs, states, training=False):
        """One time step.

        Args:
            inputs: (batch, features).
            states: list of the states, each (batch, units).
            training: whether dropout applies, and units are drawn for zoneout.

        Returns:
            The new hidden state, and the list of the new states.
        """
        self.refuse_loss_scaling(training)
        kept = []
        if training and zoning.shares(self):
            inputs, kept = zoning.apart(self, inputs)
        step = Step(
            self,
            # Keras makes these once per sequence.
            self.get_dropout_mask(inputs) if training else None,
            self.get_recurrent_dropout_mask(states[0]) if training else None,
            kept,
            recurrent_kernel=self.parametrized_kernel,
            may_clip=bool(training) or may_be_recorded(),
        )
        with entered(self, step):
            x, u = step.projected_input(inputs), step.projected_state(states[0])
            states = self.advance(x, u, states)
        return states[0], states

    def advance(self, x, u, states):
        """The list of the new states: the equations, and the clipped gradients of the hidden one
        and of those that zoneout may carry on past the equations."""
        if self.layer_norm:
            x = named(x._fields, normalization.applied(self, "kernel", x._asdict()).values())
            u = named(u._fields, normalization.applied(self, "recurrent", u._asdict()).values())
        new_states = self.update(x, u, tuple(states))
        check_states(self, states, new_states)
        if self.candidate_l1 and CANDIDATE not in self.step.activated:
            raise ValueError(
                f"`candidate_l1` penalizes the candidate, and the update of {type(self).__name__} "
                f"calls no self.candidate. Received: candidate_l1={self.candidate_l1}"
            )
        new_states = zoning.zoned_out(self, states, new_states)
        clipped = {self.state_names[0], *zoning.shares(self)}
        return observed(
            self,
            [
                self.clip_state(state) if name in clipped else state
                for name, state in zip(self.state_names, new_states, strict=True)
            ],
        )

    def add_penalized(self, sums, hidden):
        """The running sums of the penalties, after the step that led to `hidden`."""
        penalized = {"activation_l1": hidden, "candidate_l1": self.step.activated.get(CANDIDATE)}
        return [
            regularizers.add_step(total, penalized[name])
            for name, total in zip(self.penalties, sums, strict=True)
        ]

    def refuse_loss_scaling(self, training):
        """Raises if gradients will come back scaled, so that a bound on them means nothing."""
        if not (self.clips and training):
            return
        context = getattr(self, "_get_call_context", lambda: None)()
        model = getattr(context, "entry_layer", None)
        if isinstance(getattr(model, "optimizer", None), keras.optimizers.LossScaleOptimizer):
            raise ValueError(
                f"`grad_clip_value` and `grad_clip_norm` of {self.name!r} cannot be kept under "
                f"the LossScaleOptimizer of {model.name!r}: it multiplies all gradients by a "
                "changing factor, so that the bound would mean another one at every step. Use "
                "mixed_bfloat16 or float32 with a plain optimizer, or clip in the optimizer."
            )

    @property
    def penalties(self):
        """The penalties in force: from "activation_l1" or "candidate_l1" to the strength."""
        strengths = {"activation_l1": self.activation_l1, "candidate_l1": self.candidate_l1}
        return {name: strength for name, strength in strengths.items() if strength}

    @property
    def clips(self):
        """Whether a bound is set on gradients."""
        return self.grad_clip_value is not None or self.grad_clip_norm is not None

    def get_initial_state(self, batch_size=None):
        """The states before the first step, zeros: a list of (batch_size, units)."""
        if batch_size is None or isinstance(batch_size, int | float | str):
            nonnegative_integer("batch_size", batch_size)  # else a tensor, or a symbol of JAX
        return [
            ops.zeros((batch_size, self.units), dtype=self.compute_dtype) for _ in self.state_names
        ]

    def build(self, input_shape):
        features = known_features(type(self).__name__, "input_shape", input_shape, _INPUT_AXES)
        weights.add(self, features)
        for activation in self.activations_in_use():
            if isinstance(activation, keras.layers.Layer) and not activation.built:
                self._build_activation(activation)
        self.built = True

    def add_recurrent_vector(self, name):
        """A weight of (units,) by which a state acts on its own unit, in the place of a kernel."""
        return self.add_weight(
            (self.units,),
            self.recurrent_initializer,
            name=name,
            regularizer=self.recurrent_regularizer,
            constraint=self.recurrent_constraint,
        )

    def add_weight(self, shape=None, initializer=None, *args, name=None, **kwargs):
        try:
            return super().add_weight(shape, initializer, *args, name=name, **kwargs)
        except (TypeError, ValueError) as error:
            argument = weights.initializer_of(self, name, initializer)
            if argument is None:
                raise
            raise ValueError(
                f"`{argument}` must give values of the shape and dtype that it is asked for. "
                f"Received: {argument}={getattr(self, argument)!r}, which fails for {name!r} of "
                f"shape {shape}: {error}"
            ) from error

    @property
    def parametrized_kernel(self):
        """U as the equations use it, or None."""
        weight = self.recurrent_kernel
        return None if weight is None else self.parametrize(weight)

    @property
    def biases(self):
        """b and c of `x W + b` and `h U + c`, each with all blocks, or None."""
        if self.bias is not None and self.two_biases:
            return self.bias[0], self.bias[1]
        return self.bias, None

    def activations_in_use(self):
        """All activations of the cell."""
        return [*self.gate_activations.values(), self.candidate_activation]

    def _build_activation(self, activation):
        try:
            activation.build((None, self.units))
        except Exception as error:  # of any layer, of any kind
            argument = _argument_of(self, activation)
            raise ValueError(
                f"`{argument}`, where it is a layer, must take (batch, units) = "
                f"{(None, self.units)}. Received: {argument}={activation!r}. {error}"
            ) from error

    def load_own_variables(self, store):
        if self.weights and not store.keys():
            raise ValueError(
                f"the file has no weights for {self.name!r}. Keras looks for them by the class of "
                "the layer that has the cell; if the file is of a model with keras.layers.GRU, "
                "LSTM or SimpleRNN, load it into that model, and convert that: "
                "keras_gates.from_keras(model)"
            )
        super().load_own_variables(store)

    def get_config(self):
        per_gate = {
            gate: activations.serialize(activation, f"gate_activation[{gate!r}]")
            for gate, activation in self.gate_activations.items()
        }
        # A Keras layer that all gates share is written once, so that they share it again.
        shared = self.gate_activations and not isinstance(self.gate_activation, dict)
        return {
            **super().get_config(),
            "units": self.units,  # first, as `inspect` shows them in this order
            "gate_activation": (next(iter(per_gate.values())) if shared else per_gate) or None,
            "candidate_activation": activations.serialize(
                self.candidate_activation, "candidate_activation"
            ),
            "zoneout": self.zoneout if isinstance(self.zoneout, float) else dict(self.zoneout),
            **{name: getattr(self, name) for name in _PLAIN},
            **{n: keras.saving.serialize_keras_object(getattr(self, n)) for n in _OBJECTS},
        }

    def __init_subclass__(cls, **kwargs):
        super().__init_subclass__(**kwargs)
        if "__init__" in vars(cls):
            arguments.sign(cls.__init__, super(cls, cls).__init__)
        if "build" in vars(cls):
            cls.build = with_weights(cls, cls.build)

    @classmethod
    def from_config(cls, config):
        try:
            return super().from_config(config)
        except TypeError as error:
            # Which holds the whole config, and would once more for each layer that it is in.
            reason = error.__context__ or error
            raise ValueError(f"{cls.__name__} cannot be made of its config: {reason}") from reason

    @classmethod
    def options(cls):
        """Names of all arguments that this cell takes besides those of every Keras layer."""
        return arguments.options(cls)

    @property
    def gate_activation(self):
        """The activation of all gates, or a dict from gate to activation where they differ."""
        different = {id(activation) for activation in self.gate_activations.values()}
        if len(different) > 1:
            return dict(self.gate_activations)
        return next(iter(self.gate_activations.values()), None)

    # ------------------------------------------------------------------ the parts

    @property
    def step(self):
        """What belongs to the time step being computed, in this thread."""
        return step_of(self)

    # Keras' own keep the masks of a call on the cell, where other calls find them.

    def get_dropout_mask(self, step_input):
        """The dropout masks of the inputs of the present sequence, or None."""
        if not self.dropout:
            return None
        return INPUT_MASKS.get(self, lambda: self._create_dropout_mask(step_input, self.dropout))

    def get_recurrent_dropout_mask(self, step_input):
        """The dropout masks of the hidden state of the present sequence, or None."""
        if not self.recurrent_dropout:
            return None
        return RECURRENT_MASKS.get(
            self, lambda: self._create_dropout_mask(step_input, self.recurrent_dropout)
        )

    def reset_dropout_mask(self):
        INPUT_MASKS.reset(self)

    def reset_recurrent_dropout_mask(self):
        RECURRENT_MASKS.reset(self)

    @classmethod
    def gate_names(cls):
        """The names of the gates."""
        return tuple(b for b in cls.blocks if b != CANDIDATE) if cls.gates is None else cls.gates

    @classmethod
    def default_gates(cls):
        """From each gate to the name of its default activation."""
        default = cls.default_gate_activation
        return default if isinstance(default, dict) else dict.fromkeys(cls.gate_names(), default)

    def _activation_per_gate(self, gate_activation):
        gates, defaults = self.gate_names(), self.default_gates()
        if not gates and gate_activation is not None:
            raise ValueError(
                f"{type(self).__name__} has no gates, so it takes no `gate_activation`; its "
                f"nonlinearity is `candidate_activation`. Received: "
                f"gate_activation={gate_activation!r}"
            )
        given = self.default_gate_activation if gate_activation is None else gate_activation
        if not isinstance(given, dict) or activations.is_serialized(given):
            return dict.fromkeys(gates, activations.get(given, "gate_activation"))
        unknown = [name for name in given if name not in gates]
        if unknown:
            hint = close_matches(unknown[0], gates) or "."
            if unknown[0] == CANDIDATE:
                hint = ", whose activation is `candidate_activation`."
            raise ValueError(
                f"`gate_activation` names a gate that {type(self).__name__} does not have: "
                f"{unknown[0]!r}{hint} Its gates: "
                f"{list(gates)}. "
                f"Received: gate_activation={given!r}"
            )
        return {
            gate: activations.get(
                defaults[gate] if given.get(gate) is None else given[gate],
                f"gate_activation[{gate!r}]",
            )
            for gate in gates
        }

    def _refuse_lost_penalties(self, sums):
        if len(sums) != len(self.penalties):
            raise ValueError(
                f"{type(self).__name__} has {' and '.join(self.penalties)}, and only "
                "keras_gates.GatedRNN adds them to the loss: a cell alone, or in "
                "keras.layers.RNN, has no place for them. Use "
                f"GatedRNN(cell={type(self).__name__}(...))."
            )


arguments.sign(GatedCell.__init__)


def _argument_of(cell, activation):
    """The argument that an activation of a cell has come by."""
    arguments = (name for name in cell.options() if name.endswith("_activation"))
    return next((n for n in arguments if getattr(cell, n) is activation), "gate_activation")


def _all_cells(base=GatedCell):
    for cell in base.__subclasses__():
        yield cell
        yield from _all_cells(cell)
