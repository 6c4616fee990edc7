"""Kernels for GPUs, made from a cell's program: which they are, and what they compute.

On JAX and PyTorch (`make test-backend`) the kernels are interpreted, and compiled as far as that
needs no GPU.
"""

import importlib.util
import os
import subprocess
import sys
import types

import keras
import numpy as np
import pytest
from helpers import (
    BACKEND,
    BATCH,
    CASES,
    FEATURES,
    FIRST_OUTPUT,
    MASK,
    TIME,
    UNITS,
    assert_close,
    built,
    drawn_cell,
    leave_out_for_time,
    weights_of,
)
from keras import ops
from reference import Clip, Sequence

import keras_gates as kg
from keras_gates import activations, checks, engine
from keras_gates.cells import CELLS
from keras_gates.cells.program import trace
from keras_gates.engine.gpu import source
from keras_gates.engine.gpu.plan import Plan, padded
from keras_gates.engine.recurrence import Dropout

INTERPRETED = BACKEND == "jax" or (
    BACKEND == "torch" and importlib.util.find_spec("triton") is not None
)
interpreted = pytest.mark.skipif(not INTERPRETED, reason="needs JAX, or PyTorch with Triton")

VARIANTS = [
    *[(cell, {}) for cell in CELLS],
    ("gru", {"reset_after": False, "layer_norm": True, "zoneout": 0.2, "activation_l1": 0.1}),
    ("lstm", {"candidate_l1": 0.1, "grad_clip_norm": 0.05, "grad_clip_at": "preactivation"}),
    ("gru", {"grad_clip_value": 0.01, "grad_clip_at": "preactivation", "reset_after": False}),
    ("simple", {"candidate_activation": "softmax", "grad_clip_norm": 0.1, "use_bias": False}),
]
variants = pytest.mark.parametrize(("cell", "options"), VARIANTS, ids=str)


def plan_of(layer, training=False):
    return Plan(layer.cell, trace(layer.cell, training=training))


def counts_of(plan):
    """How many arrays the kernels are given, backward."""
    states, u = len(plan.step.states), int(bool(plan.columns))
    last = states + len(plan.step.sums)
    return {
        "x": len(plan.step.x), "states": last, "recurrent_kernel": u, "biases": int(plan.biases),
        "vectors": len(plan.vectors), "valid": 1, "kept": len(plan.kept), "masks": 0,
        "u": len(plan.step.u), "before": states, "transposed": u, "d_steps": 1, "d_last": last,
    }  # fmt: skip


def sources(plan):
    counts = counts_of(plan)
    given = dict(list(counts.items())[: list(counts).index("u")])
    return [source.forward(plan, given, len(plan.step.states)), source.backward(plan, counts)]


@variants
def test_every_cell_has_kernels_whose_names_are_all_defined(cell, options, rng):
    leave_out_for_time(cell not in ("gru", "lstm", "ind_rnn"))
    for text in sources(plan_of(built(rng, cell=cell, dtype="float32", **options), training=True)):
        code = compile(text, cell, "exec").co_consts[0]
        called = set(code.co_names) - {"tl", "range", "float", "cast", "to", "int64", "float32"}
        path = os.path.join(os.path.dirname(source.__file__), "triton.py")
        with open(path) as file:
            there = file.read()
        missing = [n for n in called if f"def {n}(" not in there and f"tl.{n}" not in text]
        assert not missing, missing
        assert text.count("debug_barrier") >= (0 if "recurrent_kernel_0" not in text else 1)


@pytest.mark.slow
def test_all_activations_but_one_have_kernels(rng):
    refused = []
    for name in activations.names():
        layer = built(rng, cell="gru", candidate_activation=name, dtype="float32")
        try:
            sources(plan_of(layer))
        except engine.NotFusableError as reason:
            refused.append((name, str(reason)))
    assert refused == [("sparsemax", "the kernel has no operation 'sparsemax'")]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"units": 257}, "the kernel holds up to 256 units, not 257"),
        ({"dtype": "float64"}, "the kernel does not compute in float64"),
    ],
)
def test_what_the_kernels_cannot_run_has_a_reason(arguments, message):
    layer = kg.GatedRNN(**{"units": 4, "dtype": "float32", **arguments})
    layer.build((None, None, FEATURES))
    with pytest.raises(engine.NotFusableError, match=message):
        plan_of(layer)


def test_tiles_hold_all_units():
    assert [padded(n) for n in (1, 16, 17, 100, 128, 256)] == [16, 16, 32, 128, 128, 256]


# ---------------------------------------------------------------------- who takes them


@pytest.mark.skipif(BACKEND != "jax", reason="the engines of JAX")
def test_on_a_gpu_of_jax_they_run_where_they_are_asked_for(monkeypatch):
    import jax

    from keras_gates.engine import gpu, parallel
    from keras_gates.engine import jax as scans
    from keras_gates.engine.gpu import jax as kernels

    def made(forced, cell="gru", **options):
        layer = kg.GatedRNN(8, cell=cell, **options)
        layer.build((None, None, FEATURES))
        return type(engine.make_engine(layer.cell, forced))

    assert gpu
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert made(True) is kernels.FusedEngine
    assert made(False) is scans.FusedEngine
    assert made(False, "min_gru") is parallel.FusedEngine
    assert made(True, candidate_activation="sparsemax") is scans.FusedEngine
    monkeypatch.setattr(jax, "default_backend", lambda: "tpu")
    assert made(True) is scans.FusedEngine


@pytest.mark.skipif(BACKEND != "torch", reason="the engines of PyTorch")
def test_on_a_gpu_of_torch_they_run_where_they_are_asked_for(monkeypatch):
    def why_not(automatic, device):
        sequences = types.SimpleNamespace(device=types.SimpleNamespace(type=device))
        return engine._why_not_on_torch(automatic, sequences)

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    assert why_not(False, "cuda") is None
    assert "backprop='fused' alone" in why_not(True, "cuda")
    assert why_not(False, "meta") == "no kernel is made for meta, where the sequences are"
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert why_not(False, "cuda") == "on GPUs its kernel needs Triton: pip install triton"


# ---------------------------------------------------------------------- what they compute


@pytest.fixture
def interpreting(monkeypatch):
    """Layers with backprop="fused" run on the kernels, interpreted."""
    module = importlib.import_module(f"keras_gates.engine.gpu.{BACKEND}")
    options = {"interpret": True} if BACKEND == "jax" else {}
    monkeypatch.setattr(
        engine, "make_engine", lambda cell, forced=False: module.FusedEngine(cell, **options)
    )


def loss_of(wanted):
    def loss(found):
        return sum(
            ops.sum(output * ops.convert_to_tensor(d, "float32"))
            for output, d in zip(found, wanted, strict=True)
        )

    return loss


CLIPS = [
    {},
    {"grad_clip_value": 0.05},
    {"grad_clip_norm": 0.05, "grad_clip_at": "preactivation"},
    {"grad_clip_norm": 0.1, "go_backwards": True},
    {"grad_clip_value": 0.02, "grad_clip_at": "preactivation", "zero_output_for_mask": True},
    {"go_backwards": True, "zero_output_for_mask": True},
    {"grad_clip_norm": 0.1},
]


@interpreted
@pytest.mark.parametrize(("case", "options"), list(zip(CASES, CLIPS, strict=True)), ids=str)
def test_outputs_and_gradients_equal_the_float64_reference(case, options, rng, interpreting):
    layer = built(
        rng, **CASES[case][0], **options, backprop="fused", return_sequences=True, return_state=True
    )
    x = rng.normal(size=(BATCH, TIME, FEATURES))
    states = [rng.normal(size=(BATCH, UNITS)) for _ in layer.cell.state_names]
    d_outputs = rng.normal(size=(BATCH, TIME, UNITS))
    d_states = [rng.normal(size=(BATCH, UNITS)) for _ in layer.cell.state_names]
    clip = {k.replace("grad_clip_", ""): v for k, v in options.items() if "clip" in k}
    directions = {k: v for k, v in options.items() if "clip" not in k}
    reference = CASES[case][1](weights_of(layer), Clip(**clip))
    expected = Sequence(reference, first=FIRST_OUTPUT, **directions)
    outputs, last = expected.forward(x, MASK, states)
    dx, d_initial, d_weights = expected.backward(d_outputs, d_states)

    given = [value.astype("float32") for value in (x, *states)]
    found = layer(given[0], initial_state=given[1:], mask=MASK)
    for one, wanted in zip(found, [outputs, *last], strict=True):
        assert_close(one, wanted, 1e-4)
    _, of_inputs, of_weights = checks.gradients(
        layer, given, loss_of([d_outputs, *d_states]), mask=MASK
    )
    for one, wanted in zip([*of_inputs, *of_weights], [dx, *d_initial, *d_weights], strict=True):
        assert_close(one, wanted, 1e-4)
    assert "one kernel of the GPU" in layer.explain()


def both(rng, units, batch, time, mask, cell, options, dtype="float32"):
    """Outputs and gradients, of the kernels and of Keras' loop with automatic differentiation."""
    x = rng.normal(size=(batch, time, FEATURES)).astype("float32")
    found, weights = [], None
    for backprop in ("fused", "autodiff"):
        layer = kg.GatedRNN(
            units, cell=cell, **options, dtype=dtype, backprop=backprop,
            return_sequences=True, return_state=True,
        )  # fmt: skip
        layer.build(x.shape)
        if weights is None:
            weights = [0.5 * rng.normal(size=w.shape) for w in layer.get_weights()]
            states = [rng.normal(size=(batch, units)) for _ in layer.cell.state_names]
            states = [state.astype("float32") for state in states]
            d = [rng.normal(size=(batch, time, units)), *[2 * state for state in states]]
        layer.set_weights(weights)
        results = layer(x, initial_state=states, mask=mask)
        _, of_inputs, of_weights = checks.gradients(layer, [x, *states], loss_of(d), mask=mask)
        found.append([*results, *of_inputs, *of_weights])
    return found


def assert_alike(found, expected, tolerance=2e-5):
    for one, other in zip(found, expected, strict=True):
        one, other = (ops.convert_to_numpy(ops.cast(a, "float32")) for a in (one, other))
        assert one.shape == other.shape
        scale = max(1.0, float(np.abs(other).max()))
        np.testing.assert_allclose(one, other, rtol=0, atol=tolerance * scale)


@interpreted
@variants
def test_they_equal_the_loop_of_keras(cell, options, rng, interpreting):
    # Two tiles, neither full, and units that are no power of two.
    mask = rng.random((19, 5)) > 0.3
    assert_alike(*both(rng, 21, 19, 5, mask, cell, options))


@interpreted
@pytest.mark.parametrize("number", range(3))
def test_cells_drawn_at_random(number, interpreting):
    rng = np.random.default_rng(number)
    assert_alike(*both(rng, 6, 4, 5, rng.random((4, 5)) > 0.3, drawn_cell(rng), {}))


@interpreted
@pytest.mark.parametrize("name", sorted(set(activations.names()) - {"sparsemax", "exponential"}))
def test_activations(name, rng, interpreting):
    options = {"candidate_activation": name, "recurrent_initializer": "zeros"}
    assert_alike(*both(rng, 5, 3, 3, None, "simple", options), 1e-4)


@pytest.mark.skipif(BACKEND != "jax", reason="Triton's interpreter has no products in bfloat16")
def test_in_bfloat16_products_are_and_sums_are_not(rng, interpreting):
    found, expected = both(rng, 16, 5, 6, None, "gru", {}, dtype="mixed_bfloat16")
    assert_alike(found, expected, 0.05)


@interpreted
@pytest.mark.parametrize("count", [1, 2])
def test_dropout_masks_multiply_what_a_product_takes(count, rng, interpreting):
    """Against a loop in NumPy's float64."""
    from scipy.special import expit

    layer = built(rng, cell="lstm", backprop="fused", dtype="float32")
    W, U, b = weights_of(layer)
    masks = [rng.choice([0, 2.0], size=(BATCH, UNITS)) for _ in range(4 if count == 2 else 1)]
    x = rng.normal(size=(BATCH, TIME, FEATURES))
    h, c = np.zeros((2, BATCH, UNITS))
    for t in range(TIME):
        parts = [
            x[:, t] @ W[:, k] + b[k] + (h * masks[i % len(masks)]) @ U[:, k]
            for i, k in enumerate(np.arange(4 * UNITS).reshape(4, UNITS))
        ]
        i, f, o = (expit(parts[k]) for k in (0, 1, 3))
        c = f * c + i * np.tanh(parts[2])
        h = o * np.tanh(c)
    made = engine.make_engine(layer.cell)
    zero = ops.zeros((BATCH, UNITS))
    given = [ops.convert_to_tensor(m, "float32") for m in masks]
    _, last = made(
        ops.convert_to_tensor(x, "float32"), [zero, zero], None, Dropout([], given), False, False
    )
    assert_close(last[0], h, 1e-5)
    assert_close(last[1], c, 1e-5)


@interpreted
@pytest.mark.parametrize("options", [
    {"dropout": 0.3, "recurrent_dropout": 0.4, "reset_after": False},
    {"zoneout": 0.5, "recurrent_dropout": 0.4},
], ids=str)  # fmt: skip
def test_gradients_with_dropout_equal_differences(options, rng, interpreting):
    """With the masks of one seed, along a random direction of all weights."""
    layer = built(
        rng, cell="gru", backprop="fused", return_sequences=True, seed=3, dtype="float32", **options
    )
    x = rng.normal(size=(BATCH, TIME, FEATURES)).astype("float32")
    d = rng.normal(size=(BATCH, TIME, UNITS))
    made, dropout = engine.make_engine(layer.cell), drawn(layer, rng, options)
    zero = ops.zeros((BATCH, UNITS))

    def outputs(values):
        layer.set_weights(values)
        hidden, _ = made(ops.convert_to_tensor(x), [zero], MASK_TENSOR(), dropout, True, True)
        return hidden

    weights = [w.astype("float64") for w in layer.get_weights()]
    direction = [rng.normal(size=w.shape) for w in weights]
    ends = []
    for shift in (0.01, -0.01):
        moved = [w + shift * v for w, v in zip(weights, direction, strict=True)]
        ends.append((ops.convert_to_numpy(outputs(moved)).astype("float64") * d).sum())
    layer.set_weights(weights)
    found = weight_gradients(layer, made, x, zero, dropout, d)
    slope = sum(float((g * v).sum()) for g, v in zip(found, direction, strict=True))
    assert slope == pytest.approx((ends[0] - ends[1]) / 0.02, rel=5e-3)


def MASK_TENSOR():
    return ops.convert_to_tensor(MASK)


def drawn(layer, rng, options):
    def some(share, shape):
        return ops.convert_to_tensor((rng.random(shape) > share) / (1 - share), "float32")

    blocks = 3 if options.get("reset_after") is False else 1
    inputs = [some(0.3, (BATCH, FEATURES)) for _ in range("dropout" in options)]
    recurrent = [some(0.4, (BATCH, UNITS)) for _ in range(blocks)]
    kept = [ops.convert_to_tensor(rng.random((BATCH, TIME, UNITS)) > 0.5)] * ("zoneout" in options)
    return Dropout(inputs, recurrent, kept)


def weight_gradients(layer, made, x, zero, dropout, d):
    d, x = ops.convert_to_tensor(d, "float32"), ops.convert_to_tensor(x)
    if BACKEND == "jax":
        import jax

        def total(values):
            with keras.StatelessScope(list(zip(layer.weights, values, strict=True))):
                return ops.sum(made(x, [zero], MASK_TENSOR(), dropout, True)[0] * d)

        return jax.grad(total)([w.value for w in layer.weights])
    import torch

    hidden, _ = made(x, [zero], MASK_TENSOR(), dropout, True)
    values = [w.value for w in layer.weights]
    return [g.numpy() for g in torch.autograd.grad((hidden * d).sum(), values)]


@interpreted
def test_second_derivatives(rng, interpreting):
    """A penalty of gradients, as in adversarial training."""
    x = rng.normal(size=(4, 6, FEATURES)).astype("float32")
    found, weights = [], None
    for backprop in ("fused", "autodiff"):
        layer = kg.GatedRNN(5, cell="gru", backprop=backprop, return_sequences=True)
        layer.build(x.shape)
        weights = layer.get_weights() if weights is None else weights
        layer.set_weights(weights)
        found.append(of_penalty(layer, x))
    assert_alike(*found, 1e-4)


def of_penalty(layer, x):
    if BACKEND == "jax":
        import jax

        weights = [v.value for v in layer.trainable_variables]
        others = [v.value for v in layer.non_trainable_variables]

        def loss(weights, x):
            return ops.sum(layer.stateless_call(weights, others, x)[0] ** 2)

        def penalty(weights):
            return sum(ops.sum(g**2) for g in jax.grad(loss, (0, 1))(weights, x)[0])

        return jax.grad(penalty)(weights)
    import torch

    x = torch.tensor(x, requires_grad=True)
    values = [v.value for v in layer.trainable_variables]
    found = torch.autograd.grad((layer(x) ** 2).sum(), values, create_graph=True)
    return torch.autograd.grad(sum((g**2).sum() for g in found), values)


@pytest.mark.skipif(BACKEND != "jax", reason="a transformation of JAX")
def test_gradients_of_each_sequence_of_a_batch(rng, interpreting):
    import jax

    layer = built(rng, cell="lstm", backprop="fused", dtype="float32")
    weights = [v.value for v in layer.trainable_variables]
    others = [v.value for v in layer.non_trainable_variables]
    x = rng.normal(size=(3, 4, FEATURES)).astype("float32")

    def loss(weights, x):
        return ops.sum(layer.stateless_call(weights, others, x)[0] ** 2)

    each = jax.vmap(jax.grad(lambda w, x: loss(w, x[None])), (None, 0))(weights, x)
    assert_alike([g.sum(0) for g in each], jax.grad(loss)(weights, x))


@interpreted
def test_a_batch_of_each_length_and_a_single_step(rng, interpreting):
    layer = built(rng, cell="gru", backprop="fused", dtype="float32")
    whole = rng.normal(size=(17, 4, FEATURES)).astype("float32")
    expected = ops.convert_to_numpy(layer(whole))
    np.testing.assert_allclose(ops.convert_to_numpy(layer(whole[:1])), expected[:1], atol=1e-6)
    stepwise = [ops.zeros((17, UNITS))]
    for t in range(4):
        stepwise = [layer(whole[:, t : t + 1], initial_state=stepwise)]
    np.testing.assert_allclose(ops.convert_to_numpy(stepwise[0]), expected, atol=1e-6)


# ---------------------------------------------------------------------- compiled without a GPU


@pytest.mark.skipif(BACKEND != "jax", reason="Pallas")
@variants
def test_pallas_translates_them_for_gpus(cell, options):
    import jax
    import jax.numpy as jnp

    from keras_gates.engine.gpu import jax as kernels

    layer = kg.GatedRNN(100, cell=cell, dtype="mixed_bfloat16", **options)
    layer.build((None, None, FEATURES))
    made = kernels.FusedEngine(layer.cell)
    count = len(layer.cell.state_names)
    states = [jnp.zeros((20, 100))] * count + [jnp.zeros((20, 1))] * len(layer.cell.penalties)
    mask = jnp.ones((20, 7), bool)

    def loss(x):
        hidden, _ = made(x, states, mask, Dropout([], []), True)
        return hidden.astype("float32").sum()

    x = jnp.zeros((20, 7, FEATURES), "bfloat16")
    lowered = jax.jit(jax.grad(loss)).trace(x).lower(lowering_platforms=("cuda",)).as_text()
    assert lowered.count("gated_rnn_forward") == lowered.count("gated_rnn_backward") > 0


@pytest.mark.skipif(not INTERPRETED or BACKEND != "torch", reason="an operation of PyTorch")
def test_the_launch_is_a_well_made_operation_of_pytorch(rng):
    import torch

    from keras_gates.engine.gpu import triton as kernels

    plan = plan_of(built(rng, cell="simple", dtype="float32"))
    given = {"x": 1, "states": 1, "recurrent_kernel": 1, "biases": 0, "vectors": 0, "valid": 0}
    text = source.forward(plan, {**given, "kept": 0, "masks": 0}, 1)
    made = kernels.kernel(text, UNITS)
    arrays = [torch.randn(TIME, BATCH, UNITS), torch.randn(BATCH, UNITS), torch.randn(UNITS, UNITS)]
    results = [torch.zeros(TIME, BATCH, UNITS), *torch.zeros(2, BATCH, UNITS).unbind()]
    operation = torch.ops.keras_gates.launch.default
    torch.library.opcheck(operation, (made.number, TIME, BATCH, arrays, results))
    operation(made.number, TIME, BATCH, arrays, results)
    x, h, u = (array.double() for array in arrays)
    for t in range(TIME):
        h = torch.tanh(x[t] + h @ u)
        torch.testing.assert_close(results[0][t].double(), h, rtol=0, atol=1e-5)


COMPILED = """
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

import keras_gates as kg
from test_gpu import VARIANTS, plan_of, sources
from keras_gates.engine.gpu import triton as kernels

# What is as it is in the layer's compute dtype.
PROJECTED = ("x_", "u_", "recurrent_kernel_", "transposed_")

for dtype, units, generation, most, (cell, options) in [
    ("fp32", 256, 90, 227, ("lstm", {})), ("fp32", 256, 80, 163, ("gru", {"reset_after": False})),
    ("fp32", 33, 90, 227, VARIANTS[-4]), ("fp32", 64, 80, 163, ("n_brc", {})),
    ("fp32", 100, 90, 227, VARIANTS[-3]), ("bf16", 128, 90, 227, ("lstm", {})),
    ("bf16", 33, 80, 163, VARIANTS[-4]),
]:
    layer = kg.GatedRNN(units, cell=cell, **options)
    layer.build((None, None, 3))
    for text in sources(plan_of(layer, training=True)):
        made = kernels.kernel(text, units)
        kinds = {
            name: f"*{dtype if name.startswith(PROJECTED) else 'fp32'}"
            for name in made.function.arg_names
        } | {"time": "i32", "batch": "i32"}
        compiled = triton.compile(
            ASTSource(fn=made.function, signature=kinds),
            target=GPUTarget("cuda", generation, 32),
            options={"num_warps": made.warps, "num_stages": 1},
        )
        assert len(compiled.asm["cubin"]) > 1000
        assert compiled.metadata.shared <= most * 1024, (cell, compiled.metadata.shared)
print("compiled")
"""


@pytest.mark.skipif(not INTERPRETED or BACKEND != "torch", reason="Triton")
def test_triton_compiles_them_for_two_generations_of_gpus(tmp_path):
    path = os.pathsep.join([os.path.dirname(__file__), *filter(None, sys.path)])
    done = subprocess.run(
        [sys.executable, "-c", COMPILED],
        env={**os.environ, "PYTHONPATH": path, "TRITON_CACHE_DIR": str(tmp_path)}
        | {"TRITON_INTERPRET": "0"},
        capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "compiled"
