"""FLOPs and bytes of one jaxpr equation with its bodies, computed from shapes alone.

FLOPs of a primitive without a body: `flops.py`. With one:

- `scan`: length * body. `while`: one trip (condition and body); the importer multiplies where the
  number of trips is known. `cond`: the branch with the most FLOPs.
- `pallas_call`: the kernel's own cost estimate (transcendentals count one each), or else steps of
  the grid * body.
- `call_exported`: the FLOPs of XLA's analysis of the exported module, which has no jaxpr.

Bytes: operands and results, each once. Operations that index a table (`gather`, `slice`,
`dynamic_slice`, `dynamic_update_slice`, `scatter`) count only the bytes that they touch. Each
element counts the bits of its own type; an array is rounded up to whole bytes.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.extend.core

from jaxpart.ingest.jaxpr.flops import SCATTERS, primitive_flops
from jaxpart.ingest.jaxpr.sizes import array_bytes, elements, is_float

Size = Callable[[Any], float]  # an abstract value -> its bytes

# Primitives that only call a body.
_WRAPPERS = (
    *("pjit", "jit", "closed_call", "core_call", "core_closed_call", "call", "xla_call"),
    *("named_call", "remat", "remat2", "remat_opt", "checkpoint", "custom_lin", "composite"),
    *("custom_jvp_call", "custom_vjp_call", "custom_vjp_call_jaxpr", "custom_vmap_call"),
)
# Parameters of an equation that can hold the body.
_BODY_KEYS = ("jaxpr", "call_jaxpr", "fun_jaxpr", "fwd_jaxpr", "call")


@dataclasses.dataclass(frozen=True)
class Cost:
    """The cost of one equation.

    Attributes:
      flops: FLOP.
      reads: bytes read of each operand, in order.
      writes: bytes written of each result, in order.
      unknown: names of the primitives without a rule, in the equation or its bodies. Each of these
        counts one FLOP per result element.
      accessed: bytes read and written in all, where they are more or fewer than the sum of `reads`
        and `writes` (loops, kernels with an estimate of their own); else None.
      fixed: the part of `accessed` that no element size scales.
    """

    flops: float
    reads: tuple[float, ...]
    writes: tuple[float, ...]
    unknown: frozenset[str] = frozenset()
    accessed: float | None = None
    fixed: float = 0.0


def equation_cost(eqn: Any, size: Size) -> Cost:
    """The cost of one equation; the docstring of this module gives the rules.

    Args:
      eqn: a `jax.extend.core.JaxprEqn`.
      size: function from an abstract value to its bytes.

    Returns:
      FLOPs and bytes of the equation.
    """
    flops, unknown = _work(eqn)
    reads = [size(v.aval) for v in eqn.invars]
    writes = [size(v.aval) for v in eqn.outvars]
    name = eqn.primitive.name
    if name in ("gather", "slice", "dynamic_slice"):
        reads[0] = min(reads[0], writes[0])
    elif name == "dynamic_update_slice":
        reads[0], writes[0] = 0.0, min(reads[1], writes[0])
    elif name in SCATTERS:  # operands: table, indices, updates
        reads[0] = writes[0] = min(reads[2], writes[0])
    accessed, fixed = _estimated_bytes(eqn, size)
    return Cost(flops, tuple(reads), tuple(writes), unknown, accessed, fixed)


def _estimated_bytes(eqn: Any, size: Size) -> tuple[float | None, float]:
    """Bytes that a kernel's own estimate states, and the part of them that nothing scales.

    The estimate is in the types that were traced, and says nothing of its parts. Both are taken
    from operands and results. None and 0 if there is no estimate.
    """
    estimate = eqn.params.get("cost_estimate") if eqn.primitive.name == "pallas_call" else None
    avals = [v.aval for v in (*eqn.invars, *eqn.outvars)]
    traced = sum(array_bytes(aval) for aval in avals)
    if estimate is None or not traced:
        return None, 0.0
    counted = sum(size(aval) for aval in avals)
    fixed = sum(size(aval) for aval in avals if not is_float(aval))
    return estimate.bytes_accessed * counted / traced, estimate.bytes_accessed * fixed / traced


def inlined(eqn: Any) -> Any | None:
    """The body of a wrapper equation (pjit, custom_jvp_call, remat, ...).

    Returns:
      The body as a ClosedJaxpr, with one argument per operand of the equation. None if the
      equation is not a wrapper or has no such body.
    """
    if eqn.primitive.name not in _WRAPPERS:
        return None
    for key in _BODY_KEYS:
        body = eqn.params.get(key)
        if body is None or not (hasattr(body, "eqns") or hasattr(body, "jaxpr")):
            continue
        body = _closed(body)
        if len(body.jaxpr.invars) == len(eqn.invars):
            return body
    return None


def body_flops(body: Any) -> float:
    """FLOPs of all equations of a body."""
    return _body_work(body)[0]


def _closed(body: Any) -> Any:
    """`body` as a ClosedJaxpr. `body` may be a Jaxpr without constants, as in remat."""
    if hasattr(body, "consts"):
        return body
    return jax.extend.core.ClosedJaxpr(body, ())


def _work(eqn: Any) -> tuple[float, frozenset[str]]:
    """FLOPs of one equation with its bodies, and names of the primitives without a rule."""
    name, params = eqn.primitive.name, eqn.params
    body = inlined(eqn)
    if body is not None:
        return _body_work(body)
    if name == "scan":
        flops, unknown = _body_work(params["jaxpr"])
        return params["length"] * flops, unknown
    if name == "while":
        parts = [_body_work(params["cond_jaxpr"]), _body_work(params["body_jaxpr"])]
        return sum(flops for flops, _ in parts), parts[0][1] | parts[1][1]
    if name == "cond":
        parts = [_body_work(branch) for branch in params["branches"]]
        return max(flops for flops, _ in parts), frozenset().union(
            *(unknown for _, unknown in parts)
        )
    if name == "custom_linear_solve":
        return _body_work(params["jaxprs"].solve)
    if name == "shard_map":
        flops, unknown = _body_work(params["jaxpr"])
        return math.prod(params["mesh"].shape[a] for a in params["newly_manual_axes"]) * flops, (
            unknown
        )
    if name == "pallas_call":
        return _kernel_work(params)
    if name == "call_exported":
        flops = _exported_flops(params["exported"])
        if flops is not None:
            return flops, frozenset()
    flops = primitive_flops(eqn)
    if flops is None:
        return float(sum(elements(v.aval) for v in eqn.outvars)), frozenset((name,))
    if name in ("reduce", "reduce_window"):  # the body combines two elements
        flops *= body_flops(params["jaxpr"])
    return float(flops), frozenset()


def _kernel_work(params: Any) -> tuple[float, frozenset[str]]:
    """As `_work`, for a Pallas kernel."""
    estimate = params.get("cost_estimate")
    if estimate is not None:
        return float(estimate.flops + estimate.transcendentals), frozenset()
    flops, unknown = _body_work(params["jaxpr"])
    grid = params["grid_mapping"].grid
    if not all(isinstance(extent, int) for extent in grid):  # known at run time only
        return flops, unknown | {"pallas_call"}
    return math.prod(grid) * flops, unknown


def _exported_flops(exported: Any) -> float | None:
    """FLOPs of a module of `jax.export` by XLA's analysis; None if this backend has none."""
    platform = jax.default_backend()
    if not {platform, "cuda" if platform == "gpu" else platform} & set(exported.platforms):
        return None
    avals = [jax.ShapeDtypeStruct(a.shape, a.dtype) for a in exported.in_avals]

    def call(*leaves: Any) -> Any:
        arguments, keywords = jax.tree.unflatten(exported.in_tree, leaves)
        return exported.call(*arguments, **keywords)

    analysis: Any = jax.jit(call).lower(*avals).cost_analysis()
    if not analysis:
        return None
    return float(analysis.get("flops", 0.0) + analysis.get("transcendentals", 0.0))


def _body_work(body: Any) -> tuple[float, frozenset[str]]:
    """As `_work`, for all equations of a body."""
    parts = [_work(eqn) for eqn in _closed(body).jaxpr.eqns]
    return sum(flops for flops, _ in parts), frozenset().union(*(names for _, names in parts))
