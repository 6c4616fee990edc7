"""Profiles of activations: what is known of them against what is measured, and the verdicts."""

import dataclasses
import math

import keras
import numpy as np
import pytest
import reference
from helpers import MGUCell, leave_out_for_time, run_python

import keras_gates as kg
from keras_gates.activations import ANALYTIC, functions, measure, profile
from keras_gates.verdicts import LEVELS, probe

x = np.linspace(-6, 6, 241)
# By hand, in NumPy.
EXPECTED = {
    "tanh_gate": (np.tanh(x) + 1) / 2,
    "softsign_gate": (x / (1 + np.abs(x)) + 1) / 2,
    "relu_gate": np.clip(x, 0, 1),
    "hard_sigmoid_keras2": np.clip(0.2 * x + 0.5, 0, 1),
    "fast_gate": reference.sigmoid(np.sinh(np.clip(x, -6, 6))),
    "penalized_tanh": np.where(x > 0, np.tanh(x), 0.25 * np.tanh(x)),
    "min_gru_g": np.where(x >= 0, x + 0.5, reference.sigmoid(x)),
}


def own_names():
    return [name for name in kg.activations.names() if hasattr(functions, name)]


def test_every_activation_is_tested():
    assert sorted(EXPECTED) == own_names()


@pytest.mark.parametrize("name", EXPECTED)
def test_values(name):
    given = keras.ops.convert_to_numpy(getattr(kg.activations, name)(x.astype("float32")))
    np.testing.assert_allclose(given, EXPECTED[name], atol=2e-6)
    assert np.isfinite(keras.ops.convert_to_numpy(getattr(kg.activations, name)(1e4 * x))).all()


@pytest.mark.parametrize("name", EXPECTED)
def test_a_layer_with_it_by_name_is_saved_and_loaded(name, tmp_path):
    arguments = {"gate_activation": name, "candidate_activation": name}
    model = keras.Sequential([keras.Input((4, 3)), kg.GatedRNN(5, **arguments)])
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert loaded.layers[0].candidate_activation is getattr(kg.activations, name)
    frames = np.random.default_rng(0).normal(size=(2, 4, 3)).astype("float32")
    np.testing.assert_array_equal(
        model.predict(frames, verbose=0), loaded.predict(frames, verbose=0)
    )


@pytest.mark.parametrize("name", ANALYTIC)
def test_what_is_known_is_what_is_measured(name):
    known, measured = ANALYTIC[name], measure(kg.activations.get(name, "activation"))
    assert profile(name) is known
    for field in dataclasses.fields(known):
        a, b = getattr(known, field.name), getattr(measured, field.name)
        if field.name == "max_slope_at" and known.max_slope == 1 and name == "softplus":
            continue  # comes close to 1 nowhere in particular
        if isinstance(b, float):
            # Slopes and widths are measured in cells of 1/256.
            assert a == b or a == pytest.approx(b, abs=0.02 if "width" in field.name else 4e-3), (
                field.name
            )
        else:
            assert a == b, field.name


def test_a_profile_of_any_function_and_layer():
    found = profile(lambda x: 3 * keras.ops.sin(x) + 1)
    assert (found.lower, found.upper) == pytest.approx((-2, 4), abs=1e-3)
    assert (found.max_slope, found.value_at_zero) == pytest.approx((3, 1), abs=1e-3)
    assert not found.monotone
    assert not found.zero_centred
    assert found.bounded
    cubic = profile(lambda x: x**3)
    assert (cubic.lower, cubic.upper) == (-math.inf, math.inf)
    assert cubic.zero_centred
    assert cubic.monotone
    assert not cubic.bounded_above

    prelu = keras.layers.PReLU(alpha_initializer=keras.initializers.Constant(0.25))
    assert profile(prelu).slope_at_zero == pytest.approx(0.625)
    assert not prelu.built, "a profile leaves the layer as it is"
    prelu.build((None, 3))
    prelu.set_weights([np.array([0.5, 0.1, 0.2])])
    assert profile(prelu).slope_at_zero == pytest.approx(0.75)


def test_profiles_can_be_made_while_a_graph_is_traced():
    tf = pytest.importorskip("tensorflow")
    if keras.backend.backend() != "tensorflow":
        pytest.skip("a graph of TensorFlow")
    found = []

    @tf.function
    def traced():
        found.append(profile(lambda x: keras.ops.tanh(2 * x)).max_slope)
        return tf.constant(0)

    traced()
    assert found == [pytest.approx(2, abs=1e-3)]


@pytest.mark.parametrize("name", ["softmax", "log_softmax", "sparsemax"])
def test_what_is_not_elementwise_has_no_profile(name):
    with pytest.raises(ValueError, match=f"elementwise.*mixes units. Received: {name}"):
        profile(name)


def test_names_that_no_cell_can_use_say_why():
    """And all others keep the shape."""
    for name in kg.activations.names():
        assert kg.activations.get(name, "a")(keras.ops.ones((2, 4))).shape == (2, 4)
    for make in (kg.check_activations, lambda **given: kg.GatedRNN(4, **given)):
        with pytest.raises(ValueError, match="`candidate_activation` must keep .* 'glu' halves"):
            make(candidate_activation="glu")
        with pytest.raises(ValueError, match="gate_activation.*'threshold' needs further.*lambda"):
            make(gate_activation="threshold")


def test_an_error_of_the_function_itself_is_shown():
    def looked_up(x):
        raise KeyError("no such table")

    with pytest.raises(
        ValueError, match="(?s)Received: looked_up, which raised KeyError.*no such table"
    ) as caught:
        profile(looked_up)
    assert isinstance(caught.value.__cause__, KeyError)
    said = r"Received: <lambda>, with values of shape \(\d+,\) for \(\d+, 2\)"
    with pytest.raises(ValueError, match=said):
        profile(lambda x: x[:, 0])


def test_unknown_names_are_refused():
    with pytest.raises(ValueError, match="Unknown name: activation='tanhgate'.*'tanh_gate'"):
        profile("tanhgate")


# ---------------------------------------------------------------------- verdicts

SOUND = [
    ("gru", "sigmoid", "tanh"),
    ("gru", "hard_sigmoid", "softsign"),
    ("lstm", "tanh_gate", "hard_tanh"),
    ("simple", None, "tanh"),
]
UNSTABLE = [
    ("gru", "relu", "tanh", "the gate update .relu. has no upper bound, and h' = z . h"),
    ("lstm", "softplus", "tanh", "the gate forget .softplus. has no upper bound, and c' = f . c"),
    ("gru", "tanh", "tanh", "the gate update .tanh. can be negative, and h' = z . h"),
    (
        "lstm",
        "tanh",
        "elu",
        "can be negative, .* recurrent products, the states can grow by a factor of 2 per",
    ),
    (
        "lstm",
        "sigmoid",
        "relu",
        "^with the candidate relu the states can grow by a factor of 2 per",
    ),
    ("lstm", {"input": "exponential"}, "tanh", "^with the gate input .exponential. the states can"),
    ("lstm", {"output": "exponential"}, "relu", "^with the gate output .exp.* and the candidate r"),
]
CAUTION = [
    ("simple", None, "relu", "no gate weighs old against new"),
    ("gru", "sigmoid", "relu", "the candidate relu is unbounded"),
    ("gru", "sigmoid", "sigmoid", "never negative"),
    ("gru", "relu_gate", "tanh", "shut, with a slope of zero, for 50% of its inputs"),
    ("lstm", {"input": "relu"}, "tanh", "the gate input .relu."),
    ("gru", {"reset": "tanh"}, "tanh", "the gate reset .tanh. has values in .-1, 1."),
    ("lstm", {"forget": "tanh"}, "tanh", "can be negative.*the hidden state stays bounded all the"),
    ("gru", "sigmoid", "softmax", "^the candidate .softmax. mixes units.*elementwise"),
    ("gru", "softmax", "tanh", "^the gate update .softmax. mixes units"),
]


@pytest.mark.parametrize(("cell", "gate", "candidate"), SOUND)
def test_sound(cell, gate, candidate):
    verdict = kg.check_activations(cell, gate, candidate)
    assert (verdict.level, verdict.reasons, verdict.suggestions) == ("sound", (), [])
    assert verdict.growth <= 1.05
    assert 0 < verdict.spectral_radius < 1.2


@pytest.mark.parametrize(("cell", "gate", "candidate", "reason"), UNSTABLE)
def test_unstable(cell, gate, candidate, reason):
    verdict = kg.check_activations(cell, gate, candidate)
    assert verdict.level == verdict.reasons[0].level == "unstable"
    assert any(r.level == "unstable" and _matches(reason, r.what) for r in verdict.reasons)
    assert verdict.suggestions


@pytest.mark.parametrize(("cell", "gate", "candidate", "reason"), CAUTION)
def test_caution(cell, gate, candidate, reason):
    verdict = kg.check_activations(cell, gate, candidate)
    assert verdict.level == "caution"
    assert any(_matches(reason, r.what) for r in verdict.reasons)


@pytest.mark.parametrize("as_layer", [True, False])
def test_layers_and_cells_of_keras_are_judged(as_layer):
    for name, layer in (("gru", keras.layers.GRU), ("lstm", keras.layers.LSTM)):
        given = layer(4, activation="relu", recurrent_activation="tanh")
        found = kg.check_activations(given if as_layer else given.cell)
        expected = kg.check_activations(name, "tanh", "relu")
        assert (found.level, found.reasons) == (expected.level, expected.reasons)
    function = keras.layers.SimpleRNN(4, activation=lambda x: keras.ops.tanh(x))
    assert kg.check_activations(function if as_layer else function.cell).level == "sound"
    assert kg.check_activations(kg.GatedRNN(4)).level == "sound"
    with pytest.raises(ValueError, match="`cell` must be one of"):
        kg.check_activations(keras.layers.Dense(4))
    with pytest.raises(ValueError, match="`cell` is an instance already"):
        kg.check_activations(keras.layers.GRU(4), "relu")


def test_a_verdict_does_not_contradict_itself():
    """Where a gate makes the state grow, nothing is said to keep the candidate stable."""
    verdict = kg.check_activations("gru", "relu", "relu")
    assert "Clipping gradients does not help" in verdict.suggestions[0]
    assert not any("Keep it stable" in advice for advice in verdict.suggestions)
    assert "is left after" not in str(verdict)  # at initialization, before it has grown


def test_only_what_makes_the_states_grow_is_to_be_changed():
    verdict = kg.check_activations("lstm", {"input": "exponential"}, "tanh")
    assert "gates with values in [0, 1]" in verdict.suggestions[0]
    assert "candidate" not in verdict.suggestions[0]
    assert "gates" not in kg.check_activations("lstm", None, "relu").suggestions[0]
    unknown = kg.check_activations("gru", "softmax")
    assert math.isnan(unknown.growth)
    assert "carried on" not in str(unknown)


def _matches(pattern, text):
    import re

    return re.search(pattern, text) is not None


def test_a_bounded_output_activation_bounds_what_the_candidate_does_not():
    assert kg.check_activations("lstm", None, "relu").growth == pytest.approx(2, abs=0.1)
    bounded = kg.check_activations("lstm", None, "relu", "tanh")
    assert (bounded.growth, bounded.level) == (1, "caution")


def test_clipping_and_identity_change_the_verdict_and_the_advice():
    assert kg.check_activations("gru", "tanh").level == "unstable"
    assert kg.check_activations("gru", "tanh", grad_clip_norm=1.0).level == "caution"
    plain = kg.check_activations("simple", candidate_activation="relu")
    helped = kg.check_activations(
        "simple", candidate_activation="relu", grad_clip_norm=1.0, recurrent_initializer="identity"
    )
    for cure in ("grad_clip_norm", "identity"):
        assert cure in " ".join(plain.suggestions)
        assert cure not in " ".join(helped.suggestions)
    assert "activation_l1" in " ".join(helped.suggestions)


def test_carry_of_a_cell_of_ones_own():
    class Leaky(kg.SimpleRNNCell):
        """h' = 1.5 * h + φ(a)"""

        def update(self, x, u, states):
            return (1.5 * states[0] + self.candidate(x.candidate + u.candidate),)

    verdict = kg.check_activations(Leaky, candidate_activation="tanh")
    assert verdict.carry == {"hidden": (1.5, 1.5)}
    assert verdict.growth == pytest.approx(1.5, abs=0.01)
    assert verdict.level == "unstable"
    assert "h' = 1.5 * h" in verdict.reasons[0].what


def test_an_option_of_a_subclass_changes_the_verdict():
    """No verdict is shared by what merely looks alike."""

    class Scaled(kg.GRUCell):
        def __init__(self, units, *, gain=1.0, **kwargs):
            super().__init__(units, **kwargs)
            self.gain = gain

        def update(self, x, u, states):
            (h,) = super().update(x, u, states)
            return (self.gain * h,)

    for cell in (Scaled, lambda **k: Scaled(3, **k)):
        judge = kg.check_activations if isinstance(cell, type) else None
        for gain, level in ((1.0, "sound"), (3.0, "unstable"), (1.0, "sound")):
            verdict = judge(cell, gain=gain) if judge else kg.check_activations(cell(gain=gain))
            assert verdict.level == level
            assert verdict.carry == {"hidden": (0, gain)}


class Peepholes(kg.GatedCell):
    """c' = f * c + (1 - f) * n, h' = tanh(c'), where f sees c through weights of its own."""

    blocks = ("forget", "candidate")
    state_names = ("hidden", "cell")

    def build(self, input_shape):
        super().build(input_shape)
        self.peephole = self.add_weight(shape=(self.units,), initializer="ones", name="peephole")

    def update(self, x, u, states):
        _, c = states
        f = self.gate("forget", x.forget + u.forget + self.peephole * c)
        c = self.clip_state(f * c + (1 - f) * self.candidate(x.candidate + u.candidate))
        return keras.ops.tanh(c), c


def test_cells_with_weights_of_their_own():
    sound = kg.check_activations(Peepholes)
    assert (sound.level, sound.growth) == ("sound", 1)
    assert 0 < sound.spectral_radius < 1.5
    cell = Peepholes(5, gate_activation="relu")
    unstable = kg.check_activations(cell)
    assert unstable.level == "unstable"
    assert "the gate forget (relu) has no upper bound" in unstable.reasons[0].what
    assert not cell.built
    assert kg.check_activations(Peepholes, "relu").level == "unstable"


def test_normalization_over_units():
    class Normalized(kg.GatedCell):
        blocks = ("update", "candidate")

        def update(self, x, u, states):
            (h,) = states
            z = self.gate("update", x.update + u.update)
            n = x.candidate + u.candidate
            n = n - keras.ops.mean(n, axis=-1, keepdims=True)
            n = n / keras.ops.sqrt(0.1 + keras.ops.mean(n * n, axis=-1, keepdims=True))
            return (z * h + (1 - z) * self.candidate(n),)

    assert kg.check_activations(Normalized).carry == {"hidden": (0, 1)}
    assert kg.check_activations(Normalized).level == "sound"
    assert kg.check_activations(Normalized, "relu").level == "unstable"


def test_a_candidate_that_is_added_without_its_activation_is_linear():
    class Leaky(kg.GatedCell):
        """Like a minimal GRU, whose `update` has what it is given to make of n."""

        blocks = ("update", "candidate")

        def update(self, x, u, states):
            (h,) = states
            z = self.gate("update", x.update + u.update)
            return made(self, h, z, x.candidate + u.candidate)

    for made, level in (  # noqa: B007
        (lambda cell, h, z, n: (z * h + (1 - z) * cell.candidate(n),), "sound"),
        (lambda cell, h, z, n: (z * h + (1 - z) * n,), "caution"),
        (lambda cell, h, z, n: (keras.ops.tanh(z * h + (1 - z) * n),), "sound"),
    ):
        verdict = kg.check_activations(Leaky)
        assert verdict.level == level
        assert all("the candidate linear is unbounded" in r.what for r in verdict.reasons)
    made = lambda cell, h, z, n: (z * h + (1 - z) * n,)  # noqa: E731
    assert kg.check_activations(Leaky, steps=150).level == "unstable"


def test_what_is_not_shown_of_states_that_run_off():
    class Kept(kg.GatedCell):
        blocks = ("update", "keep", "candidate")

        def update(self, x, u, states):
            (h,) = states
            z, k = (self.gate(n, getattr(x, n) + getattr(u, n)) for n in ("update", "keep"))
            return (z * k * h + self.candidate(x.candidate),)

    verdict = kg.check_activations(Kept, "relu")
    assert "the gates update (relu), keep (relu) have no upper bound" in verdict.reasons[0].what
    for shown in (str(verdict), str(kg.check_activations("gru", "linear"))):
        for figure in ("spectral radius", "where the states rest", "N(0, 1)"):
            assert figure not in shown
    assert "spectral radius" in str(kg.check_activations(Kept, "hard_sigmoid"))


def test_constants_of_one_number_per_unit_in_an_instance():
    class Varied(kg.GatedCell):
        def update(self, x, u, states):
            leak = np.linspace(0.5, 0.9, self.units)
            return (leak * states[0] + (1 - leak) * self.candidate(x.candidate + u.candidate),)

    for cell in (Varied, Varied(8), kg.GatedRNN(3, cell=Varied)):
        verdict = kg.check_activations(cell)
        assert (verdict.level, verdict.carry) == ("sound", {"hidden": (0.5, 0.5)})


def test_equations_that_cannot_be_traced():
    class Rolling(kg.SimpleRNNCell):
        def update(self, x, u, states):
            return (keras.ops.roll(self.candidate(x.candidate + u.candidate), 1, axis=-1),)

    verdict = kg.check_activations(Rolling)
    assert (verdict.level, verdict.spectral_radius) == ("caution", None)
    assert "cannot be traced: no program knows the operation Roll" in verdict.reasons[0].what


@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="TensorFlow's own functions")
def test_activations_that_cannot_be_traced_are_judged_by_their_values():
    import tensorflow as tf

    def raw_relu(x):
        return tf.maximum(x, 0 * x)

    verdict = kg.check_activations("gru", raw_relu, lambda x: tf.tanh(x))
    known = kg.check_activations("gru", "relu")
    assert (verdict.level, verdict.carry, verdict.growth) == ("unstable", known.carry, known.growth)
    assert verdict.spectral_radius == pytest.approx(known.spectral_radius, rel=1e-3)


@pytest.mark.parametrize("cell", ["gru", "lstm", "simple"])
def test_a_layer_as_activation(cell):
    verdict = kg.check_activations(cell, candidate_activation=keras.layers.PReLU())
    assert verdict.candidate == "PReLU"
    assert verdict.level in ("caution", "unstable")
    gates = None if cell == "simple" else keras.layers.Activation("hard_sigmoid")
    assert kg.check_activations(cell, gates, "tanh").level == "sound"


@pytest.mark.parametrize(
    "layer",
    [
        lambda: keras.layers.Lambda(lambda a: keras.ops.tanh(a)),
        lambda: keras.layers.Activation(lambda a: keras.ops.tanh(a)),
    ],
)
def test_a_layer_that_keras_cannot_copy(layer):
    layer = layer()
    assert profile(layer).upper == 1
    assert kg.check_activations("gru", None, layer).level == "sound"
    assert kg.check_activations("lstm", None, "relu", layer).growth == 1


@pytest.mark.parametrize("cell", ["gru", "lstm", "simple"])
@pytest.mark.filterwarnings("ignore::keras_gates.UnstableActivationsWarning")
def test_judging_leaves_a_layer_as_activation_as_it_is(cell):
    leave_out_for_time(cell != "gru")
    slope = keras.layers.PReLU()
    given = {"candidate_activation": slope}
    if cell == "lstm":
        given["output_activation"] = keras.layers.PReLU()
    if cell != "simple":
        given["gate_activation"] = {"input" if cell == "lstm" else "reset": keras.layers.PReLU()}
    kg.check_activations(cell, **given)
    layer = kg.GatedRNN(4, cell=cell, **given)
    used = layer.cell.activations_in_use()
    assert not any(each.built for each in used if isinstance(each, keras.Layer))
    layer.build((None, 5, 3))
    assert all(each.alpha.shape == (4,) for each in used if isinstance(each, keras.Layer))
    # Built, it is judged by the weights of its first unit.
    slope.set_weights([np.array([-1.0, 0, 0, 0])])
    for verdict in (kg.check_activations(layer.cell), kg.check_activations(cell, **given)):
        assert any("candidate PReLU is never negative" in r.what for r in verdict.reasons)
    assert slope in layer.cell.activations_in_use()
    assert slope.alpha.shape == (4,)


@pytest.mark.parametrize("dtype", ["float16", "mixed_bfloat16"])
@pytest.mark.filterwarnings(
    "ignore::keras_gates.UnstableActivationsWarning", "error::RuntimeWarning"
)
def test_a_verdict_is_the_same_in_half_precision(dtype, monkeypatch):
    for candidate in ("relu", keras.layers.LeakyReLU(0.1)):
        monkeypatch.setattr("keras_gates.verdicts.probe._found", {})
        layer = kg.GatedRNN(4, cell="lstm", candidate_activation=candidate, dtype=dtype)
        verdict = kg.check_activations(layer.cell)
        assert (verdict.growth, verdict.carry["cell"]) == (2, (0, 1))


def test_an_instance_of_a_cell_is_judged_as_it_is():
    choice = ("tanh_gate", "relu")
    layer = kg.GatedRNN(
        7, gate_activation=choice[0], candidate_activation=choice[1], grad_clip_norm=1.0
    )
    verdict = kg.check_activations(layer.cell, steps=30)
    expected = kg.check_activations("gru", *choice, grad_clip_norm=1.0, steps=30, units=7)
    assert verdict == expected
    assert 0 < verdict.memory < verdict.memory_with_uniform_gates
    assert 0 < verdict.spectral_radius < 1
    layer.build((None, None, 3))
    layer.set_weights([9 * w for w in layer.get_weights()])  # the estimates are of a new one
    assert kg.check_activations(layer.cell, steps=30) == expected
    with pytest.raises(
        ValueError, match="is an instance already.*beside it: gate_activation. Give"
    ):
        kg.check_activations(layer.cell, "relu")
    with pytest.raises(ValueError, match="beside it: units. Give"):
        kg.check_activations(layer, units=64)
    assert kg.check_activations(layer, steps=30) == verdict


def test_oscillating_growth_is_growth():
    found = profile(lambda x: x * keras.ops.sin(x))
    assert (found.lower, found.upper) == (-math.inf, math.inf)
    assert found.far_slope == pytest.approx(1, abs=0.1)
    assert profile(lambda x: keras.ops.arcsinh(x)).upper == math.inf
    verdict = kg.check_activations("gru", None, lambda x: x * keras.ops.sin(x))
    assert verdict.level == "caution"


@pytest.mark.parametrize("cell", ["gru", "simple"])
def test_an_exponential_candidate_is_what_is_blamed(cell):
    verdict = kg.check_activations(cell, candidate_activation="exponential")
    assert verdict.level == "unstable"
    assert verdict.reasons[0].what.startswith("with the candidate exponential the states can grow")


def test_an_activation_without_a_value_is_unstable():
    verdict = kg.check_activations("gru", None, lambda x: keras.ops.log(x))
    assert verdict.level == "unstable"
    assert "NaN for some finite inputs" in verdict.reasons[0].what


def test_reasons_of_cells_of_ones_own():
    class Integrator(kg.SimpleRNNCell):
        """h' = h + φ(x W + h U + b)"""

        def update(self, x, u, states):
            return (states[0] + self.candidate(x.candidate + u.candidate),)

    relu = kg.check_activations(MGUCell, "relu", "tanh").reasons
    factor = "the factor by which the hidden state is carried on, set by the gate forget (relu),"
    assert relu[0].what.startswith(f"{factor} can be negative, and h' = (1 - f) * h + f * n")
    assert "tanh" not in relu[0].advice
    assert not any("candidate" in reason.what for reason in relu)
    tanh = kg.check_activations(MGUCell, "tanh", "tanh").reasons
    assert "set by the gate forget (tanh), reaches 2, and h' = " in tanh[0].what
    assert kg.check_activations(MGUCell, "sigmoid", "tanh").level == "sound"
    (adds_up,) = kg.check_activations(Integrator, candidate_activation="tanh").reasons
    assert (adds_up.level, "nothing is forgotten" in adds_up.what) == ("caution", True)


def test_what_update_never_calls_is_not_judged():
    class Bare(kg.LSTMCell):
        def update(self, x, u, states):
            i, f = (self.gate(k, getattr(x, k) + getattr(u, k)) for k in ("input", "forget"))
            c = f * states[1] + i * keras.ops.tanh(x.candidate + u.candidate)
            return keras.ops.tanh(c), c

    against = {"gate_activation": {"output": "relu"}, "output_activation": "relu"}
    verdict = kg.check_activations(Bare(4, candidate_activation="sigmoid", **against))
    assert (verdict.level, verdict.reasons) == ("sound", ())
    assert verdict.gates == dict.fromkeys(("input", "forget"), "sigmoid")
    assert (verdict.candidate, verdict.output) == (None, None)
    assert str(verdict).startswith("Bare: gates sigmoid: sound")
    assert verdict.unused == {
        "gate_activation['output']": "self.gate('output')",
        "candidate_activation": "self.candidate",
        "output_activation": "self.output_activation",
    }
    for call in verdict.unused.values():
        assert f"`update` never calls {call}, so " in str(verdict)


def test_the_spectral_radius_is_that_of_the_jacobian():
    """Of a linear recurrence it is the one of its recurrent matrix, whatever the inputs."""
    verdict = kg.check_activations(
        "simple",
        candidate_activation="linear",
        recurrent_initializer=keras.initializers.Identity(0.8),
    )
    assert verdict.spectral_radius == pytest.approx(0.8, abs=1e-3)
    again = kg.check_activations("gru")
    assert again.spectral_radius == kg.check_activations("gru").spectral_radius


def test_the_probability_of_divergence_rises_with_what_makes_states_grow():
    def estimated(*pair, **options):
        return kg.check_activations(*pair, **options).divergence

    default, relu = estimated("gru"), estimated("gru", "relu", "tanh")
    assert default < 0.01 < 0.3 < relu
    assert estimated("lstm", "tanh", "tanh") < 0.02 < estimated("lstm", "tanh", "linear")
    assert estimated("lstm", "sigmoid", "linear", steps=8) < estimated("lstm", "sigmoid", "linear")
    assert relu == estimated("gru", "relu", "tanh", units=7)
    shown = str(kg.check_activations("gru", "relu", "tanh"))
    assert f"ends in NaN or a huge loss (Adam at 0.01, nothing clipped): about {relu:.0%}" in shown
    assert "nothing clipped): below 1%" in str(kg.check_activations("gru"))


def test_a_candidate_without_any_bound_is_unstable_on_long_sequences():
    def verdict(candidate, steps=120, **options):
        return kg.check_activations("gru", None, candidate, steps=steps, units=4, **options)

    assert verdict("linear", 64).level == "caution"
    found = verdict("linear")
    assert found.level == found.reasons[0].level == "unstable"
    assert "has no bound on either side, and 120 steps are many for that" in str(found)
    assert "grad_clip_norm" in found.suggestions[0]
    clipped = verdict("linear", grad_clip_norm=1.0)
    assert clipped.level == "unstable"
    assert "grad_clip_norm" not in clipped.suggestions[0]
    for candidate in ("relu", "leaky_relu"):  # as in examples/verdicts.py
        assert verdict(candidate).level == "caution"


@pytest.mark.parametrize("cell", ["min_gru", "simple"])
def test_length_does_not_matter_where_no_state_comes_back_between_gates(cell):
    found = kg.check_activations(cell, None, "linear", steps=120, units=4)
    assert found.level != "unstable"


def test_states_of_a_linear_recurrence_under_stress():
    """h' = 3 * 0.9 h + ... grows by the factor 2.7 per step, up to the noise of the weights."""
    cell = kg.SimpleRNNCell(
        6,
        candidate_activation="linear",
        recurrent_initializer=keras.initializers.Identity(0.9),
        dtype="float64",
    )
    cell.build((None, 2))
    size, log = probe.stressed(cell, 14)
    assert log * 64 / 14 == pytest.approx(math.log(2.7), abs=0.2)
    assert 14 * math.log10(2.7) - 1 < size < 14 * math.log10(2.7) + 3


def test_judging_an_instance_leaves_its_weights_and_those_of_its_activations_alone():
    prelu = keras.layers.PReLU()
    cell = kg.GRUCell(4, candidate_activation=prelu)
    cell.build((None, 3))
    before = [np.array(w) for w in cell.get_weights()]
    assert len(before) == 4  # that of PReLU is among them
    kg.check_activations(cell)
    for was, weight in zip(before, cell.get_weights(), strict=True):
        np.testing.assert_array_equal(was, weight)


def test_the_contraction_is_that_of_the_jacobian_at_rest():
    def found(**arguments):
        return kg.check_activations("simple", **arguments).contraction

    identity = keras.initializers.Identity
    linear = {"candidate_activation": "linear"}
    assert found(**linear, recurrent_initializer=identity(0.9)) == pytest.approx(0.9, abs=1e-4)
    # At a kink differences of several units at once, which no derivative says.
    assert found(candidate_activation="relu", recurrent_initializer="identity") == pytest.approx(1)
    for name in ("relu", "leaky_relu"):
        layer = kg.GatedRNN(64, "simple", candidate_activation=name)
        layer.build((None, None, 64))
        states = [1e-3 * np.random.default_rng(1).normal(size=(9, 64)).astype("float32")]
        for _ in range(50):
            states.append(layer(np.zeros((9, 1, 64), "float32"), initial_state=states[-1]))
        sizes = [np.linalg.norm(one, axis=1) for one in states]
        factor = np.exp(np.log(sizes[-1] / sizes[25]) / 25).max()
        verdict = kg.check_activations("simple", candidate_activation=name)
        assert verdict.contraction == pytest.approx(factor, rel=0.1)
        assert verdict.contraction < 1
    # At rest h = tanh(0.5 h + 1), whose derivative is 0.5 (1 - h^2).
    h = 0.0
    for _ in range(99):
        h = math.tanh(0.5 * h + 1)
    rest = found(recurrent_initializer=identity(0.5), bias_initializer="ones")
    assert rest == pytest.approx(0.5 * (1 - h**2), abs=1e-4)
    # h' = 1 - h is 1, 0, 1, ...
    turns = {"recurrent_initializer": identity(-1.0), "bias_initializer": "ones"}
    assert found(**linear, **turns) is None
    said = str(kg.check_activations("simple", **linear, recurrent_initializer=identity(0.9)))
    assert "a difference in them changes by a factor of 0.90 per step in the long run" in said


def test_equations_that_are_normalized_are_judged_whatever_the_number_of_units():
    """Of three blocks of 8 units a value is at most sqrt(23) standard deviations above the mean."""
    most = 1 / (1 + math.exp(-math.sqrt(23)))
    for units in (3, 24):
        layer = kg.GatedRNN(units, "layer_norm_gru")
        verdicts = [kg.check_activations(layer)]
        layer.build((None, None, 5))
        verdicts += [kg.check_activations(layer), kg.check_activations("layer_norm_gru")]
        for verdict in verdicts:
            low, high = verdict.carry["hidden"]
            assert 0.9 < high <= most
            assert low == pytest.approx(1 - high, abs=1e-3)
            assert verdict.contraction is None  # at rest the slope is that of epsilon


def test_the_memory_is_that_of_the_recurrence():
    """Of a linear one with the eigenvalue 0.9 it is 1 / -log(0.9), however long the sequences."""
    cell = {"cell": "simple", "candidate_activation": "linear"}
    for steps, units in ((10, 16), (300, 5)):
        recurrent = keras.initializers.Identity(0.9)
        verdict = kg.check_activations(
            **cell, recurrent_initializer=recurrent, steps=steps, units=units
        )
        assert verdict.memory == pytest.approx(-1 / math.log(0.9), rel=1e-4)
        assert verdict.memory_with_uniform_gates is None
        left = f"{0.9**steps:.1g} of a difference in the state is left after {steps} steps"
        assert f"at initialization {left}" in str(verdict)
    keeps = kg.check_activations(**cell, recurrent_initializer=keras.initializers.Identity(1.1))
    assert keeps.memory == math.inf
    # The gates of a state that z carries on are near 1/2, and then spread up to 1 - 1/units.
    gru = kg.check_activations("gru", steps=64, units=32)
    assert gru.memory < 5 < gru.memory_with_uniform_gates < 32
    assert "with initialization='uniform_gates'" in str(gru)
    begun = kg.check_activations("gru", initialization="uniform_gates", steps=64, units=32)
    assert begun.memory == pytest.approx(gru.memory_with_uniform_gates)
    assert begun.memory_with_uniform_gates is None
    for name in ("steps", "units"):
        with pytest.raises(ValueError, match=f"`{name}` must be a positive integer"):
            kg.check_activations("gru", **{name: 0})


def test_a_gate_that_starts_elsewhere_is_not_called_shut():
    def shut(**options):
        reasons = kg.check_activations("lstm", "relu_gate", "tanh", **options).reasons
        whats = " ".join(reason.what for reason in reasons)
        return [
            gate for gate in ("input", "forget", "output") if f"gate {gate} (relu_gate) is" in whats
        ]

    assert shut() == ["input", "output"]
    assert shut(unit_forget_bias=False) == ["input", "forget", "output"]
    assert shut(initialization=kg.initializers.Chrono(29)) == ["output"]


def test_what_is_left_of_a_difference_in_words():
    cell = {"cell": "simple", "candidate_activation": "linear", "units": 5}

    def left(factor, steps):
        recurrent = keras.initializers.Identity(factor)
        text = str(kg.check_activations(**cell, recurrent_initializer=recurrent, steps=steps))
        assert "where the states rest without inputs, a diff" in text or factor >= 1
        return next(line for line in text.split("\n") if "is left after" in line)

    assert "initialization all of a difference" in left(1 - 1e-5, 4)
    assert "initialization all, or more, of a difference" in left(1.1, 4)
    assert "initialization nothing of a difference" in left(0.5, 5000)


def test_a_difference_that_relu_cuts_off_is_gone():
    """Each unit sees itself alone, and forgets all whenever its relu is shut."""
    verdict = kg.check_activations("ind_rnn", steps=500, units=4)
    assert verdict.memory == 0
    assert "no gate weighs old against new, so only recurrent" in verdict.reasons[0].what
    assert "nothing of a difference in the state is left after 500 steps" in str(verdict)


def test_figures_that_are_no_numbers_are_left_out():
    verdict = kg.check_activations("gru", candidate_activation=keras.ops.log)
    assert math.isnan(verdict.divergence)
    for text in (str(verdict), verdict._repr_html_()):
        assert "nan%" not in text
        assert "probability" not in text
        assert "spectral radius" not in text


def test_a_verdict_can_be_read_and_stored():
    import json

    verdict = kg.check_activations("gru", "relu", "tanh")
    text = str(verdict)
    assert text.startswith("GRUCell: gates relu; candidate tanh: unstable\n  z = relu(x_z + u_z)\n")
    assert verdict.equations[-1] == ("h'", "z * h + (1 - z) * n")
    reasons = [line for line in text.split("\n") if line.lstrip().startswith(tuple(LEVELS))]
    assert len(reasons) == 3
    # What helps stands below its reason, once below the last of those that it is for.
    helps = [line for line in text.split("\n") if "    what helps: " in line]
    assert (
        helps[0].strip().startswith("what helps: Carry the state on with a gate whose values lie")
    )
    assert text.index(helps[0]) < text.index(reasons[1])
    assert text.index(reasons[2]) < text.index(helps[1])
    assert len(helps) == 2
    assert "how long it remembers is not shown" in text
    assert "nothing clipped): below 1%; failing to learn is not counted" in (
        str(kg.check_activations("gru", "tanh", "tanh"))
    )
    assert json.loads(json.dumps(verdict.to_dict()))["level"] == "unstable"


def test_a_layer_with_an_unstable_pair_warns_once_with_reason_and_cure(recwarn, tmp_path):
    with pytest.warns(
        kg.UnstableActivationsWarning, match="no upper bound.*values lie in .0, 1."
    ) as caught:
        layer = kg.GatedRNN(4, gate_activation="relu")
    assert len(caught) == 1
    assert caught[0].filename == __file__
    recwarn.clear()
    model = keras.Sequential([keras.Input((None, 3)), keras.layers.Bidirectional(layer)])
    model.save(tmp_path / "model.keras")
    keras.models.load_model(tmp_path / "model.keras")
    kg.GatedRNN(4, candidate_activation="softmax")
    kg.GatedRNN(4)
    assert not [w for w in recwarn if w.category is kg.UnstableActivationsWarning]


def test_the_warning_can_be_made_an_error():
    output = run_python(
        """
        import warnings, keras_gates as kg
        warnings.simplefilter("error", kg.UnstableActivationsWarning)
        try:
            kg.GatedRNN(4, cell="lstm", gate_activation={"forget": "relu"})
        except kg.UnstableActivationsWarning as error:
            print("refused:", error)
        """
    )
    assert "refused: These activations are unstable in LSTMCell" in output


def test_bad_input_is_refused():
    with pytest.raises(ValueError, match="`cell` must be one of.*'gruu'.*'gru'"):
        kg.check_activations("gruu")
    with pytest.raises(ValueError, match="`cell` must be one of.*subclass of GatedCell"):
        kg.check_activations(keras.layers.GRUCell)
    with pytest.raises(TypeError, match="unit"):
        kg.check_activations("gru", unit=3)
