"""Runs an OpenVINO file, with OpenVINO alone."""

import shared


def load(path):
    import openvino

    exact = {"INFERENCE_PRECISION_HINT": "f32"}  # and not bfloat16, where the processor can
    model = openvino.Core().compile_model(str(path), "CPU", exact)

    ports = [port for port in model.inputs if len(port.partial_shape) == 2]
    sizes = {name: port.partial_shape[1].max_length for port in ports for name in port.names}
    stored = ["keras_gates", "states"]
    graph = openvino.Core().read_model(str(path))
    states = graph.get_rt_info(stored).astype(str) if graph.has_rt_info(stored) else None

    def call(inputs):
        found = model(inputs)
        return {name: value for port, value in found.items() for name in port.names}

    return shared.with_states(call, states, sizes)


shared.run(load, without=["keras", "tensorflow"])
