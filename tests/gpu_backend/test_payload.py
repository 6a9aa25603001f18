"""Bytes that say whose they are: nobody's bytes may pass for another's, whole or shifted."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
import torch

from gpu_backend import payload, workload
from gpu_backend.payload import Content

ROW = 64
PROMPT = workload.Prompt((workload.Image(448, 448),), 8, 8)


def content(seed: int = 1, room: int = 7, *, row: int = ROW, deepstack: int = 0) -> Content:
    positions, delta = workload.prompt_positions(PROMPT, workload.QWEN25)
    return Content(seed, room, positions, delta, row, deepstack)


def made(source: Content, item: str = "input_embeddings", start: int = 0, count: int | None = None) -> torch.Tensor:
    count = source.tokens - start if count is None else count
    if item == "fill_ids":
        out = torch.zeros(count, dtype=torch.int32)
    elif item == "mrope_positions":
        out = torch.zeros((count, 3), dtype=torch.int32)
    else:
        out = torch.zeros((count, source.row_bytes[item]), dtype=torch.uint8)
    source.fill(item, out, start)
    return out


def whole(source: Content) -> dict[str, torch.Tensor | None]:
    items = ["input_embeddings", "fill_ids", "mrope_positions"]
    items += ["deepstack"] if source.row_bytes["deepstack"] else []
    return {item: made(source, item) for item in items}


ITEMS = ("input_embeddings", "fill_ids", "mrope_positions", "deepstack")


@pytest.mark.parametrize("item", ITEMS)
@pytest.mark.parametrize("start", [0, 1, 37])
def test_a_part_made_alone_is_the_same_as_in_the_whole(item: str, start: int) -> None:
    source = content(deepstack=3 * ROW)
    assert torch.equal(made(source, item, start, 50), made(source, item)[start : start + 50])


@pytest.mark.parametrize("item", ITEMS)
def test_the_same_names_give_the_same_bytes_and_no_others_do(item: str) -> None:
    source = content(deepstack=ROW)
    assert torch.equal(made(source, item), made(content(deepstack=ROW), item))
    for seed, room in ((2, 7), (1, 8), (1, 7 + 2**20)):
        assert not torch.equal(made(source, item), made(content(seed, room, deepstack=ROW), item))


def test_every_token_of_every_room_differs_in_every_word() -> None:
    """Whatever 64 bits are compared: no two tokens of 40 rooms agree in them."""
    words = torch.cat([made(content(room=room)).view(torch.int64) for room in range(40)]).numpy()
    for column in range(words.shape[1]):
        assert len(np.unique(words[:, column])) == len(words)


def test_ids_differ_within_a_room_and_most_of_them_between_rooms() -> None:
    ids = [made(content(room=room), "fill_ids").numpy() for room in range(2)]
    assert all(len(np.unique(one)) == len(one) for one in ids)
    assert not np.any(ids[0] == ids[1])


def test_positions_are_the_prompts_own_moved_by_the_rooms_number() -> None:
    positions, delta = workload.prompt_positions(PROMPT, workload.QWEN25)
    for room in (1, 2):
        source = content(room=room)
        assert 0 <= source.offset < payload.ROOM_OFFSET_MAX
        assert torch.equal(made(source, "mrope_positions"), torch.from_numpy(positions + np.int32(source.offset)))
        assert source.position_delta == delta + source.offset
    assert content(room=1).offset != content(room=2).offset


@pytest.mark.parametrize("row", [2, 6, 8, 12, 64, 16_384])
def test_what_was_made_passes_whatever_the_length_of_a_row(row: int) -> None:
    source = content(row=row)
    got = made(source)
    assert source.wrong("input_embeddings", got) is None
    assert len(np.unique(got.numpy(), axis=0)) == source.tokens or row == 2


@pytest.mark.parametrize(("item", "token"), [*product(ITEMS, [0, 5, 271])])
def test_one_wrong_bit_is_found_and_named(item: str, token: int) -> None:
    source = content(deepstack=ROW)
    got = made(source, item)
    got.view(len(got), -1).view(torch.uint8)[token, 1] ^= 4
    assert str(source.wrong(item, got)) == f"{item} of token {token}"
    assert source.wrong(item, got[token + 1 :], token + 1) is None


def test_what_slipped_does_not_pass() -> None:
    """A row shifted by a word, rows shifted by a token, and another room's rows."""
    source = content()
    got = made(source)
    for slipped in (got.roll(8, dims=1), got.roll(1, dims=0), made(content(room=8))):
        assert source.wrong("input_embeddings", slipped.contiguous()) == ("input_embeddings", 0)


def test_rows_of_any_type_and_of_a_larger_tensor_are_filled_in_place() -> None:
    source = content(row=32)
    pool = torch.zeros((4, 8, 16), dtype=torch.bfloat16)
    source.fill("input_embeddings", pool[1:3].view(16, 16), 5)
    assert torch.equal(pool.view(torch.uint8).view(32, 32)[8:24], made(source, start=5, count=16))
    assert not pool[0].view(torch.uint8).any() and not pool[3].view(torch.uint8).any()


def test_a_whole_result_is_judged_item_by_item() -> None:
    source = content(deepstack=3 * ROW)
    items = whole(source)
    delta = source.position_delta
    assert source.wrong_in(items, delta) == ""
    assert source.wrong_in(items, delta + 1) == f"position delta {delta + 1}: expected {delta}"
    assert source.wrong_in({**items, "deepstack": None}) == "deepstack is missing"
    ids = items["fill_ids"]
    assert ids is not None
    short = f"fill_ids has {source.tokens - 1} tokens of {source.tokens}"
    assert source.wrong_in({**items, "fill_ids": ids[:-1]}) == short
    assert content().wrong_in(items) == "deepstack is there, and should not be"
