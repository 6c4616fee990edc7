"""Label every character of a line of Python: is it part of a keyword, a string, a comment, ...?

The data are modules of Python's standard library, and the labels what its `tokenize` says. Lines
have several lengths, so they are padded, and the padding is masked. Prints the verdict before
training, the accuracy in modules that were not trained on, the diagnosis, and a line with its
labels; writes a SavedModel and, where onnxruntime is installed, an ONNX file, which it then runs.

    python examples/label.py            # a minute on two cores
"""

import argparse
import importlib.util
import io
import keyword
import os
import pathlib
import tokenize

os.environ.setdefault("KERAS_BACKEND", "tensorflow")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np

import keras_gates as kg

KINDS = ("space", "name", "keyword", "number", "string", "comment", "operator")
MARKS = " nk1'#+"  # what each is shown as
_TOKENS = {
    tokenize.NAME: "name",
    tokenize.NUMBER: "number",
    tokenize.STRING: "string",
    tokenize.COMMENT: "comment",
    tokenize.OP: "operator",
}
MODULES = ["argparse", "ast", "calendar", "csv", "difflib", "doctest", "inspect", "optparse", "pdb"]
OTHERS = ["shutil", "statistics", "textwrap"]  # to test with
LONGEST = 72


def labelled(code):
    """Pairs of a line and the index of the kind of each of its characters, without the lines of a
    token that has several, such as a docstring."""
    lines = code.splitlines()
    kinds = [[0] * len(line) for line in lines]
    left_out = set()
    for token in tokenize.generate_tokens(io.StringIO(code).readline):
        (row, start), (last, end) = token.start, token.end
        kind = "keyword" if keyword.iskeyword(token.string) else _TOKENS.get(token.type)
        if kind is not None and row == last:
            kinds[row - 1][start:end] = [KINDS.index(kind)] * (end - start)
        elif kind is not None:
            left_out.update(range(row - 1, last))
    whole = [i for i, line in enumerate(lines) if line and i not in left_out]
    return [(lines[i], kinds[i]) for i in whole]


def lines_of(modules):
    """x, (lines, 72), the codes of characters, 0 behind the end of a line; y, (lines, 72)."""
    codes, labels = [], []
    for module in modules:
        path = importlib.util.find_spec(module).origin
        for line, kinds in labelled(pathlib.Path(path).read_text("utf-8")):
            if len(line) <= LONGEST and line.isascii():
                codes.append([ord(character) for character in line])
                labels.append(kinds)
    pad = {"maxlen": LONGEST, "padding": "post"}
    return keras.utils.pad_sequences(codes, **pad), keras.utils.pad_sequences(labels, **pad)


def build():
    layers = [
        keras.Input((None,), dtype="int32", name="characters"),
        keras.layers.Embedding(128, 16, mask_zero=True),  # 0 is masked
        keras.layers.Bidirectional(
            kg.GatedRNN(
                24,
                gate_activation="hard_sigmoid",
                candidate_activation="softsign",
                return_sequences=True,
                grad_clip_norm=0.1,
                activation_l1=1e-5,
                name="reader",
            )
        ),
        keras.layers.Dense(len(KINDS), activation="softmax", name="kinds"),
    ]
    model = keras.Sequential(layers)
    adam = keras.optimizers.Adam(1e-2)
    model.compile(adam, "sparse_categorical_crossentropy", metrics=["accuracy"])
    return model


def shown(line, probabilities):
    """A line, and below it a mark for the kind of each character."""
    kinds = probabilities[: len(line)].argmax(axis=-1)
    return f"{line}\n{''.join(MARKS[kind] for kind in kinds)}"


def run_onnx(path, x):
    """What a program without TensorFlow and keras_gates does."""
    import onnxruntime

    return onnxruntime.InferenceSession(path).run(None, {"characters": x})[0]


def main(argv=None):
    """Returns the accuracy in modules that were not trained on, and the reports of the exports."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--lines", type=int, default=5000, help="to train with; default: 5000")
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("out"))
    arguments = parser.parse_args(argv)
    arguments.out.mkdir(parents=True, exist_ok=True)
    keras.utils.set_random_seed(0)

    x, y = lines_of(MODULES)
    chosen = np.random.default_rng(0).permutation(len(x))[: arguments.lines]
    x_test, y_test = lines_of(OTHERS)
    choice = {"gate_activation": "hard_sigmoid", "candidate_activation": "softsign"}
    print(kg.check_activations("gru", **choice, steps=LONGEST))

    model = build()
    model.fit(x[chosen], y[chosen], batch_size=32, epochs=arguments.epochs, verbose=2)
    _, accuracy = model.evaluate(x_test, y_test, verbose=0)  # of characters, without padding
    print(f"accuracy in {', '.join(OTHERS)}: {accuracy:.3f}")
    print(kg.diagnose(model, x_test, y_test))

    line = 'print(f(x), "# none", 3)  # one'
    given = np.array([[ord(character) for character in line]], "int32")
    print(shown(line, model.predict(given, verbose=0)[0]))

    path = str(arguments.out / "label.onnx")
    reports = [kg.export(model, arguments.out / "label", sample=x_test)]
    if importlib.util.find_spec("onnxruntime"):
        reports.append(kg.export(model, path, sample=x_test))
        np.testing.assert_allclose(
            run_onnx(path, x_test[:3]), model.predict(x_test[:3], verbose=0), atol=1e-4
        )
    for report in reports:
        print(report)
    return accuracy, reports


if __name__ == "__main__":
    main()
