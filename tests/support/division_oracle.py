"""Runs traced functions equation by equation, whole and in parts; shares no code with the rules."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxpart.ingest.jaxpr.cuts import equation_cuts
from jaxpart.ingest.jaxpr.divide import works_of
from jaxpart.ingest.jaxpr.flops import primitive_flops
from jaxpart.ingest.jaxpr.importer import Options, import_function
from jaxpart.ingest.jaxpr.steps import Steps


def compiled(function):
    """A function as one program, which compiles fast: each operation alone would take longer."""
    return jax.jit(function, compiler_options={"xla_backend_optimization_level": 0})


class Run:
    """A function with the operations that the importer finds, and the elements of all its arrays.

    Attributes:
      works: what each operation reads and computes, and its cuts, as the importer says.
      sources: the part of a parameter that each weight is.
    """

    def __init__(self, fn, params, *args):
        options = Options(param_argnums=0)
        imported = import_function(fn, (params, *args), options, record=True)
        self.program = imported.program
        self.ops = self.program.ops
        self.sources = list(
            dict.fromkeys(
                source
                for op in self.ops
                for v in op.operands
                for source in sorted(self.program.values[v].sources)
            )
        )
        weights = [(parameter, [region]) for parameter, region in self.sources]
        self.works, self.held = works_of(self.program, self.ops, weights)
        assert imported.expansion is not None
        self.steps = Steps(self.program, imported.expansion)
        self.leaves = jax.tree.leaves((params, *args))
        self.evaluated = compiled(self._evaluated)
        self.arrays = self.evaluated(self.leaves)

    def _evaluated(self, leaves):
        arrays = {a: jnp.asarray(x) for a, x in self.steps.constants.items()}
        arrays.update(zip(self.steps.arguments, leaves, strict=True))
        for step in self.steps.steps:
            arrays.update(
                zip(step.results, step.run(*(arrays[a] for a in step.operands)), strict=True)
            )
        return arrays

    def step_of(self, op):
        """The step that computes an operation; None for a row or stack of an unrolled loop."""
        array = self.steps.array_of(op.results[0])
        assert array is not None
        step = self.steps.steps[self.steps.maker[array][0]]
        return step if step.eqn is op.eqn else None


def distinct_cuts(run):
    """Yields (step, cut) of each equation of a run, like equations once."""
    seen = set()
    for op in run.ops:
        if op.eqn is None:
            continue
        step = run.step_of(op)
        assert step is not None
        avals = [str(v.aval) for v in op.eqn.invars]
        key = (op.name, str(op.eqn.params), *avals)
        if key not in seen:
            seen.add(key)
            for cut in equation_cuts(op.eqn).cuts:
                yield step, cut


def check_cuts(run):
    """Computes both parts of each equation that is cut into two, and compares them with the whole.

    Returns:
      The number of cuts.
    """
    cuts = list(distinct_cuts(run))

    def all_joined(arrays):
        return [joined(s.eqn, [arrays[a] for a in s.operands], cut) for s, cut in cuts]

    for (step, cut), found in zip(cuts, compiled(all_joined)(run.arrays), strict=True):
        for array, own in zip(step.results, found, strict=True):
            whole = run.arrays[array]
            assert own.shape == whole.shape, (step.name, cut)
            np.testing.assert_allclose(own, whole, 1e-5, 1e-5, err_msg=f"{step.eqn} {cut}")
    return len(cuts)


def joined(eqn, operands, cut):
    """The results of an equation, from two parts.

    Args:
      eqn: the equation.
      operands: its operands.
      cut: of it.
    """
    assert cut.ways >= 2
    middle = cut.ways // 2
    spans = [(0, middle), (middle, cut.ways)]
    is_sum = cut.results[0] is None
    by_mask = cut.halo or (is_sum and eqn.primitive.name == "gather")
    compute = functools.partial(_masked if by_mask else _sliced, eqn, operands, cut)
    parts = [compute(*span) for span in spans]
    if is_sum:
        return [sum(results) for results in zip(*parts, strict=True)]
    if by_mask:
        parts = [
            [taken(x, axis, cut.ways, *span) for x, axis in zip(part, cut.results, strict=True)]
            for part, span in zip(parts, spans, strict=True)
        ]
    return [
        jnp.concatenate(shares, axis) for *shares, axis in zip(*parts, cut.results, strict=True)
    ]


def taken(x, axis, ways, start, stop):
    """The slices from `start` to before `stop` of an axis."""
    extent, rest = divmod(x.shape[axis], ways)
    assert rest == 0
    return lax.slice_in_dim(x, start * extent, stop * extent, axis=axis)


def _sliced(eqn, operands, cut, start, stop):
    """The results of a part, from the slices of its operands alone."""
    slices = [
        x if axis is None else taken(x, axis, cut.ways, start, stop)
        for x, axis in zip(operands, cut.operands, strict=True)
    ]
    shapes = [
        tuple(
            n if a != axis else n * (stop - start) // cut.ways for a, n in enumerate(v.aval.shape)
        )
        for v, axis in zip(eqn.outvars, cut.results, strict=True)
    ]
    params = _params_of_part(eqn, slices, shapes, (stop - start) / cut.ways)

    def run(*given):
        return eqn.primitive.bind(*given, **params)

    closed = jax.make_jaxpr(run)(*slices)
    (part,) = closed.jaxpr.eqns
    check_flops(eqn, part, (stop - start) / cut.ways, is_sum=cut.results[0] is None)
    return jax.tree.leaves(run(*slices))


def check_flops(eqn, part, share, *, is_sum):
    whole, own = primitive_flops(eqn), primitive_flops(part)
    assert whole is not None
    assert own is not None
    if is_sum and eqn.primitive.name == "reduce_sum":  # the join adds what is not added in parts
        results = eqn.outvars[0].aval.size
        whole, own = whole + results, own + results
    assert own == whole * share, (eqn, whole, own)


def _params_of_part(eqn, slices, shapes, share):
    """The parameters of an equation whose shapes are those of a part."""
    params, name = dict(eqn.params), eqn.primitive.name
    ins, shape = [x.shape for x in slices], eqn.invars[0].aval.shape
    if name == "broadcast_in_dim":
        params["shape"] = shapes[0]
    elif name == "reshape":
        params["new_sizes"] = shapes[0]
    elif name == "slice":
        params["start_indices"] = tuple(
            0 if n != v else s
            for n, v, s in zip(
                ins[0], eqn.invars[0].aval.shape, params["start_indices"], strict=True
            )
        )
        params["limit_indices"] = tuple(
            n if n != v else stop
            for n, v, stop in zip(ins[0], shape, params["limit_indices"], strict=True)
        )
    elif name in ("dynamic_slice", "gather"):
        params["slice_sizes"] = tuple(
            size if n == whole else min(size, n)
            for size, n, whole in zip(params["slice_sizes"], ins[0], shape, strict=True)
        )
    elif name == "conv_general_dilated" and params["feature_group_count"] > 1:
        axis = params["dimension_numbers"].lhs_spec[1]
        if ins[0][axis] != shape[axis]:
            params["feature_group_count"] = round(params["feature_group_count"] * share)
    return params


def _masked(eqn, operands, cut, start, stop):
    """The results of a part, with other elements in what it must not read.

    Those are zeros for a sum, else so large that they show in whatever they reach.
    """
    fill = 0 if cut.results[0] is None else 1e6
    masked = []
    for x, axis in zip(operands, cut.operands, strict=True):
        if axis is not None:
            at = np.arange(x.shape[axis]) * cut.ways / x.shape[axis]  # in slices
            width = cut.ways / x.shape[axis]
            inside = (at + width > start - cut.halo + 1e-6) & (at < stop + cut.halo - 1e-6)
            x = jnp.where(
                inside.reshape([-1 if a == axis else 1 for a in range(x.ndim)]),
                x,
                jnp.asarray(fill, x.dtype),
            )
        masked.append(x)
    return jax.tree.leaves(eqn.primitive.bind(*masked, **eqn.params))


@dataclasses.dataclass(frozen=True)
class Use:
    """An operand that is made of a weight, and is cut with it.

    Attributes:
      array: number of the operand's array.
      axis: of the array.
      parameter: position of the weight's parameter among the leaves.
      region: the part of it that the weight is.
      along: the axis of the parameter.
      ways: the number of slices.
    """

    array: int
    axis: int
    parameter: int
    region: object
    along: int
    ways: int


def weight_uses(run):
    """Yields each use of a weight along one of its axes, once."""
    seen = set()
    for op, work in zip(run.ops, run.works, strict=True):
        if op.eqn is None:
            continue
        step = run.step_of(op)
        cuts = equation_cuts(op.eqn).cuts
        assert [cut.results for cut in cuts] == [cut.results for cut in work.cuts]
        for cut, own in zip(cuts, work.cuts, strict=True):
            for i, (v, at) in enumerate(zip(work.operands, own.operands, strict=True)):
                for weight, axes in run.held.get(v, ()):
                    if at is None or axes[at] is None:
                        continue
                    parameter, region = run.sources[weight]
                    axis = cut.operands[i]
                    assert axis is not None
                    use = Use(step.operands[i], axis, parameter, region, axes[at], cut.ways)
                    if use not in seen:
                        seen.add(use)
                        yield use


def check_use(run, use):
    """Changes the parameter outside of the slices of a part: the operand's slices stay."""
    leaf = np.asarray(run.leaves[use.parameter])
    flat = np.zeros(leaf.size, bool)
    pairs = use.region.pairs
    offsets = use.region.offset
    for extent, stride in pairs:
        offsets = np.add.outer(offsets, np.arange(extent) * stride)
    flat[np.ravel(offsets)] = True
    inside = flat.reshape(leaf.shape)
    positions = np.unique(np.nonzero(inside)[use.along])
    middle = use.ways // 2
    for start, stop in ((0, middle), (middle, use.ways)):
        first, last = (at * len(positions) / use.ways for at in (start, stop))
        kept = positions[int(np.floor(first)) : int(np.ceil(last))]
        mask = np.isin(np.arange(leaf.shape[use.along]), kept)
        mask = np.expand_dims(mask, [a for a in range(leaf.ndim) if a != use.along])
        leaves = [*run.leaves]
        leaves[use.parameter] = jnp.asarray(np.where(mask & inside, leaf, leaf + 100))
        changed = np.asarray(run.evaluated(leaves)[use.array])
        whole = np.asarray(run.arrays[use.array])
        np.testing.assert_array_equal(
            taken(changed, use.axis, use.ways, start, stop),
            taken(whole, use.axis, use.ways, start, stop),
        )
