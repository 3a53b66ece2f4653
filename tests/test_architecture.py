"""The house rules that no linter knows: who imports whom, what is public, what stays in one place.

Every check takes the folder of a package and returns what is wrong with it, so that each one also
runs on a tiny package with a planted mistake.
"""

import ast
import subprocess
import sys
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from importlib.util import resolve_name
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import pytest

import ridurre

PACKAGE = Path(__file__).parents[1] / "ridurre"

# From top to bottom. A module imports only from lower rows, or from its own folder.
LEVELS = (
    {"ridurre"},  # the public names
    {"__main__"},
    {"cli"},
    {"sensitivities", "exporting", "plots", "testing"},
    {"methods", "strategies"},
    {"pruning", "training", "finetune"},
    {"reports"},
    {"recipes"},
    {"run", "strategy", "sparsity"},
    {"shrinking", "ballot", "limits"},
    {"allocation", "compacting"},
    {"patterns", "values"},
    {
        "history",
        "snapshots",
        "selection",
        "schedules",
        "targets",
        "levels",
        "masking",
        "voting",
        "checkpoints",
        "surgeon",
    },
    {"dependency", "recovery"},
    {"criteria", "surgery", "cut", "verification", "trail"},
    {"rebuilding"},
    {"smaller"},
    {"forms"},
    {"plan", "costs", "measure", "masks", "resizing", "likeness"},
    {"weights"},
    {"forward", "linear"},
    {"graph"},
    {"data", "figures", "runtimes"},
    {"backend", "checks", "tables", "files", "optional", "progress"},
    {"errors"},
)
LEVEL = {name: row for row, names in enumerate(LEVELS) for name in names}

HEAVY = ("matplotlib", "sklearn", "tensorflow_datasets", "altair", "igraph", "vl_convert")
BACKEND_ONLY = ("keras.src", "tensorflow", "jax", "jaxlib", "torch")
PRIVATE_KERAS = {
    "_keras_history",
    "_inbound_nodes",
    "_outbound_nodes",
    "_nodes",
    "_nodes_by_depth",
    "_operations",
    "_operations_by_depth",
    "_functional",
    "_flatten_layers",
    "_trainable_variables",
    "_non_trainable_variables",
}
LONGEST_FILE = 400


def read_modules(package: Path) -> dict[str, ast.Module]:
    """Dotted module name -> syntax tree; a package stands under its own name."""
    modules = {}
    for path in sorted(package.rglob("*.py")):
        parts = path.relative_to(package.parent).with_suffix("").parts
        name = ".".join(parts).removesuffix(".__init__")
        modules[name] = ast.parse(path.read_text(encoding="utf-8"), str(path))
    return modules


def imported_names(module: str, node: ast.AST, modules: dict[str, ast.Module]) -> list[str]:
    """The absolute dotted names that one statement imports: `from a import b` gives a.b."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if not isinstance(node, ast.ImportFrom):
        return []
    is_package = any(name.startswith(f"{module}.") for name in modules)
    parent = module if is_package else module.rpartition(".")[0]
    origin = resolve_name("." * node.level + (node.module or ""), parent)
    return [f"{origin}.{alias.name}" for alias in node.names]


def owning_module(name: str, modules: dict[str, ast.Module]) -> str | None:
    """The module of ours that a dotted name belongs to, if any."""
    while name and name not in modules:
        name = name.rpartition(".")[0]
    return name or None


class InnerImport(NamedTuple):
    """One of our modules imports another."""

    module: str
    target: str
    line: int
    at_top: bool


def inner_imports(package: Path) -> Iterator[InnerImport]:
    modules = read_modules(package)
    for module, tree in modules.items():
        for node in ast.walk(tree):
            targets = {owning_module(n, modules) for n in imported_names(module, node, modules)}
            for target in sorted(filter(None, targets)):
                yield InnerImport(module, target, node.lineno, node in tree.body)


def row_name(module: str) -> str:
    """`ridurre.graph.rules.base` stands in the table as `graph`."""
    return module.split(".")[1] if "." in module else module


def unplaced(package: Path) -> list[str]:
    return [
        f"{name} has no place in LEVELS"
        for name in read_modules(package)
        if row_name(name) not in LEVEL
    ]


def wrong_direction(package: Path) -> list[str]:
    def is_wrong(importer: str, imported: str) -> bool:
        if importer == imported or not {importer, imported} <= LEVEL.keys():
            return False
        return LEVEL[importer] >= LEVEL[imported]

    return [
        f"{step.module}:{step.line} imports {step.target}"
        for step in inner_imports(package)
        if is_wrong(row_name(step.module), row_name(step.target))
    ]


def cycles(package: Path) -> list[str]:
    imports: dict[str, set[str]] = {}
    for step in inner_imports(package):
        imports.setdefault(step.module, set()).add(step.target)
    try:
        TopologicalSorter(imports).prepare()
    except CycleError as error:
        return [" <- ".join(error.args[1])]
    return []


def hidden_imports(package: Path) -> list[str]:
    """Imports of our own modules inside a function, a class or a condition."""
    return [
        f"{step.module}:{step.line} hides its import of {step.target}"
        for step in inner_imports(package)
        if not step.at_top
    ]


def outside_backend(package: Path) -> list[str]:
    """Keras' private parts and particular backends, anywhere but in the package backend."""
    modules = read_modules(package)
    return [
        f"{module}:{node.lineno} uses {name}"
        for module, tree in modules.items()
        if not f"{module}.".startswith(f"{package.name}.backend.")
        for node in ast.walk(tree)
        for name in [*imported_names(module, node, modules), *accessed_names(node)]
        if name in PRIVATE_KERAS or any(f"{name}.".startswith(f"{top}.") for top in BACKEND_ONLY)
    ]


def accessed_names(node: ast.AST) -> list[str]:
    """`x._nodes` and `getattr(x, "_nodes")` give _nodes, but `self._nodes` is one's own."""
    if isinstance(node, ast.Attribute):
        if ast.unparse(node.value) in ("self", "cls"):
            return []
        return ["keras.src"] if ast.unparse(node) == "keras.src" else [node.attr]
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return [node.value] if node.value in PRIVATE_KERAS else []
    return []


def long_files(package: Path) -> list[str]:
    lengths = {
        path: len(path.read_text(encoding="utf-8").splitlines()) for path in package.rglob("*.py")
    }
    return [f"{path.name}: {n} lines" for path, n in lengths.items() if n > LONGEST_FILE]


def heavy_imports(package: Path) -> list[str]:
    """Heavy modules that importing the package loads, beyond those that Keras itself loads."""
    script = f"""
import sys
sys.modules.update(dict.fromkeys({HEAVY}))  # Keras takes them for absent
import keras
for name in {HEAVY}: del sys.modules[name]
import {package.name} as package
assert package.__file__.startswith({str(package)!r}), package.__file__
print(*(name for name in {HEAVY} if name in sys.modules))
"""
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=package.parent,
        capture_output=True,
        text=True,
        check=False,
    )
    return done.stdout.split() if done.returncode == 0 else [done.stderr]


def unclear_surface(package: ModuleType) -> list[str]:
    """Differences between `__all__` and what is there."""
    listed = list(package.__all__)
    present = {
        name
        for name, value in vars(package).items()
        if not name.startswith("_") and not isinstance(value, ModuleType)
    }
    return [
        *(["__all__ is not sorted, or repeats a name"] if listed != sorted(set(listed)) else []),
        *(f"{name} is listed and does not exist" for name in listed if not hasattr(package, name)),
        *(f"{name} is public and not listed" for name in sorted(present - set(listed))),
    ]


CHECKS = (
    unplaced,
    wrong_direction,
    cycles,
    hidden_imports,
    outside_backend,
    long_files,
    heavy_imports,
)

PLANTED = [
    (unplaced, {"novelty.py": ""}, "ridurre.novelty"),
    (wrong_direction, {"plan.py": "from ridurre.surgery import cut", "surgery.py": ""}, "surgery"),
    (wrong_direction, {"graph/x.py": "from ..plan import A", "plan.py": ""}, "ridurre.plan"),
    (wrong_direction, {"measure.py": "from . import surgery", "surgery.py": ""}, "surgery"),
    (wrong_direction, {"plan.py": "import ridurre"}, "ridurre.plan:1 imports ridurre"),
    (cycles, {"graph/a.py": "from ridurre.graph import b", "graph/b.py": "from . import a"}, "b"),
    (hidden_imports, {"plan.py": "def f():\n    from . import errors", "errors.py": ""}, "plan:2"),
    (hidden_imports, {"plan.py": "if 1:\n    import ridurre.errors", "errors.py": ""}, "plan:2"),
    (outside_backend, {"plan.py": "from keras.src import tree"}, "plan:1 uses keras.src.tree"),
    (outside_backend, {"plan.py": "from keras import src"}, "uses keras.src"),
    (outside_backend, {"plan.py": "import keras\nkeras.src.tree"}, "plan:2 uses keras.src"),
    (outside_backend, {"graph/a.py": "import tensorflow as tf"}, "uses tensorflow"),
    (outside_backend, {"plan.py": "def f(x):\n    import jax.numpy"}, "uses jax.numpy"),
    (outside_backend, {"plan.py": "x = y._keras_history"}, "uses _keras_history"),
    (outside_backend, {"plan.py": "x = self.model._nodes"}, "uses _nodes"),
    (outside_backend, {"plan.py": "x = getattr(y, '_nodes_by_depth')"}, "uses _nodes_by_depth"),
    (long_files, {"plan.py": "\n" * 401}, "plan.py: 401 lines"),
    (heavy_imports, {"__init__.py": "import matplotlib"}, "matplotlib"),
]


@pytest.fixture
def plant(tmp_path):
    """Writes a small package and returns its folder."""

    def write(files: dict[str, str]) -> Path:
        for name, source in ({"__init__.py": ""} | files).items():
            path = tmp_path / "ridurre" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(source, encoding="utf-8")
        return tmp_path / "ridurre"

    return write


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_the_package_keeps_the_house_rules(check):
    assert check(PACKAGE) == []


@pytest.mark.parametrize(("check", "files", "message"), PLANTED)
def test_a_planted_mistake_is_found(plant, check, files, message):
    problems = check(plant(files))
    assert len(problems) == 1
    assert message in problems[0]


@pytest.mark.parametrize("check", CHECKS[:-1], ids=lambda check: check.__name__)
def test_a_sound_package_passes(plant, check):
    sound = {
        "__init__.py": "from ridurre.plan import Plan",
        "plan.py": "import keras\nfrom .graph.rules import base\nfrom ridurre.errors import E",
        "graph/__init__.py": "",
        "graph/labels.py": "from ridurre import backend",
        "graph/rules/__init__.py": "from . import base",
        "graph/rules/base.py": "from ..labels import x\nfrom ridurre.errors import E",
        "backend.py": "import tensorflow\nfrom keras.src import tree\ntree._nodes",
        "errors.py": "def f(self):\n    import matplotlib\n    return self._nodes",
    }
    assert check(plant(sound)) == []


def test_public_names_are_listed():
    assert unclear_surface(ridurre) == []


@pytest.mark.parametrize(
    ("listed", "message"),
    [
        (["b", "a"], "not sorted"),
        (["a", "a", "b"], "not sorted"),
        (["a", "b", "c"], "c is listed"),
        (["a"], "b is public"),
    ],
)
def test_an_unclear_surface_is_found(listed, message):
    package = ModuleType("package")
    vars(package).update(__all__=listed, a=1, b=2, _hidden=3, module=ast)
    problems = unclear_surface(package)
    assert len(problems) == 1
    assert message in problems[0]
