"""Tables: what they hold, what the lookup answers, how they are drawn, and the machine made of them."""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum
from types import SimpleNamespace
from typing import Any

import pytest
import transitions

from fsm.errors import IllegalEvent, LocalError, TableError
from fsm.table import REFUSE, Choice, Row, Table
from fsm.table_check import plain

GUARDS = {
    "written": lambda facts: facts.written,
    "quorum": lambda facts: facts.quorum,
    "disputed": lambda facts: facts.disputed,
}
ROWS: dict[str, Sequence[Row]] = {
    "Draft": [
        Row("submit", "Review", "written", effect="invite", why="reviewers get a copy"),
        Row("submit", REFUSE, "!written", why="nothing to read | yet"),
        Row("withdraw", "Gone"),
    ],
    "Review": [
        Row("vote", "Review", "!quorum", effect="record"),
        Row("vote", "Accepted", "quorum & !disputed", effect="print"),
        Row("vote", REFUSE, "quorum&disputed"),
        Row("rework", "Draft"),
    ],
    "Accepted": [],
    "Gone": [],
}


def build(*, terminal: Sequence[str] = ("Accepted", "Gone"), guards: Any = GUARDS, **more: Any) -> Table:
    """The table of a paper under review."""
    return Table("paper", initial="Draft", terminal=terminal, rows=ROWS, guards=guards, **more)


def facts(**answers: Any) -> SimpleNamespace:
    return SimpleNamespace(**{**dict.fromkeys(GUARDS, False), **answers})


# What a table holds.


def test_a_table_keeps_the_order_in_which_it_was_written() -> None:
    table = build(essay="Papers are written.", terminal=("Gone", "Accepted"))
    assert table.name == "paper"
    assert table.essay == "Papers are written."
    assert table.states == ("Draft", "Review", "Accepted", "Gone")
    assert table.events == ("submit", "withdraw", "vote", "rework")
    assert table.initial == "Draft"
    assert table.terminal == ("Accepted", "Gone")
    assert list(table.guards) == ["written", "quorum", "disputed"]
    assert table.rows["Draft"] == tuple(ROWS["Draft"])
    assert repr(table) == "Table('paper', 4 states, 4 events)"
    assert build().essay == ""


def test_a_table_does_not_change_with_what_it_was_made_of() -> None:
    rows: dict[str, Sequence[Row]] = {"A": [Row("go", "B", "p"), Row("go", "A", "!p")], "B": []}
    guards: dict[str, Any] = {"p": bool}
    table = Table("t", initial="A", terminal=("B",), rows=rows, guards=guards)
    rows["C"] = []
    guards["p"] = None
    assert table.states == tuple(table.rows) == ("A", "B")
    assert table.guards == {"p": bool}
    with pytest.raises(TypeError):
        table.rows["C"] = ()  # type: ignore[index]
    with pytest.raises(TypeError):
        table.guards["q"] = bool  # type: ignore[index]


def test_legal_events() -> None:
    table = build()
    assert table.legal("Draft") == ("submit", "withdraw")
    assert table.legal("Review") == ("vote", "rework")
    assert table.legal("Gone") == ()


def test_a_state_that_is_none() -> None:
    text = r"^table 'paper' has no state 'Nowhere'; states: Draft, Review, Accepted, Gone$"
    with pytest.raises(LocalError, match=text):
        build().legal("Nowhere")
    with pytest.raises(LocalError, match=text):
        build().next("Nowhere", "submit")


def test_next_returns_the_row() -> None:
    table = build()
    assert table.next("Draft", "withdraw") == Row("withdraw", "Gone")
    assert table.next("Draft", "submit", facts(written=True)) is table.rows["Draft"][0]
    assert table.next("Review", "vote", facts(disputed=True)) is table.rows["Review"][0]
    assert table.next("Review", "vote", facts(quorum=True)) is table.rows["Review"][1]


def test_an_event_without_a_row_is_illegal() -> None:
    with pytest.raises(IllegalEvent) as caught:
        build().next("Draft", "vote", facts())
    error = caught.value
    assert (error.table, error.state, error.event, error.refused_by) == ("paper", "Draft", "vote", "")
    assert error.legal == ("submit", "withdraw")
    assert str(error) == (
        "paper: event 'vote' is illegal in state Draft: no row for it; legal events: submit, withdraw"
    )


def test_an_event_in_a_terminal_state_is_illegal() -> None:
    with pytest.raises(IllegalEvent, match=r"in state Gone: no row for it; legal events: none \(terminal\)$"):
        build().next("Gone", "vote")


def test_a_refused_outcome_is_illegal_and_names_the_guard() -> None:
    with pytest.raises(IllegalEvent) as caught:
        build().next("Review", "vote", facts(quorum=True, disputed=True))
    assert caught.value.refused_by == "quorum & disputed"
    assert caught.value.legal == ("vote", "rework")


def test_the_lookup_asks_no_more_than_it_must() -> None:
    asked: list[str] = []

    def ask(name: str, answer: bool) -> bool:
        asked.append(name)
        return answer

    guards = {name: (lambda facts, name=name: ask(name, facts[name])) for name in GUARDS}
    table = build(guards=guards)
    table.next("Review", "vote", {"quorum": False})
    assert asked == ["quorum"]
    table.next("Review", "rework", None)
    assert asked == ["quorum"]
    table.next("Review", "vote", {"quorum": True, "disputed": False})
    assert asked == ["quorum", "quorum", "disputed"]


def test_the_compiled_form_is_there_to_be_read() -> None:
    table = build()
    assert table.lookup["Draft", "withdraw"] is table.rows["Draft"][2]
    question = table.lookup["Draft", "submit"]
    assert isinstance(question, Choice)
    assert (question.name, question.predicate) == ("written", GUARDS["written"])
    assert (question.no, question.yes) == (table.rows["Draft"][1], table.rows["Draft"][0])
    assert list(table.lookup) == [
        ("Draft", "submit"),
        ("Draft", "withdraw"),
        ("Review", "vote"),
        ("Review", "rework"),
    ]


# States that are members of an enum.


class Plain(str, Enum):
    """Prints as ``Plain.OPEN``, hashes as its text."""

    OPEN = "Open"
    SHUT = "Shut"


def door(target: str = "Shut") -> Table:
    rows = {Plain.OPEN: [Row("close", target, "p"), Row("close", REFUSE, "!p")], Plain.SHUT: []}
    return Table("door", initial="Open", terminal=("Shut",), rows=rows, guards={"p": bool})


def test_members_of_an_enum_come_back_as_members() -> None:
    table = door()
    assert table.initial is Plain.OPEN
    assert table.terminal[0] is Plain.SHUT
    assert table.next("Open", "close", True).target is Plain.SHUT
    assert table.next(Plain.OPEN, "close", True).target is Plain.SHUT


def test_members_of_an_enum_show_as_their_text() -> None:
    assert plain(Plain.OPEN) == "Open"
    assert type(plain(Plain.OPEN)) is str
    table = door()
    for text in (table.mermaid(), table.markdown(), table.text()):
        assert "Open" in text
        assert "Plain" not in text and "OPEN" not in text
    with pytest.raises(IllegalEvent, match=r"^door: event 'close' is illegal in state Open: guard '!p' said"):
        table.next(Plain.OPEN, "close", False)
    with pytest.raises(TableError, match=r"target 'Sht' is no state; states: Open, Shut$"):
        door("Sht")
    with pytest.raises(LocalError, match=r"no state 'Ajar'; states: Open, Shut$"):
        table.legal("Ajar")


def test_the_machine_stores_members_of_an_enum() -> None:
    machine = door().build_machine()
    for state in (Plain.OPEN, "Open"):
        model = SimpleNamespace(state=state)
        assert machine.events["close"].trigger(model, True)
        assert model.state is Plain.SHUT
    assert list(machine.states) == ["Open", "Shut"]


# Pictures.


def test_mermaid() -> None:
    assert build().mermaid() == (
        "stateDiagram-v2\n"
        "    [*] --> Draft\n"
        "    Draft --> Review: submit [written] / invite\n"
        "    Draft --> Gone: withdraw\n"
        "    Review --> Review: vote [!quorum] / record\n"
        "    Review --> Accepted: vote [quorum & !disputed] / print\n"
        "    Review --> Draft: rework\n"
        "    Accepted --> [*]\n"
        "    Gone --> [*]\n"
    )


def test_mermaid_escapes_what_would_end_a_label() -> None:
    rows = {"A": [Row("go", "B", effect="a: b; #c %d <e>\nf")], "B": []}
    text = Table("t", initial="A", terminal=("B",), rows=rows).mermaid()
    assert "    A --> B: go / a#58; b#59; #35;c #37;d #60;e#62; f\n" in text


def test_mermaid_renames_its_own_words() -> None:
    rows = {"Note": [Row("go", "Note_"), Row("end", "state")], "Note_": [Row("go", "state")], "state": []}
    assert Table("t", initial="Note", terminal=("state",), rows=rows).mermaid() == (
        "stateDiagram-v2\n"
        '    state "Note" as Note__\n'
        '    state "state" as state_\n'
        "    [*] --> Note__\n"
        "    Note__ --> Note_: go\n"
        "    Note__ --> state_: end\n"
        "    Note_ --> state_: go\n"
        "    state_ --> [*]\n"
    )


MERMAID_WORDS = """
    accDescr accTitle class classDef click default href note scale state stateDiagram style Style NOTE
"""


@pytest.mark.parametrize("word", MERMAID_WORDS.split())
def test_every_word_of_mermaids_own_is_renamed(word: str) -> None:
    text = Table("t", initial=word, terminal=(word,), rows={word: []}).mermaid()
    assert (
        text == f'stateDiagram-v2\n    state "{word}" as {word}_\n    [*] --> {word}_\n    {word}_ --> [*]\n'
    )


def test_markdown() -> None:
    assert build().markdown() == (
        "| state | event | guard | next | effect | why |\n"
        "| --- | --- | --- | --- | --- | --- |\n"
        "| Draft | submit | written | Review | invite | reviewers get a copy |\n"
        "| Draft | submit | !written | (refuse) |  | nothing to read \\| yet |\n"
        "| Draft | withdraw |  | Gone |  |  |\n"
        "| Review | vote | !quorum | Review | record |  |\n"
        "| Review | vote | quorum & !disputed | Accepted | print |  |\n"
        "| Review | vote | quorum & disputed | (refuse) |  |  |\n"
        "| Review | rework |  | Draft |  |  |\n"
        "| Accepted |  |  |  |  | terminal: nothing leads out |\n"
        "| Gone |  |  |  |  | terminal: nothing leads out |\n"
    )


def test_text() -> None:
    rows = {"A": [Row("go", "Bee", "p", "run", "it  is\ntime"), Row("go", REFUSE, "!p")], "Bee": []}
    assert Table("t", initial="A", terminal=("Bee",), rows=rows, guards={"p": bool}).text() == (
        "state  event  guard  next      effect  why\n"
        "A      go     p      Bee       run     it is time\n"
        "A      go     !p     (refuse)\n"
        "Bee                                    terminal: nothing leads out\n"
    )


# The machine.


def test_the_machine_is_transitions_own_and_holds_no_model() -> None:
    machine = build().build_machine()
    assert isinstance(machine, transitions.Machine)
    assert machine.models == []
    assert machine.initial == "Draft"
    assert machine.name == "paper: "
    assert list(machine.states) == ["Draft", "Review", "Accepted", "Gone"]
    assert list(machine.events) == ["submit", "withdraw", "vote", "rework"]
    assert [state.name for state in machine.states.values() if state.final] == ["Accepted", "Gone"]


def test_the_machine_shows_the_guards_by_name() -> None:
    (accept,) = build().build_machine().get_transitions("vote", dest="Accepted")
    named = [(getattr(condition.func, "__name__", ""), condition.target) for condition in accept.conditions]
    assert named == [("quorum", True), ("disputed", False)]


def test_a_refused_row_is_no_transition() -> None:
    machine = build().build_machine()
    assert [move.dest for move in machine.get_transitions("vote")] == ["Review", "Accepted"]
    model = SimpleNamespace(state="Review")
    assert machine.events["vote"].trigger(model, facts(quorum=True, disputed=True)) is False
    assert model.state == "Review"


def test_the_machine_refuses_a_state_that_is_none() -> None:
    machine = build().build_machine()
    with pytest.raises(ValueError, match="'Nowhere'"):
        machine.on_enter_Nowhere(print)
    with pytest.raises(transitions.MachineError):
        machine.events["vote"].trigger(SimpleNamespace(state="Gone"), facts())
