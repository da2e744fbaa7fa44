"""Unique names of the tensors that cross the borders of stages."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from typing import Any

import jax

from jaxpart.export.jax.plan import StagePlan
from jaxpart.export.manifest import HOST
from jaxpart.ingest.jaxpr.importer import Imported
from jaxpart.ingest.jaxpr.steps import Steps


class Names:
    """The names of inputs, outputs, and tensors between stages.

    An input has the name of its argument and the path to its leaf; an output `output` and its path;
    a tensor the name of its node. An output that is an input has the name of the input.
    """

    def __init__(
        self,
        arguments: Sequence[str],
        imported: Imported,
        steps: Steps,
        plans: Sequence[StagePlan],
    ) -> None:
        """Names all tensors.

        Args:
          arguments: the name of each leaf of the function's arguments.
          imported: the function.
          steps: its steps.
          plans: its stages.
        """
        self._steps = steps
        self._taken: set[str] = set()
        leaves = zip(steps.arguments, arguments, imported.is_parameter, strict=True)
        self._inputs = {a: self._unique(name) for a, name, is_param in leaves if not is_param}
        self._outputs: list[tuple[str, int]] = []
        self._names = dict(self._inputs)  # array -> its name between stages
        paths = jax.tree_util.tree_leaves_with_path(imported.results)
        for array, (path, _) in zip(steps.outputs, paths, strict=True):
            if array in self._inputs:
                name = self._inputs[array]
            else:
                name = self._unique("output" + jax.tree_util.keystr(path))
                self._names.setdefault(array, name)
            self._outputs.append((name, array))
        for array in (a for part in plans for a in part.sent):
            value = steps.value_of(array)
            node = None if value is None else imported.node_of.get(value)
            assert node is not None
            if array not in self._names:
                self._names[array] = self._unique(imported.graph.nodes[node].name)

    def _unique(self, name: str) -> str:
        tried = itertools.chain([name], (f"{name}:{i}" for i in itertools.count(1)))
        found = next(text for text in tried if text not in self._taken)
        self._taken.add(found)
        return found

    def between(self, array: int) -> str:
        """The name of an input, of what a stage sends, or of an output, its first if it has two."""
        return self._names[array]

    def model_inputs(self) -> Iterable[tuple[str, Any]]:
        """Name and abstract value of each input of the function, also of unused ones."""
        for array, name in self._inputs.items():
            yield name, self._steps.avals[array]

    def model_outputs(self) -> Iterable[tuple[str, Any]]:
        """Name and abstract value of each output of the function."""
        for name, array in self._outputs:
            yield name, self._steps.avals[array]

    def inputs(self, part: StagePlan) -> list[tuple[str, Any, Any]]:
        """Name, source and abstract value of each array that a stage is given, in its order."""
        return [
            (self._names[array], part.received.get(array, HOST), self._steps.avals[array])
            for array in part.given
        ]

    def outputs(self, part: StagePlan) -> list[tuple[str, tuple[Any, ...], int]]:
        """Name, destinations, and position among the results of each output of a stage."""
        found: dict[str, tuple[tuple[Any, ...], int]] = {}
        for i, array in enumerate(part.results):
            if array in part.sent:
                found[self._names[array]] = (part.sent[array], i)
        for name, array in self._outputs:
            if array in part.returned:
                chips, _ = found.get(name, ((), 0))
                found[name] = ((*chips, HOST), part.results.index(array))
        return [(name, to, i) for name, (to, i) in found.items()]
