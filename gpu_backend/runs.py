"""A run with real processes: starts one for each rank, waits, and puts what they report together.

The sender ranks come up first and tell where they listen; then the receiver ranks connect, all are told to go, and the
parent only listens. A transport that needs both sides in one process (``in-process``) gets one process with a worker
of each side.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from fsm.errors import LocalError
from gpu_backend.kills import PRELOAD, SILENCE_S, KilledRun, KilledRunner, check_kills
from gpu_backend.launch import Child, ChildDied, Launch, Line, TimedOut, free_port
from gpu_backend.plan import Plan
from gpu_backend.workload import HEADER_BYTES

SINGLE_SHOT_MESSAGES = 5
"""REGISTER, REGISTER_ACK, OFFER, GRANT, STATUS: what a request costs that is granted all it needs at once."""

IN_PROCESS = "in-process"
Tell = Callable[[int], None]


class RequestResult(NamedTuple):
    """One request, as all receiver ranks saw it end."""

    room: int
    tokens: int
    state: str
    reason: str
    wrong: str
    time_s: float
    """From the submit to the end, of the slowest rank."""
    resumed_at: tuple[int, ...]
    """Watermarks at which rank 0 resumed."""
    detail: str


@dataclass
class RunResult:
    """What a run came to."""

    transport: str
    transport_why: str
    requests: list[RequestResult] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    """Everything that is wrong, in words; empty if the run holds."""
    violations: list[tuple[str, str]] = field(default_factory=list)
    content_ok: bool = True
    payload_bytes: int = 0
    """Delivered and checked, all receiver ranks together."""
    elapsed_s: float = 0.0
    """From the first submit to the last end."""
    grants: int = 0
    resumes: int = 0
    resends: int = 0
    messages: int = 0
    extra_messages: float = 0.0
    """For each request and receiver rank, beyond those of a single shot."""
    peak_blocks: int = 0
    """The most landing blocks in use at one time, on the rank that used most."""
    quarantined_blocks: int = 0
    """At the end."""
    kills: KilledRun = field(default_factory=KilledRun)

    @property
    def verdict(self) -> str:
        """``holds`` or ``violated``."""
        return "violated" if self.problems or self.violations or not self.content_ok else "holds"


# --- the parent ---------------------------------------------------------------------------------------------


def run_plan(plan: Plan, tell: Tell = lambda ended: None) -> RunResult:
    """Run it. ``tell`` hears now and then how many requests have ended.

    Raises :class:`LocalError` for what cannot be run here; what goes wrong in the run is in the result.
    """
    if plan.transport == IN_PROCESS and (plan.receivers, plan.senders) != (1, 1):
        raise LocalError(
            f"transport {IN_PROCESS} has both sides in one process: expected --ranks 1 --senders 1, "
            f"got {plan.receivers} and {plan.senders}"
        )
    check_kills(plan)
    plan.check_memory()
    plan.make_trace_directory()
    kills = None
    with Launch(preload=PRELOAD if plan.kills else ()) as launch:
        try:
            if plan.kills:
                runner = KilledRunner(launch, plan, tell)
                reports, chosen, kills = runner.run(), runner.chosen, runner.outcome
            else:
                reports, chosen = _drive(launch, plan, tell)
        except (ChildDied, TimedOut) as error:
            return RunResult(plan.transport, "", problems=[str(error)], content_ok=False)
    return put_together(plan, reports, chosen, kills)


def _drive(launch: Launch, plan: Plan, tell: Tell) -> tuple[list[Any], tuple[str, str]]:
    if plan.transport == IN_PROCESS:
        children = [launch.start("worker", both_sides, plan)]
        chosen = launch.wait_for("ready", children)["worker"]
        measuring = children
    else:
        children, measuring, chosen = _start_sides(launch, plan)
    # The senders begin first, so that no REGISTER comes too early: a time is that of a transfer, not of a wait.
    senders = [child for child in children if child not in measuring]
    for group in (senders, measuring):
        for child in group:
            child.tell("go")
        launch.wait_for("begun", group)
    _until_done(launch, children, measuring, tell)
    for child in children:
        child.tell("report")
    reports = [report for told in launch.wait_for("report", children).values() for report in told]
    launch.end(children)
    return reports, tuple(chosen["transport"])


def _start_sides(launch: Launch, plan: Plan) -> tuple[list[Child], list[Child], Any]:
    """All children, those that receive, and what sender 0 said when it was ready."""
    serving = range(min(plan.senders, plan.receivers))
    senders = [launch.start(f"sender {rank}", sender_side, plan, rank) for rank in serving]
    store = f"127.0.0.1:{free_port()}" if plan.receivers > 1 else ""
    receivers = [launch.start(f"receiver {rank}", receiver_side, plan, rank, store) for rank in range(plan.receivers)]
    up = launch.wait_for("ready", senders)
    for rank, child in enumerate(receivers):
        child.tell("address", up[f"sender {rank % plan.senders}"]["address"])
    launch.wait_for("ready", receivers)
    return [*senders, *receivers], receivers, up["sender 0"]


def _until_done(launch: Launch, children: list[Child], measuring: list[Child], tell: Tell) -> None:
    """Until every party has said that it is done; progress of the receiving ones is passed on."""
    left = set(map(id, children))
    ended: dict[int, int] = {}
    while left:
        said = launch.hear(SILENCE_S, children)
        if said is None:
            raise TimedOut(f"nothing was heard from any process for {SILENCE_S:g} s")
        if said.kind == "done":
            left.discard(id(said.child))
        elif said.kind == "progress" and said.child in measuring:
            ended[id(said.child)] = said.value
            tell(min(ended.values()))


def put_together(
    plan: Plan, reports: list[Any], chosen: tuple[str, str], kills: KilledRun | None = None
) -> RunResult:
    """One result of all parties' reports, and of what came of kills if there were any."""
    result = RunResult(*chosen, kills=kills or KilledRun())
    result.problems += result.kills.problems
    receivers = sorted((report for report in reports if report.side == "receiver"), key=lambda report: report.rank)
    by_rank = [{ended.room: ended for ended in report.requests} for report in receivers]
    for request in plan.requests:
        one = _one_request(request, [ended[request.room] for ended in by_rank], result)
        result.requests.append(one)
        if one.state == "Success" and not one.wrong:
            result.payload_bytes += plan.receivers * (request.tokens * plan.model.token_bytes + HEADER_BYTES)
    for report in reports:
        counters = report.counters
        result.messages += counters["messages_sent"]
        result.resends += counters["resends"]
        result.violations += [found for found in report.violations if found not in result.violations]
        if report.side == "receiver":
            result.grants += counters["grants"]
            result.resumes += counters["resumes"]
            result.peak_blocks = max(result.peak_blocks, report.used_blocks_max)
            result.quarantined_blocks += report.blocks.get("Quarantined", 0)
        else:
            failed = [ended for ended in report.requests if ended.state != "Success"][:1]
            result.problems += [f"sender {report.rank}: room {one.room} ended Failed: {one.reason}" for one in failed]
    all_ended = [ended for report in receivers for ended in report.requests]
    result.elapsed_s = max(ended.ended_s for ended in all_ended) - min(ended.started_s for ended in all_ended)
    if result.quarantined_blocks:
        result.problems.append(f"{result.quarantined_blocks} blocks are still quarantined at the end")
    result.problems += [f"{name}: {text}" for name, text in result.violations]
    result.extra_messages = result.messages / (len(plan.requests) * plan.receivers) - SINGLE_SHOT_MESSAGES
    return result


def _one_request(request: Any, ends: list[Any], result: RunResult) -> RequestResult:
    wrong = next((f"rank {rank}: {ended.wrong}" for rank, ended in enumerate(ends) if ended.wrong), "")
    failed = next((ended for ended in ends if ended.state != "Success"), ends[0])
    if failed.state != "Success":
        detail = f" ({failed.detail})" if failed.detail else ""
        result.problems.append(f"room {request.room} ended {failed.state}: {failed.reason}{detail}")
    elif wrong:
        result.content_ok = False
        result.problems.append(f"room {request.room} delivered wrong content: {wrong}")
    twice = {start for ended in ends for start in ended.resumed_at if ended.resumed_at.count(start) > 1}
    if twice:
        result.problems.append(f"room {request.room} resumed more than once at {min(twice)}")
    time_s = max(ended.ended_s - ended.started_s for ended in ends)
    return RequestResult(
        request.room, request.tokens, failed.state, failed.reason, wrong, time_s, ends[0].resumed_at, failed.detail
    )


# --- the children -------------------------------------------------------------------------------------------


def sender_side(line: Line, plan: Plan, rank: int) -> None:
    """A child: one sender rank."""
    from gpu_backend.parties import SenderParty, await_go, make_sender, prepare, run_parties

    prepare()
    with make_sender(plan, rank) as worker:
        party = SenderParty(worker, plan)
        line.say("ready", {"address": worker.address, "transport": party.transport})
        await_go(line, party)
        party.begin()
        line.say("begun")
        run_parties(line, [party])


def receiver_side(line: Line, plan: Plan, rank: int, store: str) -> None:
    """A child: one receiver rank."""
    from gpu_backend.parties import ReceiverParty, await_go, connect, make_receiver, prepare, run_parties

    prepare()
    address = line.wait_for("address")
    with make_receiver(plan, rank, address, store) as worker:
        party = ReceiverParty(worker, plan)
        connect(line, party)
        line.say("ready")
        await_go(line, party)
        party.begin()
        line.say("begun")
        run_parties(line, [party])


def both_sides(line: Line, plan: Plan) -> None:
    """A child: a sender and a receiver that share a process and its memory."""
    from gpu_backend.parties import ReceiverParty, SenderParty, make_receiver, make_sender, prepare, run_parties
    from gpu_backend.transports.in_process import Fabric

    prepare()
    plan.transport_options["fabric"] = Fabric()
    with make_sender(plan, 0) as sending, make_receiver(plan, 0, sending.address) as receiving:
        sender, receiver = SenderParty(sending, plan), ReceiverParty(receiving, plan)
        while not receiver.connected():
            sender.step()
        line.say("ready", {"transport": sender.transport})
        line.wait_for("go")
        sender.begin()
        receiver.begin()
        line.say("begun")
        run_parties(line, [sender, receiver])


__all__ = ["RequestResult", "RunResult", "put_together", "run_plan"]
