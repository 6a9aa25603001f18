"""``resumark run`` and ``resumark worker``: real processes, and a verdict that depends on every byte."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from fsm.errors import LocalError
from gpu_backend import cli_run, runs
from gpu_backend.cli_worker import with_torchrun
from gpu_backend.config import LayoutConfig, PoolConfig, ReceiverWorkerConfig, SenderWorkerConfig
from gpu_backend.parties import Ended, Report
from gpu_backend.plan import Plan
from gpu_backend.workload import MODELS, text_prompt
from tests.gpu_backend import kit_children
from tests.gpu_backend.kit_children import gone
from tests.gpu_backend.kit_cli import ENVIRONMENT, ROOT, SMALL, Done, build_app, need, program, refused, resumark

THREE = ("--requests", "3", "--tokens", "100", "--tokens", "700")


def run(*arguments: str) -> Done:
    return resumark("run", *SMALL, *THREE, *arguments)


# --- what holds -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("transport", ["nixl", "gloo", "in-process"])
def test_every_transport_delivers_every_byte(transport: str) -> None:
    need(transport)
    done = run("--transport", transport, "--json")
    data = done.data
    assert data["problems"] == []
    assert (done.code, data["verdict"], data["content_ok"]) == (0, "holds", True)
    assert (data["transport"], data["exit_code"]) == (transport, 0)
    assert [(one["room"], one["tokens"], one["state"]) for one in data["requests"]] == [
        (1, 100, "Success"), (2, 700, "Success"), (3, 100, "Success"),
    ]  # fmt: skip
    assert data["tokens"] == 900
    assert data["payload_bytes"] == 900 * MODELS["qwen2.5-vl-3b"].token_bytes + 3 * 64
    assert data["quarantined_blocks"] == 0 and data["violations"] == []


def test_two_blocks_that_come_back_again_and_again_are_enough() -> None:
    """Every chunk lands in the very blocks just freed, and each watermark is resumed once."""
    done = resumark(
        "run", *SMALL, "--requests", "2", "--tokens", "300", "--pool-blocks", "2", "--allocator", "same-again", "--json"
    )
    data = done.data
    assert (done.code, data["verdict"], data["peak_landing_blocks"]) == (0, "holds", 2)
    for request in data["requests"]:
        starts = request["resumed_at"]
        assert len(starts) >= 4 and starts == sorted(set(starts))
        assert all(0 < start < 300 for start in starts)
    assert data["resumes"] == sum(len(request["resumed_at"]) for request in data["requests"])
    assert data["grants"] == data["resumes"] + 2
    # Each resume is a GRANT and a STATUS; nothing else is said, unless something had to be said again.
    assert data["messages"] == 5 * 2 + 2 * data["resumes"] + data["resends"]


def test_enough_blocks_cost_no_message_beyond_a_single_shot() -> None:
    data = resumark("run", *SMALL, "--requests", "2", "--tokens", "90", "--json").data
    assert (data["resumes"], data["messages"] - data["resends"]) == (0, 10)
    assert data["extra_messages_per_request"] == data["resends"] / 2


def test_every_receiver_rank_gets_the_whole_payload() -> None:
    done = run("--ranks", "2", "--senders", "3", "--allocator", "disjoint", "--json")
    data = done.data
    assert (done.code, data["verdict"], data["ranks"]) == (0, "holds", 2)
    assert data["payload_bytes"] == 2 * (900 * MODELS["qwen2.5-vl-3b"].token_bytes + 3 * 64)


def test_early_grants_checksums_and_deepstack_go_together(tmp_path: Path) -> None:
    traces = tmp_path / "traces"
    done = resumark(
        "run", "--model", "qwen3-vl-2b", "--requests", "3", "--tokens", "400", "--block-tokens", "32", "--pool-blocks",
        "8", "--allocator", "stingy", "--early", "64", "--checksum", "full", "--trace", str(traces), "--json",
    )  # fmt: skip
    assert (done.code, done.data["verdict"]) == (0, "holds")
    assert sorted(path.name for path in traces.iterdir()) == ["receiver-0.jsonl", "sender-0.jsonl"]
    for path in traces.iterdir():
        first, *_, last = [json.loads(line) for line in path.read_text().splitlines()]
        assert first["engine"] == "worker" and not last.get("property")


def test_a_page_for_people_says_it_all() -> None:
    done = resumark("run", *SMALL, "--requests", "1", "--tokens", "600", "--pool-blocks", "4", "--transport", "auto")
    assert done.code == 0
    for word in (
        "qwen2.5-vl-3b", "1 request of 600 tokens", "4 blocks of 32", "seed", "verdict", "holds", "as sent",
        "is the best", "each once", "GB/s", "p50", "p99", "resumes", "beyond those of a single shot",
        "at most 4 blocks", "quarantined", "reproduce  resumark",
    ):  # fmt: skip
        assert word in done.out, word
    assert max(map(len, done.out.splitlines()[:-1])) <= 100


# --- what does not --------------------------------------------------------------------------------------


PLAN = Plan(model=MODELS["qwen2.5-vl-3b"], prompts=(text_prompt(10), text_prompt(20)))
COUNTERS = dict(messages_sent=5, resends=0, grants=2, resumes=0)


def reports(**changes: object) -> list[Report]:
    """What two parties tell of two requests; ``changes`` are of the receiver's second."""
    one = Ended(1, "Success", "NONE", 10, "", 1.0, 2.0, ())
    two = Ended(2, "Success", "NONE", 20, "", 1.0, 3.0, ())._replace(**changes)  # type: ignore[arg-type]
    receiver = Report("receiver", 0, [one, two], dict(COUNTERS), {"Free": 64}, 3)
    return [Report("sender", 0, [], dict(COUNTERS), {"Free": 2}), receiver]


def test_all_well_holds() -> None:
    result = runs.put_together(PLAN, reports(), ("nixl", "why"))
    assert (result.verdict, result.problems, result.content_ok) == ("holds", [], True)
    assert (result.elapsed_s, result.peak_blocks, result.extra_messages) == (2.0, 3, 0.0)


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        (dict(wrong="fill_ids of token 3"), "room 2 delivered wrong content: rank 0: fill_ids of token 3"),
        (dict(state="Failed", reason="DEADLINE", detail="late"), "room 2 ended Failed: DEADLINE (late)"),
        (dict(resumed_at=(4, 8, 4)), "room 2 resumed more than once at 4"),
    ],
)
def test_each_fault_of_a_request_breaks_the_verdict(changes: dict[str, object], problem: str) -> None:
    result = runs.put_together(PLAN, reports(**changes), ("nixl", "why"))
    assert (result.verdict, result.problems) == ("violated", [problem])
    assert result.content_ok == ("wrong" not in changes)


def test_a_quarantine_that_is_left_and_a_broken_property_break_the_verdict() -> None:
    told = reports()
    told[1].blocks["Quarantined"] = 2
    told[0].violations.append(("I6", "seq 1 was executed twice"))
    result = runs.put_together(PLAN, told, ("nixl", "why"))
    assert result.verdict == "violated"
    assert result.problems == ["2 blocks are still quarantined at the end", "I6: seq 1 was executed twice"]


def test_a_process_that_dies_ends_the_run_with_its_last_words(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runs, "receiver_side", kit_children.raises)
    done = run("--json")
    assert (done.code, done.data["verdict"], done.data["content_ok"]) == (1, "violated", False)
    assert "receiver 0 process ended: TypeError" in done.data["problems"][0]


def children_of(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def hear_interruptions() -> None:
    """Where the tests run in the background, a shell may have told all their children to ignore them."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def test_interruption_ends_everything_and_says_so(tmp_path: Path) -> None:
    command = program(tmp_path, "run", *SMALL, "--requests", "5000", "--tokens", "500")
    with subprocess.Popen(
        command, env=ENVIRONMENT, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        preexec_fn=hear_interruptions,
    ) as process:  # fmt: skip
        assert process.stdout is not None
        assert process.stdout.readline().startswith("model")
        while not (children := children_of(process.pid)):
            pass
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (130, "stopped\n")
    assert all(gone(child) for child in children)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--model", "qwen9"), "model 'qwen9': unknown; expected one of qwen2.5-vl-3b"),
        (("--workload", "holiday"), "workload 'holiday': unknown; expected one of images, mixed, video"),
        (("--allocator", "best"), "allocator 'best': unknown; expected one of fifo"),
        (("--checksum", "some"), "checksum 'some': unknown; expected one of none, header, full"),
        (("--transport", "pigeon"), "transport 'pigeon': unknown; expected one of auto, nixl"),
        (("--device", "tpu"), "device 'tpu': expected cpu, cuda or cuda:N"),
        (("--requests", "0"), "Invalid value for '--requests'"),
        (("--early", "1000000"), "early=1000000: expected at most"),
        (("--source-blocks", "1"), "source-blocks=1: expected at least"),
        (("--pool-blocks", "16000000"), "GB of memory"),
        (("--transport", "in-process", "--ranks", "2"), "in-process has both sides in one process"),
    ],
    ids=lambda value: "-".join(value).strip("-") if isinstance(value, tuple) else None,
)
def test_what_cannot_be_run_is_refused_in_one_message(arguments: tuple[str, ...], message: str) -> None:
    refused(resumark("run", *arguments), message)


def test_a_trace_that_cannot_be_written_is_refused_before_anything_starts(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    refused(run("--trace", str(tmp_path / "file" / "traces")), "cannot be made")


# --- one side at a time ---------------------------------------------------------------------------------

SIDE = """
[layout]
dim = 64
block_tokens = 16
[pool]
blocks = {blocks}
[control]
address = "{address}"
[timing]
resend_s = 0.2
"""


def config(path: Path, blocks: int, address: str) -> str:
    path.write_text(SIDE.format(blocks=blocks, address=address))
    return str(path)


def two_sides(directory: Path, sender_seed: str, receiver_seed: str) -> tuple[int, int, dict[str, object]]:
    """Exit codes of a sender and a receiver that are started by hand, and what the receiver told."""
    shared = ("--requests", "3", "--tokens", "150", "--seed")
    sending = program(
        directory, "worker", "sender", "--config", config(directory / "s.toml", 40, "tcp://127.0.0.1:0"), *shared,
        sender_seed,
    )  # fmt: skip
    with subprocess.Popen(
        sending, env=ENVIRONMENT, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as sender:
        try:
            assert sender.stdout is not None
            address = sender.stdout.readline().split(" listens at ")[1].split(",")[0]
            receiving = program(
                directory, "worker", "receiver", "--config", config(directory / "r.toml", 4, address), *shared,
                receiver_seed, "--json",
            )  # fmt: skip
            done = subprocess.run(
                receiving, env=ENVIRONMENT, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False
            )
            sender.communicate(timeout=60)
        finally:
            sender.kill()
    return sender.returncode, done.returncode, json.loads(done.stdout[done.stdout.index("{") :])


def test_two_sides_started_by_hand_find_each_other(tmp_path: Path) -> None:
    sent, received, told = two_sides(tmp_path, "5", "5")
    assert (sent, received, told["verdict"], told["ended"]) == (0, 0, "holds", {"NONE": 3})


def test_content_other_than_expected_is_exit_code_1(tmp_path: Path) -> None:
    """The receiver makes what it expects by itself: another seed is other content."""
    sent, received, told = two_sides(tmp_path, "5", "6")
    assert (sent, received, told["verdict"]) == (0, 1, "violated")
    wrong = told["wrong"]
    assert isinstance(wrong, list) and wrong[0] == "room 1: input_embeddings of token 0" and len(wrong) == 3


def test_a_configuration_that_is_wrong_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "wrong.toml"
    path.write_text("[layout]\ndim = 0\n")
    refused(resumark("worker", "receiver", "--config", str(path)), "layout.dim: got 0")
    refused(resumark("worker", "sender", "--config", str(tmp_path / "none.toml")), "cannot be read")
    path.write_text(
        "layout.dim = 8\ncontrol.address = 'tcp://127.0.0.1:9'\n"
        "results.tokens = 1000\nlimits.total_tokens_max = 501\n"
    )
    early = resumark("worker", "receiver", "--config", str(path), "--tokens", "5", "--early", "4")
    refused(early, "--early 4: no early grant can be made: expected results.tokens (1000) of at least twice")
    assert (ROOT / "docs" / "workers.md").is_file()
    assert "docs/workers.md lists the keys" in " ".join(resumark("worker", "sender", "--help").out.split())


# --- torchrun -------------------------------------------------------------------------------------------

LAYOUT = LayoutConfig(dim=8)
TORCHRUN = {"RANK": "1", "WORLD_SIZE": "4", "MASTER_ADDR": "10.0.0.1", "MASTER_PORT": "29500", "LOCAL_RANK": "3"}


def test_a_rank_of_torchrun_takes_its_numbers_from_the_environment() -> None:
    receiver = ReceiverWorkerConfig(layout=LAYOUT, pool=PoolConfig(device="cuda"))
    made = with_torchrun(receiver, TORCHRUN)
    assert (made.ranks.rank, made.ranks.receivers, made.ranks.store) == (1, 4, "10.0.0.1:29500")
    assert made.pool.device == "cuda:3"
    sender = with_torchrun(SenderWorkerConfig(layout=LAYOUT), TORCHRUN)
    assert (sender.ranks.rank, sender.ranks.senders, sender.ranks.store, sender.pool.device) == (1, 4, "", "cpu")


def test_without_torchrun_nothing_changes_and_half_of_it_is_refused() -> None:
    receiver = ReceiverWorkerConfig(layout=LAYOUT)
    assert with_torchrun(receiver, {"WORLD_SIZE": "4"}) is receiver
    with pytest.raises(LocalError, match="RANK is set and MASTER_ADDR, MASTER_PORT is not"):
        with_torchrun(receiver, {"RANK": "0", "WORLD_SIZE": "1"})
    with pytest.raises(LocalError, match="WORLD_SIZE='many' in the environment"):
        with_torchrun(receiver, {**TORCHRUN, "WORLD_SIZE": "many"})


def test_ranks_started_by_torchrun_meet_and_receive(tmp_path: Path) -> None:
    """The launcher listens at the place where it says the ranks meet: they agree on another one there."""
    shared = ("--requests", "2", "--tokens", "150", "--seed", "5")
    path = Path(config(tmp_path / "s.toml", 40, "tcp://127.0.0.1:0"))
    path.write_text(path.read_text() + "[ranks]\nreceivers = 2\n")
    with subprocess.Popen(
        program(tmp_path, "worker", "sender", "--config", str(path), *shared),
        env=ENVIRONMENT, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    ) as sender:  # fmt: skip
        try:
            assert sender.stdout is not None
            address = sender.stdout.readline().split(" listens at ")[1].split(",")[0]
            receiving = program(
                tmp_path, "worker", "receiver", "--config", config(tmp_path / "r.toml", 4, address), *shared, "--json"
            )
            done = subprocess.run(
                [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", *receiving[1:]],
                env=ENVIRONMENT, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False,
            )  # fmt: skip
            sender.communicate(timeout=60)
        finally:
            sender.kill()
    assert done.returncode == 0, done.stderr
    assert done.stdout.count('"verdict": "holds"') == 2
    assert sorted(rank for rank in (0, 1) if f'"rank": {rank}' in done.stdout) == [0, 1]
    assert sender.returncode == 0


# --- small things ---------------------------------------------------------------------------------------


def test_watermarks_are_shortened_and_counted() -> None:
    assert cli_run.watermarks_text(()) == "never"
    assert cli_run.watermarks_text((4, 8)) == "4 8 (2, each once)"
    assert cli_run.watermarks_text(tuple(range(10, 110, 10))) == "10 20 30 40 50 60 ... 100 (10, each once)"
    assert cli_run.watermarks_text((4, 4)) == "4 4 (2, NOT each once)"


def test_percentiles_of_few_values_are_values() -> None:
    assert cli_run.percentiles([3.0, 1.0, 2.0]) == (2.0, 3.0)
    assert cli_run.percentiles([float(value) for value in range(200)]) == (100.0, 198.0)


def test_commands_can_be_listed_without_torch() -> None:
    code = "import sys, typer, gpu_backend.cli as cli; cli.register(typer.Typer()); assert 'torch' not in sys.modules"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


def test_groups_of_commands_are_shared_with_other_packages() -> None:
    """Another package has a ``bench`` of its own: one group, both commands."""
    import typer

    from gpu_backend import cli

    app = typer.Typer()
    theirs = cli.group(app, "bench", "theirs")
    theirs.command("core")(lambda: None)
    cli.register(app)
    (bench,) = [info for info in app.registered_groups if info.name == "bench"]
    assert bench.typer_instance is theirs
    assert [command.name for command in theirs.registered_commands] == ["core", "transfer", "record"]
    assert build_app().registered_groups


def test_without_torch_it_is_one_message_and_no_process_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gpu_backend.cli_common.find_spec", lambda name: None)
    refused(resumark("run", *SMALL, *THREE), "torch is not installed; pip install")
