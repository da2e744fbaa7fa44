"""What a tensor loads on its way: links of a chain or a mesh, for a batch of partitions."""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxpart.device import DeviceProblem


class Links:
    """What a tensor loads: on a chain the links up to its last chip, on a mesh a tree of routes.

    `begin`, `extend` and `finish` follow one tensor; a backward hop on a chain loads no link.
    """

    def __init__(self, problem: DeviceProblem, batch: int) -> None:
        self.switches = problem.switches
        self.batch = batch
        self.dtype = problem.tensor_bytes.dtype

    def zeros(self) -> Array:
        """Nothing loaded yet."""
        s = self.switches
        shape = {
            "host": (0, self.batch),
            "chain": (s.num_chips, self.batch),
            "mesh": (4, s.rows, s.cols, self.batch),
        }[s.topology]
        return jnp.zeros(shape, self.dtype)

    def begin(self, source: Int[Array, " B"]) -> tuple[Array, ...]:
        """How far a tensor has come that is still on its producer's chip."""
        s = self.switches
        if s.topology == "host":
            return ()
        if s.topology == "chain":
            return (source,)
        row, col = source // s.cols, source % s.cols
        rows = jnp.broadcast_to(row[None], (s.cols, self.batch))
        return col, col, rows, rows

    def extend(
        self, reach: tuple[Array, ...], source: Int[Array, " B"], target: Int[Array, " B"]
    ) -> tuple[Array, ...]:
        """The same, once it goes to the chip `target` too."""
        s = self.switches
        if s.topology == "host":
            return ()
        if s.topology == "chain":
            return (jnp.maximum(reach[0], target),)
        low_col, high_col, low_row, high_row = reach
        row, col = target // s.cols, target % s.cols
        here = chip_column(s.cols) == col[None]
        return (
            jnp.minimum(low_col, col),
            jnp.maximum(high_col, col),
            jnp.where(here, jnp.minimum(low_row, row[None]), low_row),
            jnp.where(here, jnp.maximum(high_row, row[None]), high_row),
        )

    def finish(
        self, link: Array, reach: tuple[Array, ...], source: Int[Array, " B"], size: Array
    ) -> Array:
        """The links once a tensor of `size` bytes has gone that far, each link loaded once."""
        s = self.switches
        if s.topology == "host":
            return link
        if s.topology == "chain":
            # Differences along the chain; `loads` sums them up.
            moved = jnp.where(reach[0] > source, size, 0)
            return add_at(add_at(link, source, moved), reach[0], -moved)
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
        return link + jnp.where(used, size, 0)

    def loads(self, link: Array) -> Float[Array, "L B"]:
        """Bytes per link, in the order of `MCM.links`."""
        s = self.switches
        if s.topology == "host":
            return link
        if s.topology == "chain":
            return jnp.cumsum(link, axis=0)[: s.num_chips - 1]
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
        return link.reshape(-1, self.batch)[order]


def add_at(
    totals: Float[Array, "C B"], chip: Int[Array, " B"], value: Float[Array, " B"]
) -> Float[Array, "C B"]:
    """Adds one value per candidate to the row of its chip."""
    lane = jnp.arange(totals.shape[1])
    return totals.at[chip, lane].add(
        value.astype(totals.dtype), unique_indices=True, mode="promise_in_bounds"
    )


def chip_column(count: int) -> Int[Array, "count 1"]:
    """0 to count - 1, to be set beside rows of candidates."""
    return jnp.arange(count, dtype=jnp.int32)[:, None]
