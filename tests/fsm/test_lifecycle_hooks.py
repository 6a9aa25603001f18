"""Lifecycles: hooks and their order, what is shared and remembered, what a failing hook leaves behind."""

from __future__ import annotations

import gc
import tracemalloc
from enum import Enum
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
import transitions

from fsm.errors import IllegalEvent, LocalError, TableError
from fsm.table import HISTORY_STEPS_MAX, REFUSE, Lifecycle, Row, Table

LAMP = Table(
    "lamp",
    initial="Off",
    terminal=("Broken",),
    rows={
        "Off": [
            Row("switch", "On", "powered", "glow"),
            Row("switch", REFUSE, "!powered"),
            Row("drop", "Broken"),
        ],
        "On": [Row("switch", "Off"), Row("dim", "On"), Row("drop", "Broken")],
        "Broken": [],
    },
    guards={"powered": lambda facts: facts.powered},
)


class Lamp(Lifecycle):
    """A lamp that is powered and notes nothing."""

    __slots__ = ("log", "powered")
    table: ClassVar[Table] = LAMP

    def __init__(self, powered: bool = True) -> None:
        super().__init__()
        self.powered = powered
        self.log: list[Any] = []


class Watched(Lamp):
    """A lamp with a hook of every kind."""

    __slots__ = ()

    def before_switch(self, facts: Any) -> None:
        self.log.append(("before", self.state, self.history, facts))

    def on_exit_Off(self, facts: Any) -> None:
        self.log.append(("exit", self.state, self.history, facts))

    def on_enter_On(self, facts: Any) -> None:
        self.log.append(("enter", self.state, self.history, facts))

    def after_switch(self, facts: Any) -> None:
        self.log.append(("after", self.state, self.history, facts))


POWER = SimpleNamespace(powered=True)
NO_POWER = SimpleNamespace(powered=False)


# Starting and moving.


def test_a_lifecycle_starts_in_the_initial_state_without_a_history() -> None:
    lamp = Lamp()
    assert lamp.state == "Off"
    assert lamp.history == ()


@pytest.mark.parametrize("way", ["fire", "fire_flat"])
def test_both_ways_move_return_the_row_and_remember(way: str) -> None:
    lamp = Lamp()
    assert getattr(lamp, way)("switch", POWER) is LAMP.rows["Off"][0]
    assert lamp.state == "On"
    assert getattr(lamp, way)("dim").target == "On"
    assert getattr(lamp, way)("drop").target == "Broken"
    assert lamp.history == (("switch", "On"), ("dim", "On"), ("drop", "Broken"))


@pytest.mark.parametrize("way", ["fire", "fire_flat"])
def test_the_facts_are_the_lifecycle_itself_if_none_are_given(way: str) -> None:
    assert getattr(Lamp(powered=True), way)("switch").target == "On"
    with pytest.raises(IllegalEvent):
        getattr(Lamp(powered=False), way)("switch")


@pytest.mark.parametrize("way", ["fire", "fire_flat"])
def test_facts_that_are_false_are_facts_all_the_same(way: str) -> None:
    class Empty(tuple[()]):
        powered = True

    assert getattr(Lamp(powered=False), way)("switch", Empty()).target == "On"


@pytest.mark.parametrize("way", ["fire", "fire_flat"])
@pytest.mark.parametrize(
    ("state", "event", "refused_by"),
    [("Off", "switch", "!powered"), ("Off", "dim", ""), ("Broken", "switch", "")],
)
def test_an_illegal_event_changes_nothing_and_runs_no_hook(
    way: str, state: str, event: str, refused_by: str
) -> None:
    lamp = Watched()
    lamp.state = state
    with pytest.raises(IllegalEvent) as caught:
        getattr(lamp, way)(event, NO_POWER)
    assert (caught.value.state, caught.value.event, caught.value.refused_by) == (state, event, refused_by)
    assert caught.value.legal == LAMP.legal(state)
    assert (lamp.state, lamp.history, lamp.log) == (state, (), [])


# Hooks.


def test_hooks_run_in_order_with_the_facts() -> None:
    lamp = Watched()
    lamp.fire("switch", POWER)
    moved = (("switch", "On"),)
    assert lamp.log == [
        ("before", "Off", (), POWER),
        ("exit", "Off", (), POWER),
        ("enter", "On", moved, POWER),
        ("after", "On", moved, POWER),
    ]


def test_hooks_receive_the_lifecycle_itself_if_no_facts_are_given() -> None:
    lamp = Watched()
    lamp.fire("switch")
    assert [entry[3] is lamp for entry in lamp.log] == [True] * 4


def test_the_flat_lookup_runs_no_hooks() -> None:
    lamp = Watched()
    lamp.fire_flat("switch")
    assert lamp.log == []


def test_a_hook_runs_for_its_own_state_or_event_only() -> None:
    lamp = Watched()
    lamp.fire_flat("switch")
    lamp.fire("dim")
    assert [entry[0] for entry in lamp.log] == ["enter"]
    lamp.log.clear()
    lamp.fire("drop")
    assert lamp.log == []


def test_callbacks_can_be_added_to_the_machine() -> None:
    class Wired(Lamp):
        __slots__ = ()

    seen: list[str] = []
    Wired.machine.before_switch(lambda facts: seen.append("before"))
    Wired.machine.on_exit_Off(lambda facts: seen.append("exit"))
    Wired.machine.on_enter_On(lambda facts: seen.append("enter"))
    Wired.machine.after_switch(lambda facts: seen.append("after"))
    Wired().fire("switch", POWER)
    assert seen == ["before", "exit", "enter", "after"]
    Lamp().fire("switch", POWER)
    assert len(seen) == 4


def test_a_terminal_state_is_final_for_the_machine() -> None:
    class Wired(Lamp):
        __slots__ = ()

    ended: list[object] = []
    Wired.machine.on_final = ended.append  # type: ignore[attr-defined]
    lamp = Wired()
    lamp.fire("switch", POWER)
    assert ended == []
    lamp.fire("drop", POWER)
    assert ended == [POWER]


def test_a_subclass_inherits_methods_and_may_override_them() -> None:
    class Quiet(Watched):
        __slots__ = ()

        def on_enter_On(self, facts: Any) -> None:
            self.log.append("quiet")

    lamp = Quiet()
    lamp.fire("switch", POWER)
    assert [entry if entry == "quiet" else entry[0] for entry in lamp.log] == [
        "before",
        "exit",
        "quiet",
        "after",
    ]


def test_every_subclass_has_one_machine_of_its_own_without_models() -> None:
    assert Lamp.machine is not Watched.machine
    assert Lamp().machine is Lamp().machine is Lamp.machine
    for _ in range(3):
        Lamp().fire("switch")
    assert Lamp.machine.models == []
    assert Lamp.machine.events["switch"].transitions["Off"][0].before == []
    assert Watched.machine.events["switch"].transitions["Off"][0].before == ["before_switch"]


def test_a_subclass_may_leave_the_table_to_its_own_subclasses() -> None:
    class Base(Lifecycle):
        __slots__ = ()

        def on_enter_On(self, facts: Any) -> None:
            raise AssertionError("not bound to any table yet")

    class Concrete(Base):
        __slots__ = ()
        table = LAMP

    assert not hasattr(Base, "machine")
    assert Concrete.machine.states["On"].on_enter == ["on_enter_On"]


def test_class_arguments_reach_other_bases() -> None:
    class Tagged:
        tag = ""

        def __init_subclass__(cls, tag: str = "", **kwargs: Any) -> None:
            super().__init_subclass__(**kwargs)
            cls.tag = tag

    class Both(Lifecycle, Tagged, tag="x"):
        table = LAMP

    assert Both.tag == "x"


@pytest.mark.parametrize(
    ("hook", "problem"),
    [
        ("on_enter_Onn", "table 'lamp' has no state 'Onn'; states: Off, On, Broken"),
        ("on_exit_switch", "table 'lamp' has no state 'switch'; states: Off, On, Broken"),
        ("before_Off", "table 'lamp' has no event 'Off'; events: switch, drop, dim"),
        ("after_swich", "table 'lamp' has no event 'swich'; events: switch, drop, dim"),
        ("after_", "table 'lamp' has no event ''; events: switch, drop, dim"),
    ],
)
def test_a_hook_that_would_never_be_called_is_refused(hook: str, problem: str) -> None:
    with pytest.raises(TableError) as caught:
        type("Typo", (Lamp,), {hook: lambda self, facts: None})
    assert str(caught.value) == f"hook Typo.{hook} would never be called: {problem}"


def test_other_names_are_no_hooks() -> None:
    names = ("enter_On", "on_enterOn", "beforehand", "aftermath", "on_entry_Onn", "not_before_x")
    made = type("Other", (Lamp,), {name: lambda self, facts: 1 / 0 for name in names})
    assert made().fire("switch").target == "On"


def test_hooks_on_states_of_an_enum_and_on_awkward_event_names() -> None:
    class Gate(str, Enum):
        OPEN = "Open"
        SHUT = "Shut"

    # Machine has attributes of its own called before_state_change and after_state_change.
    rows = {Gate.OPEN: [Row("state_change", Gate.SHUT)], Gate.SHUT: []}
    seen: list[str] = []

    class Gated(Lifecycle):
        table = Table("gate", initial=Gate.OPEN, terminal=(Gate.SHUT,), rows=rows)

        def before_state_change(self, facts: Any) -> None:
            seen.append("before")

        def on_enter_Shut(self, facts: Any) -> None:
            seen.append("enter")

    gate = Gated()
    states: list[object] = [gate.state]
    gate.fire("state_change")
    states.append(gate.state)
    assert states[0] is Gate.OPEN
    assert states[1] is Gate.SHUT
    assert gate.history == (("state_change", Gate.SHUT),)
    assert seen == ["before", "enter"]


# Hooks that fire again, and hooks that fail.


class Fragile(Lamp):
    """A lamp whose hooks do what the test says."""

    __slots__ = ("at", "do")

    def __init__(self, at: str, do: Any) -> None:
        super().__init__()
        self.at = at
        self.do = do

    def _maybe(self, at: str) -> None:
        if at == self.at:
            self.at = ""
            self.do(self)

    def before_switch(self, facts: Any) -> None:
        self._maybe("before")

    def on_exit_Off(self, facts: Any) -> None:
        self._maybe("exit")

    def on_enter_On(self, facts: Any) -> None:
        self._maybe("enter")

    def after_switch(self, facts: Any) -> None:
        self._maybe("after")


@pytest.mark.parametrize("at", ["enter", "after"])
def test_a_hook_may_fire_again_once_the_state_has_changed(at: str) -> None:
    lamp = Fragile(at, lambda lamp: lamp.fire("drop"))
    assert lamp.fire("switch").target == "On"
    assert lamp.state == "Broken"
    assert lamp.history == (("switch", "On"), ("drop", "Broken"))


@pytest.mark.parametrize("at", ["before", "exit"])
def test_a_hook_must_not_move_on_while_a_step_is_under_way(at: str) -> None:
    lamp = Fragile(at, lambda lamp: lamp.fire("drop"))
    with pytest.raises(LocalError) as caught:
        lamp.fire("switch")
    assert str(caught.value) == (
        "lamp: event 'switch': a before_ or on_exit_ hook moved on from Off to Broken; "
        "fire from on_enter_ or after_ hooks"
    )
    assert lamp.state == "Broken"
    assert lamp.history == (("drop", "Broken"),)


@pytest.mark.parametrize(
    ("at", "moved"), [("before", False), ("exit", False), ("enter", True), ("after", True)]
)
def test_what_a_failing_hook_leaves_behind(at: str, moved: bool) -> None:
    lamp = Fragile(at, lambda lamp: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        lamp.fire("switch")
    assert lamp.state == ("On" if moved else "Off")
    assert lamp.history == ((("switch", "On"),) if moved else ())


@pytest.mark.parametrize("way", ["fire", "fire_flat"])
def test_a_failing_guard_changes_nothing(way: str) -> None:
    lamp = Lamp()
    with pytest.raises(AttributeError):
        getattr(lamp, way)("switch", object())
    assert (lamp.state, lamp.history) == ("Off", ())


NOT_TAKEN = (
    "lamp: in state Off the guards allowed 'switch [powered] -> On' and the machine did not take it: "
    "a guard must answer alike when asked twice, and an on_exception callback must not swallow what a hook "
    "raises"
)


def test_a_guard_that_changes_its_mind_is_found_out() -> None:
    class Once:
        asked = 0

        @property
        def powered(self) -> bool:
            self.asked += 1
            return self.asked == 1

    lamp = Lamp()
    with pytest.raises(LocalError) as caught:
        lamp.fire("switch", Once())
    assert str(caught.value) == NOT_TAKEN
    assert (lamp.state, lamp.history) == ("Off", ())


def test_a_swallowed_exception_is_found_out() -> None:
    class Swallowing(Fragile):
        __slots__ = ()

    Swallowing.machine.on_exception = lambda facts: None
    lamp = Swallowing("before", lambda lamp: 1 / 0)
    with pytest.raises(LocalError) as caught:
        lamp.fire("switch")
    assert str(caught.value) == NOT_TAKEN


# The machine driven by hand.


def test_a_step_taken_through_the_machine_is_remembered_too() -> None:
    lamp = Watched()
    assert Watched.machine.events["switch"].trigger(lamp, POWER) is True
    assert lamp.history == (("switch", "On"),)
    assert len(lamp.log) == 4
    with pytest.raises(transitions.MachineError):
        Watched.machine.events["switch"].trigger(SimpleNamespace(state="Broken"), POWER)


def test_the_machine_drives_any_object_with_a_state() -> None:
    lamp = SimpleNamespace(state="Off")
    assert Lamp.machine.events["switch"].trigger(lamp, NO_POWER) is False
    assert Lamp.machine.events["switch"].trigger(lamp, POWER) is True
    assert vars(lamp) == {"state": "On"}


# Memory.


@pytest.mark.parametrize("way", ["fire", "fire_flat"])
def test_the_history_keeps_the_newest_steps(way: str) -> None:
    lamp = Lamp()
    lamp.fire_flat("switch")
    for steps in range(2, HISTORY_STEPS_MAX + 1):
        getattr(lamp, way)("dim")
        assert len(lamp.history) == steps
    assert HISTORY_STEPS_MAX == 64
    assert lamp.history[0] == ("switch", "On")
    getattr(lamp, way)("dim")
    assert lamp.history == (("dim", "On"),) * 64
    getattr(lamp, way)("drop")
    assert lamp.history == (*[("dim", "On")] * 63, ("drop", "Broken"))


def test_a_lifecycle_with_a_full_history_is_small() -> None:
    class Small(Lifecycle):
        __slots__ = ()
        table = LAMP

    count = 200
    kept: list[Small | None] = [None] * count
    gc.collect()
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        for index in range(count):
            lamp = kept[index] = Small()
            lamp.fire_flat("switch", POWER)
            for _ in range(HISTORY_STEPS_MAX):
                lamp.fire_flat("dim")
        after, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert (after - before) / count <= 1500
