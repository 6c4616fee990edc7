"""Runs an ONNX file, with ONNX Runtime alone."""

import shared


def load(path):
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]

    def call(signature, inputs):
        return dict(zip(names, session.run(names, inputs), strict=True))

    return call


shared.run(load, without=["keras", "tensorflow"])
