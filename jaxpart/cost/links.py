"""Bytes on the links of a chain or a mesh, for a batch of partitions."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from jaxpart.cost.device import DeviceProblem, StaticConfig
from jaxpart.cost.rows import add_up, set_row

Reach = tuple[Array, ...]  # of a tensor on a mesh: see `_begin`


def link_loads(
    problem: DeviceProblem,
    assignment: Int[Array, "N B"],
    departures: Int[Array, "K B"],
    sent: Float[Array, "C B"],
) -> Float[Array, "L B"]:
    """Bytes on each link, by loops over rows; in the order of `MCM.links`.

    On a chain a tensor loads the links from its producer's chip to its highest destination; a
    backward hop loads no link. On a mesh it loads the union of its routes, each link once. The host
    topology has no links.

    Args:
      problem: padded to N nodes.
      assignment: [N, B] chips.
      departures: [K, B] the chip that sends each tensor, or -1 if no chip does.
      sent: [C, B] bytes sent by each chip.
    """
    config = problem.config
    if config.topology == "host":
        return sent[:0]
    if config.topology == "mesh":
        return in_link_order(config, _planes(problem, assignment))

    def extend(e, furthest):
        k = problem.edge_tensor[e]
        return set_row(furthest, k, jnp.maximum(furthest[k], assignment[problem.edge_consumer[e]]))

    # Link (c, c + 1) carries what chips up to c send, less what ends on a chip up to c.
    sizes = problem.tensor_bytes
    furthest = lax.fori_loop(0, problem.num_edges, extend, departures)
    stops = jnp.where(departures >= 0, furthest, -1)
    ended = add_up(stops, problem.num_tensors, config.num_chips, lambda k, _: sizes[k])
    return jnp.cumsum(sent - ended, axis=0)[: config.num_chips - 1]


def _planes(problem: DeviceProblem, assignment: Int[Array, "N B"]) -> Float[Array, "4 rows cols B"]:
    """Bytes on four links of each chip of a mesh (see `in_link_order`)."""
    config, batch = problem.config, assignment.shape[1]

    def visit(step, carry):
        planes, reach = carry
        e = problem.num_edges - 1 - step
        k = problem.edge_tensor[e]
        source = assignment[problem.edge_producer[e]]
        target = assignment[problem.edge_consumer[e]]
        begins, ends = e + 1 == problem.tensor_edges[k + 1], e == problem.tensor_edges[k]
        start = _begin(config, source)
        reach = tuple(jnp.where(begins, new, old) for new, old in zip(start, reach, strict=True))
        reach = _extended(config, reach, target)
        used = _used_links(config, reach, source)
        return planes + jnp.where(used & ends, problem.tensor_bytes[k], 0), reach

    nothing = jnp.zeros((4, config.rows, config.cols, batch), problem.tensor_bytes.dtype)
    start = (nothing, _begin(config, assignment[0]))
    return lax.fori_loop(0, problem.num_edges, visit, start)[0]


def _begin(config: StaticConfig, source: Int[Array, " B"]) -> Reach:
    """The reach of a tensor on a mesh that has not left its producer's chip.

    Returns:
      Lowest and highest column [B] in the row of the producer, then lowest and highest row
      [cols, B] in each column.
    """
    row, col = source // config.cols, source % config.cols
    rows = jnp.broadcast_to(row[None], (config.cols, source.shape[0]))
    return col, col, rows, rows


def _extended(config: StaticConfig, reach: Reach, target: Int[Array, " B"]) -> Reach:
    """The reach of a tensor after it goes to one more chip."""
    low_col, high_col, low_row, high_row = reach
    row, col = target // config.cols, target % config.cols
    here = jnp.arange(config.cols)[:, None] == col[None]
    return (
        jnp.minimum(low_col, col),
        jnp.maximum(high_col, col),
        jnp.where(here, jnp.minimum(low_row, row[None]), low_row),
        jnp.where(here, jnp.maximum(high_row, row[None]), high_row),
    )


def _used_links(
    config: StaticConfig, reach: Reach, source: Int[Array, " B"]
) -> Bool[Array, "4 rows cols B"]:
    """The links between each chip and its right and lower neighbours, in both directions."""
    low_col, high_col, low_row, high_row = reach
    rows = jnp.arange(config.rows)[:, None, None]
    cols = jnp.arange(config.cols)[None, :, None]
    row0, col0 = (source // config.cols)[None, None], (source % config.cols)[None, None]
    return jnp.stack(
        [
            (rows == row0) & (cols >= col0) & (cols < high_col[None, None]),
            (rows == row0) & (cols < col0) & (cols >= low_col[None, None]),
            (rows >= row0) & (rows < high_row[None]),
            (rows < row0) & (rows >= low_row[None]),
        ]
    )


def in_link_order(config: StaticConfig, planes: Float[Array, "4 rows cols B"]) -> Array:
    """The links of a mesh [L, B] in the order of `MCM.links`.

    Args:
      config: of the mesh.
      planes: of each chip, four links: to its right neighbour, from it, to its lower neighbour,
        from it.
    """
    position = {}
    for row in range(config.rows):
        for col in range(config.cols):
            chip = row * config.cols + col
            flat = [plane * config.num_chips + chip for plane in range(4)]
            if col + 1 < config.cols:
                position[chip, chip + 1], position[chip + 1, chip] = flat[0], flat[1]
            if row + 1 < config.rows:
                below = chip + config.cols
                position[chip, below], position[below, chip] = flat[2], flat[3]
    order = jnp.array([position[pair] for pair in sorted(position)], jnp.int32)
    return planes.reshape(-1, planes.shape[-1])[order]


def link_sets(config: StaticConfig) -> np.ndarray:
    """Which tensors load the links of each chip of a mesh, as sets of chips.

    Returns:
      [4, 2, C, C] bool, in the planes of `in_link_order`. A tensor loads link (p, c) if its
      producer's chip s is in the first set of the link, [p, 0, c, s], and one of its destinations t
      in the second, [p, 1, c, t].
    """
    row, col = np.divmod(np.arange(config.num_chips), config.cols)
    same_row, same_col = row[:, None] == row, col[:, None] == col
    right, below = col[:, None] < col, row[:, None] < row
    return np.array(
        [
            [same_row & ~right, right],
            [same_row & right, ~right],
            [~below, same_col & below],
            [below, same_col & ~below],
        ]
    )
