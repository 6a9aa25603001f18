"""The three sentences about imports, and the one about nondeterminism, held against every module.

1. Imports point down only: ``fsm`` does no I/O, and knows nothing of what stands above it.
2. ``sim`` and ``gpu_backend`` never import each other.
3. ``sim`` runs without torch.

And: no clock and no dice but through the one door, so that the same choices always give the same digest.
"""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path
from typing import NamedTuple

import pytest

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("fsm", "sim", "gpu_backend")

# All that fsm may use: pure data structures and functions. Whatever reads a clock, draws, logs, waits or
# touches a file, a socket or another thread is missing from this list on purpose.
FSM_MAY_IMPORT = (
    "__future__", "abc", "array", "bisect", "collections", "contextlib", "copy", "dataclasses", "enum",
    "functools", "hashlib", "heapq", "itertools", "json", "keyword", "math", "operator", "re", "string",
    "struct", "textwrap", "types", "typing", "zlib",
    "msgspec", "numpy", "transitions",
    "fsm",
)  # fmt: skip

# Calls that would be I/O, or would depend on the process, without any import.
FSM_MUST_NOT_CALL = ("open", "print", "input", "breakpoint", "exec", "eval", "__import__", "hash", "id")

# What sim may use in named places only. Left: the module; right: where, as patterns of paths.
SIM_NONDETERMINISM: dict[str, tuple[str, ...]] = {
    # Seeded drawing has one door.
    "random": ("sim/choices.py",),
    "numpy.random": ("sim/choices.py",),
    # The wall clock is for people: progress bars, and how long something took. No engine decides by it.
    "time": (
        "sim/cli.py",
        "sim/cli_*.py",
        "sim/cli/*.py",
        "sim/progress.py",
        "sim/bench.py",
        "sim/bench_*.py",
    ),
    "datetime": (),
    # Never: entropy, the network, other threads.
    "secrets": (),
    "uuid": (),
    # A folder for Spin's files, whose name nothing depends on.
    "tempfile": ("sim/bench_*.py",),
    "socket": (),
    "ssl": (),
    "asyncio": (),
    "threading": (),
    "_thread": (),
    "select": (),
    "signal": (),
    "logging": (),
    # An engine on a device: exact whole numbers, no dice. See also OPTIONAL.
    "torch": ("sim/vector_torch/device.py",),
}

# What only an extra installs, and where it may be used: never at the import of a module, so that all else works
# without.
OPTIONAL: dict[str, tuple[str, ...]] = {
    "z3": ("sim/prove/*.py",),
    "ray": ("sim/engines/executors.py",),
    "llvmlite": ("sim/vector/code.py",),
    "torch": ("sim/vector_torch/device.py",),
}


class Import(NamedTuple):
    file: str
    line: int
    module: str
    at_run_time: bool

    def __str__(self) -> str:
        return f"{self.file}:{self.line} imports {self.module}"


def modules_of(package: str) -> list[Path]:
    return sorted((ROOT / package).rglob("*.py"))


def relative(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def imports_of(path: Path, text: str | None = None) -> Iterator[Import]:
    """Every import in a file, wherever it stands; ``from a import b`` gives ``a`` and ``a.b``."""
    file = relative(path)
    package = file.split("/")[:-1]
    tree = ast.parse(path.read_text() if text is None else text)
    for node, at_run_time in walk(tree, True):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*above, *([node.module] if node.module else [])])
            names = [module, *(f"{module}.{alias.name}" for alias in node.names)]
        else:
            continue
        for name in names:
            yield Import(file, node.lineno, name, at_run_time)


def walk(node: ast.AST, at_run_time: bool) -> Iterator[tuple[ast.AST, bool]]:
    yield node, at_run_time
    for child in ast.iter_child_nodes(node):
        only_for_types = (
            isinstance(node, ast.If) and child in node.body and "TYPE_CHECKING" in ast.dump(node.test)
        )
        yield from walk(child, at_run_time and not only_for_types)


def imports(package: str) -> list[Import]:
    return [found for path in modules_of(package) for found in imports_of(path)]


def is_within(module: str, package: str) -> bool:
    return module == package or module.startswith(package + ".")


def listed(offences: list[Import]) -> str:
    return "\n".join(str(offence) for offence in offences)


# The tools of this test, held against what they must see -----------------------------------------------


def test_the_reader_of_imports_sees_all_kinds() -> None:
    text = """
import time as t
from . import table
from ..sim import world
if TYPE_CHECKING:
    import torch
def late():
    from socket import socket
"""
    found = [(one.module, one.at_run_time) for one in imports_of(ROOT / "fsm" / "x.py", text)]
    assert found == [
        ("time", True),
        ("fsm", True),
        ("fsm.table", True),
        ("sim", True),
        ("sim.world", True),
        ("torch", False),
        ("socket", True),
        ("socket.socket", True),
    ]


def test_there_is_something_to_look_at() -> None:
    assert len(modules_of("fsm")) >= 5
    assert len(modules_of("sim")) >= 2


# 1. Imports point down only; fsm does no I/O -----------------------------------------------------------


def test_fsm_imports_nothing_that_does_io() -> None:
    offences = [
        found
        for found in imports("fsm")
        if not any(is_within(found.module, allowed) for allowed in FSM_MAY_IMPORT)
    ]
    assert not offences, listed(offences)
    assert not [found for found in imports("fsm") if is_within(found.module, "numpy.random")]


def test_fsm_calls_nothing_that_does_io_or_depends_on_the_process() -> None:
    offences: list[str] = []
    for path in modules_of("fsm"):
        for node in ast.walk(ast.parse(path.read_text())):
            if (
                isinstance(node, ast.Call)
                and isinstance(node.func, ast.Name)
                and node.func.id in FSM_MUST_NOT_CALL
            ):
                offences.append(f"{relative(path)}:{node.lineno} calls {node.func.id}()")
            if isinstance(node, ast.Attribute) and node.attr == "random":
                offences.append(f"{relative(path)}:{node.lineno} uses .random")
    assert not offences, "\n".join(offences)


def test_the_modules_of_fsm_have_an_order() -> None:
    """No module imports, directly or by way of others, one that imports it."""
    names = [relative(path)[:-3].replace("/", ".").removesuffix(".__init__") for path in modules_of("fsm")]
    uses: dict[str, list[str]] = {name: [] for name in names}
    for path, name in zip(modules_of("fsm"), names, strict=True):
        for found in imports_of(path):
            if found.at_run_time and found.module in uses and found.module not in (name, "fsm"):
                uses[name].append(found.module)
    left = dict(uses)
    while left:
        free = [name for name, below in left.items() if not any(one in left for one in below)]
        assert free, f"a circle among {sorted(left)}"
        for name in free:
            del left[name]


def test_packages_need_only_what_is_declared() -> None:
    """A plain install, without extras, must be enough to run what it installs."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    declared = [re.match(r"[A-Za-z0-9_-]+", line).group(0) for line in project["dependencies"]]  # type: ignore[union-attr]
    for package in ("fsm", "sim"):
        offences = [
            found
            for found in imports(package)
            if found.at_run_time
            and found.module.split(".")[0] not in (*sys.stdlib_module_names, *declared, "tomllib", *PACKAGES)
            and not any(fnmatch(found.file, place) for place in OPTIONAL.get(found.module.split(".")[0], ()))
        ]
        assert not offences, listed(offences)


# 2. sim and gpu_backend never import each other --------------------------------------------------------


@pytest.mark.parametrize(("package", "other"), [("sim", "gpu_backend"), ("gpu_backend", "sim")])
def test_sim_and_gpu_backend_do_not_know_each_other(package: str, other: str) -> None:
    offences = [found for found in imports(package) if is_within(found.module, other)]
    assert not offences, listed(offences)


def test_nothing_imports_the_tests() -> None:
    offences = [
        found for package in PACKAGES for found in imports(package) if is_within(found.module, "tests")
    ]
    assert not offences, listed(offences)


# 3. sim runs without torch -----------------------------------------------------------------------------

WITHOUT_TORCH = """
import sys

class NoTorch:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "torch":
            raise ImportError("torch is not there")
        return None

sys.meta_path.insert(0, NoTorch())

import importlib, pkgutil
import fsm, sim

names = []
for package in (fsm, sim):
    for module in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
            names.append(module.name)
assert "torch" not in sys.modules
print(len(names), "modules")

from sim.cli import main

sys.argv = ["resumark", *sys.argv[1:]]
main()
"""


@pytest.mark.parametrize(
    "arguments",
    [("--help",), ("diagram", "receiver"), ("simulate", "watermark", "--runs", "20", "--jobs", "1", "--seed", "1")],
    ids=lambda arguments: str(arguments[0]),
)
def test_sim_runs_without_torch(arguments: tuple[str, ...]) -> None:
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_TORCH, *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    count, _, rest = done.stdout.partition(" modules\n")
    assert int(count) >= len(modules_of("fsm")) - 1
    assert rest.strip()


# Nondeterminism enters through one door ----------------------------------------------------------------


def test_sim_reads_a_clock_or_draws_only_where_it_is_listed() -> None:
    offences = [
        found
        for found in imports("sim")
        for module, places in SIM_NONDETERMINISM.items()
        if is_within(found.module, module) and not any(fnmatch(found.file, place) for place in places)
    ]
    assert not offences, listed(offences)
