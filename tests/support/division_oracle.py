"""Runs traced functions equation by equation, whole and in parts; shares no code with the rules."""

from __future__ import annotations

import collections
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
from jaxpart.ingest.labels import divisions
from jaxpart.problem.graph import Graph, Node, Tensor, Weight


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
        assert imported.expansion is not None
        self.steps = Steps(self.program, imported.expansion)
        self.ops = [  # a box of an array that is written into is no array of a step
            op
            for op in self.program.ops
            if all(self.steps.array_of(v) is not None for v in op.results)
        ]
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


class Parts:
    """The graph of a run, and each node of it or of its kernels in parts.

    Attributes:
      graph: a node for each operation. The bytes of a tensor tell it from all others, also after a
        rewrite.
    """

    def __init__(self, run):
        self.run = run
        self.values = [v for op in run.ops for v in op.results]
        numbers = {v: k for k, v in enumerate(self.values)}
        divide = divisions(run.works, numbers, run.held)
        self.axis_of = {}  # (tensor or weight, label) -> its axis
        for work, found in zip(run.works, divide, strict=True):
            for cut, division in zip(work.cuts, found, strict=True):
                self._note(work, cut, division, numbers)
        self.graph = self._graph(divide, numbers)
        self.node_of_value = {v: n for n, op in enumerate(run.ops) for v in op.results}
        self.evaluate = compiled(self._evaluate)

    def _note(self, work, cut, division, numbers):
        """Notes which axes labels name; a label names one axis of each tensor and weight."""
        named = []
        if division.join is None:
            named += [
                (("tensor", numbers[v]), division.axis, at)
                for v, at in zip(work.results, cut.results, strict=True)
            ]
        labels = {"tensor": dict(division.reads), "weight": dict(division.weights)}
        for v, at in zip(work.operands, cut.operands, strict=True):
            found = [
                ("weight", w, None if at is None else axes[at])
                for w, axes in self.run.held.get(v, ())
            ]
            found += [("tensor", numbers[v], at)] if v in numbers else []
            for what, number, axis in found:
                if number in labels[what]:
                    assert axis is not None
                    named.append(((what, number), labels[what][number], axis))
        for what, label, axis in named:
            assert self.axis_of.setdefault((what, label), axis) == axis
        axes = [(what, axis) for (what, _), axis in self.axis_of.items()]
        assert len(axes) == len(set(axes)), "an axis has two labels"

    def _graph(self, divide, numbers):
        run, readers, users = self.run, collections.defaultdict(set), collections.defaultdict(set)
        for n, op in enumerate(run.ops):
            for v in op.operands:
                if v in numbers:
                    readers[numbers[v]].add(n)
                for source in run.program.values[v].sources:
                    users[run.sources.index(source)].add(n)
        nodes = [
            Node(f"n{n}", op.name, op.cost.flops, 1e9, divide=found)
            for n, (op, found) in enumerate(zip(run.ops, divide, strict=True))
        ]
        tensors = [
            Tensor(n, run.program.values[v].bytes * 4096 + numbers[v], tuple(sorted(readers[k])))
            for n, op in enumerate(run.ops)
            for v in op.results
            for k in [numbers[v]]
        ]
        weights = [Weight(1, tuple(sorted(users[w]))) for w in range(len(run.sources))]
        return Graph(tuple(nodes), tuple(tensors), tuple(weights))

    def _evaluate(self, leaves, arrays, computes, keeps, fill):
        """The tensors, where some nodes compute anew and others hand on what they had computed.

        Args:
          leaves: the arguments of the function.
          arrays: what all steps computed.
          computes: [nodes] whether a node computes.
          keeps: for each tensor, which of its elements are kept; `fill` takes the place of others.
          fill: likewise.
        """
        steps = self.run.steps
        now = {a: jnp.asarray(x) for a, x in steps.constants.items()}
        now.update(zip(steps.arguments, leaves, strict=True))
        found = {}
        for step in steps.steps:
            results = step.run(*(now[a] for a in step.operands))
            for a, x in zip(step.results, results, strict=True):
                n = self.node_of_value.get(steps.values[a])
                if n is not None:
                    k = self.values.index(steps.values[a])
                    x = found[k] = jnp.where(computes[n], x, arrays[a])
                    x = jnp.where(keeps[k], x, jnp.asarray(fill, x.dtype))
                now[a] = x
        return found

    def check(self, small, node_of):
        """Computes both parts of each node that can be divided, and compares with the whole.

        Args:
          small: the graph of kernels.
          node_of: [nodes] the kernel of each node; None for views.

        Returns:
          The number of divisions.
        """
        number_of = [int(tensor.bytes) % 4096 for tensor in small.tensors]
        whole = self._call(self.run.leaves, [True] * len(self.graph.nodes), {}, 0)
        count = 0
        for b, node in enumerate(small.nodes):
            computes = [kernel in (b, None) for kernel in node_of]
            made = [k for k, t in zip(number_of, small.tensors, strict=True) if t.producer == b]
            for division in node.divide:
                if division.join and not (division.reads or division.weights):
                    continue  # of what the host feeds, each part takes its slices itself
                self._check_division(division, number_of, computes, made, whole)
                count += 1
        return count

    def _check_division(self, division, number_of, computes, made, whole):
        ways, fill = division.ways, 0 if division.join else 100
        middle, parts = ways // 2, []
        for start, stop in ((0, middle), (middle, ways)):
            span = (start - division.halo, stop + division.halo)
            keeps = {
                number_of[k]: inside(whole[number_of[k]].shape, axis, ways, span)
                for k, label in division.reads
                for axis in [self.axis_of[("tensor", number_of[k]), label]]
            }
            leaves = [*self.run.leaves]
            for w, label in division.weights:
                parameter, region = self.run.sources[w]
                kept = self._kept(parameter, region, self.axis_of[("weight", w), label], ways, span)
                leaf = leaves[parameter]
                leaves[parameter] = jnp.where(kept, leaf, fill and leaf + fill)
            parts.append(self._call(leaves, computes, keeps, fill))
        for k in made:
            if division.join:
                found = parts[0][k] + parts[1][k]
            else:
                axis = self.axis_of[("tensor", k), division.axis]
                first = inside(whole[k].shape, axis, ways, (0, middle))
                found = np.where(first, parts[0][k], parts[1][k])
            np.testing.assert_allclose(found, whole[k], 1e-4, 1e-4, err_msg=f"{k} {division}")

    def _call(self, leaves, computes, keeps, fill):
        shapes = [self.run.arrays[self.run.steps.array_of(v)].shape for v in self.values]
        masks = [
            np.ones(shape, bool) if k not in keeps else keeps[k] for k, shape in enumerate(shapes)
        ]
        found = self.evaluate(leaves, self.run.arrays, np.array(computes), masks, float(fill))
        return {k: np.asarray(x) for k, x in found.items()}

    def _kept(self, parameter, region, axis, ways, span):
        """Which elements of a parameter a part has, of the weight that is a region of it."""
        leaf = self.run.leaves[parameter]
        offsets = np.array(region.offset)
        for extent, stride in region.pairs:
            offsets = np.add.outer(offsets, np.arange(extent) * stride)
        flat = np.zeros(leaf.size, bool)
        flat[offsets.ravel()] = True
        own = flat.reshape(leaf.shape)
        positions = np.unique(np.nonzero(own)[axis])
        kept = positions[within(len(positions), ways, span)]
        outside = ~own  # other parts of the parameter are other weights
        mask = np.isin(np.arange(leaf.shape[axis]), kept)
        return outside | np.expand_dims(mask, [a for a in range(leaf.ndim) if a != axis])


def within(extent, ways, span):
    """Which positions of an axis lie in a span of slices, at least partly."""
    first = np.arange(extent) * ways / extent
    return (first + ways / extent > span[0] + 1e-6) & (first < span[1] - 1e-6)


def inside(shape, axis, ways, span):
    """Which elements of an array lie in a span of slices along an axis."""
    kept = np.expand_dims(
        within(shape[axis], ways, span), [a for a in range(len(shape)) if a != axis]
    )
    return np.broadcast_to(kept, shape)
