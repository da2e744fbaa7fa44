"""Small graphs of known shape, for tests."""

import numpy as np

from jaxpart.problem.division import Division
from jaxpart.problem.graph import Graph, Node, Tensor, Weight
from jaxpart.problem.mcm import load_mcm
from jaxpart.problem.problem import Problem

ROWS, OUT = "rows", "out"  # labels of axes


def diamonds(length: int, far: bool = False) -> Problem:
    """`length` diamonds a -> b, c -> d in a row; with `far`, the first node also feeds the last."""
    tensors = []
    for i in range(length):
        a = 4 * i
        tensors += [
            Tensor(a, 3.0, (a + 1, a + 2)),
            Tensor(a + 1, 5.0, (a + 3,)),
            Tensor(a + 2, 7.0, (a + 3,)),
        ]
        if i + 1 < length:
            tensors.append(Tensor(a + 3, 11.0, (a + 4,)))
    if far:
        tensors.append(Tensor(0, 13.0, (4 * length - 1,)))
    nodes = tuple(
        Node(f"n{i}", "op", flops=1e6 * (i % 7), bytes_accessed=1.0) for i in range(4 * length)
    )
    graph = Graph(nodes, tuple(tensors), name="diamonds", element_bytes=1.0)
    return Problem.build(graph, load_mcm("mcm4"))


def line(flops: list[float], sizes: list[int], weights: list[int] | None = None) -> Graph:
    """A path: FLOPs of each node, bytes of each tensor, bytes of each node's weight."""
    return Graph(
        tuple(Node(f"v{i}", "op", x, 0) for i, x in enumerate(flops)),
        tuple(Tensor(i, x, (i + 1,)) for i, x in enumerate(sizes)),
        tuple(Weight(x, (i,)) for i, x in enumerate(weights or [])),
        "line",
    )


def grid(rows: int, steps: int) -> Graph:
    """A recurrent network of equal cells: `rows` layers over `steps` time steps."""
    nodes = tuple(
        Node(f"{r}.{t}", "cell", flops=100.0, bytes_accessed=0.0)
        for t in range(steps)
        for r in range(rows)
    )
    tensors = []
    for v in range(rows * steps):
        row, step = v % rows, v // rows
        consumers = [v + 1] if row + 1 < rows else []
        consumers += [v + rows] if step + 1 < steps else []
        tensors.append(Tensor(v, 1.0, tuple(consumers)))
    return Graph(nodes, tuple(tensors), name="grid")


def ladder(count=9):
    """Two parallel chains that join at the end; every node has another cost."""
    nodes = tuple(
        Node(f"n{v}", "dot" if v % 2 else "add", 1e9 * (v + 1), 1e6) for v in range(count)
    )
    tensors = [Tensor(v, 1000.0 * (v + 1), (v + 2,)) for v in range(count - 2)]
    return Graph(nodes, (*tensors, Tensor(count - 2, 1e4, (count - 1,))), name="ladder")


def parallel_chains(width: int, depth: int, seed: int = 0) -> Graph:
    """`width` parallel chains of `depth` nodes with a common start and end; it has many orders."""
    rng = np.random.default_rng(seed)
    nodes = [Node("start", "op", 1.0, 1.0)]
    tensors = []
    ends = []
    for w in range(width):
        previous = 0
        for d in range(depth):
            nodes.append(Node(f"w{w}d{d}", "op", float(rng.integers(1, 100)), 1.0))
            tensors.append(Tensor(previous, 1.0, (len(nodes) - 1,)))
            previous = len(nodes) - 1
        ends.append(previous)
    nodes.append(Node("end", "op", 1.0, 1.0))
    tensors += [Tensor(end, 1.0, (len(nodes) - 1,)) for end in ends]
    return Graph(tuple(nodes), tuple(tensors), (Weight(1.0, (0,)),), "layered", None)


def layers(count: int = 8, heavy: int = 3) -> Graph:
    """A path of layers that can be cut by rows or by outputs; one of them has most of the work."""
    nodes, tensors, weights = [], [], []
    for v in range(count):
        reads = ((v - 1, ROWS),) if v else ()
        nodes.append(
            Node(
                f"n{v}",
                "conv",
                64e6 if v == heavy else 1e6,
                3000,
                divide=(
                    Division(64, ROWS, reads=reads),
                    Division(64, f"{OUT}{v}", weights=((v, "a"),)),
                ),
            )
        )
        tensors.append(Tensor(v, 640, (v + 1,) if v + 1 < count else ()))
        weights.append(Weight(64, (v,)))
    return Graph(tuple(nodes), tuple(tensors), tuple(weights), "layers", 1)
