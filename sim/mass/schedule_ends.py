"""The second half of a round in a mass simulation: copies that end, failures and how they get to the other side,
proofs, restarts, faults. See :mod:`sim.mass.schedule`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from fsm import kernel
from fsm.kernel import Number, Ops
from sim.mass.schedule_parts import (
    BY_NAME,
    CRASH,
    FAULTS_LEFT,
    LANE_FAILED,
    Book,
    Decision,
    Draft,
    atom,
    part_of,
    step_of,
)
from sim.model.form import Fields, View, negate
from sim.model.protocol_bounded import FAULTS
from sim.model.protocol_parts import Part, Step
from sim.model.protocol_receiver import Place

BROKEN = "a write breaks"
STRIKES = 3
"""Of 16 draws, how many let a fault strike in a round of the first phase."""


class Endings(Book):
    """The turns that end a request early, and those that clear up behind it."""

    def copies(self, name: str, number: int, rank: int, place: Place, *, fault: bool, struck: Any = None) -> None:
        """The copy of a chunk ends: of the chunk in the first block, from a drawn one on, that holds one."""

        def reading(room: Part, step: Step, block: str) -> Number:
            claim = step.claim(room, block)
            return (claim.c_has == 1) & (claim.c_seq <= room.read_seq)

        def chosen(step: Step) -> dict[str, Number]:
            ops, room = step.ops, step.part(place.room)
            first = step.view[self.start_block] % len(place.blocks)
            seq: Number = -1
            tokens: Number = 0
            for after in (False, True):  # later ones win: those from the drawn block on
                for index in reversed(range(len(place.blocks))):
                    claim = step.claim(room, place.blocks[index])
                    here = reading(room, step, place.blocks[index])
                    if after:
                        here = here & (first <= index)
                    seq, tokens = ops.where(here, claim.c_seq, seq), ops.where(here, claim.c_tokens, tokens)
            return {"seq": seq, "tokens": tokens}

        def guard(draft: Draft) -> Number:
            step = draft.step()
            room = step.part(place.room)
            some: Number = room.state < 0
            for block in place.blocks:
                some = some | reading(room, step, block)
            if fault:
                some = some & (room.leased == 0)
            return some if struck is None else struck(step.view) & some

        self.add(
            name, number, rank, place, guard,
            lambda draft: draft.do(BY_NAME[name], place, **chosen(draft.step())),
            lambda state: [atom(place, name, chosen(step_of(state, self.rules)))],
            numbers=lambda ops, view: chosen(Step(ops, view, self.rules)), fault=fault,
            counts={name: lambda ops, view: view[f"{place.room}_state"] >= 0} if fault else {},
        )  # fmt: skip

    def ending(self, number: int, rank: int, place: Place) -> None:
        """How a failure gets to the other side, and what proves that no write is outstanding."""
        p = place.room

        def lane_failed(ops: Ops, before: View, after: View) -> Decision:
            was, now = before[f"{p}_l_state"], after[f"{p}_l_state"]
            fails = (was > kernel.BOOTSTRAPPING) & (was < kernel.SUCCESS) & (now == kernel.FAILED)
            return (ops.where(fails, LANE_FAILED, 0), number, rank, 0, 0, 0, 0)

        def unanswered(draft: Draft, room: Part) -> Number:
            quiet = (room.writing == 0) & (room.answered != room.s_boot)
            return (room.l_state < kernel.SUCCESS) | quiet | ((room.writing == 1) & (room.ack_owed == 0))

        def answers(draft: Draft, room: Part) -> None:
            draft.put(True, **{f"{p}_answered": room.s_boot})

        self.entry("receive ABORT", number, rank, place, also=unanswered, after=answers, decision=lane_failed)
        if self.bounds.faults:
            heard = BY_NAME["abort or NACK"]
            self.add(
                "the sender's ABORT", number, rank, place,
                lambda draft: (draft.step().read(f"{p}_told") == 1) & (draft.step().read(f"{p}_failure") == 0)
                & draft.may(heard, place),
                lambda draft: draft.do(heard, place), lambda state: [atom(place, heard.name, {})],
            )  # fmt: skip

        def boot(room: Part) -> dict[str, Number]:
            return {"boot": room._step.ops.where(room.peer_boot == 0, room.answered, room.peer_boot)}

        def take(draft: Draft, room: Part) -> None:
            draft.see_boot(rank, boot(room)["boot"])

        def atoms(state: Mapping[str, int]) -> list[str]:
            chosen = boot(part_of(state, place))
            return self._then_release(state, place, "receive ABORT_ACK", chosen, self.news(rank, state, chosen["boot"]))

        self.entry(
            "receive ABORT_ACK", number, rank, place, boot, before=take, after=self._release(place), atoms=atoms,
            also=lambda draft, room: boot(room)["boot"] >= 1,
        )  # fmt: skip
        if self.bounds.crashes:
            self.gone(number, rank, place)

    def gone(self, number: int, rank: int, place: Place) -> None:
        """The process that a request was granted to is over, and with it all that it wrote for anybody."""
        entry = BY_NAME["the process is gone"]
        p = place.room

        def alike(step: Step, other: Place) -> Number:
            room = step.part(other.room)
            return (room.registered == 1) & (room.peer_boot == step.read(f"{p}_peer_boot"))

        def guard(draft: Draft) -> Number:
            step = draft.step()
            allowed = draft.may(entry, place)
            for other in self.on_rank(rank):
                if other is not place:
                    allowed = allowed & (negate(alike(step, other)) | (step.part(other.room).flight == 0))
            return allowed

        def make(draft: Draft) -> None:
            step = draft.step()
            boot = step.read(f"{p}_peer_boot")
            for other in self.on_rank(rank):
                draft.do(entry, other, alike(step, other) & draft.may(entry, other))
            draft.put(boot > step.read(f"k{rank}_gone"), **{f"k{rank}_gone": boot})

        def atoms(state: Mapping[str, int]) -> list[str]:
            draft = Draft(self, kernel.INT, Fields(state))
            return [
                atom(other, entry.name, {}) for other in self.on_rank(rank)
                if alike(draft.step(), other) and draft.may(entry, other)
            ]  # fmt: skip

        self.add(entry.name, number, rank, place, guard, make, atoms,
                 numbers=lambda ops, view: {"boot": view[f"{p}_peer_boot"]})  # fmt: skip

    def restarts(self, rank: int) -> None:
        """A HEARTBEAT of a newer process of the sender arrives."""
        place = self.on_rank(rank)[0]

        def guard(draft: Draft) -> Number:
            step = draft.step()
            unheard: Number = step.read(f"{place.room}_s_boot") > step.read(f"k{rank}_heard")
            return unheard & (step.read(f"k{rank}_heard") > 0) & self.rules.boot_change_fences()

        def make(draft: Draft) -> None:
            draft.see_boot(rank, draft.step().read(f"{place.room}_s_boot"))

        self.add(
            "a restart is seen", 0, rank, place, guard, make,
            lambda state: self.news(rank, state, state[f"{place.room}_s_boot"]),
            numbers=lambda ops, view: {"boot": view[f"{place.room}_s_boot"]},
        )  # fmt: skip

    def faults(self, places: Sequence[tuple[int, int, Place]]) -> None:
        """At most one of them strikes in a round.

        On a two-sided transport (``late``) no single write breaks: there the connection is lost with it, and a process
        that outlives that comes back under a new boot id, as after a crash.
        """
        kinds: list[tuple[str, int, int, Place]] = []
        if self.bounds.faults:
            for number, rank, place in places:
                kinds += [(name, number, rank, place) for name in FAULTS if not (name == BROKEN and self.bounds.late)]
        if self.bounds.crashes:
            for rank in range(self.bounds.ranks):
                kinds += [(CRASH, 0, rank, self.on_rank(rank)[0])] * 2
        for index, (name, number, rank, place) in enumerate(kinds):
            self._fault(name, number, rank, place, self._struck(index, len(kinds)))

    def _struck(self, index: int, kinds: int) -> Callable[[View], Number]:
        one, two = self.which

        def struck(view: View) -> Number:
            # A number below 128, cut into equal parts.
            drawn = view[one] * 8 + view[two] // 2
            first, last = index * 128 // kinds, (index + 1) * 128 // kinds
            return (view[FAULTS_LEFT] > 0) & (view[self.strike] < STRIKES) & (drawn >= first) & (drawn < last)

        return struck

    def _fault(self, name: str, number: int, rank: int, place: Place, struck: Callable[[View], Number]) -> None:
        p = place.room
        if name == "a copy fails":
            self.copies(name, number, rank, place, fault=True, struck=struck)
            return
        entry = BY_NAME[name]
        everybody = self.on_rank(rank) if name == CRASH else [place]

        def guard(draft: Draft) -> Number:
            step = draft.step()
            room = step.part(p)
            allowed = struck(step.view) & draft.may(entry, place)
            if name == CRASH:
                allowed = allowed & (step.read("crashes_left") > 0)
            if name == "the sender fails":  # before, it is the whole room that ends, and not one epoch of it
                allowed = allowed & (room.l_state > kernel.BOOTSTRAPPING)
            return allowed

        def make(draft: Draft) -> None:
            was_live = draft.step().read(f"{p}_l_state") < kernel.SUCCESS
            for one in everybody:
                draft.do(entry, one)
            if name == CRASH:
                draft.put(True, crashes_left=draft.step().read("crashes_left") - 1)
            if name in ("the sender fails", "a write breaks"):
                draft.put(was_live, **{f"{p}_told": 1})

        def lane_failed(ops: Ops, before: View, after: View) -> Decision:
            fails = (before[f"{p}_l_state"] < kernel.SUCCESS) & (after[f"{p}_l_state"] == kernel.FAILED)
            return (ops.where(fails, LANE_FAILED, 0), number, rank, 0, 0, 0, 0)

        self.add(
            name, number, rank, place, guard, make,
            lambda state: [f"s{rank}: {name}"] if name == CRASH else [atom(place, name, {})],
            rate="fault", fault=True, decision=lane_failed if name in ("the sender fails", "a write breaks") else None,
            numbers=lambda ops, view: {"seq": view[f"{p}_f_seq"], "boot": view[f"{p}_s_boot"] + 1},
            counts={name: lambda ops, view: view[f"{p}_state"] >= 0},
        )  # fmt: skip
