"""Models, proofs and tables of one's own on the command line, and what is said of files that do not do."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

from fsm.errors import LocalError
from fsm.kernel import ARRAY, INT
from fsm.lifecycle import RECEIVER_TABLE
from sim.cli_load import load
from sim.model.tables import after, numbers_of
from tests.sim.cli_kit import ROOT, refused, resumark

OWN = '''
from fsm.table import Row, Table
from sim.model.form import LARGE, Action, Clause, Field, Model
from sim.prove.induction import Proof

TABLE = Table("lamp", initial="Off", terminal=(), rows={
    "Off": [Row("press", "On")], "On": [Row("press", "Off")],
})

def made(high=LARGE, step=1, more=()):
    up = Action("up", lambda ops, view: view.x < view.top, lambda ops, view: {"x": view.x + step})
    below = Clause("below", "X is never above the top.", lambda ops, view: view.x <= view.top, "S1")
    fields = (Field("x", 0, high), Field("top", 0, high))
    return Model("counter", fields, ({"x": 0, "top": 5} if high < LARGE else {"x": 0},), (up,), (below, *more))

def small():
    return made(9)

WRONG = made(9, 2)
PROOF = Proof(made(), given=("top",))
BAD_PROOF = Proof(made(step=2), given=("top",))
VACUOUS = Proof(made(more=(Clause("never", "Nothing is so.", lambda ops, view: view.x != view.x),)), given=("top",))
CHANGES = Proof(made(), given=("top", "x"))
ODD = Clause("odd", "X has no such thing.", lambda ops, view: view.x.bits == 1)
UNREADABLE = Proof(made(more=(ODD,)), given=("top",))
DECIDES = Model("decides", (Field("x", 0, 1),), ({},), (Action("a", lambda ops, view: view.x == 0 or True, None),))

def needs(size):
    return made(size)

def broken():
    return {}["nothing"]
'''


@pytest.fixture
def own(tmp_path: Path) -> str:
    """A file under a name that no other test imports."""
    name = re.sub(r"\W", "_", f"own_{tmp_path.name}")
    path = tmp_path / f"{name}.py"
    path.write_text(OWN)
    return str(path)


# --- models ----------------------------------------------------------------------------------------------


def test_a_model_of_a_file_is_searched(own: str) -> None:
    done = resumark("model", "file", f"{own}:small", "--json")
    assert (done.code, done.data["states"], done.data["coverage"]) == (0, 6, "exhausted")
    assert (done.data["model"], done.data["file"]) == ("counter", f"{own}:small")
    assert done.data["sizes"] == {"fields": 2, "actions": 1}
    page = (ROOT / "docs" / "cli.md").read_text(encoding="utf-8")
    assert [name for name in done.data if f"`{name}`" not in page] == []


def test_its_violation_is_a_shortest_trace(own: str) -> None:
    done = resumark("model", "file", f"{own}:WRONG", "--no-symmetry", "--time-max", "60")
    assert done.code == 1
    assert re.search(r"^ +3  up +x 4 -> 6$", done.out, re.M)
    assert "violated: S1 below. X is never above the top." in done.out
    assert done.out.rstrip().endswith(f"resumark model file {own}:WRONG --no-symmetry --time-max 60")


# --- proofs ----------------------------------------------------------------------------------------------


def test_a_proof_of_a_file(own: str) -> None:
    pytest.importorskip("z3")
    done = resumark("prove", f"{own}:PROOF")
    assert done.code == 0, done.err
    assert "S1 below: X is never above the top." in done.out
    assert re.search(r"^2 conditions proved, in .* on 1 core\.$", done.out, re.M)
    assert done.out.rstrip().endswith(f"resumark prove {own}:PROOF")


def test_a_proof_that_fails_shows_the_step(own: str) -> None:
    pytest.importorskip("z3")
    done = resumark("prove", f"{own}:BAD_PROOF")
    assert done.code == 1
    assert "failed: S1 below (up)" in done.out and re.search(r"^ *x +\d+ +\d+$", done.out, re.M)
    data = resumark("prove", f"{own}:BAD_PROOF", "--json").data
    (failed,) = [one for one in data["conditions"] if one["result"] == "failed"]
    before, after_x = failed["before"], failed["changed"]["x"]
    assert before["x"] < before["top"] < after_x == before["x"] + 2
    page = (ROOT / "docs" / "cli.md").read_text(encoding="utf-8")
    page = page[page.index("\n## `resumark prove`") : page.index("\n## `resumark agree`")]
    assert [name for name in (*data, *failed) if f"`{name}`" not in page] == []


def test_clauses_that_contradict_each_other_prove_nothing(own: str) -> None:
    """Everything follows from them; so it is no answer. The clause fails at the start too, unless that is assumed."""
    pytest.importorskip("z3")
    assert resumark("prove", f"{own}:VACUOUS").code == 1


def test_a_contradiction_that_is_assumed_is_seen(tmp_path: Path) -> None:
    pytest.importorskip("z3")
    path = tmp_path / "own_assumed.py"
    path.write_text(OWN.replace("VACUOUS = Proof(", 'VACUOUS = Proof(assumed=("never",), model='))
    done = resumark("prove", f"{path}:VACUOUS")
    assert done.code == 4 and "No state satisfies all clauses, so everything follows from them." in done.out
    assert resumark("prove", f"{path}:VACUOUS", "--json").data["vacuous"] is True


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("CHANGES", "action 'up' changes 'x', which is given or left open"),
        ("UNREADABLE", "model 'counter', clause 'odd': the solver cannot read it"),
    ],
)
def test_a_proof_that_cannot_be_read(own: str, name: str, says: str) -> None:
    pytest.importorskip("z3")
    done = resumark("prove", f"{own}:{name}")
    refused(done)
    assert says in done.err


# --- tables ----------------------------------------------------------------------------------------------


def test_a_table_of_a_file_is_drawn(own: str) -> None:
    assert "Off --> On: press" in resumark("diagram", f"{own}:TABLE").out
    assert resumark("diagram", f"{own}:TABLE", "--format", "text").out.startswith("state  event  guard")


def test_rows_as_expressions_say_what_the_table_says() -> None:
    """For every state and event of a table with guards, with ints and with arrays."""
    import numpy as np

    numbers = numbers_of(RECEIVER_TABLE)
    facts = {"resume_due": True, "partial": False, "delivered": True}

    class Facts:
        resume_due, partial, delivered = facts.values()

    for event in RECEIVER_TABLE.events:
        legal, target = after(ARRAY, RECEIVER_TABLE, np.arange(len(numbers)), event, facts)
        for state, number in numbers.items():
            one = after(INT, RECEIVER_TABLE, number, event, facts)
            assert one == (bool(legal[number]), int(target[number]))
            if one[0]:
                assert numbers[RECEIVER_TABLE.next(state, event, Facts).target] == one[1]
            else:
                with pytest.raises(LocalError):
                    RECEIVER_TABLE.next(state, event, Facts)
    with pytest.raises(LocalError, match="table 'receiver' has no event 'landd'; events: registered"):
        after(INT, RECEIVER_TABLE, 0, "landd")
    with pytest.raises(LocalError, match="event 'landed': its rows ask 'partial', and facts have no such name"):
        after(INT, RECEIVER_TABLE, 1, "landed", {})


# --- what is refused -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("command", "name", "says"),
    [
        (("model", "file"), "nothing", "there is no 'nothing' in it; of that kind are WRONG, DECIDES"),
        (("model", "file"), "PROOF", "is a Proof, expected a Model; of that kind are WRONG, DECIDES"),
        (("model", "file"), "needs", "is a function, and calling it raises TypeError: needs() missing 1 required"),
        (("model", "file"), "broken", "is a function, and calling it raises KeyError: 'nothing', line "),
        (("model", "file"), "DECIDES", "guard of action 'a': decides on (x == 0)"),
        (("prove",), "WRONG", "is a Model, expected a Proof; of that kind are PROOF"),
        (("diagram",), "PROOF", "is a Proof, expected a Table; of that kind are TABLE"),
        (("diagram",), "", "expected a file and a name in it, as in path/to/file.py:NAME"),
    ],
)
def test_a_name_that_does_not_do(own: str, command: tuple[str, ...], name: str, says: str) -> None:
    done = resumark(*command, f"{own}:{name}")
    refused(done)
    assert says in done.err


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("import no_such_module", "cannot be imported: ModuleNotFoundError: No module named 'no_such_module'"),
        ("x = (", "cannot be imported: SyntaxError: '(' was never closed, line 1 of "),
        ("\n\n1 / 0", "cannot be imported: ZeroDivisionError: division by zero, line 3"),
        ("import sys\nsys.exit(7)", "cannot be imported: SystemExit: 7, line 2"),
        ("", "there is no 'X' in it; nothing in it is a Model"),
    ],
)
def test_a_file_that_does_not_do(tmp_path: Path, text: str, says: str) -> None:
    path = tmp_path / f"bad_{re.sub(r'[^a-z0-9]', '_', tmp_path.name)}.py"
    path.write_text(text)
    path_before = list(sys.path)
    done = resumark("model", "file", f"{path}:X")
    refused(done)
    assert f"{path}: {says}" in done.err
    assert sys.path == path_before


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        ("nowhere.py:X", "nowhere.py: there is no such file"),
        ("model.txt:X", "model.txt:X: expected a file and a name in it"),
        ("just_a_name", "just_a_name: expected a file and a name in it"),
    ],
)
def test_what_is_no_file(spec: str, says: str) -> None:
    for command in (("model", "file"), ("prove",)):
        done = resumark(*command, spec)
        refused(done)
        assert says in done.err


def test_other_arguments_that_do_not_do(own: str) -> None:
    done = resumark("diagram", "sendr")
    refused(done)
    assert "sendr: there is no such table; there are receiver, sender, block, and path/to/file.py:NAME" in done.err
    done = resumark("prove", f"{own}:PROOF", "--variant", "none")
    refused(done)
    assert "--variant: is for the protocol" in done.err


def test_a_file_in_a_package_is_imported_under_its_full_name(tmp_path: Path) -> None:
    """So that it finds its package, and what it defines is the same thing that others import."""
    package = tmp_path / "some_own_package" / "inner"
    package.mkdir(parents=True)
    for folder in (package.parent, package):
        (folder / "__init__.py").touch()
    (package.parent / "numbers_here.py").write_text("SEVEN = 7\n")
    (package / "thing.py").write_text("from some_own_package.numbers_here import SEVEN\n")
    assert load(f"{package / 'thing.py'}:SEVEN", int) == 7
    assert "some_own_package.inner.thing" in sys.modules
    other = tmp_path / "elsewhere"
    other.mkdir()
    (other / "json.py").write_text("X = 1\n")
    with pytest.raises(LocalError, match="there is another module of that name"):
        load(f"{other / 'json.py'}:X", int)
