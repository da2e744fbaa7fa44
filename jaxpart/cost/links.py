"""What a tensor loads on its way: links of a chain or a mesh, for a batch of partitions."""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxpart.cost.device import DeviceProblem
from jaxpart.cost.rows import add_up, set_row


class Links:
    """What a tensor loads: on a chain the links up to its last chip, on a mesh a tree of routes.

    `begin` and `extend` follow one tensor to its chips, `note` keeps where it went; a backward hop
    on a chain loads no link.
    """

    def __init__(self, problem: DeviceProblem, batch: int) -> None:
        self.problem = problem
        self.config = problem.config
        self.batch = batch

    def notes(self) -> Array:
        """Nothing noted yet: on a chain, the last chip of each tensor; on a mesh, loads."""
        s = self.config
        if s.topology == "mesh":
            return jnp.zeros((4, s.rows, s.cols, self.batch), self.problem.tensor_bytes.dtype)
        rows = self.problem.tensor_bytes.shape[0] if s.topology == "chain" else 0
        return jnp.full((rows, self.batch), -1, s.chip_dtype)

    def begin(self, source: Int[Array, " B"]) -> tuple[Array, ...]:
        """How far a tensor has come that is still on its producer's chip."""
        s = self.config
        if s.topology == "host":
            return ()
        if s.topology == "chain":
            return (source,)
        row, col = source // s.cols, source % s.cols
        rows = jnp.broadcast_to(row[None], (s.cols, self.batch))
        return col, col, rows, rows

    def extend(
        self,
        reach: tuple[Array, ...],
        begins: Bool[Array, ""],
        source: Int[Array, " B"],
        target: Int[Array, " B"],
    ) -> tuple[Array, ...]:
        """The same, once it goes to the chip `target` too; `begins`: its first of all."""
        s = self.config
        start = self.begin(source)
        reach = tuple(jnp.where(begins, new, old) for new, old in zip(start, reach, strict=True))
        if s.topology == "host":
            return ()
        if s.topology == "chain":
            return (jnp.maximum(reach[0], target),)
        low_col, high_col, low_row, high_row = reach
        row, col = target // s.cols, target % s.cols
        here = jnp.arange(s.cols)[:, None] == col[None]
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
        """The notes once tensor k has gone that far; `ends`: and no further."""
        s = self.config
        if s.topology == "host":
            return notes
        if s.topology == "chain":
            return set_row(notes, k, reach[0])
        low_col, high_col, low_row, high_row = reach
        rows = jnp.arange(s.rows)[:, None, None]
        cols = jnp.arange(s.cols)[None, :, None]
        row0, col0 = (source // s.cols)[None, None], (source % s.cols)[None, None]
        # The link between (row, col) and its right or lower neighbour, in either direction.
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
        """Bytes per link, in the order of `MCM.links`.

        Args:
          notes: of all tensors.
          departures: the chip that each is sent from, -1 where it is not.
          sent: bytes sent by each chip.
        """
        s = self.config
        if s.topology == "host":
            return sent[:0]
        if s.topology == "chain":
            # Loaded from where it departs to its last chip: a sum of differences along the chain.
            sizes = self.problem.tensor_bytes
            stops = jnp.where(departures >= 0, notes, -1)
            ended = add_up(stops, self.problem.num_tensors, s.num_chips, lambda k, _: sizes[k])
            return jnp.cumsum(sent - ended, axis=0)[: s.num_chips - 1]
        position = {}
        for row in range(s.rows):
            for col in range(s.cols):
                chip = row * s.cols + col
                flat = [plane * s.num_chips + chip for plane in range(4)]
                if col + 1 < s.cols:
                    position[chip, chip + 1], position[chip + 1, chip] = flat[0], flat[1]
                if row + 1 < s.rows:
                    position[chip, chip + s.cols], position[chip + s.cols, chip] = flat[2], flat[3]
        order = jnp.array([position[pair] for pair in sorted(position)], jnp.int32)
        return notes.reshape(-1, self.batch)[order]
