"""The rooms of the package stand on floors, and a room imports only from floors below it.

Read from the source with `ast`, so that imports inside functions count and nothing has to run.
"""

from __future__ import annotations

import ast
import importlib
import subprocess
import sys
import types
from collections.abc import Iterator
from pathlib import Path

import pytest

import jaxrnn

ROOT = Path(__file__).parents[1] / "jaxrnn"

FLOORS = {
    room: floor
    for floor, rooms in enumerate(
        (
            (
                "typing",
                "checks",
                "annotations",
                "files",
                "jaxprs",
                "contract",
                "batching",
                "steps",
                "devices",
                "versions",
            ),
            ("cells", "unrolling", "analysis", "tasks"),
            ("layers",),
            ("models",),
            ("training", "plot", "report", "interop"),
            ("experiments",),
            ("claims",),
            ("cli",),
            ("__main__",),
        )
    )
    for room in rooms
}


def modules(root: Path) -> dict[str, Path]:
    """The dotted names of all modules below `root`, with their files."""
    found = {}
    for path in sorted(root.rglob("*.py")):
        parts = [root.name, *path.relative_to(root).with_suffix("").parts]
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imported(name: str, path: Path, package: str) -> Iterator[str]:
    """The modules of `package` that a module imports, as dotted names; the bare package included."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            for alias in node.names:
                # `import package.room` binds the name of the package: as good as all of it.
                yield alias.name if alias.asname else alias.name.split(".")[0]
        elif isinstance(node, ast.ImportFrom):
            source = node.module or ""
            if node.level:
                here = name.split(".") + ([""] if path.name == "__init__.py" else [])
                source = ".".join(filter(None, [*here[: -node.level], source]))
            if source == package:
                yield from (f"{package}.{alias.name}" for alias in node.names)
            else:
                yield source


def breaches(root: Path) -> list[str]:
    """Every import that a floor does not allow, and every room without a floor."""
    found, package = [], root.name
    for name, path in modules(root).items():
        if name == package:  # the top gathers the public names from all floors
            continue
        room = name.split(".")[1]
        if room not in FLOORS:
            found.append(f"{name}: {room} stands on no floor")
            continue
        for other in imported(name, path, package):
            if other.split(".")[0] != package:
                continue
            below = other.split(".")[1] if "." in other else package
            if below not in FLOORS:
                found.append(f"{name} imports {other}, which is no room")
            elif below != room and FLOORS[below] >= max(FLOORS[room], 1):  # the ground is one room
                found.append(f"{name} imports {other}, which is not below it")
    return found


def test_every_room_imports_only_from_below():
    assert breaches(ROOT) == []


@pytest.mark.parametrize(
    ("room", "line"),
    [
        ("cells", "from jaxrnn.unrolling import unroll"),
        ("cells", "from jaxrnn.models.classifier import SequenceClassifier"),
        ("analysis", "from jaxrnn import unroll"),
        ("tasks", "from jaxrnn import LSTMCell"),
        ("steps", "from jaxrnn.cells import LSTMCell"),
        ("unrolling", "import jaxrnn"),
        ("unrolling", "import jaxrnn.typing"),
        ("unrolling", "import jaxrnn.cells as cells"),
        ("training", "def f():\n    from jaxrnn.cli import main"),
        ("cells", "from ..models import SequenceClassifier"),
        ("cells", "from .. import models"),
        ("attic", "import jax"),
    ],
)
def test_a_breach_is_seen(tmp_path, room, line):
    module = tmp_path / "jaxrnn" / room / "module.py"
    module.parent.mkdir(parents=True)
    module.write_text(line)
    assert len(breaches(tmp_path / "jaxrnn")) == 1


@pytest.mark.parametrize(
    ("room", "line"),
    [
        ("cells", "from jaxrnn import checks, typing"),
        ("steps", "from jaxrnn.typing import Step"),
        ("cells", "from jaxrnn.cells.base import RecurrentCell"),
        ("cells", "from . import initializers"),
        ("cells", "from .base import RecurrentCell"),
        ("cells", '"""\n>>> import jaxrnn\n"""'),
        ("models", "from jaxrnn.layers import RNN"),
        ("cli", "from jaxrnn.experiments import comparison"),
        ("unrolling", "import jaxrnn.typing as words"),
        ("unrolling", "import jax"),
    ],
)
def test_what_is_allowed_is_not_a_breach(tmp_path, room, line):
    module = tmp_path / "jaxrnn" / room / "module.py"
    module.parent.mkdir(parents=True)
    module.write_text(line)
    assert breaches(tmp_path / "jaxrnn") == []


def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


def has_all(path: Path) -> bool:
    return any(
        isinstance(node, ast.Assign)
        and any(isinstance(target, ast.Name) and target.id == "__all__" for target in node.targets)
        for node in tree_of(path).body
    )


PUBLIC = {
    name: path
    for name, path in modules(ROOT).items()
    if not name.split(".")[-1].startswith("_") or name.endswith("__main__")
}


def test_every_public_module_opens_with_a_docstring():
    assert [name for name, path in PUBLIC.items() if not ast.get_docstring(tree_of(path))] == []


@pytest.mark.parametrize("name", [name for name, path in PUBLIC.items() if has_all(path)])
def test_every_name_of_all_exists(name):
    module = importlib.import_module(name)
    assert [entry for entry in module.__all__ if not hasattr(module, entry)] == []
    assert len(set(module.__all__)) == len(module.__all__)


def test_no_module_is_a_drawer_for_anything():
    assert [name for name in modules(ROOT) if name.split(".")[-1] in ("util", "utils")] == []


# What `import jaxrnn` costs.

_HEAVY = ("jax", "matplotlib", "orbax", "optax", "tyro", "rich", "scipy.optimize", "statsmodels")


def _loaded(code: str) -> set[str]:
    """The heavy packages that a fresh process has loaded after a line of code."""
    ask = f"import sys; {code}; print(*(name for name in {_HEAVY!r} if name in sys.modules))"
    done = subprocess.run([sys.executable, "-c", ask], capture_output=True, text=True, check=True)
    return set(done.stdout.splitlines()[-1].split())


@pytest.mark.parametrize(
    "code",
    [
        "import jaxrnn",
        "from jaxrnn.cli import main; main(['--help'])",
        "from jaxrnn.cli import main; main(['trian'])",
    ],
)
def test_nothing_is_imported_before_it_is_used(code):
    assert _loaded(code) == set()


def test_cells_and_layers_import_no_more_than_flax_does():
    core = _loaded("import jaxrnn; jaxrnn.GRUCell, jaxrnn.unroll, jaxrnn.RNN")
    assert core <= _loaded("from flax import nnx")


def test_every_public_name_is_there_and_listed_once():
    assert sorted(set(jaxrnn.__all__)) == dir(jaxrnn)
    assert len(jaxrnn.__all__) == len(set(jaxrnn.__all__))
    for name in jaxrnn.__all__:
        assert getattr(jaxrnn, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'no_such'"):
        jaxrnn.no_such  # noqa: B018
    source = ast.parse((ROOT / "__init__.py").read_text())
    (block,) = (node for node in source.body if isinstance(node, ast.If))
    checked = {
        alias.name
        for node in ast.walk(block)
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert checked == set(jaxrnn.__all__)


def test_no_module_hides_behind_a_public_name_of_its_package():
    hidden = []
    for package in ROOT.rglob("__init__.py"):
        stems = {path.stem for path in package.parent.glob("*.py")} - {"__init__"}
        stems |= {path.parent.name for path in package.parent.glob("*/__init__.py")}
        name = ".".join(["jaxrnn", *package.parent.relative_to(ROOT).parts])
        module = importlib.import_module(name)
        public = getattr(module, "__all__", ())
        hidden += [
            f"{name}.{n}"
            for n in public
            if n in stems and not isinstance(getattr(module, n), types.ModuleType)
        ]
    assert hidden == []
