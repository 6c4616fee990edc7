"""Cells that are linear in their states: which they are, and all time steps at once on JAX."""

import keras
import numpy as np
import pytest
from helpers import BACKEND, MASK
from keras import ops

import keras_gates as kg
from keras_gates import engine
from keras_gates.cells.program import trace
from keras_gates.equations import affine, apply, evaluate, leaf

FEATURES, UNITS = 3, 5
on_jax = pytest.mark.skipif(BACKEND != "jax", reason="the engine of JAX")


class Mixing(kg.GatedCell):
    """Two states that are linear, each in itself; the second has a factor that is one number."""

    blocks = ("forget", "candidate")
    recurrent_blocks = ()
    state_names = ("hidden", "trace")

    def build(self, input_shape):
        super().build(input_shape)
        self.decay = self.add_weight((1,), keras.initializers.Constant(0.8), name="decay")

    def update(self, x, u, states):
        h, trace = states
        f = self.gate("forget", x.forget)
        h = ops.where(x.forget > 0, f * h, -h / (1 + f)) + self.candidate(x.candidate)
        return h, self.decay * trace - 0.5 * x.candidate


def built(cell, rng=None, **arguments):
    layer = kg.GatedRNN(UNITS, cell=cell, **arguments)
    layer.build((None, None, FEATURES))
    if rng is not None:
        layer.set_weights([0.6 * rng.normal(size=w.shape) for w in layer.get_weights()])
    return layer


LINEAR = {
    "min_gru": {},
    "min_lstm": {"candidate_activation": "tanh", "zoneout": 0.2},
    "ind_rnn": {"candidate_activation": "linear", "layer_norm": True},
    Mixing: {},
}


@pytest.mark.parametrize("cell", LINEAR, ids=str)
def test_linear_equations_are_found(cell, rng):
    program = trace(built(cell, **LINEAR[cell]).cell)
    given = {
        key: rng.normal(size=(7, UNITS) if value.rows else (UNITS,))
        for key, value in program.leaves.items()
    }
    for (name, _), value in zip(program.outputs, program.forward, strict=True):
        state = leaf("state", name)
        a, b, whole = evaluate([*affine(value, state), value], given, units=UNITS)
        np.testing.assert_allclose(a * given["state", name] + b, whole, rtol=1e-12, atol=1e-12)
        other = {**given, ("state", name): rng.normal(size=(7, UNITS))}
        np.testing.assert_array_equal(evaluate([*affine(value, state)], other, units=UNITS)[0], a)


H, X = leaf("state", "h"), leaf("x", "x")


@pytest.mark.parametrize(
    "value",
    [
        apply("relu", H), H * H, apply("abs", H), X / H, apply("sum", H), apply("where", H, X, 0),
        apply("sign", H) + X, apply("maximum", H, X), apply("floor", H) * X,
    ],
    ids=str,
)  # fmt: skip
def test_what_is_not_linear(value):
    assert affine(value, H) is None


def test_a_value_without_the_leaf_and_the_leaf_itself():
    a, b = affine(apply("tanh", X), H)
    assert (a.operation, b) == ("constant", apply("tanh", X))
    assert [str(v["number"]) for v in affine(H, H)] == ["1", "0"]


def engines(layer):
    from keras_gates.engine import jax as scans
    from keras_gates.engine import parallel

    return scans.FusedEngine(layer.cell), parallel.FusedEngine(layer.cell)


def outputs_and_gradients(layer, fused, x, states, mask, training):
    """Through the layer, with an engine in the place of its own."""
    import jax

    weights = [w.value for w in layer.trainable_weights]
    seed = layer.cell.seed_generator.state
    layer._paths.fused.engine, engine_before = fused, layer._paths.fused.engine

    def loss(given):
        weights, x, states = given
        mapping = [*zip(layer.trainable_weights, weights, strict=True), (seed, seed.value)]
        with keras.StatelessScope(mapping, collect_losses=True) as scope:
            found = layer(x, initial_state=states, mask=mask, training=training)
        total = sum(ops.sum(ops.sin(y)) for y in found)
        return total + 9 * sum(scope.losses), found

    (_, found), gradients = jax.jit(jax.value_and_grad(loss, has_aux=True))((weights, x, states))
    layer._paths.fused.engine = engine_before
    assert not any(layer._paths.fused.obstacles.values())
    return [*found, *jax.tree.leaves(gradients)]


def assert_same(found, expected, tolerance=1e-5):
    for one, other in zip(found, expected, strict=True):
        scale = max(1.0, float(np.abs(other).max()))
        np.testing.assert_allclose(one, other, rtol=0, atol=tolerance * scale)


@on_jax
@pytest.mark.parametrize("options", [
    {},
    {"go_backwards": True, "dropout": 0.3},
    {"zoneout": 0.3, "activation_l1": 0.2, "candidate_l1": 0.1},
    {"zero_output_for_mask": True, "layer_norm": True},
], ids=str)  # fmt: skip
@pytest.mark.parametrize("cell", LINEAR, ids=str)
def test_it_equals_the_scans(cell, options, rng):
    import jax.numpy as jnp

    layer = built(
        cell, rng, return_sequences=True, return_state=True, seed=3, **{**LINEAR[cell], **options}
    )
    x = jnp.asarray(rng.normal(size=(*MASK.shape, FEATURES)), "float32")
    count = len(layer.cell.state_names)
    states = [jnp.asarray(rng.normal(size=(len(x), UNITS)), "float32") for _ in range(count)]
    for mask, training in ((None, False), (MASK, True)):
        expected, found = (
            outputs_and_gradients(layer, fused, x, states, mask, training)
            for fused in engines(layer)
        )
        assert_same(found, expected, 1e-4)


@on_jax
@pytest.mark.parametrize("cell", ["min_gru", "min_lstm"])
def test_long_sequences_equal_the_loop(cell, rng):
    import jax.numpy as jnp

    layer = built(cell, rng, return_sequences=True, return_state=True)
    x = jnp.asarray(rng.normal(size=(2, 4096, FEATURES)), "float32")
    states = [jnp.asarray(rng.normal(size=(2, UNITS)), "float32")]
    expected, found = (
        outputs_and_gradients(layer, fused, x, states, None, False) for fused in engines(layer)
    )
    assert_same(found, expected)


@on_jax
def test_second_derivatives_of_a_linear_scan(rng):
    import jax
    import jax.numpy as jnp

    from keras_gates.engine.parallel import linear_scan

    def loop(a, b, first):
        def step(h, at):
            h = at[0] * h + at[1]
            return h, h

        return jax.lax.scan(step, first, (a, b))[1]

    given = [jnp.asarray(rng.normal(size=s), "float32") for s in ((7, 2, 3), (7, 2, 3), (2, 3))]
    way = [jnp.asarray(rng.normal(size=g.shape), "float32") for g in given]

    def product(scan):
        def slope(*given):
            found = jax.grad(lambda *g: jnp.sum(jnp.sin(scan(*g))), (0, 1, 2))(*given)
            return sum(jnp.sum(f * w) for f, w in zip(found, way, strict=True))

        return jax.grad(slope, (0, 1, 2))(*given)

    assert_same(product(linear_scan), product(loop), 1e-4)


@on_jax
def test_which_cells_take_it_where_there_is_an_accelerator(rng, monkeypatch):
    """(There is none here: the choice is made as if.)"""
    from keras_gates.engine import parallel

    monkeypatch.setattr(engine, "_kernel_serves_jax", lambda: False)
    chosen = {
        cell: isinstance(engine.make_engine(built(cell, **options).cell), parallel.FusedEngine)
        for cell, options in (("min_gru", {}), ("gru", {}))
    }
    assert chosen == {"min_gru": False, "gru": False}
    monkeypatch.setattr(engine, "_is_accelerated", lambda: True)
    for cell, options, wanted in (
        ("min_gru", {}, True),
        (Mixing, {}, True),
        ("min_gru", {"grad_clip_norm": 1.0}, False),
        ("gru", {}, False),
        ("star", {}, False),
        ("ind_rnn", {}, False),
    ):
        layer = built(cell, **options)
        assert isinstance(engine.make_engine(layer.cell), parallel.FusedEngine) is wanted, cell
    layer = built("min_gru", backprop="fused")
    layer(rng.normal(size=(2, 4, FEATURES)))
    assert "inference, when last traced: fused, all time steps at once" in layer.explain()


@on_jax
def test_a_compiled_function_takes_scans_of_a_constant_too(rng, monkeypatch):
    import jax

    monkeypatch.setattr(engine, "_kernel_serves_jax", lambda: False)
    x, layer = rng.normal(size=(2, 4, FEATURES)).astype("float32"), built("gru")
    expected = layer(x)
    assert "Keras' own loop, because outside jit and grad" in layer.explain()
    values = (
        [v.value for v in layer.trainable_variables],
        [v.value for v in layer.non_trainable_variables],
    )
    found = jax.jit(lambda *values: layer.stateless_call(*values, x)[0])(*values)
    assert "inference, when last traced: fused, in scans" in layer.explain()
    np.testing.assert_allclose(found, expected, atol=1e-6)


@on_jax
def test_half_precision_adds_up_in_float32(rng):
    """A model of bfloat16 is near that of float32, over many steps of a slow state."""
    x = rng.normal(size=(2, 1000, FEATURES)).astype("float32")
    layers = [built("min_gru", dtype=dtype) for dtype in ("float32", "mixed_bfloat16")]
    kernel = rng.normal(size=(FEATURES, 2 * UNITS))
    for layer in layers:
        layer.set_weights([kernel, np.repeat([-4.0, 0.0], UNITS)])
    found = []
    for layer in layers:
        _, fused = engines(layer)
        layer._paths.fused.engine, layer.backprop = fused, "fused"
        found.append(np.asarray(ops.cast(layer(x), "float32")))
    np.testing.assert_allclose(found[1], found[0], atol=0.05)
