"""Checksums: one value for the same tokens wherever they lie, and another as soon as one of them differs."""

from __future__ import annotations

import sys
from collections.abc import Callable

import pytest
import torch
import xxhash
from hypothesis import given
from hypothesis import strategies as st

from fsm.errors import LocalError
from gpu_backend.checksum import MODES, Mode, check_mode, digest_steps, header_bytes, result_checksum, source_checksum
from gpu_backend.copying import Copier, CopyJob
from gpu_backend.layout import items_of, make_layout
from gpu_backend.pool import SourcePool
from gpu_backend.results import Result, ResultArena
from tests.gpu_backend.kit_pool import DEVICES, LAYOUT, payload_of, raw

SKIPS = [frozenset(), frozenset({"mrope_positions"}), frozenset({"mrope_positions", "deepstack"})]


def result_of(pool: SourcePool, blocks: tuple[int, ...], tokens: int, skip: frozenset[str]) -> Result:
    """The payload in these blocks as a result, by way of a copier."""
    found = ResultArena(pool.layout, tokens, device=pool.device).take(
        tokens, has_mrope="mrope_positions" not in skip, has_deepstack="deepstack" not in skip
    )
    copier = Copier(pool, threads=0)
    copier.submit(CopyJob("all", blocks, 0, tokens, found, False))
    while not (done := copier.poll()):
        pass
    assert done[0].error is None
    copier.close()
    return found


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("skip", SKIPS, ids=lambda skip: "+".join(sorted(skip)) or "all")
@pytest.mark.parametrize("mode", ["header", "full"])
def test_the_value_is_the_hash_of_the_bytes_in_their_order(device: str, skip: frozenset[str], mode: Mode) -> None:
    payload = payload_of(10, mrope="mrope_positions" not in skip, deepstack="deepstack" not in skip)
    pool = SourcePool(LAYOUT, 6, device=device)
    pool.take(6)
    blocks = (4, 5, 1)
    pool.store(blocks, payload)
    result = result_of(pool, blocks, 10, skip)
    for start, tokens in ((0, 10), (0, 4), (3, 6), (9, 1)):
        aux = raw(pool.headers[4]).numpy().tobytes() if start == 0 else b""
        expected = xxhash.xxh3_64(aux)
        for item in items_of(LAYOUT):
            tensor = payload.tensor(item.name)
            if tensor is not None and (mode == "full" or item.name in ("fill_ids", "mrope_positions")):
                expected.update(raw(tensor[start : start + tokens]).numpy().tobytes())
        first = start == 0
        from_blocks = source_checksum(pool, blocks, start, tokens, mode=mode, skip=skip, first=first)
        from_rows = result_checksum(
            result, start, tokens, mode=mode, header=header_bytes(pool, 4) if first else b""
        )
        assert from_blocks == from_rows == expected.intdigest()


@given(st.data())
def test_scattered_source_blocks_and_contiguous_rows_agree(data: st.DataObject) -> None:
    layout = make_layout(data.draw(st.integers(1, 5)), 3, deepstack_levels=data.draw(st.integers(0, 1)))
    tokens = data.draw(st.integers(1, 20))
    needed = -(-tokens // layout.block_tokens)
    pool = SourcePool(layout, needed + 2)
    pool.take(needed + 2)
    blocks = tuple(data.draw(st.permutations(range(needed + 2)))[:needed])
    pool.store(blocks, payload_of(tokens, layout))
    result = result_of(pool, blocks, tokens, frozenset() if layout.deepstack_levels else frozenset({"deepstack"}))
    start = data.draw(st.integers(0, tokens - 1))
    count = data.draw(st.integers(1, tokens - start))
    mode = data.draw(st.sampled_from(["header", "full"]))
    found = source_checksum(pool, blocks, start, count, mode=mode, first=start == 0)  # type: ignore[arg-type]
    header = header_bytes(pool, blocks[0]) if start == 0 else b""
    assert found == result_checksum(result, start, count, mode=mode, header=header)  # type: ignore[arg-type]


@pytest.mark.parametrize("item", LAYOUT.items)
@pytest.mark.parametrize("mode", ["header", "full"])
def test_one_byte_of_a_covered_item_changes_the_value(item: str, mode: Mode) -> None:
    pool = SourcePool(LAYOUT, 3)
    blocks = pool.take(3)
    pool.store(blocks, payload_of(10))
    before = source_checksum(pool, blocks, 0, 10, mode=mode, first=True)
    pool.view(item)[2, 1].reshape(-1)[-1:].view(torch.uint8)[0] ^= 1
    after = source_checksum(pool, blocks, 0, 10, mode=mode, first=True)
    assert (before != after) == (mode == "full" or item in ("fill_ids", "mrope_positions"))


@pytest.mark.parametrize("mode", ["header", "full"])
def test_the_header_of_token_0_counts_and_tokens_out_of_range_do_not(mode: Mode) -> None:
    pool = SourcePool(LAYOUT, 3)
    blocks = pool.take(3)
    pool.store(blocks, payload_of(10))
    whole, rest = (source_checksum(pool, blocks, at, 8, mode=mode, first=at == 0) for at in (0, 2))
    pool.write_header(blocks[0], 10, 99)
    assert source_checksum(pool, blocks, 0, 8, mode=mode, first=True) != whole
    assert source_checksum(pool, blocks, 2, 8, mode=mode, first=False) == rest
    pool.view("fill_ids")[0, :2] += 1
    pool.view("fill_ids")[2, 2:] += 1
    assert source_checksum(pool, blocks, 2, 8, mode=mode, first=False) == rest


def test_the_size_of_the_steps_does_not_change_the_value() -> None:
    parts = [torch.arange(1000, dtype=torch.int32), torch.ones(7, dtype=torch.bfloat16)]

    def drained(size: int) -> tuple[int, int]:
        steps, most = digest_steps(b"x" * 64, parts, step_bytes=lambda: size), 0
        while True:
            try:
                most = max(most, next(steps))
            except StopIteration as end:
                return end.value, most

    assert drained(13) == (drained(4014)[0], 13)
    assert drained(1 << 20) == (drained(13)[0], 4000)


def test_mode_none_costs_nothing_and_needs_no_xxhash(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "xxhash", None)
    pool = SourcePool(LAYOUT, 1)
    assert check_mode("none") == "none"
    assert source_checksum(pool, (0,), 0, 4, mode="none", first=True) is None
    result = ResultArena(LAYOUT, 4).take(4, has_mrope=True, has_deepstack=True)
    assert result_checksum(result, 0, 4, mode="none") is None
    for mode in ("header", "full"):
        with pytest.raises(LocalError, match=r"pip install 'resumark\[torch\]', or use the mode 'none'"):
            check_mode(mode)


def test_an_unknown_mode_is_refused() -> None:
    assert MODES == ("none", "header", "full")
    with pytest.raises(LocalError, match=r"checksum='Full': expected one of none, header, full"):
        check_mode("Full")


def test_tokens_that_are_not_there_are_refused() -> None:
    pool = SourcePool(LAYOUT, 2)
    result = ResultArena(LAYOUT, 8).take(8, has_mrope=True, has_deepstack=True)
    refused: list[tuple[Callable[[], object], str]] = [
        (lambda: source_checksum(pool, (0, 1), 1, 8, mode="full", first=False), "2 of 4 tokens do not reach token 9"),
        (lambda: source_checksum(pool, (0, 2), 0, 8, mode="full", first=True), "block 2 is not in this arena"),
        (lambda: source_checksum(pool, (0,), 0, 0, mode="full", first=True), "tokens=0"),
        (lambda: result_checksum(result, 1, 8, mode="full"), "start=1: expected a whole number from 0 to 0"),
        (lambda: result_checksum(result, 0, 0, mode="full"), "tokens=0"),
    ]
    for wrong, text in refused:
        with pytest.raises(LocalError) as error:
            wrong()
        assert text in str(error.value)
    result.release()
    with pytest.raises(LocalError, match="released"):
        result_checksum(result, 0, 1, mode="full")
