"""Islands: searches in several processes or on several hosts that exchange their best partitions.

Each island searches by itself, with its own seed and its own method. It sends every better
partition and every better lower bound to the other islands (Cohoon et al., "Punctuated equilibria:
a parallel genetic algorithm", ICGA 1987). No island waits for another: if one ends, dies or never
comes, the others go on without it.

A partition that arrives is checked, and verified in float64 like every other candidate. A lower
bound cannot be verified: it is trusted if it comes from an island with the same problem.

The islands connect through JAX's multi-process runtime, each by a client process
(`runtime/island_client.py`).
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import os
import pickle
import queue
import re
import subprocess
import sys
import tempfile
import threading
import time
import zlib
from collections.abc import Generator
from typing import Any

import msgspec
import numpy as np

from jaxpart.bounds.combinatorial import Bound
from jaxpart.errors import InputError
from jaxpart.problem.problem import IntArray, Problem
from jaxpart.runtime.island_client import News, Score
from jaxpart.runtime.state import Method, Search

_COMMAND = (
    "import sys; sys.path[:] = {path!r}; from jaxpart.runtime.island_client import main; main()"
)
# Seconds at the end for the last message to leave, and for each thread to stop.
_FAREWELL_S = 3.0
# Seconds from the start during which an island that is done waits for islands that have not come.
_MEETING_S = 60.0
# Seconds between two looks at the exchange once the method has ended.
_POLL_S = 0.05
# Version of the cost model; change it when the exchanged figures change their meaning.
_COST_MODEL_VERSION = "1"
# Relative rounding error; a bound that exceeds a verified bottleneck by more than this is wrong.
_ROUNDING = 1e-9


@dataclasses.dataclass(frozen=True)
class Islands:
    """Where the islands connect, how many there are, and which one this is.

    Attributes:
      coordinator: "HOST:PORT" on the machine of island 0, with any free port. All islands must
        reach it. The service has no passwords, so use it only on a network that you trust.
      processes: number of islands, 2 or more.
      process: number of this island, 0 to `processes` - 1; each island has its own.
    """

    coordinator: str
    processes: int
    process: int

    def __post_init__(self) -> None:
        """Checks the fields.

        Raises:
          InputError: a field is not as described.
        """
        port = self.coordinator.rpartition(":")[2]
        if not re.fullmatch(r"[^\s:/]+:[0-9]{1,5}|\[[0-9a-fA-F:]+\]:[0-9]{1,5}", self.coordinator):
            raise InputError(f"coordinator is {self.coordinator!r}, expected HOST:PORT")
        if not 0 < int(port) < 2**16:
            raise InputError(f"coordinator has port {port}, expected 1 to 65535")
        if self.processes < 2:
            raise InputError(f"processes is {self.processes}, expected 2 or more")
        if not 0 <= self.process < self.processes:
            raise InputError(f"process is {self.process}, expected 0 to {self.processes - 1}")

    def seed(self, seed: int) -> int:
        """The seed of this island; island 0 has the given one.

        Args:
          seed: the seed of the whole search.
        """
        if self.process == 0:
            return seed
        words = np.random.SeedSequence((seed, self.process)).generate_state(1)
        return int(words[0]) & 0x7FFFFFFF

    def exchanging(self, method: Method) -> Method:
        """Adds an exchange with the other islands after each step of a method.

        When the method has ended, the search still waits for partitions and bounds of islands that
        are at work.

        Args:
          method: the search method of this island.

        Returns:
          The method with the exchange.
        """

        def steps(search: Search) -> Generator[None]:
            with (
                contextlib.closing(Exchange(search, self)) as exchange,
                contextlib.closing(method(search)) as own,
            ):
                for _ in own:
                    exchange.step()
                    yield
                search.start_clock()
                search.enter("waiting for other islands")
                while exchange.is_waiting:
                    time.sleep(_POLL_S)
                    exchange.step()
                    yield

        return steps


class Elite(msgspec.Struct, frozen=True, array_like=True):
    """A partition as islands send it."""

    digest: str  # of the problem: `digest_of`
    chips: bytes  # [N] 32-bit integers, little-endian, compressed by zlib


def digest_of(problem: Problem) -> str:
    """A hash of graph, module and cost model, equal only where all figures mean the same."""
    parts = (problem.graph.sha256, problem.mcm.sha256, _COST_MODEL_VERSION)
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def packed(problem: Problem, assignment: IntArray) -> bytes:
    """Encodes a partition for other islands.

    Args:
      problem: of N nodes.
      assignment: [N] chips.

    Returns:
      The bytes of an `Elite`.
    """
    chips = zlib.compress(assignment.astype("<i4").tobytes())
    return msgspec.msgpack.encode(Elite(digest_of(problem), chips))


def unpacked(problem: Problem, content: bytes) -> IntArray:
    """Decodes a partition from another island.

    Args:
      problem: of N nodes and C chips.
      content: the bytes of an `Elite`, from an untrusted source.

    Returns:
      [N] chips, each in 0..C-1. The rules are not checked yet.

    Raises:
      InputError: the bytes are not a partition of this problem; the message says why.
    """
    try:
        elite = msgspec.msgpack.decode(content, type=Elite)
    except msgspec.DecodeError as error:
        raise InputError(f"no partition: {error}") from error
    if elite.digest != digest_of(problem):
        raise InputError("a partition of another problem, or from another version")
    # Unpacks at most one byte more than a partition has: a sender cannot fill the memory.
    size, unzip = 4 * problem.num_nodes, zlib.decompressobj()
    try:
        chips = unzip.decompress(elite.chips, size + 1)
    except zlib.error as error:
        raise InputError(f"no partition: {error}") from error
    if len(chips) != size:
        raise InputError(f"expected the chips of {problem.num_nodes} nodes")
    assignment = np.frombuffer(chips, "<i4").astype(np.int64)
    if assignment.min() < 0 or assignment.max() >= problem.num_chips:
        raise InputError(f"expected chips 0 to {problem.num_chips - 1}")
    return assignment


class Exchange:
    """The exchange of one island, on the thread of its search.

    The search calls `step` between its own steps and `close` at the end.
    """

    def __init__(self, search: Search, islands: Islands) -> None:
        """Starts the client process and does not wait for it.

        Args:
          search: the search of this island.
          islands: where and with whom it exchanges.
        """
        self._search, self._islands = search, islands
        self._digest = digest_of(search.problem)
        self._serial, self._sent = 0, (np.inf, 0.0)  # sent: best and bound, in seconds
        self._began_s = time.monotonic()
        self._others: int | None = None  # other islands at work; None: not known yet
        self._has_left, self._is_closing = threading.Event(), threading.Event()
        self._sources: set[int] = set()  # islands whose partition became the best here
        self._events: queue.SimpleQueue[tuple[str, Any]] = queue.SimpleQueue()
        self._outbox: queue.SimpleQueue[News | None] = queue.SimpleQueue()
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 - closed by `close`
        arguments = (islands.coordinator, str(islands.processes), str(islands.process))
        # Recoverability: the service continues when a client is gone. Without the preemption
        # service: it would catch SIGTERM. CPU only: the search holds the devices.
        settings = {
            "JAX_ENABLE_RECOVERABILITY": "true",
            "JAX_ENABLE_PREEMPTION_SERVICE": "false",
            "JAX_PLATFORMS": "cpu",
        }
        self._process = subprocess.Popen(
            [sys.executable, "-c", _COMMAND.format(path=sys.path), *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            env={**os.environ, **settings},
            start_new_session=True,  # Ctrl-C reaches the search alone, which then ends the client
        )
        # A pipe may be full or empty. Threads wait for it, so that the search never does.
        self._threads = [
            threading.Thread(target=target, daemon=True) for target in (self._read, self._write)
        ]
        for thread in self._threads:
            thread.start()
        self._tell()

    def step(self) -> None:
        """Takes what other islands have sent, and sends a better partition or bound."""
        self._take_all()
        best = (self._search.best_s, self._search.bound.seconds)
        if best[0] < self._sent[0] or best[1] > self._sent[1]:
            self._tell()

    def close(self) -> None:
        """Sends the best a last time, and ends the client unless islands need its service."""
        if self._process.poll() is None and self._others is not None:
            self._tell(has_left=True)
            self._has_left.wait(_FAREWELL_S)
        self._take_all()  # a partition that has just arrived may be the best
        if self._others is None:
            self._note("islands: not all came, nothing was exchanged")
        self._is_closing.set()
        self._outbox.put(None)
        if self._islands.process or self._others is None:
            self._process.kill()
            self._process.wait()
        for thread in self._threads:
            thread.join(_FAREWELL_S)
        self._log.close()

    @property
    def is_waiting(self) -> bool:
        """Whether other islands are at work, or may still come."""
        if self._others is not None:
            return self._others > 0
        return self._process.poll() is None and time.monotonic() - self._began_s < _MEETING_S

    def _tell(self, *, has_left: bool = False) -> None:
        search, elite = self._search, None
        if search.best is not None and search.best_s < self._sent[0]:
            elite = packed(search.problem, search.best)
            self._serial += 1
        bound = search.bound
        self._sent = (search.best_s, bound.seconds)
        score = Score(
            self._digest, self._serial, 0, has_left, search.best_s, bound.seconds, bound.method
        )
        self._outbox.put(News(score, elite))

    def _take_all(self) -> None:
        while not self._events.empty():
            self._take(*self._events.get())

    def _take(self, event: str, content: Any) -> None:
        if event == "others":
            self._others = content
        elif event == "stranger":
            self._note(f"island {content} works on another problem, or has another version")
        elif event == "bound":
            self._take_bound(*content)
        elif event == "elite":
            self._take_elite(*content)
        elif event == "ended":
            self._others = 0
            self._note(f"islands: no exchange any more: {content}")

    def _take_bound(self, island: int, seconds: float, method: str) -> None:
        search = self._search
        if 0 <= seconds <= search.best_s * (1 + _ROUNDING):
            search.raise_bound(Bound(seconds, f"island {island}: {method}"))
        else:
            self._note(f"island {island} sent a bound that a partition contradicts: not used")

    def _take_elite(self, island: int, content: bytes) -> None:
        try:
            assignment = unpacked(self._search.problem, content)
        except InputError as error:
            self._note(f"island {island} sent {error}")
            return
        if self._search.offer(assignment[:, None]):
            self._search.received = assignment
            if island not in self._sources:
                self._sources.add(island)
                self._note(f"took a better partition from island {island}")

    def _note(self, note: str) -> None:
        if note not in self._search.notes:
            self._search.notes.append(note)

    def _read(self) -> None:
        source = self._process.stdout
        while source is not None:
            try:
                event, content = pickle.load(source)
            except (EOFError, pickle.UnpicklingError):
                if not self._is_closing.is_set() and not self._has_left.is_set():
                    self._events.put(("ended", self._reason_of_end()))
                self._has_left.set()
                return
            if event == "left":
                self._has_left.set()
            self._events.put((event, content))

    def _write(self) -> None:
        target = self._process.stdin
        while target is not None:
            news = self._outbox.get()
            try:
                if news is None:
                    target.close()
                    return
                pickle.dump(news, target, pickle.HIGHEST_PROTOCOL)
                target.flush()
            except BrokenPipeError:
                return  # the client has ended; `_read` notices it

    def _reason_of_end(self) -> str:
        """Why the client process ended: the last error in its log, or its exit code."""
        code = self._process.wait()
        self._log.seek(0)
        lines = self._log.read().decode(errors="replace").split("\n")
        said = [line.strip() for line in lines if re.search(r"Error|UNAVAILABLE", line)]
        return said[-1][:200] if said else f"its process ended with exit code {code}"
