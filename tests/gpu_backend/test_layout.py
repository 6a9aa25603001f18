"""Layouts and spans: every byte of every token goes where rule R10 says, and no other byte is touched."""

from __future__ import annotations

import doctest
from itertools import pairwise
from typing import NamedTuple

import msgspec
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fsm.errors import LocalError
from fsm.messages import Layout
from gpu_backend import layout as layout_module
from gpu_backend.layout import ArenaMap, Run, Span, items_of, make_layout, runs_of, write_spans
from gpu_backend.pool import BlockPool

LAYOUT = make_layout(4, 8, deepstack_levels=2)


def test_the_examples_of_the_module_are_true() -> None:
    found = doctest.testmod(layout_module)
    assert found.attempted >= 3
    assert found.failed == 0


# ---- items ----------------------------------------------------------------------------------------------


def test_the_items_of_a_layout_and_their_sizes() -> None:
    assert LAYOUT.items == ("input_embeddings", "fill_ids", "mrope_positions", "deepstack")
    assert items_of(LAYOUT) == (
        ("input_embeddings", torch.bfloat16, (8,), 16),
        ("fill_ids", torch.int32, (), 4),
        ("mrope_positions", torch.int32, (3,), 12),
        ("deepstack", torch.bfloat16, (16,), 32),
    )
    plain = make_layout(4, 8, dtype="float32")
    assert [item.name for item in items_of(plain)] == ["input_embeddings", "fill_ids", "mrope_positions"]
    assert items_of(plain)[0].token_bytes == 32


def test_items_are_stored_in_the_order_of_the_layout() -> None:
    turned = msgspec.structs.replace(LAYOUT, items=LAYOUT.items[::-1])
    assert [item.name for item in items_of(turned)] == list(LAYOUT.items[::-1])
    assert ArenaMap(turned, 3).base("deepstack") == 0


def test_layouts_that_differ_in_anything_have_different_fingerprints() -> None:
    layouts = [
        make_layout(4, 8),
        make_layout(5, 8),
        make_layout(4, 9),
        make_layout(4, 8, dtype="float16"),
        make_layout(4, 8, deepstack_levels=1),
    ]
    assert len({layout.fingerprint() for layout in layouts}) == len(layouts)


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"block_tokens": 0}, "block_tokens=0: expected a whole number from 1"),
        ({"block_tokens": True}, "block_tokens=True"),
        ({"dim": -1}, "dim=-1"),
        ({"dim": 2**31}, "dim=2147483648"),
        ({"deepstack_levels": -1}, "deepstack_levels=-1: expected a whole number from 0"),
        ({"dtype": "bf16"}, "layout dtype 'bf16'"),
        ({"dtype": "int32"}, "layout dtype 'int32'"),
        ({"dtype": "nn"}, "layout dtype 'nn'"),
    ],
)
def test_a_layout_that_makes_no_sense_is_refused(changes: dict[str, object], text: str) -> None:
    arguments: dict[str, object] = {"block_tokens": 4, "dim": 8} | changes
    with pytest.raises(LocalError) as error:
        make_layout(**arguments)  # type: ignore[arg-type]
    assert str(error.value).startswith(text)


@pytest.mark.parametrize(
    "layout",
    [
        msgspec.structs.replace(LAYOUT, items=LAYOUT.items[:3]),
        msgspec.structs.replace(LAYOUT, items=LAYOUT.items[1:]),
        msgspec.structs.replace(LAYOUT, items=(*LAYOUT.items, "fill_ids")),
        msgspec.structs.replace(LAYOUT, items=(*LAYOUT.items[:3], "deepstacks")),
        msgspec.structs.replace(LAYOUT, deepstack_levels=0),
    ],
)
def test_items_that_are_missing_unknown_or_named_twice_are_refused(layout: Layout) -> None:
    with pytest.raises(LocalError, match=r"expected each of .* once"):
        items_of(layout)


def test_a_layout_of_another_version_is_refused() -> None:
    with pytest.raises(LocalError, match=r"layout version 2: this package stores version 1"):
        items_of(msgspec.structs.replace(LAYOUT, version=2))


# ---- the map of an arena --------------------------------------------------------------------------------


@given(st.integers(1, 40), st.integers(1, 70), st.integers(0, 3), st.integers(1, 50))
def test_nothing_overlaps_in_an_arena_and_every_base_is_aligned(
    block_tokens: int, dim: int, levels: int, blocks: int
) -> None:
    found = ArenaMap(make_layout(block_tokens, dim, deepstack_levels=levels), blocks)
    ends = 0
    for index, item in enumerate(found.items):
        assert found.base(index) == found.base(item.name) >= ends
        assert found.base(index) % 4096 == 0
        assert found.block_bytes(index) == block_tokens * item.token_bytes
        ends = found.base(index) + blocks * found.block_bytes(index)
    assert found.aux_base >= ends
    assert found.aux_base % 4096 == 0
    assert found.aux_offset(blocks - 1) + ArenaMap.AUX_BYTES <= found.bytes
    assert found.bytes % 4096 == 0


def test_what_is_not_in_an_arena_is_refused_by_name() -> None:
    found = ArenaMap(LAYOUT, 3)
    for item in ("embeddings", 4, -1):
        with pytest.raises(LocalError, match="this layout stores input_embeddings, fill_ids"):
            found.base(item)
    with pytest.raises(LocalError, match=r"blocks=0: expected a whole number from 1"):
        ArenaMap(LAYOUT, 0)
    for block in (3, -1):
        with pytest.raises(LocalError, match=f"here: block {block} is not in this arena; its blocks are 0 to 2"):
            found.check_blocks("here", [0, block])


def test_runs_end_where_the_next_block_is_not_the_next_number() -> None:
    assert list(runs_of([3, 4, 9, 8], 2, 13, 4)) == [Run(0, 14, 6), Run(6, 36, 4), Run(10, 32, 3)]
    assert list(runs_of([5, 6], 0, 4, 4)) == [Run(0, 20, 4)]
    assert list(runs_of([5, 6], 4, 1, 4)) == [Run(0, 24, 1)]


# ---- spans ----------------------------------------------------------------------------------------------


class Case(NamedTuple):
    layout: Layout
    source_blocks: list[int]
    source_pool: int
    start: int
    target_blocks: list[int]
    target_pool: int
    tokens: int
    skip: frozenset[str]
    aux: bool


@st.composite
def cases(draw: st.DrawFn) -> Case:
    # With 700 elements items are longer than a page, so that their bases differ between pools of different sizes.
    dim = draw(st.sampled_from([1, 3, 700]))
    layout = make_layout(draw(st.integers(1, 5)), dim, deepstack_levels=draw(st.integers(0, 2)))
    block_tokens = layout.block_tokens
    total = draw(st.integers(1, 30))
    start = draw(st.one_of(st.just(0), st.integers(0, total - 1)))
    tokens = draw(st.integers(1, total - start))
    skip = draw(st.frozensets(st.sampled_from(["mrope_positions", "deepstack"])))

    def scattered(needed: int) -> tuple[list[int], int]:
        count = -(-needed // block_tokens) + draw(st.integers(0, 1))
        pool = count + draw(st.integers(0, 3))
        order = st.just(list(range(pool))) if draw(st.booleans()) else st.permutations(range(pool))
        return draw(order)[:count], pool

    source_blocks, source_pool = scattered(total)
    target_blocks, target_pool = scattered(tokens)
    aux = start == 0 and draw(st.booleans())
    return Case(layout, source_blocks, source_pool, start, target_blocks, target_pool, tokens, skip, aux)


def pool_of_bytes(layout: Layout, blocks: int, seed: int) -> BlockPool:
    pool = BlockPool(layout, blocks)
    generator = torch.Generator().manual_seed(seed)
    pool.arena.random_(0, 256, generator=generator)
    return pool


@given(cases())
def test_spans_move_what_a_naive_loop_over_tokens_moves_and_nothing_else(case: Case) -> None:
    source = pool_of_bytes(case.layout, case.source_pool, 1)
    target = pool_of_bytes(case.layout, case.target_pool, 2)
    expected = pool_of_bytes(case.layout, case.target_pool, 2)
    block_tokens = case.layout.block_tokens
    for item in case.layout.items:
        if item not in case.skip:
            taken, given_to = source.view(item), expected.view(item)
            for i in range(case.tokens):
                at = case.start + i
                given_to[case.target_blocks[i // block_tokens], i % block_tokens] = taken[
                    case.source_blocks[at // block_tokens], at % block_tokens
                ]
    if case.aux:
        expected.headers[case.target_blocks[0]] = source.headers[case.source_blocks[0]]

    spans = write_spans(
        source.map, case.source_blocks, case.start, target.map, case.target_blocks, case.tokens,
        skip=case.skip, aux=case.aux,
    )  # fmt: skip
    for span in spans:
        target.arena[span.target : span.target + span.bytes] = source.arena[span.source : span.source + span.bytes]

    assert torch.equal(target.arena, expected.arena)
    assert all(span.bytes > 0 for span in spans)
    items = [item for item in items_of(case.layout) if item.name not in case.skip]
    sizes = sum(item.token_bytes for item in items) * case.tokens + (64 if case.aux else 0)
    assert sum(span.bytes for span in spans) == sizes, "a byte is moved twice"
    for one, other in pairwise(spans):
        assert (other.source, other.target) != (one.source + one.bytes, one.target + one.bytes), "not coalesced"


def test_adjacent_blocks_are_one_span_per_item() -> None:
    source, target = ArenaMap(LAYOUT, 8), ArenaMap(LAYOUT, 20)
    spans = write_spans(source, [2, 3, 4], 0, target, [7, 8, 9], 10, aux=True)
    assert spans == [
        Span(source.base(i) + 8 * size, target.base(i) + 28 * size, 10 * size) for i, size in enumerate((16, 4, 12, 32))
    ] + [Span(source.aux_base + 2 * 64, target.aux_base + 7 * 64, 64)]


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"tokens": 0}, "tokens=0: expected a whole number from 1"),
        ({"source_blocks": [0, 1, 2], "tokens": 9}, r"target_blocks: 2 blocks of 4 tokens do not reach token 9"),
        ({"source_start": 1, "tokens": 8, "aux": False}, r"source_blocks: 2 blocks of 4 tokens do not reach token 9"),
        ({"source_start": -1}, "source_start=-1"),
        ({"source_start": 1, "tokens": 2}, r"aux=True with source_start=1: the aux header goes with token 0 only"),
        ({"source_blocks": [0, 3]}, r"source_blocks: block 3 is not in this arena; its blocks are 0 to 2"),
        ({"target_blocks": [5, 0]}, r"target_blocks: block 5 is not in this arena; its blocks are 0 to 4"),
        ({"skip": ["fill_ids"]}, r"skip='fill_ids': only deepstack and mrope_positions can be absent"),
        ({"target_map": ArenaMap(make_layout(4, 9, deepstack_levels=2), 5)}, "two layouts: source "),
    ],
)
def test_a_write_that_makes_no_sense_is_refused(changes: dict[str, object], text: str) -> None:
    arguments: dict[str, object] = {
        "source_map": ArenaMap(LAYOUT, 3),
        "source_blocks": [0, 1],
        "source_start": 0,
        "target_map": ArenaMap(LAYOUT, 5),
        "target_blocks": [4, 0],
        "tokens": 8,
        "aux": True,
    }
    assert write_spans(**arguments)  # type: ignore[arg-type]
    with pytest.raises(LocalError, match="^" + text):
        write_spans(**(arguments | changes))  # type: ignore[arg-type]
