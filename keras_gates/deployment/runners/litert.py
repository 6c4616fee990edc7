"""Runs a LiteRT file, with LiteRT's interpreter alone."""

import numpy as np
import shared


def load(path):
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(str(path))
    names = interpreter.get_signature_list()
    runners = {name: interpreter.get_signature_runner(name) for name in names}

    def call(signature, inputs):
        if signature == "initial_state" and signature not in names:
            step = runners["step"]
            states = step.get_input_details().keys() & step.get_output_details().keys()
            details = step.get_input_details()
            return {name: np.zeros(details[name]["shape"], "float32") for name in states}
        runner = runners[signature]
        known = runner.get_input_details()  # no batch_size for the initial state: it is fixed
        return runner(**{name: value for name, value in inputs.items() if name in known})

    return call


shared.run(load, without=["keras", "tensorflow"])
