"""What a batch of partitions amounts to, before seconds and verdicts are made of it."""

from __future__ import annotations

from flax import struct
from jaxtyping import Array, Bool, Float, UInt32


@struct.dataclass
class Amounts:
    """Sums per chip and link, and what holds, of B candidates on C chips and L links."""

    compute_s: Float[Array, "C B"]
    received: Float[Array, "C B"]  # bytes; a tensor counts once per receiving chip
    sent: Float[Array, "C B"]  # bytes; a tensor counts once
    link: Float[Array, "L B"]  # bytes; a tensor counts once per link
    weights: Float[Array, "C B"]  # bytes; a weight counts once per chip
    peak: Float[Array, "C B"]  # bytes of live activations; 0 where the module does not count them
    used: UInt32[Array, "words B"]  # the set of chips in use
    acyclic: Bool[Array, " B"]
    triangle: Bool[Array, " B"]  # false where dataflow is not acyclic
    colocation: Bool[Array, " B"]
    fixed_chips: Bool[Array, " B"]
