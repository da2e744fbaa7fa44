"""The result of a search: a valid partition with its costs, in memory and as a file."""

from __future__ import annotations

import dataclasses
import json
import os
from typing import Any

from jaxpart.bounds.combinatorial import combinatorial_bound
from jaxpart.cost.evaluate import score
from jaxpart.cost.greedy import baseline_s_of
from jaxpart.cost.verdicts import require_valid
from jaxpart.files import write_whole
from jaxpart.ingest.load import model_sha256
from jaxpart.problem.graph import Graph
from jaxpart.problem.mcm import MCM
from jaxpart.problem.problem import Problem
from jaxpart.results import report
from jaxpart.results.file import read_result
from jaxpart.results.picture import draw
from jaxpart.results.scored import ScoredPartition
from jaxpart.results.splitting import SplitInfo


@dataclasses.dataclass(frozen=True)
class SearchInfo:
    """How a result was found."""

    method: str
    samples: int  # costs, or changes of cost, that were computed for one candidate
    wall_s: float
    seed: int
    interrupted: bool = False  # by the user
    # (samples, seconds, best bottleneck in seconds) at each improvement, in order.
    history: tuple[tuple[int, float, float], ...] = ()


@dataclasses.dataclass(frozen=True, eq=False)
class Result(ScoredPartition):
    """A valid partition, how it was found, and others that are nearly as good, if wanted."""

    search: SearchInfo
    # Other distinct partitions, the best first: as many as were asked for, or were found.
    alternatives: tuple[ScoredPartition, ...] = ()
    model_sha256: str | None = None  # of the file of the model; None: not known
    split: SplitInfo | None = None  # how operations were split; the problem's graph has the parts

    def summary(self, start_up_s: float | None = None) -> str:
        """A page of text: the costs, a table of the chips, and what binds.

        Args:
          start_up_s: seconds before the search began, to be said beside its time; None: not said.
        """
        search = self.search
        before = "" if start_up_s is None else f", start-up {start_up_s:.1f} s"
        found = (
            f"{search.method}, {search.samples:,} samples in {search.wall_s:.1f} s{before}, "
            f"seed {search.seed}" + (" (interrupted)" if search.interrupted else "")
        )
        split = () if self.split is None else self.split.sentences(self.bottleneck_s)
        return report.summary(self, found, split)

    def plot(self, path: str | os.PathLike[str]) -> None:
        """Writes a picture of the load, memory and links of every chip.

        The ending of `path` decides the kind: .png, .svg or .pdf.

        Raises:
          InputError: `path` has another ending, or its folder cannot be written.
        """
        write_whole(path, draw(self, path))

    def save(
        self, path: str | os.PathLike[str], *, model: str | os.PathLike[str] | None = None
    ) -> None:
        """Writes the result file, either completely or not at all.

        Args:
          path: of the file.
          model: the file of the model that the graph was read from; its hash is stored, and
            `jaxpart.export` refuses a model that has another one. None: the hash that the result
            has, if any.

        Raises:
          InputError: the folder does not exist or cannot be written, or the model cannot be read.
        """
        result = self
        if model is not None:
            result = dataclasses.replace(self, model_sha256=model_sha256(model))
        write_whole(path, result.encoded())

    def encoded(self) -> bytes:
        """The content of the result file."""
        text = json.dumps(self._file(), indent=1, allow_nan=False, ensure_ascii=False)
        return text.encode() + b"\n"

    def _file(self) -> dict[str, Any]:
        costs, graph, mcm = self.costs, self.problem.graph, self.problem.mcm
        per_chip = {
            "compute_s": costs.compute_s,
            "in_s": costs.in_s,
            "out_s": costs.out_s,
            "memory_bytes": costs.memory_bytes,
        }
        busy = zip(mcm.links, costs.link_s.tolist(), strict=True)
        return {
            "format": "jaxpart-result",
            "version": 1,
            "graph": graph.name,
            # Hash of the scored graph, which is in the module's element size.
            "graph_sha256": graph.sha256,
            **({"model_sha256": self.model_sha256} if self.model_sha256 else {}),
            "mcm": mcm.description(),
            "assignment": self.chips(),
            "valid": bool(costs.valid),
            "bottleneck_s": self.bottleneck_s,
            "throughput_per_s": self.throughput_per_s,
            "baseline_s": self.baseline_s,
            "improvement": self.improvement,
            "lower_bound_s": self.lower_bound_s,
            "bound_method": self.bound_method,
            "gap": self.gap,
            "stages": [
                {"chip": c, **{key: float(figure[c]) for key, figure in per_chip.items()}}
                for c in range(mcm.num_chips)
            ],
            "links": [{"from": a, "to": b, "busy_s": seconds} for (a, b), seconds in busy],
            "search": {
                "method": self.search.method,
                "samples": self.search.samples,
                "wall_s": self.search.wall_s,
                "seed": self.search.seed,
            },
        }

    @classmethod
    def load(cls, path: str | os.PathLike[str], graph: Graph, mcm: MCM | None = None) -> Result:
        """Reads a result file and scores its assignment again; stored costs are not trusted.

        The lower bound of the file is used only if it was proven for the same graph and module and
        is the better bound; a note says so. If the file was made for another graph or module, a
        note says that too. If it was made for these, a note names each figure that contradicts the
        new scoring.

        Args:
          path: of the file.
          graph: the graph to score on; it must have the node names of the file.
          mcm: the module to score on. None: the module in the file.

        Raises:
          FileFormatError: the file breaks the schema, or its figures are nonsense, as for
            `read_partition`.
          InputError: the file cannot be read, its node names differ from the graph's, or the
            partition is not valid for this graph and module.
        """
        stored = read_result(path)
        problem = Problem.build(graph, mcm or stored.mcm)
        assignment = stored.on(graph, problem.mcm)
        costs = score(problem, assignment)
        require_valid(problem, assignment, costs, path)
        bound_s, bound_method = combinatorial_bound(problem)
        file, search = stored.file, stored.file.search
        result = cls(
            problem,
            assignment,
            costs,
            baseline_s_of(problem),
            min(bound_s, float(costs.bottleneck_s)),
            bound_method,
            (),
            SearchInfo(search.method, search.samples, search.wall_s, search.seed),
            model_sha256=file.model_sha256 if isinstance(file.model_sha256, str) else None,
        )
        notes = stored.notes(result)
        if stored.is_for(problem) and bound_s < file.lower_bound_s <= result.bottleneck_s:
            notes = (
                *notes,
                f"the lower bound ({file.bound_method}) is the file's, not proven again",
            )
            result = dataclasses.replace(
                result, lower_bound_s=file.lower_bound_s, bound_method=file.bound_method
            )
        return dataclasses.replace(result, notes=notes)
