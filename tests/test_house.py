"""The rules of the house, see docs/design.md: who imports whom, and how long things are."""

import ast
import pathlib

from helpers import ROOT

FILES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(
        ".__init__"
    ): path
    for path in [
        *pathlib.Path(ROOT).glob("*.py"),
        *pathlib.Path(ROOT).glob("capsnet/**/*.py"),
    ]
}
TREES = {name: ast.parse(path.read_text()) for name, path in FILES.items()}

FLOORS = [
    {"demo", "main", "reproduce", "utils", "capsulenet-multi-gpu", "capsnet.__main__"},
    {"capsulenet", "capsnet.page"},
    {"capsnet.explorer", "capsnet.canvas", "capsnet.markup"},
    {
        *("capsnet.own_pictures", "capsnet.dimensions", "capsnet.routes"),
        *("capsnet.told_apart", "capsnet.bent"),
    },
    {"capsnet.training"},
    {"capsnet.networks"},
    {"capsnet.weights", "capsnet.data", "capsnet.pictures"},
]
"""From the top: what stands on one floor never imports from a floor above."""

LAYERS = ["numerics", "routing", "rules", "spectral", "squashes", "transforms"]


def floor(name):
    """The floor of a module, or of the package that it is in; leaves are the lowest."""
    for number, names in enumerate(FLOORS):
        if any(name == n or name.startswith(n + ".") for n in names):
            return number
    return len(FLOORS)


def imported(name):
    """The modules of ours that a module imports, wherever in it."""
    found = set()
    for node in ast.walk(TREES[name]):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {n if n in FILES else node.module for n in names}
    return {module for module in found if module in FILES}


def test_imports_go_down_only():
    edges = [(name, other) for name in FILES for other in imported(name)]
    assert len(edges) > 60
    up = [(a, b) for a, b in edges if floor(b) < floor(a)]
    assert not up
    of_layers = {
        a for a, b in edges if b == "capsulelayers" and a.startswith("capsnet")
    }
    assert all(name.startswith("capsnet.networks.") for name in of_layers)


def test_no_module_imports_itself_in_a_circle():
    done = []  # those that import nothing but what is done
    while len(done) < len(FILES):
        now = [n for n in FILES if n not in done and imported(n) <= {*done, n}]
        assert now, sorted(FILES.keys() - set(done))
        done += now


def test_the_layers_need_six_files_and_no_more():
    files = {"capsulelayers", *(f"capsnet.{name}" for name in LAYERS)}
    for name in files:
        assert imported(name) <= files | {"capsnet"}


def test_no_import_stands_in_a_function_but_a_backend_s_own():
    for name, tree in TREES.items():
        for function in ast.walk(tree):
            if isinstance(function, ast.FunctionDef):
                for node in ast.walk(function):
                    if isinstance(node, (ast.Import, ast.ImportFrom)):
                        module = getattr(node, "module", None) or node.names[0].name
                        ours = (name, module) in (
                            ("capsnet.__main__", "capsulenet"),
                            ("capsnet.command_line", "keras"),  # once it was read
                        )
                        backends = ("tensorflow", "jax", "torch", "resource")
                        assert ours or module.split(".")[0] in backends, (name, module)


def test_what_is_read_is_short():
    most = {"capsulenet": 450, "capsulelayers": 400}
    for name, path in FILES.items():
        if name in most or name.startswith("capsnet"):
            assert len(path.read_text().splitlines()) <= most.get(name, 350), name
        for node in ast.walk(TREES[name]):
            if isinstance(node, ast.FunctionDef):
                assert node.end_lineno - node.lineno < 60, (name, node.name)
