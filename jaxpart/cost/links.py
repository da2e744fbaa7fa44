"""Bytes on the links of a chain or a mesh, for a batch of partitions."""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxpart.cost.device import DeviceProblem, StaticConfig
from jaxpart.cost.rows import add_up, set_row


class Links:
    """Follows tensors to their chips and sums the bytes on each link.

    On a chain a tensor loads the links from its producer's chip to its highest destination; a
    backward hop loads no link. On a mesh it loads the union of its routes, each link once. The host
    topology has no links.

    The reach of a tensor says how far it has gone. `begin` makes it, `extend` adds one destination,
    and `note` stores it in the notes of all tensors. `loads` turns the notes into bytes.
    """

    def __init__(self, problem: DeviceProblem, batch: int) -> None:
        self.problem = problem
        self.config = problem.config
        self.batch = batch

    def notes(self) -> Array:
        """Empty notes.

        Returns:
          Chain: [K, B] the last chip of each tensor, -1 so far. Host: [0, B]. Mesh: [4, rows, cols,
          B] bytes on four links of each chip, 0 so far: to its right neighbour, from it, to its
          lower neighbour, from it.
        """
        config = self.config
        if config.topology == "mesh":
            return jnp.zeros(
                (4, config.rows, config.cols, self.batch), self.problem.tensor_bytes.dtype
            )
        rows = self.problem.tensor_bytes.shape[0] if config.topology == "chain" else 0
        return jnp.full((rows, self.batch), -1, config.chip_dtype)

    def begin(self, source: Int[Array, " B"]) -> tuple[Array, ...]:
        """The reach of a tensor that has not left its producer's chip.

        Returns:
          Chain: (last chip [B],). Mesh: lowest and highest column [B] in the row of the producer,
          then lowest and highest row [cols, B] in each column. Host: ().
        """
        config = self.config
        if config.topology == "host":
            return ()
        if config.topology == "chain":
            return (source,)
        row, col = source // config.cols, source % config.cols
        rows = jnp.broadcast_to(row[None], (config.cols, self.batch))
        return col, col, rows, rows

    def extend(
        self,
        reach: tuple[Array, ...],
        begins: Bool[Array, ""],
        source: Int[Array, " B"],
        target: Int[Array, " B"],
    ) -> tuple[Array, ...]:
        """The reach of a tensor after it goes to one more chip.

        Args:
          reach: so far; ignored where `begins`.
          begins: whether this is the first consumer that the walk meets of this tensor.
          source: [B] the producer's chip.
          target: [B] the consumer's chip.
        """
        config = self.config
        start = self.begin(source)
        reach = tuple(jnp.where(begins, new, old) for new, old in zip(start, reach, strict=True))
        if config.topology == "host":
            return ()
        if config.topology == "chain":
            return (jnp.maximum(reach[0], target),)
        low_col, high_col, low_row, high_row = reach
        row, col = target // config.cols, target % config.cols
        here = jnp.arange(config.cols)[:, None] == col[None]
        return (
            jnp.minimum(low_col, col),
            jnp.maximum(high_col, col),
            jnp.where(here, jnp.minimum(low_row, row[None]), low_row),
            jnp.where(here, jnp.maximum(high_row, row[None]), high_row),
        )

    def note(
        self,
        notes: Array,
        reach: tuple[Array, ...],
        source: Int[Array, " B"],
        k: Int[Array, ""],
        ends: Bool[Array, ""],
    ) -> Array:
        """The notes after tensor k has gone as far as `reach` says.

        Args:
          notes: so far.
          reach: of tensor k.
          source: [B] the producer's chip.
          k: the tensor.
          ends: whether `reach` is complete: the tensor has no more consumers.
        """
        config = self.config
        if config.topology == "host":
            return notes
        if config.topology == "chain":
            return set_row(notes, k, reach[0])
        low_col, high_col, low_row, high_row = reach
        rows = jnp.arange(config.rows)[:, None, None]
        cols = jnp.arange(config.cols)[None, :, None]
        row0, col0 = (source // config.cols)[None, None], (source % config.cols)[None, None]
        # The links between (row, col) and its right and lower neighbours, in both directions.
        used = jnp.stack(
            [
                (rows == row0) & (cols >= col0) & (cols < high_col[None, None]),
                (rows == row0) & (cols < col0) & (cols >= low_col[None, None]),
                (rows >= row0) & (rows < high_row[None]),
                (rows < row0) & (rows >= low_row[None]),
            ]
        )
        return notes + jnp.where(used & ends, self.problem.tensor_bytes[k], 0)

    def loads(
        self, notes: Array, departures: Int[Array, "K B"], sent: Float[Array, "C B"]
    ) -> Float[Array, "L B"]:
        """Bytes per link [L, B], in the order of `MCM.links`.

        Args:
          notes: of all tensors.
          departures: [K, B] the chip that sends each tensor, or -1 if no chip does.
          sent: [C, B] bytes sent by each chip.
        """
        config = self.config
        if config.topology == "host":
            return sent[:0]
        if config.topology == "chain":
            # Link (c, c + 1) carries what chips up to c send, less what ends on a chip up to c.
            sizes = self.problem.tensor_bytes
            stops = jnp.where(departures >= 0, notes, -1)
            ended = add_up(stops, self.problem.num_tensors, config.num_chips, lambda k, _: sizes[k])
            return jnp.cumsum(sent - ended, axis=0)[: config.num_chips - 1]
        return in_link_order(config, notes)


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
