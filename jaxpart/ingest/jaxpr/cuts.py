"""The axes along which a jaxpr equation can be cut into equal slices.

A primitive without a rule has no cut, nor has one with a body (loops, branches, kernels). Slices
have equal FLOPs, with one exception: windows at the ends of a padded axis multiply fewer real
elements, so slices at the ends of a convolution that is cut by rows have fewer.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxpart.ingest.axes import (
    Letters,
    elementwise_cuts,
    letter_cuts,
    reshape_cuts,
    same_axes_cuts,
)
from jaxpart.ingest.jaxpr.flops import SCATTERS, is_elementwise
from jaxpart.ingest.jaxpr.parts import IDENTITIES
from jaxpart.ingest.jaxpr.window_cuts import (
    Cuts,
    Shape,
    conv_cuts,
    pad_cuts,
    reduce_window_cuts,
    slice_cuts,
)

Rule = Callable[[Any, Sequence[Shape], Sequence[Shape]], Cuts]  # parameters, shapes in and out

_KEEP_ELEMENTS = frozenset(("complex", "imag", "real"))
# Each element hangs on its position too.
_RANDOM = frozenset(
    (
        *("addupdate", "random_bits", "random_clone", "random_fold_in", "random_seed"),
        *("random_split", "rng_bit_generator", "rng_uniform"),
    )
)


class ShapedCuts(NamedTuple):
    """Cuts of an operation, and the shapes that their dimensions count in.

    Attributes:
      cuts: the cuts.
      operands: the shape of each operand.
      results: the shape of each result.
    """

    cuts: Cuts = ()
    operands: tuple[Shape, ...] = ()
    results: tuple[Shape, ...] = ()


NO_CUTS = ShapedCuts()


def row_cuts(row: Sequence[int]) -> ShapedCuts:
    """The cuts of an operation that takes a row of shape `row` of an array."""
    axes = {a + 1: n for a, n in enumerate(row)}
    cuts = letter_cuts([[None, *axes]], [list(axes)], axes)
    return ShapedCuts(cuts, ((1, *row),), (tuple(row),))


def stack_cuts(rows: int, shape: Sequence[int]) -> ShapedCuts:
    """The cuts of an operation that stacks rows on the first axis of an array of shape `shape`."""
    axes = dict(enumerate(shape[1:], 1))
    cuts = letter_cuts([list(axes)] * rows, [[None, *axes]], axes)
    return ShapedCuts(cuts, (tuple(shape[1:]),) * rows, (tuple(shape),))


def equation_cuts(eqn: Any) -> ShapedCuts:
    """The cuts of an equation; none where it has no rule."""
    ins, outs = (
        tuple(tuple(getattr(v.aval, "shape", ())) for v in atoms)
        for atoms in (eqn.invars, eqn.outvars)
    )
    return ShapedCuts(_cuts(eqn, ins, outs), ins, outs)


def _cuts(eqn: Any, ins: Sequence[Shape], outs: Sequence[Shape]) -> Cuts:
    name = eqn.primitive.name
    types = [getattr(v.aval, "dtype", None) for v in (*eqn.invars, *eqn.outvars)]
    # A token has no shape, and a random key is more numbers than its shape shows.
    if not outs or not all(isinstance(dtype, np.dtype) for dtype in types):
        return ()
    if name not in _RANDOM and (
        is_elementwise(name) or name in IDENTITIES or name in _KEEP_ELEMENTS
    ):
        return elementwise_cuts(ins, outs)
    rule = _RULES.get(name)
    if rule is None or "results" in eqn.params:  # of an operation that is known by shapes alone
        return ()
    cuts = rule(eqn.params, ins, outs)
    if eqn.outvars[0].aval.dtype.kind in "bV":  # no sum of truth values
        return tuple(cut for cut in cuts if cut.results[0] is not None)
    return cuts


def _bitcast(params: Any, ins: Sequence[Shape], outs: Sequence[Shape]) -> Cuts:
    """Cuts along the axes of both sides; where elements differ in size, one side has one more."""
    rank = min(len(ins[0]), len(outs[0]))
    operand, result = ([*range(rank), *[None] * (len(s) - rank)] for s in (ins[0], outs[0]))
    return letter_cuts([operand], [result], dict(enumerate(outs[0][:rank])))


def _dot(params: Any, ins: Sequence[Shape], outs: Sequence[Shape]) -> Cuts:
    summed, batch = params["dimension_numbers"]
    letters: list[list[Hashable]] = [[(side, a) for a in range(len(ins[side]))] for side in (0, 1)]
    for what, (left, right) in (("batch", batch), ("sum", summed)):
        for i, axes in enumerate(zip(left, right, strict=True)):
            for side, axis in enumerate(axes):
                letters[side][axis] = (what, i)
    ways = {x: n for own, s in zip(letters, ins, strict=True) for x, n in zip(own, s, strict=True)}
    result = [("batch", i) for i in range(len(batch[0]))]
    result += [x for own in letters for x in own if isinstance(x, tuple) and x[0] in (0, 1)]
    return letter_cuts(letters, [result], ways, [("sum", i) for i in range(len(summed[0]))])


def _ragged_dot(params: Any, ins: Sequence[Shape], outs: Sequence[Shape]) -> Cuts:
    """Cuts along the free axes of the matrices; rows belong to groups whose sizes the run knows."""
    numbers = params["ragged_dot_dimension_numbers"]
    (left, right), (left_batch, right_batch) = numbers.dot_dimension_numbers
    if tuple(numbers.lhs_ragged_dimensions) in [(a,) for a in (*left, *left_batch)]:
        return ()  # groups are no axis of the right operand
    kept = [
        a
        for a in range(len(ins[1]))
        if a not in (*right, *right_batch, *numbers.rhs_group_dimensions)
    ]
    first = len(outs[0]) - len(kept)
    letters: list[Letters] = [
        [],
        [a if a in kept else None for a in range(len(ins[1]))],
        *([] for _ in ins[2:]),
    ]
    return letter_cuts(letters, [[None] * first + kept], {a: ins[1][a] for a in kept})


def _reduced(params: Any, ins: Sequence[Shape], outs: Sequence[Shape]) -> Cuts:
    return _reduction(params["axes"], ins, outs, is_sum=False)


def _reduce_sum(params: Any, ins: Sequence[Shape], outs: Sequence[Shape]) -> Cuts:
    return _reduction(params["axes"], ins, outs, is_sum=True)


def _reduce(params: Any, ins: Sequence[Shape], outs: Sequence[Shape]) -> Cuts:
    return _reduction(params["dimensions"], ins, outs, is_sum=False)


def _reduction(
    axes: Sequence[int], ins: Sequence[Shape], outs: Sequence[Shape], *, is_sum: bool
) -> Cuts:
    """Cuts along the axes that are kept, and where it sums along those that are not.

    Args:
      axes: that are not kept.
      ins: shapes of the operands; initial values are scalars.
      outs: shapes of the results.
      is_sum: whether the parts of a reduced axis add up.
    """
    letters = [list(range(len(shape))) if len(shape) == len(ins[0]) else [] for shape in ins]
    kept = [a for a in range(len(ins[0])) if a not in axes]
    summed = list(axes) if is_sum else []
    return letter_cuts(letters, [kept for _ in outs], dict(enumerate(ins[0])), summed)


def _but(axes: Sequence[int], ins: Sequence[Shape], outs: Sequence[Shape]) -> Cuts:
    """Cuts along all axes but the given ones; operands and results have the same axes."""
    rank = len(outs[0])
    whole = {a % rank for a in axes} if rank else set()
    return same_axes_cuts(
        ins, outs, {a: n for a, n in enumerate(outs[0]) if a not in whole and n == ins[0][a]}
    )


def _cumulative(params: Any, ins: Sequence[Shape], outs: Sequence[Shape]) -> Cuts:
    return _but((params["axis"],), ins, outs)


def _sort(params: Any, ins: Sequence[Shape], outs: Sequence[Shape]) -> Cuts:
    return _but((params["dimension"],), ins, outs)


def _top_k(params: Any, ins: Sequence[Shape], outs: Sequence[Shape]) -> Cuts:
    return _but((params.get("axis", params.get("dimension", -1)),), ins, outs)


def _concatenate(params: Any, ins: Sequence[Shape], outs: Sequence[Shape]) -> Cuts:
    return _but((params["dimension"],), ins, outs)


def _rev(params: Any, ins: Sequence[Shape], outs: Sequence[Shape]) -> Cuts:
    return _but(params["dimensions"], ins, outs)


def _split(params: Any, ins: Sequence[Shape], outs: Sequence[Shape]) -> Cuts:
    return _but((params["axis"],), ins, outs)


def _fft(params: Any, ins: Sequence[Shape], outs: Sequence[Shape]) -> Cuts:
    return _but(range(-len(params["fft_lengths"]), 0), ins, outs)


def _tile(params: Any, ins: Sequence[Shape], outs: Sequence[Shape]) -> Cuts:
    return _but((), ins, outs) if len(ins[0]) == len(outs[0]) else ()


def _dynamic_slice(params: Any, ins: Sequence[Shape], outs: Sequence[Shape]) -> Cuts:
    return _but((), [ins[0], *(() for _ in ins[1:])], outs)


def _dynamic_update_slice(params: Any, ins: Sequence[Shape], outs: Sequence[Shape]) -> Cuts:
    array, update = ins[:2]
    moved = [a for a, (n, m) in enumerate(zip(array, update, strict=True)) if n != m]
    return _but(moved, [array, update, *(() for _ in ins[2:])], outs)


def _reshape(params: Any, ins: Sequence[Shape], outs: Sequence[Shape]) -> Cuts:
    if params.get("dimensions") is not None or len(ins) != 1:
        return ()
    return reshape_cuts(ins[0], outs[0])


def _transpose(params: Any, ins: Sequence[Shape], outs: Sequence[Shape]) -> Cuts:
    axes = range(len(ins[0]))
    return letter_cuts([axes], [params["permutation"]], dict(enumerate(ins[0])))


def _broadcast(params: Any, ins: Sequence[Shape], outs: Sequence[Shape]) -> Cuts:
    letters: list[Letters] = [
        [
            axis if n == outs[0][axis] else None
            for n, axis in zip(ins[0], params["broadcast_dimensions"], strict=True)
        ],
        *([] for _ in ins[1:]),
    ]
    return letter_cuts(letters, [range(len(outs[0]))], dict(enumerate(outs[0])))


def _squeeze(params: Any, ins: Sequence[Shape], outs: Sequence[Shape]) -> Cuts:
    gone = {a % len(ins[0]) for a in params["dimensions"]}
    kept = [a for a in range(len(ins[0])) if a not in gone]
    return letter_cuts([range(len(ins[0]))], [kept], dict(enumerate(ins[0])))


def _expand_dims(params: Any, ins: Sequence[Shape], outs: Sequence[Shape]) -> Cuts:
    return reshape_cuts(ins[0], outs[0])


def _stack(params: Any, ins: Sequence[Shape], outs: Sequence[Shape]) -> Cuts:
    axis = params["axis"] % len(outs[0])
    rest = [a for a in range(len(outs[0])) if a != axis]
    letters = [a if a != axis else None for a in range(len(outs[0]))]
    return letter_cuts([rest for _ in ins], [letters], dict(enumerate(outs[0])))


def _unstack(params: Any, ins: Sequence[Shape], outs: Sequence[Shape]) -> Cuts:
    axis = params["axis"] % len(ins[0])
    rest = [a for a in range(len(ins[0])) if a != axis]
    letters = [a if a != axis else None for a in range(len(ins[0]))]
    return letter_cuts([letters], [rest for _ in outs], dict(enumerate(ins[0])))


def _gather(params: Any, ins: Sequence[Shape], outs: Sequence[Shape]) -> Cuts:
    """Cuts along axes that windows take whole, along the positions, and by the rows of a table.

    A part that holds some rows gives zeros for positions of other rows, and the parts add up.
    """
    numbers, sizes = params["dimension_numbers"], params["slice_sizes"]
    table, indices, out = ins[0], ins[1], outs[0]
    batching = tuple(getattr(numbers, "operand_batching_dims", ()))
    own: list[Hashable | None] = [None] * len(table)
    result: list[Hashable | None] = [None] * len(out)
    positions: list[Hashable | None] = [*(("at", a) for a in range(len(indices) - 1)), None]
    windowed = [a for a in range(len(table)) if a not in (*numbers.collapsed_slice_dims, *batching)]
    for axis, at in zip(windowed, numbers.offset_dims, strict=True):
        if sizes[axis] == table[axis]:
            own[axis] = result[at] = ("window", axis)
    outside = [d for d in range(len(out)) if d not in numbers.offset_dims]
    for d, letter in zip(outside, positions[:-1], strict=True):
        result[d] = letter
    together = getattr(numbers, "start_indices_batching_dims", ())
    for axis, at in zip(batching, together, strict=True):
        own[axis] = positions[at]
    summed: list[Hashable] = []
    for axis in numbers.start_index_map:
        if axis in numbers.collapsed_slice_dims:
            own[axis] = ("row", axis)
            summed.append(("row", axis))
    ways: dict[Hashable, int] = {
        x: n
        for letters, shape in ((own, table), (positions, indices), (result, out))
        for x, n in zip(letters, shape, strict=True)
        if x is not None
    }
    return letter_cuts([own, positions], [result], ways, summed)


def _scatter(params: Any, ins: Sequence[Shape], outs: Sequence[Shape]) -> Cuts:
    """Cuts along the axes that updates replace whole."""
    numbers = params["dimension_numbers"]
    table, _, update = ins
    gone = (*numbers.inserted_window_dims, *getattr(numbers, "operand_batching_dims", ()))
    own: list[Hashable | None] = [None] * len(table)
    updates: list[Hashable | None] = [None] * len(update)
    windowed = [a for a in range(len(table)) if a not in gone]
    for axis, at in zip(windowed, numbers.update_window_dims, strict=True):
        if table[axis] == update[at]:
            own[axis] = updates[at] = axis
    return letter_cuts([own, [], updates], [own], dict(enumerate(table)))


_RULES: dict[str, Rule] = {
    **dict.fromkeys(
        (
            *("argmax", "argmin", "reduce_and", "reduce_max", "reduce_min", "reduce_or"),
            *("reduce_prod", "reduce_xor"),
        ),
        _reduced,
    ),
    **dict.fromkeys(("cumlogsumexp", "cummax", "cummin", "cumprod", "cumsum"), _cumulative),
    **dict.fromkeys(
        ("reduce_window", "reduce_window_max", "reduce_window_min", "reduce_window_sum"),
        reduce_window_cuts,
    ),
    **dict.fromkeys(SCATTERS, _scatter),
    "bitcast_convert_type": _bitcast,
    "broadcast_in_dim": _broadcast,
    "concatenate": _concatenate,
    "conv_general_dilated": conv_cuts,
    "dot_general": _dot,
    "dynamic_slice": _dynamic_slice,
    "dynamic_update_slice": _dynamic_update_slice,
    "expand_dims": _expand_dims,
    "fft": _fft,
    "gather": _gather,
    "pad": pad_cuts,
    "ragged_dot_general": _ragged_dot,
    "reduce": _reduce,
    "reduce_sum": _reduce_sum,
    "reshape": _reshape,
    "rev": _rev,
    "slice": slice_cuts,
    "sort": _sort,
    "split": _split,
    "squeeze": _squeeze,
    "stack": _stack,
    "tile": _tile,
    "top_k": _top_k,
    "transpose": _transpose,
    "unstack": _unstack,
}
