"""The client process of an island: it runs the client of `jax.distributed` and nothing else.

The client has a process of its own, which may die without harm to the search, for two reasons:

- JAX's coordination service ends the process of every client when the service is gone, whatever its
  options. (XLA's `client.h` calls the fatal log. A callback can replace that call, but jaxlib
  0.10.2 cannot call one from Python.)
- A program with a client can start its devices only together with all other programs.

Islands exchange data in the key-value store of the service, never by a collective or a barrier:

    jaxpart/score/I  the `Score` of island I: small, every island reads it in every round
    jaxpart/elite/I  its best partition, as `islands.Elite`; islands with a worse best read it

The service admits no client before all clients have come. Until then every island is alone. The
service runs in the client process of island 0 (`--coordinator` is its address). It stays there
until the other islands have left or are silent, even when the search of island 0 has ended or was
killed.
"""

from __future__ import annotations

import os
import pickle
import queue
import sys
import threading
import time
from typing import Any, BinaryIO, Literal

import msgspec

# Seconds between two rounds of the exchange.
_ROUND_S = 0.2
# Seconds without a new beat after which an island counts as gone.
SILENT_S = 15.0
# Seconds to wait for all clients to come.
_JOIN_S = 300
# Seconds that the client stays after its search has ended, to tell the other islands.
_FAREWELL_S = 3.0
# Seconds without a heartbeat after which the service counts a client as gone.
_HEARTBEAT_S = 20
# Folders of the key-value store; the island's number follows.
_SCORES, _ELITES = "jaxpart/score/", "jaxpart/elite/"
# Host names that mean this machine.
_LOOPBACK = ("localhost", "127.0.0.1", "[::1]")

# What the client tells the search, and the content that comes with it:
# - left: None;
# - others: the number of other islands at work;
# - stranger: the number of an island that works on another problem;
# - bound: (island, lower bound in seconds, method of the proof);
# - elite: (island, the bytes of an `islands.Elite`).
Event = Literal["elite", "bound", "stranger", "others", "left"]


class Score(msgspec.Struct, frozen=True, array_like=True):
    """The state of an island, for the other islands."""

    digest: str  # names the problem and the cost model: `islands.digest_of`
    serial: int = 0  # number of its elite
    beat: int = 0  # grows in every round, as a sign of life
    has_left: bool = False
    bottleneck_s: float = float("inf")
    lower_bound_s: float = 0.0
    bound_method: str = ""


class News(msgspec.Struct, frozen=True):
    """A message from the search to its client process."""

    score: Score
    elite: bytes | None = None  # None: unchanged


def main() -> None:
    """Runs the client until the search has ended and no island needs the service.

    The arguments of the command are the coordinator's address, the number of islands and the number
    of this island. `News` comes on standard input; pairs of an `Event` and its content leave on
    standard output. Both are pickles.
    """
    coordinator, islands, island = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    events = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # output that a library prints must not mix with the events
    inbox: queue.SimpleQueue[News | None] = queue.SimpleQueue()
    joined = threading.Event()
    threading.Thread(
        target=_listen, args=(sys.stdin.buffer, inbox, joined, island), daemon=True
    ).start()
    client = _join(coordinator, islands, island)
    joined.set()
    _Rounds(client, events, inbox, islands, island).run()
    os._exit(0)  # a normal exit would wait for clients that are gone


def _listen(
    source: BinaryIO, inbox: queue.SimpleQueue[News | None], joined: threading.Event, island: int
) -> None:
    try:
        while True:
            inbox.put(pickle.load(source))
    except EOFError:
        pass
    finally:  # also after half a message of a search that was killed
        _leave(inbox, joined, island)


def _leave(inbox: queue.SimpleQueue[News | None], joined: threading.Event, island: int) -> None:
    """Ends the client after its search, unless it is needed.

    The rounds tell the other islands, and island 0 keeps the service for them. A client that has
    not joined, or that hangs, ends here.
    """
    if not joined.is_set():
        os._exit(0)
    inbox.put(None)
    if island:
        time.sleep(_FAREWELL_S)
        os._exit(0)


def _join(coordinator: str, islands: int, island: int) -> Any:
    import jax

    host = coordinator.rpartition(":")[0]
    jax.distributed.initialize(
        coordinator,
        islands,
        island,
        cluster_detection_method="deactivate",
        initialization_timeout=_JOIN_S,
        heartbeat_timeout_seconds=_HEARTBEAT_S,
        # The port is open to other machines only if the address is not a loopback address.
        coordinator_bind_address=coordinator if host in _LOOPBACK else None,
    )
    # JAX has no public name for the key-value store of its public service.
    from jax._src.distributed import global_state

    return global_state.client


class _Rounds:
    """The rounds of the exchange: each sends the island's news and reads the other islands'."""

    def __init__(
        self,
        client: Any,
        events: BinaryIO,
        inbox: queue.SimpleQueue[News | None],
        islands: int,
        island: int,
    ) -> None:
        self._client, self._inbox, self._island = client, inbox, island
        self._events: BinaryIO | None = events
        self._own: Score | None = None
        self._has_search_ended = False
        self._beat = 0
        self._seen: dict[int, Score] = {}
        self._last_heard_s = dict.fromkeys(set(range(islands)) - {island}, time.monotonic())
        self._others: int | None = None

    def run(self) -> None:
        while not (self._has_search_ended and (self._island or not self._count_others())):
            self._send()
            if self._own is not None:
                self._receive(self._own)
            others = self._count_others()
            if others != self._others:
                self._tell("others", others)
                self._others = others
            time.sleep(_ROUND_S)

    def _send(self) -> None:
        elite, has_news = None, False
        while not self._inbox.empty():
            news = self._inbox.get()
            if news is None:  # the search has ended, perhaps without a last message
                self._leave()
                self._own = self._own and msgspec.structs.replace(self._own, has_left=True)
                continue
            self._own, elite, has_news = news.score, news.elite or elite, True
        if self._own is None:
            return
        if elite is not None:
            self._put(_ELITES, elite)
        self._beat += 1
        self._put(_SCORES, msgspec.msgpack.encode(_with_beat(self._own, self._beat)))
        if has_news and self._own.has_left:
            self._tell("left", None)
            self._leave()

    def _receive(self, own: Score) -> None:
        for key, content in self._client.key_value_dir_get_bytes(_SCORES):
            island = int(key.rpartition("/")[2])
            if island not in self._last_heard_s:
                continue
            before = self._seen.get(island)
            try:
                score = msgspec.msgpack.decode(content, type=Score)
            except msgspec.DecodeError:
                score = Score("of another version")
            if score == before:
                continue
            self._seen[island], self._last_heard_s[island] = score, time.monotonic()
            if self._has_search_ended:
                continue
            if score.digest != own.digest:
                if before is None:
                    self._tell("stranger", island)
                continue
            if before is None or score.lower_bound_s > before.lower_bound_s:
                self._tell("bound", (island, score.lower_bound_s, score.bound_method))
            # Not `>`: an island that was started again counts from 0 again.
            is_new = before is None or score.serial != before.serial
            if is_new and score.bottleneck_s < own.bottleneck_s:
                elite = self._client.key_value_try_get_bytes(f"{_ELITES}{island}")
                self._tell("elite", (island, elite))

    def _count_others(self) -> int:
        """Number of other islands that have not left and are not silent."""
        now_s = time.monotonic()
        return sum(
            now_s - heard_s < SILENT_S
            and not (island in self._seen and self._seen[island].has_left)
            for island, heard_s in self._last_heard_s.items()
        )

    def _leave(self) -> None:
        self._has_search_ended = True
        if self._events is not None:
            self._events.close()
            self._events = None

    def _put(self, folder: str, content: bytes) -> None:
        self._client.key_value_set_bytes(f"{folder}{self._island}", content, allow_overwrite=True)

    def _tell(self, event: Event, content: Any) -> None:
        try:
            if self._events is not None:
                pickle.dump((event, content), self._events, pickle.HIGHEST_PROTOCOL)
                self._events.flush()
        except BrokenPipeError:
            self._events = None  # the search reads no events any more


def _with_beat(score: Score, beat: int) -> Score:
    return msgspec.structs.replace(score, beat=beat)
