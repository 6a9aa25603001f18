"""The example of workers in a scheduler loop: it runs, bears a kill, and sees a bit that is wrong."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch", reason="the example needs the extra 'torch'")
pytest.importorskip("PIL", reason="the example needs the extra 'examples'")

import torch
from rich.console import Console

from examples.encode_scheduler import __main__ as program
from examples.encode_scheduler.encode_worker import payload_of
from examples.encode_scheduler.jobs import NAMES, PICTURES, TOKENS_MAX, VIEWS, Job
from examples.encode_scheduler.language_worker import Counts, Request, Scheduler
from examples.encode_scheduler.vision import MERGE, SIDE, TOKEN_DIM, Encoder, closeness, patches_of, pooled, train
from tests.sim.cli_kit import resumark

SMALLEST = Job("cat", "left half")


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """As in the processes of the example; and several tests run at a time."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    return Encoder(len(NAMES)).eval()


def arrived(encoder: Encoder, job: Job = SMALLEST) -> Request:
    """A request as it stands after prefill, when nothing went wrong."""
    sent = payload_of(encoder.encode(job.load()))
    request = Request(job, room=1, attempts=1, grants=2, said=[0], tokens=sent.tokens)
    names = ("input_embeddings", "deepstack", "mrope_positions", "fill_ids", "position_delta")
    request.arrived = {name: getattr(sent, name) for name in names}
    return request


def test_it_runs_in_two_processes_and_bears_the_end_of_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A pool of 4 blocks, so that everything is resumed; the encode worker is killed in mid transfer, once. What the
    three processes wrote down is a run of the protocol. The language worker is this process: that saves an import of
    torch."""
    arguments = "--requests 3 --pool-blocks 4 --train-steps 0 --kill-encoder-once --trace"
    code = program.main([*arguments.split(), str(tmp_path / "traces")])
    said = capsys.readouterr().out
    assert code == 0, said
    assert "bit for bit: 3 of 3; failed: 0" in said
    assert re.search(r"^killed the encode worker when \d+ of \d+ tokens of '\w+, whole' had landed$", said, re.M)
    assert "encode workers started: 2; properties seen broken: 0" in said
    assert re.search(r"^attempts that failed and were made again: \d+ \((ABORTED|PEER_GONE) \d", said, re.M)
    rows = re.findall(r"^\w+, whole +\d+x\d+ +(\d+) +(\d+) +(\d+) +equal", said, re.M)
    assert len(rows) == 3
    for tokens, grants, resumes in rows:
        assert int(grants) == int(resumes) + 1 >= -(-int(tokens) // (4 * 16)) > 1
    judged = resumark("conform", str(tmp_path / "traces"), "--json")
    assert (judged.code, judged.data["verdict"]) == (0, "conforms"), judged.out
    assert sorted(path.name for path in (tmp_path / "traces").iterdir()) == [
        "receiver.jsonl", "sender-1.jsonl", "sender-2.jsonl",
    ]  # fmt: skip


@pytest.mark.parametrize("item", ["input_embeddings", "deepstack", "mrope_positions", "fill_ids", "position_delta"])
def test_what_is_wrong_is_seen(encoder: Encoder, item: str) -> None:
    """One bit of one token."""
    request = arrived(encoder)
    assert program.wrong_with(request, encoder) == ""
    value: Any = request.arrived[item]
    if item == "position_delta":
        request.arrived[item] = value + 1
    else:
        changed = value.clone()
        changed[5:6].view(torch.uint8).view(-1)[0] ^= 1
        request.arrived[item] = changed
    wrong = program.wrong_with(request, encoder)
    assert wrong == (item if item in ("fill_ids", "position_delta") else f"{item} of token 5")
    assert not reported(encoder, request)


def reported(encoder: Encoder, *requests: Request, failed: tuple[Request, ...] = ()) -> bool:
    scheduler = Scheduler.__new__(Scheduler)
    scheduler.done, scheduler.failed, scheduler.counts = list(requests), list(failed), Counts()
    return program.report(Console(quiet=True), scheduler, encoder)


def test_a_request_that_failed_is_no_success(encoder: Encoder) -> None:
    right = arrived(encoder)
    assert reported(encoder, right)
    assert not reported(encoder, right, failed=(Request(SMALLEST, reasons=["DEADLINE"]),))


def test_other_weights_are_other_bytes(encoder: Encoder) -> None:
    """The comparison compares something."""
    assert program.wrong_with(arrived(Encoder(len(NAMES), seed=1).eval()), encoder).startswith("input_embeddings")


def test_pictures_keep_their_size_and_have_credits(encoder: Encoder) -> None:
    credits = (PICTURES / "CREDITS.md").read_text(encoding="utf-8")
    assert len(NAMES) == 6
    for name in NAMES:
        assert f"`{name}.jpg`" in credits
        for view in VIEWS:
            picture = Job(name, view).load()
            tokens = round(picture.width / SIDE) * round(picture.height / SIDE)
            assert 1 <= tokens <= TOKENS_MAX
    encoded = encoder.encode(SMALLEST.load())
    assert encoded.embeddings.shape == encoded.deepstack.shape == (11 * 8, TOKEN_DIM)
    assert encoded.positions[-1].tolist() == [0, 10, 7]


def test_the_patches_of_a_token_lie_together() -> None:
    """Each token of its own colour: then its four patches are of that colour, in the order of rows."""
    colours = torch.arange(6.0).view(1, 2, 3).expand(3, 2, 3)
    pixels = colours.repeat_interleave(SIDE, 1).repeat_interleave(SIDE, 2)
    patches, grid = patches_of(pixels)
    assert (grid.rows, grid.columns) == (4, 6)
    assert patches.mean(1).tolist() == [colour for colour in range(6) for _ in range(MERGE**2)]
    assert grid.cells()[:8].tolist() == [[0, 0], [0, 1], [1, 0], [1, 1], [0, 2], [0, 3], [1, 2], [1, 3]]


def test_training_makes_the_loss_smaller() -> None:
    """A few steps, and the whole pictures are nearer to their own pages than at random."""
    jobs = [Job(name, "middle") for name in NAMES]

    def own(encoder: Encoder) -> float:
        made = [encoder.encode(job.load()) for job in jobs]
        near = closeness(torch.stack([pooled(one.embeddings, one.deepstack) for one in made]), encoder.book.detach())
        return float(near.diagonal().mean())

    encoder = Encoder(len(NAMES))
    before = own(encoder)
    train(encoder, [job.load() for job in jobs], 3)
    assert own(encoder) > before


@pytest.mark.parametrize("arguments", [["--requests", "25"], ["--pool-blocks", "0"], ["--transport", "smoke"]])
def test_what_is_refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        program.main(arguments)
    assert ended.value.code == 2
    assert arguments[0] in capsys.readouterr().err
