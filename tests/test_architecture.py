"""The layers: a module imports from its own floor or lower ones, and never in a circle."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "jaxpart"

# Lowest first. A package's name stands for everything in it that has no entry of its own.
FLOORS = (
    {"errors", "topological", "bitsets"},
    {"files", "environment", "parallel"},
    {"graph", "mcm", "manifest"},
    {"problem", "structure"},
    {"lattice", "lattice_walk", "intervals"},
    {"ingest", "device", "exact", "rows"},
    {"dataset", "links"},
    {"cost", "slicing", "probe", "ideals", "stages", "fewest"},
    {"clusters", "greedy", "bound", "feasibility"},
    {"projection", "sampling", "annealing"},
    {"verdicts", "result_file", "solver"},
    {"report"},
    {"picture"},
    {"result"},
    {"policy", "search"},
    {"progress", "arguments"},
    {"cli"},
    {"__init__"},
)


def modules():
    """Every module by its dotted name inside the package; a package by its own."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 1 else parts)
        found[name] = path
    return found


def is_for_types_only(node):
    return (
        isinstance(node, ast.If)
        and isinstance(node.test, ast.Name)
        and node.test.id == "TYPE_CHECKING"
    )


def imports_of(path, names):
    """The package's own modules that a file imports anywhere in it, functions included."""
    pending, found = [ast.parse(path.read_text())], set()
    while pending:
        node = pending.pop()
        if is_for_types_only(node):
            continue
        pending.extend(ast.iter_child_nodes(node))
        targets = []
        if isinstance(node, ast.Import):
            targets = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}: relative imports hide the layer"
            module = node.module or ""
            inner = [f"{module}.{alias.name}" for alias in node.names]
            targets = [t if t.removeprefix("jaxpart.") in names else module for t in inner]
        for target in targets:
            if target == "jaxpart":
                found.add("__init__")
            elif target.startswith("jaxpart."):
                found.add(target.removeprefix("jaxpart."))
    return found


def floor_of(name):
    for candidate in (name, name.split(".")[0]):
        for number, floor in enumerate(FLOORS):
            if candidate in floor:
                return number
    raise LookupError(f"{name} has no floor: give it one in FLOORS")


def graph_of_imports():
    names = modules()
    return {name: imports_of(path, names) for name, path in names.items()}


def circle(imports):
    """The modules along one circle of imports, or nothing."""
    state = {}

    def visit(name, trail):
        if state.get(name) == "done":
            return []
        if name in trail:
            return [*trail[trail.index(name) :], name]
        for other in sorted(imports.get(name, ())):
            if found := visit(other, [*trail, name]):
                return found
        state[name] = "done"
        return []

    for name in sorted(imports):
        if found := visit(name, []):
            return found
    return []


def upward(imports):
    return [
        f"{name} imports {other}"
        for name, others in sorted(imports.items())
        for other in sorted(others)
        if floor_of(other) > floor_of(name)
    ]


def test_a_module_without_a_floor_is_noticed():
    with pytest.raises(LookupError, match="attic has no floor"):
        floor_of("attic")


def test_no_module_imports_from_a_higher_floor():
    assert upward(graph_of_imports()) == []


def test_no_modules_import_each_other_in_a_circle():
    assert circle(graph_of_imports()) == []


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("from jaxpart.cost import evaluate", {"cost"}),
        ("from jaxpart import report", {"report"}),
        ("import jaxpart.search.engine as e", {"search.engine"}),
        ("def f():\n    from jaxpart.search import engine", {"search.engine"}),
        ("from jaxpart import Graph", {"__init__"}),
        ("if TYPE_CHECKING:\n    from jaxpart.result import Result", set()),
        ("import numpy", set()),
    ],
)
def test_imports_are_read_wherever_they_stand(tmp_path, source, expected):
    path = tmp_path / "module.py"
    path.write_text(source)

    assert imports_of(path, modules()) == expected


def test_an_upward_import_and_a_circle_are_noticed():
    assert upward({"graph": {"cost"}, "cost": {"graph"}}) == ["graph imports cost"]
    assert circle({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == ["b", "c", "b"]
    assert circle({"a": {"b", "c"}, "b": {"c"}, "c": set()}) == []


def test_importing_the_package_and_its_command_line_starts_no_jax():
    code = "import sys, jaxpart, jaxpart.cli; sys.exit('jax' in sys.modules)"

    process = subprocess.run([sys.executable, "-c", code], cwd=PACKAGE.parent, check=False)

    assert process.returncode == 0
