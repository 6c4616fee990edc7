"""Which values to keep: a cheapest cut of a graph."""

import collections

_NEVER = 1e9


def cheapest(costs, required, stops):
    """The values to keep, so that all that is required can be had as cheaply as possible.

    Every value is kept, or computed once more from its arguments, which then are kept or computed
    once more themselves. With "not at hand" on one side of a cut and "at hand" on the other, the
    costs are capacities of the edges that it cuts (Ford, Fulkerson, "Maximal flow through a
    network", 1956).

    Args:
        costs: from each value to those of keeping it and of computing it once more.
        required: values that have to be at hand.
        stops: ids of values that cannot be computed.

    Returns:
        A list of values.
    """
    capacity: dict = collections.defaultdict(dict)

    def edge(a, b, cost):
        capacity[a][b] = min(cost, _NEVER)
        capacity[b].setdefault(a, 0.0)

    for value, (keep, again) in costs.items():
        arguments, result = (id(value), "arguments"), (id(value), "result")
        edge(arguments, result, keep)
        edge("not at hand", arguments, again)
        if id(value) not in stops:
            for argument in value.arguments:
                edge((id(argument), "result"), arguments, _NEVER)
    for value in required:
        edge((id(value), "result"), "at hand", _NEVER)
    while (path := _path(capacity)) is not None:
        flow = min(capacity[a][b] for a, b in path)
        for a, b in path:
            capacity[a][b] -= flow
            capacity[b][a] += flow
    reached = _reached(capacity)
    return [
        v for v in costs if (id(v), "arguments") in reached and (id(v), "result") not in reached
    ]


def _reached(capacity):
    """From what is reached from "not at hand" to where it is reached from."""
    reached = {"not at hand": None}
    queue = collections.deque(reached)
    while queue:
        a = queue.popleft()
        for b, left in capacity[a].items():
            if left > 0 and b not in reached:
                reached[b] = a
                queue.append(b)
    return reached


def _path(capacity):
    """A shortest path with capacity left, as edges, or None."""
    reached = _reached(capacity)
    if "at hand" not in reached:
        return None
    path, b = [], "at hand"
    while reached[b] is not None:
        path.append((reached[b], b))
        b = reached[b]
    return path
