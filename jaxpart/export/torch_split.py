"""A partition as the callback that `torch.fx.passes.split_module` takes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from jaxpart.errors import InputError
from jaxpart.results.scored import ScoredPartition


def torch_split(
    partition: ScoredPartition | Mapping[str, int],
    name_of: Callable[[Any], str] = lambda node: node.name,
) -> Callable[[Any], int]:
    """The callback `split_callback` of `torch.fx.passes.split_module.split_module`.

    A node of torch that the partition does not know (a view, an attribute, a constant) runs where
    the last of its operands is made. So no data flows back for it. PyTorch need not be installed
    for this function itself.

    Args:
      partition: a valid result or evaluation, or the chip of each node by name.
      name_of: the name in the partition of a node of torch; by default the node's own name.

    Returns:
      A function from a node of torch to its chip.

    Raises:
      InputError: the partition breaks a rule of its module. The callback raises it where a node is
        on a lower chip than one of its operands.
    """
    chips = _by_name(partition)
    made: dict[Any, int] = {}

    def chip_of(node: Any) -> int:
        if node in made:
            return made[node]
        operands = [(chip_of(operand), operand) for operand in _operands(node)]
        least, source = max(operands, key=lambda pair: pair[0], default=(0, None))
        chip = chips.get(name_of(node), least)
        if chip < least:
            raise InputError(
                f"{name_of(node)!r} is on chip {chip}, but its operand {name_of(source)!r} on chip "
                f"{least}, expected data to flow to higher chips alone"
            )
        made[node] = chip
        return chip

    return chip_of


def _operands(node: Any) -> list[Any]:
    """The operands that some chip computes: inputs of the graph are fed to whichever wants them."""
    return [other for other in node.all_input_nodes if other.op != "placeholder"]


def _by_name(partition: ScoredPartition | Mapping[str, int]) -> dict[str, int]:
    if isinstance(partition, Mapping):
        return dict(partition)
    if not partition.valid:
        raise InputError(f"{partition.problem.graph.name}: the partition is not valid")
    pairs = zip(partition.problem.graph.nodes, partition.assignment.tolist(), strict=True)
    return {node.name: chip for node, chip in pairs}
