"""The examples run, from the command line's entry point to the files that they write."""

import importlib.util
import json
import pathlib
import subprocess
import sys

import numpy as np
import pytest

EXAMPLES = pathlib.Path(__file__).parent.parent / "examples"


def load(name):
    spec = importlib.util.spec_from_file_location(f"example_{name}", EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def digits():
    return load("digits")


@pytest.fixture(scope="module")
def results(digits, tmp_path_factory):
    out = tmp_path_factory.mktemp("digits")
    pairs = ["sigmoid + tanh (default)", "tanh + tanh", "hard_sigmoid + relu, clipped, L1"]
    return digits.main(["--epochs", "1", "--seeds", "1", "--out", str(out), "--pairs", *pairs])


def test_digits_trains_every_pair_on_both_tasks(results):
    for rows in results["tasks"].values():
        assert len(rows) == 3
        for row in rows:
            assert 0 <= row["accuracy"] <= 1
            assert row["largest_gradient_norm"] > 0
    clipped = results["tasks"]["pixel by pixel"][-1]
    assert clipped["largest_gradient_norm"] <= 0.05 * (1 + 1e-6)
    assert results["tasks"]["row by row"][0]["accuracy"] > 0.3


def test_digits_writes_its_files_and_the_savedmodel_agrees(results):
    for path in results["files"].values():
        assert pathlib.Path(path).exists(), path
    assert results["savedmodel_difference"] < 1e-4


def test_gradient_norms_are_those_of_finite_differences(digits):
    """The picture's curve: dL/dh_t measured by moving h_t itself."""
    model = digits.build_model(digits.ROWS, {})
    x, y, _, _ = digits.ROWS.data()
    x, y = x[:4], y[:4]
    norms = digits.gradient_norms(model, x, y)
    layer, dense = model.layers

    def loss(t, moved, sample):
        hidden = np.array(digits.hidden_states(layer.cell, x[:, : t + 1])[-1])
        hidden[sample] += moved
        states = [hidden]
        for later in range(t + 1, x.shape[1]):
            _, states = layer.cell(x[:, later], states)
        probabilities = np.array(dense(states[0]), "float64")
        return -np.log(probabilities[np.arange(4), y]).mean()

    t, sample, step = 4, 2, 1e-2
    gradient = [
        (loss(t, step * unit, sample) - loss(t, -step * unit, sample)) / (2 * step)
        for unit in np.eye(digits.UNITS)
    ]
    assert np.linalg.norm(gradient) == pytest.approx(norms[t, sample], rel=1e-2)


def test_labels_are_those_of_the_tokens():
    label = load("label")
    code = 'def f(a):\n    """Of\n    two lines."""\n    return a + 10.5  # "no"\n\nx = \'if\'\n'
    shown = {
        line: "".join(label.MARKS[kind] for kind in kinds) for line, kinds in label.labelled(code)
    }
    assert shown == {
        "def f(a):": "kkk n+n++",
        '    return a + 10.5  # "no"': "    kkkkkk n + 1111  ######",
        "x = 'if'": "n + " + 4 * "'",
    }
    x, y = label.lines_of(["textwrap"])
    assert x.shape == y.shape
    assert ((x == 0) <= (y == 0)).all()
    assert {*np.unique(y)} == {*range(len(label.KINDS))}


def test_windows_of_measurements_have_gaps_and_no_hour_of_the_next_day():
    forecast = load("forecast")
    load_ = forecast.measurements(40)
    x, y = forecast.windows(load_)
    measured = x.any(axis=-1)
    for sample in range(len(x)):
        start = 7 * sample
        np.testing.assert_allclose(y[sample], load_[start + 168 : start + 192], rtol=1e-6)
        here = measured[sample]
        np.testing.assert_allclose(x[sample, here, 0], load_[start : start + 168][here], rtol=1e-6)
        assert measured[sample, :24].any() != (sample % 3 == 0)
    assert 0.03 < 1 - measured[1::3].mean() < 0.08


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "few"),
    [
        ("forecast", ["--days", "200", "--epochs", "15"]),
        ("label", ["--lines", "600", "--epochs", "2"]),
    ],
)
def test_worked_examples(name, few, tmp_path):
    found, reports = load(name).main(["--out", str(tmp_path), *few])
    if name == "forecast":
        assert found["the model"] < found["as the day before"]
        assert (tmp_path / "forecast.png").stat().st_size > 10_000
    else:
        assert 0.7 < found < 1
    for report in reports:
        assert report.difference.relative < 1e-5
        assert report.on_data
        assert str(report)


@pytest.mark.slow
def test_verdicts_trains_pairs_and_goes_on_where_it_stopped(tmp_path):
    command = [sys.executable, EXAMPLES / "verdicts.py", "--quick", "--out", tmp_path]
    outputs = []
    for _ in range(2):
        done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=True)
        outputs.append(done.stdout)
        table = (tmp_path / "verdicts.csv").read_text().splitlines()
        assert len(table) == 1 + 6
        (tmp_path / "verdicts.csv").write_text("\n".join(table[:-1]) + "\n")
        assert (tmp_path / "verdicts.png").exists()
    assert "verdicts: 10 of 10" in outputs[0]
    assert "verdicts: 1 of 1" in outputs[1]
    assert "gru,relu,tanh" in " ".join(table)
    assert "pairs called sound, that do not diverge: 3 of 3, 100%" in outputs[0]


@pytest.mark.slow
def test_initialization_trains_pairs(tmp_path):
    command = [sys.executable, EXAMPLES / "initialization.py", "--quick", "--out", tmp_path]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=True)
    assert "2 of 2 trained" in done.stdout
    assert "gru sigmoid tanh" in done.stdout
    assert len((tmp_path / "initialization.csv").read_text().splitlines()) == 1 + 2 * 3
    assert (tmp_path / "initialization.png").stat().st_size > 10_000


def test_errors_that_diverged_are_counted_and_left_out(monkeypatch, capsys):
    monkeypatch.syspath_prepend(EXAMPLES)  # it imports another example
    example = load("initialization")
    layer = example.layers_of("adding")[0]
    errors = {"keras": [1.0, np.nan, 2.0], "uniform_gates": [0.5, 1, 4], "chrono": [0.1, 0.1, 0.2]}
    rows = [
        ("adding", *layer, start, seed, score)
        for start, scores in errors.items()
        for seed, score in enumerate(scores)
    ]
    found = example.differences(rows, "adding", layer, "uniform_gates")
    np.testing.assert_allclose(np.exp(found), [0.5, np.nan, 2.0])
    example.report(rows)
    line, overall = capsys.readouterr().out.splitlines()[-2:]
    assert "x 0.1 (0.1 to 0.1)" in line
    assert "x 0.1 (0.1 to 0.1)" in overall
    assert line.endswith("diverged: [1, 0, 0]")


@pytest.mark.slow
def test_gallery_trains_times_and_draws(tmp_path):
    command = [sys.executable, EXAMPLES / "gallery.py", "--quick", "--out", tmp_path]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=True)
    _, table = done.stdout.split("6 of 6 trained\n")
    lines = table.splitlines()
    assert lines[0].split()[:2] == ["cell", "parameters"]
    # 3 (n m + n^2 + 2 n), 2 (n m + n), n m + 2 n of 32 units and one feature
    assert [line.split()[:2] for line in lines[1:4]] == [
        ["gru", "3360"], ["min_gru", "128"], ["ind_rnn", "96"],
    ]  # fmt: skip
    assert lines[1].split()[2] == "1.00"
    table = (tmp_path / "gallery.csv").read_text().splitlines()
    assert len(table) == 1 + 6
    assert all(float(line.split(",")[3]) >= 0 for line in table[1:])
    assert (tmp_path / "gallery.png").stat().st_size > 10_000


@pytest.mark.slow
def test_published_trains_every_model(tmp_path):
    command = [sys.executable, EXAMPLES / "published.py", "--quick", "--out", tmp_path]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=True)
    count = 14  # models, of two steps each
    assert f"{count} of {count} trained" in done.stdout
    assert "ind_rnn: Li et al., 2018" in done.stdout
    rows = (tmp_path / "published.csv").read_text().splitlines()
    assert len(rows) == 1 + 2 * count
    assert (tmp_path / "published.png").stat().st_size > 10_000
    command += ["min_lstm"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 2
    assert "NAME must be one of ind_rnn, janet, min_gru" in done.stderr


@pytest.fixture(scope="module")
def published():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(EXAMPLES)  # it imports other examples
        return load("published")


def test_what_is_to_be_copied(published, rng):
    x, y = published.copying(rng, 20, 30, 4)
    symbols = x.argmax(axis=2)
    assert (x.sum(axis=2) == 1).all()
    assert symbols.shape == y.shape == (20, 38)
    np.testing.assert_array_equal(symbols[:, :4], y[:, 34:])
    assert set(symbols[:, :4].ravel()) == set(range(1, 9))
    assert (symbols[:, 33] == 9).all()
    assert symbols[:, 4:33].max() == symbols[:, 34:].max() == y[:, :34].max() == 0
    x, y = published.selective_copying(rng, 20, 30, 4)
    for given, wanted in zip(x, y, strict=True):
        assert given[given > 0].tolist() == [*wanted, *[15] * 4]
        assert (given[30:] == 15).all()
    assert len(np.unique(x[:, :30].argmax(axis=1))) > 5  # the places differ
    x, y = published.first_input(rng, 20, 30)
    np.testing.assert_array_equal(x[:, 0], y)
    assert abs(x[:, 1:].std() - 1) < 0.2


def test_the_text_and_its_test_part(published, rng):
    train, test, characters = published.text()
    assert len(train) > 100_000
    assert max(train.max(), test.max()) == characters - 1
    for part, codes in enumerate((train, test)):
        x, y = published.excerpts(rng, 3, 40, part)
        np.testing.assert_array_equal(x[:, 1:], y[:, :-1])
        assert bytes(np.append(x[0], y[0, -1]).astype("uint8")) in bytes(codes.astype("uint8"))


def test_scores(published, rng):
    y, output = rng.integers(3, size=(4, 5)), rng.normal(size=(4, 5, 3))
    shares = np.exp(output) / np.exp(output).sum(axis=2, keepdims=True)
    expected = np.mean([-np.log2(shares[i, j, y[i, j]]) for i in range(4) for j in range(5)])
    assert published.bits(y, output) == pytest.approx(expected)
    right = [output[i, j].argmax() == y[i, j] for i in range(4) for j in range(5) if y[i, j]]
    assert published.accuracy(y, output) == pytest.approx(np.mean(right))
    curve = np.array([[10, 20, 30, 40], [0.1, 0.9, 0.2, 0.1]])
    assert published.steps_to(0.5, curve, lower=True) == 30  # and not 10: it came back
    assert published.steps_to(0.5, curve, lower=False) is None
    assert published.steps_to(0.95, curve, lower=True) == 10


def test_the_chrono_start(published):
    for cell, blocks in (("lstm", 4), ("janet", 2)):
        model = published.copier(cell, 200, 50, 1e-3, chrono=True)
        bias = dict(
            zip(model.layers[0].cell.blocks, np.split(model.get_weights()[2], blocks), strict=True)
        )
        times = np.exp(bias.pop("forget"))
        assert 1 <= times.min() < 2
        assert 47 < times.max() <= 49
        if cell == "lstm":
            np.testing.assert_allclose(np.exp(-bias.pop("input")), times, rtol=1e-5)
        assert not np.any([*bias.values()])


@pytest.mark.slow
def test_diagnostics_prints_and_draws(tmp_path, capsys):
    example = load("diagnostics")
    found = example.main(["--epochs", "1", "--samples", "300", "--out", str(tmp_path)])
    assert list(found) == list(example.LAYERS)
    printed = capsys.readouterr().out
    assert "GRUCell: gates tanh; candidate tanh: unstable" in printed
    for name in ("diagnostics", "diagnostics_monitor"):
        assert (tmp_path / f"{name}.png").stat().st_size > 10_000
    clipped = found["tanh gates, clipped"].layers[0]
    assert 0 <= clipped.gradient.clipped <= 1


def test_search_digits_reports_draws_and_saves(tmp_path, capsys):
    example = load("search_digits")
    arguments = ["--epochs", "1", "--seeds", "1", "--trials", "3", "--out", str(tmp_path)]
    report = example.main(arguments)
    assert report.counts == {"finished": 3}
    assert {row["cell"] for row in report.trials} == {"gru"}
    printed = capsys.readouterr().out
    assert "accuracy of the best model on the test images: 0." in printed
    for suffix, size in (("csv", 300), ("png", 20_000), ("keras", 10_000)):
        assert (tmp_path / f"search_digits.{suffix}").stat().st_size > size
    example.main(arguments)
    assert "goes on: 3 trials had ended, 0 had not" in capsys.readouterr().out


@pytest.mark.slow
def test_deployment_compares_the_formats_and_draws(tmp_path, capsys):
    result = load("deployment").main(["--quick", "--out", str(tmp_path)])
    labels = [row["file"] for row in result["rows"]]
    assert labels[:2] == ["SavedModel by Keras", "SavedModel"]
    for row in result["rows"]:
        assert set(row["ratio"]) == {1, 64}
        assert row["difference"] < (0.05 if "int8" in row["file"] else 1e-5)
    assert result["mean"]["SavedModel by Keras"] == {1: [1, 1], 64: [1, 1]}
    assert "| SavedModel |" in capsys.readouterr().out
    assert (tmp_path / "deployment.png").stat().st_size > 10_000


@pytest.mark.slow
def test_benchmark_compares_both_sides_and_writes_its_files(tmp_path):
    benchmark = load("benchmark")
    arguments = ["--quick", "--rounds", "1", "--layers", "SimpleRNN(relu)", "--out", str(tmp_path)]
    result = benchmark.main(arguments)
    assert len(result["rows"]) == 4
    for row in result["rows"]:
        assert {"keras.layers", "keras.layers, XLA", "with clipping"} <= set(row["ratio"])
        assert all(ratio > 0 for ratio in row["ratio"].values())
    assert (tmp_path / "benchmark.json").exists()
    assert (tmp_path / "benchmark.png").exists()


def test_the_benchmark_for_gpus_wants_one(monkeypatch):
    benchmark = load("benchmark_gpu")
    monkeypatch.setattr(benchmark, "gpu_name", lambda: None)
    with pytest.raises(SystemExit, match="The tensorflow backend sees no GPU here"):
        benchmark.main([])


def test_the_benchmark_for_gpus_wants_a_backend_that_is_installed(monkeypatch):
    benchmark = load("benchmark_gpu")
    monkeypatch.setenv("KERAS_BACKEND", "jax")
    monkeypatch.setattr(benchmark.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(SystemExit, match="The jax backend is not installed here. Install it with"):
        benchmark.main(["--rehearse"])


@pytest.mark.parametrize(
    ("script", "arguments", "message"),
    [
        ("benchmark", "--turn 16", "--turn 16. With --device gpu, --rehearse and --turn can be"),
        ("benchmark_gpu", "--quick", "--quick. With --device gpu, --rehearse (tiny shapes), --tu"),
        ("benchmark_gpu", "--turn 0", "--turn: must be a positive integer. Received: 0"),
    ],
)
def test_the_benchmarks_say_which_arguments_they_take(script, arguments, message, capsys):
    with pytest.raises(SystemExit):
        load(script).main(arguments.split())
    assert message in capsys.readouterr().err


def test_the_benchmark_for_gpus_notes_what_fails_and_goes_on():
    benchmark = load("benchmark_gpu")
    called, failed = [], {}

    def fails():
        called.append(1)
        if len(called) > 4:
            raise MemoryError("of the GPU\nand more")

    found = benchmark.alternate({"bad": fails, "good": lambda: sum(range(99))}, 0.0, failed)
    assert failed.pop("bad") == "MemoryError: of the GPU"
    assert len(called) == 5
    assert [*found] == ["good"]
    assert found["good"]["turns"] == 3
    assert 0 < found["good"]["least"] <= found["good"]["median"] <= found["good"]["most"]
    assert benchmark.deviation(np.array([1.0, -4.1]), np.array([1.0, -4.0])) == pytest.approx(0.025)


def test_the_benchmark_for_gpus_writes_its_rows(tmp_path, monkeypatch, capsys):
    """As on a GPU, of one tiny row; the next has no time."""
    benchmark = load("benchmark_gpu")
    monkeypatch.setattr(benchmark, "gpu_name", lambda: "a GPU of tests")
    monkeypatch.setattr(benchmark.OnTensorFlow, "compiled", staticmethod(lambda layer: False))
    monkeypatch.setattr(benchmark, "in_own_process", lambda rehearse: None)
    monkeypatch.setattr(benchmark, "SHAPES", benchmark.REHEARSED)
    monkeypatch.setattr(benchmark, "CELLS", ("lstm",))
    monkeypatch.setattr(benchmark, "ACTIVATIONS", ("relu", "tanh"))
    monkeypatch.setattr(benchmark, "SECONDS", 0)
    result = benchmark.main(["--device", "gpu", "--out", str(tmp_path)])
    written = json.loads((tmp_path / "benchmark_gpu_tensorflow.json").read_text())
    assert written["machine"]["gpu"] == "a GPU of tests"
    assert result["left_out"] == [["lstm", "tanh", *benchmark.REHEARSED[0]]]
    (row,) = written["rows"]
    assert row["failed"] == {}
    for mode in benchmark.MODES:
        assert {*row[mode]} == {benchmark.THEIRS, benchmark.AUTO, benchmark.FUSED}
    for side in (benchmark.AUTO, benchmark.FUSED):
        assert max(row["deviation"][side].values()) < 1e-5
        assert row["path"][side][0] == "training, when last traced: fused"
    ratio = row["train"][benchmark.THEIRS]["median"] / row["train"][benchmark.AUTO]["median"]
    printed = capsys.readouterr().out
    assert f"ms ({ratio:.2f})" in printed
    assert f"    relu, train: {benchmark.AUTO} {ratio:.2f} ({ratio:.2f})" in printed


@pytest.mark.slow
def test_the_benchmark_for_gpus_can_be_rehearsed(tmp_path):
    command = [sys.executable, EXAMPLES / "benchmark.py", "--device", "gpu", "--rehearse"]
    done = subprocess.run(
        [*command, "--out", tmp_path], capture_output=True, text=True, timeout=300, check=True
    )
    assert done.stdout.count("train ") == done.stdout.count("inference ") == 6
    assert "failed" not in done.stdout
    assert done.stdout.rstrip().endswith("and nothing is written")
    assert not [*tmp_path.iterdir()]


def test_benchmark_measures_growth_with_time(monkeypatch):
    benchmark = load("benchmark")
    monkeypatch.setattr(benchmark, "SHAPES", [benchmark.Shape(1, 1600, 2, 2)])
    assert benchmark.growth_with_time(rounds=1) > 0


def test_benchmark_counts_the_matrix_products():
    """Two operations per weight, step and sample forward; gradients of both factors backward."""
    benchmark = load("benchmark")
    shape = benchmark.Shape(batch=2, time_steps=3, features=5, units=7)
    count = benchmark.floating_point_operations
    assert count("SimpleRNN(relu)", shape, "inference") == 2 * (5 * 7 + 7 * 7) * 2 * 3
    assert count("LSTM(default)", shape, "train") == 3 * count("LSTM(default)", shape, "inference")
