"""GatedRNN: a cell over the whole sequence."""

import inspect
import typing
import warnings
from typing import Any, Unpack

import keras
import numpy as np
from keras import ops

from keras_gates import activations, engine, gates, inputs, regularizers, verdicts
from keras_gates._keras.calls import outer_steps, stacklevel
from keras_gates._keras.layers import not_converted
from keras_gates.cells import CELLS, GatedCell, of_keras, zoneout
from keras_gates.cells.arguments import LAYER_ARGUMENTS, refuse_kept, refuse_unknown, sign
from keras_gates.cells.program import refuse_failing, traced
from keras_gates.cells.unused import refuse_unused
from keras_gates.engine import cudnn
from keras_gates.engine.paths import Paths
from keras_gates.equations import NotTraceableError, equations
from keras_gates.types import Backprop, CellName, InitialState, LayerArguments
from keras_gates.validation import close_matches, invalid, known_features, one_of, true_or_false

INITIAL_STATES = typing.get_args(InitialState)
AXES = ("batch", "time", "features")


@keras.saving.register_keras_serializable(package="keras_gates")
class GatedRNN(keras.layers.RNN):
    """Recurrent layer with activations of your choice, clipped gradients and activation penalties.

    Runs a cell over the time axis. With the default activations and no clipping it equals
    `keras.layers.GRU`, `LSTM` or `SimpleRNN` of the same weights, which interchange.

    Args:
        units: positive integer, the size of the hidden state.
        cell: "gru", "lstm", "simple", the name of another cell (docs/cells.md), a
            subclass of `GatedCell`, or an instance of one (which then carries `units` and all
            arguments of the cell itself).
        return_sequences: whether to return the hidden state of every time step, or the last.
        return_state: whether to return the last states as well.
        go_backwards: whether to read the sequence in reverse, and return it reversed.
        stateful: whether the last states of a batch are the initial ones of the next.
        unroll: whether to unroll the time loop (a known, short number of steps).
        zero_output_for_mask: whether the output at a masked step is zero instead of a repetition.
        return_gates: whether to return the gates and the candidate of every time step as well, as
            the last output: a dict of (batch, time, units), through which gradients flow. Such a
            layer runs in Keras' own loop. In `Bidirectional` with `return_state=True` alone; not
            in `TimeDistributed`.
        initial_state: "zeros", or "learned": weights of (units,) per state that the sequences
            start with where a call gives no initial state.
        backprop: how gradients are computed. "fused": the whole sequence at once, by a compiled
            kernel that runs the cell's equations and their derivative (on GPUs by one that is
            generated for JAX or PyTorch; on JAX else by scans, which it compiles). "autodiff": by
            the backend, step by step. "auto": on a GPU by cuDNN where `keras.layers` would, else
            fused wherever it is possible and pays; `explain` says which and why. The results are
            the same, gradients of gradients too (with clipping, each of the paths that these take
            back is clipped on its own). "fused" raises where the layer makes it impossible, and
            warns where its surroundings do, and Keras' loop runs: TensorFlow's `jit_compile=True`,
            `torch.compile`, a device or a machine that there is no kernel for.
        gate_activation: σ, for all gates, or a dict per gate. Default: "sigmoid".
        candidate_activation: φ. Default: "tanh".
        grad_clip_value, grad_clip_norm, grad_clip_at: clip gradients inside backpropagation
            through time; see `GatedCell`. The forward pass is the same, to the bit.
        activation_l1, candidate_l1: strength λ of an L1 penalty on the hidden state, or on the
            candidate. Adds to the loss λ / N times the sum of |h| over all units and all N
            valid (sample, step) pairs.
        Further arguments of the cell: `use_bias`, the initializers, regularizers and constraints,
            `dropout`, `recurrent_dropout`, `zoneout`, `seed`; `reset_after` (gru);
            `output_activation`, `unit_forget_bias` (lstms); `beta` (janet); `dt` (lem); `epsilon`,
            `gamma` (antisymmetric cells). See `GatedCell`, and the class of each cell.
        activity_regularizer: Keras' own, with Keras' meaning.
        name, dtype, trainable: as in every Keras layer.

    Call arguments:
        sequences: (batch, time, features).
        initial_state: list of the states, each (batch, units). Default: zeros.
        mask: booleans, (batch, time). A masked step carries the states and repeats the output.
        training: whether dropout applies, and units are drawn for zoneout.

    Returns:
        (batch, units), or (batch, time, units) with `return_sequences`; with `return_state`
        followed by the last states, each (batch, units).

    Raises:
        ValueError: an argument out of its range, or a tensor of the wrong shape; an activation that
            the `update` of a cell of your own never calls, unless it is the cell's default.
        TypeError: an unknown argument, or one that another cell has.

    Warns:
        UnstableActivationsWarning: the activations are unstable in this cell, with the reason and
            what helps; see `check_activations`.

    Example:

    >>> model = keras.Sequential([
    ...     keras.Input((None, 12), name="frames"),
    ...     keras_gates.GatedRNN(64, cell="gru", gate_activation="hard_sigmoid",
    ...                          candidate_activation="relu", grad_clip_norm=1.0,
    ...                          activation_l1=1e-4),
    ...     keras.layers.Dense(9, activation="softmax"),
    ... ])
    >>> model.compile("adam", "sparse_categorical_crossentropy")

    Sources: see `GatedCell` for clipping and the cells for their equations; for relu with an L1
    penalty on activations Glorot, Bordes, Bengio, "Deep sparse rectifier neural networks", 2011.
    """

    @typing.overload
    def __init__(
        self, units: int, cell: CellName | str = "gru", **arguments: Unpack[LayerArguments]
    ) -> None: ...

    @typing.overload
    def __init__(
        self, units: int | None, cell: type[GatedCell] | GatedCell, **arguments: Any
    ) -> None: ...

    @typing.overload
    def __init__(
        self, units: int | None = None, *, cell: type[GatedCell] | GatedCell, **arguments: Any
    ) -> None: ...

    def __init__(
        self,
        units: int | None = None,
        cell: CellName | str | type[GatedCell] | GatedCell = "gru",
        *,
        return_sequences: bool = False,
        return_state: bool = False,
        go_backwards: bool = False,
        stateful: bool = False,
        unroll: bool = False,
        zero_output_for_mask: bool = False,
        return_gates: bool = False,
        initial_state: InitialState = "zeros",
        backprop: Backprop = "auto",
        **arguments: Any,
    ) -> None:
        layer_arguments = {k: arguments.pop(k) for k in LAYER_ARGUMENTS if k in arguments}
        cell_layer_arguments = {
            k: v for k, v in layer_arguments.items() if k in ("dtype", "trainable", "autocast")
        }
        super().__init__(
            _cell(units, cell, arguments, cell_layer_arguments),
            return_sequences=true_or_false("return_sequences", return_sequences),
            return_state=true_or_false("return_state", return_state),
            go_backwards=true_or_false("go_backwards", go_backwards),
            stateful=true_or_false("stateful", stateful),
            unroll=true_or_false("unroll", unroll),
            zero_output_for_mask=true_or_false("zero_output_for_mask", zero_output_for_mask),
            **layer_arguments,
        )
        self.return_gates = true_or_false("return_gates", return_gates)
        self.initial_state = one_of("initial_state", initial_state, INITIAL_STATES)
        if self.stateful and initial_state == "learned":
            raise ValueError(
                "A stateful layer starts with the states that it has kept, through which no "
                "gradient flows. Received: initial_state='learned', stateful=True. Keep "
                "initial_state='learned' with stateful=False, and hand the states on yourself "
                "(return_state=True, and layer(x, initial_state=states) from the second call on) "
                "or export with streaming=True; or keep stateful=True with initial_state='zeros', "
                "and call layer.reset_state(values) where sequences start."
            )
        self.initial_states: list = []  # the weights of "learned", one per state
        self.backprop = one_of("backprop", backprop, engine.BACKPROP)
        self._paths = Paths(self)
        # Keras 3.16 no longer lets recurrent layers inherit this.
        self.supports_masking = True
        on_tensorflow = keras.backend.backend() == "tensorflow"
        if on_tensorflow and cudnn.is_near():
            # As in Keras' own layers: XLA knows no operation of cuDNN, and none of the kernel.
            self.supports_jit = backprop != "fused" and bool(engine.why_not_cudnn(self))
        verdicts.warn_if_unstable(self.cell)

    def __getattr__(self, name):
        """Attributes of the cell, for those that the layer lacks: `layer.units`."""
        try:
            return super().__getattr__(name)  # layers have one on PyTorch alone
        except AttributeError:
            cell = None if name == "cell" else getattr(self, "cell", None)
            if cell is not None and name in cell.options() and hasattr(cell, name):
                return getattr(cell, name)
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

    def __setattr__(self, name, value):
        cell = None if name == "cell" else getattr(self, "cell", None)
        if cell is not None and name in cell.options():
            raise AttributeError(
                f"`{name}` belongs to the cell of {self.name!r} and is set when that is made: give "
                f"it to GatedRNN({name}=...)"
            )
        super().__setattr__(name, value)

    def build(self, sequences_shape, initial_state_shape=None):
        features = known_features(repr(self.name), "sequences", sequences_shape, AXES)
        super().build(sequences_shape)
        if self.initial_state == "learned" and not self.initial_states:
            self.initial_states = [
                self.add_weight((self.units,), "zeros", name=f"initial_{state}_state")
                for state in self.cell.state_names
            ]
        self.input_spec = keras.layers.InputSpec(ndim=3, axes={-1: features})

    @not_converted
    def __call__(self, *args, **kwargs):
        if args or "sequences" in kwargs:
            sequences = args[0] if args else kwargs["sequences"]
            inputs.check_sequences(self, sequences)
            # Keras makes tensors of these before `call`.
            states = args[1] if len(args) > 1 else kwargs.get("initial_state")
            inputs.check_initial_state(self, sequences, states)
            if isinstance(sequences, keras.KerasTensor):  # of which `call` is not asked
                inputs.checked_mask(
                    self, sequences, args[2] if len(args) > 2 else kwargs.get("mask")
                )
        return super().__call__(*args, **kwargs)

    def call(self, sequences, initial_state=None, mask=None, training=False):
        inputs.check_wrapper(self)
        if sequences.shape[1] == 0:
            raise ValueError(
                f"{self.name!r} takes `sequences` of at least one time step (axis 1). Received: "
                f"shape {tuple(sequences.shape)}"
            )
        mask = inputs.checked_mask(self, sequences, mask)
        if training is not None and getattr(training, "shape", None) != ():
            training = true_or_false("training", training)
        if self.stateful and initial_state is None and sequences.shape[0] is None:
            sequences = inputs.of_known_batch(self, sequences)
        if mask is None and getattr(sequences, "_keras_mask", None) is not None:
            warnings.warn(
                f"{self.name!r} ignores the mask that comes with `sequences`: Keras hands a layer "
                "no mask beside an `initial_state`. Pass `mask=` as well to have it obeyed.",
                stacklevel=stacklevel(),
            )
        try:
            with gates.collected() as found:
                outputs = super().call(
                    sequences, initial_state=initial_state, mask=mask, training=training
                )
        finally:
            # Keras does so at the end of what succeeds.
            self._maybe_reset_dropout_masks(self.cell)
        if not self.return_gates:
            return outputs
        outputs = outputs if isinstance(outputs, tuple) else (outputs,)
        return *outputs, keras.tree.map_structure(
            lambda gate: ops.cast(gate, self.compute_dtype), found[0]
        )

    def get_initial_state(self, batch_size):
        if not self.initial_states:
            return super().get_initial_state(batch_size)
        return [
            ops.broadcast_to(ops.cast(state, self.cell.compute_dtype), (batch_size, self.units))
            for state in self.initial_states
        ]

    def reset_state(self, values: Any = None, rows: Any = None) -> None:
        """Sets the states of a stateful layer, those of all samples or of some.

        Args:
            values: a list with an array of (batch, units) per state, in the order of
                `layer.cell.state_names`: [h] of a GRU, [h, c] of an LSTM; where there is one
                state, the array alone will do. With `rows` the arrays are of (len(rows), units),
                for these samples alone. Default: zeros.
            rows: which samples of the batch: their indices, from 0, or a boolean for each.
                Default: all.

        Raises:
            ValueError: the layer has no states, or an argument that does not fit them.

        Examples. Of two streams the second has ended, and another takes its place:

        >>> layer = keras_gates.GatedRNN(4, cell="lstm", stateful=True)
        >>> outputs = layer(numpy.ones((2, 5, 3)))
        >>> layer.reset_state(rows=[1])
        >>> [bool(numpy.any(row)) for row in layer.states[0].numpy()]
        [True, False]

        The other goes on from states that were kept elsewhere, h and c of one sample:

        >>> kept = [numpy.full((1, 4), 0.5), numpy.full((1, 4), -1.0)]
        >>> layer.reset_state(kept, rows=[1])
        >>> float(layer.states[0].numpy()[1, 0]), float(layer.states[1].numpy()[1, 0])
        (0.5, -1.0)

        All streams of a cell with one state at once:

        >>> layer = keras_gates.GatedRNN(4, stateful=True)
        >>> outputs = layer(numpy.ones((2, 5, 3)))
        >>> layer.reset_state(numpy.full((2, 4), 0.5))
        """
        if self.states is None:
            if values is not None or rows is not None:
                raise ValueError(
                    f"{self.name!r} has no states to reset: they are those of a layer with "
                    "stateful=True, once it is built."
                )
            return
        batch, names = self.states[0].shape[0], self.cell.state_names
        indices = _indices(rows, batch)
        shape = (len(indices), self.units)
        if values is None:
            values = [ops.zeros(shape) for _ in names]
        values = list(values) if isinstance(values, (list, tuple)) else [values]
        given = [tuple(getattr(value, "shape", ())) for value in values]
        if given != [shape] * len(names):
            raise ValueError(
                f"`values` must be {len(names)} array(s) ({', '.join(names)}) of shape {shape}. "
                f"Received: shapes {given}"
            )
        chosen = np.zeros((batch, 1), bool)
        chosen[indices] = True
        for variable, value in zip(self.states, values, strict=True):
            value = ops.cast(value, variable.dtype)
            spread = ops.scatter(indices[:, None], value, (batch, self.units))
            variable.assign(ops.where(chosen, spread, variable.value))

    def compute_output_shape(self, sequences_shape, initial_state_shape=None):
        known_features(repr(self.name), "sequences", sequences_shape, AXES)
        inputs.check_wrapper(self)
        outputs = super().compute_output_shape(sequences_shape, initial_state_shape)
        if not self.return_gates:
            return outputs
        outputs = outputs if self.return_state else (outputs,)
        shape = (*sequences_shape[:2], self.units)
        return *outputs, dict.fromkeys(gates.names(self.cell), shape)

    def compute_mask(self, inputs, mask):
        found = super().compute_mask(inputs, mask)
        if not self.return_gates:
            return found
        found = found if self.return_state else [found]
        return [*found, *[keras.tree.flatten(mask)[0]] * len(gates.names(self.cell))]

    def inner_loop(self, sequences, initial_state, mask, training=False):
        used = engine.used(self)
        if used is not None and not self.return_gates:
            return used.run(self, sequences, initial_state, mask, training)
        if self.stateful and keras.backend.backend() == "torch":
            # Keras sets the states in place, and the gradient needs them as they were.
            initial_state = [ops.copy(state) for state in initial_state]
        penalties = self.cell.penalties
        sums = [regularizers.initial_sum(sequences) for _ in penalties]
        last_output, outputs, states = self._loop(
            sequences, [*initial_state, *sums], mask, training
        )
        states, sums = list(states), []
        while len(states) > len(self.cell.state_names):
            sums.insert(0, states.pop())
        for strength, total in zip(penalties.values(), sums, strict=True):
            mean = regularizers.mean_per_valid_step(total, sequences, mask)
            self.add_loss(strength * mean / ops.cast(outer_steps(), mean.dtype))
        return last_output, outputs, states

    def explain(self) -> str:
        """What this layer computes, which path sequences take through it, and why.

        Returns:
            Text: the equations as they were traced from the cell, or why they cannot be; whether
            backpropagation through time is fused, or left to the backend's automatic
            differentiation, and the reason.

        Example:

        >>> print(keras_gates.GatedRNN(8, backprop="autodiff", name="rnn").explain())
        rnn: Keras' own loop, because backprop='autodiff' was given
          with x_k = x W_k + b_k and u_k = h U_k + c_k:
          z = sigmoid(x_z + u_z)
          r = sigmoid(x_r + u_r)
          n = tanh(x_n + r * u_n)
          h' = z * h + (1 - z) * n
        """
        unreadable = None
        try:
            shown = self._equations(traced(self.cell, self.cell.units)[1])
        except NotTraceableError as reason:
            unreadable = str(reason)
            try:
                refuse_failing(self.cell, reason)
            except ValueError as failure:
                return f"{self.name}: cannot run, because {failure}"
        always, lines = self._paths.explained(unreadable)
        if unreadable:
            why = "" if unreadable in always else f": {unreadable}"
            shown = [f"  its equations cannot be traced{why}"]
        return "\n".join([f"{self.name}: {always}", *shown, *(f"  {line}" for line in lines)])

    def _equations(self, program):
        """Lines of text."""
        lines = equations(program, self.cell.symbols)
        bias = " + c_k" if self.cell.two_biases else ""
        kernel, start = "", self.cell.initialization
        if type(self.cell).parametrize is not GatedCell.parametrize:
            kernel = f", of U as {type(self.cell).__name__}.parametrize makes it"
        return [
            f"  with x_k = x W_k + b_k and u_k = h U_k{bias}{kernel}:"
            if not self.cell.layer_norm
            else f"  with x_k = x W_k and u_k = h U_k{kernel}, and L(v) = v, normalized (x_k "
            "and u_k each over the units of all their blocks), times a gain, plus a bias:",
            *[f"  {symbol} = {text}" for symbol, text in lines],
            *([f"  its gates start as initialization={start!r} says"] if start else []),
        ]

    def _loop(self, sequences, states, mask, training):
        found = self._paths.run(sequences, states, mask, training)
        if found is not None:
            return found
        if training and self.cell.zoneout:
            masks = zoneout.drawn(self.cell, ops.shape(sequences)[:2])
            sequences = zoneout.beside(sequences, masks)
        if self.return_gates:
            return gates.loop(self, sequences, states, mask, training)
        return super().inner_loop(sequences, states, mask, training=training)

    def get_config(self):
        names = ("return_gates", "initial_state", "backprop")
        return {**super().get_config(), **{name: getattr(self, name) for name in names}}

    @classmethod
    def from_config(cls, config, custom_objects=None):
        if not isinstance(config, dict) or "cell" not in config:
            raise invalid("config", "a dict as `get_config` returns it, with a 'cell'", config)
        config = dict(config)
        config["cell"] = keras.saving.deserialize_keras_object(
            config["cell"], custom_objects=custom_objects
        )
        with warnings.catch_warnings():
            # Whoever made the original has been warned.
            warnings.simplefilter("ignore", verdicts.UnstableActivationsWarning)
            try:
                return cls(**config)
            except TypeError as error:  # before which Keras would put the config of all around it
                raise ValueError(f"{cls.__name__} cannot be made of its config: {error}") from error


def _indices(rows, batch):
    """The samples that `rows` stands for, as an array of their indices."""
    if rows is None:
        return np.arange(batch)
    given = np.asarray(rows)
    if given.dtype == bool and given.shape == (batch,):
        return np.flatnonzero(given)
    if given.size == 0:
        return np.zeros(0, int)
    fits = given.ndim == 1 and given.dtype.kind in "iu" and len(set(given.tolist())) == len(given)
    if not fits or given.min() < -batch or given.max() >= batch:
        raise invalid(
            "rows", f"indices of the {batch} samples, none twice, or {batch} booleans", rows
        )
    return given % batch


def _cell(units, cell, arguments, layer_arguments):
    """The cell that the arguments of a GatedRNN describe."""
    close = inspect.signature(GatedRNN).parameters
    if isinstance(cell, GatedCell):
        owner = f"GatedRNN(cell={type(cell).__name__}(...))"
        refuse_unknown(owner, arguments, cell.options(), CELLS.values(), close)
        given = {**({} if units in (None, cell.units) else {"units": units}), **arguments}
        if given:
            raise ValueError(
                f"`cell` is an instance already, so its arguments are its own. Received beside "
                f"it: {', '.join(given)}. Give them to {type(cell).__name__}(...)."
            )
        return cell
    if isinstance(cell, str):
        if cell not in CELLS:
            hint = close_matches(cell.lower(), CELLS)
            if cell in activations.names():
                hint = f"; the activation {cell!r} goes into candidate_activation="
            raise ValueError(
                f"`cell` must be one of {', '.join(map(repr, CELLS))}, a subclass of GatedCell or "
                f"an instance of one. Received: cell={cell!r}{hint}"
            )
        cell = CELLS[cell]
    if not (isinstance(cell, type) and issubclass(cell, GatedCell)):
        hint = ""
        if isinstance(cell, (list, tuple)):
            hint = ". For a stack, use several GatedRNN layers, or keras.layers.RNN([cells])"
        elif of_keras.counterpart(cell):
            hint = f". The cell here is keras_gates.{of_keras.counterpart(cell)}"
        raise ValueError(
            f"`cell` must be one of {', '.join(map(repr, CELLS))}, a subclass of GatedCell or an "
            f"instance of one. Received: cell={cell!r}{hint}"
        )
    owner = f"GatedRNN(cell={cell.__name__})"
    refuse_kept(owner, {**arguments, **layer_arguments}, cell)
    refuse_unknown(owner, arguments, cell.options(), CELLS.values(), close)
    made = cell(units, **arguments, **layer_arguments)
    if cell not in CELLS.values():
        refuse_unused(made, arguments)
    return made


# Arguments that are the layer's own, and not its cell's.
OF_LAYER = tuple(GatedRNN.__init__.__kwdefaults__ or ())
sign(GatedRNN.__init__, *CELLS.values())
