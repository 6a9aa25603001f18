"""What a user has written, loaded by the command line: ``path/to/file.py:NAME``.

The file is imported as Python would import it from the root of its package: the first folder above it without an
``__init__.py`` is put on the path. So a file that stands alone finds its neighbours, and one in a package finds its
package.
"""

from __future__ import annotations

import importlib
import sys
import traceback
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

from fsm.errors import LocalError

T = TypeVar("T")


def load(spec: str, kind: type[T]) -> T:
    """The object of that kind that ``FILE.py:NAME`` stands for, or that a function of that name makes of nothing.

    Raises LocalError, naming the file, for what cannot be read or imported, and for a name that is not there or is
    something else; it lists the names that would do.
    """
    file, _, name = spec.rpartition(":")
    if not file.endswith(".py") or not name.isidentifier():
        raise LocalError(f"{spec}: expected a file and a name in it, as in path/to/file.py:NAME")
    path = Path(file)
    module = _import(path)
    if not hasattr(module, name):
        raise LocalError(f"{path}: there is no '{name}' in it; {_offers(module, kind)}")
    value = getattr(module, name)
    if callable(value) and not isinstance(value, (kind, type)):
        value = _called(spec, value, path)
    if not isinstance(value, kind):
        raise LocalError(f"{spec}: is a {type(value).__name__}, expected a {kind.__name__}; {_offers(module, kind)}")
    return value


def is_file(text: str) -> bool:
    """Whether an argument is meant as a file, and not as the name of something that is built in."""
    return ".py" in text or "/" in text or ":" in text


def _import(path: Path) -> ModuleType:
    if not path.is_file():
        raise LocalError(f"{path}: there is no such file")
    parts, root = [path.stem], path.resolve().parent
    while (root / "__init__.py").is_file():
        parts.insert(0, root.name)
        root = root.parent
    name = ".".join(parts)
    if not all(part.isidentifier() for part in parts):
        raise LocalError(f"{path}: '{name}' cannot be the name of a module; rename the file")
    sys.path.insert(0, str(root))
    try:
        module = importlib.import_module(name)
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # a program that is imported may do anything, and end as it likes
        raise LocalError(f"{path}: cannot be imported: {_told(error, path)}") from error
    finally:
        sys.path.remove(str(root))
    if Path(module.__file__ or "").resolve() != path.resolve():
        raise LocalError(f"{path}: there is another module of that name, {module.__file__}; rename the file")
    return module


def _called(spec: str, function: Any, path: Path) -> Any:
    try:
        return function()
    except LocalError:
        raise
    except Exception as error:
        raise LocalError(f"{spec}: is a function, and calling it raises {_told(error, path)}") from error


def _told(error: BaseException, path: Path) -> str:
    """An exception, with the last line of the user's own file that it came through."""
    own = [frame for frame in traceback.extract_tb(error.__traceback__) if Path(frame.filename).name == path.name]
    where = f", line {own[-1].lineno}" if own else ""
    if isinstance(error, SyntaxError) and error.lineno is not None:
        return f"{type(error).__name__}: {error.msg}, line {error.lineno} of {Path(error.filename or path).name}"
    return f"{type(error).__name__}: {error}{where}"


def _offers(module: ModuleType, kind: type) -> str:
    names = [name for name, value in vars(module).items() if isinstance(value, kind) and not name.startswith("_")]
    return f"of that kind are {', '.join(names)}" if names else f"nothing in it is a {kind.__name__}"
