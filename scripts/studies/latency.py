"""Times the command as a user meets it: the first run, later runs, short limits, and signals.

  python scripts/studies/latency.py --json data/benchmarks/latency.json

Every run is a process of its own. Its caches are empty ("first"), or a run of 60 s has filled them
("later"), or filled them and numba's were emptied again ("no numba"): what this takes longer than
"later" is numba's compilation. A signal is sent some seconds after the process was started, in a
search that would go on, with full caches.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from pairs import Row

from jaxpart.arguments import file_path, non_negative
from jaxpart.environment import environment
from jaxpart.files import write_whole

_SIGNALS = ("SIGINT", "SIGTERM", "SIGHUP")
_KILL_S = 120.0  # seconds after which a run that does not end is killed
_FILL_S = 60.0  # time limit of a run that fills the caches
_RUNS = "{:<24} {:<8} {:>7}  {:<14} {:>8} {:>8}  {}"
_STOPS = "{:<24} {:<8} {:<8} {:>7} {:>8} {:>5}  {}"


def main() -> int:
    """Prints a row per run and per signal; returns exit code 0."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--pairs", nargs="+", default=["bert-large:mcm36", "elmo:mcm36"], metavar="GRAPH:MCM")
    add("--limits", nargs="+", type=non_negative, default=[2.0, 10.0], metavar="SECONDS")
    add("--stopped", default="elmo:mcm36", metavar="GRAPH:MCM", help="search that signals end")
    add("--after", nargs="+", type=non_negative, default=[1.0, 3.0, 6.0, 10.0], metavar="SECONDS")
    add("--json", metavar="FILE", type=file_path)
    arguments = parser.parse_args()
    runs, stops = [], []
    print(_RUNS.format("graph", "mcm", "limit s", "caches", "search s", "wall s", "outcome"))
    with tempfile.TemporaryDirectory() as folder:
        caches = Path(folder, "caches")
        for pair in arguments.pairs:
            for limit_s in arguments.limits:
                for state in ("first", "later", "no numba"):
                    runs.append(_run(pair, limit_s, state, caches))
        _fill(arguments.stopped, caches)
        print(_STOPS.format("graph", "mcm", "signal", "after s", "ends s", "code", "outcome"))
        for name in _SIGNALS:
            stops += [_stop(arguments.stopped, name, s, caches) for s in arguments.after]
    if arguments.json is not None:
        document = {"environment": environment(), "rows": runs, "stops": stops}
        write_whole(arguments.json, json.dumps(document, indent=1).encode() + b"\n")
    return 0


def _run(pair: str, limit_s: float, state: str, caches: Path) -> Row:
    """Runs the command once and prints its row.

    Args:
      pair: "GRAPH:MCM".
      limit_s: time limit, seconds.
      state: which caches are empty, see the module; they are emptied and filled here.
      caches: their folder.
    """
    if state == "first":
        shutil.rmtree(caches, ignore_errors=True)
    elif state == "later":
        _fill(pair, caches)
    else:
        shutil.rmtree(caches / "numba", ignore_errors=True)
    began_s = time.perf_counter()
    process, out = _start(pair, limit_s, caches)
    code = process.wait(timeout=_KILL_S)
    wall_s = time.perf_counter() - began_s
    graph, mcm = pair.split(":")
    row: Row = {"graph": graph, "mcm": mcm, "limit_s": limit_s, "caches": state}
    row |= {"wall_s": wall_s, "code": code} | _found(out)
    search = f"{row['search_s']:.1f}" if "search_s" in row else "-"
    print(_RUNS.format(graph, mcm, limit_s, state, search, f"{wall_s:.1f}", _outcome(row)))
    sys.stdout.flush()
    return row


def _fill(pair: str, caches: Path) -> None:
    """Fills the caches by a run long enough for all compilation."""
    _start(pair, _FILL_S, caches)[0].wait(timeout=_KILL_S)


def _stop(pair: str, name: str, after_s: float, caches: Path) -> Row:
    """Sends a signal to a search, and prints how long the process takes to end.

    Args:
      pair: "GRAPH:MCM".
      name: of the signal.
      after_s: seconds from the start of the process to the signal.
      caches: folder of the caches.
    """
    process, out = _start(pair, _KILL_S, caches)
    time.sleep(after_s)
    sent_s = time.perf_counter()
    process.send_signal(getattr(signal, name))
    code = process.wait(timeout=_KILL_S)
    ends_s = time.perf_counter() - sent_s
    graph, mcm = pair.split(":")
    row: Row = {"graph": graph, "mcm": mcm, "signal": name, "after_s": after_s}
    row |= {"ends_s": ends_s, "code": code} | _found(out)
    print(_STOPS.format(graph, mcm, name, after_s, f"{ends_s:.2f}", code, _outcome(row)))
    sys.stdout.flush()
    return row


def _start(pair: str, limit_s: float, caches: Path) -> tuple[subprocess.Popen[bytes], Path]:
    """Starts the command; returns the process and the file that it will write."""
    graph, mcm = pair.split(":")
    folder = caches / "out"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    out = folder / "result.json"
    command = [sys.executable, str(Path(__file__).parents[1] / "partition.py"), graph]
    command += ["--mcm", mcm, "--time-limit", str(limit_s), "--out", str(out)]
    command += ["--plot", str(folder / "result.png")]
    places = {"JAX_COMPILATION_CACHE_DIR": "jax", "NUMBA_CACHE_DIR": "numba"}
    own = {key: str(caches / name) for key, name in places.items()}
    quiet = subprocess.DEVNULL
    return subprocess.Popen(command, env=os.environ | own, stdout=quiet, stderr=quiet), out


def _found(out: Path) -> dict[str, Any]:
    """The figures of a result file; nothing if there is none."""
    if not out.exists():
        return {}
    result = json.loads(out.read_bytes())
    figures = {key: result[key] for key in ("bottleneck_s", "gap")}
    return figures | {"search_s": result["search"]["wall_s"]}


def _outcome(row: Row) -> str:
    if "bottleneck_s" not in row:
        return "nothing found"
    gap = "" if row["gap"] is None else f", gap {row['gap']:.2%}"
    return f"{row['bottleneck_s'] * 1e6:,.1f} us{gap}"


if __name__ == "__main__":
    sys.exit(main())
