"""One budget for searches that follow each other, and for the work between them."""

from __future__ import annotations

import dataclasses
import math
import signal
import threading
from collections.abc import Callable

import numpy as np
from numpy.typing import ArrayLike

from jaxpart.problem.graph import Graph
from jaxpart.problem.mcm import MCM
from jaxpart.results.result import Result, SearchInfo
from jaxpart.runtime.background import finishes, started
from jaxpart.runtime.clock import Clock
from jaxpart.runtime.interrupt import Interrupts
from jaxpart.runtime.state import Progress, Search

_LEAST_S = 0.5  # that one of several searches is worth
_GRACE_S = 0.5  # after which work between searches is left to its thread


class Turn:
    """A share of the budget, for work between searches."""

    def __init__(self, searches: Searches, share: float) -> None:
        """Begins now, with a share of the time that is left."""
        self._searches = searches
        self._until_s = searches.spent_s + share * searches.left_s
        self._is_abandoned = threading.Event()

    @property
    def is_timed(self) -> bool:
        """Whether there is a time limit."""
        return math.isfinite(self._until_s)

    @property
    def is_late(self) -> bool:
        """Whether its time has passed, or the user interrupted."""
        return self._time_left_s() <= 0

    @property
    def left_s(self) -> float:
        """Seconds left for another step; 0 or less if there are none, or no samples."""
        return self._time_left_s() if self._searches.left_samples else 0.0

    def _time_left_s(self) -> float:
        if self._is_abandoned.is_set() or self._searches.is_interrupted:
            return 0.0
        return self._until_s - self._searches.spent_s

    def count_sample(self) -> None:
        """Counts one partition that was tried."""
        if not self._is_abandoned.is_set():
            self._searches.count_sample()

    def abandon(self) -> None:
        """Ends it: nobody waits for the work any more."""
        self._is_abandoned.set()


class Searches:
    """Searches one after the other, each with a share of what is left of one budget."""

    def __init__(
        self,
        run: Callable[..., Result],
        time_limit_s: float | None,
        max_samples: int | None,
        initial_assignment: ArrayLike | None,
        callback: Callable[[Progress], None] | None,
        interrupts: Interrupts,
        info: SearchInfo,
        *,
        count_compilation: bool,
    ) -> None:
        """Begins the budget.

        Args:
          run: `partition` without splitting, with the keyword `on_search` that receives its state.
          time_limit_s: for all searches together; None: no limit.
          max_samples: likewise.
          initial_assignment: [N] the user's partition to start from; None: there is none.
          callback: the user's, for progress.
          interrupts: the user's, also those of `run`.
          info: the method and the seed.
          count_compilation: whether the time limit is for compilation too.
        """
        self._run, self._initial_assignment = run, initial_assignment
        self._time_limit_s, self._max_samples = time_limit_s, max_samples
        self._callback, self._interrupts, self._info = callback, interrupts, info
        self._counts_compilation = count_compilation
        self._samples = 0
        self._best_s: float | None = None  # of all valid partitions so far
        self._clock = Clock()
        self._began_s = self._clock.now_s()
        self._uncounted_s = 0.0
        self._search: Search | None = None  # the last one, which began at `_since_s`
        self._since_s = 0.0
        self._build_s = 0.0  # that the last search took before it began

    @property
    def spent_s(self) -> float:
        """Seconds that count, since the beginning."""
        return self._clock.now_s() - self._began_s - self._uncounted_s

    @property
    def left_s(self) -> float:
        """Seconds left, inf without a limit; 0 when time is over or the user interrupted."""
        if self.is_interrupted:
            return 0.0
        return math.inf if (most := self._time_limit_s) is None else max(most - self.spent_s, 0.0)

    @property
    def left_samples(self) -> float:
        """Samples left; inf without a limit."""
        return math.inf if (most := self._max_samples) is None else max(most - self._samples, 0)

    @property
    def is_interrupted(self) -> bool:
        """Whether the user interrupted."""
        return self._interrupts.event.is_set()

    @property
    def may_go_on(self) -> bool:
        """Whether another search is worth its while."""
        return self.left_s >= _LEAST_S and self.left_samples >= 1

    def note_interrupt(self) -> None:
        """Notes an interrupt that came as an exception."""
        if not self.is_interrupted:
            self._interrupts.note(signal.SIGINT)

    def count_sample(self) -> None:
        """Counts one sample of the work between searches."""
        self._samples += 1

    def note_valid(self, seconds: float) -> None:
        """Notes the bottleneck of a valid partition, for progress."""
        self._best_s = seconds if self._best_s is None else min(self._best_s, seconds)

    def compile(self, work: Callable[[], object]) -> None:
        """Compiles now, where that does not count as search time."""
        if not self._counts_compilation:
            before_s = self._clock.now_s()
            work()
            self._uncounted_s += self._clock.now_s() - before_s

    def in_time(self, work: Callable[[Turn], None], share: float) -> None:
        """Does work in a thread, which is abandoned soon after its time or an interrupt.

        Args:
          work: looks at its turn between steps, and leaves what it finds where it can be read.
          share: of the time that is left.
        """
        turn = Turn(self, share)
        late_s = self.spent_s + share * self.left_s + _GRACE_S

        def is_late() -> bool:
            self._clock.watch()
            interrupts = self._interrupts
            return interrupts.count > 1 or interrupts.waited_s > _GRACE_S or self.spent_s > late_s

        done = started(lambda: work(turn))
        try:
            if finishes(done, is_late):
                done.result()
                return
        except KeyboardInterrupt:  # a handler of the program raised it
            self.note_interrupt()
        turn.abandon()

    def __call__(
        self,
        graph: Graph,
        mcm: MCM,
        start: np.ndarray | None,
        share: float,
        *,
        is_valid: bool = True,
    ) -> Result:
        """Searches with a share of what is left; errors are those of `partition`.

        Args:
          graph: of N nodes.
          mcm: the module.
          start: [N] a partition to start from. None: the user's for the first search, later none.
          share: of the time and samples that are left.
          is_valid: whether what is valid there is valid for the user. False: the module lacks the
            triangle rule.
        """
        seconds = samples = None
        if self._time_limit_s is not None:
            left_s = max(self.left_s - self._build_s, 0.0)
            seconds = max(share * left_s, min(left_s, _LEAST_S), 1e-3)
        if self._max_samples is not None:
            samples = max(math.ceil(share * self.left_samples), 1)
        first, self._initial_assignment = self._initial_assignment, None
        self._search, self._since_s = None, self._clock.now_s()
        try:
            result = self._run(
                graph,
                mcm,
                time_limit_s=seconds,
                max_samples=samples,
                initial_assignment=first if start is None else start,
                callback=self._progress_of_all(is_valid),
                on_search=self._watch,
            )
        finally:
            self._count_search()
        if is_valid:
            self.note_valid(result.bottleneck_s)
        return result

    def info(self, bottleneck_s: float) -> SearchInfo:
        """What all searches took that led to a bottleneck."""
        history = ((self._samples, self.spent_s, bottleneck_s),)
        return self.total(dataclasses.replace(self._info, history=history))

    def total(self, last: SearchInfo) -> SearchInfo:
        """What all searches took; the history is that of the last one."""
        return dataclasses.replace(
            last,
            samples=self._samples,
            wall_s=self._clock.now_s() - self._began_s,
            interrupted=self.is_interrupted,
        )

    def _watch(self, search: Search) -> None:
        now_s = self._clock.now_s()
        self._build_s = now_s - self._since_s
        self._search, self._since_s = search, now_s

    def _count_search(self) -> None:
        """Counts the last search's samples, and its time as it counted it itself."""
        if self._search is not None:
            self._samples += self._search.samples
            passed_s = self._clock.now_s() - self._since_s
            self._uncounted_s += passed_s - self._search.searched_s

    def _progress_of_all(self, is_valid: bool) -> Callable[[Progress], None] | None:
        """A callback that adds the searches before, and hides what is not valid."""
        callback, samples, before_s = self._callback, self._samples, self.spent_s
        best_s = self._best_s
        if callback is None:
            return None

        def show(progress: Progress) -> None:
            seconds = [s for s in (best_s, progress.best_s if is_valid else None) if s is not None]
            callback(
                dataclasses.replace(
                    progress,
                    phase=progress.phase if is_valid else f"without triangle: {progress.phase}",
                    elapsed_s=progress.elapsed_s + before_s,
                    samples=progress.samples + samples,
                    best_s=min(seconds, default=None),
                    lower_bound_s=progress.lower_bound_s if is_valid else None,
                )
            )

        return show
