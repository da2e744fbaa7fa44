"""A partition as the callback that `torch.fx.passes.split_module` takes."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxpart.errors import InputError
from jaxpart.export.chips import chips_of
from jaxpart.results.scored import ScoredPartition

# Nodes of torch that compute nothing: their data come from outside, or go there.
_FED = ("placeholder", "get_attr")
_OUTSIDE = (*_FED, "output")


def torch_split(
    partition: ScoredPartition | Mapping[str, int],
    program: Any = None,
    *,
    dims: Mapping[str, int] | None = None,
    name_of: Callable[[Any], str] = lambda node: node.name,
) -> Callable[[Any], int]:
    """The callback `split_callback` of `torch.fx.passes.split_module.split_module`.

    A partition of a `.pt2` needs the program, too: a node of torch is several nodes of that graph,
    with names of JAX. It runs where the last of them does. To split is
    `torch.export.load(path).module()`, or another module with the names of the program's nodes.

    A node of torch that the partition does not know runs where the last of its operands is made
    (a view); what hangs on weights and constants alone, where it is first read. So no data flows
    back for it. PyTorch need not be installed for this function itself.

    Args:
      partition: a valid result or evaluation, or the chip of each node by name.
      program: the `.pt2` that the partition is of, or the `ExportedProgram` (this needs torch).
        None: the partition's own names are those of torch.
      dims: sizes of the free dimensions of the program, as for `from_pt2`.
      name_of: the name of a node of torch; by default the node's own name.

    Returns:
      A function from a node of torch to its chip.

    Raises:
      InputError: the partition breaks a rule of its module, or is not one of the program. The
        callback raises it where most names are no nodes of the module that is split, and, without
        a program, where a node is on a lower chip than one of its operands.
    """
    if program is None:
        chips = _by_name(partition)
        hint = "those of a .pt2 need the program too: torch_split(result, 'model.pt2')"
    else:
        chips = _of_program(partition, program, dims)
        hint = "the module of this program: torch.export.load('model.pt2').module()"
    made: dict[Any, int] = {}

    def chip_of(node: Any) -> int:
        if node not in made:
            nodes = list(node.graph.nodes)
            _check_names(nodes, chips, name_of, hint)
            made.update(_places(nodes, chips, name_of, is_raised=program is not None))
        return made[node]

    return chip_of


def _places(
    nodes: Sequence[Any],
    chips: Mapping[str, int],
    name_of: Callable[[Any], str],
    *,
    is_raised: bool,
) -> dict[Any, int]:
    """The chip of each node of torch.

    Args:
      nodes: in the order in which they run.
      chips: by name, of those that have one.
      name_of: the name of a node.
      is_raised: whether a chip below that of an operand is raised to it; else it is an error.
    """
    made: dict[Any, int] = {}
    for node in nodes:
        name = name_of(node)
        operands = [other for other in node.all_input_nodes if other in made]
        source = max(operands, key=made.__getitem__, default=None)
        chip = None if node.op in _FED else chips.get(name)
        if source is None:
            if chip is not None:
                made[node] = chip
            continue
        least = made[source]
        if chip is not None and chip < least and not is_raised:
            raise InputError(
                f"{name!r} is on chip {chip}, but its operand {name_of(source)!r} on chip {least}, "
                "expected data to flow to higher chips alone"
            )
        made[node] = least if chip is None else max(chip, least)
    # What is left hangs on what is fed and on constants alone: it runs where it is first read.
    first: dict[Any, int] = {}
    for node in reversed(nodes):
        chip = made.setdefault(node, first.get(node, 0))
        for operand in node.all_input_nodes:
            first[operand] = min(chip, first.get(operand, chip))
    return made


def _check_names(
    nodes: Sequence[Any], chips: Mapping[str, int], name_of: Callable[[Any], str], hint: str
) -> None:
    """Refuses chips of which most are for nodes that the graph of torch does not have."""
    there = {name_of(node) for node in nodes if node.op not in _OUTSIDE}
    unknown = [name for name in chips if name not in there]
    if 2 * len(unknown) > len(chips):
        raise InputError(
            f"{len(chips) - len(unknown)} of the {len(chips)} names of the partition are nodes of "
            f"the module to split ({unknown[0]!r} is none), expected most of them; {hint}"
        )


def _by_name(partition: ScoredPartition | Mapping[str, int]) -> dict[str, int]:
    if isinstance(partition, Mapping):
        return dict(partition)
    if not partition.valid:
        raise InputError(f"{partition.problem.graph.name}: the partition is not valid")
    return partition.chips()


def _of_program(
    partition: ScoredPartition | Mapping[str, int], program: Any, dims: Mapping[str, int] | None
) -> dict[str, int]:
    """The chip of each node of torch that nodes of the graph stand for: that of the last of them.

    What reads a result of torch reads what the last of them computes, or something before.
    """
    from jaxpart.ingest.pt2.standing import standing_for

    with contextlib.ExitStack() as stack:
        if not isinstance(program, (str, os.PathLike)):
            import torch.export  # pyright: ignore[reportMissingImports]

            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="jaxpart."))
            saved = Path(folder) / "program.pt2"
            torch.export.save(program, saved)
            program = saved
        graph, standing = standing_for(program, dims)
    chips = chips_of(graph, partition)
    return {name: max(chips[v] for v in nodes) for name, nodes in standing.items()}
