"""Payloads with a different value in every place, naive reading of blocks, and the devices to test on."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch

from fsm.messages import Layout
from gpu_backend.layout import items_of, make_layout
from gpu_backend.pool import BlockPool, Payload
from gpu_backend.results import Result

NO_CUDA = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")

DEVICES = ["cpu", pytest.param("cuda", marks=[pytest.mark.gpu, NO_CUDA])]
"""For ``parametrize``: the same test on the CPU and, where there is one, on a CUDA device."""

LAYOUT = make_layout(4, 8, deepstack_levels=2)


def payload_of(
    tokens: int, layout: Layout = LAYOUT, *, mrope: bool = True, deepstack: bool = True, delta: int = -3, salt: int = 0
) -> Payload:
    """A payload of bytes that repeat after 251 only, so that no two of 251 tokens are alike; compare the bytes."""

    def numbers(name: str) -> torch.Tensor:
        item = next(item for item in items_of(layout) if item.name == name)
        values = (torch.arange(tokens * item.token_bytes) * 7 + len(name) + salt * 10) % 251
        return values.to(torch.uint8).view(item.dtype).view(tokens, *item.shape)

    return Payload(
        numbers("input_embeddings"),
        numbers("fill_ids"),
        numbers("mrope_positions") if mrope else None,
        numbers("deepstack") if deepstack and layout.deepstack_levels else None,
        delta,
    )


def put(pool: BlockPool, blocks: Sequence[int], payload: Payload, start: int, tokens: int) -> None:
    """Token by token: what a peer's write leaves in the blocks of a grant that begins at ``start``."""
    block_tokens = pool.layout.block_tokens
    for item in items_of(pool.layout):
        tensor = payload.tensor(item.name)
        if tensor is not None:
            view = pool.view(item.name)
            for i in range(tokens):
                view[blocks[i // block_tokens], i % block_tokens] = tensor[start + i].to(pool.device)


def same(found: Result, payload: Payload, start: int = 0, tokens: int | None = None) -> None:
    """Asserts that tokens ``start`` to ``start + tokens`` of the result are those of the payload, bit by bit."""
    end = found.tokens if tokens is None else start + tokens
    for item in items_of(found.layout):
        expected, tensor = payload.tensor(item.name), found.tensor(item.name)
        assert (expected is None) == (tensor is None), item.name
        if expected is not None and tensor is not None:
            assert tensor.is_contiguous()
            assert torch.equal(raw(tensor[start:end]), raw(expected[start:end])), item.name


def raw(tensor: torch.Tensor) -> torch.Tensor:
    """A copy of the bytes of a tensor, on the CPU."""
    return tensor.cpu().contiguous().view(-1).view(torch.uint8).clone()
