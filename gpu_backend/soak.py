"""Kills and stops workers, again and again, and looks whether the other side bears it.

One sender and one receiver transfer small requests that need many grants. In every round one of them is hit by
SIGKILL, by SIGSTOP and SIGCONT some time later, or by SIGSTOP and then SIGKILL, in a state drawn from all there are.
Then must hold:

- every request of the side that lives ends, in bounded time, and a failed one says why;
- its pool comes back whole once the other process is proved quiet (gone, or answering again), not by the clock: while
  a sender that may still write is stopped, what it was granted stays quarantined;
- whoever starts anew under the same address, with a new boot_id, is taken up: the next requests end in Success;
- whatever is delivered is what was sent, to the byte.

Times are short (deadlines of a second or two), and processes are forked from a server that has everything imported, so
that a round takes a second or two.
"""

from __future__ import annotations

import random
import signal
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic, sleep
from typing import Any, Final, NamedTuple

from fsm.errors import LocalError
from fsm.states import State
from gpu_backend.config import TimingConfig
from gpu_backend.launch import Child, ChildDied, Launch, Said, TimedOut
from gpu_backend.plan import Plan, Request
from gpu_backend.soak_parties import IDLE, WRITING, Settled, Trigger, soak_receiver, soak_sender
from gpu_backend.workload import QWEN25, Model, text_prompt

PRELOAD: Final = ("torch", "zmq", "gpu_backend.soak_parties")

MODEL: Final = Model("small", QWEN25, 512)
BLOCK_TOKENS: Final = 64
POOL_BLOCKS: Final = 6
TOKENS: Final = (40, 2_000)
"""Lengths are drawn between these."""
ROUND_REQUESTS: Final = 5
CHECK_REQUESTS: Final = 2
IN_FLIGHT: Final = 3

TIMING: Final = TimingConfig(
    deadline_s=1.5, queue_deadline_s=1.5, bootstrap_s=1.5, resend_s=0.1, tombstone_s=3.0, heartbeat_s=0.25
)
END_LIMIT_S: Final = TIMING.timing().longest_s
"""No wait of a request, on either side, may take longer than all of its deadlines together."""

WHOLE_LIMIT_S: Final = 15.0
"""From the proof to the last block: generous, for it only keeps a broken run from hanging."""

LIFE: Final = (State.BOOTSTRAPPING, State.WAITING, State.TRANSFERRING, State.RESUMING, State.SUCCESS)
STATES: Final = {
    "receiver": (*map(str, LIFE), IDLE),
    "sender": (*map(str, LIFE), IDLE, WRITING),
}
"""Where each side is hit."""

KILL, STOP_CONT, STOP_KILL = "kill", "stop, continue", "stop, kill"
WAYS: Final = (KILL, KILL, STOP_CONT, STOP_KILL)

Tell = Callable[[int], None]


class Hit(NamedTuple):
    """One round, drawn."""

    number: int
    side: str
    way: str
    state: str
    nth: int
    """For the n-th time that one of its requests gets there."""
    by_itself: bool
    """The process signals itself in the very event; otherwise somebody does, ``late_s`` later."""
    late_s: float
    stopped_s: float
    restart_at_once: bool
    """Start the successor before the survivor has noticed anything."""


@dataclass
class SoakResult:
    """What a soak came to."""

    seed: int
    transport: str = ""
    hits: Counter[tuple[str, str]] = field(default_factory=Counter)
    """By side and way."""
    states: Counter[tuple[str, str]] = field(default_factory=Counter)
    """By side and state."""
    reasons: Counter[tuple[str, str]] = field(default_factory=Counter)
    """Requests of survivors that failed, by side and reason."""
    succeeded: int = 0
    """Requests delivered, and every byte as sent."""
    quarantined_rounds: int = 0
    """Rounds in which blocks were held back for want of a proof, for a while."""
    not_reached: int = 0
    """Rounds in which the drawn moment did not come; the process was hit when all was over."""
    ended_max_s: float = 0.0
    """The longest time from the hit to the end of the survivor's last request."""
    whole_max_s: float = 0.0
    """The longest time from the proof of quiescence to the survivor's whole pool."""
    elapsed_s: float = 0.0
    problems: list[str] = field(default_factory=list)

    def problem(self, text: str) -> None:
        """Something that must not be; each is noted once."""
        if text not in self.problems:
            self.problems.append(text)

    @property
    def kills(self) -> int:
        """Processes that were killed or stopped."""
        return sum(self.hits.values())

    @property
    def verdict(self) -> str:
        """``holds`` or ``violated``."""
        return "violated" if self.problems else "holds"


def soak_plan(seed: int, transport: str, options: dict[str, Any] | None = None, trace: str = "") -> Plan:
    """The configuration that both sides of a soak have."""
    return Plan(
        model=MODEL, prompts=(text_prompt(TOKENS[1]),), seed=seed, transport=transport,
        transport_options=options or {}, pool_blocks=POOL_BLOCKS, block_tokens=BLOCK_TOKENS,
        source_blocks=3 * -(-TOKENS[1] // BLOCK_TOKENS), in_flight=IN_FLIGHT, timing=TIMING, undisturbed=False,
        trace=trace,
    )  # fmt: skip


def soak(
    kills: int,
    *,
    seed: int,
    transport: str = "auto",
    tell: Tell = lambda done: None,
    hits: Iterable[Hit] | None = None,
    trace: str = "",
) -> SoakResult:
    """Hit workers ``kills`` times, as the seed draws it (or as ``hits`` says). Stops at the first problem. ``trace``: a
    directory in which every process leaves its trace.

    Raises :class:`LocalError` for what cannot be run here.
    """
    if transport == "in-process":
        raise LocalError("transport in-process has both sides in one process: there is nobody to survive; take another")
    started_s = monotonic()
    result = SoakResult(seed)
    plan = soak_plan(seed, transport, trace=trace)
    plan.make_trace_directory()
    with Launch(preload=PRELOAD) as launch:
        try:
            run = _Soak(launch, plan, result, random.Random(seed))
            for hit in hits or (draw_hit(run.draw, number) for number in range(kills)):
                run.round(hit)
                if result.problems:
                    break
                tell(hit.number + 1)
        except (ChildDied, TimedOut) as error:
            result.problems.append(f"round {sum(result.hits.values())}: {error}")
    result.elapsed_s = monotonic() - started_s
    return result


def draw_hit(draw: random.Random, number: int) -> Hit:
    """Whom to hit next, how and when."""
    side = draw.choice(("sender", "receiver"))
    return Hit(
        number, side, draw.choice(WAYS), draw.choice(STATES[side]), draw.randint(1, 4), draw.random() < 0.5,
        draw.random() * 0.01, draw.uniform(0.05, 2.5), draw.random() < 0.5,
    )  # fmt: skip


def process_state(pid: int) -> str:
    """The letter that Linux has for it, ``T`` for stopped; empty if it is gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (OSError, IndexError):
        return ""


def judge(settled: Settled, side: str, result: SoakResult) -> None:
    """Count what became of requests on one side, and note what must not be."""
    result.quarantined_rounds += settled.quarantined > 0
    for one in settled.ended:
        if one.state == str(State.SUCCESS):
            result.succeeded += side == "receiver"
            if one.wrong:
                result.problem(f"room {one.room} delivered wrong content: {one.wrong}")
        else:
            result.reasons[side, one.reason] += 1
            if one.reason in ("", "NONE"):
                result.problem(f"room {one.room} failed at the {side} without a reason")
    for name, text in settled.violations:
        result.problem(f"{name} at the {side}: {text}")


class _Soak:
    """The two processes, and the rounds that they go through."""

    def __init__(self, launch: Launch, plan: Plan, result: SoakResult, draw: random.Random) -> None:
        self.launch = launch
        self.plan = plan
        self.result = result
        self.draw = draw
        self.room = 0
        self.boots = Counter[str]()
        self.address = "tcp://127.0.0.1:0"
        self.one_sided = False
        self.children: dict[str, Child] = {}
        self._start("sender")
        self._start("receiver")
        self._check("before the first round")

    # --- processes ------------------------------------------------------------------------------------

    def _start(self, side: str) -> None:
        """Start a side, at the address that it had before."""
        boot = self.boots[side]
        self.boots[side] += 1
        work = soak_sender if side == "sender" else soak_receiver
        child = self.launch.start(f"{side} {boot}", work, self.plan, self.address, boot)
        self.children[side] = child
        said = self.launch.wait_for("ready", [child])[child.name]
        if side == "sender":
            self.address, self.result.transport, self.one_sided = said

    def _restart(self, side: str) -> None:
        self.launch.forget(self.children[side])
        self._start(side)

    # --- a round --------------------------------------------------------------------------------------

    def round(self, hit: Hit) -> None:
        """One hit, and everything that must hold afterwards."""
        survivor = "receiver" if hit.side == "sender" else "sender"
        settled_before = self._hit(hit)
        hit_s = monotonic()
        self.result.hits[hit.side, hit.way] += 1
        victim = self.children[hit.side]
        quiet_s = hit_s
        if hit.way == KILL:
            victim.process.join()
        else:
            sleep(hit.stopped_s)
            quiet_s = monotonic()
            if hit.way == STOP_KILL:
                victim.kill()
            else:
                victim.over = False
                victim.signal(signal.SIGCONT)
        if hit.way != STOP_CONT and hit.restart_at_once:
            self._restart(hit.side)
        self._survive(survivor, hit_s, quiet_s, hit.stopped_s if hit.way == STOP_CONT else 0.0)
        if hit.way == STOP_CONT:
            self._survive(hit.side, quiet_s, quiet_s, 0.0, settled_before)
        elif not hit.restart_at_once:
            self._restart(hit.side)
        self._check(f"after round {hit.number} ({hit.side} in {hit.state}: {hit.way})")

    def _hit(self, hit: Hit) -> bool:
        """Hand requests out, and hit the victim in the drawn moment, or at the latest when all is over.

        Returns whether it had settled by then.
        """
        victim = self.children[hit.side]
        number = signal.SIGKILL if hit.way == KILL else signal.SIGSTOP
        victim.over = True  # its end is no surprise from now on
        if hit.state != IDLE:
            victim.tell("arm", Trigger(hit.state, hit.nth, number, hit.by_itself))
        self._hand_out()
        settled = False
        said = self._word_of(victim)
        if said is not None and said.kind == "settled":
            settled = True
            judge(said.value, hit.side, self.result)
            self.result.not_reached += hit.state != IDLE
        if not settled or hit.state == IDLE:
            self.result.states[hit.side, hit.state] += 1
        if hit.by_itself and said is not None and said.kind == "reached":
            self._await_stop(victim)
        else:
            sleep(hit.late_s)
            victim.signal(number)
        return settled

    def _await_stop(self, victim: Child) -> None:
        """Until a process that hits itself has done so: a SIGCONT that comes before would be lost."""
        deadline_s = monotonic() + WHOLE_LIMIT_S
        while victim.alive and process_state(victim.pid) != "T":
            if monotonic() > deadline_s:
                raise TimedOut(f"the {victim.name} said that it would stop and did not")
            sleep(0.001)

    def _word_of(self, child: Child) -> Said | None:
        """That it has reached its moment, or settled; ``None`` if it went faster than its last words."""
        deadline_s = monotonic() + 2 * END_LIMIT_S + WHOLE_LIMIT_S
        while monotonic() < deadline_s:
            said = self.launch.hear(0.2, [child])
            if said is not None and said.kind in ("reached", "settled"):
                return said
            if said is None and not child.alive:
                return None
        raise TimedOut(f"the {child.name} neither reached its moment nor settled")

    def _survive(
        self, side: str, since_s: float, quiet_s: float, stopped_s: float, settled_before: bool = False
    ) -> None:
        """What must hold on a side that lives: everything ends, for a reason, and the pool comes back whole."""
        child = self.children[side]
        settled_s = since_s
        if not settled_before:
            settled: Settled = self._wait(child, "settled", END_LIMIT_S + WHOLE_LIMIT_S)
            settled_s = settled.at_s
            took_s = settled_s - since_s
            self.result.ended_max_s = max(self.result.ended_max_s, took_s)
            if took_s > END_LIMIT_S + stopped_s:
                self.result.problem(f"the last request at the {side} ended {took_s:.1f} s after the hit")
            judge(settled, side, self.result)
            if self.one_sided and since_s < settled.released_s < quiet_s:
                self.result.problem("blocks came back while the stopped sender could still write to them")
        whole_s = self._wait(child, "whole", WHOLE_LIMIT_S)
        self.result.whole_max_s = max(self.result.whole_max_s, whole_s - max(quiet_s, settled_s))

    # --- requests -------------------------------------------------------------------------------------

    def _hand_out(self, count: int = ROUND_REQUESTS) -> None:
        """New requests, to the sender first."""
        requests = []
        for _ in range(count):
            self.room += 1
            tokens = self.draw.randint(*TOKENS)
            requests.append(Request(self.room, text_prompt(tokens), tokens))
        for side in ("sender", "receiver"):
            self.children[side].tell("requests", requests)

    def _check(self, when: str) -> None:
        """Without a fault, requests end in Success, byte for byte, on both sides."""
        self._hand_out(CHECK_REQUESTS)
        for side, child in self.children.items():
            settled: Settled = self._wait(child, "settled", END_LIMIT_S + WHOLE_LIMIT_S)
            judge(settled, side, self.result)
            for one in settled.ended:
                if one.state != str(State.SUCCESS):
                    self.result.problem(f"{when}: room {one.room} failed at the {side}: {one.reason} {one.detail}")
            self._wait(child, "whole", WHOLE_LIMIT_S)

    def _wait(self, child: Child, kind: str, timeout_s: float) -> Any:
        try:
            return self.launch.wait_for(kind, [child], timeout_s)[child.name]
        except TimedOut as error:
            child.tell("describe")
            said = self.launch.wait_for("description", [child], WHOLE_LIMIT_S)[child.name]
            raise TimedOut(f"{error}: {said}") from None


__all__ = ["Hit", "SoakResult", "draw_hit", "judge", "soak", "soak_plan"]
