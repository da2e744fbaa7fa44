"""The amounts of a batch, by one kernel (Pallas: Triton on a GPU, Mosaic on a TPU).

`lower(problem, form="kernel")` asks for it. It is no default, because it was never measured: the
figures below are predicted from programs compiled for devices that were not there. It covers
chains, hosts and meshes of at most 64 chips, alike or not, both memory models and every rule. What
it does not cover is refused (`kernel_gate.py`). A CPU interprets it, which is slow and for tests.

The XLA form (`by_arrays.py`) is limited by the arrays that it stores in between, 321 MiB for 4,096
candidates of BERT-large on 36 chips. The kernel takes a tile of candidates through all nodes at
once (`kernel_body.py`), with its sums in registers. It reads the batch once from the memory of the
device and writes the amounts. In between it stores one row for each tensor: on a GPU in the cache,
on a TPU on the core. For that problem and batch on an H100:

- Bytes: 8 MB of labels, 4 MB of results, 34 MB of rows in between: 14 us at the memory's rate.
- Launches: 9, of which 8 lay out tables and results: 27 us.
- Operations: 1.9 million a candidate, since a sum per chip adds to the lanes of all chips: 0.54 ms
  at 64 lanes of a multiprocessor. This is the floor: 7.2 million candidates/s (whole arrays: 3.6
  million). By the compiled instructions, 435 a node in each of four warps, of which 211 take the
  integer lanes, it is at most 10 million. Waiting is not in it: a batch of 4,096 gives a
  multiprocessor one program of four warps, which hide little of a load's latency.

A TPU v5e would take 160 bundles of instructions a node for 128 candidates, 0.7 million candidates/s
(whole arrays: 0.4 million): a row of candidates fills one sublane of eight.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.custom_batching import sequential_vmap
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jax.experimental.pallas import triton as plgpu
from jaxtyping import Array, Bool, Int

from jaxpart.cost.amounts import Amounts
from jaxpart.cost.chip_sets import WORD, num_words
from jaxpart.cost.device import DeviceProblem, StaticConfig
from jaxpart.cost.kernel_body import Refs, walk
from jaxpart.cost.kernel_sets import Shape
from jaxpart.cost.links import in_link_order, link_sets


class Launch(NamedTuple):
    """How the kernel is laid out on a kind of device."""

    tile: int  # candidates of one program
    least_lanes: int  # chips are padded to it
    on_core: bool  # rows in between are kept in the memory of the core
    row_copies: int  # how often an operation on a row is done: by each warp, in each sublane


GPU = Launch(tile=32, least_lanes=1, on_core=False, row_copies=4)
TPU = Launch(tile=128, least_lanes=8, on_core=True, row_copies=8)


def amounts(problem: DeviceProblem, assignment: Int[Array, "N B"]) -> Amounts:
    """The amounts of a batch; the arguments are those of `evaluate`."""
    return lax.platform_dependent(
        problem,
        assignment,
        cpu=functools.partial(run, launch=TPU, interpret=True),
        cuda=functools.partial(run, launch=GPU),
        tpu=functools.partial(run, launch=TPU),
    )


def candidate_bytes(problem: DeviceProblem) -> int:
    """Bytes of temporary arrays for each candidate, about."""
    chips = problem.config.num_chips
    return 4 * (problem.tensor_bytes.shape[0] + chips * (9 + num_words(chips)))


def operations(problem: DeviceProblem, launch: Launch) -> float:
    """Operations on elements for one candidate: those of `kernel_body.py`, counted by hand.

    Lanes count as often as there are lanes. An operation on a row of candidates counts as often as
    it is done: by each warp of a program, or in each sublane of a vector.
    """
    shape, words = _shape_of(problem, launch, False), num_words(problem.config.num_chips)
    nodes, tensors, edges = (
        float(count) for count in (problem.num_nodes, problem.num_tensors, problem.num_edges)
    )
    weights, live = float(problem.num_weights), int(shape.counts_live)
    uses = float(problem.weight_uses[-1])
    mesh, chain = shape.planes * (not shape.is_chain), int(shape.is_chain)
    lanes = nodes * (5 + 5 * live + mesh * 3 * words)
    lanes += tensors * (5 + mesh * (2 * words + 2) + chain * 3 + 2 * words) + weights * 3
    rows = nodes * (10 + 4 * words) + tensors * (4 + 4 * words) + (edges + uses) * (4 + 4 * words)
    rows += chain * (nodes + tensors) * 5 * words + edges * 4 * live
    return lanes * sum(shape.group_lanes) + rows * launch.row_copies


def run(
    problem: DeviceProblem,
    assignment: Int[Array, "N B"],
    *,
    launch: Launch,
    interpret: bool = False,
) -> Amounts:
    """Calls the kernel.

    Args:
      problem: padded to N nodes.
      assignment: [N, B] chips.
      launch: for the device.
      interpret: run it as operations of XLA, on any device.
    """
    config, batch = problem.config, assignment.shape[1]
    shape = _shape_of(problem, launch, interpret)
    labels = jnp.pad(assignment.astype(jnp.int8), ((0, 0), (0, -batch % launch.tile)))
    sums, flags = _call(shape, _tables(shape, problem), labels, launch, interpret)
    compute_s, received, sent, weights, peak = sums[:5, : config.num_chips, :batch]
    flags = flags[:, :batch]
    acyclic = flags[0] >= 0
    return Amounts(
        compute_s=compute_s,
        received=received,
        sent=sent,
        link=_in_link_order(config, sums[5:, : config.num_chips, :batch]),
        weights=weights,
        peak=peak,
        used=lax.bitcast_convert_type(flags[4:], jnp.uint32),
        acyclic=acyclic,
        triangle=acyclic & (flags[1] == 0),
        colocation=flags[2] == 0,
        fixed_chips=flags[3] == 0,
    )


def _in_link_order(config: StaticConfig, planes: Array) -> Array:
    """Links [L, B] from links of each chip [planes, C, B]."""
    if config.topology == "host":
        return planes.reshape(0, planes.shape[-1])
    if config.topology == "chain":
        return planes[0, : config.num_chips - 1]
    return in_link_order(config, planes.reshape(4, config.rows, config.cols, -1))


def _shape_of(problem: DeviceProblem, launch: Launch, interpret: bool) -> Shape:
    config = problem.config
    words = num_words(config.num_chips)
    rest = [min(WORD, config.num_chips - w * WORD) for w in range(words)]
    return Shape(
        num_chips=config.num_chips,
        group_lanes=tuple(max(launch.least_lanes, 1 << (n - 1).bit_length()) for n in rest),
        planes={"host": 0, "chain": 1, "mesh": 4}[config.topology],
        kinds=problem.node_s.shape[1],
        counts_live=config.memory_model == "full",
        has_barrier=not launch.on_core and not interpret,
        tile=launch.tile,
    )


def _tables(shape: Shape, problem: DeviceProblem) -> list[Array]:
    """The tables of `Refs`, in its order."""
    chips, config = shape.num_chips, problem.config
    links = jnp.zeros((chips, 1), jnp.int32)
    if config.topology == "mesh":
        ends = np.moveaxis(link_sets(config), 2, 0)  # [C, planes, 2, C]
        links = _words_of(jnp.asarray(ends)).reshape(chips, -1)
    kinds = jnp.arange(shape.kinds)[:, None] == problem.chip_kind[None]
    made = {
        "counts": jnp.stack([problem.num_nodes, problem.num_weights]),
        "node_s": problem.node_s.reshape(-1),
        "kind_sets": _words_of(kinds).reshape(-1),
        "links": jnp.pad(links, ((0, sum(shape.group_lanes) - chips), (0, 0))),
    }
    names = Refs._fields[: Refs._fields.index("labels")]
    return [made[name] if name in made else getattr(problem, name) for name in names]


def _words_of(sets: Bool[Array, "... C"]) -> Int[Array, "... words"]:
    words = num_words(sets.shape[-1])
    padding = [(0, 0)] * (sets.ndim - 1) + [(0, words * WORD - sets.shape[-1])]
    bits = jnp.left_shift(1, jnp.arange(WORD, dtype=jnp.int32)).reshape(*[1] * sets.ndim, WORD)
    split = jnp.pad(sets, padding).reshape(*sets.shape[:-1], words, WORD)
    return jnp.sum(jnp.where(split, bits, 0), axis=-1, dtype=jnp.int32)


def _call(
    shape: Shape, tables: list[Array], labels: Int[Array, "N B"], launch: Launch, interpret: bool
) -> tuple[Array, Array]:
    """The sums and flags of `Refs`, for all B candidates."""
    (nodes, batch), tensors = labels.shape, tables[Refs._fields.index("tensor_bytes")].shape[0]
    lanes, words, tile = sum(shape.group_lanes), len(shape.words), shape.tile

    def columns(*rows: int) -> pl.BlockSpec:
        return pl.BlockSpec((*rows, tile), lambda j: (*[0] * len(rows), j))

    outputs = [((5 + shape.planes, lanes), jnp.float32), ((4 + words,), jnp.int32)]
    between = [((tensors,), jnp.int32), ((words * lanes,), jnp.int32)]
    options: dict[str, Any] = {}
    if launch.on_core:
        wide = [((nodes,), jnp.int32)]  # the labels; a TPU loads no single row of int8
        options["scratch_shapes"] = [pltpu.VMEM((*rows, tile), t) for rows, t in between + wide]
        options["compiler_params"] = pltpu.CompilerParams(dimension_semantics=("parallel",))
    else:  # Triton has no such memory: these are results that nobody reads, and stay in a cache
        outputs += between
        options["compiler_params"] = plgpu.CompilerParams(num_warps=launch.row_copies, num_stages=1)
    scalars = pl.BlockSpec(memory_space=pltpu.SMEM) if launch.on_core else pl.BlockSpec()
    whole = pl.BlockSpec(memory_space=pltpu.VMEM) if launch.on_core else pl.BlockSpec()
    call = pl.pallas_call(
        functools.partial(_kernel, shape),
        grid=(batch // tile,),
        in_specs=[*[scalars] * (len(tables) - 1), whole, columns(nodes)],
        out_specs=[columns(*rows) for rows, _ in outputs],
        out_shape=[jax.ShapeDtypeStruct((*rows, batch), t) for rows, t in outputs],
        interpret=interpret,
        name="evaluate",
        **options,
    )
    # Of several problems one comes after the other: a TPU takes no table of several problems.
    return sequential_vmap(lambda tables, labels: tuple(call(*tables, labels)[:2]))(tables, labels)


def _kernel(shape: Shape, *memory: Any) -> None:
    count = len(Refs._fields)
    refs = Refs(*memory[:count])
    if len(memory) > count:  # there is a place for wide labels
        wide = memory[count]
        wide[...] = refs.labels[...].astype(jnp.int32)
        refs = refs._replace(labels=wide)
    walk(shape, refs)
