"""What the recurrent layers of a model compute on data, step by step.

The model runs as it is, except that the `call` of every recurrent layer is replaced by a loop that
shows what is inside. So each layer gets the inputs, masks and initial states that it gets in the
model, and gradients reach it from the model's own loss.
"""

import contextlib
import dataclasses
import functools

import keras
import numpy as np
from keras import ops, tree

from keras_gates import gates, regularizers, verdicts
from keras_gates.cells.base import CANDIDATE
from keras_gates.diagnostics import cells, data, lyapunov, weights
from keras_gates.gradients import at_least_float32
from keras_gates.layers import GatedRNN

# Up to as many time steps, over all batches, it is quicker to run eagerly than to compile.
EAGER_STEPS = 50


@dataclasses.dataclass
class Trace:
    """What one cell computed, over samples and time, as NumPy arrays.

    Steps are in the order in which the layer reads them: where it reads backwards, the first is
    the last one of the sequence. `print` shows what there is, not the arrays.

    Attributes:
        name: of the layer; a further call of the same layer adds "#2", a cell of a stack its
            index.
        cell: the GatedCell.
        backwards: whether the layer reads the sequence backwards (`go_backwards`, or the backward
            layer of a Bidirectional).
        valid: (samples, time), False at masked steps.
        activated: from a gate or "candidate" to its values, (samples, time, units), in the order
            in which the equations compute them.
        states: from the name of a state to its values after each step, likewise.
        gradients: from the name of a state s to dL/ds_t as it arrives at step t, before it is
            clipped there, likewise; empty where none were asked for. What a state is used for
            within step t, as an LSTM's cell state for its hidden one, is in the gradient of that.
        growth: (samples, time), see `lyapunov`; or None.
    """

    name: str
    cell: keras.layers.Layer
    backwards: bool
    valid: np.ndarray
    activated: dict
    states: dict
    gradients: dict = dataclasses.field(default_factory=dict)
    growth: np.ndarray | None = None

    @property
    def gates(self):
        return {name: value for name, value in self.activated.items() if name != CANDIDATE}

    @property
    def candidate(self):
        return self.activated.get(CANDIDATE)

    @property
    def gradient(self):
        """dL/dh_t, or None."""
        return next(iter(self.gradients.values()), None)

    def __repr__(self):
        samples, steps = self.valid.shape
        found = [*self.activated, *[f"{name} state" for name in self.states]]
        if self.gradient is not None:
            found.append("gradient")
        backwards = ", read backwards" if self.backwards else ""
        return (
            f"<Trace of {self.name!r}: {type(self.cell).__name__}, {samples} samples x {steps} "
            f"steps x {self.cell.units} units{backwards}: {', '.join(found)}>"
        )


class Run:
    """What `Tracer` gives for one batch.

    Attributes:
        samples: how many samples the batch has.
        calls: one entry per call of a layer, in the order of execution: a list of `Trace`, one
            per cell from the bottom; or, of a layer that is not recurrent, a `Call`.
        loss: a number, or None.
        weight_gradients: a list of (name, array), see `Tracer`.
    """

    def __init__(self, samples, calls, loss, weight_gradients):
        self.samples, self.calls = samples, calls
        self.loss, self.weight_gradients = loss, weight_gradients

    @property
    def traces(self):
        return [trace for call in self.calls if isinstance(call, list) for trace in call]


@dataclasses.dataclass
class Call:
    """The outputs of a layer that is not recurrent: its name, and arrays (samples, ...)."""

    name: str
    outputs: list


class Tracer:
    """Runs a model on batches and returns what its recurrent layers compute.

    Args:
        model: a built Keras model.
        gradients: whether a loss is computed and the gradients of the states are wanted.
            TensorFlow alone.
        tangents: whether the growth of tangent vectors is wanted, for the Lyapunov exponent.
        everything: whether the outputs of all other layers, and with `gradients` the gradients
            of all weights, are wanted too.

    Attributes:
        left_out: pairs (name, reason) of recurrent layers that cannot be looked into.
        verdict: from a cell to the `Verdict` on its activations. Each is judged once, however often
            a monitor looks.

    Raises:
        ValueError: no recurrent layer that can be looked into, unless with `everything`.
        NotImplementedError: `gradients` on another backend.
    """

    def __init__(self, model, gradients=False, tangents=False, everything=False):
        backend = keras.backend.backend()
        if gradients and backend != "tensorflow":
            raise NotImplementedError(
                "`y` was given, and gradients inside backpropagation through time are computed on "
                f"the TensorFlow backend alone; this is {backend}. Leave `y` out."
            )
        self.model = model
        self.gradients, self.tangents, self.everything = gradients, tangents, everything
        self.recurrent, self.others, self.left_out = cells.find(model)
        if not self.recurrent and not everything:
            raise ValueError(
                f"`model` must have a recurrent layer: a GatedRNN, keras.layers.GRU, LSTM or "
                f"SimpleRNN, or keras.layers.RNN of one of their cells. {model.name!r} has "
                f"none{cells.describe(self.left_out)}"
            )
        self.verdict = functools.cache(verdicts.judge)
        self._compute = self._gradients_and_events if gradients else self._events
        self._compiled = False

    def compile(self):
        """Compiles what follows, on TensorFlow and once, which takes a second or two."""
        if keras.backend.backend() == "tensorflow" and not self._compiled:
            import tensorflow as tf

            self._compiled = True
            # A partial, because TensorFlow warns of one function compiled many times.
            compute = functools.partial(self._compute)
            self._compute = tf.function(compute, autograph=False, reduce_retracing=True)
        return self

    def batch_size(self, wanted):
        """`wanted`, or the batch size that a stateful layer was built for."""
        for found in self.recurrent:
            if found.layer.stateful and found.layer.states is not None:
                return tree.flatten(found.layer.states)[0].shape[0]
        return wanted

    def __call__(self, x, y=None, sample_weight=None):
        """A `Run` of one batch of arrays."""
        for found in self.recurrent:
            found.refresh()
        x, y, sample_weight = (
            None if given is None else tree.map_structure(ops.convert_to_tensor, given)
            for given in (x, y, sample_weight)
        )
        # A loss of several outputs is a metric as well, which looking must not change.
        metrics = [(v, ops.copy(v.value)) for v in self.model.metrics_variables]
        try:
            events, loss, gradients = self._compute(x, y, sample_weight)
        finally:
            for variable, value in metrics:
                variable.assign(value)
        return Run(
            data.samples(x),
            [self._seen(about, values) for about, values in zip(self._about, events, strict=True)],
            None if loss is None else float(_array(loss)),
            [(name, _array(g)) for name, g in zip(self._weights, gradients, strict=True)],
        )

    # ------------------------------------------------------------------ in the backend

    def _events(self, x, y, sample_weight):
        """The values of all events, loss and gradients: tensors alone, and None."""
        self._about, self._values, self._moves, self._weights = [], [], [], []
        with self._watching():
            self.model(x, training=False)
        return self._take_values(), None, []

    def _gradients_and_events(self, x, y, sample_weight):
        import tensorflow as tf

        self._about, self._values, self._moves, self._weights = [], [], [], []
        tape = tf.GradientTape(watch_accessed_variables=self.everything)
        with tape as self._tape, self._watching():
            prediction = self.model(x, training=False)
            loss = self._loss(x, y, prediction, sample_weight)
        variables = []
        if self.everything:
            named = self._trainable()
            self._weights, variables = [n for n, _ in named], [v.value for _, v in named]
        moves = [move for move in self._moves if move is not None]
        found = self._tape.gradient(loss, [*moves, *variables], unconnected_gradients="zero")
        found = [tf.convert_to_tensor(gradient) for gradient in found]
        arrived = iter(found[: len(moves)])
        for move, values in zip(self._moves, self._values, strict=True):
            if move is not None:
                values["gradient"] = next(arrived)
        del self._tape
        return self._take_values(), loss, found[len(moves) :]

    def _loss(self, x, y, prediction, sample_weight):
        try:
            return self.model.compute_loss(x=x, y=y, y_pred=prediction, sample_weight=sample_weight)
        except Exception as error:  # of any kind; targets that do not fit are the usual reason
            one, other = (
                ", ".join(str(tuple(tensor.shape[1:])) for tensor in tree.flatten(tensors))
                for tensors in (y, prediction)
            )
            said = str(error).strip().partition("\n")[0]
            raise ValueError(
                f"`y` must fit the outputs and the loss of {self.model.name!r}. Received: y of "
                f"shape {one} per sample, with outputs of {other}; {type(error).__name__}: {said}"
            ) from error

    def _take_values(self):
        values, self._values, self._moves = self._values, [], []
        return values

    @contextlib.contextmanager
    def _watching(self):
        """Every layer that is looked at has a `call` that notes what happens."""
        calls = [(r.layer, self._call_of(r)) for r in self.recurrent]
        if self.everything:
            calls += [(layer, self._noting(name, layer)) for name, layer in self.others]
        before = []
        try:
            for layer, call in calls:
                before.append((vars(layer), "call", vars(layer).get("call")))
                vars(layer)["call"] = call
                if "use_cudnn" in vars(layer):
                    # Bidirectional would hand both of its layers to one kernel.
                    before.append((vars(layer), "use_cudnn", layer.use_cudnn))
                    vars(layer)["use_cudnn"] = False
            yield
        finally:
            for attributes, name, value in reversed(before):
                if value is None:
                    del attributes[name]
                else:
                    attributes[name] = value

    def _noting(self, name, layer):
        """What stands for the `call` of a layer that is not recurrent."""
        original = layer.call

        def call(*args, **kwargs):
            outputs = original(*args, **kwargs)
            floats = [
                tensor
                for tensor in tree.flatten(outputs)
                if keras.backend.is_float_dtype(getattr(tensor, "dtype", "int32"))
            ]
            self._about.append((name, None))
            self._values.append({"outputs": [_wide(tensor) for tensor in floats]})
            self._moves.append(None)
            return outputs

        return call

    def _call_of(self, recurrent):
        """What stands for the `call` of a recurrent layer."""
        layer = recurrent.layer

        def call(sequences, initial_state=None, mask=None, training=False):
            sequences = ops.cast(sequences, layer.compute_dtype)
            batch, time = ops.shape(sequences)[:2]
            states, like = _initial_states(layer, initial_state, batch)
            move = None
            inputs = sequences
            if self.gradients:
                units = sum(cell.units * len(cell.state_names) for cell in recurrent.cells)
                move = ops.zeros((batch, time, units), dtype=sequences.dtype)
                self._tape.watch(move)
                inputs = ops.concatenate([sequences, move], axis=-1)
            tangents = self.tangents and lyapunov.measurable(layer.compute_dtype)
            showing = cells.ShowingCell(recurrent.cells, sequences.shape[-1], tangents)
            loop = keras.layers.RNN(
                showing,
                return_sequences=True,
                go_backwards=layer.go_backwards,
                unroll=layer.unroll,
                zero_output_for_mask=layer.zero_output_for_mask,
                name=f"{layer.name}_shown",
                dtype=layer.dtype_policy,
            )
            initial = showing.initial_states(inputs[:, 0], states)
            last, shown, after = loop.inner_loop(inputs, initial, mask, training=False)

            units = recurrent.cells[-1].units
            valid = ops.ones((batch, time), "bool") if mask is None else ops.cast(mask, "bool")
            if layer.go_backwards:
                valid = ops.flip(valid, axis=1)
            self._add_penalties(recurrent, sequences, mask, shown, showing.parts, valid)
            self._about.append((recurrent, list(showing.parts)))
            self._values.append({"shown": _wide(shown), "valid": valid})
            self._moves.append(move)

            output = ops.cast(
                (shown if layer.return_sequences else last)[..., :units], layer.compute_dtype
            )
            outputs = [output]
            if layer.return_state:
                after = [ops.cast(s, layer.compute_dtype) for s in after[1 : 1 + len(states)]]
                outputs += tree.pack_sequence_as(like, after)
            if getattr(layer, "return_gates", False):
                columns = {
                    n: _columns(showing.parts, (0, "activated", n)) for n in gates.names(layer.cell)
                }
                outputs.append(
                    {n: ops.cast(shown[..., c], layer.compute_dtype) for n, c in columns.items()}
                )
            return tuple(outputs) if len(outputs) > 1 else output

        return call

    def _add_penalties(self, recurrent, sequences, mask, shown, parts, valid):
        """The penalties that a GatedRNN adds to the loss, of what is shown."""
        if not isinstance(recurrent.layer, GatedRNN):
            return
        penalized = {"activation_l1": ("state", "hidden"), "candidate_l1": ("activated", CANDIDATE)}
        for name, strength in recurrent.cells[0].penalties.items():
            values = shown[..., _columns(parts, (0, *penalized[name]))]
            values = ops.abs(ops.cast(values, at_least_float32(values.dtype)))
            values = ops.where(valid[:, :, None], values, ops.zeros_like(values))
            total = ops.sum(values, axis=(1, 2))[:, None]
            mean = regularizers.mean_per_valid_step(total, sequences, mask)
            recurrent.layer.add_loss(strength * mean)

    def _trainable(self):
        """(name, variable) of all weights that gradients of the run can be asked of."""
        copies = [
            (f"{r.name}/{variable.name}", variable)
            for r in self.recurrent
            for cell in r.cells
            for variable in cell.trainable_variables
        ]
        taken = {id(v) for _, v in copies}
        own = weights.named(self.model)
        return copies + [(name, v) for name, v in own if v.trainable and id(v) not in taken]

    # ------------------------------------------------------------------ as arrays

    def _seen(self, about, values):
        """One call of a layer, as in `Run.calls`."""
        recurrent, parts = about
        if parts is None:
            return Call(recurrent, [_array(tensor) for tensor in values["outputs"]])
        shown, valid = _array(values["shown"]), _array(values["valid"])
        gradient = None
        if "gradient" in values:
            gradient = _array(values["gradient"])
            if recurrent.layer.go_backwards:
                gradient = gradient[:, ::-1]
        growth = None
        if parts[-1][1] == "growth":
            growth, shown = shown[..., -1], shown[..., :-1]
        traces, start = [], 0
        for index, cell in enumerate(recurrent.cells):
            named = {"activated": {}, "state": {}}
            for of, kind, name, _ in parts:
                if of == index:
                    named[kind][name] = shown[..., _columns(parts, (of, kind, name))]
            name = recurrent.name if len(recurrent.cells) == 1 else f"{recurrent.name}/{index}"
            states = {state: named["state"][state] for state in cell.state_names}
            gradients = {}
            for state in [] if gradient is None else cell.state_names:
                gradients[state] = gradient[..., start : start + cell.units]
                start += cell.units
            traces.append(
                Trace(
                    name,
                    cell,
                    recurrent.layer.go_backwards,
                    valid,
                    named["activated"],
                    states,
                    gradients,
                    growth,
                )
            )
        return traces


def runs(tracer, x, y=None, batch_size=32, sample_weight=None):
    """Yields the `Run`s of all samples of `x`, batch by batch, compiled where it pays."""
    count, size = data.samples(x), tracer.batch_size(batch_size)
    if size != batch_size and count % size:
        raise ValueError(
            f"`x` must have a multiple of {size} samples, because a stateful layer of "
            f"{tracer.model.name!r} was built for batches of {size}. Received: {count}"
        )
    parts = data.slices(count, size)
    steps = max([v.shape[1] for v in tree.flatten(x) if v.ndim > 1], default=1)
    if steps * len(parts) > EAGER_STEPS:
        tracer.compile()
    for part in parts:
        yield tracer(data.take(x, part), data.take(y, part), data.take(sample_weight, part))


def joined(runs):
    """The traces of several batches as those of one."""
    traces = [_unique(run.traces) for run in runs]
    return [_joined(each) for each in zip(*traces, strict=True)]


def _unique(traces):
    """The traces, with a number after the name of a layer that was called before."""
    seen = {}
    for trace in traces:
        seen[trace.name] = seen.get(trace.name, 0) + 1
        if seen[trace.name] > 1:
            trace.name = f"{trace.name}#{seen[trace.name]}"
    return traces


def _joined(traces):
    if len(traces) == 1:
        return traces[0]

    def join(arrays):
        return None if arrays[0] is None else np.concatenate(arrays)

    first = traces[0]
    return dataclasses.replace(
        first,
        valid=join([t.valid for t in traces]),
        activated={n: join([t.activated[n] for t in traces]) for n in first.activated},
        states={n: join([t.states[n] for t in traces]) for n in first.states},
        gradients={n: join([t.gradients[n] for t in traces]) for n in first.gradients},
        growth=join([t.growth for t in traces]),
    )


def _initial_states(layer, given, batch):
    """The initial states as a flat list, and their structure."""
    if given is None:
        given = layer.states if layer.stateful else layer.get_initial_state(batch_size=batch)
    if not tree.is_nested(given):
        given = [given]
    given = list(given)
    flat = [
        ops.cast(ops.convert_to_tensor(state), layer.cell.compute_dtype)
        for state in tree.flatten(given)
    ]
    return flat, tree.map_structure(lambda _: 0, given)


def _columns(parts, wanted):
    """The columns of one part of what is shown."""
    start = 0
    for *part, size in parts:
        if tuple(part) == wanted:
            return slice(start, start + size)
        start += size
    raise KeyError(wanted)


def _wide(tensor):
    """`tensor` in a dtype that NumPy has."""
    return ops.cast(tensor, at_least_float32(tensor.dtype))


def _array(tensor):
    return ops.convert_to_numpy(tensor)
