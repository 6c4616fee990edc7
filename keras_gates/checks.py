"""The contracts as checks that any cell can be held to, a third party's as well.

```python
import keras_gates as kg
from keras_gates import checks

checks.check_cell(MyCell)                       # raises AssertionError at the first failure
@pytest.mark.parametrize("check", checks.CHECKS)
def test_my_cell(check):
    checks.CHECKS[check](MyCell, {"my_option": 3})
```

Each check builds small layers with random weights, uneven shapes and ragged masks, and holds them
against something that knows nothing of the cell's equations: finite differences, the layer run on
the valid steps alone, on the reversed sequence, in two halves.
"""

from typing import Any

import keras
import numpy as np
from keras import ops

from keras_gates import gates
from keras_gates.cells import GatedCell
from keras_gates.cells.arguments import refuse_given
from keras_gates.cells.base import CANDIDATE
from keras_gates.cells.program import traced
from keras_gates.cells.step import argument_of, noting, recurrent_blocks
from keras_gates.equations import NotTraceableError
from keras_gates.gradients import clip_by_norm, clip_by_value
from keras_gates.initializers import Chrono
from keras_gates.layers import OF_LAYER, GatedRNN

__all__ = ["CHECKS", "check_cell"]

BATCH, TIME, FEATURES, UNITS = 6, 7, 3, 5
# Keras computes in float64 on TensorFlow alone; elsewhere the checks are less strict.
_STRICT = keras.backend.backend() == "tensorflow"
DTYPE = "float64" if _STRICT else "float32"
TOLERANCE = 1e-9 if _STRICT else 2e-5


def check_cell(cell_class: type[GatedCell], **arguments: Any) -> list[str]:
    """Runs all checks on `GatedRNN(cell=cell_class, **arguments)`.

    Returns:
        The names of the checks. An AssertionError names the first that fails.
    """
    if not (isinstance(cell_class, type) and issubclass(cell_class, GatedCell)):
        raise TypeError(
            f"`cell_class` must be a subclass of GatedCell. Received: cell_class={cell_class!r}"
        )
    refuse_given(
        "check_cell", arguments, ("units", "cell", "dtype", *OF_LAYER), "it makes layers of its own"
    )
    for name, check in CHECKS.items():
        try:
            check(cell_class, arguments)
        except Exception as error:
            failure = f"{cell_class.__name__} fails the check {name!r}: {error}"
            raise AssertionError(failure + _likely(cell_class, arguments)) from error
    return list(CHECKS)


def _likely(cell_class, arguments):
    """What is known of equations that cannot be traced, and may be why a check fails: no gradients
    flow through NumPy, for example."""
    try:
        traced(cell_class(UNITS, **arguments))
    except NotTraceableError as reason:
        return f". Its equations cannot be traced: {reason}" if reason.explains else ""
    except Exception:  # of the code of a cell of one's own
        pass
    return ""


# ---------------------------------------------------------------------- the checks


def config_round_trip(cell_class, arguments):
    """A layer made from the config of another, with its weights, gives the same outputs."""
    layer, x = _layer(cell_class, arguments), _sequences()
    expected = layer(x)
    missing = set(cell_class.options()) - set(layer.cell.get_config())
    assert not missing, f"get_config lacks {sorted(missing)}"
    copy = GatedRNN.from_config(layer.get_config())
    copy.build(x.shape)
    copy.set_weights(layer.get_weights())
    _same(copy(x), expected, "outputs of the copy")


def activations(cell_class, arguments):
    """`update` calls the activation of every gate, and of the candidate if a block is named so."""
    cell = _layer(cell_class, arguments).cell
    with noting(cell) as called:
        cell.call(ops.convert_to_tensor(_sequences()[:, 0]), cell.get_initial_state(BATCH))
    for name in gates.names(cell):
        call = "self.candidate" if name == CANDIDATE else f"self.gate({name!r}, ...)"
        assert name in called, (
            f"`update` never calls {call}, so {argument_of(name)} makes no difference. Call it; a "
            "block without an activation has another name than 'candidate', and is not in `gates`"
        )


def shapes(cell_class, arguments):
    """Outputs and states have the shapes that the layer announces."""
    x = _sequences()
    for return_sequences in (False, True):
        layer = _layer(cell_class, arguments, return_sequences=return_sequences, return_state=True)
        given = [tuple(t.shape) for t in layer(x)]
        announced = [tuple(s) for s in layer.compute_output_shape(x.shape)]
        output = (BATCH, TIME, UNITS) if return_sequences else (BATCH, UNITS)
        expected = [output] + [(BATCH, UNITS)] * len(cell_class.state_names)
        assert given == announced == expected, (given, announced, expected)


def masks(cell_class, arguments):
    """A masked step is as if it were not there; its output repeats the one before, or is zero."""
    x, mask = _sequences(), ragged_mask()
    layer = _layer(cell_class, arguments, return_sequences=True, return_state=True)
    outputs, *states = _arrays(layer(x, mask=mask))
    zeroed = _like(layer, cell_class, arguments, return_sequences=True, zero_output_for_mask=True)
    zeroed = _array(zeroed(x, mask=mask))
    for sample, valid in enumerate(mask):
        if not valid.any():
            for state in states:
                _same(state[sample], np.zeros(UNITS), "state of a sample without valid steps")
            continue
        short_outputs, *short_states = _arrays(layer(x[sample : sample + 1, valid]))
        _same(outputs[sample, valid], short_outputs[0], "outputs at the valid steps")
        for state, short in zip(states, short_states, strict=True):
            _same(state[sample], short[0], "last states")
        first = int(valid.argmax())
        for t in range(first + 1, TIME):
            if not valid[t]:
                _same(outputs[sample, t], outputs[sample, t - 1], "output repeated while masked")
        _same(zeroed[sample, ~valid], np.zeros(((~valid).sum(), UNITS)), "zero_output_for_mask")


def directions(cell_class, arguments):
    """`go_backwards` equals the layer on the reversed sequence."""
    x, mask = _sequences(), ragged_mask()
    layer = _layer(cell_class, arguments, return_sequences=True)
    backwards = _like(layer, cell_class, arguments, return_sequences=True, go_backwards=True)
    _same(
        backwards(x, mask=mask),
        layer(np.ascontiguousarray(x[:, ::-1]), mask=np.ascontiguousarray(mask[:, ::-1])),
        "go_backwards",
    )


def states(cell_class, arguments):
    """Two halves, the second from the states of the first, equal the whole; stateful likewise."""
    x, half = _sequences(), TIME // 2
    layer = _layer(cell_class, arguments, return_state=True)
    whole = layer(x)
    _, *middle = layer(x[:, :half])
    for given, expected in zip(layer(x[:, half:], initial_state=middle), whole, strict=True):
        _same(given, expected, "second half from the states of the first")
    stateful = _like(layer, cell_class, arguments, batch=BATCH, stateful=True)
    stateful.reset_state()
    stateful(x[:, :half])
    _same(stateful(x[:, half:]), whole[0], "stateful")
    stateful.reset_state()
    _same(stateful(x), whole[0], "stateful after reset_state")


def unrolled(cell_class, arguments):
    """The unrolled loop equals the loop."""
    x = _sequences()
    layer = _layer(cell_class, arguments, return_sequences=True)
    other = _like(layer, cell_class, arguments, return_sequences=True, unroll=True)
    _same(other(x), layer(x), "unroll")


def wrappers(cell_class, arguments):
    """The cell runs in keras.layers.RNN, in a stack of cells, and its layer in Bidirectional."""
    x = _sequences()
    layer = _layer(cell_class, arguments)
    alone = keras.layers.RNN(cell_class(UNITS, dtype=DTYPE, **arguments), dtype=DTYPE)
    alone.build(x.shape)
    alone.set_weights(layer.get_weights())
    _same(alone(x), layer(x), "keras.layers.RNN")
    stack = keras.layers.RNN([cell_class(4, **arguments), cell_class(UNITS, **arguments)])
    assert tuple(stack(x).shape) == (BATCH, UNITS)
    both = keras.layers.Bidirectional(
        GatedRNN(UNITS, cell=cell_class, activation_l1=0.1, **arguments)
    )
    assert tuple(both(x).shape) == (BATCH, 2 * UNITS)
    assert len(both.losses) == 2, f"penalties inside Bidirectional: {both.losses}"


def finite_differences(cell_class, arguments):
    """Gradients of inputs, initial states and weights equal finite differences."""
    layer = _layer(cell_class, arguments, return_sequences=True, return_state=True)
    x, mask, weights = _sequences(), ragged_mask(), _weighting()
    inputs = [x, *_initial_states(layer)]

    def loss(outputs):
        return weights(outputs)

    _, input_gradients, weight_gradients = gradients(layer, inputs, loss, mask=mask)
    rng = np.random.default_rng(5)
    saved = [np.array(_array(w)) for w in layer.trainable_weights]
    points = [*inputs, *saved]
    step, tolerance = (1e-6, 1e-6) if _STRICT else (3e-3, 1e-2)
    for index, gradient in enumerate([*input_gradients, *weight_gradients]):
        direction = rng.normal(size=points[index].shape).astype(DTYPE)
        values = []
        for sign in (+1, -1):
            moved = list(points)
            moved[index] = points[index] + sign * step * direction
            for weight, value in zip(layer.trainable_weights, moved[len(inputs) :], strict=True):
                weight.assign(value)
            outputs = layer(moved[0], initial_state=moved[1 : len(inputs)], mask=mask)
            values.append(float(_array(loss(list(outputs)))))
        for weight, value in zip(layer.trainable_weights, saved, strict=True):
            weight.assign(value)
        measured = (values[0] - values[1]) / (2 * step)
        analytic = float(np.sum(gradient * direction))
        assert abs(measured - analytic) <= tolerance * (1 + abs(analytic)), (
            f"gradient {index}: {analytic} against finite differences {measured}"
        )


def clipping(cell_class, arguments):
    """Clipping leaves outputs alone to the bit, and gradients below the bound, and bounds the
    gradients of all states; a cell whose only state is the hidden one gets, step by step, exactly
    the clipped gradient."""
    if cell_class(UNITS, **arguments).clips:
        return
    plain = _layer(cell_class, arguments, return_sequences=True)
    x, mask = _sequences(), ragged_mask()
    weights = _weighting()
    outputs, inputs, weight_gradients = gradients(plain, [x], weights, mask=mask)
    for mode, clip in (("grad_clip_value", clip_by_value), ("grad_clip_norm", clip_by_norm)):
        for place in ("state", "preactivation"):
            loose = {**arguments, mode: 1e6, "grad_clip_at": place}
            layer = _like(plain, cell_class, loose, return_sequences=True)
            found = gradients(layer, [x], weights, mask=mask)
            assert np.array_equal(found[0], outputs), f"{mode} at {place} changes the outputs"
            for given, expected in zip(
                [*found[1], *found[2]], [*inputs, *weight_gradients], strict=True
            ):
                _same(given, expected, f"gradients below the bound, {mode} at {place}")
        tight = {**arguments, mode: 0.05}
        layer = _like(plain, cell_class, tight, return_sequences=True)
        found = gradients(layer, [x], weights, mask=mask)
        assert np.array_equal(found[0], outputs), f"{mode} changes the outputs"
        if len(cell_class.state_names) == 1:
            expected = _stepwise_clipped(
                _like(plain, cell_class, arguments, return_sequences=True),
                x,
                lambda d, clip=clip: clip(d, 0.05),
            )
            unmasked = gradients(layer, [x], weights)
            for given, wanted in zip(unmasked[2], expected, strict=True):
                _same(given, wanted, f"weight gradients with {mode}")
        layer = _like(plain, cell_class, tight, return_state=True)
        for index, name in enumerate(cell_class.state_names):
            huge, larger = (_of_a_state(layer, index, size) for size in (1e5, 1e6))
            for one, other in zip(huge, larger, strict=True):
                assert np.abs(other).max() < 2 * np.abs(one).max() + TOLERANCE, (
                    f"{mode} does not bound the gradient of the state {name!r}: `update` must "
                    f"return self.clip_state({name}) for it, in the order of `state_names`"
                )


def _of_a_state(layer, index, size):
    """Gradients of the initial states and weights, of a loss of so large a multiple of one state
    after the last step."""
    weights = _weighting()
    inputs = [_sequences(), *_initial_states(layer)]
    _, found, of_weights = gradients(layer, inputs, lambda o: size * weights([o[1 + index]]))
    return [*found[1:], *of_weights]


def penalties(cell_class, arguments):
    """`activation_l1` and `candidate_l1` equal their formula for every batch, mask and return."""
    x, mask = _sequences(), ragged_mask()
    plain = _layer(cell_class, arguments, return_sequences=True)
    hidden = _array(plain(x, mask=mask))
    expected = 0.3 * np.abs(hidden).sum(-1)[mask].mean()
    for options in ({}, {"return_sequences": True}, {"return_state": True}):
        layer = _like(plain, cell_class, {**arguments, "activation_l1": 0.3}, **options)
        for repeat in (1, 3):
            layer(np.tile(x, (repeat, 1, 1)), mask=np.tile(mask, (repeat, 1)))
            (loss,) = layer.losses
            _same(loss, expected, f"activation_l1 with {options}, batch {repeat * BATCH}", 1e-5)

    seen = []

    class Recording(cell_class):
        def candidate(self, preactivation):
            activated = super().candidate(preactivation)
            seen.append(_array(activated))
            return activated

    begun = {**arguments, "initialization": None}  # which asks for equations that can be traced
    cell = _like(plain, Recording, begun).cell
    state = cell.get_initial_state(1)
    for t in range(TIME):
        _, state = cell(ops.convert_to_tensor(x[:1, t]), state)
    if not seen:  # the cell has no candidate
        return
    expected = 0.2 * np.mean([np.abs(value).sum() for value in seen])
    layer = _like(plain, cell_class, {**arguments, "candidate_l1": 0.2})
    layer(x[:1])
    calls = len(seen) // TIME
    once = f" (`update` calls self.candidate {calls} times, and not once)" if calls > 1 else ""
    _same(layer.losses[0], expected, f"candidate_l1{once}", 1e-5)


def dropout(cell_class, arguments):
    """Dropout acts in training only, and anew in every call."""
    x = np.repeat(_sequences()[:, :1], TIME, axis=1)
    plain = _layer(cell_class, arguments, return_sequences=True)
    options = {"dropout": 0.4, "recurrent_dropout": 0.4, "seed": 1}
    if not recurrent_blocks(cell_class):
        del options["recurrent_dropout"]
    layer = _like(plain, cell_class, {**arguments, **options}, return_sequences=True)
    _same(layer(x, training=False), plain(x), "dropout outside training")
    assert np.abs(_array(layer(x, training=True)) - _array(plain(x))).max() > 1e-3
    assert np.abs(_array(layer(x, training=True)) - _array(layer(x, training=True))).max() > 1e-3


def initialization(cell_class, arguments):
    """With `initialization` states stay nearer to where they began, or an error names it."""
    x, moved = np.zeros((BATCH, TIME, FEATURES), DTYPE), []
    for start in ("keras", Chrono(1000)):
        given = {**arguments, "initialization": start}
        try:
            layer = GatedRNN(UNITS, cell=cell_class, dtype=DTYPE, return_state=True, **given)
            layer.build(x.shape)
        except ValueError as error:
            if start == "keras" or not str(error).startswith("`initialization`"):
                raise
            return
        before = _initial_states(layer)
        _, *after = _arrays(layer(x, initial_state=before))
        moved.append(sum(np.abs(a - b).sum() for a, b in zip(after, before, strict=True)))
    assert moved[1] < moved[0], f"states move by {moved[1]} with it, by {moved[0]} without"


def half_precision(cell_class, arguments):
    """In mixed_bfloat16 the layer computes in bfloat16, near the float32 result."""
    x = _sequences()
    plain = _layer(cell_class, arguments)
    half = _like(plain, cell_class, {**arguments, "activation_l1": 0.3}, dtype="mixed_bfloat16")
    output = half(x)
    assert keras.backend.standardize_dtype(output.dtype) == "bfloat16", output.dtype
    _same(ops.cast(output, DTYPE), plain(x), "mixed_bfloat16", 0.1)


CHECKS = {
    check.__name__: check
    for check in (
        config_round_trip,
        activations,
        shapes,
        masks,
        directions,
        states,
        unrolled,
        wrappers,
        finite_differences,
        clipping,
        penalties,
        dropout,
        initialization,
        half_precision,
    )
}


# ---------------------------------------------------------------------- what the checks use


def gradients(layer, inputs, loss, mask=None):
    """Gradients through `layer`, on the backend in use.

    Args:
        layer: a built recurrent layer.
        inputs: arrays, the sequences and then the initial states, if any.
        loss: from the list of the layer's outputs to a scalar; the layer's own losses are added.

    Returns:
        (first output, gradients of the inputs, gradients of the trainable weights), as arrays.
    """
    backend = keras.backend.backend()
    if not (isinstance(layer, keras.layers.Layer) and layer.built):
        raise ValueError(f"`layer` must be a built recurrent layer. Received: layer={layer!r}")

    def run(tensors, call):
        options = {"initial_state": list(tensors[1:])} if len(tensors) > 1 else {}
        outputs = call(tensors[0], mask=mask, **options)
        return list(outputs) if isinstance(outputs, (list, tuple)) else [outputs]

    if backend == "tensorflow":
        import tensorflow as tf

        tensors = [ops.convert_to_tensor(value) for value in inputs]
        weights = [weight.value for weight in layer.trainable_weights]
        with tf.GradientTape() as tape:
            tape.watch(tensors)
            outputs = run(tensors, layer)
            total = sum(layer.losses, loss(outputs))
        found = tape.gradient([total], [*tensors, *weights], unconnected_gradients="zero")
        found = [tf.convert_to_tensor(gradient) for gradient in found]
    elif backend == "jax":
        import jax

        fixed = [weight.value for weight in layer.non_trainable_variables]

        def total(weights, tensors):
            losses = []

            def call(*args, **kwargs):
                outputs, _, own = layer.stateless_call(
                    weights, fixed, *args, return_losses=True, **kwargs
                )
                losses.extend(own)
                return outputs

            outputs = run(tensors, call)
            return sum(losses, loss(outputs)), outputs

        weights = [weight.value for weight in layer.trainable_variables]
        tensors = [ops.convert_to_tensor(value) for value in inputs]
        (_, outputs), (of_weights, of_inputs) = jax.value_and_grad(
            total, argnums=(0, 1), has_aux=True
        )(weights, tensors)
        found = [*of_inputs, *of_weights]
    else:
        import torch

        tensors = [ops.convert_to_tensor(value).requires_grad_() for value in inputs]
        weights = [weight.value for weight in layer.trainable_weights]
        outputs = run(tensors, layer)
        total = sum(layer.losses, loss(outputs))
        found = torch.autograd.grad(
            total, [*tensors, *weights], allow_unused=True, materialize_grads=True
        )
    found = _arrays(found)
    return _array(outputs[0]), found[: len(inputs)], found[len(inputs) :]


def ragged_mask():
    """(BATCH, TIME): right, left and interior padding, all valid, all masked, one valid."""
    rows = ["1111000", "0011111", "1011001", "1111111", "0000000", "0000100"]
    return np.array([[digit == "1" for digit in row] for row in rows])


def _sequences():
    return np.random.default_rng(1).normal(size=(BATCH, TIME, FEATURES)).astype(DTYPE)


def _layer(cell_class, arguments, batch=None, dtype=DTYPE, **options):
    """A built layer with random weights, biases too."""
    layer = GatedRNN(UNITS, cell=cell_class, dtype=dtype, **arguments, **options)
    layer.build((batch, TIME, FEATURES))
    rng = np.random.default_rng(2)
    layer.set_weights([0.5 * rng.normal(size=w.shape) for w in layer.get_weights()])
    return layer


def _like(layer, cell_class, arguments, batch=None, **options):
    """Another layer of the same weights."""
    other = _layer(cell_class, arguments, batch=batch, **options)
    for weight, value in zip(other.trainable_weights, layer.trainable_weights, strict=True):
        weight.assign(_array(value))
    return other


def _initial_states(layer):
    rng = np.random.default_rng(3)
    return [rng.normal(size=(BATCH, UNITS)).astype(DTYPE) for _ in layer.cell.state_names]


def _weighting():
    """A scalar of all outputs in which every element has a weight of its own."""

    def loss(outputs):
        rng = np.random.default_rng(4)
        return sum(
            ops.sum(output * ops.convert_to_tensor(rng.normal(size=output.shape), output.dtype))
            for output in outputs
        )

    return loss


def _stepwise_clipped(one, x, clip):
    """The weight gradients of BPTT on `_weighting`, with `clip` on dL/dh_t, from gradients of the
    layer `one` over one step at a time."""
    hidden = [np.zeros((BATCH, UNITS), DTYPE)]
    for t in range(TIME):
        hidden.append(_array(one(x[:, t : t + 1], initial_state=hidden[-1]))[:, 0])
    rng = np.random.default_rng(4)
    from_outputs = rng.normal(size=(BATCH, TIME, UNITS)).astype(DTYPE)
    totals, carried = None, np.zeros((BATCH, UNITS), DTYPE)
    for t in reversed(range(TIME)):
        d = _array(clip(ops.convert_to_tensor(from_outputs[:, t] + carried)))
        _, (_, carried), of_weights = gradients(
            one,
            [x[:, t : t + 1], hidden[t]],
            lambda outputs, d=d: ops.sum(outputs[0][:, 0] * ops.convert_to_tensor(d)),
        )
        totals = [a + b for a, b in zip(totals, of_weights, strict=True)] if totals else of_weights
    return totals


def _array(tensor):
    return ops.convert_to_numpy(tensor)


def _arrays(tensors):
    return [_array(tensor) for tensor in tensors]


def _same(given, expected, what, tolerance=TOLERANCE):
    given, expected = (_array(value) for value in (given, expected))
    assert given.shape == expected.shape, f"{what}: shape {given.shape}, not {expected.shape}"
    difference = np.abs(given - expected).max(initial=0.0)
    assert difference <= tolerance * (1 + np.abs(expected).max(initial=0.0)), (
        f"{what} differ by {difference:.3g}"
    )
