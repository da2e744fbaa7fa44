"""Random modules to train the policy on: chains of different lengths, link speeds and memory."""

from __future__ import annotations

import dataclasses

import numpy as np

from jaxpart.problem.graph import Graph
from jaxpart.problem.mcm import MCM, Chip, load_mcm

CHIPS = (4, 8, 16, 36, 64)  # lengths of the chains
_LINK_FACTORS = (0.25, 1.0, 4.0)  # multiples of the preset's bandwidth
_TIGHT_RANGE = (1.5, 4.0)  # least and greatest tight capacity, multiples of `draw_module`'s need
_PRESET = "mcm4"


def draw_module(rng: np.random.Generator, graph: Graph, chips: int) -> MCM:
    """Draws a chain of a preset's chips with slow, usual or fast links and tight or loose memory.

    Args:
      rng: source of the draws.
      graph: tight memory is a small multiple of what this graph needs per chip.
      chips: length of the chain.

    Returns:
      The module; its name states what was drawn.
    """
    preset = load_mcm(_PRESET)
    link = float(rng.choice(_LINK_FACTORS))
    chip: Chip = preset.chips[0]
    memory = "loose"
    if rng.random() < 0.5:
        memory = "tight"
        scaled = graph.rescaled(preset.element_bytes or 1)
        sizes = [weight.bytes for weight in scaled.weights]
        live = max((tensor.bytes for tensor in scaled.tensors), default=0.0)
        # Bytes of an even share of the weights, the largest weight and four of the largest tensors.
        need = sum(sizes) / chips + max(sizes, default=0.0) + 4 * live
        factor = float(np.exp(rng.uniform(*np.log(_TIGHT_RANGE))))
        chip = dataclasses.replace(chip, sram_bytes=max(float(round(factor * need)), 1.0))
    return dataclasses.replace(
        preset,
        name=f"chain{chips}-{link:g}x-{memory}",
        chips=(chip,) * chips,
        link_bandwidth=preset.link_bandwidth * link,
    )
