"""Pools: one arena behind typed views, payloads that are stored bit by bit, and errors that say what was given."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fsm.errors import LocalError
from gpu_backend import memory
from gpu_backend.layout import items_of, make_layout
from gpu_backend.memory import HUGE_PAGE_BYTES, Memory
from gpu_backend.pool import BlockPool, Payload, SourcePool
from tests.gpu_backend.kit_pool import DEVICES, LAYOUT, payload_of, raw

# ---- memory ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 5000, HUGE_PAGE_BYTES, 3 * HUGE_PAGE_BYTES + 7])
@pytest.mark.parametrize("huge_pages", [True, False])
def test_memory_is_zeroed_writable_and_aligned(size: int, huge_pages: bool) -> None:
    found = Memory(size, huge_pages=huge_pages)
    assert found.arena.dtype == torch.uint8
    assert found.arena.shape == (size,)
    assert not found.arena.any()
    assert found.arena.data_ptr() % (HUGE_PAGE_BYTES if huge_pages and size >= HUGE_PAGE_BYTES else 4096) == 0
    found.arena.fill_(7)
    assert found.arena.sum(dtype=torch.int64) == 7 * size


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


def test_memory_is_touched_at_the_start_unless_told_otherwise() -> None:
    size = 64 << 20
    before = resident_bytes()
    lazy = Memory(size, touch=False)
    assert resident_bytes() - before < size // 2
    before = resident_bytes()
    eager = Memory(size)
    assert resident_bytes() - before > size // 2
    lazy.close()
    eager.close()


def test_views_outlive_the_memory_that_they_were_cut_from() -> None:
    found = Memory(10 << 20)
    view = found.arena[5 << 20 :]
    view.fill_(3)
    found.close()
    found.close()
    assert found.closed
    with pytest.raises(LocalError, match="closed"):
        _ = found.arena
    assert view[-1] == 3


def test_memory_that_cannot_be_had_is_a_local_error() -> None:
    with pytest.raises(LocalError, match=r"cannot allocate 4611686018427387904 bytes of memory: .*; ask for less"):
        Memory(1 << 62)


@pytest.mark.skipif(torch.cuda.is_available(), reason="says what happens without CUDA")
def test_without_cuda_a_device_and_pinned_memory_are_refused_by_name() -> None:
    with pytest.raises(LocalError, match=r"device='cuda': torch .* sees no CUDA device here; use 'cpu'"):
        Memory(10, device="cuda")
    with pytest.raises(LocalError, match="pinned=True: memory is pinned for CUDA, which is not present"):
        Memory(10, pinned=True)
    assert Memory(10, pinned="auto").pinned is False


@pytest.mark.parametrize("device", ["meta", "gpu", "cpu:x", ""])
def test_a_device_that_is_none_is_refused(device: str) -> None:
    with pytest.raises(LocalError, match=f"^device='{device}'"):
        Memory(10, device=device)


class Cudart:
    """As much of the CUDA runtime as pinning needs, with a status to answer."""

    def __init__(self, status: int) -> None:
        self.status = status
        self.calls: list[tuple[str, int]] = []

    def cudaHostRegister(self, address: int, size: int, flags: int) -> int:
        self.calls.append(("register", address))
        return self.status

    def cudaHostUnregister(self, address: int) -> int:
        self.calls.append(("unregister", address))
        return 0


def with_cudart(monkeypatch: pytest.MonkeyPatch, status: int) -> Cudart:
    cudart = Cudart(status)
    monkeypatch.setattr(memory, "_cudart", lambda: cudart)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    return cudart


def test_pinned_memory_is_unregistered_before_it_can_be_unmapped(monkeypatch: pytest.MonkeyPatch) -> None:
    cudart = with_cudart(monkeypatch, 0)
    found = Memory(5000)
    address = found.arena.data_ptr()
    assert found.pinned
    assert cudart.calls == [("register", address)]
    assert address in memory._REGISTERED, "kept alive for CUDA, whatever happens to the pool"
    found.close()
    found.close()
    assert cudart.calls == [("register", address), ("unregister", address)]
    assert address not in memory._REGISTERED


def test_memory_that_cuda_does_not_take_is_an_error_only_if_it_must_be_pinned(monkeypatch: pytest.MonkeyPatch) -> None:
    with_cudart(monkeypatch, 2)
    assert Memory(5000, pinned="auto").pinned is False
    with pytest.raises(LocalError, match=r"cudaHostRegister of 5000 bytes ended with CUDA error 2"):
        Memory(5000, pinned=True)
    assert not memory._REGISTERED


# ---- block pools ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("device", DEVICES)
def test_views_are_typed_windows_of_one_arena(device: str) -> None:
    pool = BlockPool(LAYOUT, 3, device=device)
    assert pool.arena.shape == (pool.map.bytes,)
    assert pool.address == pool.arena.data_ptr()
    assert pool.device.type == device
    for index, item in enumerate(items_of(LAYOUT)):
        view = pool.view(index)
        assert view.dtype == item.dtype
        assert view.shape == (3, 4, *item.shape)
        assert view.is_contiguous()
        assert view.data_ptr() == pool.address + pool.map.base(index) == pool.view(item.name).data_ptr()
        assert pool.rows(index).shape == (12, *item.shape)
        view[2, 3] = index + 1
        assert torch.equal(pool.rows(index)[11], view[2, 3])
        end = pool.map.base(index) + 12 * item.token_bytes
        assert raw(pool.arena[end - item.token_bytes : end]).tolist() == raw(view[2, 3]).tolist()


@pytest.mark.parametrize("device", DEVICES)
def test_headers_are_written_whole_read_and_cleared(device: str) -> None:
    pool = BlockPool(LAYOUT, 5, device=device)
    pool.headers.fill_(9)
    pool.write_header(3, 2**31 - 1, -(2**31))
    assert pool.read_header(3) == (2**31 - 1, -(2**31))
    assert pool.headers[3, 2:].tolist() == [0] * 14
    assert pool.headers.data_ptr() == pool.address + pool.map.aux_base
    pool.clear_headers([3])
    pool.clear_headers([4, 1])
    pool.clear_headers([])
    assert pool.headers[:, 0].tolist() == [9, 0, 9, 0, 0]
    assert not pool.headers[[1, 3, 4]].any()


def test_a_block_or_a_number_out_of_bounds_writes_no_header() -> None:
    pool = BlockPool(LAYOUT, 2)
    pool.headers.fill_(9)
    for wrong in (
        lambda: pool.write_header(2, 1, 1),
        lambda: pool.write_header(0, 2**31, 0),
        lambda: pool.write_header(0, 0, -(2**31) - 1),
        lambda: pool.read_header(-1),
        lambda: pool.clear_headers([0, 2]),
    ):
        with pytest.raises(LocalError):
            wrong()
    assert bool((pool.headers == 9).all())


def test_a_closed_pool_says_so_and_its_views_stay() -> None:
    pool = BlockPool(LAYOUT, 2)
    view = pool.view("fill_ids")
    pool.close()
    pool.close()
    with pytest.raises(LocalError, match="closed"):
        pool.view("fill_ids")
    view.fill_(1)
    assert view.sum() == 8


# ---- payloads -------------------------------------------------------------------------------------------


def test_a_good_payload_is_valid_and_says_what_it_is() -> None:
    whole = payload_of(5)
    whole.validate(LAYOUT)
    assert (whole.tokens, whole.has_mrope, whole.has_deepstack, whole.skip) == (5, True, True, frozenset())
    bare = payload_of(5, mrope=False, deepstack=False)
    bare.validate(LAYOUT)
    assert bare.skip == {"mrope_positions", "deepstack"}
    replace(whole, input_embeddings=whole.input_embeddings.t().contiguous().t()).validate(LAYOUT)
    with pytest.raises(LocalError, match="a payload has input_embeddings"):
        whole.tensor("tokens")


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        (
            {"input_embeddings": torch.zeros(8, 5).t()},
            "input_embeddings: given float32 [5, 8] on cpu, not contiguous; expected bfloat16 [5, 8] on cpu or cuda, "
            "for the 5 tokens of fill_ids",
        ),
        (
            {"input_embeddings": torch.zeros(4, 8, dtype=torch.bfloat16)},
            "input_embeddings: given bfloat16 [4, 8] on cpu, contiguous; expected bfloat16 [5, 8]",
        ),
        (
            {"input_embeddings": torch.zeros(5, 8, dtype=torch.bfloat16, device="meta")},
            "input_embeddings: given bfloat16 [5, 8] on meta, contiguous; expected bfloat16 [5, 8] on cpu or cuda",
        ),
        (
            {"input_embeddings": torch.zeros(5, 8, dtype=torch.bfloat16).to_sparse()},
            "input_embeddings: given bfloat16 [5, 8] on cpu, sparse (sparse_coo); expected",
        ),
        ({"input_embeddings": None}, "input_embeddings: given a NoneType; expected bfloat16 [5, 8]"),
        ({"fill_ids": torch.zeros(5, 1)}, "fill_ids: given float32 [5, 1] on cpu, contiguous; expected int32 [tokens]"),
        ({"fill_ids": [1, 2]}, "fill_ids: given a list; expected int32 [tokens]"),
        ({"fill_ids": torch.zeros(0)}, "fill_ids: given float32 [0] on cpu, contiguous; expected 1 to 2147483647"),
        ({"fill_ids": torch.zeros(5)}, "fill_ids: given float32 [5] on cpu, contiguous; expected int32 [5]"),
        (
            {"mrope_positions": torch.zeros(3, 5, dtype=torch.int32)},
            "mrope_positions: given int32 [3, 5] on cpu, contiguous; expected int32 [5, 3]",
        ),
        (
            {"deepstack": torch.zeros(5, 8, dtype=torch.bfloat16)},
            "deepstack: given bfloat16 [5, 8] on cpu, contiguous; expected bfloat16 [5, 16]",
        ),
        ({"position_delta": 2**31}, "position_delta=2147483648: expected a whole number from -2147483648"),
        ({"position_delta": 1.0}, "position_delta=1.0: expected a whole number"),
    ],
)
def test_a_payload_that_does_not_fit_is_refused_by_the_name_of_its_tensor(
    changes: dict[str, object], text: str
) -> None:
    wrong = replace(payload_of(5), **changes)  # type: ignore[arg-type]
    with pytest.raises(LocalError) as error:
        wrong.validate(LAYOUT)
    assert str(error.value).startswith(text)


def test_deepstack_for_a_layout_without_levels_is_refused() -> None:
    with pytest.raises(LocalError, match=r"deepstack: given bfloat16 \[5, 16\].*expected none"):
        payload_of(5).validate(make_layout(4, 8))


# ---- source pools ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("blocks", [(4, 5, 0), (5, 1, 3), (0, 1, 2)])
def test_a_stored_payload_lies_token_by_token_in_its_blocks(device: str, blocks: tuple[int, ...]) -> None:
    pool = SourcePool(LAYOUT, 6, device=device)
    pool.take(6)
    pool.arena.fill_(0xEE)
    untouched = raw(pool.arena)
    payload = payload_of(10)
    pool.store(blocks, payload)
    for item in items_of(LAYOUT):
        tensor = payload.tensor(item.name)
        assert tensor is not None
        view = pool.view(item.name)
        for i in range(10):
            assert torch.equal(raw(view[blocks[i // 4], i % 4]), raw(tensor[i]))
            row = blocks[i // 4] * 4 + i % 4
            pool.rows(item.name)[row : row + 1].view(-1).view(torch.uint8).fill_(0xEE)
    assert pool.read_header(blocks[0]) == (10, -3)
    pool.headers[blocks[0]].view(torch.uint8).fill_(0xEE)
    assert torch.equal(raw(pool.arena), untouched), "a byte outside the payload was written"


def test_absent_items_are_left_alone_and_gradients_do_not_enter_the_arena() -> None:
    pool = SourcePool(LAYOUT, 3)
    pool.arena.fill_(1)
    payload = payload_of(5, mrope=False, deepstack=False)
    pool.store(pool.take(2), replace(payload, input_embeddings=payload.input_embeddings.requires_grad_()))
    assert not pool.arena.requires_grad
    assert pool.view("input_embeddings").grad_fn is None
    assert bool((raw(pool.view("mrope_positions")) == 1).all())
    assert bool((raw(pool.view("deepstack")) == 1).all())


def test_views_are_the_places_where_store_would_put_the_tokens() -> None:
    pool, other = SourcePool(LAYOUT, 8), SourcePool(LAYOUT, 8)
    pool.take(8)
    other.take(8)
    payload, blocks = payload_of(14), (2, 3, 7, 0)
    pool.store(blocks, payload)
    views = other.views(blocks, 14)
    assert [(view.first, view.tokens) for view in views] == [(0, 8), (8, 4), (12, 2)]
    for view in views:
        for item in items_of(LAYOUT):
            tensor = payload.tensor(item.name)
            assert tensor is not None
            getattr(view, item.name).copy_(tensor[view.first : view.first + view.tokens])
    other.write_header(2, 14, -3)
    assert torch.equal(pool.arena, other.arena)
    plain = SourcePool(make_layout(4, 8), 2)
    assert plain.views(plain.take(1), 3)[0].deepstack is None


def test_adjacent_blocks_are_taken_where_there_are_some() -> None:
    pool = SourcePool(LAYOUT, 8)
    assert pool.take(8) == tuple(range(8))
    pool.give_back((1, 3, 4, 7))
    assert pool.take(2) == (3, 4)
    assert pool.take(2) == (1, 7)
    assert pool.free_blocks == 0


@given(st.lists(st.integers(1, 5), max_size=30), st.randoms(use_true_random=False))
def test_no_block_is_taken_twice_and_none_is_lost(counts: list[int], order: object) -> None:
    pool = SourcePool(make_layout(1, 1), 12)
    held: list[tuple[int, ...]] = []
    for count in counts:
        taken_now = {block for one in held for block in one}
        if count > pool.free_blocks:
            with pytest.raises(LocalError, match=rf"take\({count}\): only {pool.free_blocks} of 12 blocks are free"):
                pool.take(count)
            pool.give_back(held.pop(order.randrange(len(held))))  # type: ignore[attr-defined]
        else:
            taken = pool.take(count)
            assert len(set(taken)) == count
            assert not taken_now & set(taken)
            held.append(taken)
        assert pool.free_blocks + sum(map(len, held)) == 12


@pytest.mark.parametrize("count", [0, -1, True])
def test_a_count_that_is_none_takes_nothing(count: int) -> None:
    pool = SourcePool(LAYOUT, 3)
    with pytest.raises(LocalError, match="count="):
        pool.take(count)
    assert pool.free_blocks == 3


def test_blocks_that_are_not_taken_can_be_neither_given_back_nor_filled() -> None:
    pool = SourcePool(LAYOUT, 4)
    taken = pool.take(2)
    payload = payload_of(5)
    for wrong, text in (
        (lambda: pool.give_back([0, 2]), "give_back: block 2 is free"),
        (lambda: pool.give_back([0, 0]), "a block is named twice"),
        (lambda: pool.give_back([4]), "give_back: block 4 is not in this arena"),
        (lambda: pool.store([0, 2], payload), "store: block 2 is free"),
        (lambda: pool.store([0], payload), "store: 5 tokens in 1 blocks of 4; expected 2 blocks"),
        (lambda: pool.views([0, 3], 5), "views: block 3 is free"),
        (lambda: pool.views(taken, 9), "views: 9 tokens in 2 blocks of 4; expected 3 blocks"),
        (lambda: pool.views(taken, 0), "tokens=0"),
        (lambda: pool.store(taken, replace(payload, fill_ids=payload.fill_ids[:4])), "input_embeddings: given"),
    ):
        with pytest.raises(LocalError) as error:
            wrong()
        assert text in str(error.value)
    assert not pool.arena.any(), "a refused payload wrote something"
    assert pool.free_blocks == 2
    pool.give_back(taken)
    with pytest.raises(LocalError, match="give it back once"):
        pool.give_back(taken)


def test_payloads_are_told_apart_by_identity() -> None:
    assert payload_of(2) != payload_of(2)
    assert isinstance(payload_of(2), Payload)
