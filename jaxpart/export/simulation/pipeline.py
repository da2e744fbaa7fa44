"""A partition as the jobs of one inference, and the times at which a pipeline does them.

A job holds one resource for a fixed time. In one inference each chip in use computes once. All
tensors that it sends to the same chips are one transfer: a job of its out port, one of each link on
the way (of their union, where several chips receive), and one of the in port of each receiver. Each
of these takes bytes / bandwidth. So the jobs of an inference hold each resource exactly as long as
the cost model says (`jaxpart/README.md`). The rules are:

- A chip computes when all that it receives of the inference has arrived; then it sends.
- With overlap a chip's compute, in port and out port are three resources. Else they are one.
- Links cut through (Kermani and Kleinrock, Computer Networks 3, 1979): a link may begin as soon as
  the one before it has begun, and what finds it busy waits before it. A host's memory holds a whole
  transfer before the receiver fetches it.
- A chip has `buffers` slots for what it sends to all, and as many for what it receives from each
  sender. Two are those that the memory of the cost model counts. A compute takes a slot of its chip
  until all of its transfers have left the out port. A transfer takes a slot of each receiver until
  that chip has computed, on links from before it leaves (credits, so what waits on the way has its
  place). A host's memory has `buffers` slots, too, for each sender and receiver: a transfer takes
  them before it leaves, until it is fetched into a slot of the receiver.
- A resource serves inferences in order, and within one inference its transfers by their first
  receiver in dataflow order, then by their sender. So one that waits for a far chip, whose slots
  may be full, does not hold up those of the same inference to nearer chips.

Every start is then a maximum of sums (a max-plus recurrence), so one pass over the jobs of each
inference gives all times exactly. More buffers never delay a job: they take terms out of maxima.

Why enough buffers reach 1/T: without limits on buffers, a cycle of the recurrence goes through one
resource alone if no resource precedes itself through others in one inference. Then its longest
cycle mean is the longest busy time of a resource, T (Baccelli, Cohen, Olsder and Quadrat,
Synchronization and Linearity, 1992, chapter 3). Where data flows to higher chips alone, none does.
On a chain the order is chip 0 (in, compute, out), link 0, chip 1, and so on. On a mesh, whose
routes change the column first, it is the chips of row 0 with their rightward links, its leftward
links, the links down to row 1, the chips of row 1, and so on. A host has the ports alone. On a mesh
whose rules let data flow to lower chips, an inference may cross a link twice, with computes
between. Served in order such a link idles, and 1/T may not be reached. If a transfer held all its
resources at the same time instead (circuit switching), three transfers that meet in pairs could
take 3/2 T.
"""

from __future__ import annotations

import collections
import dataclasses
from typing import Any

import numpy as np
from numba import njit

from jaxpart.cost import host
from jaxpart.errors import InputError
from jaxpart.problem.problem import FloatArray, IntArray, Problem
from jaxpart.problem.topological import topological_order

COMPUTE, IN, OUT, LINK = range(4)  # kinds of jobs
MAX_KEPT = 2**26  # starts of jobs that are kept at once: 512 MiB
_JOBS_AT_ONCE = 2**24  # run without looking for an interrupt; about a tenth of a second
_njit: Any = njit  # numba's types do not know all of its options


@dataclasses.dataclass(frozen=True, eq=False)
class Pipeline:
    """The J jobs of one inference, in an order in which none waits for a later one."""

    kind: IntArray  # [J] COMPUTE, IN, OUT or LINK
    place: IntArray  # [J] chip, or number of the link in `MCM.links`
    seconds: FloatArray  # [J] how long the job holds its resource
    resource: IntArray  # [J] numbered from 0
    # Job j waits for i = after_row[j] to after_row[j + 1] - 1: for the start of after_job[i], and
    # after_s[i] seconds more.
    after_row: IntArray  # [J + 1]
    after_job: IntArray
    after_s: FloatArray
    # Likewise, for slots: for the end of slot_job[i] in the inference `buffers` earlier.
    slot_row: IntArray  # [J + 1]
    slot_job: IntArray


@dataclasses.dataclass(frozen=True, eq=False)
class Run:
    """The times of K inferences of J jobs."""

    begin_s: FloatArray  # [K] when the first job of each inference starts
    end_s: FloatArray  # [K] when the last job of each inference ends
    wait_s: (
        FloatArray  # [J] how long each job waited for nothing but a slot, all inferences together
    )
    # [R, J] starts of the last R inferences; those of inference k are in row k modulo R.
    start_s: FloatArray
    buffers: int  # 0: no limit


def pipeline_of(problem: Problem, f: IntArray) -> Pipeline:
    """The jobs of one inference under the partition f [N].

    Raises:
      InputError: chips feed each other in a circle, so none of them can be a stage.
    """
    mcm = problem.mcm
    compute_s = host.loads(problem, f).compute_s
    rank = {c: i for i, c in enumerate(_dataflow_order(problem, f))}
    transfers = _transfers(problem, f, rank)
    number = {link: i for i, link in enumerate(mcm.links)}
    jobs: list[tuple[int, int, float]] = []
    after: list[list[tuple[int, float]]] = []
    slots: list[list[int]] = []
    arrivals: dict[int, list[tuple[int, float]]] = collections.defaultdict(list)
    computes: dict[int, int] = {}
    fetched: dict[int, list[int]] = {}  # by job of an out port: those of the receivers' in ports

    def add(kind: int, place: int, seconds: float, waits: list[tuple[int, float]]) -> int:
        jobs.append((kind, place, seconds))
        after.append(waits)
        slots.append([])
        return len(jobs) - 1

    used = set(f.tolist())
    for c in rank:
        for sender, ends, size in transfers[c]:
            seconds = size / mcm.link_bandwidth
            out = add(OUT, sender, seconds, [(computes[sender], float(compute_s[sender]))])
            fetched[out] = []
            slots[computes[sender]].append(out)
            head = {sender: out}  # the job that brings the transfer to each chip of its routes
            for d in ends:
                for a, b in mcm.route(sender, d):
                    if b not in head:
                        head[b] = add(LINK, number[a, b], seconds, [(head[a], 0.0)])
                before = (out, seconds) if mcm.topology == "host" else (head[d], 0.0)
                fetched[out].append(add(IN, d, seconds, [before]))
                arrivals[d].append((fetched[out][-1], seconds))
        if c in used:
            computes[c] = add(COMPUTE, c, float(compute_s[c]), arrivals[c])
    for out, ins in fetched.items():
        ends = [computes[jobs[job][1]] for job in ins]
        slots[out] = ins if mcm.topology == "host" else ends
        for job, end in zip(ins, ends, strict=True):
            slots[job] = [end] if mcm.topology == "host" else []
    kind, place = np.array([job[:2] for job in jobs], np.int64).T
    # Blocks of resources: compute, in ports, out ports (one and the same without overlap), links.
    block = np.array([0, 1, 2, 3] if mcm.overlap else [0, 0, 0, 1])
    return Pipeline(
        kind=kind,
        place=place,
        seconds=np.array([job[2] for job in jobs]),
        resource=block[kind] * problem.num_chips + place,
        after_row=np.cumsum([0, *map(len, after)]),
        after_job=np.array([job for waits in after for job, _ in waits], np.int64),
        after_s=np.array([lag for waits in after for _, lag in waits]),
        slot_row=np.cumsum([0, *map(len, slots)]),
        slot_job=np.array([job for waits in slots for job in waits], np.int64),
    )


def simulated(pipeline: Pipeline, count: int, buffers: int, rows: int = 1) -> Run:
    """Runs the pipeline.

    Args:
      pipeline: of J jobs.
      count: inferences, 1 or more. All wait at the entrance from the start.
      buffers: slots, 1 or more; 0: no limit.
      rows: the last inferences whose jobs are to be kept, as far as memory allows.

    Raises:
      InputError: so many slots need too much memory here.
    """
    if buffers >= count:
        buffers = 0  # no inference waits for a slot
    jobs, needed = len(pipeline.kind), max(buffers, 1)
    if needed * jobs > MAX_KEPT:
        raise InputError(
            f"{buffers:,} buffers and {jobs:,} jobs an inference are too many, expected at most "
            f"{MAX_KEPT // jobs:,} buffers, or as many as inferences"
        )
    rows = min(max(rows, needed), max(MAX_KEPT // jobs, 1), count)
    run = Run(np.empty(count), np.empty(count), np.zeros(jobs), np.empty((rows, jobs)), buffers)
    table = (pipeline.resource, pipeline.seconds)
    table += (pipeline.after_row, pipeline.after_job, pipeline.after_s)
    table += (pipeline.slot_row, pipeline.slot_job)
    free_s = np.zeros(int(pipeline.resource.max()) + 1)  # when each resource is free
    step = max(_JOBS_AT_ONCE // jobs, 1)
    for first in range(0, count, step):  # in parts, so that an interrupt is heeded between them
        part = (first, min(first + step, count), buffers)
        _advance(*part, *table, free_s, run.begin_s, run.end_s, run.wait_s, run.start_s)
    return run


@_njit(cache=True, nogil=True)
def _advance(
    first: int,
    last: int,
    buffers: int,
    resource: IntArray,
    seconds: FloatArray,
    after_row: IntArray,
    after_job: IntArray,
    after_s: FloatArray,
    slot_row: IntArray,
    slot_job: IntArray,
    free_s: FloatArray,
    begin_s: FloatArray,
    end_s: FloatArray,
    wait_s: FloatArray,
    start_s: FloatArray,
) -> None:
    """The recurrence for inferences `first` to `last` - 1; moves on the last five arrays."""
    rows = len(start_s)
    for k in range(first, last):
        now = start_s[k % rows]
        past = start_s[(k - buffers) % rows]  # may be `now`; a slot's job comes later in it
        begin, end = np.inf, 0.0
        for j in range(len(resource)):
            start = free_s[resource[j]]
            for i in range(after_row[j], after_row[j + 1]):
                start = max(start, now[after_job[i]] + after_s[i])
            if 0 < buffers <= k:
                ready = start
                for i in range(slot_row[j], slot_row[j + 1]):
                    start = max(start, past[slot_job[i]] + seconds[slot_job[i]])
                wait_s[j] += start - ready
            now[j] = start
            free_s[resource[j]] = start + seconds[j]
            begin, end = min(begin, start), max(end, start + seconds[j])
        begin_s[k], end_s[k] = begin, end


def binding_slots(pipeline: Pipeline, run: Run) -> list[tuple[int, int]]:
    """The slots that set the pace: pairs (job that waits, job whose end frees the slot).

    From the last job to end, follows backward what each job waited for, as far as starts are kept.
    Where a slot and another job free a job at the same time, it is not the slot. A steady pace
    below 1/T has slots on its critical cycle, and these are found.

    Returns:
      The pairs, the most frequent one first.
    """
    count, rows, buffers = len(run.end_s), len(run.start_s), run.buffers
    previous = _previous_on_resource(pipeline)
    k, j = count - 1, int(np.argmax(run.start_s[(count - 1) % rows] + pipeline.seconds))
    found: collections.Counter[tuple[int, int]] = collections.Counter()
    while k - max(buffers, 1) >= count - rows:
        step = _waited_for(pipeline, run, previous, k, j)
        if step is None:
            break
        earlier, other, is_slot = step
        found[j, other] += is_slot
        k, j = earlier, other
    return [pair for pair, times in found.most_common() if times]


def _waited_for(
    pipeline: Pipeline, run: Run, previous: IntArray, k: int, j: int
) -> tuple[int, int, bool] | None:
    """The inference and the job that freed job j of inference k, and whether it freed a slot."""
    rows = len(run.start_s)
    start = run.start_s[k % rows, j]
    other = int(previous[j])
    earlier = k - 1 if other >= j else k
    if start == run.start_s[earlier % rows, other] + pipeline.seconds[other]:
        return earlier, other, False
    for i in range(pipeline.after_row[j], pipeline.after_row[j + 1]):
        other = int(pipeline.after_job[i])
        if start == run.start_s[k % rows, other] + pipeline.after_s[i]:
            return k, other, False
    for i in range(pipeline.slot_row[j], pipeline.slot_row[j + 1]):
        other = int(pipeline.slot_job[i])
        if start == run.start_s[(k - run.buffers) % rows, other] + pipeline.seconds[other]:
            return k - run.buffers, other, True
    return None


def _previous_on_resource(pipeline: Pipeline) -> IntArray:
    """[J] the job before each on its resource; before its first, the last one an inference ago."""
    last: dict[int, int] = {}
    previous = np.empty(len(pipeline.kind), np.int64)
    for sweep in range(2):
        for j, r in enumerate(pipeline.resource.tolist()):
            if sweep:
                previous[j] = last[r]
            last[r] = j
    return previous


def _dataflow_order(problem: Problem, f: IntArray) -> list[int]:
    """The chips in an order in which data flows; by number where that is one."""
    hops = np.unique(f[problem.node_pairs], axis=0).reshape(-1, 2)
    successors: list[list[int]] = [[] for _ in range(problem.num_chips)]
    for a, b in hops.tolist():
        if a != b:
            successors[a].append(b)
    order = topological_order(successors)
    if order is None:
        raise InputError(
            f"{problem.graph.name}: chips of this partition feed each other in a circle, expected "
            "dataflow without circles: a chip computes an inference in one go"
        )
    return order


def _transfers(
    problem: Problem, f: IntArray, rank: dict[int, int]
) -> dict[int, list[tuple[int, tuple[int, ...], float]]]:
    """The transfers by their first receiver, each as sender, receivers and bytes.

    Args:
      problem: of N nodes.
      f: [N] chip of each node.
      rank: of each chip in dataflow order; receivers and senders are sorted by it.
    """
    source, target = f[problem.edge_producer], f[problem.edge_consumer]
    sent = source != target
    receivers: dict[int, set[int]] = collections.defaultdict(set)
    for k, chip in zip(problem.edge_tensor[sent].tolist(), target[sent].tolist(), strict=True):
        receivers[k].add(chip)
    sizes: dict[tuple[int, tuple[int, ...]], float] = collections.defaultdict(float)
    for k, chips in receivers.items():
        ends = tuple(sorted(chips, key=rank.__getitem__))
        sizes[int(f[problem.tensor_producer[k]]), ends] += float(problem.tensor_bytes[k])
    by_first: dict[int, list[tuple[int, tuple[int, ...], float]]] = collections.defaultdict(list)
    for sender, ends in sorted(sizes, key=lambda t: (rank[t[0]], [rank[d] for d in t[1]])):
        by_first[ends[0]].append((sender, ends, sizes[sender, ends]))
    return by_first
