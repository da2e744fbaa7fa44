"""The tables of the READMEs, made from the raw files in data/benchmarks.

  python scripts/studies/tables.py            prints all of them
  python scripts/studies/tables.py --write    writes them into the READMEs, between their marks

A table stands between `<!-- table: NAME -->` and `<!-- end -->`. `tests/scripts/studies/
test_tables.py` fails where a README says something else than the raw files. Means are geometric.
"""

from __future__ import annotations

import argparse
import collections
import json
import math
import re
import statistics
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import fidelity_figures
import quality_figures
import replication as replication_study
import stablehlo_check
import transfer_figures
from pairs import by_module_and_class

from jaxpart.files import write_whole

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "data" / "benchmarks"
READMES = (ROOT / "README.md", FOLDER / "README.md", ROOT / "data" / "graphs" / "README.md")
READMES += (ROOT / "data" / "policies" / "README.md",)
_MARK = re.compile(r"(<!-- table: ([\w-]+) -->\n).*?(<!-- end -->)", re.DOTALL)
_VERSIONS = ("jax", "jaxlib", "numpy", "pyscipopt", "ortools", "libtpu", "jax-cuda12-plugin")
_NAMES = {
    "cpsat": "CP-SAT",
    "scip": "SCIP",
    "metis": "METIS",
    "mt-kahypar": "Mt-KaHyPar",
    "no-policy": "auto, no policy",
}

Row = dict[str, Any]


def raw(name: str) -> dict[str, Any]:
    """A raw file of data/benchmarks."""
    return json.loads((FOLDER / f"{name}.json").read_bytes())


def markdown(header: str, rows: Sequence[Sequence[str]]) -> str:
    """A table. In `header` columns are split by `|`; those that begin with `>` align right."""
    columns = [column.strip() for column in header.split("|")]
    names = [column.removeprefix(">") for column in columns]
    rule = ["---:" if column.startswith(">") else "---" for column in columns]
    lines = [names, rule, *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def number(value: float | None, digits: int, scale: float = 1.0, none: str = "-") -> str:
    """A number with thousands separated; `none` where there is no finite one."""
    if value is None or not math.isfinite(value):
        return none
    return f"{value * scale:,.{digits}f}"


def percent(value: float | None, digits: int) -> str:
    """A share in percent."""
    return "-" if value is None else f"{100 * value:.{digits}f}%"


def mean(values: Sequence[float]) -> float:
    """The geometric mean; 1 of none."""
    return statistics.geometric_mean(values or [1.0])


def measured(*names: str) -> str:
    """A line for each raw file: command, cores, machine, versions and commit."""
    provenance = json.loads((FOLDER / "provenance.json").read_bytes())
    lines = []
    for name in names:
        document, told = raw(name), provenance[name]
        environments = document.get("environments") or [document["environment"]]
        found = environments[0]
        versions = ", ".join(f"{key} {found[key]}" for key in _VERSIONS if key in found)
        commit = found.get("commit") or told["commit"]
        lines.append(
            f"`{told['command']}`, commit {commit}, {told['cores']}, {found['machine']}, "
            f"Python {found['python']}, {versions}."
        )
    return "\n\n".join(lines) + "\n"


def compared(*names: str, with_nodes: bool = False, with_bound: bool = False) -> str:
    """Rows of `compare.py`, pair by pair."""
    rows = [row for name in names for row in raw(name)["rows"]]
    lines = []
    for row in rows:
        line = [row["graph"].removeprefix("light_"), row["mcm"]]
        line[1] = "its own" if line[0] == line[1] else line[1]
        line += [f"{row['nodes']:,}"] if with_nodes else []
        if "why" in row:
            line += ["", "", "", *([""] if with_bound else []), "", f"infeasible: {row['why']}", ""]
        else:
            line += [number(row[key], 1, 1e6) for key in ("baseline_s", "bottleneck_s")]
            line += [number(row["improvement"], 3)]
            line += [number(row["lower_bound_s"], 1, 1e6)] if with_bound else []
            line += [percent(row["gap"], 3), row["bound_method"], number(row["seconds"], 1)]
        lines.append(line)
    nodes = ">nodes | " if with_nodes else ""
    bound = ">lower bound, us | " if with_bound else ""
    header = f"graph | module | {nodes}>greedy, us | >T, us | >improvement | {bound}"
    return markdown(f"{header}>gap | proof | >s", lines)


def graphs() -> str:
    """Every shipped graph on three modules, by module and class."""
    lines = []
    for module, kind, rows in _modules_and_classes(raw("dataset")["rows"]):
        solved = [row for row in rows if "bottleneck_s" in row]
        gaps = [1 + row["gap"] for row in solved if row["gap"] is not None]
        status = collections.Counter(row["status"] for row in rows)
        what = collections.Counter(row["binds"].removesuffix("+mem") for row in solved)
        lines.append(
            [
                *(module, kind, str(len(rows)), str(status["infeasible"])),
                *(str(status["nothing found"]), str(status["proven"])),
                *(percent(mean(gaps) - 1, 2), percent(max(gaps) - 1, 1)),
                number(mean([row["improvement"] for row in solved if row["improvement"]]), 3),
                number(mean([row["headroom"] for row in solved if row["headroom"]]), 3),
                ", ".join(f"{name} {count}" for name, count in what.most_common()),
            ]
        )
    return markdown(
        "module | class | >pairs | >infeasible | >nothing found | >proven optimal | >gap | >worst"
        " | >x greedy | >headroom | bound by",
        lines,
    )


def certainty() -> str:
    """How many answers come with a proof."""
    lines = []
    for module, kind, rows in _modules_and_classes(raw("certify")["rows"]):
        status = collections.Counter(row["status"] for row in rows)
        gaps = [1 + row["gap"] for row in rows if row.get("gap") is not None]
        share = (status["proven"] + status["infeasible"]) / len(rows)
        lines.append(
            [
                *(module, kind, str(len(rows)), str(status["infeasible"])),
                *(str(status["nothing"]), str(status["proven"]), percent(share, 0)),
                *(percent(mean(gaps) - 1, 2), percent(max(gaps, default=1.0) - 1, 2)),
            ]
        )
    return markdown(
        "module | class | >pairs | >infeasible | >nothing found | >proven optimal | >share proven"
        " | >gap | >worst",
        lines,
    )


def _modules_and_classes(rows: Sequence[Row]) -> Iterator[tuple[str, str, list[Row]]]:
    """(module, class, rows): each module whole, then all modules by class."""
    for module, kind, chosen in by_module_and_class(rows):
        if kind == "all" or module == "all":
            yield module, kind, chosen


def buffers() -> str:
    """What finite buffers leave of 1/T, graph by graph."""
    lines = []
    for row in raw("buffers")["rows"]:
        if "why" not in row:
            line = [row["graph"], row["mcm"], f"{row['nodes']:,}", str(row["chips_used"])]
            line += [percent(row[f"share_{b}"], 1) for b in (1, 2, 4, 8)]
            lines.append([*line, *(number(row[f"near_{b}"], 0, none="never") for b in (2, 8))])
    shares = " | ".join(f">{b} slot{'s' * (b > 1)}" for b in (1, 2, 4, 8))
    return markdown(
        f"graph | module | >nodes | >chips | {shares} | >within 5%, 2 slots | >8 slots", lines
    )


def projection() -> str:
    """What becomes of label vectors."""
    lines = [
        [
            *(row["labels"], row["step"], f"{row['candidates']:,}", percent(row["valid"], 1)),
            number(row["distance"] if row["answered"] else None, 0),
            number(row["distance_to_cut"], 3),
            number(row["valid_bottleneck_s"], 0, 1e6),
            number(row["seconds_per_candidate"], 3, 1e3),
        ]
        for row in raw("projection")["rows"]
    ]
    return markdown(
        "labels | step | >candidates | >valid | >distance | >x the cut's | >T, us | >ms each", lines
    )


def repair() -> str:
    """Repairs of noisy candidates, beside CP-SAT."""
    rows = raw("repair")["rows"]
    lines = []
    for ours in (row for row in rows if row["solver"] == "jaxpart"):
        key = (ours["room"], ours["share"])
        other = next(r for r in rows if (r["room"], r["share"]) == key and r is not ours)
        room = "no memory rule" if ours["room"] is None else percent(ours["room"], 0)
        good = round(other["valid"] * other["candidates"])
        lines.append(
            [
                *(room, percent(ours["share"], 0), number(ours["per_second"], 0)),
                *(percent(ours["valid"], 1), number(ours["to_least"], 3)),
                *(number(other["per_second"], 2), f"{good} of {other['candidates']}"),
            ]
        )
    return markdown(
        "capacity above the mean | labels randomised | >repairs/s | >valid | >distance / least"
        " | >CP-SAT: repairs/s | >valid",
        lines,
    )


def inner() -> str:
    """Candidates a second of each device program, on each device that was measured."""
    names = {"slice": "cut orders", "probe": "probe orders"}
    lines = []
    for name in inner_files():
        document = raw(name)
        order = list(dict.fromkeys((row["loop"], row["input"]) for row in document["rows"]))
        rows = sorted(document["rows"], key=lambda row: order.index((row["loop"], row["input"])))
        lines += [
            [
                row.get("device", document["environment"]["device"]),
                *(names.get(row["loop"], row["loop"]), row["input"], f"{row['batch']:,}"),
                number(row["candidates_per_s"], 0),
                number(row["floor_candidates_per_s"], 0),
                number(row.get("predicted_candidates_per_s"), 0, none=""),
                number(row.get("launches"), 0, none=""),
                number(row.get("reference_candidates_per_s"), 0, none=""),
                number(row.get("times_reference"), 2, none=""),
            ]
            for row in rows
        ]
    return markdown(
        "device | program | input | >batch | >per s | >floor, per s | >predicted, per s"
        " | >launches | >scalar loop, per s | >x scalar loop",
        lines,
    )


def inner_files() -> list[str]:
    """Names of the raw files of `inner_loops.py`, one for each device, that have a provenance.

    That of the CPU is `inner`, the first.
    """
    known = json.loads((FOLDER / "provenance.json").read_bytes())
    return sorted(path.stem for path in FOLDER.glob("inner*.json") if path.stem in known)


def device_programs() -> str:
    """What each device program would do in a call on accelerators; predicted, not measured."""
    rows = {
        (row["program"], row["target"]): row
        for row in raw("device_programs")["rows"]
        if row.get("devices", 1) == 1
    }
    lines = []
    for program in dict.fromkeys(program for program, _ in rows):
        line = [program, f"{rows[program, 'h100']['batch']:,}"]
        for target in ("h100", "v5e", "cpu"):
            row = rows.get((program, target), {"error": ""})
            if "error" in row:
                line += ["failed" if row["error"] else "-", *[""] * (1 if target == "cpu" else 3)]
                continue
            mark = {"least": ">", "estimated": "~"}.get(row["launches_are"], "")
            line += [str(row["unknown_loops"]), f"{mark}{row['launches']:,}"]
            if target != "cpu":
                most = mark.replace(">", "<")
                line += [number(row["temp_bytes"], 0, 2**-20)]
                line += [f"{most}{number(row['predicted_per_s'], 0)}"]
        lines.append(line)
    columns = (">loops ?", ">launches", ">temp MiB", ">per s, predicted")
    header = ["program", ">batch", *(f"{column}, H100" for column in columns)]
    header += [*(f"{column}, v5e" for column in columns)]
    header += [f"{column}, CPU" for column in columns[:2]]
    return markdown(" | ".join(header), lines)


def device_sharing() -> str:
    """Programs that four devices share: what they exchange, and what is predicted."""
    rows = {
        (row["program"], row["target"], row["devices"]): row
        for row in raw("device_programs")["rows"]
        if "error" not in row
    }
    lines = []
    for program in dict.fromkeys(program for program, _, devices in rows if devices == 4):
        line = [program]
        for target in ("h100", "v5e"):
            one, four = rows[program, target, 1], rows[program, target, 4]
            rate = four["predicted_per_s"]
            line += [str(four["collectives"]), number(rate, 0)]
            line += [number(rate / one["predicted_per_s"], 2)]
        lines.append(line)
    columns = (">exchanges", ">per s, predicted", ">x one")
    header = [
        "program",
        *(f"{column}, {name}" for name in ("4 H100", "v5e 2x2") for column in columns),
    ]
    return markdown(" | ".join(header), lines)


def moves() -> str:
    """Annealing moves a second: of each number of chains, the share that prices most."""
    best: dict[int, Row] = {}
    for row in raw("moves")["rows"]:
        if row["priced_per_s"] > best.get(row["chains"], {"priced_per_s": 0.0})["priced_per_s"]:
            best[row["chains"]] = row
    lines = [
        [
            f"{row['chains']:,}",
            *(number(row[f"{what}_per_s"], 0) for what in ("proposals", "priced", "evaluations")),
            *(
                number(row[f"{what}_per_s"] / row["evaluations_per_s"], 0)
                for what in ("priced", "proposals")
            ),
        ]
        for row in best.values()
    ]
    return markdown(
        ">chains | >proposals/s | >priced/s | >evaluate/s | >x, priced | >x, proposed", lines
    )


def quality(name: str, *, with_best: bool = False) -> str:
    """Methods beside each other, by size of the graph."""
    document = raw(name)
    limit_s = document["settings"]["seconds"]
    judged = quality_figures.judge(document["rows"], limit_s)
    lines = []
    for size, chosen in quality_figures.by_size(judged):
        if size == "all" and with_best:
            continue
        if size != "all" and not with_best:
            continue
        for method in dict.fromkeys(run.method for run in chosen):
            runs = [run for run in chosen if run.method == method]
            ratios = [run.ratio for run in runs if math.isfinite(run.ratio)]
            shares = [run.share for run in runs if run.share is not None]
            near = quality_figures.mean_seconds([run.near_s for run in runs], limit_s)
            cold = quality_figures.mean_seconds([run.cold_s for run in runs])
            never = sum(math.isinf(run.near_s) for run in runs)
            line = [size] if with_best else []
            line += [_NAMES.get(method, method), str(len(runs)), number(near, 2), str(never)]
            line += [number(cold, 2)] if with_best else []
            line += [number(mean(ratios), 4), number(max(ratios, default=None), 3)]
            if with_best:
                line += [str(sum(run.is_best for run in runs))]
            else:
                line += [str(len(runs) - len(ratios)), percent(statistics.fmean(shares), 1)]
            lines.append(line)
    if with_best:
        return markdown(
            "pairs | method | >runs | >s to 1% of the best | >never | >cold s"
            " | >final, x the best | >worst | >best of all",
            lines,
        )
    return markdown(
        "method | >runs | >s to 1% of the best | >never | >final, x the best | >worst"
        " | >nothing found | >headroom taken",
        lines,
    )


def seeds() -> str:
    """Mean T over seeds, pair by pair."""
    rows = [row for row in raw("quality-seeds")["rows"] if "history" in row]
    methods = list(dict.fromkeys(row["method"] for row in rows))
    lines = []
    for graph, mcm in dict.fromkeys((row["graph"], row["mcm"]) for row in rows):
        means = {}
        for method in methods:
            finals = [
                quality_figures.final_s(row["history"])
                for row in rows
                if (row["graph"], row["mcm"], row["method"]) == (graph, mcm, method)
            ]
            means[method] = statistics.fmean(finals)
        others = min(value for method, value in means.items() if method != "auto")
        cells = [number(means[method], 2, 1e6) for method in methods]
        lines.append([f"{graph}/{mcm}", *cells, number(means["auto"] / others, 3)])
    columns = " | ".join(f">{method}" for method in methods)
    return markdown(f"pair | {columns} | >auto over the best of the others", lines)


def growth() -> str:
    """`auto` on longer and longer decoders."""
    lines = []
    for row in raw("growth")["rows"]:
        if row.get("part") != "growth":
            continue
        seconds = [row[k] for k in ("trace_s", "first_s", "near_s", "compile_s", "partition_s")]
        lines.append(
            [
                *(f"{row['nodes']:,}", f"{row['chips']:,}", *(number(s, 1) for s in seconds)),
                number(max(row["peak_bytes"], row["worker_peak_bytes"]) / 2**30, 1),
                *(number(row["improvement"], 3), percent(row["gap"], 2)),
            ]
        )
    return markdown(
        ">nodes | >chips | >tracing, s | >first, s | >1%, s | >compilation, s | >all, s"
        " | >peak, GiB | >x greedy | >gap",
        lines,
    )


_SAMPLES = (64, 256, 1024, 4096)


def transfer() -> str:
    """The study of transfer: improvement after so many samples."""
    document = raw("transfer")
    most = document["settings"]["samples"]["labels"]
    lines = []
    for title, chosen in transfer_figures.classes(document["pairs"]):
        name = "all" if title == "all pairs" else "with headroom"
        for method in transfer_figures.METHODS:
            runs = transfer_figures.runs_of(chosen, "labels", method)
            gains = [transfer_figures.mean(runs, count) for count in (*_SAMPLES, most)]
            lines.append(
                [
                    *(f"{len(chosen)}, {name}", method, *(f"{gain:.3f}" for gain in gains)),
                    f"{transfer_figures.spread(runs, most):.3f}",
                ]
            )
    columns = " | ".join(f">{count:,}" for count in (*_SAMPLES, most))
    return markdown(f"pairs | method | {columns} | >spread", lines)


def beyond() -> str:
    """Modules and models that the policy was never trained on, and node orders."""
    methods = ("random", "annealing", "fresh", "zero-shot", "fine-tuned")
    lines = []

    def line(decoder: str, title: str, pairs: dict[str, Any], most: int) -> None:
        gains = [
            transfer_figures.mean(transfer_figures.runs_of(pairs, decoder, method), most)
            for method in methods
        ]
        lines.append([decoder, title, str(len(pairs)), *(f"{gain:.3f}" for gain in gains)])

    for name, decoder in (("beyond", "labels"), ("pipedream", "labels"), ("orders", "orders")):
        document = raw(f"transfer-{name}")
        most = document["settings"]["samples"][decoder]
        known = {key: pair for key, pair in document["pairs"].items() if pair["runs"]}
        for module in dict.fromkeys(key.split("/")[1] for key in known):
            chosen = {key: pair for key, pair in known.items() if key.split("/")[1] == module}
            title = f"{module} (PipeDream)" if name == "pipedream" else module
            line(decoder, title, chosen, most)
        if decoder == "orders":
            line(decoder, "with headroom", transfer_figures.classes(known)[1][1], most)
    columns = " | ".join(f">{method}" for method in methods)
    return markdown(f"decoder | module | >graphs | {columns}", lines)


def ablations() -> str:
    """The policy without one of its parts."""
    document = raw("transfer-ablations")
    most = document["settings"]["samples"]["labels"]
    names = {
        "zero-shot": "zero-shot, whole",
        "one-round": "no refinement",
        "sample-mode": "`sample` mode",
        "no-solver": "no solver",
        "as-drawn": "nothing made valid",
        "scratch": "learned from scratch",
        "no-attention": "from scratch, no attention",
    }
    lines = []
    for method, name in names.items():
        runs = transfer_figures.runs_of(document["pairs"], "labels", method)
        valid = statistics.fmean(run["valid"] / run["samples"] for run in runs)
        lines.append([name, f"{transfer_figures.mean(runs, most):.3f}", percent(valid, 1)])
    return markdown("without | >x greedy | >samples valid", lines)


def provers() -> str:
    """SCIP and CP-SAT on the same programs."""
    lines = [
        [
            f"{row['graph']}/{row['mcm']}",
            str(row["nodes"]),
            *(
                text
                for solver in ("scip", "cpsat")
                for text in (
                    "yes" if row[solver]["proven"] else "no",
                    number(row[solver]["seconds"], 1),
                    percent(row[solver]["gap"], 3),
                )
            ),
        ]
        for row in raw("provers")["rows"]
    ]
    return markdown(
        "pair | >contracted nodes | SCIP proves | >s | >gap | CP-SAT proves | >s | >gap", lines
    )


def rollout() -> str:
    """The policy's loop beside repairs, by the number of workers."""
    document = raw("rollout")
    alone = document["batch"] / document["round_alone_s"]
    lines = [
        [
            str(row["workers"]),
            number(row["samples_per_s"], 0),
            number(alone, 0),
            percent(row["device_waits"], 0),
            number(row["repaired_per_s"], 1),
        ]
        for row in document["rows"]
    ]
    return markdown(
        ">workers | >samples/s | >without repair | >device waits, at most | >repaired/s", lines
    )


def overlap() -> str:
    """Searches traced: what the host does between steps, and how long the device waits for it."""
    rows = {(row["method"], row["ahead"]): row for row in raw("overlap")["rows"]}
    lines = [
        [
            method,
            number(rows[method, 0]["device_ms"], 1),
            number(rows[method, 0]["host_ms"], 1),
            percent(rows[method, 0]["idle"], 1),
            percent(rows[method, 1]["idle"], 1),
        ]
        for method in dict.fromkeys(method for method, _ in rows)
    ]
    return markdown(
        "method | >device, ms a step | >host, ms | >device waits, looking at once | >a step behind",
        lines,
    )


def latency() -> str:
    """Runs of the command by the state of its caches, and what signals took."""
    document = raw("latency")
    lines = [
        [
            row["graph"],
            row["mcm"],
            f"{row['limit_s']:g}",
            row["caches"],
            number(row.get("search_s"), 1),
            number(row["wall_s"], 1),
            number(row.get("bottleneck_s"), 1, 1e6, none="nothing found"),
            percent(row.get("gap"), 2),
        ]
        for row in document["rows"]
    ]
    header = "graph | module | >limit, s | caches | >search, s | >wall, s | >T, us | >gap"
    runs = markdown(header, lines)
    lines = [
        [
            row["signal"],
            f"{row['after_s']:g}",
            number(row["ends_s"], 2),
            str(row["code"]),
            number(row.get("bottleneck_s"), 1, 1e6, none="nothing yet"),
        ]
        for row in document["stops"]
    ]
    header = "signal | >sent after, s | >ends in, s | >exit code | >saved T, us"
    return runs + "\n" + markdown(header, lines)


def fidelity(rows: Sequence[Row]) -> str:
    """Predicted against measured bottlenecks: of all models, then of each; and where it fails."""
    judged = [fidelity_figures.Judged.of(row) for row in rows if row["part"] == "judged"]
    summary, models, failures = [], [], []
    for name, what in fidelity_figures.PREDICTIONS.items():
        found = fidelity_figures.overall(judged, name)
        figures = (number(found.pearson, 3), number(found.spearman, 3))
        errors = (percent(found.error, 1), percent(found.scaled, 1))
        summary.append([f"{name}: {what}", str(found.count), *figures, *errors])
    for model in judged:
        each = [
            fidelity_figures.fidelity(model.predicted_s[name], model.measured_s)
            for name in fidelity_figures.PREDICTIONS
        ]
        cells = [f"{number(one.pearson, 3)}, {percent(one.error, 1)}" for one in each]
        ceiling = f"{number(model.ceiling.pearson, 3)}, {percent(model.ceiling.error, 1)}"
        count = str(len(model.measured_s))
        models.append([model.model, model.runtime, f"{model.nodes:,}", count, *cells, ceiling])
        failures += [
            [
                *(model.model, one.operator, str(one.nodes), one.prediction),
                *(number(one.predicted_s, 1, 1e6), number(one.found_s, 1, 1e6)),
                percent(one.share, 1),
            ]
            for prediction in ("launch", "profiled")
            for one in [f for f in model.failures if f.prediction == prediction][:2]
        ]
    header = "prediction | >partitions | >Pearson | >Spearman | >error | >error, scaled"
    columns = " | ".join(f">{name}" for name in fidelity_figures.PREDICTIONS)
    return "\n".join(
        [
            markdown(header, summary),
            markdown(f"model | runtime | >nodes | >partitions | {columns} | >itself", models),
            markdown(
                "model | operator | >nodes | prediction | >predicted, us | >in stages, us"
                " | >difference / model",
                failures,
            ),
        ]
    )


def headline() -> str:
    """What the first page says: a line per claim."""
    bert = {row["mcm"]: row for row in raw("bert-large")["rows"]}["mcm36"]
    status = collections.Counter(row["status"] for row in raw("dataset")["rows"])
    solved = [row for row in raw("dataset")["rows"] if "bottleneck_s" in row]
    better = mean([row["improvement"] for row in solved if row["improvement"]])
    proofs = collections.Counter(row["status"] for row in raw("certify")["rows"])
    largest = max(
        (row for row in raw("growth")["rows"] if row.get("part") == "growth"),
        key=lambda row: row["nodes"],
    )
    judged = quality_figures.judge(raw("quality-test")["rows"], 60.0)
    large = [run for run in judged if run.nodes >= quality_figures.LARGE]
    against = {other: quality_figures.race(large, "auto", other) for other in ("cpsat", "scip")}
    shares = {other: f"{100 * r.of_limit:.2g}%" for other, r in against.items() if r is not None}
    fidelities = [row for row in raw("fidelity")["rows"] if row["part"] == "judged"]
    models = [fidelity_figures.Judged.of(row) for row in fidelities]
    told = [
        f"{name} {one.pearson:.3f}, {percent(one.error, 1)}"
        for name in ("profiled", "calibrated")
        for one in [fidelity_figures.overall(models, name)]
    ]
    partitions = sum(len(model.measured_s) for model in models)
    lines = [
        [
            "BERT-large (1,713 nodes) on `mcm36`",
            "2",
            f"{bert['bottleneck_s'] * 1e6:,.1f} us, {bert['improvement']:.3f} x greedy, "
            f"gap {percent(bert['gap'], 3)}, {bert['seconds']:.1f} s",
        ],
        [
            "96 graphs on 4, 8 and 36 chips, 20 s each",
            "1",
            f"{status['proven']} of {sum(status.values())} proven optimal, "
            f"{status['infeasible']} infeasible with proof, {status['nothing found']} without an "
            f"answer; {better:.2f} x greedy",
        ],
        [
            "validation and test graphs, 60 s each",
            "1, nine pairs 2",
            f"{proofs['proven'] + proofs['infeasible']} of {sum(proofs.values())} proven",
        ],
        [
            f"a decoder of {largest['nodes']:,} nodes on {largest['chips']} chips",
            "2",
            f"optimal, with proof, in {largest['partition_s']:.1f} s",
        ],
        [
            "time to what CP-SAT and SCIP have after 60 s, from 300 nodes on",
            "1",
            f"{shares['cpsat']} and {shares['scip']} of it",
        ],
        [
            f"longest stages of {partitions} partitions of {len(models)} models, predicted: "
            "correlation (Pearson), mean error",
            "1",
            "; ".join(told),
        ],
    ]
    return markdown("what | cores | measured", lines)


def real_pipeline() -> str:
    """Two real stages beside the simulation of their seconds."""
    return markdown(
        "model | >stage 0, ms | >stage 1, ms | >real, inferences/s | >simulated | >ratio",
        [
            [
                row["graph"],
                *(f"{1e3 * seconds:.2f}" for seconds in row["alone_s"]),
                f"{row['real_per_s']:.2f}",
                f"{row['simulated_per_s']:.2f}",
                f"{row['real_per_s'] / row['simulated_per_s']:.3f}",
            ]
            for row in raw("real-pipeline")["rows"]
        ],
    )


def replication() -> str:
    """What several chips for one stage would bring, over the mean load."""
    return markdown(
        "module | >pairs | >best known | >one chip a stage | >at most two | >any number | "
        ">two better | >any better",
        replication_study.table_rows(raw("replication")["rows"]),
    )


def stablehlo() -> str:
    """The graphs of `from_stablehlo` over those of `from_jax`, function by function."""
    return markdown(
        "function | >nodes | >FLOPs, fused | >bytes, fused | >products | >weights | "
        "more FLOPs | fewer",
        stablehlo_check.table_rows(raw("stablehlo")["rows"]),
    )


TABLES: dict[str, Callable[[], str]] = {
    "headline": headline,
    "graphs": lambda: graphs() + "\n" + measured("dataset"),
    "bert-large": lambda: compared("bert-large", with_bound=True) + "\n" + measured("bert-large"),
    "latency": lambda: latency() + "\n" + measured("latency"),
    "published-inputs": lambda: compared("published-inputs") + "\n" + measured("published-inputs"),
    "onnx": lambda: (
        compared("onnx-light", "onnx-light-128mib", with_nodes=True)
        + "\n"
        + measured("onnx-light", "onnx-light-128mib")
    ),
    "certainty": lambda: certainty() + "\n" + measured("certify"),
    "provers": lambda: provers() + "\n" + measured("provers"),
    "projection": lambda: projection() + "\n" + measured("projection"),
    "repair": lambda: repair() + "\n" + measured("repair"),
    "inner": lambda: inner() + "\n" + measured(*inner_files()),
    "device-programs": lambda: (
        f"{device_programs()}\n{device_sharing()}\n{measured('device_programs')}"
    ),
    "buffers": lambda: buffers() + "\n" + measured("buffers"),
    "real-pipeline": lambda: real_pipeline() + "\n" + measured("real-pipeline"),
    "overlap": lambda: overlap() + "\n" + measured("overlap"),
    "rollout": lambda: rollout() + "\n" + measured("rollout"),
    "moves": lambda: moves() + "\n" + measured("moves"),
    "methods": lambda: quality("quality-train") + "\n" + measured("quality-train"),
    "seeds": lambda: seeds() + "\n" + measured("quality-seeds"),
    "quality": lambda: quality("quality-test", with_best=True) + "\n" + measured("quality-test"),
    "fidelity": lambda: fidelity(raw("fidelity")["rows"]) + "\n" + measured("fidelity"),
    "stablehlo": lambda: stablehlo() + "\n" + measured("stablehlo"),
    "replication": lambda: replication() + "\n" + measured("replication"),
    "growth": lambda: growth() + "\n" + measured("growth"),
    "transfer": lambda: transfer() + "\n" + measured("transfer"),
    "beyond": lambda: (
        beyond() + "\n" + measured("transfer-beyond", "transfer-pipedream", "transfer-orders")
    ),
    "ablations": lambda: ablations() + "\n" + measured("transfer-ablations"),
}


def filled(text: str) -> str:
    """A README with every marked table as the raw files have it."""
    return _MARK.sub(lambda found: found[1] + "\n" + TABLES[found[2]]() + "\n" + found[3], text)


def main() -> int:
    """Prints the tables, or writes them into the READMEs."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--write", action="store_true")
    if parser.parse_args().write:
        for path in READMES:
            write_whole(path, filled(path.read_text()).encode())
            print(f"written: {path.relative_to(ROOT)}")
        return 0
    for name, make in TABLES.items():
        print(f"{name}\n\n{make()}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
