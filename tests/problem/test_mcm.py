"""Modules: what they refuse, what their files say, and where their links lead."""

import codecs
import dataclasses
import gzip
import itertools
import tempfile
from pathlib import Path

import msgspec
import networkx as nx
import pytest
from hypothesis import given

from jaxpart.errors import FileFormatError, InputError, MCMError
from jaxpart.problem.mcm import MCM, PRESETS, Chip, Constraints, MCMFile, load_mcm
from tests.support.strategies import mcms

CHIP = Chip(4e12, 200e9, 32 * 2**20)
MODULES = Path(__file__).parents[2] / "data" / "modules"

# fmt: off
CHIP_TOML = """
[[chips]]
count = {count}
peak_flops = 4e12
sram_bandwidth = 200e9
sram_bytes = 33554432
"""
LINKS_TOML = """
[links]
bandwidth = 8e9
"""
# fmt: on


def chain_toml(name, count):
    top = f'name = "{name}"\ntopology = "chain"\noverlap = true\nelement_bytes = 1\n'
    return top + CHIP_TOML.format(count=count) + LINKS_TOML


GOLDEN = {
    "mcm4": chain_toml("mcm4", 4),
    "mcm8": chain_toml("mcm8", 8),
    "mcm36": """
        name = "mcm36"
        topology = "chain"
        overlap = true
        element_bytes = 1
        memory_model = "full"
        [constraints]
        acyclic = true
        no_skip = true
        triangle = true
        memory = true
        [[chips]]
        count = 36
        peak_flops = 4e12
        sram_bandwidth = 200e9
        sram_bytes = 33554432
        speed = 1.0
        [links]
        bandwidth = 8e9
        """,
    "mcm64": chain_toml("mcm64", 64),
    "mesh6x6": 'name = "mesh6x6"\ntopology = "mesh"\nrows = 6\ncols = 6\noverlap = true\n'
    "element_bytes = 1\n" + CHIP_TOML.format(count=36) + LINKS_TOML,
    "mixed16": 'name = "mixed16"\ntopology = "chain"\noverlap = true\nelement_bytes = 1\n'
    "[[chips]]\ncount = 4\npeak_flops = 4e12\nsram_bandwidth = 200e9\nsram_bytes = 67108864\n"
    "speed = 2.0\n" + CHIP_TOML.format(count=12) + LINKS_TOML,
}


def module(**changes):
    fields = {"name": "m", "topology": "chain", "chips": (CHIP,) * 4, "link_bandwidth": 8e9}
    return MCM(**(fields | changes))


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_a_preset_is_what_its_file_would_say(tmp_path, name):
    path = tmp_path / "module.toml"
    path.write_text(GOLDEN[name])

    assert load_mcm(path) == load_mcm(name)
    assert load_mcm(name).name == name


def test_a_preset_with_two_kinds_of_chips_has_both():
    assert {chip.speed for chip in load_mcm("mixed16").chips} == {1.0, 2.0}


@pytest.mark.parametrize("path", sorted(MODULES.glob("*.toml")), ids=lambda path: path.stem)
def test_the_shipped_modules_load(path):
    assert load_mcm(path).name == path.stem


# fmt: off
BAD_MODULES = [
    ({"topology": "ring"}, "topology is 'ring', expected 'chain', 'host' or 'mesh'"),
    ({"memory_model": "none"}, "memory_model is 'none', expected 'full' or 'weights'"),
    ({"chips": ()}, "the module has no chips, expected at least one"),
    ({"chips": (CHIP, dataclasses.replace(CHIP, peak_flops=0))},
     "chip 1: peak_flops is 0.0, expected a positive, finite number"),
    ({"chips": (dataclasses.replace(CHIP, sram_bandwidth=-1),)}, "chip 0: sram_bandwidth is -1"),
    ({"chips": (dataclasses.replace(CHIP, sram_bytes=float("inf")),)}, "0: sram_bytes is inf"),
    ({"chips": (dataclasses.replace(CHIP, speed=float("nan")),)}, "chip 0: speed is nan"),
    ({"link_bandwidth": 0}, "links: bandwidth is 0.0"),
    ({"element_bytes": 0}, "element_bytes is 0"),
    ({"element_bytes": float("nan")}, "element_bytes is nan"),
    ({"element_bytes": 1e4}, "element_bytes is 10000.0"),
    ({"link_bandwidth": 1e308}, r"bandwidth is 1e\+308, .* finite number, 0.001 to 1e\+24"),
    ({"chips": (dataclasses.replace(CHIP, speed=1e-9),)}, "chip 0: speed is 1e-09"),
    ({"chips": (CHIP,) * 4097}, "the module has 4,097 chips, expected at most 4,096"),
    ({"rows": 2}, "rows and cols belong to a mesh, expected none here"),
    ({"topology": "host", "cols": 2}, "rows and cols belong to a mesh"),
    ({"topology": "mesh"}, "a mesh needs both rows and cols"),
    ({"topology": "mesh", "rows": 2}, "a mesh needs both rows and cols"),
    ({"topology": "mesh", "rows": 2, "cols": 3}, r"rows \* cols is 2 \* 3, expected 4, the number"),
    ({"topology": "mesh", "rows": -2, "cols": -2}, r"rows \* cols is -2 \* -2, expected 4"),
    ({"constraints": Constraints(acyclic=False)}, "acyclic is false, but the triangle rule needs"),
    ({"constraints": Constraints(acyclic=False, triangle=False)}, "but a chain needs it"),
    ({"topology": "host", "constraints": Constraints(acyclic=False)}, "the triangle rule needs it"),
]
# fmt: on


@pytest.mark.parametrize(("changes", "message"), BAD_MODULES)
def test_a_module_that_cannot_be_is_refused_by_its_field(changes, message):
    with pytest.raises(MCMError, match=message):
        module(**changes)


def test_dataflow_may_be_cyclic_where_no_rule_needs_it_otherwise():
    free = Constraints(acyclic=False, triangle=False)

    assert not module(topology="host", constraints=free).constraints.acyclic
    assert not module(topology="mesh", rows=2, cols=2, constraints=free).constraints.acyclic


MCM36 = GOLDEN["mcm36"]
CHIPS = "\n[[chips]]\npeak_flops = 1e12\nsram_bandwidth = 1e9\nsram_bytes = 1e6\n"
# fmt: off
BAD_FILES = [
    ("", FileFormatError, "missing required field `name`"),
    (MCM36.replace('name = "mcm36"', ""), FileFormatError, "missing required field `name`"),
    (MCM36.replace('topology = "chain"', ""), FileFormatError, "required field `topology`"),
    (MCM36.replace("overlap = true", ""), FileFormatError, "missing required field `overlap`"),
    (MCM36.replace("[links]", "").replace("bandwidth = 8e9", ""), FileFormatError,
     "missing required field `links`"),
    ('name = "m"\ntopology = "chain"\noverlap = true\n[links]\nbandwidth = 8e9', FileFormatError,
     "missing required field `chips`"),
    ('name = "m"\ntopology = "chain"\noverlap = true\nchips = []\n[links]\nbandwidth = 8e9',
     MCMError, "the module has no chips"),
    (MCM36.replace("peak_flops = 4e12", ""), FileFormatError,
     r"missing required field `peak_flops` - at `\$\.chips\[(0|\.\.\.)\]`"),
    (MCM36.replace("peak_flops = 4e12", 'peak_flops = "fast"'), FileFormatError,
     "Expected `float`, got `str`"),
    (MCM36.replace("peak_flops = 4e12", "peak_flops = -4e12"), MCMError, "0: peak_flops is -4"),
    (MCM36.replace("peak_flops = 4e12", "peak_flops = nan"), MCMError, "0: peak_flops is nan"),
    (MCM36.replace("sram_bytes = 33554432", "sram_bytes = inf"), MCMError, "sram_bytes is inf"),
    (MCM36.replace("count = 36", "count = 0"), MCMError, "table 0: count is 0, expected 1"),
    (MCM36.replace("count = 36", "count = 1000000000"), MCMError,
     "table 0: count is 1000000000, expected 1 or more, and at most 4,096 chips in all"),
    (MCM36.replace("count = 36", "count = 4096") + CHIPS, MCMError, "table 1: count is 1"),
    (MCM36.replace("count = 36", "count = " + "9" * 5000), FileFormatError, "thousands of digits"),
    (MCM36.replace("count = 36", "count = " + "9" * 4000), MCMError, "table 0: count is 999"),
    (MCM36.replace('"chain"', '"mesh"\nrows = ' + "9" * 4000 + "\ncols = 1"), MCMError, "rows"),
    (MCM36.replace('"mcm36"', "[" * 9000), FileFormatError, "nested too deep"),
    (MCM36.replace('"mcm36"', "{a=" * 3000), FileFormatError, "nested too deep"),
    ("a." * 6000 + "a = 1", FileFormatError, "a line is longer than 10,000 bytes"),
    (MCM36 + '"\\u001b[31m" = 1\n', FileFormatError, r"unknown field `\\x1b\[31m`"),
    (MCM36.replace("count = 36", "count = 1.5"), FileFormatError, "Expected `int`, got `float`"),
    (MCM36.replace("speed", "sped"), FileFormatError, "unknown field `sped`"),
    (MCM36.replace("memory = true", "memory = 1"), FileFormatError,
     r"Expected `bool`, got `int` - at `\$\.constraints\.memory`"),
    (MCM36.replace("triangle", "triangles"), FileFormatError, "unknown field `triangles`"),
    (MCM36.replace('"chain"', '"ring"'), FileFormatError, r"'ring' - at `\$\.topology`"),
    (MCM36.replace('"full"', '"half"'), FileFormatError, r"'half' - at `\$\.memory_model`"),
    (MCM36.replace("acyclic = true", "acyclic = false"), MCMError, "the triangle rule needs it"),
    (MCM36.replace("overlap = true", "overlap = true\nrows = 6"), MCMError, "belong to a mesh"),
    (MCM36.replace("overlap = true", "overlap = true\ncolour = 1"), FileFormatError,
     "`colour`; expected name, topology, overlap, chips, links, memory_model, constraints, "),
    (MCM36.replace("bandwidth = 8e9", "bandwidth = 0"), MCMError, "links: bandwidth is 0"),
    (MCM36.replace("overlap = true", "overlap = "), FileFormatError, "Invalid value .*line 4"),
    (MCM36.replace("[[chips]]", "[[chips]"), FileFormatError, "Expected .*line 12"),
    (b"name = '\xff'", FileFormatError, "is no utf-8 text .*, expected TOML in UTF-8"),
    (GOLDEN["mcm4"].encode("utf-16"), FileFormatError, "is UTF-16 text, expected TOML in UTF-8"),
    (GOLDEN["mcm4"].encode("utf-16-be"), FileFormatError, "is UTF-16 text, expected TOML in"),
    (gzip.compress(GOLDEN["mcm4"].encode(), mtime=0), FileFormatError, "is gzip, expected TOML"),
]
# fmt: on


@pytest.mark.parametrize(("content", "error", "message"), BAD_FILES)
def test_a_bad_file_is_refused_by_name_and_place(tmp_path, content, error, message):
    path = tmp_path / "module.toml"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())

    with pytest.raises(error, match=message) as caught:
        load_mcm(path)

    assert type(caught.value) is error
    assert str(caught.value).startswith(f"{path}: ")
    assert str(caught.value).isprintable()


def test_a_byte_order_mark_is_no_part_of_a_module(tmp_path):
    path = tmp_path / "module.toml"
    path.write_bytes(codecs.BOM_UTF8 + GOLDEN["mcm4"].encode())

    assert MCM.load(path) == load_mcm("mcm4")


def test_the_largest_module_can_be_described():
    mcm = module(chips=(CHIP,) * 4096)

    assert mcm.num_chips == 4096
    assert len(mcm.links) == 4095


def test_names_that_are_no_file_are_no_module():
    for name in ("", "x" * 5000, "a\0b", "\ud800"):
        with pytest.raises(InputError, match="is neither a module"):
            load_mcm(name)


def test_what_is_neither_a_preset_nor_a_file_lists_the_presets(tmp_path):
    with pytest.raises(InputError, match=r"'mcm5' is neither a module .*mcm36.* nor a TOML file"):
        load_mcm("mcm5")
    with pytest.raises(InputError, match=r"none\.toml: cannot be read"):
        load_mcm(tmp_path / "none.toml")


@given(mcms())
def test_a_module_survives_its_description(mcm):
    described = mcm.description()

    again = msgspec.convert(described, MCMFile).resolve()

    assert again == mcm
    assert again.description() == described
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "module.toml"
        path.write_bytes(_toml(described).encode())
        assert MCM.load(path) == mcm


def _toml(table):
    """A description as TOML: plain values first, then tables."""

    def text(key, value):
        return f"{key} = {str(value).lower() if isinstance(value, bool) else repr(value)}\n"

    plain = {k: v for k, v in table.items() if not isinstance(v, dict | list)}
    lines = [text(k, v) for k, v in plain.items()]
    for key, value in table.items():
        for part in value if isinstance(value, list) else [value]:
            if isinstance(part, dict):
                head = f"[[{key}]]\n" if isinstance(value, list) else f"[{key}]\n"
                lines += [head, *(text(k, v) for k, v in part.items())]
    return "".join(lines)


def test_the_hash_knows_everything_but_the_name():
    base = module()
    others = [
        module(topology="host"),
        module(topology="mesh", rows=2, cols=2),
        module(topology="mesh", rows=1, cols=4),
        module(chips=(CHIP,) * 5),
        module(chips=(CHIP, CHIP, CHIP, dataclasses.replace(CHIP, speed=2))),
        module(chips=(dataclasses.replace(CHIP, speed=2), CHIP, CHIP, CHIP)),
        module(link_bandwidth=9e9),
        module(overlap=False),
        module(memory_model="weights"),
        module(constraints=Constraints(memory=False)),
        module(element_bytes=1),
        module(element_bytes=2),
    ]

    assert module(name="other").sha256 == base.sha256
    assert module(link_bandwidth=8_000_000_000).sha256 == base.sha256
    assert module(element_bytes=1.0).sha256 == module(element_bytes=1).sha256
    assert len({base.sha256, *(other.sha256 for other in others)}) == len(others) + 1


@given(mcms(max_chips=12))
def test_routes_follow_links_and_are_shortest(mcm):
    links = nx.DiGraph()
    links.add_nodes_from(range(mcm.num_chips))
    links.add_edges_from(mcm.links)
    assert list(mcm.links) == sorted(set(mcm.links))
    for a, b in itertools.product(range(mcm.num_chips), repeat=2):
        route = mcm.route(a, b)
        if mcm.topology == "host" or a == b or (mcm.topology == "chain" and a > b):
            assert route == ()
            continue
        assert route[0][0] == a
        assert route[-1][1] == b
        assert all(links.has_edge(*link) for link in route)
        assert all(here[1] == there[0] for here, there in itertools.pairwise(route))
        assert len(route) == nx.shortest_path_length(links, a, b)


def test_a_route_on_a_mesh_changes_the_column_first():
    mesh = load_mcm("mesh6x6")

    assert mesh.route(1, 15) == ((1, 2), (2, 3), (3, 9), (9, 15))
    assert mesh.route(15, 1) == ((15, 14), (14, 13), (13, 7), (7, 1))
    assert len(mesh.links) == 2 * 2 * 6 * 5


def test_a_chain_has_a_link_between_neighbours_and_a_host_has_none():
    assert module().links == ((0, 1), (1, 2), (2, 3))
    assert module().route(1, 3) == ((1, 2), (2, 3))
    assert module(topology="host").links == ()


def test_a_module_is_hashable_and_cannot_be_changed():
    mcm = module()

    assert {mcm: 1}[module()] == 1
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(mcm, "overlap", False)  # noqa: B010 (an assignment is a type error)
