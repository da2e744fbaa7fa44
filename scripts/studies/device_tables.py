"""Tables of what devices do: programs, inner loops, moves, rollouts."""

from __future__ import annotations

import json

from table_parts import FOLDER, Row, markdown, number, percent, raw


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
