"""A small vision encoder, built as the large ones are: what it sends is what theirs send, only less of it.

A picture keeps its own size. It is cut into patches of 14 x 14 pixels; a few transformer blocks look at all of them,
with positions turned into angles for rows and columns (2-D rotary); each square of 2 x 2 patches is merged into one
token. One block in the middle has a merger of its own, whose output travels as a *deepstack* level.

It is trained in seconds, to tell the few pictures of this example from each other. Behind the encoder stands a *book*:
one vector for each picture, which the language side uses as its vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional

from gpu_backend.workload import smart_resize

PATCH, MERGE = 14, 2
SIDE = PATCH * MERGE
"""Pixels along one side of a token."""
PIXELS_MIN, PIXELS_MAX = 56 * 56, 784 * 784
DIM, HEADS, BLOCKS = 96, 4, 4
TOKEN_DIM = 128
"""Length of one embedding, as the language side wants it."""
DEEPSTACK_BLOCK = 1
"""After this block the deepstack level is taken."""
ROTARY_BASE = 100.0


class Encoded(NamedTuple):
    """What the encoder makes of one picture of ``T`` tokens."""

    embeddings: Tensor
    """bfloat16 ``[T, TOKEN_DIM]``."""
    deepstack: Tensor
    """bfloat16 ``[T, TOKEN_DIM]``."""
    positions: Tensor
    """int32 ``[T, 3]``: time, row, column."""


@dataclass(frozen=True)
class Grid:
    """The patches of a picture; rows and columns are even."""

    rows: int
    columns: int

    def cells(self) -> Tensor:
        """Row and column of each patch ``[rows * columns, 2]``, the four patches of a token one after another."""
        high, wide = self.rows // MERGE, self.columns // MERGE
        at = torch.stack(torch.meshgrid(torch.arange(self.rows), torch.arange(self.columns), indexing="ij"), -1)
        return at.view(high, MERGE, wide, MERGE, 2).permute(0, 2, 1, 3, 4).reshape(-1, 2)


# --- pictures ---------------------------------------------------------------------------------------------


def load_picture(path: Path) -> Image.Image:
    """A picture as it lies on the disk."""
    with Image.open(path) as opened:
        return opened.convert("RGB")


def pixels_of(picture: Image.Image) -> Tensor:
    """Pixels as floats ``[3, height, width]`` from -1 to 1; both sides become multiples of a token's side."""
    high, wide = smart_resize(picture.height, picture.width, SIDE, PIXELS_MIN, PIXELS_MAX)
    data: NDArray[np.uint8] = np.array(picture.resize((wide, high), Image.Resampling.BICUBIC))
    return torch.from_numpy(data).permute(2, 0, 1).float() / 127.5 - 1.0


def patches_of(pixels: Tensor) -> tuple[Tensor, Grid]:
    """Patches ``[..., rows * columns, 3 * PATCH * PATCH]`` of pixels ``[..., 3, height, width]``."""
    *batch, _, height, width = pixels.shape
    high, wide = height // SIDE, width // SIDE
    cut = pixels.view(*batch, 3, high, MERGE, PATCH, wide, MERGE, PATCH)
    front = len(batch)
    order = [front + axis for axis in (1, 4, 2, 5, 0, 3, 6)]  # token row, token column, the 2 x 2, then the pixels
    flat = cut.permute(*range(front), *order).reshape(*batch, high * wide * MERGE**2, 3 * PATCH**2)
    return flat, Grid(high * MERGE, wide * MERGE)


# --- the network ------------------------------------------------------------------------------------------


def _rotary(cells: Tensor) -> tuple[Tensor, Tensor]:
    """Cosine and sine ``[patches, head / 2]``: half of the angles follow the row, half the column."""
    each = DIM // HEADS // 4
    speeds = ROTARY_BASE ** (-torch.arange(each) / each)
    angles = (cells[:, :, None] * speeds).flatten(1)
    return angles.cos(), angles.sin()


def _turned(heads: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    left, right = heads.chunk(2, dim=-1)
    return torch.cat((left * cosine - right * sine, right * cosine + left * sine), dim=-1)


class Block(nn.Module):
    """Attention over all patches of a picture, then a small network for each."""

    def __init__(self) -> None:
        super().__init__()
        self.before_attention, self.before_network = nn.LayerNorm(DIM), nn.LayerNorm(DIM)
        self.query_key_value, self.out = nn.Linear(DIM, 3 * DIM), nn.Linear(DIM, DIM)
        self.network = nn.Sequential(nn.Linear(DIM, 4 * DIM), nn.GELU(), nn.Linear(4 * DIM, DIM))

    def forward(self, patches: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
        """``[batch, patches, DIM]`` to the same."""
        batch, count, _ = patches.shape
        split = self.query_key_value(self.before_attention(patches)).view(batch, count, 3, HEADS, DIM // HEADS)
        query, key, value = split.permute(2, 0, 3, 1, 4)
        query, key = _turned(query, cosine, sine), _turned(key, cosine, sine)
        seen = functional.scaled_dot_product_attention(query, key, value)
        patches = patches + self.out(seen.transpose(1, 2).reshape(batch, count, DIM))
        after: Tensor = patches + self.network(self.before_network(patches))
        return after


class Merger(nn.Module):
    """Four neighbouring patches become one token."""

    def __init__(self) -> None:
        super().__init__()
        wide = DIM * MERGE**2
        self.norm = nn.LayerNorm(DIM)
        self.network = nn.Sequential(nn.Linear(wide, wide), nn.GELU(), nn.Linear(wide, TOKEN_DIM))

    def forward(self, patches: Tensor) -> Tensor:
        """``[batch, patches, DIM]`` to ``[batch, patches / 4, TOKEN_DIM]``."""
        batch, count, _ = patches.shape
        merged: Tensor = self.network(self.norm(patches).reshape(batch, count // MERGE**2, -1))
        return merged


class Encoder(nn.Module):
    """The whole encoder, and the book of ``pictures`` vectors that it was trained with."""

    def __init__(self, pictures: int, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.patch = nn.Linear(3 * PATCH**2, DIM)
        self.blocks = nn.ModuleList(Block() for _ in range(BLOCKS))
        self.merger, self.deepstack_merger = Merger(), Merger()
        self.book = nn.Parameter(torch.randn(pictures, TOKEN_DIM))

    def forward(self, patches: Tensor, grid: Grid) -> tuple[Tensor, Tensor]:
        """Embeddings and deepstack, ``[batch, tokens, TOKEN_DIM]`` each, of pictures of one size."""
        cosine, sine = _rotary(grid.cells())
        seen, level = self.patch(patches), None
        for number, block in enumerate(self.blocks):
            seen = block(seen, cosine, sine)
            if number == DEEPSTACK_BLOCK:
                level = self.deepstack_merger(seen)
        assert level is not None
        embeddings: Tensor = self.merger(seen)
        return embeddings, level

    @torch.no_grad()
    def encode(self, picture: Image.Image) -> Encoded:
        """One picture of any size."""
        patches, grid = patches_of(pixels_of(picture))
        embeddings, level = self(patches[None], grid)
        cells = grid.cells()[:: MERGE**2] // MERGE
        positions = torch.cat((torch.zeros(len(cells), 1, dtype=cells.dtype), cells), dim=1).int()
        return Encoded(embeddings[0].bfloat16(), level[0].bfloat16(), positions)


def pooled(embeddings: Tensor, deepstack: Tensor) -> Tensor:
    """All tokens of a picture as one vector of length 1, ``[..., TOKEN_DIM]``."""
    return functional.normalize(embeddings.float().mean(-2) + deepstack.float().mean(-2), dim=-1)


def closeness(vectors: Tensor, book: Tensor) -> Tensor:
    """Cosines ``[..., pictures]`` between vectors and the pages of the book."""
    return vectors @ functional.normalize(book, dim=-1).T


# --- training ---------------------------------------------------------------------------------------------

CROPS, CROP_SIDE = 16, 4 * SIDE


def train(encoder: Encoder, pictures: list[Image.Image], steps: int, seed: int = 0) -> None:
    """Teach the encoder, in place, from which picture a random cut-out is. A step takes some tens of milliseconds."""
    draw = np.random.default_rng(seed)
    optimizer = torch.optim.AdamW(encoder.parameters(), lr=1e-3)
    for _ in range(steps):
        which = draw.integers(len(pictures), size=CROPS)
        patches, grid = patches_of(torch.stack([_cut_out(pictures[number], draw) for number in which]))
        near = closeness(pooled(*encoder(patches, grid)), encoder.book)
        loss = functional.cross_entropy(near / 0.1, torch.from_numpy(which))
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        optimizer.step()


def _cut_out(picture: Image.Image, draw: np.random.Generator) -> Tensor:
    """A square of a third to all of the shorter side, perhaps mirrored, brought to one size."""
    side = int(min(picture.size) * draw.uniform(0.33, 1.0))
    left, top = (int(draw.integers(length - side + 1)) for length in picture.size)
    square = picture.resize((CROP_SIDE, CROP_SIDE), box=(left, top, left + side, top + side))
    if draw.random() < 0.5:
        square = square.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return pixels_of(square)
