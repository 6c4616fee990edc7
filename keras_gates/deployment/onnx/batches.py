"""Recurrent operators for every batch size.

For a few sequences nothing in ONNX Runtime is faster than its GRU, LSTM and RNN. For many a Scan of
plain operators, whose time step is shared among the cores, is faster than its GRU and RNN, as long
as it has no mask to obey. And for no sequence at all, or no time step, the operators end the
process instead of raising an error (seen in ONNX Runtime 1.32). So every operator becomes an If,
with itself in one branch and what is right for many and for none in the other. The weights are in
the file once: ONNX Runtime prepares those of the Scan when it loads it.
"""

import functools

import numpy as np

from keras_gates.deployment.onnx.graphs import names_read, nodes, subgraphs

# From so many sequences on a Scan is faster, if their states hold so many numbers in all. For an
# LSTM it never is.
MANY = {"GRU": (32, 2048), "RNN": (16, 512)}
MOST = 128  # from so many on it is, however small the states are
_RECURRENT = ("GRU", "LSTM", "RNN")


def suit_all_batches(model):
    """Puts an If in the place of every GRU, LSTM and RNN of an `onnx.ModelProto`.

    Of their inputs only the lengths may be missing.

    Returns:
        Whether any of them is a Scan for many sequences.
    """
    return _suit(model.graph, names_read(model.graph))


def have_masks(model):
    """Whether a GRU or RNN of an `onnx.ModelProto` has a mask to obey, so that no Scan runs many
    sequences."""
    return any(node.op_type in MANY and node.input[4] for node in nodes(model.graph))


def _suit(graph, read):
    found, twice = [], False
    for node in graph.node:
        for subgraph in subgraphs(node):
            twice |= _suit(subgraph, read)
        twice |= _has_two_ways(node)
        if node.op_type in _RECURRENT:
            nodes = _choice(node, [name for name in node.output if name in read])
            found += nodes.all
            graph.initializer.extend(nodes.constants)
        else:
            found.append(node)
    del graph.node[:]
    graph.node.extend(found)
    return twice


def _choice(node, wanted):
    """The nodes that stand for a recurrent one, with those of its outputs that are wanted."""
    nodes, some, none = (_Nodes(node.name + place) for place in ("", "/some", "/none"))
    shape = nodes.sizes(node.input[0], 0, 2)  # time and batch
    smallest = nodes("ReduceMin", shape, keepdims=0)
    if _has_two_ways(node):
        values = _few_or_many(node, nodes, some, wanted)
    else:
        values = some.copy(node, wanted)
    nodes(
        "If",
        nodes("Greater", smallest, 0),
        outputs=wanted,
        then_branch=some.graph(values),
        else_branch=none.graph(_of(wanted, node, _nothing(node, none))),
    )
    return nodes


def _has_two_ways(node):
    """Whether a node is a recurrent one that is a Scan for many sequences."""
    return node.op_type in MANY and not node.input[4]  # without lengths


def _few_or_many(node, outside, nodes, wanted):
    """The outputs, by the operator itself or by Scans."""
    few, many = (_Nodes(node.name + place) for place in ("/few", "/many"))
    every = node.output[0] in wanted
    return nodes(
        "If",
        nodes("Less", nodes.sizes(node.input[0], 1, 2), [_many(node)]),
        outputs=len(wanted),
        then_branch=few.graph(few.copy(node, wanted)),
        else_branch=many.graph(_of(wanted, node, _scanned(node, outside, many, every))),
    )


def _of(wanted, node, values):
    """Those of the values of all outputs that are wanted."""
    return [v for v, name in zip(values, node.output, strict=True) if name in wanted]


def _many(node):
    """How many sequences are many."""
    (units,) = [attribute.i for attribute in node.attribute if attribute.name == "hidden_size"]
    sequences, numbers = MANY[node.op_type]
    return min(MOST, max(sequences, numbers // units))


def _nothing(node, nodes):
    """The outputs for no sequences or no time steps: none, and the states that there were."""
    x, states = node.input[0], node.input[5:]
    sizes = [
        nodes.sizes(tensor, axis, axis + 1)
        for tensor, axis in [(x, 0), (states[0], 0), (x, 1), (states[0], 2)]
    ]
    hidden = nodes("Expand", np.float32(0), nodes("Concat", *sizes, axis=0))
    return [hidden, *(nodes("Identity", state) for state in states)]


def _scanned(node, outside, nodes, every):
    """The outputs, by one Scan per direction.

    Args:
        node: a GRU or RNN.
        outside: the nodes around the branch, where what is made of weights alone is constant.
        nodes: those of the branch.
        every: whether the hidden states of all steps are wanted.
    """
    x, *weights, _, initial = node.input
    attributes = {attribute.name: attribute for attribute in node.attribute}
    blocks = 3 if node.op_type == "GRU" else 1
    after_reset = blocks == 3 and attributes["linear_before_reset"].i
    hidden, last = [], []
    for index, (backwards, activations) in enumerate(_directions(attributes)):
        W, R, b = (outside("Gather", weight, index) for weight in weights)
        W, R, b = outside.split(W, blocks), outside.split(R, blocks), outside.split(b, 2 * blocks)
        b, c = b[:blocks], b[blocks:]
        summed = 2 if after_reset else blocks  # so many of b are simply added to those of c
        b = [outside("Add", b[k], c[k]) if k < summed else b[k] for k in range(blocks)]
        projected = [
            nodes("Add", nodes("MatMul", x, outside("Transpose", kernel)), bias)
            for kernel, bias in zip(W, b, strict=True)
        ]
        step = _Nodes(f"{node.name}/step{index}")
        h, *given = (step.input(name) for name in ("h", "x0", "x1", "x2")[: 1 + blocks])
        if blocks == 3:
            new = _gru(step, given, h, R, c, activations, after_reset)
        else:
            new = _rnn(step, given, h, R, activations)
        after, *over_time = nodes(
            "Scan",
            nodes("Gather", initial, index),
            *projected,
            outputs=1 + every,
            body=step.graph([new, step("Identity", new)] if every else [new]),
            num_scan_inputs=blocks,
            scan_input_directions=[int(backwards)] * blocks,
            **({"scan_output_directions": [int(backwards)]} if every else {}),
        )
        last.append(nodes("Unsqueeze", after, [0]))
        hidden += [nodes("Unsqueeze", value, [1]) for value in over_time]
    return [nodes("Concat", *hidden, axis=1) if every else "", nodes("Concat", *last, axis=0)]


def _gru(step, x, h, R, c, activations, after_reset):
    f, g = activations
    z, r = (f(step, step("Gemm", h, R[k], x[k], transB=1)) for k in (0, 1))
    if after_reset:
        n = step("Add", x[2], step("Mul", r, step("Gemm", h, R[2], c[2], transB=1)))
    else:
        n = step("Gemm", step("Mul", r, h), R[2], x[2], transB=1)
    n = g(step, n)
    return step("Add", n, step("Mul", z, step("Sub", h, n)))  # z * h + (1 - z) * n


def _rnn(step, x, h, R, activations):
    (f,) = activations
    return f(step, step("Gemm", h, R[0], x[0], transB=1))


def _directions(attributes):
    """(whether it reads backwards, its activations) of each direction.

    An activation is a function from nodes and the name of a tensor to that of its value.
    """
    from onnx import defs

    parameters = {
        name: iter(attributes[f"activation_{name}"].floats)
        for name in ("alpha", "beta")
        if f"activation_{name}" in attributes
    }
    activations = []
    for name in attributes["activations"].strings:
        op_type = name.decode()
        # Two of them are no operators any more.
        takes = parameters if op_type in _RETIRED else defs.get_schema(op_type).attributes
        its = {key: next(values) for key, values in parameters.items() if key in takes}
        activations.append(functools.partial(_activated, op_type, its))
    directions = {b"forward": [False], b"reverse": [True], b"bidirectional": [False, True]}
    backwards = directions[attributes["direction"].s]
    count = len(activations) // len(backwards)
    return [
        (back, activations[index * count : (index + 1) * count])
        for index, back in enumerate(backwards)
    ]


def _affine(nodes, x, alpha, beta):
    return nodes("Add", nodes("Mul", x, np.float32(alpha)), np.float32(beta))


def _scaled_tanh(nodes, x, alpha, beta):
    return nodes("Mul", nodes("Tanh", nodes("Mul", x, np.float32(beta))), np.float32(alpha))


_RETIRED = {"Affine": _affine, "ScaledTanh": _scaled_tanh}


def _activated(op_type, parameters, nodes, x):
    if op_type in _RETIRED:
        return _RETIRED[op_type](nodes, x, **parameters)
    return nodes(op_type, x, **parameters)


class _Nodes:
    """Nodes that are made one after the other.

    Args:
        prefix: begins the names of all.

    Attributes:
        all, constants: the nodes, and the constant tensors that they read.
    """

    def __init__(self, prefix):
        self.prefix, self.all, self.constants, self._inputs = prefix, [], [], []

    def __call__(self, op_type, *inputs, outputs=None, **attributes):
        """Makes a node.

        Args:
            op_type: its operator.
            inputs: names of tensors, or constants.
            outputs: their names, or how many there are. Default: one.

        Returns:
            The name of its output; the list of their names if `outputs` is given.
        """
        import onnx

        name = f"{self.prefix}/{op_type}{len(self.all)}"
        inputs = [i if isinstance(i, str) else self._constant(i) for i in inputs]
        names = outputs
        if not isinstance(names, list):
            names = [f"{name}:{index}" for index in range(outputs or 1)]
        self.all.append(onnx.helper.make_node(op_type, inputs, names, name=name, **attributes))
        return names[0] if outputs is None else names

    def sizes(self, tensor, start, end):
        """Those of some of its axes."""
        return self("Slice", self("Shape", tensor), np.array([start]), np.array([end]))

    def copy(self, node, wanted):
        """Makes a node like another; the names of those of its outputs that are wanted."""
        self.all.append(type(node)())
        self.all[-1].CopyFrom(node)
        names = [f"{self.prefix}/{name}" if name in wanted else "" for name in node.output]
        self.all[-1].output[:] = names
        return [name for name in names if name]

    def split(self, x, count):
        """The names of so many equal parts along the first axis."""
        return [x] if count == 1 else self("Split", x, outputs=count, axis=0)

    def input(self, name):
        """The name of an input of the graph of these nodes."""
        self._inputs.append(f"{self.prefix}/{name}")
        return self._inputs[-1]

    def graph(self, outputs):
        """The graph that these nodes are."""
        import onnx

        def tensors(names):
            kind = onnx.TensorProto.FLOAT
            return [onnx.helper.make_tensor_value_info(name, kind, None) for name in names]

        return onnx.helper.make_graph(
            self.all, self.prefix, tensors(self._inputs), tensors(outputs), self.constants
        )

    def _constant(self, value):
        import onnx

        name = f"{self.prefix}/constant{len(self.constants)}"
        self.constants.append(onnx.numpy_helper.from_array(np.asarray(value), name))
        return name
