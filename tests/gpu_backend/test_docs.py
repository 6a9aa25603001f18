"""The documents about workers: generated tables are current, and every option, reason and field is told of."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import typer

from fsm.errors import LocalError
from fsm.reasons import Reason
from gpu_backend import docs, transports
from gpu_backend.layout import make_layout
from gpu_backend.metrics import METRICS
from gpu_backend.pool import BlockPool, SourcePool
from gpu_backend.transports.base import ReceiverTransport, SenderTransport
from gpu_backend.transports.in_process import Fabric
from tests.gpu_backend.kit_cli import SMALL, need, resumark

ROOT = Path(__file__).resolve().parents[2]
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def page(*names: str) -> str:
    return "".join(f"before\n<!-- workers:{name} -->\nold\n<!-- end workers:{name} -->\nafter\n" for name in names)


# --- generated parts -------------------------------------------------------------------------------------


def test_the_documents_of_this_tree_are_current() -> None:
    assert {file.name: "python -m gpu_backend.docs" for file in docs.outdated(ROOT)} == {}


@pytest.mark.parametrize("name", sorted(docs.PARTS))
def test_every_part_is_made_between_its_markers_is_stable_and_is_used(name: str) -> None:
    once = docs.regenerate(page(name))
    assert once.startswith(f"before\n<!-- workers:{name} -->\n\n| ")
    assert once.endswith(f" |\n\n<!-- end workers:{name} -->\nafter\n")
    assert "old" not in once.splitlines()
    assert docs.regenerate(once) == once
    assert any(f"<!-- workers:{name} -->" in file.read_text() for file in DOCUMENTS)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("<!-- workers:nothing -->\n<!-- end workers:nothing -->\n", "nothing generates 'nothing'; known parts: "),
        ("<!-- workers:proofs -->\nno end\n", "part 'proofs' has no '<!-- end workers:proofs -->'"),
        (
            "<!-- workers:proofs -->\n<!-- workers:config -->\n<!-- end workers:config -->\n"
            "<!-- end workers:proofs -->\n",
            "part 'config' begins inside another",
        ),
    ],
)
def test_wrong_markers_are_refused(text: str, says: str) -> None:
    with pytest.raises(LocalError, match=r"^a\.md: ") as caught:
        docs.regenerate(text, source="a.md")
    assert says in str(caught.value)


def test_the_command_checks_then_writes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert docs.main(["--root", str(tmp_path)]) == 2
    assert "there is no docs directory" in capsys.readouterr().err
    (tmp_path / "docs").mkdir()
    old = tmp_path / "docs" / "a.md"
    old.write_text(page("models"))
    where = ["--root", str(tmp_path)]
    assert docs.main(["--check", *where]) == 1
    assert capsys.readouterr().err == "docs/a.md is out of date; run: python -m gpu_backend.docs\n"
    assert old.read_text() == page("models")
    assert docs.main(where) == 0
    assert capsys.readouterr().out == "docs/a.md: written\n"
    assert docs.main(["--check", *where]) == 0
    old.write_text("<!-- workers:nothing -->\n")
    assert docs.main(["--check", *where]) == 2
    assert capsys.readouterr().err.startswith("error: docs/a.md: nothing generates 'nothing'")


def test_the_tables_name_everything() -> None:
    for name in transports.MODULES:
        assert f"| `{name}` |" in docs.transports_markdown() and f"| `{name}` |" in docs.proofs_markdown()
    assert all(f"`resumark_{name}`" in docs.metrics_markdown() for name in METRICS)
    lines = {line.split("`")[1]: line for line in docs.config_markdown().splitlines()[2:]}
    assert lines["layout.dim"].endswith("| receiver and sender |")
    assert lines["results.tokens"].endswith("| receiver |")


def _sides(name: str) -> list[type[ReceiverTransport] | type[SenderTransport]]:
    return [transports.get(name).receiver, transports.get(name).sender]


READ_LATE = ("endpoint_proves",)
"""Options that are read when a write has failed, and not when a side is made."""
ON_CPU = [name for name in transports.MODULES if "cpu" in transports.get(name).traits.devices]
"""What can be made here; the others share their options with one of these."""


@pytest.mark.parametrize(
    ("option", "name"),
    [(one.name, name) for one in docs.OPTIONS for name in one.of if name in ON_CPU and one.name not in READ_LATE],
)
def test_an_option_of_the_table_is_one_that_a_transport_reads(option: str, name: str) -> None:
    """Its name is asked for when a side is made. A table of options that nobody reads helps nobody."""
    need(name)
    asked: set[str] = set()

    class Noted(dict[str, Any]):
        def get(self, key: str, default: Any = None) -> Any:
            asked.add(key)
            return super().get(key, default)

    layout = make_layout(16, 8)
    given = Noted({"fabric": Fabric()} if name == "in-process" else {})
    for kind in _sides(name):
        receiver = issubclass(kind, ReceiverTransport)
        pool = (BlockPool if receiver else SourcePool)(layout, 2, huge_pages=False)
        made: Any = kind(pool, rank=0, boot_id=1, options=given)  # type: ignore[arg-type]
        made.close()
        pool.close()
    assert option in asked


def test_every_reason_is_explained() -> None:
    """The table of endings has a row for each reason that an outcome may name."""
    text = (ROOT / "docs" / "workers.md").read_text()
    endings = text[text.index("\n## Endings") : text.index("\n## Faults")]
    assert [reason.name for reason in Reason if f"`{reason.name}`" not in endings] == []


# --- commands -------------------------------------------------------------------------------------------


def _app() -> Any:
    from sim.cli import build_app

    return typer.main.get_command(build_app())


def _options(words: tuple[str, ...]) -> set[str]:
    """Every option of a command, as its own help has them."""
    command: Any = _app()
    for word in words:
        command = command.commands[word]
    return {name for parameter in command.params for name in parameter.opts if name.startswith("--")} - {"--help"}


@pytest.mark.parametrize(
    "words", [("run",), ("worker", "sender"), ("worker", "receiver"), ("soak",), ("bench", "transfer")], ids=" ".join
)
def test_every_option_is_documented(words: tuple[str, ...]) -> None:
    text = (ROOT / "docs" / "cli.md").read_text(encoding="utf-8")
    assert [option for option in sorted(_options(words)) if f"`{option}" not in text] == []


def test_every_field_of_run_is_documented() -> None:
    done = resumark("run", *SMALL, "--requests", "1", "--tokens", "40", "--transport", "in-process", "--json")
    text = (ROOT / "docs" / "cli.md").read_text(encoding="utf-8")
    data = json.loads(done.out)
    fields = [*data, *(f"requests[].{name}" for name in data["requests"][0])]
    assert [field for field in fields if f"`{field}`" not in text] == []
