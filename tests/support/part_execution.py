"""Small programs on matrices, run node by node and part by part: an oracle for splits.

A part sees what the graph says that it reads, and NaN everywhere else. So an edge that is missing
shows in the results.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from fractions import Fraction
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from jaxpart.ingest.rewrite.split import Split
from jaxpart.problem.division import Division
from jaxpart.problem.graph import Graph, Node, Tensor, Weight

Array = NDArray[np.float64]
Ranges = dict[str, tuple[Fraction, Fraction]]  # label of an axis -> the share of it
_LENGTHS = (4, 8, 12)
_ALL = (Fraction(0), Fraction(1))


class Op(NamedTuple):
    """An operation; node v makes tensor v."""

    kind: str
    operands: tuple[int, ...]
    weight: int | None
    contracted: str | None = None  # label of the axis over which it sums


@dataclasses.dataclass(frozen=True)
class Program:
    """A graph whose operations have a meaning. Tensors and weights are matrices."""

    graph: Graph
    ops: tuple[Op, ...]
    labels: tuple[tuple[str, str], ...]  # [K] of the axes of each tensor
    shapes: tuple[tuple[int, int], ...]  # [K]
    weights: tuple[Array, ...]


def random_program(rng: np.random.Generator, max_nodes: int = 7) -> Program:
    """Makes a program in which every axis of every operation can be divided."""
    ops: list[Op] = []
    labels: list[tuple[str, str]] = []
    shapes: list[tuple[int, int]] = []
    weights: list[Array] = []
    divisions: list[tuple[Division, ...]] = []
    consumers: list[list[int]] = []
    holders: list[list[int]] = []

    def ways(length: int) -> int:
        return int(rng.choice([w for w in range(2, length + 1) if length % w == 0] or [1]))

    for v in range(int(rng.integers(2, max_nodes + 1))):
        kind = str(rng.choice(["scale", "smooth", "rowsum", "linear", "linear", "add", "product"]))
        if v == 0:
            kind = "source"
        x = int(rng.integers(max(0, v - 3), v)) if v else 0
        (rows, columns), (r, c) = (shapes[x], labels[x]) if v else ((8, 12), ("r0", "c0"))
        partners = [k for k in range(v) if shapes[k] == (rows, columns)]
        if kind == "product":
            partners = [k for k in range(v) if shapes[k][1] == columns and k != x]
        y = int(rng.choice(partners)) if partners else x
        if kind in ("add", "product") and y == x:
            kind = "scale"
        op, shape, label = Op(kind, (x,), None), (rows, columns), (r, c)
        by_rows = Division(ways(rows), r, reads=((x, r),))
        divide = [by_rows]
        if kind == "source":
            op = Op(kind, (), None)
            divide = [Division(ways(rows), r), Division(ways(columns), c)]
        elif kind == "scale":
            divide.append(Division(ways(columns), c, reads=((x, c),)))
        elif kind == "smooth":  # each row with its neighbours
            slices = ways(rows)
            halo = slices / rows  # one row
            divide = [Division(slices, r, halo=halo, reads=((x, r),))]
            divide.append(Division(ways(columns), c, reads=((x, c),)))
        elif kind == "add":
            op = Op(kind, (x, y), None)
            divide = [
                Division(ways(rows), r, reads=((x, r), (y, labels[y][0]))),
                Division(ways(columns), c, reads=((x, c), (y, labels[y][1]))),
            ]
        elif kind == "rowsum":
            op, shape, label = Op(kind, (x,), None, c), (rows, 1), (r, f"one{v}")
            if columns > 1:
                divide.append(Division(ways(columns), c, "sum", reads=((x, c),)))
        elif kind == "linear":
            size = int(rng.choice(_LENGTHS))
            shared = [w for w, a in enumerate(weights) if a.shape == (columns, size)]
            w = int(rng.choice(shared)) if shared and rng.random() < 0.7 else len(weights)
            if w == len(weights):
                weights.append(rng.integers(-2, 3, (columns, size)).astype(np.float64))
                holders.append([])
            holders[w].append(v)
            op, shape, label = Op(kind, (x,), w, c), (rows, size), (r, f"n{v}")
            divide = [
                Division(by_rows.ways, r, reads=((x, r),), weights=((w, None),)),
                Division(ways(size), f"n{v}", reads=((x, None),), weights=((w, "out"),)),
            ]
            if columns > 1:
                sums = Division(ways(columns), c, "sum", 0, ((x, c),), ((w, "in"),))
                divide.append(sums)
        else:  # x times y transposed
            op, shape, label = Op(kind, (x, y), None, c), (rows, shapes[y][0]), (r, f"n{v}")
            divide.append(Division(ways(shape[1]), f"n{v}", reads=((y, labels[y][0]),)))
            if columns > 1:
                terms = ((x, c), (y, labels[y][1]))
                divide.append(Division(ways(columns), c, "sum", reads=terms))
        ops.append(op)
        labels.append(label)
        shapes.append(shape)
        divisions.append(tuple(d for d in divide if d.ways > 1))
        consumers.append([])
        for k in op.operands:
            consumers[k].append(v)
    nodes = []
    for v, op in enumerate(ops):
        sizes = [np.prod(shapes[k]) for k in (*op.operands, v)]
        sizes += [weights[op.weight].size] if op.weight is not None else []
        nodes.append(Node(f"n{v}", op.kind, 960, 4.0 * sum(sizes), divide=divisions[v]))
    tensors = [Tensor(k, 4.0 * np.prod(shapes[k]), tuple(q)) for k, q in enumerate(consumers)]
    held = [Weight(4.0 * a.size, tuple(q)) for a, q in zip(weights, holders, strict=True)]
    graph = Graph(tuple(nodes), tuple(tensors), tuple(held), "program")
    return Program(graph, tuple(ops), tuple(labels), tuple(shapes), tuple(weights))


class _Work(NamedTuple):
    """What a node of a split graph does: node v of the program, a sum of tensor v, or a copy."""

    kind: str  # "op", "sum", "copy"
    v: int
    ranges: Ranges  # by the axis of each division that cut it
    terms: int = 0  # of a sum


class _Value(NamedTuple):
    """What a tensor or weight of a split graph is: a block of one of the program."""

    of: int
    ranges: Ranges
    term: tuple[int, int] = (0, 0)  # tells partial results of one tensor apart


def run(program: Program, *splits: Split) -> list[Array]:
    """Runs the graph that one split after the other makes of a program.

    Returns:
      [K] the matrices of the program's tensors, put together from their pieces.
    """
    graph = program.graph
    works = [_Work("op", v, {}) for v in range(len(graph.nodes))]
    values = [_Value(k, {}) for k in range(len(graph.tensors))]
    held = [_Value(w, {}) for w in range(len(graph.weights))]
    complete = [True] * len(values)  # whether a tensor is no partial result
    for split in splits:
        assert split.original == graph
        works = _split_works(split, works)
        complete = [complete[p.of] and p.kind == "value" for p in split.tensors]
        values = [_part_of(values[p.of], p.label, (p.start, p.stop)) for p in split.tensors]
        values = [
            value._replace(term=(len(values), n)) if p.kind == "partial" else value
            for n, (value, p) in enumerate(zip(values, split.tensors, strict=True))
        ]
        held = [_part_of(held[p.of], p.label, (p.start, p.stop)) for p in split.weights]
        graph = split.graph
    made: dict[int, Array] = {}
    for x, work in enumerate(works):
        read = [(values[k], made[k]) for k, t in enumerate(graph.tensors) if x in t.consumers]
        outputs = [k for k, t in enumerate(graph.tensors) if t.producer == x]
        if work.kind == "op":
            weight = None
            if (w := program.ops[work.v].weight) is not None:
                whole, weight = program.weights[w], np.full(program.weights[w].shape, np.nan)
                for number, holder in enumerate(graph.weights):
                    if x in holder.consumers and held[number].of == w:
                        block = _block(held[number].ranges, ("in", "out"), whole.shape)
                        weight[block] = whole[block]
            result = _result(program, work, read, weight)
        elif work.kind == "sum":
            result = _sum(program, work, read)
        else:
            result = None
        for k in outputs:
            of = values[k].of
            if work.kind == "copy":
                same = [one for one in read if one[0].term == values[k].term]
                result = _assembled(program, of, same)
            assert result is not None
            block = _block(values[k].ranges, program.labels[of], program.shapes[of])
            made[k] = result[block]
            assert not np.isnan(made[k]).any(), f"{graph.nodes[x].name} lacks an operand"
    return [
        _assembled(program, k, [(values[n], made[n]) for n in made if complete[n]])
        for k in range(len(program.graph.tensors))
    ]


def _split_works(split: Split, works: list[_Work]) -> list[_Work]:
    found: list[_Work | None] = [None] * len(split.graph.nodes)
    for v, parts in enumerate(split.parts_of):
        for i, x in enumerate(parts):
            ranges = dict(works[v].ranges)
            if v in split.cuts:
                cut = split.cuts[v]
                axis = cut.division.axis
                ranges[axis] = _within(ranges.get(axis, _ALL), cut.range_of(i))
            found[x] = works[v]._replace(ranges=ranges)
        joins = split.joins_of.get(v, ())
        terms = 2 if len(joins) > 1 else len(parts)
        for x in joins:
            found[x] = _Work("sum", works[v].v, {}, terms)
    for x in split.passes:
        found[x] = _Work("copy", -1, {})
    assert all(work is not None for work in found)
    return [work for work in found if work is not None]


def _within(outer: tuple[Fraction, Fraction], inner: tuple[Fraction, Fraction]):
    length = outer[1] - outer[0]
    return outer[0] + length * inner[0], outer[0] + length * inner[1]


def _part_of(value: _Value, label: str | None, span: tuple[Fraction, Fraction]) -> _Value:
    if label is None:
        return value
    ranges = value.ranges | {label: _within(value.ranges.get(label, _ALL), span)}
    return value._replace(ranges=ranges)


def _block(ranges: Mapping[str, tuple[Fraction, Fraction]], labels, shape) -> tuple[slice, slice]:
    slices = []
    for label, length in zip(labels, shape, strict=True):
        start, stop = (place * length for place in ranges.get(label, _ALL))
        assert start.denominator == stop.denominator == 1, "a cut within a row"
        slices.append(slice(int(start), int(stop)))
    assert set(ranges) <= set(labels)
    return tuple(slices)


def _assembled(program: Program, k: int, read: list[tuple[_Value, Array]]) -> Array:
    """Tensor k as far as it is among some values; NaN elsewhere."""
    found = np.full(program.shapes[k], np.nan)
    for value, array in read:
        if value.of == k:
            found[_block(value.ranges, program.labels[k], program.shapes[k])] = array
    return found


def _sum(program: Program, work: _Work, read: list[tuple[_Value, Array]]) -> Array:
    total, terms = np.zeros(program.shapes[work.v]), np.zeros(program.shapes[work.v])
    for value, array in read:
        block = _block(value.ranges, program.labels[work.v], program.shapes[work.v])
        total[block] += array
        terms[block] += 1
    return np.where(terms == work.terms, total, np.nan)


def _result(
    program: Program, work: _Work, read: list[tuple[_Value, Array]], weight: Array | None
) -> Array:
    op = program.ops[work.v]
    if op.kind == "source":
        rows, columns = program.shapes[work.v]
        return np.arange(rows * columns, dtype=np.float64).reshape(rows, columns) % 7 - 3
    arrays = [_assembled(program, k, read) for k in op.operands]
    if op.contracted in work.ranges:  # one term of the sum
        length = arrays[0].shape[1]
        start, stop = (int(place * length) for place in work.ranges[op.contracted])
        arrays = [array[:, start:stop] for array in arrays]
        weight = None if weight is None else weight[start:stop]
    x = arrays[0]
    if op.kind == "scale":
        return 2 * x + 1
    if op.kind == "smooth":
        padded = np.pad(x, ((1, 1), (0, 0)))
        return padded[:-2] + padded[1:-1] + padded[2:]
    if op.kind == "rowsum":
        return x.sum(axis=1, keepdims=True)
    if op.kind == "add":
        return x + arrays[1]
    if op.kind == "product":
        return x @ arrays[1].T
    assert weight is not None
    return x @ weight
