"""Merges nodes as compilers do: layout and elementwise operations join neighbouring work.

A trace has one node per primitive, but a compiler runs far fewer kernels. `fuse` turns a trace into
a graph of kernels, since a partition places kernels.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import msgspec

from jaxpart.ingest.rewrite.contract import contract
from jaxpart.ingest.rewrite.divisions import VIEWS, past_views, renumbered
from jaxpart.ingest.rewrite.groups import Groups
from jaxpart.problem.graph import Graph, Node, Tensor, Weight

# _PARTS select some elements of a tensor.
# fmt: off
_PARTS = frozenset(
    ["dynamic_slice", "pad", "slice", "split", "unstack", "Pad", "Slice", "Split"]
)
_ELEMENTWISE = frozenset(
    [
        "abs", "add", "add_any", "and", "atan2", "cbrt", "ceil", "clamp", "convert_element_type",
        "cos", "cosh", "div", "eq", "erf", "erf_inv", "erfc", "exp", "exp2", "expm1", "floor", "ge",
        "gt", "integer_pow", "is_finite", "le", "log", "log1p", "logistic", "lt", "max", "min",
        "mul", "ne", "neg", "not", "or", "pow", "reduce_precision", "rem", "round", "rsqrt",
        "select_n", "sign", "sin", "sinh", "sqrt", "square", "sub", "tan", "tanh", "xor",
        "Abs", "Add", "Cast", "Ceil", "Clip", "Div", "Dropout", "Elu", "Erf", "Exp", "Floor",
        "HardSigmoid", "HardSwish", "LeakyRelu", "Log", "Max", "Min", "Mul", "Neg", "PRelu", "Pow",
        "Reciprocal", "Relu", "Selu", "Sigmoid", "Softplus", "Sqrt", "Sub", "Tanh", "Where",
    ]
)
_REDUCTIONS = frozenset(
    [
        "argmax", "argmin", "reduce_and", "reduce_max", "reduce_min", "reduce_or", "reduce_prod",
        "reduce_sum", "reduce_window", "reduce_window_max", "reduce_window_min",
        "reduce_window_sum", "ArgMax", "ReduceL2", "ReduceMax", "ReduceMean", "ReduceMin",
        "ReduceSum",
    ]
)
# fmt: on
_LIGHT = VIEWS | _PARTS | _ELEMENTWISE


class Fusion(NamedTuple):
    """A graph of kernels, and what became of the N nodes of the original graph.

    Attributes:
      graph: the graph of kernels.
      node_of: [N] the kernel of each node; None for a view, which its consumers take themselves.
    """

    graph: Graph
    node_of: tuple[int | None, ...]


def fuse(graph: Graph) -> Graph:
    """Merges the N nodes of a graph into the kernels of a compiler.

    1. Views (reshape, transpose, broadcast, ...) of one tensor are removed if that tensor is no
       larger than the view. Their consumers read the tensor itself. So the small tensor of a
       broadcast is sent, not the large one.
    2. A light operation (elementwise or layout) joins
       - its only producer, if the producer has no other consumer;
       - its only producer, together with all other consumers of the producer, if all of them
         select parts (the gates of an LSTM, which are parts of one product);
       - its only consumer, if the operation has no producer (it works on inputs);
       - its only consumer, if the operation has one producer, and the consumer is a reduction (a
         sum of squares), or is light too and reads the same producer (x * sigmoid(x)).
       An output of the graph counts as a consumer here. The step repeats until nothing joins. An
       elementwise operation with several producers (a residual addition) starts its own kernel. No
       operation is computed twice.

    Nodes with a fixed chip, a colocation group or profiled seconds join nothing.

    Total FLOPs and weights stay the same. Every edge follows a path of the original graph. A kernel
    accesses the bytes that enter or leave it: a tensor that stays inside does not count, and a
    tensor that several of its nodes read counts once. The op and the name of a kernel are those of
    its node with the most FLOPs; light nodes are considered only if all its nodes are light.

    Returns:
      A graph of at most N nodes, in a topological order.
    """
    return fused(graph).graph


def fused(graph: Graph) -> Fusion:
    """As `fuse`; also says what became of each node."""
    graph, numbers = _without_views(graph)
    group = _joined(graph)
    members: dict[int, list[int]] = {}
    for v, b in enumerate(group):
        members.setdefault(b, []).append(v)
    accessed = _accessed_bytes(graph, group)
    fixed = _accessed_bytes(graph, group, fixed_only=True)
    small, kernel_of = contract(graph, group)
    kernel = {graph.nodes[part[0]].name: (b, part) for b, part in members.items()}
    nodes = []
    for node in small.nodes:
        b, part = kernel[node.name]
        main = max((graph.nodes[v] for v in part), key=_importance)
        nodes.append(
            msgspec.structs.replace(
                node,
                name=main.name,
                op=main.op,
                bytes_accessed=accessed[b],
                fixed_bytes=min(fixed[b], accessed[b]),
            )
            if len(part) > 1
            else node
        )
    node_of = tuple(None if v is None else kernel_of[v] for v in numbers)
    return Fusion(dataclasses.replace(small, nodes=tuple(nodes)), node_of)


def _importance(node: Node) -> tuple[bool, float]:
    return node.op not in _LIGHT, node.flops


def _is_constrained(node: Node) -> bool:
    return (node.pin, node.colocate, node.seconds) != (None, None, None)


def _without_views(graph: Graph) -> tuple[Graph, tuple[int | None, ...]]:
    """Removes views; their consumers read the viewed tensor (step 1 of `fuse`).

    Returns:
      The graph; and [N] the new number of each node, None for a view.
    """
    read: list[list[int]] = [[] for _ in graph.nodes]  # tensor numbers
    made: list[list[int]] = [[] for _ in graph.nodes]  # tensor numbers
    weighted = {q for weight in graph.weights for q in weight.consumers}
    for k, tensor in enumerate(graph.tensors):
        made[tensor.producer].append(k)
        for q in tensor.consumers:
            read[q].append(k)
    root = list(range(len(graph.tensors)))  # tensor -> the viewed tensor, or itself
    views: set[int] = set()
    for v, node in enumerate(graph.nodes):
        if node.op not in VIEWS or node.flops or _is_constrained(node) or v in weighted:
            continue
        sources = {root[k] for k in read[v]}
        if len(sources) != 1 or not made[v]:
            continue
        (source,) = sources
        if all(graph.tensors[source].bytes <= graph.tensors[k].bytes for k in made[v]):
            views.add(v)
            for k in made[v]:
                root[k] = source
    if not views:
        return graph, tuple(range(len(graph.nodes)))
    number = {}
    accessed, fixed = [], []
    for v, node in enumerate(graph.nodes):
        if v in views:
            continue
        number[v] = len(number)
        viewed = {root[k] for k in read[v]}
        for total, known, fixed_only in (
            (accessed, node.bytes_accessed, False),
            (fixed, node.fixed_bytes, True),
        ):
            before = sum(_size(graph.tensors[k], fixed_only) for k in read[v])
            after = sum(_size(graph.tensors[k], fixed_only) for k in viewed)
            total.append(max(known - before + after, min(after, known)))
    consumers: list[set[int]] = [set() for _ in graph.tensors]
    for k, tensor in enumerate(graph.tensors):
        consumers[root[k]].update(number[q] for q in tensor.consumers if q in number)
    kept = [k for k in range(len(graph.tensors)) if root[k] == k]
    tensors = (
        msgspec.structs.replace(
            graph.tensors[k],
            producer=number[graph.tensors[k].producer],
            consumers=tuple(sorted(consumers[k])),
        )
        for k in kept
    )
    tensor_number = {k: new for new, k in enumerate(kept)}
    weights = (
        msgspec.structs.replace(w, consumers=tuple(number[q] for q in w.consumers))
        for w in graph.weights
    )
    nodes = (
        msgspec.structs.replace(
            graph.nodes[v],
            bytes_accessed=accessed[new],
            fixed_bytes=min(fixed[new], accessed[new]),
            divide=renumbered(past_views(graph, v, views, read), tensor_number),
        )
        for v, new in number.items()
    )
    viewed = dataclasses.replace(
        graph, nodes=tuple(nodes), tensors=tuple(tensors), weights=tuple(weights)
    )
    return viewed, tuple(map(number.get, range(len(graph.nodes))))


def _size(value: Tensor | Weight, fixed_only: bool) -> float:
    """The bytes of a value, or those of them that no element size scales."""
    return value.bytes if value.fixed or not fixed_only else 0.0


class _Kernels:
    """Groups of nodes that become kernels, and the rules by which they join (step 2 of `fuse`).

    Each list is [N], indexed by the number of a group. `is_reduction` is about the node with that
    number only, the other lists are about the whole group.
    """

    def __init__(self, graph: Graph) -> None:
        self.groups = Groups(graph)
        self.may_join = [not _is_constrained(node) for node in graph.nodes]
        self.is_light = self._kind(graph, _LIGHT)
        self.is_part = self._kind(graph, _PARTS)
        self.is_reduction = self._kind(graph, _REDUCTIONS)
        self.is_output = [False] * len(graph.nodes)
        for tensor in graph.tensors:
            self.is_output[tensor.producer] |= not tensor.consumers

    def _kind(self, graph: Graph, ops: frozenset[str]) -> list[bool]:
        return [
            may_join and node.op in ops
            for may_join, node in zip(self.may_join, graph.nodes, strict=True)
        ]

    def join(self, b: int, into: int) -> None:
        self.groups.join(b, into)
        self.is_light[into] &= self.is_light[b]
        self.is_part[into] &= self.is_part[b]
        self.is_output[into] |= self.is_output[b]

    def partner(self, b: int) -> int | None:
        """The group that group b joins; None if it joins none."""
        if not self.is_light[b]:
            return None
        producers, consumers = self.groups.producers[b], self.groups.consumers[b]
        producer = next(iter(producers)) if len(producers) == 1 else None
        if producer is not None and self.may_join[producer] and not self.is_output[producer]:
            rivals = self.groups.consumers[producer] - {b}
            if not rivals or (
                self.is_part[b] and all(self._is_part_of(q, producer) for q in rivals)
            ):
                return producer
        if len(consumers) != 1 or self.is_output[b]:
            return None
        (consumer,) = consumers
        if producer is None:
            return consumer if not producers and self.may_join[consumer] else None
        reads_the_same = producer in self.groups.producers[consumer]
        if self.is_reduction[consumer] or (self.is_light[consumer] and reads_the_same):
            return consumer
        return None

    def _is_part_of(self, b: int, producer: int) -> bool:
        return self.is_part[b] and self.groups.producers[b] == {producer}


def _joined(graph: Graph) -> list[int]:
    """[N] the group of each node, when no more groups join."""
    kernels = _Kernels(graph)
    changed = True
    while changed:
        changed = False
        for b in kernels.groups.alive():
            into = kernels.partner(b)
            if into is None:
                continue
            rivals = kernels.groups.consumers[into] - {b}
            is_producer = b in kernels.groups.consumers[into]
            # All parts of one producer join together. If one joined alone, its consumers would
            # become consumers of the producer, and the other parts could not join any more.
            for q in [b, *sorted(rivals)] if is_producer else [b]:
                kernels.join(q, into)
            changed = True
    return kernels.groups.of_nodes()


def _accessed_bytes(
    graph: Graph, group: Sequence[int], *, fixed_only: bool = False
) -> dict[int, float]:
    """Bytes that each group reads and writes, without tensors that stay inside it.

    Args:
      graph: of N nodes.
      group: [N] the group of each node.
      fixed_only: whether to count only bytes that no element size scales.
    """
    separate: dict[int, float] = dict.fromkeys(group, 0.0)
    leaving: dict[int, float] = dict.fromkeys(group, 0.0)
    for node, b in zip(graph.nodes, group, strict=True):
        separate[b] += node.fixed_bytes if fixed_only else node.bytes_accessed
    accessed = dict(separate)

    def drop_repeats(size: float, consumers: Iterable[int], maker: int | None) -> None:
        readers: dict[int, int] = {}
        for q in consumers:
            readers[group[q]] = readers.get(group[q], 0) + 1
        for b, count in readers.items():
            accessed[b] -= size * (count if b == maker else count - 1)

    for tensor in graph.tensors:
        b, size = group[tensor.producer], _size(tensor, fixed_only)
        drop_repeats(size, tensor.consumers, b)
        if tensor.consumers and all(group[q] == b for q in tensor.consumers):
            accessed[b] -= size
        else:
            leaving[b] += size
    for weight in graph.weights:
        drop_repeats(_size(weight, fixed_only), weight.consumers, None)
    # A node that reads a part of a table has counted that part only, but the whole table was
    # subtracted above. The result can be too small, so what leaves the group is a lower limit.
    return {b: max(size, min(leaving[b], separate[b])) for b, size in accessed.items()}
