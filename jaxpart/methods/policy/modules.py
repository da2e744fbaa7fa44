"""The modules that the policy is trained on: chains of unlike length, links and memory, by seed."""

from __future__ import annotations

import dataclasses

import numpy as np

from jaxpart.problem.graph import Graph
from jaxpart.problem.mcm import MCM, Chip, load_mcm

CHIPS = (4, 8, 16, 36, 64)
_LINKS = (0.25, 1.0, 4.0)  # times the preset's bandwidth
_TIGHT = (1.5, 4.0)  # capacity, times an even share of the weights and the largest of them
_PRESET = "mcm4"


def draw_module(rng: np.random.Generator, graph: Graph, chips: int) -> MCM:
    """A chain of the presets' chips with slow, usual or fast links and tight or loose memory.

    Args:
      graph: memory is tight or loose for its weights.
    """
    preset = load_mcm(_PRESET)
    link = float(rng.choice(_LINKS))
    chip: Chip = preset.chips[0]
    memory = "loose"
    if rng.random() < 0.5:
        memory = "tight"
        scaled = graph.rescaled(preset.element_bytes or 1)
        sizes = [weight.bytes for weight in scaled.weights]
        live = max((tensor.bytes for tensor in scaled.tensors), default=0.0)
        need = sum(sizes) / chips + max(sizes, default=0.0) + 4 * live
        factor = float(np.exp(rng.uniform(*np.log(_TIGHT))))
        chip = dataclasses.replace(chip, sram_bytes=max(float(round(factor * need)), 1.0))
    return dataclasses.replace(
        preset,
        name=f"chain{chips}-{link:g}x-{memory}",
        chips=(chip,) * chips,
        link_bandwidth=preset.link_bandwidth * link,
    )
