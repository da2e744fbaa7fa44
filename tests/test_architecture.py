"""The house: who may import whom, and what never starts JAX. Each rule fails once in a test below.

Imports are read from the source, wherever they stand: inside functions, and under `TYPE_CHECKING`.
"""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "jaxpart"

# From bottom to top: a room imports from itself and from rooms above it in this list.
ROOMS = (
    ("text",),
    ("errors",),
    ("files", "environment"),
    ("problem",),
    ("ingest",),
    ("datasets",),
    ("cost",),
    ("splitting",),
    ("bounds",),
    ("solvers",),
    ("runtime",),
    ("results",),
    ("methods",),
    ("export",),
    ("portfolio",),
    ("split_search",),
    ("engine",),
    ("sweep",),
    ("policies",),
    ("arguments",),
    ("commands",),
    ("cli",),
    ("__main__",),
    ("__init__",),
)
# The families of methods, likewise.
FAMILIES = ("repair", "clusters", "orders", "labels", "exact", "annealing", "policy")
# Rooms and modules that never import JAX, themselves or through others.
WITHOUT_JAX = ("problem", "bounds", "solvers", "cost.host", "cost.stage", "runtime.worker")
WITHOUT_JAX += (
    "methods.clusters.task",
    "export.running.run",
    "runtime.pool",
    "datasets",
    "splitting",
    "arguments",
    "commands",
    "cli",
    "__main__",
    "__init__",
)


def modules():
    """Path by dotted name inside the package; a package by its own name."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 1 else parts)
        found[name] = path
    return found


def imports_of(path, names):
    """The package's own modules that a file imports, anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        targets = []
        if isinstance(node, ast.Import):
            targets = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}: relative imports hide the room"
            module = node.module or ""
            inner = [f"{module}.{alias.name}" for alias in node.names]
            targets = [t if t.removeprefix("jaxpart.") in names else module for t in inner]
        for target in targets:
            if target == "jaxpart":
                found.add("__init__")
            elif target.startswith("jaxpart."):
                found.add(target.removeprefix("jaxpart."))
    return found


def graph_of_imports():
    names = modules()
    return {name: imports_of(path, names) for name, path in names.items()}


def level_of(name):
    room = name.split(".")[0]
    for level, rooms in enumerate(ROOMS):
        if room in rooms:
            return level
    raise LookupError(f"{name} is in no room: give it one in ROOMS")


def upward(imports):
    """Imports of a higher room, or of another one on the same level."""
    return [
        f"{name} imports {other}"
        for name, others in sorted(imports.items())
        for other in sorted(others)
        if name.split(".")[0] != other.split(".")[0] and level_of(other) >= level_of(name)
    ]


def family_of(name):
    parts = name.split(".")
    return parts[1] if parts[0] == "methods" and len(parts) > 1 else None


def upward_families(imports):
    """Imports of a family of methods by one that stands before it."""
    found = []
    for name, others in sorted(imports.items()):
        for other in sorted(others):
            one, two = family_of(name), family_of(other)
            if one is None or two is None or one == two:
                continue
            if FAMILIES.index(two) > FAMILIES.index(one):
                found.append(f"{name} imports {other}")
    return found


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


def test_every_module_has_a_room_and_every_room_a_module():
    rooms = {name.split(".")[0] for name in modules()}

    assert rooms == {room for level in ROOMS for room in level}
    assert {family_of(name) for name in modules()} - {None} == set(FAMILIES)


def test_no_module_imports_from_a_higher_room():
    assert upward(graph_of_imports()) == []


def test_no_family_of_methods_imports_a_later_one():
    assert upward_families(graph_of_imports()) == []


def test_no_modules_import_each_other_in_a_circle():
    assert circle(graph_of_imports()) == []


def test_a_module_without_a_room_is_noticed():
    with pytest.raises(LookupError, match="attic is in no room"):
        level_of("attic")


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("from jaxpart.cost.evaluate import evaluate", {"cost.evaluate"}),
        ("from jaxpart.results import report", {"results.report"}),
        ("import jaxpart.runtime.state as s", {"runtime.state"}),
        ("def f():\n    from jaxpart.runtime import state", {"runtime.state"}),
        ("from jaxpart import Graph", {"__init__"}),
        (
            "if TYPE_CHECKING:\n    from jaxpart.results.result import Result",
            {"results.result"},
        ),
        ("import numpy", set()),
    ],
)
def test_imports_are_read_wherever_they_stand(tmp_path, source, expected):
    path = tmp_path / "module.py"
    path.write_text(source)

    assert imports_of(path, modules()) == expected


def test_an_import_of_a_higher_room_is_noticed():
    assert upward({"problem.graph": {"cost.host"}, "cost.host": {"problem.graph"}}) == [
        "problem.graph imports cost.host"
    ]


def test_an_import_of_a_later_family_is_noticed():
    imports = {
        "methods.orders.search": {"methods.policy.ppo", "methods.clusters.task"},
        "methods.policy.ppo": {"methods.orders.search"},
    }

    assert upward_families(imports) == ["methods.orders.search imports methods.policy.ppo"]


def test_a_circle_is_noticed():
    assert circle({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == ["b", "c", "b"]
    assert circle({"a": {"b", "c"}, "b": {"c"}, "c": set()}) == []


def imported_with(names):
    """What starts when a fresh interpreter imports the modules: jax or not."""
    lines = ["import sys, importlib"]
    for name in names:
        module = "jaxpart" if name == "__init__" else f"jaxpart.{name}"
        lines += [f"importlib.import_module({module!r})"]
        lines += [f"assert 'jax' not in sys.modules, {module!r}"]
    command = [sys.executable, "-c", "\n".join(lines)]
    return subprocess.run(command, cwd=PACKAGE.parent, check=False, capture_output=True, text=True)


def test_no_jax_starts_where_none_may():
    chosen = [
        name
        for name in modules()
        if any(name == marked or name.startswith(f"{marked}.") for marked in WITHOUT_JAX)
    ]
    for marked in WITHOUT_JAX:
        assert any(f"{name}.".startswith(f"{marked}.") for name in chosen), marked

    process = imported_with(chosen)

    assert process.returncode == 0, process.stderr


def test_jax_that_starts_is_noticed():
    process = imported_with(["problem", "cost.device"])

    assert process.returncode == 1
    assert "jaxpart.cost.device" in process.stderr


def reached_from(name, imports):
    """All modules that a module imports, itself or through others, functions included."""
    pending, found = [name], set()
    while pending:
        for other in imports.get(pending.pop(), ()):
            if other not in found:
                found.add(other)
                pending.append(other)
    return found


def jax_at_run_time(imports, users):
    """Modules of rooms without JAX from which a module that imports JAX is reached."""
    rooms = ("problem", "bounds", "solvers")
    return [
        f"{name} reaches {other}"
        for name in sorted(imports)
        if name.split(".")[0] in rooms
        for other in sorted({name} | reached_from(name, imports))
        if other in users
    ]


def jax_users():
    """The modules that import JAX, at any place."""
    found = set()
    for name, path in modules().items():
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            if any(one.split(".")[0] in ("jax", "flax", "optax", "jraph") for one in names):
                found.add(name)
    return found


def test_rooms_without_jax_reach_none_at_run_time_either():
    users = jax_users()
    assert {"cost.evaluate", "cost.device"} <= users

    assert jax_at_run_time(graph_of_imports(), users) == []


def test_jax_behind_another_module_is_noticed():
    imports = {"solvers.repair": {"cost.rows"}, "cost.rows": {"cost.device"}, "cost.device": set()}

    assert jax_at_run_time(imports, {"cost.device"}) == ["solvers.repair reaches cost.device"]


def test_the_names_of_the_package_are_loaded_on_first_use():
    code = (
        "import sys, jaxpart; assert 'jax' not in sys.modules; "
        "missing = [n for n in jaxpart.__all__ if getattr(jaxpart, n, None) is None]; "
        "sys.exit(str(missing) if missing else 0)"
    )

    process = subprocess.run([sys.executable, "-c", code], cwd=PACKAGE.parent, check=False)

    assert process.returncode == 0
