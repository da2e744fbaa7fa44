"""The oracle of the simulation: chips, links and buffers as states, moved on from event to event.

It follows the rules of the docstring of `export/simulation/pipeline.py` alone and shares no code
with it. That module computes each start as a maximum. Here every resource has a queue of tasks in
the order of service, a slot is a counter, and a task begins when its turn has come, what it needs
is there and its slots are free.
"""

from __future__ import annotations

import dataclasses
import heapq
import itertools

from tests.support import oracle


@dataclasses.dataclass(eq=False)
class Task:
    """One job of one inference."""

    name: tuple  # (kind, chip or link, number of the transfer)
    inference: int
    resource: tuple
    seconds: float
    needs_begun: tuple = ()  # tasks that must have begun
    needs_ended: tuple = ()
    takes: tuple = ()  # counters that go down by one when the task begins
    frees: tuple = ()  # counters that go up by one when the task ends
    frees_last: tuple = ()  # (counter, tasks): up by one when the last of the tasks has ended
    begin: float | None = None
    end: float | None = None


def route(mcm, a, b):
    """The links from chip a to chip b."""
    if mcm.topology == "host":
        return []
    if mcm.topology == "chain":
        return [(c, c + 1) for c in range(a, b)]
    (row, col), (to_row, to_col) = divmod(a, mcm.cols), divmod(b, mcm.cols)
    stops = [(row, col)]
    while col != to_col:
        col += 1 if to_col > col else -1
        stops.append((row, col))
    while row != to_row:
        row += 1 if to_row > row else -1
        stops.append((row, col))
    return list(itertools.pairwise(r * mcm.cols + c for r, c in stops))


def run(graph, mcm, f, count, buffers):
    """Runs the pipeline of a partition whose data flows to higher chips.

    Returns:
      (begin, end) by (inference, *name of the task).
    """
    graph = oracle.rescaled(graph, mcm)
    chips = sorted(set(f))
    groups = {}  # bytes by (sender, receivers)
    for k, tensor in enumerate(graph.tensors):
        ends = tuple(sorted(oracle.destinations(graph, f, k)))
        if ends:
            key = f[tensor.producer], ends
            groups[key] = groups.get(key, 0.0) + tensor.bytes
    counters: dict[tuple, int] = {("own", c): buffers for c in chips}
    for place, (sender, ends) in itertools.product(("of", "memory"), groups):
        for d in ends:
            counters[place, sender, d] = counters.get((place, sender, d), 0) + buffers
    tasks = []
    for k in range(count):
        tasks += inference(graph, mcm, f, k, chips, groups)
    play(tasks, counters)
    return {(task.inference, *task.name): (task.begin, task.end) for task in tasks}


def inference(graph, mcm, f, k, chips, groups):
    """The tasks of inference k, in the order in which resources serve them."""
    tasks, computes, arrivals = [], {}, {c: [] for c in chips}
    outs = {c: [] for c in chips}

    def port(kind, chip):
        return (kind, chip) if mcm.overlap else ("chip", chip)

    def send(sender, ends):
        number = len(outs[sender])
        seconds = groups[sender, ends] / mcm.link_bandwidth
        out = Task(("out", sender, number), k, port("out", sender), seconds)
        out.needs_ended = (computes[sender],)
        place = "memory" if mcm.topology == "host" else "of"
        out.takes = tuple((place, sender, d) for d in ends)
        outs[sender].append(out)
        tasks.append(out)
        brought = {sender: out}
        for d in ends:
            for a, b in route(mcm, sender, d):
                if b not in brought:
                    brought[b] = Task(
                        ("link", (a, b), (sender, number)), k, ("link", a, b), seconds
                    )
                    brought[b].needs_begun = (brought[a],)
                    tasks.append(brought[b])
            into = Task(("in", d, (sender, number)), k, port("in", d), seconds)
            if mcm.topology == "host":
                into.needs_ended = (out,)
                into.takes = (("of", sender, d),)
                into.frees = (("memory", sender, d),)
            else:
                into.needs_begun = (brought[d],)
            arrivals[d].append(into)
            tasks.append(into)

    for c in chips:
        for sender, ends in sorted(groups):
            if ends[0] == c:
                send(sender, ends)
        seconds = sum(oracle.node_seconds(graph, mcm, v, c) for v in oracle.nodes_on(f, c))
        compute = Task(("compute", c, 0), k, port("compute", c), seconds)
        compute.needs_ended = tuple(arrivals[c])
        compute.takes = (("own", c),)
        # A slot for each transfer of each sender: all are free again when the chip has computed.
        compute.frees = tuple(("of", a, c) for a, ends in groups if c in ends)
        computes[c] = compute
        tasks.append(compute)
    for c in chips:
        for out in outs[c]:
            out.frees_last = (("own", c), tuple(outs[c]))
        if not outs[c]:
            computes[c].frees += (("own", c),)
    return tasks


def play(tasks, counters):
    """Begins and ends all tasks."""
    queues = {}
    for task in tasks:
        queues.setdefault(task.resource, []).append(task)
    busy, running, order, now = set(), [], itertools.count(), 0.0
    while any(queues.values()) or running:
        begun = True
        while begun:
            begun = False
            for resource, queue in queues.items():
                if not queue or resource in busy:
                    continue
                task = queue[0]
                ready = all(t.begin is not None for t in task.needs_begun)
                ready &= all(t.end is not None for t in task.needs_ended)
                if ready and all(counters[name] > 0 for name in task.takes):
                    queue.pop(0)
                    busy.add(resource)
                    for name in task.takes:
                        counters[name] -= 1
                    task.begin = now
                    heapq.heappush(running, (now + task.seconds, next(order), task))
                    begun = True
        assert running, "nothing moves"
        now = running[0][0]
        while running and running[0][0] == now:
            task = heapq.heappop(running)[2]
            task.end = now
            busy.remove(task.resource)
            for name in task.frees:
                counters[name] += 1
            if task.frees_last and all(t.end is not None for t in task.frees_last[1]):
                counters[task.frees_last[0]] += 1
