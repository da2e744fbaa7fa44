"""Results: figures derived from each other, the file, and what loading it anew does."""

import codecs
import dataclasses
import gzip
import json

import numpy as np
import pytest

from jaxpart.cost.greedy import baseline_s_of
from jaxpart.errors import FileFormatError, InputError
from jaxpart.problem.graph import Graph, Node, Tensor, Weight
from jaxpart.problem.mcm import MCM, Chip
from jaxpart.problem.problem import Problem
from jaxpart.results.file import read_assignment
from jaxpart.results.result import Result, SearchInfo, score

MIB = 2**20
CHIP = Chip(peak_flops=1e12, sram_bandwidth=100e9, sram_bytes=8 * MIB)
CHAIN = MCM("tiny3", "chain", (CHIP,) * 3, link_bandwidth=1e9, element_bytes=1)

KEYS = {
    "": "format version graph graph_sha256 mcm assignment valid bottleneck_s throughput_per_s "
    "baseline_s improvement lower_bound_s bound_method gap stages links search",
    "stages": "chip compute_s in_s out_s memory_bytes",
    "links": "from to busy_s",
    "search": "method samples wall_s seed",
}


def path_graph(count=6, flops=1e8, element_bytes=1, name="path"):
    nodes = tuple(Node(f"n{v}", "dot_general", flops * (1 + v % 3), 1e3) for v in range(count))
    tensors = tuple(Tensor(v, 2e5 + v, (v + 1,)) for v in range(count - 1))
    weights = tuple(Weight(MIB / 4, (v,)) for v in range(count))
    return Graph(nodes, tensors, weights, name, element_bytes)


def make_result(graph=None, mcm=CHAIN, assignment=(0, 0, 1, 1, 2, 2), **changes):
    problem = Problem.build(graph or path_graph(), mcm)
    chips = np.array(assignment)
    costs = score(problem, chips)
    assert costs.valid
    fields = {
        "baseline_s": baseline_s_of(problem),
        "lower_bound_s": 0.9 * float(costs.bottleneck_s),
        "bound_method": "ideals",
        "notes": (),
        "search": SearchInfo("slice", 1234, 0.5, 7),
        **changes,
    }
    return Result(problem, chips, costs, **fields)


@pytest.fixture
def saved(tmp_path):
    path = tmp_path / "a.result.json"
    make_result().save(path)
    return path


def edit(path, change):
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def test_derived_figures_follow_from_the_bottleneck():
    result = make_result(baseline_s=6e-4)
    # Chip 1 runs n2 (3e8 FLOP) and n3 (1e8), chip 2 n4 (2e8) and n5 (3e8) at 1e12 FLOP/s.
    assert result.bottleneck_s == pytest.approx(5e-4)
    assert result.throughput_per_s == pytest.approx(2000)
    assert result.gap == pytest.approx(1 / 9)
    assert result.improvement == pytest.approx(1.2)
    assert result.chips_used == 3


def test_figures_are_null_where_the_bottleneck_is_zero(tmp_path):
    free = Graph((Node("only", "constant", 0, 0),), name="free")
    result = make_result(free, assignment=(0,))
    result.save(tmp_path / "free.json")

    stored = json.loads((tmp_path / "free.json").read_text())

    assert stored["bottleneck_s"] == 0
    assert stored["throughput_per_s"] is stored["improvement"] is stored["gap"] is None
    assert Result.load(tmp_path / "free.json", free).gap is None


def test_the_file_has_exactly_the_keys_of_its_format(saved):
    stored = json.loads(saved.read_text())

    assert set(stored) == set(KEYS[""].split())
    assert (stored["format"], stored["version"], stored["valid"]) == ("jaxpart-result", 1, True)
    assert {key for stage in stored["stages"] for key in stage} == set(KEYS["stages"].split())
    assert {key for link in stored["links"] for key in link} == set(KEYS["links"].split())
    assert set(stored["search"]) == set(KEYS["search"].split())
    assert stored["assignment"] == {"n0": 0, "n1": 0, "n2": 1, "n3": 1, "n4": 2, "n5": 2}
    assert [stage["chip"] for stage in stored["stages"]] == [0, 1, 2]
    assert [(link["from"], link["to"]) for link in stored["links"]] == [(0, 1), (1, 2)]


def test_a_loaded_result_equals_the_saved_one(saved, tmp_path):
    result = make_result()
    again = Result.load(saved, path_graph())
    again.save(tmp_path / "again.json")

    assert (tmp_path / "again.json").read_bytes() == saved.read_bytes()
    assert again.search == result.search
    assert again.notes == ("the lower bound (ideals) is the file's, not proven again",)


def test_stored_figures_are_not_trusted(saved):
    def lie(content):
        content["bottleneck_s"] = 2.0
        content["improvement"] = content["baseline_s"] = 100
        content["lower_bound_s"] = content["gap"] = 1.0  # above the true bottleneck: no bound

    edit(saved, lie)
    again, result = Result.load(saved, path_graph()), make_result()

    assert again.bottleneck_s == result.bottleneck_s
    assert again.improvement == result.improvement
    assert again.lower_bound_s < result.bottleneck_s
    assert again.bound_method in ("mean load", "largest node")
    assert "the file says 2e+06 us for the bottleneck, it is 500 us" in again.notes
    assert "the file says 1e+06 us for the lower bound, the bottleneck is 500 us" in again.notes


# The path: n0..n5 take 1, 2, 3, 1, 2, 3 e-4 s, two on each chip; T is 500 us, 2000 inferences/s.
# The greedy walk closes chip 0 after n2, at 600 us.
# Chip 1 receives tensor 1 (200,001 bytes) and sends tensor 3 (200,003) at 1e9 bytes/s; it holds two
# weights of 256 KiB, twice its boundary buffers, and at most tensors 2 and 3 at once.
@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (
            lambda c: c.update(throughput_per_s=3000),
            "the file says 3000 inferences/s for the throughput, it is 2000 inferences/s",
        ),
        (
            lambda c: c.update(throughput_per_s=None),
            "the file says none for the throughput, it is 2000 inferences/s",
        ),
        (
            lambda c: c.update(throughput_per_s=c["throughput_per_s"] * (1 + 1e-8)),
            "the file says 2000.00002 inferences/s for the throughput, it is 2000 inferences/s",
        ),
        (
            lambda c: c.update(improvement=7.5),
            "the file says 7.5x for the improvement, it is 1.2x",
        ),
        (
            lambda c: c.update(improvement=None),
            "the file says none for the improvement, it is 1.2x",
        ),
        (
            lambda c: c.update(baseline_s=1e-3),
            "the file says 1000 us for the baseline, it is 600 us",
        ),
        (lambda c: c.update(baseline_s=None), "the file says none for the baseline, it is 600 us"),
        (
            lambda c: c.update(valid=False),
            "the file says not valid, the partition is valid",
        ),
        (
            lambda c: c["stages"][1].update(compute_s=1e-5),
            "the file says 1e-05 for compute_s of chip 1, it is 0.0004",
        ),
        (
            lambda c: c["stages"][1].update(in_s=0),
            "the file says 0 for in_s of chip 1, it is 0.000200001",
        ),
        (
            lambda c: c["stages"][1].update(out_s=1),
            "the file says 1 for out_s of chip 1, it is 0.000200003",
        ),
        (
            lambda c: c["stages"][1].update(memory_bytes=5),
            "the file says 5 for memory_bytes of chip 1, it is 1.7243e+06",
        ),
        (
            lambda c: c["links"][1].update(busy_s=0.5),
            "the file says 0.5 for busy_s of link 1 -> 2, it is 0.000200003",
        ),
        (
            lambda c: [stage.update(in_s=9) for stage in c["stages"]],
            "the file says 9 for in_s of chip 0, it is 0 (and 2 more figures of chips and links "
            "differ)",
        ),
    ],
)
def test_each_figure_that_contradicts_the_partition_is_noted(saved, change, expected):
    edit(saved, change)

    notes = Result.load(saved, path_graph()).notes

    assert notes == (expected, "the lower bound (ideals) is the file's, not proven again")


def test_figures_of_another_graph_or_module_are_not_compared(saved):
    edit(saved, lambda c: c.update(throughput_per_s=3000, improvement=9))

    notes = Result.load(saved, path_graph(flops=2e8, name="heavier")).notes

    assert notes == ("made for another graph (path); scored on heavier",)


def test_links_may_be_listed_in_any_order(saved):
    edit(saved, lambda c: c["links"].reverse())

    assert len(Result.load(saved, path_graph()).notes) == 1


def test_another_graph_with_the_same_names_is_scored_anew(saved):
    again = Result.load(saved, path_graph(flops=2e8, name="heavier"))

    assert again.bottleneck_s == pytest.approx(1e-3)
    assert again.bound_method != "ideals"
    assert again.notes == ("made for another graph (path); scored on heavier",)


def test_another_module_is_scored_anew(saved):
    slow = dataclasses.replace(
        CHAIN, name="slow", chips=(dataclasses.replace(CHIP, speed=0.5),) * 3
    )
    again = Result.load(saved, path_graph(), slow)

    assert again.bottleneck_s == pytest.approx(1e-3)
    assert again.notes == ("made for another module (tiny3); scored on slow",)


def test_the_same_module_under_another_name_is_the_same(saved):
    again = Result.load(saved, path_graph(), dataclasses.replace(CHAIN, name="renamed"))

    assert again.bound_method == "ideals"


def test_the_hash_is_of_the_graph_in_the_element_size_of_the_module(tmp_path):
    in_float32 = path_graph(element_bytes=4)
    make_result(in_float32).save(tmp_path / "r.json")

    again = Result.load(tmp_path / "r.json", in_float32)

    assert not any("another graph" in note for note in again.notes)


def test_other_node_names_are_refused(saved):
    with pytest.raises(
        InputError, match=r"a\.result\.json: .* 7 nodes of path, but 'n6' is missing"
    ):
        Result.load(saved, path_graph(7))
    with pytest.raises(InputError, match=r"'n5' is no node of it \(0 missing, 1 unknown\)"):
        Result.load(saved, path_graph(5))


def test_an_assignment_that_is_not_valid_is_refused_as_a_result_but_can_be_read(saved):
    edit(saved, lambda content: content["assignment"].update(n0=2))

    with pytest.raises(
        InputError, match=r"not valid .*acyclic dataflow: 1 of 5 edges flow backward"
    ):
        Result.load(saved, path_graph())
    assert read_assignment(saved, path_graph(), CHAIN).tolist() == [2, 0, 1, 1, 2, 2]


def test_plain_json_is_a_partition_too(tmp_path):
    graph = Graph((Node("format", "add", 1, 1), Node("b", "add", 1, 1)))
    path = tmp_path / "plain.json"
    path.write_text('{"b": 1, "format": 0}')

    assert read_assignment(path, graph, CHAIN).tolist() == [0, 1]
    with pytest.raises(FileFormatError, match="expected 'jaxpart-result'"):
        Result.load(path, graph)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("", "the file is empty"),
        ('{"n0": 0', "truncated"),
        ("[0, 1]", "Expected `object`"),
        ('{"n0": -1}', "'n0' is on -1, expected a chip number"),
        ('{"n0": 1.5}', "'n0' is on 1.5, expected a chip number"),
        ('{"n0": true}', "'n0' is on True, expected a chip number"),
        ('{"n0": 0, "n0": 1}', "'n0' stands twice"),
        ('{"format": "other"}', "format"),
        ("\xff", "expected a result or a partition"),
        ('{"n0\xff": 0}', "is no utf-8 text"),
        ('{"n0": ' + "9" * 5000 + "}", "out of range"),
        ('{"n0": ' + "9" * 4000 + "}", "'n0' is on '999"),
        ('{"n0": ' + "[" * 3000 + "}", "nested too deep"),
        ('{"n0": {"format": ' + "[" * 900 + "]" * 900 + "}}", "'n0' is on [("),
        ('{"n0": NaN}', "malformed"),
        ('{"n0": 1e999}', "out of range"),
        ('{"\\ud800": 0}', "expected a result or a partition"),
        ('{"\\u001b[31m": -1}', r"'\x1b[31m' is on -1"),
        ('{"\x7f": -1}', r"'\x7f' is on -1"),
        ('{"' + "x" * 5000 + '": -1}', "xxx...xxx"),
    ],
)
def test_a_broken_partition_is_refused(tmp_path, content, expected):
    path = tmp_path / "broken.json"
    path.write_bytes(content.encode("latin-1"))

    with pytest.raises(FileFormatError) as refusal:
        read_assignment(path, path_graph(), CHAIN)
    assert str(refusal.value).startswith(str(path))
    assert expected in str(refusal.value)
    assert str(refusal.value).isprintable()
    assert len(str(refusal.value)) < 1000


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda c: c.update(version=2), "$.version"),
        (lambda c: c.update(extra=1), "unknown field `extra`"),
        (lambda c: c.pop("gap"), "missing required field `gap`"),
        (lambda c: c["stages"][1].pop("in_s"), "$.stages[1]"),
        (lambda c: c["links"][0].update(weight=1), "$.links[0]"),
        (lambda c: c["search"].update(seed="x"), "$.search.seed"),
        (lambda c: c["stages"].pop(), "expected one for each chip 0 to 2"),
        (lambda c: c["links"].pop(), "expected the 2 links"),
        (lambda c: c["search"].update(samples=-1), "$.search.samples"),
        (lambda c: c["search"].update(samples=10**30), "$.search.samples"),
        (lambda c: c["search"].update(seed=10**30), "$.search.seed"),
        (lambda c: c["search"].update(wall_s=1e300), "$.search.wall_s"),
        (lambda c: c.update(bottleneck_s=float("nan")), "malformed"),
        (lambda c: c.update({"\x1b[31m": 1}), r"unknown field `\x1b[31m`"),
        (lambda c: c["mcm"]["chips"][0].update(count=10**9), "mcm: chips table 0: count is 10000"),
        (lambda c: c["mcm"]["links"].update(bandwidth=1e308), "mcm: links: bandwidth is 1e+308"),
        (lambda c: c["mcm"].update(topology="mesh", rows=10**20, cols=10**20), "mcm: rows * cols"),
        *[
            (lambda c, key=key: c.update({key: -1e-3}), f"Expected `float` >= 0.0 - at `$.{key}`")
            for key in (
                *("bottleneck_s", "throughput_per_s", "baseline_s", "improvement"),
                *("lower_bound_s", "gap"),
            )
        ],
        *[
            (lambda c, key=key: c["stages"][1].update({key: -1.0}), f"$.stages[1].{key}")
            for key in ("compute_s", "in_s", "out_s", "memory_bytes")
        ],
        (lambda c: c["links"][0].update(busy_s=-1.0), "$.links[0].busy_s"),
        *[
            (lambda c, value=value: c.update(gap=value), "malformed")
            for value in (float("nan"), float("inf"))
        ],
        (
            lambda c: c.update(lower_bound_s=6e-4, gap=0),
            "lower_bound_s is 0.0006, expected at most bottleneck_s, 0.0005",
        ),
        (
            lambda c: c.update(gap=0),
            "gap is 0, expected bottleneck_s / lower_bound_s - 1, 0.11",
        ),
        (
            lambda c: c.update(gap=None),
            "gap is none, expected bottleneck_s / lower_bound_s",
        ),
        (lambda c: c.update(lower_bound_s=0), "lower_bound_s - 1, none"),
        (lambda c: c.update(lower_bound_s=1e-320), "gap is 0.111111, expected"),
        (lambda c: c.update(bottleneck_s=1.0), "gap is 0.111111, expected"),
        (lambda c: c["mcm"].update(topology="ring"), "$.mcm.topology"),
        (lambda c: c["mcm"].update(chips=[]), "mcm: the module has no chips"),
        (lambda c: c.update(assignment=[0, 1]), "assignment: expected an object"),
        (lambda c: c["assignment"].update(n3=7), "'n3' is on chip 7, but tiny3 has chips 0 to 2"),
    ],
)
def test_a_result_file_that_breaks_its_schema_is_refused(saved, change, expected):
    edit(saved, change)

    with pytest.raises(InputError) as refusal:
        Result.load(saved, path_graph())
    assert str(refusal.value).startswith(str(saved))
    assert expected in str(refusal.value)


HOSTILE = "\x1b]0;a\x07b\n$x_{$ \\frac\u202e"
ESCAPED = r"\x1b]0;a\x07b\n$x_{$ \frac\u202e"


def test_names_reach_the_summary_and_the_picture_escaped_and_as_they_are(tmp_path):
    graph = path_graph(name=HOSTILE)
    mcm = dataclasses.replace(CHAIN, name="y" * 5000)
    result = make_result(graph, mcm, bound_method="\x1b[1m$_{", notes=("see \x1b[2J",))

    lines = result.summary().split("\n")
    assert lines[0].startswith(f"{ESCAPED}: 6 nodes")
    assert lines[1].startswith("y" * 52 + "..." + "y" * 25 + ": 3 chips")
    assert all(line.isprintable() for line in lines)
    assert r"(\x1b[1m$_{)" in result.summary()
    assert r"see \x1b[2J" in result.summary()
    # An SVG says in comments what it draws letter by letter; a formula has none.
    for kind in ("svg", "png", "pdf"):
        result.plot(tmp_path / f"p.{kind}")
    picture = (tmp_path / "p.svg").read_text()
    assert f"<!-- {ESCAPED} on yyy" in picture
    assert r"(\x1b[1m$_{) -->" in picture


def test_names_survive_the_file_raw(tmp_path):
    make_result(path_graph(name=HOSTILE)).save(tmp_path / "r.json")

    assert json.loads((tmp_path / "r.json").read_text())["graph"] == HOSTILE


def test_letters_that_the_font_lacks_are_no_warning(tmp_path, recwarn):
    make_result(path_graph(name="层")).plot(tmp_path / "p.png")

    assert not [warning for warning in recwarn if "Glyph" in str(warning.message)]


def test_a_file_that_cannot_be_written_is_said_so(tmp_path):
    with pytest.raises(InputError, match="cannot write here"):
        make_result().save(tmp_path / "nowhere" / "r.json")


def test_a_byte_order_mark_is_no_part_of_a_result_or_a_partition(saved, tmp_path):
    saved.write_bytes(codecs.BOM_UTF8 + saved.read_bytes())
    (tmp_path / "plain.json").write_bytes(codecs.BOM_UTF8 + b'{"a": 1}')

    assert Result.load(saved, path_graph()).bottleneck_s == pytest.approx(5e-4)
    graph = Graph((Node("a", "add", 1, 1),))
    assert read_assignment(tmp_path / "plain.json", graph, CHAIN).tolist() == [1]


def test_a_result_in_another_encoding_or_compressed_is_called_so(saved):
    text = saved.read_text()
    for content, kind in ((text.encode("utf-16"), "UTF-16 text"), (gzip.compress(b"{}"), "gzip")):
        saved.write_bytes(content)
        with pytest.raises(FileFormatError, match=f"json: is {kind}, expected JSON in UTF-8"):
            Result.load(saved, path_graph())


def test_saving_replaces_the_old_file_whole(saved):
    saved.write_text("old")
    make_result().save(saved)

    assert json.loads(saved.read_text())["version"] == 1
    assert [path.name for path in saved.parent.iterdir()] == [saved.name]
