"""What is in an ONNX graph."""


def nodes(graph):
    """All nodes of an ONNX graph, those of loops and branches too."""
    for node in graph.node:
        yield node
        for subgraph in subgraphs(node):
            yield from nodes(subgraph)


def subgraphs(node):
    """The graphs in an ONNX node: the body of a loop, the branches of an If."""
    return [attribute.g for attribute in node.attribute if attribute.HasField("g")]


def names_read(graph):
    """Names of all tensors that something in an ONNX graph reads."""
    names = {output.name for output in graph.output}
    for node in graph.node:
        names.update(node.input, *map(names_read, subgraphs(node)))
    return names
