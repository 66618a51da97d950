"""The house: which part imports which, and names that do not hide each other."""

import ast
import graphlib
import importlib
import pkgutil
import re
import subprocess

import pytest
from conftest import ROOT

import lrunet_jax

# Each imports those before it, and never those behind it; as CONTRIBUTING names them.
ORDER = [
    "errors",
    "files",
    "output",
    "figures",
    "programs",
    "memory",
    "topologies",
    "hlo",
    "verbosity",
    "ops",
    "models",
    "data",
    "runs",
    "weights",
    "train",
    "workload",
    "cli",
]
COMMANDS = {
    "benchmark",
    "compare",
    "compile",
    "convert",
    "evaluate",
    "plot",
    "predict",
    "results",
    "summary",
}


def imports_of(path):
    """The modules that a file of the package imports, by their full names."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


def modules():
    for path in sorted((ROOT / "lrunet_jax").rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        yield ".".join(parts).removesuffix(".__init__"), path


MODULES = dict(modules())
PARTS = {name.split(".")[1] for name in MODULES if "." in name}


def test_every_part_has_its_place():
    assert {*ORDER, *COMMANDS} == PARTS
    contributing = (ROOT / "CONTRIBUTING.md").read_text()
    (named,) = re.findall(r"^    (errors <- .*)$", contributing, re.M)
    assert named.split(" <- ") == [*ORDER, "commands"]


def test_imports_go_one_way():
    for name, path in MODULES.items():
        part = name.split(".")[1] if "." in name else ""
        for imported in imports_of(path):
            top, _, rest = imported.partition(".")
            if imported == "lrunet_jax" or name == "lrunet_jax":
                continue
            if top == "lrunet_jax":  # not what its __init__ has taken together
                assert rest.split(".")[0] in PARTS, f"{name} imports {imported}"
            assert top not in ("configs", "tests"), f"{name} imports {imported}"
            other = rest.split(".")[0]
            if top != "lrunet_jax" or other not in PARTS or not part or other == part:
                continue
            assert other not in COMMANDS, f"{name} imports the command {other}"
            if part not in COMMANDS:
                assert ORDER.index(other) < ORDER.index(part), f"{name}: {imported}"


def test_no_module_imports_itself_around_corners():
    graph = {
        name: {imported for imported in imports_of(path) if imported in MODULES}
        for name, path in MODULES.items()
    }
    # `from lrunet_jax.x import y` names the package, too, whose __init__ imports y.
    packages = {name for name, path in MODULES.items() if path.name == "__init__.py"}
    for name, imported in graph.items():
        graph[name] = {
            other
            for other in imported
            if not (other in packages and name.startswith(f"{other}."))
        }
    graphlib.TopologicalSorter(graph).prepare()  # a CycleError names the circle


def test_configs_know_nothing_of_the_package():
    for path in (ROOT / "configs").glob("*.py"):
        for imported in imports_of(path):
            assert imported.split(".")[0] != "lrunet_jax", path


def test_commands_and_packages_keep_their_names():
    for module in pkgutil.iter_modules(lrunet_jax.__path__):
        importlib.import_module(f"lrunet_jax.{module.name}")
    # Importing a module replaces a name of the package that is the same.
    for name in lrunet_jax.__all__:
        assert name not in PARTS
        assert callable(getattr(lrunet_jax, name))
    assert set(lrunet_jax.__all__) == {
        "classify",
        "create_model",
        "list_models",
        "load",
        "train_and_evaluate",
    }


def test_a_command_is_one_command_and_nothing_else():
    for name in COMMANDS:
        text = MODULES[f"lrunet_jax.{name}"].read_text()
        assert text.endswith('\n\nif __name__ == "__main__":\n    run(main)\n')
        functions = {
            node.name
            for node in ast.parse(text).body
            if isinstance(node, ast.FunctionDef | ast.ClassDef)
            and not node.name.startswith("_")
        }
        own = {"benchmark": {"benchmark"}, "compare": {"compare", "compare_torch"}}
        assert functions == {"main"} | own.get(name, set())


def test_no_file_of_the_package_is_ignored():
    if not (ROOT / ".git").exists():
        pytest.skip("a copy, not a clone")
    paths = [str(path) for path in MODULES.values()]
    command = ["git", "check-ignore", "--no-index", *paths]
    ignored = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert (ignored.returncode, ignored.stdout) == (1, ""), ignored.stderr


def test_lowerings_are_known_to_ops_the_config_and_commands_alone():
    known = {
        path.relative_to(ROOT).as_posix()
        for path in [*MODULES.values(), *(ROOT / "configs").glob("*.py")]
        if re.search(r"\blowering\b", path.read_text())
    }
    outside = {path for path in known if not path.startswith("lrunet_jax/ops/")}
    assert outside == {
        "configs/default.py",  # the field
        "lrunet_jax/benchmark.py",  # --lowering
        "lrunet_jax/compile.py",  # that of a platform that is not here
        "lrunet_jax/runs/earlier.py",  # where it was before
        "lrunet_jax/train/loop.py",  # the context
        "lrunet_jax/train/validate.py",  # its check
    }
