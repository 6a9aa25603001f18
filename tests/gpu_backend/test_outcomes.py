"""Results and leases that nobody released: they come back, are told of, and never under a tensor that is still used."""

from __future__ import annotations

import gc
import logging
import threading
import weakref
from typing import Any

import pytest
import torch

from gpu_backend.config import PoolConfig
from gpu_backend.outcomes import Delivery
from tests.gpu_backend.kit_workers import Pair, payload_of, same_bits

HANG_S = 30.0


def finished(room: int, tokens: int, *, lease: bool = False) -> tuple[Pair, Any]:
    """A pair, and what it delivered, held by the caller alone."""
    pair = Pair(receiver={"pool": PoolConfig(blocks=8, huge_pages=False)})
    pair.sender.submit(room, payload_of(room, tokens))
    pair.receiver.submit(room, lease=lease)
    pair.run_rooms([room])
    outcome = pair.outcomes.pop(room)
    return pair, outcome.lease if lease else outcome.result


def whole(pair: Pair) -> bool:
    """Whether all result memory and all landing blocks are free."""
    stats = pair.receiver.stats()
    return stats.free_result_tokens == pair.receiver.results.free_tokens == 256 and stats.blocks["Free"] == 8


def warnings_of(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if "without release()" in record.getMessage()]


@pytest.mark.parametrize("lease, what", [(False, "delivery"), (True, "lease")])
def test_what_is_dropped_without_release_comes_back_with_one_warning(
    lease: bool, what: str, caplog: pytest.LogCaptureFixture
) -> None:
    """The room is named; it is put back once; and one that was released says nothing."""
    caplog.set_level(logging.WARNING)
    pair, held = finished(7, 20, lease=lease)
    assert not whole(pair)
    gone = weakref.ref(held)
    del held
    gc.collect()
    for _ in range(3):
        pair.step()
    gc.collect()
    assert gone() is None and whole(pair)
    assert warnings_of(caplog) == [
        f"room 7: its {what} was dropped without release(); its memory is taken back now, late"
    ]
    pair.close()


@pytest.mark.parametrize("lease", [False, True])
def test_what_was_released_is_not_told_of(lease: bool, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    pair, held = finished(7, 20, lease=lease)
    held.release()
    del held
    gc.collect()
    pair.run(lambda: whole(pair))
    assert warnings_of(caplog) == []
    pair.close()


def _parts(held: Any) -> Any:
    return held.tensors if isinstance(held, Delivery) else held.views()[0]


@pytest.mark.parametrize("lease", [False, True])
@pytest.mark.parametrize("inference", [False, True])
@pytest.mark.parametrize(
    "keep",
    [
        lambda held: _parts(held).input_embeddings,
        lambda held: _parts(held).input_embeddings[3:5, 2:],
        lambda held: _parts(held).input_embeddings.detach().view(torch.int16).flatten()[7:],
        lambda held: _parts(held).fill_ids.numpy()[4:],
        lambda held: _parts(held).mrope_positions.T,
    ],
    ids=["whole", "slice", "bits", "numpy", "transposed"],
)
def test_memory_does_not_come_back_under_a_view_that_is_still_used(keep: Any, inference: bool, lease: bool) -> None:
    """Who drops the delivery and keeps a tensor, or any view of one, must not see another request's bytes in it."""
    pair, held = finished(7, 20, lease=lease)
    with torch.inference_mode(inference):
        kept = keep(held)
    before = kept.copy() if not isinstance(kept, torch.Tensor) else kept.clone()
    del held
    gc.collect()
    for _ in range(3):
        pair.step()
    assert not whole(pair)
    for room in (8, 9, 10):
        pair.sender.submit(room, payload_of(room, 12))
        pair.receiver.submit(room)
    pair.run_rooms([8, 9, 10])
    assert bool((kept == before).all()) or same_bits(kept, before)
    pair.outcomes.clear()
    del kept
    gc.collect()
    pair.run(lambda: whole(pair))
    pair.close()


def test_it_may_be_dropped_in_any_thread() -> None:
    """Only the owner thread touches the worker; the collector runs wherever it likes."""
    pair, held = finished(7, 20)
    box = [held]
    del held
    thread = threading.Thread(target=box.clear)
    thread.start()
    thread.join(HANG_S)
    pair.run(lambda: whole(pair))
    pair.close()


def test_what_is_handed_out_is_the_memory_itself() -> None:
    """No copy: the tensors lie where the result lies, contiguous, and an item that is absent is ``None``."""
    pair, held = finished(7, 20)
    memory = held.memory
    for name in ("input_embeddings", "fill_ids", "mrope_positions"):
        tensor, inner = getattr(held, name), getattr(memory, name)
        assert tensor.data_ptr() == inner.data_ptr() and tensor.is_contiguous()
        assert same_bits(tensor, inner) and same_bits(tensor, getattr(payload_of(7, 20), name))
    assert held.deepstack is None
    held.release()
    pair.close()
