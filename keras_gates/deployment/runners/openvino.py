"""Runs an OpenVINO file, with OpenVINO alone."""

import shared


def load(path):
    import openvino

    exact = {"INFERENCE_PRECISION_HINT": "f32"}  # and not bfloat16, where the processor can
    model = openvino.Core().compile_model(str(path), "CPU", exact)

    def call(signature, inputs):
        found = model(inputs)
        return {name: value for port, value in found.items() for name in port.names}

    return call


shared.run(load, without=["keras", "tensorflow"])
