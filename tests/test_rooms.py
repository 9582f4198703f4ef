"""The rooms of the house: who may import whom, read off the source, nothing is imported."""

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

ROOMS = (
    *("errors", "cache", "notes", "tasks", "network", "engines", "models", "images", "stages"),
    *("relevance", "quantization", "training", "criteria", "allocation", "packing", "study", "files", "views"),
    *("report", "commands"),
)
"""A room imports itself and those before it, in a function or for typing too."""

LOOSE = {"__init__", "__main__", "errors", "cache", "notes"}
"""The only files on the package's top level."""

DRAWING = {"views", "report", "commands"}
"""The only rooms that may import plotly; none imports streamlit."""

HEAVY = {"torch", "torchvision", "timm", "captum", "scipy"}
"""What takes seconds to load: pages import none of it, nor a module that does."""

MOST_LINES = 450


@dataclass(frozen=True)
class Import:
    """One name that a file imports, as written: `mixqvit.errors.ModelError`."""

    name: str
    line: int
    is_lazy: bool
    """Whether it is in a function, or for typing only."""


@cache
def sources() -> dict[str, Path]:
    """All modules of the product by name; packages by that of the package."""
    paths = [ROOT / "app.py", *(ROOT / "pages").rglob("*.py"), *(ROOT / "mixqvit").rglob("*.py")]
    parts = {path: path.relative_to(ROOT).with_suffix("").parts for path in paths}
    return {".".join(names[:-1] if names[-1] == "__init__" else names): path for path, names in parts.items()}


@cache
def imports(module: str) -> tuple[Import, ...]:
    """What a module imports."""
    return tuple(_imports(ast.parse(sources()[module].read_text()), False))


def _imports(node: ast.AST, is_lazy: bool) -> Iterator[Import]:
    if isinstance(node, ast.Import):
        yield from (Import(name.name, node.lineno, is_lazy) for name in node.names)
    elif isinstance(node, ast.ImportFrom):
        assert node.level == 0, f"line {node.lineno}: imports are written from the top"
        yield from (Import(f"{node.module}.{name.name}", node.lineno, is_lazy) for name in node.names)
    is_lazy |= isinstance(node, ast.FunctionDef) or (
        isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)
    )
    for child in ast.iter_child_nodes(node):
        yield from _imports(child, is_lazy)


def imported_module(name: str) -> str | None:
    """The module of the product that an imported name is or lies in; None for other packages."""
    known = [part for part in (name, name.rpartition(".")[0]) if part in sources()]
    return known[0] if known else None


def graph(with_lazy: bool) -> dict[str, set[str]]:
    """By module the modules of the product that it imports."""
    found = {}
    for module in sources():
        others = {imported_module(one.name) for one in imports(module) if with_lazy or not one.is_lazy}
        found[module] = others - {None, module}
    return found


def room(module: str) -> str:
    """The room, or loose file, that a module of the package belongs to."""
    return module.split(".")[1] if "." in module else ""


def test_every_file_is_in_a_room():
    assert {path.stem for path in (ROOT / "mixqvit").glob("*.py")} == LOOSE
    rooms = {room(module) for module in sources() if module.startswith("mixqvit.")}
    assert rooms - {"__main__"} == set(ROOMS)


def test_nothing_imports_upwards():
    upwards = [
        f"{module}:{one.line} imports {one.name}"
        for module in sources()
        if room(module) in ROOMS and module.startswith("mixqvit.")
        for one in imports(module)
        if (target := imported_module(one.name)) is not None
        and (not target.startswith("mixqvit.") or ROOMS.index(room(target)) > ROOMS.index(room(module)))
    ]
    assert upwards == []


def test_nothing_imports_in_a_circle():
    try:
        TopologicalSorter(graph(with_lazy=True)).prepare()
    except CycleError as error:
        raise AssertionError(f"These import each other: {' -> '.join(error.args[1])}.") from None


def test_stages_do_not_draw():
    drawing = [
        f"{module}:{one.line} imports {one.name}"
        for module in sources()
        if module.startswith("mixqvit.")
        for one in imports(module)
        if (package := one.name.partition(".")[0]) == "streamlit"
        or (package == "plotly" and room(module) not in DRAWING)
    ]
    assert drawing == []


def test_pages_name_nothing_heavy():
    heavy = [
        f"{module}:{one.line} imports {one.name}"
        for module in sources()
        if not module.startswith("mixqvit")
        for one in imports(module)
        if one.name.partition(".")[0] in HEAVY
    ]
    assert heavy == []


def test_pages_open_without_anything_heavy():
    """Torch takes seconds to load, and the first screen is painted before: no page imports it through other modules."""
    eager = graph(with_lazy=False)
    reached, waiting = set(), [module for module in sources() if not module.startswith("mixqvit")]
    while waiting:
        module = waiting.pop()
        if module not in reached:
            reached.add(module)
            waiting += eager[module]
    heavy = [
        f"{module}:{one.line} imports {one.name}"
        for module in sorted(reached)
        for one in imports(module)
        if not one.is_lazy and one.name.partition(".")[0] in HEAVY
    ]
    assert heavy == []


def test_files_are_short():
    lengths = {module: len(path.read_text().splitlines()) for module, path in sources().items()}
    assert {module: lines for module, lines in lengths.items() if lines > MOST_LINES} == {}
