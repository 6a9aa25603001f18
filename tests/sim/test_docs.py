"""The generated parts of the documents: current in this tree, and made by the rules that the module states."""

from __future__ import annotations

from pathlib import Path

import pytest

from fsm.errors import LocalError
from fsm.invariants import PROPERTIES
from fsm.messages import NackCode
from fsm.states import State
from sim import docs, zoo

ROOT = Path(__file__).resolve().parents[2]


def page(*names: str) -> str:
    return "".join(f"before\n<!-- generated:{name} -->\nold\n<!-- end generated:{name} -->\nafter\n" for name in names)


def test_the_documents_of_this_tree_are_current() -> None:
    assert {file.name: "python -m sim.docs" for file in docs.outdated(ROOT)} == {}


@pytest.mark.parametrize("name", sorted(docs.PARTS))
def test_every_part_is_made_between_its_markers_and_is_stable(name: str) -> None:
    once = docs.regenerate(page(name))
    assert once.startswith(f"before\n<!-- generated:{name} -->\n\n")
    assert once.endswith(f"\n\n<!-- end generated:{name} -->\nafter\n")
    assert "old" not in once.splitlines()
    assert len(once.splitlines()) > 8
    assert docs.regenerate(once) == once


def test_two_parts_of_one_page() -> None:
    text = docs.regenerate(page("kvpoll", "properties"))
    assert text.count("before\n") == text.count("after\n") == 2
    assert "| `ResumeRequested` | `Transferring` | 3 |" in text
    assert "| **L3** | liveness |" in text


def test_a_page_without_parts_is_left_alone() -> None:
    text = "# Title\n\nText about <!-- generated:kvpoll --> in the middle of a line.\n"
    assert docs.regenerate(text) == text


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("<!-- generated:nothing -->\n<!-- end generated:nothing -->\n", "nothing generates 'nothing'; known parts: "),
        ("<!-- generated:kvpoll -->\nno end\n", "part 'kvpoll' has no '<!-- end generated:kvpoll -->'"),
        ("<!-- generated:kvpoll -->\n<!-- end generated:properties -->\n", "part 'kvpoll' has no"),
        (
            "<!-- generated:kvpoll -->\n<!-- generated:properties -->\n<!-- end generated:properties -->\n"
            "<!-- end generated:kvpoll -->\n",
            "part 'properties' begins inside another",
        ),
    ],
)
def test_wrong_markers_are_refused(text: str, says: str) -> None:
    with pytest.raises(LocalError, match=r"^a\.md: ") as caught:
        docs.regenerate(text, source="a.md")
    assert says in str(caught.value)


def test_the_tables_name_everything() -> None:
    assert all(f"**{name}**" in docs.properties_markdown() for name in PROPERTIES)
    assert all(f"`{state}`" in docs.kv_poll_markdown() for state in State)
    assert all(f"`{code}`" in docs.nack_codes_markdown() for code in NackCode)
    assert all(f"| `{name}` |" in docs.zoo_markdown("detector") for name in zoo.DETECTORS)
    assert all(f"| `{name}` |" in docs.zoo_markdown("hazard") for name in zoo.HAZARDS)


def test_the_zoo_says_what_is_switched_off_and_where_it_hides() -> None:
    hazards = {line.split(" | ")[0]: line for line in docs.zoo_markdown("hazard").splitlines()}
    assert "R3 the sender's start check" in hazards["| `max-progress`"]
    assert "| holds |" in hazards["| `stale-header`"]
    detectors = docs.zoo_markdown("detector")
    assert "L1 (not under lifo)" in detectors
    assert "| five states |" in detectors


def test_a_cell_keeps_its_bars() -> None:
    assert docs.markdown_table(("a", "b"), [("x|y", "z")]) == "| a | b |\n|---|---|\n| x\\|y | z |\n"


def test_the_command_checks_then_writes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "docs").mkdir()
    (tmp_path / "README.md").write_text("# Nothing generated\n")
    old = tmp_path / "docs" / "a.md"
    old.write_text(page("kvpoll"))
    where = ["--root", str(tmp_path)]
    assert docs.main(["--check", *where]) == 1
    assert capsys.readouterr().err == "docs/a.md is out of date; run: python -m sim.docs\n"
    assert old.read_text() == page("kvpoll")
    assert docs.main(where) == 0
    assert capsys.readouterr().out == "docs/a.md: written\n"
    assert old.read_text() == docs.regenerate(page("kvpoll"))
    assert docs.main(["--check", *where]) == 0
    assert capsys.readouterr() == ("", "")


def test_the_command_refuses_what_it_cannot_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert docs.main(["--root", str(tmp_path)]) == 2
    assert "there is no docs directory" in capsys.readouterr().err
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "a.md").write_text("<!-- generated:nothing -->\n")
    assert docs.main(["--check", "--root", str(tmp_path)]) == 2
    assert capsys.readouterr().err.startswith("error: docs/a.md: nothing generates 'nothing'")
