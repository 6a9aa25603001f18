"""What a table is refused for, word for word: the table, the state, the row and the way out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import product
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fsm.errors import LocalError, TableError
from fsm.table import PREDICATES_PER_EVENT_MAX, REFUSE, Row, Table
from fsm.table_check import guard_text, parse_guard, row_text

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


def build(
    *,
    initial: str = "Draft",
    terminal: Sequence[str] = ("Accepted", "Gone"),
    guards: Mapping[str, Any] = GUARDS,
    **changed: Sequence[Row],
) -> Table:
    """The paper's table, with the rows of some states (or anything else) replaced."""
    return Table("paper", initial=initial, terminal=terminal, rows={**ROWS, **changed}, guards=guards)


def refusal(**arguments: Any) -> str:
    with pytest.raises(TableError) as caught:
        build(**arguments)
    return str(caught.value)


def test_a_state_must_be_an_identifier() -> None:
    assert refusal(**{"in review": []}) == (
        "table 'paper', state 'in review': "
        "the name of a state must be an identifier (hooks are named after it)"
    )


def test_a_state_cannot_be_called_like_refuse() -> None:
    assert refusal(**{REFUSE: []}).startswith("table 'paper', state '(refuse)': the name of a state must be")


def test_the_initial_state_must_be_a_state() -> None:
    assert refusal(initial="Drafted") == (
        "table 'paper': initial state 'Drafted' is no state; states: Draft, Review, Accepted, Gone"
    )


def test_a_terminal_state_must_be_a_state() -> None:
    assert refusal(terminal=("Gone", "Lost", "Burnt")) == (
        "table 'paper': terminal state 'Burnt' is no state; states: Draft, Review, Accepted, Gone"
    )


def test_a_table_without_states() -> None:
    with pytest.raises(TableError, match=r"^table 'void': initial state 'A' is no state; states: none$"):
        Table("void", initial="A", terminal=(), rows={})


def test_a_row_must_be_a_row() -> None:
    assert refusal(Review=Row("rework", "Draft")) == (
        "table 'paper', state 'Review': 'rework' is no Row; a state's rows are a list, even if it is only one"
    )


@pytest.mark.parametrize("event", ["", "re-work", "state", "*", "="])
def test_an_event_must_be_an_identifier_other_than_state(event: str) -> None:
    assert refusal(Review=[Row(event, "Draft")]) == (
        f"table 'paper', state 'Review', row '{event} -> Draft': "
        f"'{event}' cannot name an event: not an identifier, or 'state' itself"
    )


def test_a_target_must_be_a_state() -> None:
    assert refusal(Review=[Row("vote", "Acepted", "quorum & !disputed")]) == (
        "table 'paper', state 'Review', row 'vote [quorum & !disputed] -> Acepted': "
        "target 'Acepted' is no state; states: Draft, Review, Accepted, Gone"
    )


@pytest.mark.parametrize(
    ("guard", "problem"),
    [
        ("written &", "'' is no predicate name; write names joined by '&', negated with '!'"),
        ("& written", "'' is no predicate name; write names joined by '&', negated with '!'"),
        ("written | x", "'written | x' is no predicate name; write names joined by '&', negated with '!'"),
        ("written & 1x", "'1x' is no predicate name; write names joined by '&', negated with '!'"),
        ("!!written", "'!!written' is no predicate name; write names joined by '&', negated with '!'"),
        ("!", "'!' is no predicate name; write names joined by '&', negated with '!'"),
        ("written & quorum & written", "it mentions 'written' twice"),
        ("written & !written", "it mentions 'written' twice"),
    ],
)
def test_bad_guard_syntax(guard: str, problem: str) -> None:
    assert refusal(Draft=[Row("submit", "Review", guard)]) == (
        f"table 'paper', state 'Draft', row 'submit [{guard}] -> Review': bad guard '{guard}': {problem}"
    )


def test_a_guard_must_be_defined() -> None:
    assert refusal(Draft=[Row("submit", "Review", "written & red")]) == (
        "table 'paper', state 'Draft', row 'submit [written & red] -> Review': "
        "guard 'red' is undefined; defined guards: written, quorum, disputed"
    )


def test_a_guard_must_be_defined_where_none_is() -> None:
    with pytest.raises(TableError) as caught:
        Table("bare", initial="A", terminal=("B",), rows={"A": [Row("go", "B", "fit")], "B": []})
    assert str(caught.value) == (
        "table 'bare', state 'A', row 'go [fit] -> B': guard 'fit' is undefined; defined guards: none"
    )


def test_a_guard_must_be_used() -> None:
    assert refusal(guards={**GUARDS, "idle": bool}) == (
        "table 'paper': guard 'idle' is used by no row; remove it or use it"
    )


def test_a_guard_must_be_a_function() -> None:
    assert refusal(guards={**GUARDS, "disputed": True}) == (
        "table 'paper': guard 'disputed' is no function but True"
    )


def test_nothing_leads_out_of_a_terminal_state() -> None:
    assert refusal(Gone=[Row("rework", "Draft")]) == (
        "table 'paper', state 'Gone', row 'rework -> Draft': nothing may lead out of a terminal state"
    )


def test_not_even_a_refused_row_leaves_a_terminal_state() -> None:
    assert "nothing may lead out of a terminal state" in refusal(Gone=[Row("rework", REFUSE)])


def test_an_event_that_is_never_legal() -> None:
    rows = [*ROWS["Draft"], Row("print", REFUSE, "written"), Row("print", REFUSE, "!written")]
    assert refusal(Draft=rows) == (
        "table 'paper', state 'Draft', row 'print [written] -> (refuse)': "
        "event 'print' is never legal here: leave it out of the state"
    )


def test_one_step_cannot_have_two_effects() -> None:
    rows = [
        *ROWS["Review"][:3],
        Row("rework", "Draft", "quorum", "a"),
        Row("rework", "Draft", "!quorum", "b"),
    ]
    assert refusal(Review=rows) == (
        "table 'paper', state 'Review', row 'rework [!quorum] -> Draft': "
        "its effect 'b' differs from 'a' of row 'rework [quorum] -> Draft'; "
        "the effect must follow from where one came from and went"
    )


@pytest.mark.parametrize(("target", "effect"), [("Gone", "b"), ("Gone", "a"), ("Draft", "a")])
def test_two_targets_may_have_two_effects_and_one_step_two_guards(target: str, effect: str) -> None:
    jumps = [Row("jump", "Draft", "quorum", "a"), Row("jump", target, "!quorum", effect)]
    assert build(Review=[*ROWS["Review"], *jumps]).rows["Review"][4:] == tuple(jumps)


def test_an_incomplete_event_names_the_missing_case() -> None:
    assert refusal(Review=[row for row in ROWS["Review"] if row.target != "Accepted"]) == (
        "table 'paper', state 'Review', row 'vote [!quorum] -> Review': "
        "event 'vote' is incomplete: no row matches 'quorum & !disputed'; "
        "add a row, to REFUSE if it is illegal"
    )


def test_the_first_missing_case_is_the_most_positive_one() -> None:
    assert "no row matches 'quorum & disputed'" in refusal(
        Review=[Row("vote", "Draft", "!quorum & !disputed")]
    )


def test_an_ambiguous_event_names_both_rows_and_the_case() -> None:
    assert refusal(Review=[*ROWS["Review"], Row("vote", "Draft", "!quorum & disputed")]) == (
        "table 'paper', state 'Review', row 'vote [!quorum] -> Review': "
        "event 'vote' is ambiguous: row 'vote [!quorum & disputed] -> Draft' matches too, "
        "when '!quorum & disputed'; let their guards exclude each other"
    )


def test_two_rows_without_a_guard_are_ambiguous_always() -> None:
    assert refusal(Review=[Row("rework", "Draft"), Row("rework", "Gone")]) == (
        "table 'paper', state 'Review', row 'rework -> Draft': "
        "event 'rework' is ambiguous: row 'rework -> Gone' matches too, always; "
        "let their guards exclude each other"
    )


def test_the_same_row_twice_is_ambiguous() -> None:
    assert "is ambiguous" in refusal(Draft=[*ROWS["Draft"], ROWS["Draft"][2]])


def chain_of_guards(predicates: int) -> Table:
    """One event whose rows mention so many predicates."""
    names = [f"p{index}" for index in range(predicates)]
    rows = [
        Row(
            "go",
            "B" if index % 2 else "A",
            " & ".join([*(f"!{name}" for name in names[:index]), names[index]]),
        )
        for index in range(predicates)
    ]
    rows.append(Row("go", "B", " & ".join(f"!{name}" for name in names)))
    guards = {name: (lambda facts, name=name: name in facts) for name in names}
    return Table("long", initial="A", terminal=("B",), rows={"A": rows, "B": []}, guards=guards)


def test_as_many_predicates_as_can_be_checked() -> None:
    assert PREDICATES_PER_EVENT_MAX == 10
    table = chain_of_guards(10)
    assert table.next("A", "go", ["p9"]).guard.endswith("!p8 & p9")
    assert table.next("A", "go", ["p0", "p1"]).guard == "p0"


def test_one_predicate_more_than_can_be_checked() -> None:
    with pytest.raises(TableError) as caught:
        chain_of_guards(11)
    assert str(caught.value) == (
        "table 'long', state 'A', row 'go [p0] -> A': "
        "the rows of event 'go' mention 11 predicates, at most 10 can be checked"
    )


def test_an_unreachable_state() -> None:
    assert refusal(Lost=[Row("rework", "Draft")]) == (
        "table 'paper', state 'Lost': it cannot be reached from the initial state 'Draft'"
    )


def test_a_refused_row_reaches_nothing() -> None:
    rows = {"A": [Row("go", "B", "p"), Row("go", REFUSE, "!p")], "B": []}
    assert Table("t", initial="A", terminal=("B",), rows=rows, guards={"p": bool}).states == ("A", "B")


def test_a_dead_end() -> None:
    assert refusal(Review=[*ROWS["Review"], Row("park", "Parked")], Parked=[]) == (
        "table 'paper', state 'Parked': it is a dead end: nothing leads from it to any of: Accepted, Gone"
    )


def test_a_circle_without_a_way_out_is_a_dead_end() -> None:
    rows = [*ROWS["Review"], Row("park", "Parked")]
    assert "state 'Parked': it is a dead end" in refusal(
        Review=rows, Parked=[Row("wait", "Waiting")], Waiting=[Row("park", "Parked")]
    )


def test_without_a_terminal_state_every_state_must_lead_back() -> None:
    free, used = [Row("take", "Used")], [Row("give", "Free")]
    table = Table("block", initial="Free", terminal=(), rows={"Free": free, "Used": used})
    assert table.terminal == ()
    with pytest.raises(TableError) as caught:
        Table("block", initial="Free", terminal=(), rows={"Free": free, "Used": []})
    assert str(caught.value) == (
        "table 'block', state 'Used': it is a dead end: nothing leads from it to any of: Free"
    )


def test_a_single_state_may_be_first_and_last() -> None:
    table = Table("dot", initial="Done", terminal=["Done"], rows={"Done": []})
    assert (table.states, table.events, table.lookup) == (("Done",), (), {})


def test_a_table_error_is_the_callers_fault() -> None:
    assert issubclass(TableError, LocalError)


# Guards.


@pytest.mark.parametrize(
    ("guard", "literals"),
    [
        ("", []),
        ("   ", []),
        ("a", [("a", True)]),
        ("!a", [("a", False)]),
        (" ! a ", [("a", False)]),
        ("b & !a&c", [("b", True), ("a", False), ("c", True)]),
    ],
)
def test_parsing_a_guard(guard: str, literals: list[tuple[str, bool]]) -> None:
    assert list(parse_guard(guard).items()) == literals


@settings(deadline=None)
@given(st.dictionaries(st.from_regex(r"\A[a-z_][a-z_0-9]{0,5}\Z"), st.booleans(), max_size=5))
def test_a_guard_is_parsed_as_it_is_written(literals: dict[str, bool]) -> None:
    assert list(parse_guard(guard_text(literals)).items()) == list(literals.items())


def test_guards_come_out_in_one_spelling() -> None:
    assert build().rows["Review"][2].guard == "quorum & disputed"
    assert row_text(build().rows["Review"][2]) == "vote [quorum & disputed] -> (refuse)"
    assert row_text(Row("go", "B")) == "go -> B"


@settings(max_examples=300, deadline=None)
@given(st.lists(st.dictionaries(st.sampled_from("pqr"), st.booleans()), min_size=1, max_size=5))
def test_rows_are_refused_exactly_if_some_case_has_not_one_row(guards: list[dict[str, bool]]) -> None:
    """Completeness and exclusion against a count of the matching rows for all 8 assignments."""
    names = [name for name in "pqr" if any(name in literals for literals in guards)]
    counts = [
        sum(all(truth["pqr".index(name)] == asked for name, asked in literals.items()) for literals in guards)
        for truth in product((True, False), repeat=3)
    ]
    rows = {"A": [Row("go", "B", guard_text(literals)) for literals in guards], "B": []}
    functions = dict.fromkeys(names, bool)
    if all(count == 1 for count in counts):
        Table("t", initial="A", terminal=("B",), rows=rows, guards=functions)
        return
    with pytest.raises(TableError, match=r"is incomplete|is ambiguous") as caught:
        Table("t", initial="A", terminal=("B",), rows=rows, guards=functions)
    if 0 not in counts:
        assert "is ambiguous" in str(caught.value)
    if max(counts) <= 1:
        assert "is incomplete" in str(caught.value)
