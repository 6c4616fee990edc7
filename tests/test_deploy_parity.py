"""How a file is compared with its model: samples, differences, the process that runs it."""

import shutil

import keras
import numpy as np
import pytest
from deployed import small_model, whole_model

import keras_gates as kg
from keras_gates import deployment
from keras_gates.deployment import verify
from keras_gates.deployment.samples import Sample, Samples
from keras_gates.deployment.spec import ModelSpec


@pytest.mark.slow
def test_padding_is_what_the_model_masks():
    words = Samples(ModelSpec(whole_model()), None, {"serving_default": {"inputs": WORDS}}, True)
    frames = keras.Sequential([keras.Input((None, 2)), keras.layers.Masking(-1.0)])
    frames = Samples(ModelSpec(frames), None, {"serving_default": {"inputs": FRAMES}}, True)
    for samples, blank in ((words, 0), (frames, -1.0)):
        right, anywhere = (s for s in samples.whole() if s.mask != "none" and s.length == 12)
        valid = valid_steps(samples.values(right)[0], blank)
        np.testing.assert_array_equal(valid.sum(1)[[0, -1]], [12, 1])
        np.testing.assert_array_equal(valid, np.sort(valid, 1)[:, ::-1])
        valid = valid_steps(samples.values(anywhere)[0], blank)
        assert valid[0].all()
        np.testing.assert_array_equal(valid[1], np.arange(12) > 0)  # at the start
        np.testing.assert_array_equal(valid[2, :4], [True, False, True, True])  # in between
        assert not valid[3].any()


WORDS = {
    "words": {"shape": [None, None], "dtype": "int32"},
    "inputs": {"shape": [None, 2], "dtype": "float32"},
}


FRAMES = {"inputs": {"shape": [None, None, 2], "dtype": "float32"}}


def valid_steps(values, blank):
    return (values.reshape(*values.shape[:2], -1) != blank).any(-1)


def given(data, batch=None, length=None):
    """The `Sample` of the user's data of a file with such a batch size and length."""
    tensors = {"frames": {"shape": [batch, length, 3], "dtype": "float32"}}
    outputs = {"scores": {"shape": [batch, 2], "dtype": "float32"}}
    signatures = {"serving_default": {"inputs": tensors, "outputs": outputs}}
    samples = Samples(ModelSpec(small_model(kg.GatedRNN(2))), data, signatures, True)
    return samples, *samples.given()


def test_data_of_the_users_are_compared_from_end_to_end():
    data = np.zeros((1001, 5, 3)) + np.arange(1001)[:, None, None]
    samples, sample = given(data, batch=10)
    assert (sample.batch, sample.given, sample.length) == (10, 250, 5)
    rows = [samples.values(sample, part=part)[0][:, 0, 0] for part in samples.parts(sample)]
    assert {len(part) for part in rows} == {10}
    rows = np.concatenate(rows)
    assert (rows[0], rows[-1], len(rows)) == (0, 1000, 250)
    assert set(np.diff(rows)) == {4, 5}
    # All of few, in one batch; of few for a fixed batch size, some twice.
    assert given(data[:7])[1] == Sample(7, 5, given=7)
    samples, sample = given(data[:7], batch=10)
    assert (sample.given, list(samples.parts(sample))) == (7, [0])
    assert samples.values(sample)[0][:, 0, 0].tolist() == [*range(7), *range(3)]
    # Fewer of long ones, and in the length that the file has fixed.
    assert given(np.ones((300, 3000, 3)))[1].given == 10
    assert given(np.ones((300, 3000, 3)), length=60)[1] == Sample(256, 60, given=256)
    assert len(given(None)) == 1


def test_differences_on_data_are_told_per_output():
    classes = np.array([[0.7, 0.2, 0.1], [0.3, 0.4, 0.3]], "float32")
    wrong = np.array([[0.3, 0.6, 0.1], [0.3, 0.4, 0.3]], "float32")
    padded = [np.stack([one, one[::-1]]) for one in (classes, wrong)]
    mask = np.array([[True, True], [False, False]])
    data = [
        ("scores", *padded, mask),
        ("scores", classes, classes, None),
        ("values", GOOD, GOOD + 0.5, None),
    ]
    scores, values = verify.on_data(data)
    assert scores.output == "scores"
    assert scores.largest == pytest.approx(0.4)
    assert scores.mean == pytest.approx(0.8 / 12)
    assert scores.same_class == 0.75
    assert (values.largest, values.mean, values.same_class) == (0.5, 0.5, None)
    (scores,) = verify.on_data([("scores", *padded, mask & False)])  # nothing is left then
    assert scores.same_class == 0.5
    assert verify.on_data([]) == []


def test_a_runner_cannot_import_the_package(tmp_path, monkeypatch):
    shutil.copy(verify.RUNNERS / "shared.py", tmp_path)
    (tmp_path / "probe.py").write_text(
        "import importlib, shared, numpy\n"
        "def blocked(name):\n"
        "    try:\n"
        "        return numpy.array(not importlib.import_module(name))\n"
        "    except ImportError:\n"
        "        return numpy.array(True)\n"
        "def load(path):\n"
        "    names = ('keras_gates', 'json', 'x')\n"
        "    return lambda signature, inputs: {name: blocked(name) for name in names}\n"
        "shared.run(load, without=['x'])\n"
    )
    (tmp_path / "x.py").write_text("")
    monkeypatch.setattr(verify, "RUNNERS", tmp_path)
    found = verify.run("probe", tmp_path, {"whole/0": {"frames": np.zeros((1, 2))}})
    names = ("keras_gates", "json", "x")
    assert [bool(found[f"whole/0/0/{name}"]) for name in names] == [True, False, True]
    assert found["whole/0/seconds"].shape == (1,)


@pytest.mark.parametrize("short", [1e-7, 1.0])
def test_a_difference_that_grows_with_the_length_may_be_chaos(short, monkeypatch):
    samples = Samples(
        ModelSpec(small_model(kg.GatedRNN(2))),
        None,
        {"serving_default": {"inputs": ONE_INPUT}},
        True,
    )
    found = {}
    for index, sample in enumerate(samples.whole()):
        ((_, name, value),) = verify._expected(sample, samples, None)
        error = 1.0 if sample.length > 7 else short
        label = f"whole/{index}.0"
        found |= {f"{label}/0/{name}": value + error, f"{label}/seconds": [0.0]}
    found |= {f"latency/{index}.0/seconds": [0.0] for index in range(2)}
    monkeypatch.setattr(verify, "run", lambda *_: found)
    with pytest.raises(deployment.ParityError) as error:
        verify.verify("onnx", None, samples, tolerance=verify.TOLERANCE)
    assert ("positive Lyapunov exponent" in str(error.value)) == (short < 1e-6)


@pytest.mark.slow
def test_time_distributed_layers_are_compared_with_what_they_should_do():
    """Keras' own graph of one is wrong where neither the batch size nor the length is fixed."""
    model = small_model(keras.layers.TimeDistributed(keras.layers.Dense(2, "relu")))
    samples = Samples(ModelSpec(model), None, {"serving_default": {"inputs": ONE_INPUT}}, True)
    ((_, _, expected),) = verify._expected(samples.whole()[1], samples, None)
    assert expected.shape == (17, 100, 2)


ONE_INPUT = {"frames": {"shape": [None, None, 3], "dtype": "float32"}}


ONE = Sample(2, 3)


GOOD = np.array([[1.0, -4.0]], "float32")


def test_the_difference_is_the_largest_of_all_in_the_scale_of_its_output():
    pairs = [
        (ONE, "large", 100 * GOOD, 100 * GOOD + 0.1),
        (ONE, "small", GOOD, GOOD + 0.01),
        (Sample(5, 7, "any", "step"), "small", GOOD / 2, GOOD / 2 + [[0.0, 0.02]]),
    ]
    found = verify.compare(pairs, 0.5)
    assert found.output == "small"
    assert found.absolute == pytest.approx(0.02, rel=1e-4)
    assert found.relative == pytest.approx(0.005, rel=1e-4)
    assert found.sample == "batch 5 of 7 steps, padded anywhere, step by step"
    assert found.tolerance == 0.5


@pytest.mark.slow
def test_values_that_are_no_numbers_have_to_be_the_same():
    odd = np.array([[np.nan, np.inf]], "float32")
    pair = (ONE, "y", GOOD, GOOD)
    assert verify.compare([pair, (ONE, "y", odd, odd)]).absolute == 0
    for given, told in (
        (GOOD, "is 1.0 where the model's is nan, in 2 of 2 values"),
        (-odd, "is -inf where the model's is inf, in 1 of 2 values"),
        (odd[:, ::-1], "is inf where the model's is nan, in 2 of 2 values"),
    ):
        with pytest.raises(deployment.ParityError, match=f"output 'y' {told}: batch 2 of 3 steps"):
            verify.compare([pair, (ONE, "y", odd, given)])
    with pytest.raises(
        deployment.ParityError, match="output 'y' is nan where the model's is 1.0, in"
    ):
        verify.compare([(ONE, "y", GOOD, GOOD * np.nan)])
    with pytest.raises(
        deployment.ParityError, match="nothing to compare: all values of the model's"
    ):
        verify.compare([(ONE, "y", odd, odd)])
    with pytest.raises(deployment.ParityError, match=r"has the shape \(2,\) where the model's has"):
        verify.compare([(ONE, "y", GOOD, GOOD[0])])
