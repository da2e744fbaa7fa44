"""Limits on the figures of graphs and modules: what is beyond them is refused, not computed.

Within them no sum, product or ratio of costs leaves the range of float32, in which the device
computes.
"""

COST_RANGE = (1e-21, 1e21)  # FLOP, bytes, seconds of a node, tensor or weight; or 0
RATE_RANGE = (1e-3, 1e24)  # FLOP/s, bytes/s, capacity in bytes, and relative speed of chips
ELEMENT_RANGE = (1e-3, 1e3)  # bytes of one element
MAX_CHIPS = 4096  # of a module
COST_EXPECTED = "a finite number, 0 or more ({:g} to {:g} if not 0)".format(*COST_RANGE)


def is_cost(value: float) -> bool:
    """Whether a cost is within its limits."""
    low, high = COST_RANGE
    return value == 0 or low <= value <= high
