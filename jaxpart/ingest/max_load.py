"""Max-load inputs of Tarnawski et al. (NeurIPS 2020): a profiled graph and its module in one JSON.

- The module has the accelerators ("FPGAs") of the file as chips; the CPUs are left out. It has the
  host topology, no overlap, memory for weights only, and no triangle rule.
- Nodes are named by their id. Parameter nodes stay nodes.
- All edges out of a node are one tensor. Its bytes are the cost of the edges; the link bandwidth is
  1 byte/s, so the cost is also the transfer time.
- Unknown keys are ignored, since the format is not ours. Known keys are checked, also those of the
  CPUs.
"""

from __future__ import annotations

import os
import warnings
from typing import Annotated

import msgspec

from jaxpart import errors
from jaxpart.files import decode_json, stem_of
from jaxpart.problem.graph import Graph, Node, Tensor, Weight, from_unordered
from jaxpart.problem.limits import COST_EXPECTED, MAX_CHIPS, RATE_RANGE, is_cost
from jaxpart.problem.mcm import MCM, Chip, Constraints

# The published inputs have 0 and 1 as well as false and true.
_Flag = Annotated[int, msgspec.Meta(ge=0, le=1)] | bool
_MOST_CPUS = 10**6  # of a machine; more is a mistake


class _Node(msgspec.Struct, frozen=True):
    id: int | str
    fpgaLatency: float  # noqa: N815 (names of the format)
    size: float
    cpuLatency: float = 0  # noqa: N815
    supportedOnFpga: _Flag = True  # noqa: N815
    isBackwardNode: _Flag = False  # noqa: N815
    # No negative numbers: -1 may mean "none", and would put all of these nodes on one chip.
    colorClass: Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)] | None = None  # noqa: N815


class _Edge(msgspec.Struct, frozen=True):
    sourceId: int | str  # noqa: N815
    destId: int | str  # noqa: N815
    cost: float


class _File(msgspec.Struct, frozen=True):
    maxSizePerFPGA: float  # noqa: N815
    maxFPGAs: int  # noqa: N815
    nodes: tuple[_Node, ...]
    edges: tuple[_Edge, ...]
    maxCPUs: int = 0  # noqa: N815


def decode(content: bytes, path: str | os.PathLike[str]) -> tuple[Graph, MCM]:
    """Decodes the graph and the module of a max-load input.

    CPUs are left out. If the edges out of a node differ in cost, the largest cost counts. A warning
    says so.

    Args:
      content: the bytes of the file.
      path: for messages, and for the name of the graph and the module.

    Raises:
      FileFormatError: the file breaks the schema, or is not an inference on accelerators.
      GraphError: as for `Graph`; the message begins with the path.
      MCMError: as for `MCM`, or a count is out of range; the message begins with the path.
    """
    file = decode_json(content, _File, path)
    _refuse_what_is_not_inference(file, path)
    _refuse_what_is_out_of_range(file, path)
    if file.maxCPUs > 0:
        warnings.warn(
            f"{path}: its {file.maxCPUs} CPUs are left out: bottleneck and bound are those of the "
            f"{file.maxFPGAs} accelerators alone",
            UserWarning,
            stacklevel=2,
        )
    number = {node.id: v for v, node in enumerate(file.nodes)}
    name = stem_of(path)
    try:
        _refuse_repeated_ids(file)
        graph = from_unordered(
            [
                Node(str(n.id), "operator", 0, 0, seconds=n.fpgaLatency, colocate=n.colorClass)
                for n in file.nodes
            ],
            _tensors(file, number, path),
            [Weight(node.size, (v,)) for v, node in enumerate(file.nodes)],
            name,
            None,
        )
        mcm = MCM(
            name,
            "host",
            # Every node has profiled seconds, so the two rates are never used.
            (Chip(peak_flops=1, sram_bandwidth=1, sram_bytes=file.maxSizePerFPGA),) * file.maxFPGAs,
            link_bandwidth=1.0,
            overlap=False,
            memory_model="weights",
            constraints=Constraints(triangle=False),
        )
    except (errors.GraphError, errors.MCMError) as error:
        raise type(error)(f"{path}: {error}") from error
    return graph, mcm


def _refuse_what_is_not_inference(file: _File, path: str | os.PathLike[str]) -> None:
    for v, node in enumerate(file.nodes):
        if node.isBackwardNode:
            raise errors.FileFormatError(
                f"{path}: node {node.id} is a backward node - at `$.nodes[{v}]`: a training input, "
                "expected inference"
            )
        if not node.supportedOnFpga:
            raise errors.FileFormatError(
                f"{path}: node {node.id} does not run on an accelerator - at `$.nodes[{v}]`: "
                "expected supportedOnFpga, since the CPUs are left out"
            )


def _refuse_what_is_out_of_range(file: _File, path: str | os.PathLike[str]) -> None:
    """Refuses numbers that no machine and no node has; the message names the key and the place."""
    if not 1 <= file.maxFPGAs <= MAX_CHIPS:
        raise errors.MCMError(
            f"{path}: maxFPGAs is {file.maxFPGAs}, expected 1 or more, at most {MAX_CHIPS:,}"
        )
    if not 0 <= file.maxCPUs <= _MOST_CPUS:
        raise errors.MCMError(
            f"{path}: maxCPUs is {file.maxCPUs}, expected 0 or more, at most {_MOST_CPUS:,}"
        )
    low, high = RATE_RANGE
    if not low <= file.maxSizePerFPGA <= high:
        raise errors.MCMError(
            f"{path}: maxSizePerFPGA is {file.maxSizePerFPGA}, expected a positive number, "
            f"{low:g} to {high:g}"
        )
    places = [
        (f"node {node.id}: {key}", value, f"nodes[{v}].{key}")
        for v, node in enumerate(file.nodes)
        for key, value in (
            ("fpgaLatency", node.fpgaLatency),
            ("cpuLatency", node.cpuLatency),
            ("size", node.size),
        )
    ]
    places += [
        (f"edge {e}: cost", edge.cost, f"edges[{e}].cost") for e, edge in enumerate(file.edges)
    ]
    for what, value, place in places:
        if not is_cost(value):
            raise errors.CostError(
                f"{path}: {what} is {value} - at `$.{place}`: expected {COST_EXPECTED}"
            )


def _refuse_repeated_ids(file: _File) -> None:
    seen: set[str] = set()
    for v, node in enumerate(file.nodes):
        if str(node.id) in seen:
            raise errors.DuplicateNameError(
                f"node {node.id} is there twice - at `$.nodes[{v}]`: expected unique ids"
            )
        seen.add(str(node.id))


def _tensors(
    file: _File, number: dict[int | str, int], path: str | os.PathLike[str]
) -> list[Tensor]:
    consumers: dict[int, list[int]] = {}
    cost: dict[int, float] = {}
    unequal: dict[int | str, None] = {}  # nodes with edges of several costs, in order
    for e, edge in enumerate(file.edges):
        for end in (edge.sourceId, edge.destId):
            if end not in number:
                raise errors.UnknownNodeError(
                    f"edge {e} names node {end}, expected an id of one of the nodes"
                )
        u = number[edge.sourceId]
        consumers.setdefault(u, []).append(number[edge.destId])
        if cost.setdefault(u, edge.cost) != edge.cost:
            unequal[edge.sourceId] = None
            cost[u] = max(cost[u], edge.cost)
    if unequal:
        others = f" (and of {len(unequal) - 1} more nodes)" if len(unequal) > 1 else ""
        warnings.warn(
            f"{path}: edges out of node {next(iter(unequal))}{others} differ in cost; the largest "
            "counts",
            UserWarning,
            stacklevel=2,
        )
    return [Tensor(u, cost[u], tuple(targets)) for u, targets in consumers.items()]
