"""Reports as HTML: well-formed, with the figures of the report, with no script in it."""

import base64
import dataclasses
import html.parser
import json
import re
import shutil
import subprocess
import xml.etree.ElementTree

import keras
import numpy as np
import pytest
from test_tuning_report import diverged, finished, pair, written

import keras_gates as kg
from keras_gates import html as pages
from keras_gates.deployment import DataDifference, Difference, ExportReport, Latency, Sample
from keras_gates.tuning import search_report
from keras_gates.tuning.records import Execution, Search
from keras_gates.tuning.report.confirmation import confirmation

EVIL = "<script>alert('1')</script>&\"x\""
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")


class Page(html.parser.HTMLParser):
    """Elements, texts and attributes of a page; an error where tags are not balanced."""

    VOID = ("meta", "img")

    def __init__(self, text):
        super().__init__()
        self.open, self.elements, self.attributes, self.texts = [], [], [], []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attributes):
        assert len(attributes) == len(dict(attributes)), attributes
        self.elements.append(tag)
        self.attributes += attributes
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, text):
        if "style" not in self.open:
            self.texts.append(text)

    @property
    def text(self):
        return " ".join(self.texts)

    def images(self):
        """The images, each an SVG that can be read."""
        prefix = "data:image/svg+xml;base64,"
        sources = [value for name, value in self.attributes if name == "src"]
        assert all(source.startswith(prefix) for source in sources)
        decoded = [base64.b64decode(source.removeprefix(prefix)).decode() for source in sources]
        for svg in decoded:
            xml.etree.ElementTree.fromstring(svg)
        return decoded


def harmless(text):
    """The page, of which nothing runs and nothing comes from elsewhere."""
    page = Page(text)
    assert not {"script", "iframe", "object", "embed", "link", "base"} & set(page.elements)
    assert not [name for name, _ in page.attributes if name.startswith("on") or name == "href"]
    assert "url(" not in text
    assert "@import" not in text
    return page


@pytest.fixture(scope="module")
def diagnosis():
    rng = np.random.default_rng(0)
    model = keras.Sequential(
        [
            keras.Input((None, 3)),
            kg.GatedRNN(4, cell="lstm", candidate_activation="relu", return_sequences=True),
            kg.GatedRNN(3, go_backwards=True, grad_clip_norm=1.0),
            keras.layers.Dense(1),
        ],
        name="model",
    )
    model.compile("sgd", "mse")
    return kg.diagnose(model, rng.normal(size=(6, 9, 3)), rng.normal(size=(6, 1)))


@pytest.fixture
def searched(tmp_path):
    folder = tmp_path / "search"
    folder.mkdir()
    lost = diverged("2", pair("relu", "tanh", note="plain"))
    lost.executions[-1].reason = EVIL
    trials = [
        finished("0", pair("sigmoid", "tanh", note="plain"), 0.7125, 0.7375),
        finished("1", pair("hard_sigmoid", "relu", note=EVIL), 0.84375, 0.86875),
        lost,
    ]
    return search_report(written(folder, trials))


def test_text_is_escaped_and_html_is_not():
    made = pages.element("p", EVIL, pages.element("b", "<"), class_=EVIL, title="a & b")
    page = Page(made)
    assert page.elements == ["p", "b"]
    assert page.attributes == [("class", EVIL), ("title", "a & b")]
    assert page.texts == [EVIL, "<"]


def test_columns_of_figures_are_told_from_words():
    header = ["name", "figure", "share", "reason"]
    page = Page(pages.table(header, [["a", "1e-3", "2.5%", "1"], ["b", "-", "", EVIL]], ["reason"]))
    classes = [value for name, value in page.attributes if name == "class" and value != "wide"]
    assert classes == ["text", "number", "number", "words"] * 3
    assert ("scope", "col") in page.attributes
    assert Page(pages.table(["a"], [])).elements.count("tr") == 1


def test_a_verdict():
    def activation(x):
        return keras.ops.relu(x)

    activation.__name__ = EVIL
    with pytest.warns(UserWarning, match="works for training"):
        layer = kg.GRUCell(3, gate_activation=activation)
    verdict = kg.check_activations(layer)
    page = harmless(verdict._repr_html_())
    assert EVIL in page.text
    for reason in verdict.reasons:
        assert reason.what in page.text
        assert reason.advice in page.text
    assert "h' = z * h + (1 - z) * n" in page.text
    assert f"by factors in [0, {verdict.carry['hidden'][1]:g}]" in page.text
    sound = kg.check_activations("lstm")
    page = harmless(sound._repr_html_())
    assert "sound" in page.text
    assert f"{sound.spectral_radius:.2f}" in page.text
    unknown = harmless(kg.check_activations("gru", "softmax")._repr_html_())
    assert "mixes units" in unknown.text


def test_a_profile():
    profile = kg.activations.profile("hard_sigmoid")
    page = harmless(profile._repr_html_())
    for name, value in profile.to_dict().items():
        assert str(value) in page.text if name == "name" else name in page.text
    assert numbers(str(profile)) <= numbers(page.text)


def test_what_is_not_finite():
    found = kg.diagnostics.NonFinite(
        "forward", EVIL, "gate update", time_step=3, sample=2, value=np.inf, advice=f"Do {EVIL}."
    )
    page = harmless(found._repr_html_())
    for expected in (f"of layer {EVIL!r} at time step 3 in sample 2 is inf.", f"Do {EVIL}."):
        assert expected in str(found)
        assert expected in page.text
    finite = harmless(kg.diagnostics.NonFinite()._repr_html_())
    assert finite.text.endswith("Everything is finite.")


def test_a_confirmation():
    trials = [finished(name, pair(gate, "tanh"), 0.5) for name, gate in (("0", "a"), ("1", EVIL))]
    scores = {"1": [0.83, 0.87, 0.86], "0": [0.80, 0.85, None]}
    executions = {
        name: [
            Execution(seed, "finished", 5, score=score)
            if score
            else Execution(seed, "diverged", 2, reason=EVIL)
            for seed, score in enumerate(its, start=2)
        ]
        for name, its in scores.items()
    }
    found = confirmation(Search("val_accuracy", "max", trials), executions, [2, 3, 4])
    page = harmless(found._repr_html_())
    (difference,) = found.differences
    assert difference.sentence in page.text
    assert EVIL in difference.sentence
    assert numbers(str(found)) <= numbers(page.text)
    assert f"seed 4: diverged, {EVIL}" in page.text
    assert page.elements.count("table") == 2


def test_an_export():
    tensor = {EVIL: {"shape": [None, None, 3], "dtype": "float32"}}
    report = ExportReport(
        path=f"/tmp/{EVIL}",
        format="onnx",
        size=123456,
        signatures={"serving_default": {"inputs": tensor, "outputs": tensor}},
        operators={"GRU": 2, EVIL: 1},
        notes=[EVIL],
        difference=Difference(1.5e-6, 2.5e-7, 1e-5, EVIL, "a sample"),
        samples=[Sample("whole", 2, 7)] * 5,
        latency=[
            Latency("serving_default", 64, 100, 1.2345, 9.8765),
            Latency("step", 1, 1, 0.5, None),
        ],
        on_data=[DataDifference(EVIL, 3.5e-6, 4.5e-7, 0.875)],
    )
    page = harmless(report._repr_html_())
    for expected in (
        "123 kB",
        "GRU 2",
        "1.5e-06",
        "2.5e-07",
        "5 batches",
        "1.23",
        "9.88",
        EVIL,
        "4.5e-07",
        "87.5%",
    ):
        assert expected in page.text, expected
    number = dataclasses.replace(report, on_data=[DataDifference(EVIL, 3.5e-6, 4.5e-7, None)])
    for text in (str(number), harmless(number._repr_html_()).text):
        assert "3.5e-06 at most" in text
        assert "class" not in text
    assert "in float32" not in str(report)
    openvino = dataclasses.replace(report, format="openvino")
    for said in ("model in float32: 1.5e-06", "100 steps: 1.23 ms in float32, the", "0.5 ms in fl"):
        assert said in str(openvino)
    assert "file in float32, ms" in harmless(openvino._repr_html_()).text
    read = dataclasses.replace(report, difference=None, samples=[], latency=[], notes=[])
    assert "largest difference" not in harmless(read._repr_html_()).text


def numbers(text):
    return set(re.findall(r"-?\d+\.\d+(?:e[+-]\d+)?%?", text))


def test_a_diagnosis_in_a_notebook_and_as_a_page(diagnosis, tmp_path):
    pytest.importorskip("matplotlib")
    diagnosis.to_html(tmp_path / "page.html")
    page = harmless((tmp_path / "page.html").read_text("utf-8"))
    shown = harmless(diagnosis._repr_html_())
    for found in (page, shown):
        assert numbers(str(diagnosis)) <= numbers(found.text)
        for one in diagnosis.findings:
            assert one.what in found.text
            assert one.advice in found.text
        assert "reads the sequence backwards" in found.text
    assert not shown.images()
    images = page.images()
    assert len(images) == 3 * len(diagnosis.layers)
    for word in ("forget", "candidate", "mean norm of the gradient"):
        assert any(word in image for image in images), word
    descriptions = [value for name, value in page.attributes if name == "alt"]
    assert len(set(descriptions)) == len(images)


def test_names_in_a_diagnosis_are_escaped(diagnosis, tmp_path):
    layers = [dataclasses.replace(layer, name=EVIL, cell=EVIL) for layer in diagnosis.layers]
    for layer in layers:
        layer.gates = {f"{EVIL}{i}": figures for i, figures in enumerate(layer.gates.values())}
    findings = [dataclasses.replace(f, layer=EVIL, advice=EVIL) for f in diagnosis.findings]
    found = dataclasses.replace(diagnosis, model=EVIL, layers=layers, findings=findings)
    found.to_html(tmp_path / "page.html")
    for text in ((tmp_path / "page.html").read_text("utf-8"), found._repr_html_()):
        assert harmless(text).text.count(EVIL) > 5


def test_a_diagnosis_of_values_that_are_not_finite(diagnosis, tmp_path):
    """Of which nothing, or not all, can be drawn."""
    layer = diagnosis.layers[0]
    gradient = dataclasses.replace(layer.gradient, norm_per_step=[0.0] * 9, largest=np.nan)
    states = {
        name: dataclasses.replace(state, norm_per_step=[np.nan] * 9, norm=np.inf)
        for name, state in layer.states.items()
    }
    lost = dataclasses.replace(
        layer,
        gradient=gradient,
        gradients={"all": gradient},
        states=states,
        gates={},
        candidate=None,
        lyapunov=None,
    )
    found = dataclasses.replace(diagnosis, layers=[lost], findings=[])
    found.to_html(tmp_path / "page.html")
    page = harmless((tmp_path / "page.html").read_text("utf-8"))
    assert not page.images()
    assert "inf" in page.text
    assert "Nothing was found" in page.text


def test_a_search_in_a_notebook_and_as_a_page(searched, tmp_path):
    pytest.importorskip("matplotlib")
    searched.to_html(str(tmp_path / "page.html"))
    page = harmless((tmp_path / "page.html").read_text("utf-8"))
    shown = harmless(searched._repr_html_())
    for found in (page, shown):
        assert searched.comparison.sentence in found.text
        assert {"0.725", "0.8562"} <= numbers(found.text)
        for effect in searched.effects:
            assert effect.choice in found.text
            if effect.effect is not None:
                assert f"{effect.effect:+.3g}" in found.text
        assert EVIL in found.text
    assert not shown.images()
    images = page.images()
    assert len(images) == 3
    assert any("hard_sigmoid" in image for image in images)
    assert "All 3 trials" in page.text


def test_a_search_without_anything(tmp_path):
    report = search_report(written(tmp_path, []))
    report.to_html(tmp_path / "page.html")
    page = harmless((tmp_path / "page.html").read_text("utf-8"))
    assert "No trial has finished" in page.text
    assert not page.images()


def test_a_page_is_the_same_every_time(searched, tmp_path):
    for name in "ab":
        searched.to_html(tmp_path / name)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_without_matplotlib_a_page_says_how_to_get_pictures(
    diagnosis, searched, tmp_path, monkeypatch
):
    monkeypatch.setattr(pages, "can_draw", lambda: False)
    for found in (diagnosis, searched):
        found.to_html(tmp_path / "page.html")
        page = harmless((tmp_path / "page.html").read_text("utf-8"))
        assert 'pip install "keras_gates[plots]"' in page.text
        assert not page.images()


def test_pictures_leave_the_figures_of_the_user_alone(diagnosis, tmp_path):
    plt = pytest.importorskip("matplotlib.pyplot")
    before = plt.get_fignums(), plt.rcParams["font.size"]
    diagnosis.to_html(tmp_path / "page.html")
    assert (plt.get_fignums(), plt.rcParams["font.size"]) == before


@pytest.mark.parametrize(
    ("path", "error", "message"),
    [
        (3, TypeError, "`path` must be a path. Received: path=3"),
        ("nowhere/page.html", FileNotFoundError, "the folder that `path` is in must exist"),
    ],
)
def test_bad_paths_are_named(path, error, message, diagnosis, searched):
    for found in (diagnosis, searched):
        with pytest.raises(error, match=message):
            found.to_html(path)


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium")
def test_a_browser_shows_pages_without_an_error_and_within_a_phone(diagnosis, searched, tmp_path):
    """In a frame as wide as a phone nothing is wider, images are there, and nothing was refused."""
    for name, found in (("diagnosis", diagnosis), ("search", searched)):
        found.to_html(tmp_path / f"{name}.html")
        (tmp_path / "frame.html").write_text(
            f"""<!DOCTYPE html><pre id="out"></pre>
            <iframe src="{name}.html" width="390" height="800"></iframe>
            <script>onload = () => {{
              const page = document.querySelector("iframe").contentDocument;
              out.textContent = JSON.stringify({{
                title: page.title,
                widths: [page.documentElement.scrollWidth, page.documentElement.clientWidth],
                images: [...page.images].map(i => i.complete && i.naturalWidth > 0),
              }});
            }};</script>"""
        )
        command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--dump-dom"]
        command += ["--allow-file-access-from-files", f"--user-data-dir={tmp_path / 'profile'}"]
        command += ["--enable-logging=stderr", f"file://{tmp_path}/frame.html"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
        assert "CONSOLE" not in done.stderr
        seen = json.loads(re.search(r'<pre id="out">(.*?)</pre>', done.stdout)[1])
        assert seen["title"].startswith(name[:5].capitalize())
        assert seen["widths"][0] <= seen["widths"][1]
        assert len(seen["images"]) >= 3
        assert all(seen["images"])
