"""Runs an ONNX file, with ONNX Runtime alone."""

import shared


def load(path):
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    sizes = {given.name: (given.shape or [0])[-1] for given in session.get_inputs()}
    metadata = session.get_modelmeta().custom_metadata_map

    def call(inputs):
        return dict(zip(names, session.run(names, inputs), strict=True))

    return shared.with_states(call, metadata.get("keras_gates.states"), sizes)


shared.run(load, without=["keras", "tensorflow"])
