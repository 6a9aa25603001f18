"""``python -m examples.encode_scheduler``: train, serve, compare every byte, and tell what was seen."""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from examples.encode_scheduler.encode_worker import IMAGE_ID, EncodeProcess, payload_of
from examples.encode_scheduler.jobs import JOBS_MAX, NAMES, Job, jobs, load_encoder
from examples.encode_scheduler.language_worker import Request, Scheduler, first_words, receiver_config
from examples.encode_scheduler.vision import Encoder, train
from fsm.errors import LocalError
from gpu_backend import ReceiverWorker

WHOLE = "whole"
TRANSPORTS = ("auto", "nixl", "gloo")


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m examples.encode_scheduler", description=__doc__)
    parser.add_argument("--requests", type=_count(1, JOBS_MAX), default=12, metavar="N", help=f"1 to {JOBS_MAX}")
    parser.add_argument("--pool-blocks", type=_count(1, 4096), default=8, metavar="N", help="blocks of 16 tokens")
    parser.add_argument("--transport", choices=TRANSPORTS, default="auto", help="what carries the tensors")
    parser.add_argument("--train-steps", type=_count(0, 10_000), default=60, metavar="N", help="0: random weights")
    parser.add_argument("--kill-encoder-once", action="store_true", help="SIGKILL to the encode worker in mid transfer")
    parser.add_argument("--trace", type=Path, metavar="DIR", help="write what the workers do there, a file a process")
    return parser.parse_args(arguments)


def _count(low: int, high: int) -> Callable[[str], int]:
    def number(text: str) -> int:
        value = int(text)
        if not low <= value <= high:
            raise argparse.ArgumentTypeError(f"got {value}, expected {low} to {high}")
        return value

    return number


def make_weights(path: Path, steps: int) -> float:
    """Train an encoder and save it; how long that took, in seconds."""
    encoder = Encoder(len(NAMES))
    started = time.monotonic()
    train(encoder, [Job(name, WHOLE).load() for name in NAMES], steps)
    elapsed_s = time.monotonic() - started
    torch.save(encoder.state_dict(), path)
    return elapsed_s


def run(
    weights: Path, wanted: Sequence[Job], *, pool_blocks: int, transport: str, kill_once: bool, traces: Path | None
) -> tuple[Scheduler, list[str]]:
    """Serve all requests through two processes: this one is the language worker. The scheduler in its last state, and
    what is to be said of the run."""
    encode = EncodeProcess(weights, transport, traces)
    try:
        config = receiver_config(encode.start(), pool_blocks, transport, traces)
        with ReceiverWorker(config) as worker:
            book = load_encoder(weights).book.detach()
            scheduler = Scheduler(worker, encode, wanted, book)
            said = [f"transport {worker.transport.traits.name}, {pool_blocks} landing blocks of 16 tokens"]
            while not scheduler.over:
                scheduler.turn()
                victim = scheduler.half_arrived() if kill_once else None
                if victim is not None:
                    kill_once = False
                    landed, _, total = worker.progress(victim.room)
                    encode.kill()
                    name = f"'{victim.job.picture}, {victim.job.view}'"
                    said.append(f"killed the encode worker when {landed} of {total} tokens of {name} had landed")
            if kill_once:
                said.append("the encode worker was never seen in mid transfer, and was not killed")
            broken = worker.observer.violations
            said += [f"property {found.property} is broken: {found.text}" for found in broken]
            said.append(f"encode workers started: {encode.starts}; properties seen broken: {len(broken)}")
    finally:
        encode.close()
    return scheduler, said


# --- comparing ------------------------------------------------------------------------------------------------


def wrong_with(request: Request, encoder: Encoder) -> str:
    """What differs first from what the encoder makes of the same pixels here; empty if not a bit does."""
    expected = payload_of(encoder.encode(request.job.load()))
    for name in ("input_embeddings", "deepstack", "mrope_positions"):
        got, want = request.arrived[name], getattr(expected, name)
        assert isinstance(got, torch.Tensor)
        if got.shape != want.shape or got.dtype != want.dtype:
            return f"{name}: {got.dtype} {tuple(got.shape)}, expected {want.dtype} {tuple(want.shape)}"
        differs = (got.view(torch.uint8) != want.contiguous().view(torch.uint8)).any(dim=1)
        if differs.any():
            return f"{name} of token {int(differs.nonzero()[0])}"
    if not bool((torch.as_tensor(request.arrived["fill_ids"]) == IMAGE_ID).all()):
        return "fill_ids"
    return "" if request.arrived["position_delta"] == expected.position_delta else "position_delta"


def report(console: Console, scheduler: Scheduler, encoder: Encoder) -> bool:
    """The table, and whether every request arrived and is equal to the last bit."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("request", "pixels", "tokens", "grants", "resumes", "bytes", "first words"):
        right_hand = column in ("tokens", "grants", "resumes")
        table.add_column(column, justify="right" if right_hand else "left", no_wrap=True)
    named = equal = 0
    for request in scheduler.done:
        wrong = wrong_with(request, encoder)
        equal += not wrong
        named += NAMES[request.said[0]] == request.job.picture
        wide, high = request.job.load().size
        table.add_row(
            f"{request.job.picture}, {request.job.view}", f"{wide}x{high}", str(request.tokens), str(request.grants),
            str(request.grants - 1), "WRONG" if wrong else "equal", first_words(request),
        )  # fmt: skip
        if wrong:
            console.print(f"WRONG {request.job.picture}, {request.job.view}: {wrong}")
    console.print(table, soft_wrap=False)
    console.print()
    for request in scheduler.failed:
        console.print(f"FAILED {request.job.picture}, {request.job.view}: {', '.join(request.reasons)}")
    again = Counter(reason for request in scheduler.done for reason in request.reasons)
    if again:
        reasons = ", ".join(f"{reason} {count}" for reason, count in sorted(again.items()))
        console.print(f"attempts that failed and were made again: {again.total()} ({reasons})")
    counts, done = scheduler.counts, len(scheduler.done)
    console.print(f"turns of the loop, a poll each: {counts.turns}")
    console.print(f"polls with a transfer on its way and none that had ended: {counts.empty_polls}")
    console.print(f"steps of the language model: {counts.steps}, with a transfer on its way: {counts.steps_meanwhile}")
    console.print(f"turns with nothing to compute: {counts.sleeps}; largest batch: {counts.batch_max}")
    console.print(f"first word is the picture's name: {named} of {done}")
    failed = len(scheduler.failed)
    console.print(f"equal to what the encoder makes here, bit for bit: {equal} of {done}; failed: {failed}")
    return equal == done and not failed


def main(arguments: Sequence[str] | None = None) -> int:
    """0 if everything arrived and is equal; 1 if not; 2 if something is missing that it needs."""
    options = parse(arguments)
    torch.set_num_threads(1)
    if options.trace is not None:
        options.trace.mkdir(parents=True, exist_ok=True)
    console = Console(highlight=False, soft_wrap=True)
    with tempfile.TemporaryDirectory() as folder:
        weights = Path(folder) / "encoder.pt"
        console.print(f"training an encoder for {options.train_steps} steps, a few seconds ...")
        elapsed_s = make_weights(weights, options.train_steps)
        encoder = load_encoder(weights)
        count = sum(parameter.numel() for parameter in encoder.parameters())
        console.print(f"done in {elapsed_s:.1f} s: {count:,} parameters")
        try:
            scheduler, said = run(
                weights, jobs(options.requests), pool_blocks=options.pool_blocks, transport=options.transport,
                kill_once=options.kill_encoder_once, traces=options.trace,
            )  # fmt: skip
        except LocalError as error:
            print(f"error: {error}", file=sys.stderr)
            return 2
    for line in said:
        console.print(line)
    if options.trace is not None:
        console.print(f"traces: resumark conform {options.trace}")
    console.print()
    return 0 if report(console, scheduler, encoder) else 1


if __name__ == "__main__":
    sys.exit(main())
