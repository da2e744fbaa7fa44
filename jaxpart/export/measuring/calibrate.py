"""A device as the cost model sees it, fitted to measured nodes.

The cost model says that a node takes max(flops / peak_flops, bytes_accessed / sram_bandwidth). What
is fitted has one term more, the time that starting any node takes. It makes the absolute errors of
nodes, and of 4, 16 and 64 nodes one after the other, smallest in sum: what matters is the sum of a
stage, and one odd node changes little. Each graph counts the same.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence

import numpy as np
from scipy import sparse
from scipy.optimize import linprog, minimize

from jaxpart.errors import InputError
from jaxpart.problem.graph import Graph
from jaxpart.problem.limits import RATE_RANGE
from jaxpart.problem.mcm import MCM, Chip
from jaxpart.problem.problem import FloatArray
from jaxpart.text import printable

_SPLITS = 16  # places where nodes bound by compute are divided from those bound by memory
_ROUNDS = 8  # of fitting to the division that the last fit implies
_POLISHED = 3  # fits from which a simplex search goes on
_SIMPLEX = 0.1  # its first step, in ratios
_FEWEST = 3  # nodes, for three numbers
_TOGETHER = (1, 4, 16, 64)  # nodes whose sums are fitted


@dataclasses.dataclass(frozen=True)
class Device:
    """A fitted device.

    Attributes:
      peak_flops: FLOP/s.
      sram_bandwidth: bytes/s.
      launch_s: seconds that every node takes beside.
      error: the mean over graphs of the sum of absolute errors, over the sum of what was measured.
      nodes: number of nodes it was fitted to.
      notes: sentences on what the nodes do not show.
    """

    peak_flops: float
    sram_bandwidth: float
    launch_s: float
    error: float
    nodes: int
    notes: tuple[str, ...] = ()

    def seconds(self, graph: Graph, *, launch: bool = True) -> dict[str, float]:
        """What the device takes for each node, by name.

        Args:
          graph: in the element size that runs.
          launch: whether the time of starting a node is added.
        """
        extra = self.launch_s if launch else 0.0
        return {
            v.name: max(v.flops / self.peak_flops, v.bytes_accessed / self.sram_bandwidth) + extra
            for v in graph.nodes
        }

    def module(self, name: str, chips: int, sram_bytes: float, link_bandwidth: float) -> MCM:
        """A chain of such devices; the time of starting nodes has no place in it."""
        chip = Chip(self.peak_flops, self.sram_bandwidth, sram_bytes)
        return MCM(name, "chain", (chip,) * chips, link_bandwidth)


def calibrated(graphs: Sequence[Graph]) -> Device:
    """Fits a device to the measured nodes of graphs.

    Args:
      graphs: in the element size that ran; nodes without `seconds` are left out.

    Raises:
      InputError: fewer than three nodes were measured, or all in no time; or none has FLOP, or none
        bytes.
    """
    parts = [[v for v in graph.nodes if v.seconds is not None] for graph in graphs]
    nodes = [v for part in parts for v in part]
    flops = np.array([v.flops for v in nodes], np.float64)
    accessed = np.array([v.bytes_accessed for v in nodes], np.float64)
    seconds = np.array([v.seconds for v in nodes], np.float64)
    if len(nodes) < _FEWEST or not seconds.any():
        raise InputError(
            f"{len(nodes)} nodes were measured, {np.count_nonzero(seconds)} of them in more than "
            f"no time; expected {_FEWEST} or more"
        )
    if not flops.any() or not accessed.any():
        raise InputError("no measured node has FLOP, or none accesses bytes; expected both")
    sums = _sums([len(part) for part in parts], seconds)
    best = _fit(flops, accessed, seconds, sums)
    notes = []
    rates = []
    compute_s, memory_s = best[0] * flops, best[1] * accessed
    for slope, amount, binds, what in (
        (best[0], flops, compute_s > memory_s, "peak_flops"),
        (best[1], accessed, memory_s > compute_s, "sram_bandwidth"),
    ):
        rate = 1 / slope if slope > 0 else math.inf
        if not rate <= RATE_RANGE[1] or not binds.any():
            some = (seconds > 0) & (amount > 0)
            rate = float((amount[some] / seconds[some]).max())
            notes.append(f"no measured node is bound by {what}: it is the highest rate seen")
        rates.append(rate)
    found = np.maximum(flops / rates[0], accessed / rates[1]) + best[2]
    error = float(np.abs(sums @ (found - seconds)).sum() / (sums @ seconds).sum())
    return Device(rates[0], rates[1], best[2], error, len(nodes), tuple(notes))


def toml(device: Device, mcm: MCM, origin: str) -> str:
    """The module as a TOML file, with what it was fitted to in comments.

    Args:
      device: the fitted one.
      mcm: what `Device.module` gives.
      origin: where the nodes were measured, in words.
    """
    chip = mcm.chips[0]
    told = [
        f"Fitted to {device.nodes:,} measured nodes; error {100 * device.error:.1f}% of the time.",
        f"Measured on: {origin}",
        f"Starting a node takes {device.launch_s * 1e6:.4g} us more, which has no place here and "
        "which --mcm leaves out:",
        "scripts/calibrate.py --predicted DIR writes seconds that include it, for --seconds.",
        "Not measured: sram_bytes and the bandwidth of links.",
        *device.notes,
    ]
    comments = "".join(f"# {printable(line)}\n" for line in told)
    name = printable(mcm.name).replace("\\", "/").replace('"', "'")
    return comments + (
        f'name = "{name}"\n'
        f'topology = "{mcm.topology}"\n'
        f"overlap = {str(mcm.overlap).lower()}\n"
        "[[chips]]\n"
        f"count = {mcm.num_chips}\n"
        f"peak_flops = {chip.peak_flops:.6e}\n"
        f"sram_bandwidth = {chip.sram_bandwidth:.6e}\n"
        f"sram_bytes = {chip.sram_bytes:.0f}\n"
        "[links]\n"
        f"bandwidth = {mcm.link_bandwidth:.6e}\n"
    )


def _sums(counts: Sequence[int], seconds: FloatArray) -> sparse.csr_array:
    """[rows, N] what adds up neighbouring nodes of a graph, as a share of the graph's time.

    Args:
      counts: the number of nodes of each graph.
      seconds: [N] of all nodes, graph by graph.
    """
    blocks = []
    for part in np.split(seconds, np.cumsum(counts)[:-1]):
        if not part.any():
            blocks.append(sparse.csr_array((0, len(part))))
            continue
        sizes = [size for size in _TOGETHER if size == 1 or size <= len(part)]
        rows = [
            sparse.csr_array(
                (np.ones(len(part)), (np.arange(len(part)) // size, np.arange(len(part))))
            )
            for size in sizes
        ]
        blocks.append(sparse.vstack(rows) / part.sum())
    return sparse.csr_array(sparse.block_diag(blocks))


def _fit(
    flops: FloatArray, accessed: FloatArray, seconds: FloatArray, sums: sparse.csr_array
) -> tuple[float, float, float]:
    """Seconds per FLOP and per byte, and of each node, all 0 or more, with the least error.

    Which of the two binds a node depends on the ratio of the first two numbers alone. For a given
    division of the nodes the fit is a linear program. Several divisions are tried, and each is
    repeated with the division that its result implies. A simplex search goes on from the best.
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        intensity = np.where(accessed > 0, flops / accessed, np.inf)
    finite = np.unique(intensity[np.isfinite(intensity)])
    places = (
        np.quantile(finite, np.linspace(0, 1, _SPLITS), method="nearest") if len(finite) else []
    )

    def error(numbers: tuple[float, ...]) -> float:
        fitted = np.maximum(flops * numbers[0], accessed * numbers[1]) + numbers[2]
        return float(np.abs(sums @ (fitted - seconds)).sum())

    found: dict[bytes, tuple[float, float, float]] = {}  # by division
    for place in (-np.inf, *np.unique(places).tolist(), np.inf):
        is_compute = intensity >= place
        for _ in range(_ROUNDS):
            if is_compute.tobytes() in found:
                break
            numbers = _least_absolute(flops, accessed, seconds, is_compute, sums)
            found[is_compute.tobytes()] = numbers
            is_compute = flops * numbers[0] >= accessed * numbers[1]
    best = sorted(found.values(), key=error)[:_POLISHED]
    return min((*best, *(_polished(numbers, error) for numbers in best)), key=error)


def _polished(
    numbers: tuple[float, float, float], error: Callable[[tuple[float, ...]], float]
) -> tuple[float, float, float]:
    """Three numbers of less error near some, in ratios; those that are 0 stay so."""
    start = np.array(numbers)

    def moved(logs: FloatArray) -> tuple[float, ...]:
        return tuple((start * np.exp(logs)).tolist())

    simplex = np.concatenate([np.zeros((1, 3)), _SIMPLEX * np.eye(3)])
    options = {"initial_simplex": simplex, "xatol": 1e-4, "fatol": 0.0, "maxfev": 600}
    solution = minimize(
        lambda logs: error(moved(logs)), np.zeros(3), method="Nelder-Mead", options=options
    )
    first, second, third = moved(solution.x)
    return first, second, third


def _least_absolute(
    flops: FloatArray,
    accessed: FloatArray,
    seconds: FloatArray,
    is_compute: np.ndarray,
    sums: sparse.csr_array,
) -> tuple[float, float, float]:
    """The three numbers for a division of the nodes, by a linear program."""
    columns = np.stack(
        [
            np.where(is_compute, flops, 0),
            np.where(is_compute, 0, accessed),
            np.ones(len(seconds)),
        ],
        axis=1,
    )
    columns, wanted = sums @ columns, sums @ seconds
    count = len(wanted)
    largest = columns.max(axis=0)
    scale = np.where(largest > 0, largest, 1.0)
    unit = float(wanted.max())
    rows, errors = sparse.csr_array(columns / scale), sparse.eye_array(count)
    # |rows x - seconds| <= e, and the sum of e is least.
    solution = linprog(
        np.concatenate([np.zeros(3), np.ones(count)]),
        A_ub=sparse.vstack([sparse.hstack([rows, -errors]), sparse.hstack([-rows, -errors])]),
        b_ub=np.concatenate([wanted, -wanted]) / unit,
        method="highs",
    )
    if solution.x is None:
        raise InputError(f"the fit has failed ({solution.message})")
    slopes = np.where(largest > 0, solution.x[:3] * unit / scale, 0.0)
    return float(slopes[0]), float(slopes[1]), float(slopes[2])
