"""The cost model and the constraints, evaluated for a batch of partitions.

Only this module decides what a partition costs and whether it is valid. Definitions:
`jaxpart/README.md`; Xie et al. (MLSys 2022), section 3.

The sums exist in two forms with one meaning: loops over rows of candidates (`by_rows.py`), which a
CPU likes, and operations on whole arrays (`by_arrays.py`), which a GPU or TPU likes. A problem that
was lowered with `tables` has the second form (`lower` in `device.py` chooses). Seconds, memory and
verdicts are made of them here.

`evaluate` computes in the dtype of its problem. In float32 on the device it screens thousands of
candidates; in float64 on the host (`verify`) it decides.
"""

from __future__ import annotations

import functools
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from jaxpart.cost import by_arrays, by_rows, stage
from jaxpart.cost.chip_sets import is_first_chips
from jaxpart.cost.chunks import in_chunks
from jaxpart.cost.device import DeviceProblem, lower, pad_assignments
from jaxpart.environment import require_cpu
from jaxpart.problem.problem import IntArray, Problem

_SMALLEST_BATCH = 4  # candidates in the smallest batch that `verify` compiles


@struct.dataclass
class Costs:
    """Costs and verdicts of B candidates on C chips and L links (in the order of `MCM.links`).

    Fields that end in `_s` are in seconds.
    """

    bottleneck_s: Float[Array, " B"]
    compute_s: Float[Array, "C B"]
    in_s: Float[Array, "C B"]
    out_s: Float[Array, "C B"]
    stage_s: Float[Array, "C B"]
    link_s: Float[Array, "L B"]
    memory_bytes: Float[Array, "C B"]
    chips_used: Int[Array, " B"]
    sent_bytes: Float[Array, " B"]  # by all chips together; a tensor counts once
    # Each verdict is given whether its rule is on or off. A candidate with backward dataflow also
    # fails the triangle rule, because that rule is defined for acyclic chip graphs only.
    acyclic: Bool[Array, " B"]
    no_skip: Bool[Array, " B"]
    triangle: Bool[Array, " B"]
    memory: Bool[Array, " B"]
    colocation: Bool[Array, " B"]
    fixed_chips: Bool[Array, " B"]
    valid: Bool[Array, " B"]  # all rules that are on hold, and so do colocation and fixed chips


@jax.jit
def evaluate(problem: DeviceProblem, assignment: Int[Array, "N B"]) -> Costs:
    """Costs and verdicts of a batch.

    Args:
      problem: padded to N nodes.
      assignment: [N, B] chips 0..C-1; rows of padding nodes are ignored.

    Returns:
      Arrays of shapes [C, B], [L, B] and [B], in the dtype of the problem's floats.
    """
    chex.assert_shape(assignment, (problem.padded_nodes, None))
    run = functools.partial(_evaluate, problem)
    wide = _kernel() if problem.config.kernel else by_arrays
    return in_chunks(problem, run, assignment, wide.candidate_bytes(problem))


def _kernel() -> Any:
    from jaxpart.cost import by_kernel  # Pallas takes a second to import, and few ask for it

    return by_kernel


def _evaluate(problem: DeviceProblem, assignment: Int[Array, "N B"]) -> Costs:
    config = problem.config
    rules = config.constraints
    form = by_rows if problem.tables is None else _kernel() if config.kernel else by_arrays
    found = form.amounts(problem, assignment)
    memory = found.weights
    if config.memory_model == "full":
        memory += 2 * (found.sent + found.received) + found.peak
    in_s = found.received / problem.link_bandwidth
    out_s = found.sent / problem.link_bandwidth
    link_s = found.link / problem.link_bandwidth
    stage_s = stage.stage_s(config.overlap, found.compute_s, in_s, out_s)
    bottleneck_s = jnp.max(stage_s, axis=0)
    if link_s.shape[0]:
        bottleneck_s = jnp.maximum(bottleneck_s, jnp.max(link_s, axis=0))

    chips_used = jnp.sum(lax.population_count(found.used), axis=0, dtype=jnp.int32)
    no_skip = is_first_chips(found.used)
    memory_ok = jnp.all(memory <= problem.capacity_bytes[:, None], axis=0)
    true = jnp.ones_like(no_skip)
    valid = (
        found.colocation
        & found.fixed_chips
        & (found.acyclic if rules.acyclic else true)
        & (no_skip if rules.no_skip else true)
        & (found.triangle if rules.triangle else true)
        & (memory_ok if rules.memory else true)
    )
    return Costs(
        bottleneck_s=bottleneck_s,
        compute_s=found.compute_s,
        in_s=in_s,
        out_s=out_s,
        stage_s=stage_s,
        link_s=link_s,
        memory_bytes=memory,
        chips_used=chips_used,
        sent_bytes=jnp.sum(found.sent, axis=0),
        acyclic=found.acyclic,
        no_skip=no_skip,
        triangle=found.triangle,
        memory=memory_ok,
        colocation=found.colocation,
        fixed_chips=found.fixed_chips,
        valid=valid,
    )


def verify(problem: Problem, assignments: np.ndarray) -> Costs:
    """Exact costs and verdicts on the host, in float64. They decide which results are valid.

    Args:
      problem: the host problem, not padded.
      assignments: [N, B] chips 0..C-1.

    Returns:
      numpy arrays of shapes [C, B], [L, B] and [B].

    Raises:
      InputError: `JAX_PLATFORMS` leaves the CPU out.
    """
    require_cpu()
    batch = assignments.shape[1]
    size = _SMALLEST_BATCH  # few batch sizes, so that few programs are compiled
    while size < batch:
        size *= 4
    with jax.enable_x64(True), jax.default_device(jax.local_devices(backend="cpu")[0]):
        lowered = lower(problem, jnp.float64, form="rows")
        padded = pad_assignments(lowered, np.pad(assignments, ((0, 0), (0, size - batch))))
        costs = evaluate(lowered, jnp.asarray(padded))
        return jax.tree.map(lambda figure: np.asarray(figure)[..., :batch], costs)


def score(problem: Problem, assignment: IntArray) -> Costs:
    """Exact costs and verdicts of one assignment, in float64.

    Args:
      problem: of N nodes, C chips and L links.
      assignment: [N] chips 0..C-1.

    Returns:
      numpy arrays of shapes [C] and [L], and scalars.
    """
    return jax.tree.map(lambda figure: figure[..., 0], verify(problem, assignment[:, None]))
