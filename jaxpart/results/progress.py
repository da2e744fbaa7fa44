"""Progress of a search: one live line on a terminal, a few plain lines elsewhere."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, TextIO

from jaxpart.text import name_of, tell

if TYPE_CHECKING:
    from jaxpart.runtime.state import Progress

_PLAIN_EVERY_S = 5.0  # seconds between plain lines


def line(progress: Progress) -> str:
    """The state of a search in one line."""
    parts = [
        f"{progress.elapsed_s:6.1f} s  {name_of(progress.phase)}",
        f"{progress.samples:,} samples",
    ]
    best_s, bound_s = progress.best_s, progress.lower_bound_s
    if best_s is not None:
        parts.append(f"best {best_s * 1e6:,.6g} us")
    if bound_s:
        parts.append(f"bound {bound_s * 1e6:,.6g} us")
        if best_s is not None:
            parts.append(f"gap {100 * (best_s / bound_s - 1):.2f}%")
    return ", ".join(parts)


@contextlib.contextmanager
def shown(stream: TextIO | None) -> Iterator[Callable[[Progress], None]]:
    """A callback for `partition` that shows progress on `stream` while the context is open."""
    if stream is None or not stream.isatty():
        yield _plain(stream)
        return
    from rich.console import Console  # slow to import

    with Console(file=stream).status("starting") as status:
        # rich reads "[" as markup; the name of a phase is plain text.
        yield lambda progress: status.update(line(progress).replace("[", r"\["))


@contextlib.contextmanager
def counted(stream: TextIO | None, total: int, what: str) -> Iterator[Callable[[int], None]]:
    """A callback that shows how many of `total` things are done while the context is open.

    Args:
      stream: a terminal has a live line, anything else a line every few seconds.
      total: how many there are.
      what: their name, in the plural.
    """
    if stream is not None and stream.isatty():
        from rich.console import Console  # slow to import

        with Console(file=stream).status("starting") as status:
            yield lambda done: status.update(f"{done:,} of {total:,} {what}")
        return
    last_s = time.monotonic()

    def show(done: int) -> None:
        nonlocal last_s
        if time.monotonic() - last_s >= _PLAIN_EVERY_S:
            last_s = time.monotonic()
            with contextlib.suppress(OSError):
                tell(stream, f"{done:,} of {total:,} {what}")

    yield show


def _plain(stream: TextIO | None) -> Callable[[Progress], None]:
    """Writes a line when a phase begins for the first time, else every few seconds."""
    seen: set[str] = set()
    last_s = 0.0

    def show(progress: Progress) -> None:
        nonlocal last_s
        if progress.phase not in seen or progress.elapsed_s - last_s >= _PLAIN_EVERY_S:
            seen.add(progress.phase)
            last_s = progress.elapsed_s
            with contextlib.suppress(OSError):  # a search goes on where nobody listens
                tell(stream, line(progress))

    return show
