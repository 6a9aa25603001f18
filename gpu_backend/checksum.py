"""Checksums over chunks: the same number whether it is taken from source blocks or from result rows.

``none`` costs nothing and checks nothing. ``header`` covers what is small and what a mix-up would corrupt first:
the ids, the positions and, with token 0, the aux header. ``full`` covers every byte of the chunk. The hash is
xxh3 (64 bits), which is about as fast as the copy itself; it finds accidents, not attackers. Both sides must use
the same mode.

What is hashed, in this order: the aux header (64 bytes) if token 0 is in the chunk, then item by item in the
order of the layout the bytes of the tokens in their order, without the items that the request does not have.
Memory of a device is hashed on the host, by way of a copy.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Generator, Iterable, Sequence
from typing import TYPE_CHECKING, Final, Literal, TypeAlias, cast, get_args

import torch

from fsm.errors import LocalError
from gpu_backend.layout import FILL_IDS, MROPE_POSITIONS, check_int, runs_of
from gpu_backend.pool import BlockPool
from gpu_backend.results import Result

if TYPE_CHECKING:
    import xxhash

Mode: TypeAlias = Literal["none", "header", "full"]

MODES: Final[tuple[str, ...]] = get_args(Mode)

SLICE_BYTES: Final = 16 << 20
"""How much is hashed in one go, unless something else is asked for."""

_IN_HEADER_MODE: Final = frozenset((FILL_IDS, MROPE_POSITIONS))


def check_mode(mode: str) -> Mode:
    """The mode, if it can be used here.

    Raises :class:`LocalError` if there is no such mode, or if it needs xxhash and that is not installed.
    """
    if mode not in MODES:
        raise LocalError(f"checksum={mode!r}: expected one of {', '.join(MODES)}")
    if mode != "none":
        _new_digest()
    return cast("Mode", mode)


def source_checksum(
    pool: BlockPool,
    blocks: Sequence[int],
    start: int,
    tokens: int,
    *,
    mode: Mode,
    skip: Collection[str] = (),
    first: bool,
) -> int | None:
    """The checksum of ``tokens`` tokens from token ``start`` of a payload that lies in ``blocks``.

    ``skip``: the items that the payload does not have; ``first``: token 0 is among them, so that the aux header
    of the first block counts. ``None`` in mode ``none``, else an unsigned number of 64 bits. On CUDA this waits
    for the device. Raises :class:`LocalError` if a block is not in the pool or the blocks do not reach.
    """
    if mode == "none":
        return None
    check_int("start", start, 0)
    check_int("tokens", tokens, 1)
    pool.map.check_blocks("blocks", blocks)
    block_tokens = pool.layout.block_tokens
    if len(blocks) * block_tokens < start + tokens:
        raise LocalError(f"blocks: {len(blocks)} of {block_tokens} tokens do not reach token {start + tokens}")
    runs = list(runs_of(blocks, start, tokens, block_tokens))
    parts = (
        rows[run.row : run.row + run.tokens]
        for rows in (pool.rows(item.name) for item in pool.map.items if item.name in counted(pool, mode, skip))
        for run in runs
    )
    return _drain(digest_steps(header_bytes(pool, blocks[0]) if first else b"", parts))


def result_checksum(result: Result, start: int, tokens: int, *, mode: Mode, header: bytes = b"") -> int | None:
    """The checksum of ``tokens`` tokens of a result, from its token ``start`` on.

    ``header``: the aux header of the block that token 0 landed in (:func:`header_bytes`), if token 0 is among
    them. ``None`` in mode ``none``. Raises :class:`LocalError` if the result is released or too short.
    """
    if mode == "none":
        return None
    check_int("tokens", tokens, 1)
    check_int("start", start, 0, result.tokens - tokens)
    found = [(item, result.tensor(item)) for item in result.layout.items]
    tensors = {item: tensor for item, tensor in found if tensor is not None}
    return _drain(digest_steps(header, result_parts(tensors, start, tokens, mode)))


def result_parts(tensors: dict[str, torch.Tensor], start: int, tokens: int, mode: Mode) -> Iterable[torch.Tensor]:
    """What of a result is hashed; ``tensors`` by item, in the order of the layout."""
    return [tensor[start : start + tokens] for item, tensor in tensors.items() if _counts(item, mode)]


def counted(pool: BlockPool, mode: Mode, skip: Collection[str]) -> frozenset[str]:
    """The items that are hashed in this mode."""
    return frozenset(item.name for item in pool.map.items if _counts(item.name, mode) and item.name not in skip)


def header_bytes(pool: BlockPool, block: int) -> bytes:
    """The aux header of a block as it is hashed: all of its 64 bytes."""
    return pool.headers[block].cpu().numpy().tobytes()


def digest_steps(
    header: bytes, parts: Iterable[torch.Tensor], *, step_bytes: Callable[[], int] = lambda: SLICE_BYTES
) -> Generator[int, None, int]:
    """Hashes the header and then the parts (contiguous tensors), in steps of at most ``step_bytes()`` bytes.

    ``step_bytes`` is asked before every step. Yields the bytes of each step and returns the checksum.
    """
    digest = _new_digest()
    digest.update(header)
    for part in parts:
        flat = part.reshape(-1).view(torch.uint8)
        done = 0
        while done < flat.numel():
            piece = flat[done : done + step_bytes()].cpu()
            digest.update(piece.numpy().data)
            done += piece.numel()
            yield piece.numel()
    return digest.intdigest()


def _counts(item: str, mode: Mode) -> bool:
    return mode == "full" or (mode == "header" and item in _IN_HEADER_MODE)


def _drain(steps: Generator[int, None, int]) -> int:
    while True:
        try:
            next(steps)
        except StopIteration as end:
            return cast("int", end.value)


def _new_digest() -> xxhash.xxh3_64:
    try:
        import xxhash
    except ImportError as error:
        raise LocalError(
            f"checksums need xxhash, which is not installed ({error}); "
            "pip install 'resumark[torch]', or use the mode 'none'"
        ) from error
    return xxhash.xxh3_64()
