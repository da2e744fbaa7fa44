"""The benchmark: what it makes of its rows, its rivals on tiny problems, its children, its file."""

import json
import math
import os
import time

import numpy as np
import pytest
import quality
import rivals
import runs
from child import measure
from growth import power, sweeps, table
from quality_figures import (
    EQUAL,
    NEAR,
    behind,
    exponent,
    final_s,
    headroom_share,
    judge,
    mean_seconds,
    method_table,
    race,
    race_table,
    seconds_to,
)
from rows import Rows

from jaxpart import engine
from jaxpart.cost.evaluate import verify
from jaxpart.errors import InputError, NothingFoundError
from jaxpart.problem.problem import Problem
from tests.support import oracle
from tests.support.strategies import random_graph, random_mcm

LIMITS = rivals.Limits(seconds=30.0, threads=1, seed=0, gap=1e-6)
SETTINGS = {"seconds": 10.0, "growth_seconds": 5.0, "threads": 1}


def run_of(method, *history, graph="g", nodes=10, start_s=1.0, compile_s=2.0, **known):
    """A row; everything was found so many seconds later for who began cold."""
    return {
        "part": "quality",
        "graph": graph,
        "mcm": "m",
        "nodes": nodes,
        "method": method,
        "seed": 0,
        "history": [list(point) for point in history],
        "cold_history": [[at_s + start_s + compile_s, value] for at_s, value in history],
        "start_s": start_s,
        "compile_s": compile_s,
        **known,
    }


def judged_of(rows, limit_s=10.0):
    return {run.method: run for run in judge(rows, limit_s)}


def test_seconds_to_is_the_first_time_at_or_below_the_target():
    history = [(0.0, 9.0), (1.5, 4.0), (3.0, 2.0)]
    assert seconds_to(history, 9.0) == 0.0
    assert seconds_to(history, 8.9) == 1.5
    assert seconds_to(history, 2.0) == 3.0
    assert math.isinf(seconds_to(history, 1.9))
    assert math.isinf(seconds_to([], 1.0))
    assert final_s(history) == 2.0
    assert math.isinf(final_s([]))


def test_headroom_is_shared_by_logarithms():
    assert headroom_share(4.0, 2.0, 1.0) == pytest.approx(0.5)
    assert headroom_share(4.0, 1.0, 1.0) == 1.0
    assert headroom_share(4.0, 4.0, 1.0) == 0.0
    assert headroom_share(4.0, 8.0, 1.0) == pytest.approx(-0.5)
    assert headroom_share(4.0, math.inf, 1.0) == 0.0
    assert headroom_share(1.02, 1.0, 1.0) is None
    assert headroom_share(None, 1.0, 1.0) is None
    assert headroom_share(4.0, 1.0, None) is None
    assert headroom_share(4.0, 1.0, 0.0) is None


def test_exponents_of_power_laws_are_exact():
    sizes = [10, 100, 1000, 5000]
    for power_ in (-0.5, 0.0, 1.0, 2.25):
        values = [3.0 * size**power_ for size in sizes]
        assert exponent(sizes, values) == pytest.approx(power_, abs=1e-12)
    assert exponent([10], [1.0]) is None
    assert exponent([10, 10], [1.0, 2.0]) is None
    assert exponent([], []) is None


def test_a_mean_of_seconds_counts_what_never_came_at_the_limit():
    assert mean_seconds([1.0, 4.0], 10.0) == pytest.approx(2.0)
    assert mean_seconds([0.1, math.inf], 10.0) == pytest.approx(1.0)
    assert mean_seconds([0.0], 10.0) == pytest.approx(1e-3)  # what clocks tell apart
    assert mean_seconds([], 10.0) is None


def test_runs_are_judged_by_the_best_that_anybody_found_in_time():
    found = judged_of(
        [
            {"part": "pair", "graph": "g", "mcm": "m", "nodes": 10, "program_order_s": 4.0},
            run_of("auto", (0.0, 8.0), (1.0, 2.01), (5.0, 2.0), lower_bound_s=1.0),
            run_of("slice", (0.5, 4.0), (11.0, 1.0), lower_bound_s=0.5),  # the last one is late
            run_of("scip", lower_bound_s=None),
            run_of("cpsat", died="exit code 1"),
        ]
    )
    auto, slices, scip = found["auto"], found["slice"], found["scip"]
    assert (auto.near_s, auto.cold_s, auto.ratio, auto.is_best) == (1.0, 4.0, 1.0, True)
    assert auto.share == pytest.approx(0.5)  # of log 4, the largest bound counts
    assert slices.history == [[0.5, 4.0]]
    assert (slices.ratio, slices.is_best, slices.share) == (2.0, False, 0.0)
    assert math.isinf(slices.near_s)
    assert slices.cold_s == 13.0  # start-up, compilation and limit
    assert math.isinf(scip.ratio)
    assert scip.share == 0.0
    assert math.isinf(found["cpsat"].ratio)


def test_pairs_without_an_answer_are_left_out():
    proven = run_of("scip", graph="h", infeasible="proven by scip")
    rows = [run_of("auto", (0.0, 1.0)), run_of("auto", graph="h"), proven, run_of("a", graph="i")]
    assert [run.pair for run in judge(rows, 10.0)] == [("g", "m")]
    assert judge([], 10.0) == []


def test_a_race_counts_ties_and_what_is_never_reached():
    rows = [
        # A tie within 0.01% is reached; twice as soon.
        run_of("auto", (1.0, 2.0 * (EQUAL - 1e-6)), graph="tie"),
        run_of("slice", (0.5, 3.0), (2.0, 2.0), graph="tie"),
        # Never: the limit counts, eight times theirs.
        run_of("auto", (1.0, 3.0), graph="never"),
        run_of("slice", (1.25, 2.0), graph="never"),
        # They found nothing: the first valid one beats them, at the tenth of the limit.
        run_of("auto", (1.0, 3.0), graph="nothing"),
        run_of("slice", graph="nothing"),
        # Alone, and no race.
        run_of("auto", (1.0, 3.0), graph="alone"),
    ]
    result = race(judge(rows, 10.0), "auto", "slice")
    assert result is not None
    assert (result.runs, result.never, result.worse) == (3, 1, 1)
    assert result.of_limit == pytest.approx((0.1 * 1.0 * 0.1) ** (1 / 3))
    assert result.of_theirs == pytest.approx((0.5 * 8.0 * 0.1) ** (1 / 3))
    assert race(judge(rows, 10.0), "auto", "scip") is None
    only, *more = behind(judge(rows, 10.0), "auto")
    assert not more
    assert (only.pair[0], only.best, only.seeds) == ("never", "slice", 1)
    assert only.ratio == pytest.approx(1.5)


def test_who_is_behind_is_told_by_means_over_the_seeds_that_all_have():
    def run(method, seed, value, graph="g"):
        return {**run_of(method, *([(1.0, value)] if value else []), graph=graph), "seed": seed}

    # Behind with one seed, ahead with both; the third is not compared.
    level = [run("auto", 0, 2.0), run("slice", 0, 1.5), run("auto", 1, 1.0), run("slice", 1, 1.5)]
    assert behind(judge([*level, run("auto", 2, 9.0)], 10.0), "auto") == []
    rows = [
        run("auto", 0, 2.0), run("slice", 0, 1.0), run("auto", 1, 2.0), run("slice", 1, 2.0),
        run("auto", 0, None, "h"), run("slice", 0, 1.0, "h"),
    ]  # fmt: skip
    nothing, half = behind(judge(rows, 10.0), "auto")
    assert (nothing.pair[0], nothing.ratio) == ("h", math.inf)
    assert (half.pair[0], half.seeds, half.ratio) == ("g", 2, pytest.approx(2**0.5))


def test_tables_have_a_line_for_each_class_and_method():
    rows = [
        run_of(method, (1.0, value), graph=f"g{nodes}", nodes=nodes)
        for nodes in (299, 300)
        for method, value in (("auto", 1.0), ("slice", NEAR))
    ]
    judged = judge(rows, 10.0)
    assert len(method_table(judged)) == 1 + 3 * 2
    assert [line.split()[0] for line in race_table(judged, "auto", ["slice"])[1:]] == [
        "<",
        ">=",
        "all",
    ]


def test_growth_is_fitted_along_what_changes():
    rows = [
        {
            **{"part": "growth", "nodes": nodes + 7, "nodes_asked": nodes, "chips": chips},
            **{"trace_s": nodes / 100, "first_s": 1e-6 * nodes**2, "near_s": chips**0.5},
            **{"compile_s": 0.0, "partition_s": 3.0, "peak_bytes": 2**30},
            **{"worker_peak_bytes": 2**29, "improvement": 1.2, "gap": None},
        }
        for nodes, chips in [(1000, 16), (10_000, 16), (100_000, 16), (1000, 64), (1000, 256)]
    ]
    rows.append({"part": "growth", "nodes_asked": 9, "chips": 9, "died": "killed after 1 s"})
    (along_nodes, by_nodes), (along_chips, by_chips) = sweeps(rows)
    assert (along_nodes, along_chips) == ("nodes", "chips")
    assert [row["nodes_asked"] for row in by_nodes] == [1000, 10_000, 100_000]
    assert [row["chips"] for row in by_chips] == [16, 64, 256]
    assert power(by_nodes, "nodes", "first_s") == pytest.approx(2.0, abs=0.01)
    assert power(by_chips, "chips", "near_s") == pytest.approx(0.5)
    assert power(by_nodes, "nodes", "compile_s") is None  # no logarithm of nothing
    text = "\n".join(table(rows))
    assert "killed after 1 s" in text
    assert "~chips^" in text


# Between them all topologies, every switch both ways, and unlike chips.
MODULE_SEEDS = (4, 1, 9, 14, 10, 13)


def tiny(seed):
    """A problem on one of few modules, because each compiles programs of its own."""
    mcm = random_mcm(np.random.default_rng(MODULE_SEEDS[seed % len(MODULE_SEEDS)]), 3)
    rng = np.random.default_rng(seed)
    return Problem.build(random_graph(rng, 5, mcm.num_chips), mcm)


def check(problem, run):
    """Every rival: a falling history of what is valid, that ends with the answer."""
    values = [value_s for _, value_s in run.history]
    assert values == sorted(set(values), reverse=True)
    assert [at_s for at_s, _ in run.history] == sorted(at_s for at_s, _ in run.history)
    assert (run.assignment is None) == (not values)
    if run.assignment is not None:
        costs = verify(problem, run.assignment[:, None])
        assert costs.valid[0]
        assert values[-1] == costs.bottleneck_s[0]


@pytest.mark.parametrize("rival", [rivals.by_cpsat, rivals.by_scip])
def test_solvers_find_the_optimum_of_the_full_program(rival):
    solved = 0
    for seed in range(20):
        problem = tiny(seed)
        best = oracle.best(problem.graph, problem.mcm)
        run = rival(problem, LIMITS)
        check(problem, run)
        assert run.note == "full"
        assert run.is_proven
        if best is None:
            assert run.assignment is None
        else:
            assert run.history[-1][1] == pytest.approx(best[0], rel=1e-5)
            solved += len(run.history) > 1
    assert solved > 2  # beyond the baseline


def test_an_optimum_within_the_span_rule_proves_nothing(monkeypatch):
    seed = next(
        seed
        for seed in range(100)
        if (problem := tiny(seed)).mcm.constraints.triangle
        and oracle.best(problem.graph, problem.mcm)
    )
    monkeypatch.setattr(rivals, "state_triangles", lambda program, reach: False)
    for rival in (rivals.by_cpsat, rivals.by_scip):
        run = rival(tiny(seed), LIMITS)
        assert (run.note, run.is_proven) == ("span", False)


def test_parts_in_any_order_become_valid_partitions():
    rng = np.random.default_rng(0)
    asked = []

    def parts_of(contracted, count, tolerance, seed, threads):
        asked.append((count, tolerance, seed, threads))
        return rng.permutation(np.arange(contracted.num_nodes) % count)

    limits = rivals.Limits(seconds=0.2, threads=1, seed=3, gap=0.0)
    gained = 0
    for seed in range(10):
        problem = tiny(seed)
        run = rivals._by_parts(parts_of, problem, limits)
        check(problem, run)
        assert run.refused == 0
        assert not run.is_proven
        gained += len(run.history) > 1
    assert gained > 0
    assert len(set(asked)) > 5  # other seeds, tolerances and numbers of parts
    assert all(count >= 2 and seed >= 300_000 for count, _, seed, _ in asked)


def test_a_rival_without_its_package_is_named(monkeypatch):
    monkeypatch.setitem(rivals._PACKAGES, "metis", "no_such_package")
    assert rivals.missing("metis") == "no_such_package"
    assert rivals.missing("cpsat") is None


CHILD = """
import os, subprocess, time

def raises(): raise ValueError("on purpose")
def hangs():
    print(subprocess.Popen(["sleep", "60"]).pid, file=open(os.environ["PID_FILE"], "w"))
    time.sleep(60)
def cores(scale): return {"cores": scale * len(os.sched_getaffinity(0))}
"""


@pytest.fixture
def child(tmp_path, monkeypatch):
    (tmp_path / "child_of_test.py").write_text(CHILD)
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    monkeypatch.setenv("PYTHONPATH", path)
    monkeypatch.setenv("PID_FILE", str(tmp_path / "pid"))

    def run(function, limit_s=60.0, **arguments):
        return measure("child_of_test", function, arguments, threads=1, limit_s=limit_s)

    return run


def test_a_child_that_raises_says_why(child):
    assert child("raises") == {"died": "exit code 1: ValueError: on purpose"}


def test_a_child_that_hangs_is_killed_with_what_it_started(child, tmp_path):
    assert child("hangs", limit_s=1.0) == {"died": "killed after 1 s"}
    pid = int((tmp_path / "pid").read_text())
    for _ in range(100):  # until its new parent has buried it
        if not is_running(pid):
            return
        time.sleep(0.05)
    pytest.fail("what the child started still runs")


def is_running(pid):
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def test_a_child_has_the_cores_it_is_given(child):
    answer = child("cores", scale=10)
    assert answer["cores"] == 10
    assert answer["process_s"] > 0


def test_rows_are_kept_and_gone_on_from(tmp_path):
    path = tmp_path / "new" / "rows.json"
    first = Rows(path, SETTINGS)
    row = run_of("auto", (0.5, 1.0))
    first.add(row)
    again = Rows(path, SETTINGS)
    assert again.rows == [row]
    key = {name: row[name] for name in ("part", "graph", "mcm", "method", "seed")}
    assert again.get(**key) == row
    assert again.get(**{**key, "seed": 1}) is None
    (environment,) = json.loads(path.read_bytes())["environments"]
    assert environment["python"]
    with pytest.raises(InputError, match="made with"):
        Rows(path, {**SETTINGS, "seconds": 11.0})
    path.write_text("[]")
    with pytest.raises(InputError, match="no file of this benchmark"):
        Rows(path, SETTINGS)


def test_files_of_equal_settings_are_merged_and_of_two_rows_the_first_stays(tmp_path):
    a, b, c = (tmp_path / name for name in ("a.json", "b.json", "c.json"))
    Rows(a, SETTINGS).add(run_of("auto", (0.5, 1.0)))
    others = Rows(b, SETTINGS)
    others.missing["metis"] = "pymetis"
    others.add(run_of("auto", (0.5, 9.0)))
    others.add(run_of("slice", (0.5, 2.0)))
    Rows(c, {**SETTINGS, "threads": 2}).add(run_of("auto"))
    merged = Rows.merged([a, b], None)
    assert [(row["method"], final_s(row["history"])) for row in merged.rows] == [
        ("auto", 1.0),
        ("slice", 2.0),
    ]
    assert merged.missing == {"metis": "pymetis"}
    assert len(merged.environments) == 1
    with pytest.raises(InputError, match="made with"):
        Rows.merged([a, c], None)


def test_auto_is_warmed_by_seconds_of_the_same_that_leave_no_trace(monkeypatch):
    called, asked = [], []

    def noted(graph, mcm, *, method, time_limit_s, **rest):
        called.append((*asked[-1], time_limit_s))
        raise NothingFoundError("nothing")

    def method_of(method, policy):
        asked.append((method, policy))
        return iter

    monkeypatch.setattr(engine, "partition", noted)
    monkeypatch.setattr(engine, "method_of", method_of)
    for method in ("no-policy", "slice"):
        row = runs.by_method("darts", "mcm8", method, 2.0, 1, 0, time.time(), warm_s=1.0)
        assert row["notes"] == ["nothing"]
    assert called == [("auto", "none", 1.0), ("auto", "none", 2.0), ("slice", None, 2.0)]


def test_the_command_measures_once_shows_and_merges(tmp_path, monkeypatch, capsys):
    asked = []

    def answer(module, function, arguments, *, threads, limit_s):
        asked.append((function, arguments.get("method")))
        if arguments.get("method") == "clusters":
            return {"died": "killed after 1 s"}
        found = run_of(arguments["method"], (0.0, 2e-5), (1.0, 1e-5))
        names = ("history", "cold_history", "start_s", "compile_s")
        figures = {"bottleneck_s": 1e-5, "search_s": 1.0, "process_s": 5.0, "is_proven": False}
        return {**{name: found[name] for name in names}, **figures}

    monkeypatch.setattr(quality, "measure", answer)
    monkeypatch.setitem(rivals._PACKAGES, "metis", "no_such_package")
    path = tmp_path / "rows.json"
    what = ["--parts", "quality", "--graphs", "mobilenet-v2", "two-stream", "--mcm", "mcm8"]
    what += ["--methods", "auto", "clusters", "metis", "--json", str(path)]
    assert quality.main(what) == 0
    assert asked == [("by_method", "auto"), ("by_method", "clusters")]  # two-stream fits on no chip
    said = capsys.readouterr().out
    assert "metis is left out: the package no_such_package is missing" in said
    assert said.count("died") == 2
    assert "infeasible: " in said
    assert path.with_suffix(".txt").read_text().startswith("time to quality: 20 s")
    assert json.loads(path.read_bytes())["missing"] == {"metis": "no_such_package"}
    assert quality.main(what) == 0
    assert len(asked) == 2
    with pytest.raises(InputError, match="made with"):
        quality.main([*what, "--seconds", "3"])
    merged = ["--merge", str(path), "--json", str(tmp_path / "all.json")]
    assert quality.main([*merged, "--pictures", str(tmp_path)]) == 0
    assert (tmp_path / "time-to-quality.png").stat().st_size < 100_000
    assert len(json.loads((tmp_path / "all.json").read_bytes())["rows"]) == 4
    assert len(asked) == 2
