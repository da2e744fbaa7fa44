"""What each chip runs of a traced function: steps, weights, and what it receives and sends.

The steps of a node run on its chip. Steps that no node stands for (folded, cloned, views, parts)
run on each chip that wants their results. An operand that cannot matter for what is wanted is not
fetched: a row of a stack needs that row alone.
"""

from __future__ import annotations

import dataclasses
import heapq
from collections.abc import Iterable, Mapping, Sequence

import jax
import jax.numpy as jnp

from jaxpart.errors import InputError
from jaxpart.ingest.jaxpr import sizes
from jaxpart.ingest.jaxpr.boxes import Box, contains, whole_box
from jaxpart.ingest.jaxpr.importer import Imported
from jaxpart.ingest.jaxpr.steps import Steps
from jaxpart.ingest.jaxpr.values import SMALL_CONSTANT_BYTES

Boxes = set[Box]  # parts of an array that are wanted

_FEW_BOXES = 64  # of one array, to be compared with each other


@dataclasses.dataclass(frozen=True)
class PlannedStep:
    """A step of a chip.

    Attributes:
      step: position among the steps of the function.
      used: [operands] whether an operand matters; zeros stand for others.
    """

    step: int
    used: tuple[bool, ...]


@dataclasses.dataclass(frozen=True)
class StagePlan:
    """What one chip runs. All numbers are those of arrays of `Steps`.

    Attributes:
      chip: its number.
      ahead: steps on parameters and constants that run once, before the weights are placed.
      steps: the steps of each call.
      weights: the arrays that the chip holds, which `ahead` computes or which are leaves.
      inputs: the arrays that the host feeds.
      received: array -> the chip that it comes from.
      sent: array -> the chips that it goes to.
      returned: the arrays that the host reads, outputs of the function.
    """

    chip: int
    ahead: tuple[PlannedStep, ...]
    steps: tuple[PlannedStep, ...]
    weights: tuple[int, ...]
    inputs: tuple[int, ...]
    received: Mapping[int, int]
    sent: Mapping[int, tuple[int, ...]]
    returned: tuple[int, ...]

    @property
    def given(self) -> tuple[int, ...]:
        """The arrays that a call takes: those of the host, and those of earlier chips."""
        return (*self.inputs, *self.received)

    @property
    def results(self) -> tuple[int, ...]:
        """The arrays that a call makes: those that are sent, and others that are returned."""
        return tuple(dict.fromkeys((*self.sent, *self.returned)))


def plan(imported: Imported, steps: Steps, chips: Sequence[int]) -> tuple[StagePlan, ...]:
    """The stages of a partition, in chip order; each receives from earlier ones alone.

    Args:
      imported: the function, with N nodes.
      steps: its steps.
      chips: [N] chip of each node.

    Raises:
      InputError: data flows to a lower chip.
    """
    for tensor in imported.graph.tensors:
        for q in tensor.consumers:
            if chips[q] < chips[tensor.producer]:
                names = [imported.graph.nodes[v].name for v in (tensor.producer, q)]
                raise InputError(
                    f"{imported.graph.name}: {names[0]!r} on chip {chips[tensor.producer]} feeds "
                    f"{names[1]!r} on chip {chips[q]}, expected data to flow to higher chips alone"
                )
    return _Planner(imported, steps, chips).plan()


class _Planner:
    def __init__(self, imported: Imported, steps: Steps, chips: Sequence[int]) -> None:
        self.graph, self.steps, self.chips = imported.graph, steps, chips
        self.node_of = imported.node_of
        self.cloned: dict[int, set[int]] = {}  # chip -> values that clones compute there
        for v, values in imported.clones.items():
            self.cloned.setdefault(chips[v], set()).update(values)
        self.leaves = _Leaves(imported, steps)

    def plan(self) -> tuple[StagePlan, ...]:
        """As the function `plan`."""
        returned: dict[int, list[int]] = {}
        for array in dict.fromkeys(self.steps.outputs):
            if array not in self.leaves.inputs:
                returned.setdefault(self._home(array), []).append(array)
        sent: dict[int, dict[int, set[int]]] = {}  # chip -> array -> destinations
        planned = []
        for chip in sorted({*self.chips, *returned}, reverse=True):
            own, outgoing = returned.get(chip, []), sent.get(chip, {})
            demand = self._demand([*own, *outgoing], chip)
            for array in demand.fetched:
                source = self._chip(array)
                assert source is not None
                sent.setdefault(source, {}).setdefault(array, set()).add(chip)
            if own or outgoing:
                planned.append(self._stage(chip, demand, own, outgoing))
        return tuple(reversed(planned))

    def _owner(self, array: int) -> int | None:
        """The node that an array is a result of; None for one that any chip may compute."""
        value = self.steps.value_of(array)
        return None if value is None else self.node_of.get(value)

    def _chip(self, array: int) -> int | None:
        """The chip of the node that an array is a result of; None if there is no such node."""
        owner = self._owner(array)
        return None if owner is None else self.chips[owner]

    def _home(self, array: int) -> int:
        """The chip that returns an output: the last one that computes a part of it."""
        demand = self._demand([array], None)
        pieces = [v for taken in demand.steps for v in self.steps.steps[taken.step].pieces]
        nodes = [*map(self._owner, demand.fetched), *map(self.node_of.get, pieces)]
        return max((self.chips[v] for v in nodes if v is not None), default=min(self.chips))

    def _demand(self, wanted: Iterable[int], here: int | None) -> _Demand:
        """All that a chip needs for some arrays.

        It computes itself what any chip may. So it does with a part of an array of a later chip:
        no edge of the graph leads from there, so this part does not depend on the later chip.

        Args:
          wanted: the arrays.
          here: the chip; None: one that no node is on.
        """
        steps, demand = self.steps, _Demand()
        boxes: dict[int, Boxes] = {}
        queue: list[int] = []  # negative positions of steps: the last one comes first

        def want(array: int, box: Box) -> None:
            chip = self._chip(array)
            is_clone = here is not None and steps.value_of(array) in self.cloned.get(here, ())
            if array in self.leaves.all:
                demand.leaves.add(array)
            elif chip is not None and not is_clone and (here is None or chip < here):
                demand.fetched.add(array)
            else:
                owned = chip is not None and chip == here
                whole = whole_box(_shape(steps, array))
                known = boxes.setdefault(array, set())
                if not known:
                    heapq.heappush(queue, -steps.maker[array][0])
                _add_box(known, whole if owned else box)

        for array in wanted:
            want(array, whole_box(_shape(steps, array)))
        done = None
        while queue:
            position = -heapq.heappop(queue)
            if position == done:
                continue
            done = position
            step = steps.steps[position]
            used: set[int] = set()
            for result, array in enumerate(step.results):
                for box in boxes.get(array, ()):
                    for i, needed in enumerate(step.needs(result, box)):
                        if needed is not None:
                            used.add(step.operands[i])
                            want(step.operands[i], needed)
            demand.steps.append(PlannedStep(position, tuple(a in used for a in step.operands)))
        demand.steps.reverse()
        return demand

    def _stage(
        self, chip: int, demand: _Demand, own: list[int], outgoing: Mapping[int, set[int]]
    ) -> StagePlan:
        steps = self.steps
        fixed = self.leaves.all - self.leaves.inputs  # arrays that no call changes
        holds: dict[int, frozenset[int]] = {
            leaf: frozenset([leaf] if leaf in self.leaves.held else []) for leaf in fixed
        }
        ahead: dict[int, PlannedStep] = {}  # result -> the step
        for taken in demand.steps:
            step = steps.steps[taken.step]
            read = _read(steps, taken)
            owned = any(self._owner(array) is not None for array in step.results)
            if owned or not all(array in holds for array in read):
                continue
            below = frozenset().union(*(holds[array] for array in read))
            size = sum(_bytes(steps, array) for array in below)
            for array in step.results:
                ahead[array] = taken
                holds[array] = frozenset([array]) if _bytes(steps, array) < size else below
        wanted = {*own, *outgoing}
        for taken in demand.steps:
            if not any(array in ahead for array in steps.steps[taken.step].results):
                wanted.update(_read(steps, taken))
        held = set().union(*(holds[array] for array in wanted if array in holds))
        for array in sorted(held):  # what is made of weights that are held anyway is not held too
            if array in ahead:
                below = set().union(*(holds[inner] for inner in _read(steps, ahead[array])))
                if below <= held - {array}:
                    held.remove(array)
        run = _backwards(steps, demand.steps, wanted, held)
        before = [taken for array, taken in ahead.items() if array in held]
        inner = set().union(*(_read(steps, taken) for taken in before))
        once = {taken.step: taken for taken in before}
        for taken in _backwards(steps, list(_distinct(ahead.values())), inner, set()):
            once[taken.step] = taken
        return StagePlan(
            chip,
            tuple(once[position] for position in sorted(once)),
            tuple(run),
            tuple(sorted(held)),
            tuple(sorted(demand.leaves & self.leaves.inputs)),
            {a: self.chips[self._owner(a) or 0] for a in sorted(demand.fetched)},
            {array: tuple(sorted(outgoing[array])) for array in sorted(outgoing)},
            tuple(own),
        )


@dataclasses.dataclass
class _Demand:
    """Steps to run, in program order; arrays that others send; leaves that are read."""

    steps: list[PlannedStep] = dataclasses.field(default_factory=list)
    fetched: set[int] = dataclasses.field(default_factory=set)
    leaves: set[int] = dataclasses.field(default_factory=set)


class _Leaves:
    """Arrays that no step computes.

    Attributes:
      inputs: what the host feeds.
      held: parameters and captured arrays that a chip holds; other constants are written in.
      all: these, and the constants.
    """

    def __init__(self, imported: Imported, steps: Steps) -> None:
        leaves = zip(steps.arguments, imported.is_parameter, strict=True)
        of_arguments = list(leaves)
        self.inputs = {array for array, is_parameter in of_arguments if not is_parameter}
        self.held = {array for array, is_parameter in of_arguments if is_parameter}
        self.held.update(a for a in steps.constants if not is_written_in(steps, a))
        self.all = {*self.inputs, *self.held, *steps.constants}


def is_written_in(steps: Steps, constant: int) -> bool:
    """Whether a constant is part of the program of a stage: a small one is."""
    is_key = jnp.issubdtype(steps.avals[constant].dtype, jax.dtypes.extended)
    return not is_key and _bytes(steps, constant) <= SMALL_CONSTANT_BYTES


def _shape(steps: Steps, array: int) -> tuple[int, ...]:
    return tuple(getattr(steps.avals[array], "shape", ()))


def _bytes(steps: Steps, array: int) -> int:
    return sizes.array_bytes(steps.avals[array])


def _read(steps: Steps, taken: PlannedStep) -> list[int]:
    """The operands of a step that matter."""
    operands = steps.steps[taken.step].operands
    return [array for array, used in zip(operands, taken.used, strict=True) if used]


def _add_box(boxes: Boxes, box: Box) -> None:
    """Adds a box to others, unless one of a few contains it."""
    if len(boxes) > _FEW_BOXES or not any(contains(other, box) for other in boxes):
        boxes.add(box)


def _distinct(taken: Iterable[PlannedStep]) -> Iterable[PlannedStep]:
    return {step.step: step for step in taken}.values()


def _backwards(
    steps: Steps, among: Sequence[PlannedStep], wanted: Iterable[int], held: set[int]
) -> list[PlannedStep]:
    """The steps that some arrays need, in order; none for arrays that are held."""
    needed, found = set(wanted) - held, []
    for taken in reversed(among):
        if not needed.isdisjoint(steps.steps[taken.step].results):
            found.append(taken)
            needed.update(array for array in _read(steps, taken) if array not in held)
    return found[::-1]
