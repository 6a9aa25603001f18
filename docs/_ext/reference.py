"""Reference pages that are made at build, out of the tables and types that the code runs on.

They are written to ``docs/reference``, which is no part of the source tree, before Sphinx looks for pages. What a page
written by hand shows already (``sim.docs``, ``gpu_backend.docs``) is made by the same functions here.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import typer
from sphinx.pycode import ModuleAnalyzer
from sphinx.util.nodes import make_refnode

from fsm import effects, events, lifecycle, messages, reasons
from gpu_backend import docs as worker_docs
from sim import docs as sim_docs
from sim.cli import build_app

HIDDEN_WORDS = re.compile(r":[\w:]+:`~?([^`<]+)`")
"""A role of reStructuredText, as docstrings have it."""

PUBLIC = {
    "fsm": [
        "table", "lifecycle", "states", "kernel", "rules", "messages", "effects", "events", "receiver", "sender",
        "column_receiver", "timed_sender", "ranks", "blocks", "allocators", "timing", "reasons", "invariants", "trace",
        "errors",
    ],
    "sim": [
        "scenario", "world", "choices", "zoo", "report", "sweep", "trace_file", "pytest_file", "engines.check",
        "engines.simulate", "engines.replay", "engines.shrink", "engines.no_return", "engines.agree", "engines.result",
        "model.form", "model.tables", "model.live", "vector.search", "vector.result", "vector.live", "prove.induction",
    ],
    "gpu_backend": [
        "receiver_worker", "sender_worker", "worker", "config", "outcomes", "pool", "layout", "observe", "control",
        "collective", "transports", "transports.base", "transports.communicator", "transports.sliced",
        "transports.ordered", "transports.in_process",
    ],
}  # fmt: skip
"""The modules that the site documents, by package: what is meant to be called, and what is meant to be replaced."""


def words(text: str | None) -> str:
    """A docstring's first paragraph as Markdown on one line."""
    first = inspect.cleandoc(text or "").split("\n\n")[0]
    return HIDDEN_WORDS.sub(r"`\1`", " ".join(first.split())).replace("``", "`")


def whole(text: str | None) -> str:
    """A docstring as Markdown, its paragraphs kept."""
    return HIDDEN_WORDS.sub(r"`\1`", inspect.cleandoc(text or "")).replace("``", "`")


# --- types ---------------------------------------------------------------------------------------------------


def fields(kind: type) -> Iterator[tuple[str, str, str]]:
    """The fields of a struct or a named tuple, its parents' first: name, type, and what it says about itself."""
    for parent in reversed(kind.__mro__):
        if not parent.__module__.startswith(("fsm.", "sim.", "gpu_backend.")):
            continue
        about = ModuleAnalyzer.for_module(parent.__module__).find_attr_docs()
        for name, hint in vars(parent).get("__annotations__", {}).items():
            if name.startswith("_"):
                continue
            said = " ".join(" ".join(about.get((parent.__name__, name), [])).split())
            yield name, getattr(hint, "__forward_arg__", str(hint)), words(said)


def type_markdown(kind: type, *, level: int, title: str = "") -> str:
    """A type: its words, and a table of its fields."""
    parts = [f"{'#' * level} {title or kind.__name__}", whole(kind.__doc__)]
    rows = [(f"`{name}`", f"`{hint}`", said) for name, hint, said in fields(kind)]
    if any(row[2] for row in rows):
        parts.append(sim_docs.markdown_table(("field", "type", "meaning"), rows))
    elif rows:
        parts.append(sim_docs.markdown_table(("field", "type"), [row[:2] for row in rows]))
    return "\n\n".join(part.strip("\n") for part in parts) + "\n"


def types_of(module: Any, root: type | None) -> list[type]:
    """The classes of a module in the order of its text; below ``root`` if there is one."""
    own = [
        kind
        for _, kind in inspect.getmembers(module, inspect.isclass)
        if kind.__module__ == module.__name__ and (root is None or (issubclass(kind, root) and kind is not root))
    ]
    order = ModuleAnalyzer.for_module(module.__name__)
    order.analyze()
    return sorted(own, key=lambda kind: order.tags[kind.__name__][1])


# --- pages ---------------------------------------------------------------------------------------------------


def guards_markdown() -> str:
    """What each guard asks."""
    asked: dict[str, str] = {}
    for table in (lifecycle.RECEIVER_TABLE, lifecycle.SENDER_TABLE, lifecycle.BLOCK_TABLE):
        for name, guard in table.guards.items():
            asked[name] = words(guard.__doc__) or f"`{name}` of the facts"
    return sim_docs.markdown_table(("guard", "asks"), [(f"`{name}`", text) for name, text in asked.items()])


def lifecycles_page() -> str:
    """The tables, from the rows."""
    parts = [
        "# Lifecycles",
        "The rows that the code runs on, the historical table included. What the states mean, and why they are these, "
        "is told in [the protocol](../protocol.md). `fsm.lifecycle` has them; `resumark diagram` draws them.",
    ]
    tables = {
        "A request on the receiver": lifecycle.RECEIVER_TABLE,
        "A request on the sender": lifecycle.SENDER_TABLE,
        "A landing block": lifecycle.BLOCK_TABLE,
        "The receiver's historical table": lifecycle.RECEIVER_FIVE_STATE_TABLE,
    }
    for title, table in tables.items():
        parts += [f"## {title}", sim_docs.diagram(table), table.markdown()]
    parts += ["## Properties", sim_docs.properties_markdown()]
    return page(parts)


def messages_page() -> str:
    """Messages, effects, events, reasons: every field."""
    parts = [
        "# Messages, effects, events",
        "What the two sides tell each other, what either asks of its surroundings, and what an observer is told. Made "
        "from the types; when each is sent is told in [the protocol](../protocol.md#messages).",
        "## Messages",
        f"Version {messages.WIRE_VERSION} of the wire format; at most {messages.SIZE_MAX:,} bytes, "
        f"{messages.BLOCKS_MAX:,} blocks in a GRANT, {messages.TEXT_MAX} characters in a text.",
        *(
            type_markdown(kind, level=3, title=title_of(kind))
            for kind in types_of(messages, None)
            if list(fields(kind))
        ),
        "### Bounds",
        sim_docs.markdown_table(("type", "bounds"), list(bounds())),
        "## Refusals",
        sim_docs.nack_codes_markdown(),
        "## Reasons",
        "Why a request failed, in the order in which ranks fold them ([in words](../workers.md#endings)): "
        + ", ".join(f"`{reason.name}` ({int(reason)})" for reason in reasons.Reason)
        + ".",
        "## Effects",
        words(effects.__doc__),
        *(type_markdown(kind, level=3) for kind in types_of(effects, None)),
        "## Events",
        words(events.__doc__),
        "A trace is a file of these, one JSON object a line; `event` names the kind.",
        *(type_markdown(kind, level=3, title=title_of(kind)) for kind in types_of(events, events.Event)),
    ]
    return page(parts)


def title_of(kind: Any) -> str:
    """A type's name, and what it is called on the wire or in a trace."""
    tag = getattr(getattr(kind, "__struct_config__", None), "tag", None)
    return f"{kind.__name__} (`{tag}`)" if tag else kind.__name__


def bounds() -> Iterator[tuple[str, str]]:
    """The aliases of numbers and texts in messages: name, bounds."""
    tree = ast.parse(inspect.getsource(messages))
    for node in tree.body:
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.value is not None:
            text = ast.unparse(node.value)
            if text.startswith("Annotated["):
                yield f"`{node.target.id}`", f"`{text}`"


def configuration_page() -> str:
    """Every key of the workers' files, every option of transports, every metric."""
    parts = [
        "# Configuration",
        "The keys of a worker's file ([how they are used](../workers.md#all-keys)), the options of transports "
        "([what is behind them](../transports.md)), and the metrics. The keys of a simulated world are in "
        "[Scenarios](../scenario.md#reference).",
        "## Keys of a worker",
        worker_docs.config_markdown(),
        "## Options of transports",
        worker_docs.options_markdown(),
        "## Transports",
        worker_docs.transports_markdown(),
        "## Metrics",
        worker_docs.metrics_markdown(),
    ]
    return page(parts)


def commands_page() -> str:
    """The help of every command, as the command prints it."""
    command: Any = typer.main.get_command(build_app())
    parts = [
        "# Commands: their own help",
        "What each command says with `--help`. [Commands](../cli.md) tells what the words mean, and has every field of "
        "`--json`.",
    ]
    for names, each in leaves(command, ()):
        name = " ".join(("resumark", *names))
        parts += [f"## `{name}`", whole(each.help)]
        rows = []
        for parameter in each.params:
            if parameter.name == "help":
                continue
            value = f" {parameter.metavar}" if parameter.metavar else ""
            shown = ", ".join(f"`{option}{value}`" for option in (*parameter.opts, *parameter.secondary_opts))
            if parameter.param_type_name == "argument":
                shown = f"`{(parameter.metavar or parameter.name).upper()}`"
            rows.append((shown, words(getattr(parameter, "help", "")), default_of(parameter)))
        if rows:
            parts.append(sim_docs.markdown_table(("argument or option", "meaning", "default"), rows))
    return page(parts)


def leaves(command: Any, names: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Every command that does something, with its names."""
    if hasattr(command, "commands"):
        for name, each in command.commands.items():
            yield from leaves(each, (*names, name))
    else:
        yield names, command


def default_of(parameter: Any) -> str:
    """What is taken where an option is not given; empty where nothing is."""
    default = parameter.default
    unset = default is None or default is False or default == () or "Sentinel" in type(default).__name__
    if unset or callable(default):
        return ""
    return f"`{getattr(default, 'value', default)}`"


def api_pages() -> Iterator[tuple[str, str]]:
    """A page for each package, and one for each of its modules."""
    names = []
    for package, modules in PUBLIC.items():
        root = importlib.import_module(package)
        below = []
        for name in modules:
            full = f"{package}.{name}"
            about = words(importlib.import_module(full).__doc__)
            below.append((full, about))
            yield f"api/{full}", page([f"# {full}", "```{eval-rst}\n.. automodule:: " + full + "\n```"])
        rows = [(f"[{full}]({full}.md)", about) for full, about in below]
        entries = [f"{full[len(package) + 1 :]} <{full}>" for full, _ in below]
        tree = "\n".join(["```{toctree}", ":hidden:", "", *entries, "```"])
        table = sim_docs.markdown_table(("module", "what it is"), rows)
        yield f"api/{package}", page([f"# {package}", whole(root.__doc__).split("::")[0].rstrip(":"), table, tree])
        names.append(package)
    tree = "\n".join(["```{toctree}", ":hidden:", "", *(f"api/{name}" for name in names), "```"])
    text = (
        "From docstrings. `fsm` is the protocol and does no I/O; `sim` makes worlds of it and breaks them; "
        "`gpu_backend` has the workers. [Architecture](../architecture.md) says how they are cut, and "
        "[Workers](../workers.md) how to embed one."
    )
    links = "\n".join(f"- [{name}](api/{name}.md)" for name in names)
    yield "api", page(["# Python API", text, links, tree])


def page(parts: Sequence[str]) -> str:
    """A page of parts."""
    return "\n\n".join(part.strip("\n") for part in parts) + "\n"


# --- names ---------------------------------------------------------------------------------------------------


def find_name(app: Any, env: Any, node: Any, shown: Any) -> Any:
    """What a docstring or an annotation names in the way that its own module does.

    A name is looked up where it was written. If the site documents what it stands for, it becomes a link; if that is
    real and not documented here, plain text. A name in a docstring that means nothing stays a warning; one in an
    annotation cannot, since types are checked elsewhere, and is plain text.
    """
    if node.get("refdomain") != "py":
        return None
    found = _found_from(node.get("py:module"), node.get("py:class"), node["reftarget"].lstrip("~."))
    if found is None:
        return None if "refwarn" in node else shown
    entry = env.domains["py"].objects.get(found)
    if entry is None:
        return shown
    return make_refnode(app.builder, node["refdoc"], entry.docname, entry.node_id, shown, found)


def _found_from(module: str | None, owner: str | None, target: str) -> str | None:
    """The full name of what ``target`` means in a module (or in a class of it); ``None`` if it means nothing there."""
    places = [f"{module}.{owner}.", f"{module}.", ""] if module and owner else [f"{module}.", ""] if module else [""]
    return next((found for place in places if (found := _resolve(place + target)) is not None), None)


def _resolve(full: str) -> str | None:
    """The full name by which a thing is defined, of a name by which it can be reached."""
    parts = full.split(".")
    for end in range(len(parts), 0, -1):
        try:
            thing: Any = importlib.import_module(".".join(parts[:end]))
        except (ImportError, ValueError):
            continue
        for attribute in parts[end:]:
            if not hasattr(thing, attribute) and attribute not in getattr(thing, "__annotations__", {}):
                return None
            thing = getattr(thing, attribute, None)
        home, name = getattr(thing, "__module__", None), getattr(thing, "__qualname__", None)
        return f"{home}.{name}" if isinstance(home, str) and isinstance(name, str) else full
    return None


def drop_aliases(app: Any, what: str, name: str, thing: Any, options: Any, lines: list[str]) -> None:
    """Python's own words about a field of a named tuple say nothing."""
    if lines and lines[0].startswith("Alias for field number"):
        lines.clear()


def drop_object(app: Any, name: str, thing: Any, options: Any, bases: list[Any]) -> None:
    """That a class is an object goes without saying."""
    if bases == [object]:
        bases.clear()


def write_pages(app: Any) -> None:
    """Write every page that has changed, and remove those that nothing makes any more."""
    folder = Path(app.srcdir) / "reference"
    made = {
        "lifecycles": lifecycles_page(),
        "messages": messages_page(),
        "configuration": configuration_page(),
        "commands": commands_page(),
        **dict(api_pages()),
    }
    for name, text in made.items():
        file = folder / f"{name}.md"
        file.parent.mkdir(parents=True, exist_ok=True)
        if not file.exists() or file.read_text(encoding="utf-8") != text:
            file.write_text(text, encoding="utf-8")
    for file in folder.rglob("*.md"):
        if file.relative_to(folder).with_suffix("").as_posix() not in made:
            file.unlink()


def setup(app: Any) -> dict[str, bool]:
    """Sphinx calls this."""
    app.connect("builder-inited", write_pages)
    app.connect("missing-reference", find_name)
    app.connect("autodoc-process-docstring", drop_aliases)
    app.connect("autodoc-process-bases", drop_object)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
