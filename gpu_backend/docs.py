"""The generated tables about workers: ``python -m gpu_backend.docs`` writes them, ``--check`` says what is out of date.

As for the parts that ``sim.docs`` makes, a table stands between two marks in ``README.md`` or in ``docs/*.md``; the
marks of this package are ``<!-- workers:NAME -->`` and ``<!-- end workers:NAME -->``, so that neither program touches
what belongs to the other. Needs a source tree and torch, and no transport's library: what a transport says about
itself is known wherever its module can be imported.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from fsm.errors import LocalError
from gpu_backend import transports
from gpu_backend.config import ReceiverWorkerConfig, SenderWorkerConfig, reference
from gpu_backend.metrics import METRIC_LABELS, METRICS
from gpu_backend.transports import gloo, ordered, sliced
from gpu_backend.transports.base import Traits
from gpu_backend.transports.options import OPTIONS
from gpu_backend.wording import expected
from gpu_backend.workload import MIXES, MODELS, QWEN3, QWEN25, prompt_tokens

ROOT = Path(__file__).resolve().parents[1]
"""The source tree."""

_BEGIN = re.compile(r"^<!-- workers:([a-z0-9-]+) -->$", re.MULTILINE)


DEFAULTS: Final[dict[str, object]] = {
    "slice_bytes": sliced.SLICE_BYTES, "window": sliced.WINDOW, "close_s": sliced.CLOSE_S, "progress_thread": False,
    "endpoint_proves": False, "piece_bytes": ordered.PIECE_BYTES, "host": "127.0.0.1",
    "connect_timeout_s": gloo.CONNECT_TIMEOUT_S, "stall_timeout_s": gloo.STALL_TIMEOUT_S, "fabric": None,
}  # fmt: skip
"""What an option is where it is not given."""


def markdown_table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table, one line a row."""
    lines = ["| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]
    lines += ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows]
    return "\n".join(lines) + "\n"


def traits_of(name: str) -> Traits:
    """What a transport says of itself."""
    return transports.get(name).traits


def _yes(truth: bool) -> str:
    return "yes" if truth else "no"


def transports_markdown() -> str:
    """What each transport can do."""
    rows = []
    for name in transports.MODULES:
        traits = traits_of(name)
        taken = [kind for kind, names in transports.AUTO.items() if name in names]
        places = [f"{kind}: {_ordinal(transports.AUTO[kind].index(name))}" for kind in taken]
        rows.append(
            (
                f"`{name}`",
                ", ".join(traits.devices),
                "one-sided" if traits.one_sided else "two-sided",
                _yes(traits.cancellable),
                "the receiver's own completion" if traits.landed_required else "the sender's completion",
                ", ".join(places) or "never",
            )
        )
    heads = ("transport", "pools on", "kind", "a write can end early", "what proves arrival", "choice of `auto`")
    return markdown_table(heads, rows)


def _ordinal(index: int) -> str:
    return ("first", "second", "third")[index]


def proofs_markdown() -> str:
    """What each transport takes for a proof that nothing is written any more."""
    rows = [
        (f"`{name}`", _yes(traits_of(name).process_exit_proves), traits_of(name).proof) for name in transports.MODULES
    ]
    return markdown_table(("transport", "does the end of the sender's process prove it?", "why it is proved"), rows)


def options_markdown() -> str:
    """Every option of every transport."""
    rows = [
        (
            f"`{option.name}`", ", ".join(f"`{name}`" for name in option.of),
            "an object" if option.hint is object else expected(option.hint),
            "-" if DEFAULTS[option.name] is None else f"`{_toml(DEFAULTS[option.name])}`", option.meaning,
        )
        for option in OPTIONS
    ]  # fmt: skip
    return markdown_table(("option", "of", "expected", "default", "meaning"), rows)


def _toml(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return f'"{value}"' if isinstance(value, str) else str(value)


def config_markdown() -> str:
    """Every key of both workers' files; the last column says whose it is where it is not of both."""
    receiver, sender = (reference(kind).splitlines()[2:] for kind in (ReceiverWorkerConfig, SenderWorkerConfig))
    lines = ["| key | expected | default | meaning | file of |", "|---|---|---|---|---|"]
    for line in dict.fromkeys([*receiver, *sender]):
        sides = [name for name, known in (("receiver", receiver), ("sender", sender)) if line in known]
        lines.append(f"{line} {' and '.join(sides)} |")
    return "\n".join(lines) + "\n"


def metrics_markdown() -> str:
    """Every metric: its name as Prometheus has it, its kind and its label."""
    rows = []
    for name, meaning in METRICS.items():
        kind = "counter" if name.endswith("_total") else "gauge"
        rows.append((f"`resumark_{name}`", kind, f"`{METRIC_LABELS[name]}`" if name in METRIC_LABELS else "", meaning))
    return markdown_table(("metric", "kind", "label beside `side` and `rank`", "meaning"), rows)


def models_markdown() -> str:
    """The models whose sizes can be asked for."""
    rows = [
        (f"`{model.name}`", model.family.name, f"{model.dim:,}", str(model.deepstack_levels), f"{model.token_bytes:,}")
        for model in MODELS.values()
    ]
    return markdown_table(("`--model`", "token rules of", "dim", "deepstack levels", "bytes a token"), rows)


def mixes_markdown() -> str:
    """The mixes of requests, and how many tokens each becomes."""
    rows = []
    for name, prompts in MIXES.items():
        for prompt in prompts:
            tokens = [f"{prompt_tokens(prompt, family):,}" for family in (QWEN25, QWEN3)]
            rows.append((f"`{name}`", str(prompt), *tokens))
    return markdown_table(("`--workload`", "media of one request", "tokens, Qwen2.5-VL", "tokens, Qwen3-VL"), rows)


PARTS: Final[dict[str, Callable[[], str]]] = {
    "transports": transports_markdown,
    "proofs": proofs_markdown,
    "options": options_markdown,
    "config": config_markdown,
    "metrics": metrics_markdown,
    "models": models_markdown,
    "mixes": mixes_markdown,
}
"""Every generated part by name."""


def regenerate(text: str, *, source: str = "<text>") -> str:
    """The text with every part of this package made anew.

    Raises :class:`LocalError` for a part that nothing generates, or that has no end.
    """
    done: list[str] = []
    at = 0
    for begin in _BEGIN.finditer(text):
        name = begin.group(1)
        if begin.start() < at:
            raise LocalError(f"{source}: part '{name}' begins inside another")
        if name not in PARTS:
            raise LocalError(f"{source}: nothing generates '{name}'; known parts: {', '.join(PARTS)}")
        closing = f"<!-- end workers:{name} -->"
        end = text.find("\n" + closing, begin.end())
        if end < 0:
            raise LocalError(f"{source}: part '{name}' has no '{closing}' on a line of its own")
        part = PARTS[name]().strip("\n")
        done += [text[at : begin.end()], f"\n\n{part}\n\n"]
        at = end + 1
    return "".join([*done, text[at:]])


def outdated(root: Path) -> dict[Path, str]:
    """The documents that are not current, with what they should say. Raises :class:`LocalError`."""
    found: dict[Path, str] = {}
    for file in (root / "README.md", *sorted((root / "docs").glob("*.md"))):
        if file.is_file():
            text = file.read_text(encoding="utf-8")
            current = regenerate(text, source=file.relative_to(root).as_posix())
            if current != text:
                found[file] = current
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line. Returns 0, 1 if ``--check`` found something out of date, or 2 for a document it cannot read."""
    parser = argparse.ArgumentParser(
        prog="python -m gpu_backend.docs", description="The generated tables about workers in the documents."
    )
    parser.add_argument("--check", action="store_true", help="write nothing; exit code 1 if something is out of date")
    parser.add_argument("--root", type=Path, default=ROOT, help="the source tree")
    options = parser.parse_args(arguments)
    if not (options.root / "docs").is_dir():
        print(f"error: {options.root}: no source tree: there is no docs directory", file=sys.stderr)
        return 2
    try:
        found = outdated(options.root)
    except LocalError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    for file, text in found.items():
        name = file.relative_to(options.root).as_posix()
        if options.check:
            print(f"{name} is out of date; run: python -m gpu_backend.docs", file=sys.stderr)
        else:
            file.write_text(text, encoding="utf-8")
            print(f"{name}: written")
    return int(options.check and bool(found))


if __name__ == "__main__":
    sys.exit(main())
