"""What a format says of a file: the operators in it, how it is called, what is worth knowing."""

import dataclasses


@dataclasses.dataclass
class Written:
    """A written file, as its format describes it.

    Attributes:
        operators: how often each operator occurs, by name.
        notes: sentences for the reader of the report, such as "gated_rnn runs as a Scan, because
            ONNX has no activation swish".
        signatures: from the name of a signature, the one for whole sequences first
            ("serving_default"), to {"inputs": tensors, "outputs": tensors}, where tensors is a
            dict from a name to {"shape": list with None for what is dynamic, "dtype": name}. The
            first two axes of an input are batch and time.
    """

    operators: dict[str, int]
    notes: list[str]
    signatures: dict[str, dict]
