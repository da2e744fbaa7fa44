"""What runs in the process beside an island: the client of `jax.distributed`, and nothing else.

JAX's coordination service ends every client's process when the service is gone, whatever its
options (XLA's `client.h` calls the fatal log; a callback that is given instead cannot be called
from Python in jaxlib 0.10.2), and a program with a client can only start its devices together with
all others. So the client has a process of its own, that may die without harm to the search.

Islands meet in the service's key-value store, never in a collective or a barrier:

    jaxpart/score/I  serial number, beat, figures: small, read by all in every round
    jaxpart/elite/I  the partition, as `islands.Elite`; read by those whose best is worse

The service lets nobody in before all have come: until then every island is alone. It lives beside
island 0 (`--coordinator` is its address) and stays there until the others have left or fallen
silent, even when island 0 has ended or was killed.
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

_ROUND_S = 0.2
# An island whose beat stands still for so long is gone.
SILENT_S = 15.0
_JOIN_S = 300
_FAREWELL_S = 3.0
_HEARTBEAT_S = 20
_SCORES, _ELITES = "jaxpart/score/", "jaxpart/elite/"
_LOOPBACK = ("localhost", "127.0.0.1", "[::1]")

Event = Literal["joined", "elite", "bound", "stranger", "others", "left"]


class Score(msgspec.Struct, frozen=True, array_like=True):
    """What an island tells of itself. Seconds; `digest` names its problem."""

    digest: str
    serial: int = 0  # of its elite
    beat: int = 0
    has_left: bool = False
    bottleneck_s: float = float("inf")
    lower_bound_s: float = 0.0
    bound_method: str = ""


class News(msgspec.Struct, frozen=True):
    """From the search to its postman."""

    score: Score
    elite: bytes | None = None  # None: as before


def main() -> None:
    """Arguments: coordinator, number of islands, this island. News on standard input (pickles),
    pairs of an event and its content on standard output."""
    coordinator, islands, island = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    events = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a library prints must not end up among the events
    inbox: queue.SimpleQueue[News | None] = queue.SimpleQueue()
    joined = threading.Event()
    threading.Thread(
        target=_listen, args=(sys.stdin.buffer, inbox, joined, island), daemon=True
    ).start()
    client = _join(coordinator, islands, island)
    joined.set()
    _Rounds(client, events, inbox, islands, island).run()
    os._exit(0)  # the service would wait for clients that are gone


def _listen(
    source: BinaryIO, inbox: queue.SimpleQueue[News | None], joined: threading.Event, island: int
) -> None:
    while True:
        try:
            inbox.put(pickle.load(source))
        except EOFError:
            # The others hear of it, and island 0 keeps the service for them; but nothing that hangs
            # or has not begun stays behind.
            if not joined.is_set():
                os._exit(0)
            inbox.put(None)
            if island:
                time.sleep(_FAREWELL_S)
                os._exit(0)
            return


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
        # Open to other machines only where those are meant.
        coordinator_bind_address=coordinator if host in _LOOPBACK else None,
    )
    # JAX has no public name for the key-value store of its public service.
    from jax._src.distributed import global_state

    return global_state.client


class _Rounds:
    """One round after the other: what is new goes out, what is better elsewhere comes in."""

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
        self._is_lone = False  # the search has ended
        self._beat = 0
        self._seen: dict[int, Score] = {}
        self._heard_s = dict.fromkeys(set(range(islands)) - {island}, time.monotonic())
        self._others: int | None = None

    def run(self) -> None:
        self._tell("joined", None)
        while not (self._is_lone and (self._island or not self._count_others())):
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
            if news is None:  # the search is gone, with or without a word
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
            if island not in self._heard_s:
                continue
            before = self._seen.get(island)
            try:
                score = msgspec.msgpack.decode(content, type=Score)
            except msgspec.DecodeError:
                score = Score("of another version")
            if score == before:
                continue
            self._seen[island], self._heard_s[island] = score, time.monotonic()
            if self._is_lone:
                continue
            if score.digest != own.digest:
                if before is None:
                    self._tell("stranger", island)
                continue
            if before is None or score.lower_bound_s > before.lower_bound_s:
                self._tell("bound", (island, score.lower_bound_s, score.bound_method))
            is_new = before is None or score.serial != before.serial  # another one may begin again
            if is_new and score.bottleneck_s < own.bottleneck_s:
                elite = self._client.key_value_try_get_bytes(f"{_ELITES}{island}")
                self._tell("elite", (island, elite))

    def _count_others(self) -> int:
        """Islands at work, as far as one can tell."""
        now_s = time.monotonic()
        return sum(
            now_s - heard_s < SILENT_S
            and not (island in self._seen and self._seen[island].has_left)
            for island, heard_s in self._heard_s.items()
        )

    def _leave(self) -> None:
        self._is_lone = True
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
            self._events = None  # nobody listens any more


def _with_beat(score: Score, beat: int) -> Score:
    return msgspec.structs.replace(score, beat=beat)
