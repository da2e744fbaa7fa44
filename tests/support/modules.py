"""Small modules of all kinds, for tests."""

import dataclasses

from jaxpart.problem.mcm import MCM, Chip, Constraints

CHIP = Chip(peak_flops=1e3, sram_bandwidth=1e3, sram_bytes=4e3)


_FAST = dataclasses.replace(CHIP, speed=2.0, sram_bytes=2e3)


WEIGHTS_ONLY = MCM("w", "chain", (CHIP,) * 3, 1e3, memory_model="weights")


MODULES = {
    "chain": WEIGHTS_ONLY,
    "chain, no overlap": dataclasses.replace(WEIGHTS_ONLY, overlap=False),
    "unlike chips": dataclasses.replace(WEIGHTS_ONLY, chips=(CHIP, _FAST, CHIP)),
    "host, any triangle": dataclasses.replace(
        WEIGHTS_ONLY, topology="host", overlap=False, constraints=Constraints(triangle=False)
    ),
    "chain, any triangle": dataclasses.replace(
        WEIGHTS_ONLY, constraints=Constraints(triangle=False)
    ),
    "chips may be skipped": dataclasses.replace(
        WEIGHTS_ONLY, chips=(CHIP, _FAST, CHIP), constraints=Constraints(no_skip=False)
    ),
    "mesh": dataclasses.replace(WEIGHTS_ONLY, topology="mesh", chips=(CHIP,) * 4, rows=2, cols=2),
}


def chain_module(chips: int) -> MCM:
    """A chain of chips of 1 FLOP/s with large memory."""
    return MCM("m", "chain", (Chip(1.0, 1.0, 1e9),) * chips, 1e3)


def unit_module(chips: int, **options) -> MCM:
    """A module of chips of 1 FLOP/s; options: bandwidth, capacity, topology, overlap."""
    settings = {"bandwidth": 1.0, "capacity": 10**9, "topology": "chain", "overlap": True}
    settings |= options
    chip = Chip(peak_flops=1.0, sram_bandwidth=1e9, sram_bytes=int(settings["capacity"]))
    return MCM(
        "test",
        settings["topology"],
        (chip,) * chips,
        settings["bandwidth"],
        overlap=settings["overlap"],
        constraints=Constraints(),
    )


THREE_CHIPS = MCM("three", "chain", (CHIP,) * 3, 1e3)
