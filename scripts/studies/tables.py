"""The tables of the READMEs, made from the raw files in data/benchmarks.

  python scripts/studies/tables.py            prints all of them
  python scripts/studies/tables.py --write    writes them into the READMEs, between their marks

A table stands between `<!-- table: NAME -->` and `<!-- end -->`. `tests/scripts/studies/
test_tables.py` fails where a README says something else than the raw files. Means are geometric.
"""

from __future__ import annotations

import argparse
import collections
import math
import re
import statistics
import sys
from collections.abc import Callable, Iterator, Sequence

import fidelity_figures
import quality_figures
from device_tables import (
    device_programs,
    device_sharing,
    inner,
    inner_files,
    moves,
    overlap,
    projection,
    rollout,
)
from export_tables import buffers, fidelity, real_pipeline, replication, stablehlo
from pairs import by_module_and_class
from policy_tables import ablations, beyond, transfer
from table_parts import FOLDER, ROOT, Row, markdown, mean, measured, number, percent, raw

from jaxpart.files import write_whole

READMES = (ROOT / "README.md", FOLDER / "README.md", ROOT / "data" / "graphs" / "README.md")
READMES += (ROOT / "data" / "policies" / "README.md",)
_MARK = re.compile(r"(<!-- table: ([\w-]+) -->\n).*?(<!-- end -->)", re.DOTALL)
_NAMES = {
    "cpsat": "CP-SAT",
    "scip": "SCIP",
    "metis": "METIS",
    "mt-kahypar": "Mt-KaHyPar",
    "no-policy": "auto, no policy",
}


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
