"""What is seen of a worker: checkers on an endless stream, trace files, counters, metrics."""

from __future__ import annotations

import gc
import os
import threading
from pathlib import Path
from typing import Any

import pytest

from fsm.effects import Send
from fsm.errors import LocalError
from fsm.events import AnyEvent, Delivered, Finished, Note, Received, Sent, StateChanged, Wrote
from fsm.messages import Epoch, Heartbeat, Register
from fsm.states import State
from fsm.trace import TRACE_VERSION, WORKER, TraceHeader, parse_trace
from gpu_backend.config import ObserveConfig
from gpu_backend.metrics import METRICS
from gpu_backend.observe import Checks, Observer, Reporter
from gpu_backend.recorder import Recorder
from gpu_backend.transports.in_process import Fabric
from tests.gpu_backend.kit_workers import Pair, payload_of, receiver_config, sender_config

EPOCH = Epoch(7, 1)


def recorder(**where: Any) -> Recorder:
    """One of a receiver."""
    return Recorder(TraceHeader(TRACE_VERSION, WORKER, {}, side="receiver", rank=0), **where)


def ended(room: int, epoch: Epoch, side: str = "receiver", state: State = State.SUCCESS) -> list[AnyEvent]:
    """A request of 4 tokens from its beginning to its end."""
    return [
        Wrote(0, room, epoch, 0, 0, 4), Delivered(0, room, epoch, 0, 0, 4),
        StateChanged(side, 0, room, epoch, "complete", State.RESUMING, state),
        Finished(side, 0, room, epoch, state, "NONE", 4),
    ]  # fmt: skip


def test_each_violation_is_told_and_not_only_the_first_of_its_property() -> None:
    """In a simulation the first one ends the run; a worker goes on, and the second one is another request's."""
    checks = Checks()
    for room in (1, 2):
        found = checks.take(Wrote(0, room, EPOCH, 0, 0, 4, trespass=f"room {room} wrote where it must not"))
        assert [(violation.property, f"room {room}" in violation.text) for violation in found] == [("I1", True)]
    assert checks.take(Wrote(0, 3, EPOCH, 0, 0, 4)) == []


def test_what_has_ended_is_remembered_and_then_forgotten() -> None:
    """I4 is asked of late events, for a bounded number of epochs: a worker that runs for months must not grow."""
    checks = Checks(keep_epochs=10)
    for counter in range(100):
        for side in ("receiver", "sender"):
            for event in ended(1, Epoch(7, counter), side):
                assert checks.take(event) == []
    assert checks.remembered < 40
    late = StateChanged("receiver", 0, 1, Epoch(7, 99), "landed", State.SUCCESS, State.TRANSFERRING)
    assert [violation.property for violation in checks.take(late)] == ["I4"]


def test_an_undisturbed_run_must_succeed() -> None:
    """L1, for tests that make no fault."""
    pair = Pair(undisturbed=True)
    pair.receiver.submit(1)
    pair.clock.now += 1000.0
    pair.run(lambda: 1 in pair.outcomes)
    assert [violation.property for violation in pair.observer.violations] == ["L1"]
    pair.close()


def test_a_violation_in_an_event_fails_that_request() -> None:
    """From the checker to the request, through the whole worker."""
    pair = Pair(undisturbed=False)
    pair.sender.submit(1, payload_of(1, 37))
    pair.receiver.submit(1)
    pair.run(lambda: pair.receiver.progress(1).watermark_tokens > 0)
    epoch = pair.receiver.receiver.rooms[1].epoch
    pair.receiver.reporter.wrote(1, epoch, 0, 0, 4, "a trespass made up for the test")
    pair.run_rooms([1])
    assert pair.outcomes[1].reason == "INTERNAL" and "a trespass made up" in pair.outcomes[1].detail
    assert pair.receiver.stats().counters.violations == {"I1": 1}
    pair.close()


# --- traces ----------------------------------------------------------------------------------------------


def test_a_trace_of_a_worker_can_be_read_back(tmp_path: Path) -> None:
    """Header, every event in order with its time, ending; by the reader of simulated runs."""
    path = tmp_path / "run.jsonl"
    pair = Pair()
    pair.observer.recorder = recorder(trace=str(path))
    pair.sender.submit(1, payload_of(1, 20))
    pair.receiver.submit(1)
    pair.clock.now += 0.25
    pair.run_rooms([1])
    pair.close()
    pair.observer.close()
    pair.observer.close()
    with path.open() as file:
        read = parse_trace(file, source=str(path))
    assert read.header.engine == "worker" and (read.header.side, read.header.rank) == ("receiver", 0)
    assert [line.event for line in read.seen] == pair.events
    assert read.seen[-1].at_s == 0.25
    assert read.ending.property == ""


def test_a_worker_writes_the_trace_it_was_told_to_and_ends_it(tmp_path: Path) -> None:
    path = tmp_path / "own.jsonl"
    from gpu_backend.sender_worker import SenderWorker
    from tests.gpu_backend.kit_wire import ServerEnd, Wire

    wire = Wire()
    config = sender_config(Fabric(), observe=ObserveConfig(trace=str(path), checks=True))
    with SenderWorker(config, control=lambda hello: ServerEnd(wire, hello)) as worker:
        worker.submit(1, payload_of(1, 5))
        worker.reporter.note("remark", "here")
    with path.open() as file:
        read = parse_trace(file)
    assert (read.header.side, read.header.boot_id) == ("sender", worker.boot_id)
    assert read.header.scenario["config"]["layout"]["block_tokens"] == 4
    assert Note("remark", "here") in [line.event for line in read.seen]
    assert Finished("sender", 0, 1, None, State.FAILED, "ABORTED", 5) in [line.event for line in read.seen]


def test_a_trace_has_the_same_header_whoever_made_the_worker(tmp_path: Path) -> None:
    """One reader for the traces of `resumark run` and of an engine: same keys, and the configuration in both."""
    from gpu_backend.parties import make_sender
    from gpu_backend.plan import Plan
    from gpu_backend.sender_worker import SenderWorker
    from gpu_backend.workload import QWEN25, Model, text_prompt

    plan = Plan(
        model=Model("tiny", QWEN25, 8), prompts=(text_prompt(5),), transport="in-process", trace=str(tmp_path), seed=3,
        transport_options={"fabric": Fabric()},
    )  # fmt: skip
    with make_sender(plan, 0) as made:
        made.observer.close()
    path = tmp_path / "own.jsonl"
    with SenderWorker(sender_config(Fabric(), observe=ObserveConfig(trace=str(path)))) as own:
        pass
    headers = []
    for file in (tmp_path / "sender-0.jsonl", path):
        with file.open() as lines:
            headers.append(parse_trace(lines).header)
    of_run, of_own = headers
    assert list(of_run.scenario) == list(of_own.scenario)
    assert [(one.side, one.rank, one.boot_id) for one in headers] == [("sender", 0, w.boot_id) for w in (made, own)]
    assert 0 < of_run.started_unix_s <= of_own.started_unix_s
    assert list(of_run.scenario["config"]) == list(of_own.scenario["config"])
    assert (of_run.scenario["run"], of_own.scenario["run"]) == ({"boot": 0, "seed": 3, "model": "tiny"}, {})


def test_the_trace_names_the_first_violation_in_its_ending(tmp_path: Path) -> None:
    path = tmp_path / "bad.jsonl"
    observer = Observer(checks=True, recorder=recorder(trace=str(path)))
    observer.emit(1.0, Wrote(0, 1, EPOCH, 0, 0, 4, trespass="here"))
    observer.close()
    with path.open() as file:
        assert parse_trace(file).ending.property == "I1"


def test_events_reach_the_disk_before_the_end(tmp_path: Path) -> None:
    """A worker that is killed leaves all but its last second."""
    path = tmp_path / "killed.jsonl"
    observer = Observer(recorder=recorder(trace=str(path)))
    observer.emit(1.0, Note("a", "b"))
    assert path.stat().st_size == 0
    observer.tick(2.5)
    assert b'"kind":"a"' in path.read_bytes()
    observer.close()


def test_a_trace_that_cannot_be_written(tmp_path: Path) -> None:
    """At the start it is an error that names the key; later it costs the trace, and nothing else."""
    with pytest.raises(LocalError, match=r"observe\.trace: cannot write"):
        recorder(trace=str(tmp_path / "no" / "such" / "folder"))
    observer = Observer(recorder=recorder(trace="/dev/full"))
    for number in range(2000):
        observer.emit(float(number), Note("filler", "x" * 100))
    observer.tick(1e9)
    observer.close()


def test_nobody_looks_then_no_event_is_made() -> None:
    """The cost of watching is paid by who watches."""
    heard = Observer()
    heard.listeners.append(lambda event: None)
    assert [observer.active for observer in (Observer(), heard, Observer(checks=True))] == [False, True, True]


def test_every_message_is_told_by_both_ends_before_it_has_an_effect() -> None:
    """So traces of two processes can be merged: a message leaves before it comes, and what it causes comes after."""
    pair = Pair()
    pair.sender.submit(1, payload_of(1, 20))
    pair.receiver.submit(1)
    pair.run_rooms([1])
    pair.close()
    sent = [event for event in pair.events if isinstance(event, Sent)]
    received = [event for event in pair.events if isinstance(event, Received)]
    kinds = [(event.side, type(event.message).__name__) for event in sent]
    assert kinds[:5] == [
        ("receiver", "Register"), ("sender", "RegisterAck"), ("sender", "Offer"), ("receiver", "Grant"),
        ("sender", "Status"),
    ]  # fmt: skip
    assert [event.message for event in sent] == [event.message for event in received]
    for leaves, comes in zip(sent, received, strict=True):
        assert pair.events.index(leaves) < pair.events.index(comes) and leaves.side != comes.side
    status = next(index for index, event in enumerate(pair.events) if event == received[4])
    landed = next(index for index, event in enumerate(pair.events) if isinstance(event, Wrote))
    assert status < landed


def test_a_message_that_is_sent_again_says_so() -> None:
    pair = Pair(undisturbed=False)
    pair.receiver.submit(1)
    pair.clock.now += 3.0
    pair.run(lambda: any(isinstance(event, Sent) and event.resend for event in pair.events))
    first, again = [event for event in pair.events if isinstance(event, Sent) and event.side == "receiver"][:2]
    assert again == Sent("receiver", first.message, resend=True) and not first.resend
    pair.close()


def test_heartbeats_are_not_told() -> None:
    """They say nothing about a request, and would fill a ring of the last events while nothing happens."""
    events: list[AnyEvent] = []
    observer = Observer()
    observer.listeners.append(events.append)
    reporter = Reporter(observer, "sender", -1, lambda: 0.0, lambda room, violation: None)
    reporter.sent(Send(Heartbeat(1, 0, 0)))
    reporter.received(Heartbeat(1, 0, 0))
    assert events == [] and reporter.counters.messages_sent == 1


def test_a_register_that_came_too_early_is_told_again_when_its_room_is_submitted() -> None:
    """It was handed over twice: what follows the second time has a cause in the trace."""
    pair = Pair()
    pair.receiver.submit(1)
    pair.run(lambda: any(isinstance(event, Received) for event in pair.events))
    pair.sender.submit(1, payload_of(1, 20))
    pair.run_rooms([1])
    pair.close()
    told = {kind: [event for event in pair.events if isinstance(event, kind)] for kind in (Sent, Received)}
    sent, taken = ([event for event in told[kind] if isinstance(event.message, Register)] for kind in told)
    assert len(taken) == len(sent) + 1 and len({event.message for event in taken}) == 1


# --- counters and metrics --------------------------------------------------------------------------------


def test_counters_add_up() -> None:
    pair = Pair(undisturbed=False)
    for room in (1, 2, 3):
        pair.sender.submit(room, payload_of(room, 37))
        pair.receiver.submit(room)
    pair.run(lambda: pair.receiver.progress(1).watermark_tokens > 0)
    live = pair.receiver.stats().counters.in_flight
    assert sum(live.values()) == 3 == sum(pair.sender.stats().counters.in_flight.values())
    pair.receiver.abort(3)
    pair.run_rooms([1, 2, 3])
    for worker in (pair.receiver, pair.sender):
        stats = worker.stats()
        assert set(stats.counters.in_flight.values()) == {0}
        assert sum(stats.counters.ended.values()) == 3 and stats.counters.ended["NONE"] == 2
    stats = pair.receiver.stats()
    assert stats.counters.tokens >= 74 and stats.counters.resumes >= 4
    assert stats.counters.bytes == stats.counters.tokens * (2 * 8 + 4 + 12)
    assert stats.free_result_tokens == 256 - 74
    assert sum(stats.blocks.values()) == 4
    pair.close()


def metric(registry: Any, name: str, **labels: str) -> float | None:
    """One number, as a scrape would read it."""
    value: float | None = registry.get_sample_value(f"resumark_{name}", labels)
    return value


def test_prometheus_reads_what_the_worker_counted() -> None:
    """Own registry; every metric is there; gone when the worker is closed; and a scrape comes from another thread."""
    prometheus_client = pytest.importorskip("prometheus_client", reason="the extra `metrics` is not installed")
    registry = prometheus_client.CollectorRegistry()
    pair = Pair()
    pair.receiver.show_metrics(registry)
    pair.receiver.show_metrics(registry)
    pair.sender.show_metrics(registry)
    pair.sender.submit(1, payload_of(1, 37))
    pair.receiver.submit(1)
    assert metric(registry, "in_flight", side="receiver", rank="0", state="Bootstrapping") == 1
    pair.run_rooms([1])
    got: list[float | None] = []
    names = {"side": "receiver", "rank": "0"}
    scrape = threading.Thread(target=lambda: got.append(metric(registry, "tokens_total", **names)))
    scrape.start()
    scrape.join()
    assert got == [37]
    assert metric(registry, "resumes_total", **names) == 2
    assert metric(registry, "ended_total", reason="NONE", **names) == 1
    assert metric(registry, "blocks", state="Quarantined", **names) == 0
    assert metric(registry, "messages_total", what="refused", side="sender", rank="0") == 0
    assert metric(registry, "free_result_tokens", **names) == 256 - 37
    assert metric(registry, "free_result_tokens", side="sender", rank="0") is None
    assert metric(registry, "rank_is_lost", **names) == 0
    pair.receiver.rank_is_lost = True
    pair.receiver.transport.count("dropped_notices")
    assert metric(registry, "rank_is_lost", **names) == 1
    assert metric(registry, "transport_total", what="dropped_notices", **names) == 1
    pair.receiver.rank_is_lost = False
    shown = {family.name for family in registry.collect()}
    assert shown == {"resumark_" + name.removesuffix("_total") for name in METRICS}
    pair.close()
    assert list(registry.collect()) == []


def test_metrics_can_be_asked_for_in_the_configuration() -> None:
    """From the default registry, for as long as the worker lives."""
    prometheus_client = pytest.importorskip("prometheus_client", reason="the extra `metrics` is not installed")
    from gpu_backend.receiver_worker import ReceiverWorker
    from tests.gpu_backend.kit_wire import ClientEnd, Wire

    config = receiver_config(Fabric(), observe=ObserveConfig(metrics=True))
    with ReceiverWorker(config, control=lambda hello: ClientEnd(Wire(), 0, hello)):
        assert metric(prometheus_client.REGISTRY, "waiting", side="receiver", rank="0") == 0
    assert metric(prometheus_client.REGISTRY, "waiting", side="receiver", rank="0") is None


def descriptors() -> int:
    """How many files and sockets this process has open."""
    gc.collect()
    return len(os.listdir("/proc/self/fd"))


def test_the_workers_of_a_process_share_the_default_registry() -> None:
    """Prometheus takes a metric from one collector only: the second worker must not fail, the last one clears up."""
    prometheus_client = pytest.importorskip("prometheus_client", reason="the extra `metrics` is not installed")
    shown = prometheus_client.REGISTRY
    watched = ObserveConfig(metrics=True)
    for _ in range(2):
        pair = Pair(receiver={"observe": watched}, sender={"observe": watched})
        for side in ("receiver", "sender"):
            assert metric(shown, "tokens_total", side=side, rank="0") == 0
        pair.sender.close()
        assert metric(shown, "tokens_total", side="receiver", rank="0") == 0
        assert metric(shown, "tokens_total", side="sender", rank="0") is None
        pair.receiver.close(drain_s=0.0)
        assert not [family for family in shown.collect() if family.name.startswith("resumark_")]


def test_two_workers_with_the_same_labels_are_refused_before_anything_is_opened(tmp_path: Path) -> None:
    """Their numbers could not be told apart. The one that is refused leaves nothing behind, and the other goes on."""
    prometheus_client = pytest.importorskip("prometheus_client", reason="the extra `metrics` is not installed")
    from gpu_backend.sender_worker import SenderWorker

    watched = ObserveConfig(metrics=True, trace=str(tmp_path / "second.jsonl"))
    with SenderWorker(sender_config(Fabric(), observe=ObserveConfig(metrics=True))):
        before = descriptors()
        with pytest.raises(LocalError, match="sender rank 0 of this process is shown in that registry already"):
            SenderWorker(sender_config(Fabric(), observe=watched))
        assert descriptors() == before and list(tmp_path.iterdir()) == []
        assert metric(prometheus_client.REGISTRY, "tokens_total", side="sender", rank="0") == 0
    SenderWorker(sender_config(Fabric(), observe=watched)).close()


def test_without_prometheus_a_worker_that_shall_show_metrics_opens_nothing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from gpu_backend.sender_worker import SenderWorker

    monkeypatch.setitem(__import__("sys").modules, "prometheus_client", None)
    watched = ObserveConfig(metrics=True, trace=str(tmp_path / "trace.jsonl"))
    with pytest.raises(LocalError, match=r"pip install 'resumark\[metrics\]'"):
        SenderWorker(sender_config(Fabric(), observe=watched))
    assert list(tmp_path.iterdir()) == []


def test_without_prometheus_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "prometheus_client", None)
    pair = Pair()
    with pytest.raises(LocalError, match=r"pip install 'resumark\[metrics\]'"):
        pair.receiver.show_metrics()
    pair.close()
