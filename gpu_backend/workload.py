"""Requests of real sizes: how many tokens an image or a video becomes, and where its tokens stand.

The rules are the published ones of Qwen2.5-VL and Qwen3-VL. A picture is resized so that both sides are multiples of
``patch x merge`` pixels and its area lies within bounds; each ``merge x merge`` square of patches becomes one token.
Two consecutive frames of a video make one temporal patch. The two families bound a video differently:

- Qwen2.5-VL bounds each frame, and the frames together; the time of a frame is in its positions (two positions for
  each second).
- Qwen3-VL bounds the volume, frames times area; every temporal patch stands alone between markers, with its time
  written before it as text, and its positions start anew each time.

A prompt is text, media, text, as a chat template makes it. Text stands at (p, p, p). A token of an image stands at
(time, row, column), counted from where the text before it ended, and the text behind goes on after the largest
position so far. So positions fall behind the number of tokens, and the difference at the end is the *position delta*,
which decoding goes on from.

Nothing here needs torch.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fsm.errors import LocalError

ASPECT_MAX = 200
"""A picture more stretched than that is refused, as the published code does."""

FRAMES_PER_S = 2.0
FRAMES_MIN = 4
FRAMES_MAX = 768
TEMPORAL_PATCH = 2
POSITIONS_PER_S = 2
"""Qwen2.5-VL: how far one second of video moves the temporal position."""

HEADER_BYTES = 64
"""The aux header, once for each request."""


@dataclass(frozen=True)
class Family:
    """The rules of one family of models. Areas are pixels."""

    name: str
    patch: int
    merge: int
    image_pixels_min: int
    image_pixels_max: int
    video_pixels_min: int
    """Of one frame (Qwen2.5-VL), or of all frames together (Qwen3-VL)."""
    video_pixels_max: int
    video_pixels_total: int
    """Of all frames together; 0 where ``video_pixels_max`` means that already."""
    frames_apart: bool
    """Every temporal patch between markers of its own, after its time as text (Qwen3-VL)."""

    @property
    def side(self) -> int:
        """Pixels along one side of a token."""
        return self.patch * self.merge


QWEN25 = Family("qwen2.5-vl", 14, 2, 56 * 56, 12_845_056, 128 * 28 * 28, 768 * 28 * 28, 24_576 * 28 * 28, False)
QWEN3 = Family("qwen3-vl", 16, 2, 65_536, 16_777_216, 4_096, 25_165_824, 0, True)


@dataclass(frozen=True)
class Model:
    """One model: its family, the length of an embedding, and how many deepstack levels go with it."""

    name: str
    family: Family
    dim: int
    deepstack_levels: int = 0

    @property
    def token_bytes(self) -> int:
        """What one token takes: embeddings of two bytes an element, an id, three positions."""
        return self.dim * 2 * (1 + self.deepstack_levels) + 4 + 12


MODELS: dict[str, Model] = {
    model.name: model
    for model in (
        Model("qwen2.5-vl-3b", QWEN25, 2048),
        Model("qwen2.5-vl-7b", QWEN25, 3584),
        Model("qwen2.5-vl-32b", QWEN25, 5120),
        Model("qwen2.5-vl-72b", QWEN25, 8192),
        Model("qwen3-vl-2b", QWEN3, 2048, 3),
        Model("qwen3-vl-4b", QWEN3, 2560, 3),
        Model("qwen3-vl-8b", QWEN3, 4096, 3),
        Model("qwen3-vl-30b-a3b", QWEN3, 2048, 3),
        Model("qwen3-vl-32b", QWEN3, 5120, 3),
        Model("qwen3-vl-235b-a22b", QWEN3, 4096, 3),
    )
}


def model_named(name: str) -> Model:
    """The model of that name. Raises :class:`LocalError` that lists what there is."""
    if name not in MODELS:
        raise LocalError(f"model '{name}': unknown; expected one of {', '.join(MODELS)}")
    return MODELS[name]


# --- the published arithmetic ---------------------------------------------------------------------------


def _check_size(height: int, width: int) -> None:
    if height < 1 or width < 1:
        raise LocalError(f"a picture of {width}x{height}: expected at least 1x1")
    if max(height, width) > ASPECT_MAX * min(height, width):
        raise LocalError(f"a picture of {width}x{height}: expected sides at most {ASPECT_MAX}:1 apart")


def _rounded(value: int, side: int) -> int:
    return round(value / side) * side  # to even at one half, as the published code does


def smart_resize(height: int, width: int, side: int, pixels_min: int, pixels_max: int) -> tuple[int, int]:
    """Height and width after resizing: multiples of ``side``, the area within bounds, the aspect nearly kept.

    Raises :class:`LocalError` for a size that the models refuse.
    """
    _check_size(height, width)
    high, wide = _rounded(height, side), _rounded(width, side)
    if high * wide > pixels_max:
        shrink = math.sqrt(height * width / pixels_max)
        high = max(side, math.floor(height / shrink / side) * side)
        wide = max(side, math.floor(width / shrink / side) * side)
    elif high * wide < pixels_min:
        grow = math.sqrt(pixels_min / (height * width))
        high, wide = math.ceil(height * grow / side) * side, math.ceil(width * grow / side) * side
    return high, wide


def smart_resize_volume(
    frames: int, height: int, width: int, side: int, pixels_min: int, pixels_max: int
) -> tuple[int, int]:
    """The same for a video whose bounds count frames times area (Qwen3-VL)."""
    _check_size(height, width)
    high, wide = max(side, _rounded(height, side)), max(side, _rounded(width, side))
    deep = math.ceil(frames / TEMPORAL_PATCH) * TEMPORAL_PATCH
    if deep * high * wide > pixels_max:
        shrink = math.sqrt(frames * height * width / pixels_max)
        high = max(side, math.floor(height / shrink / side) * side)
        wide = max(side, math.floor(width / shrink / side) * side)
    elif deep * high * wide < pixels_min:
        grow = math.sqrt(pixels_min / (frames * height * width))
        high, wide = math.ceil(height * grow / side) * side, math.ceil(width * grow / side) * side
    return high, wide


def frames_sampled(seconds: float, source_fps: float = 30.0) -> int:
    """How many frames of a video are looked at: two a second, an even number from 4 to 768."""
    available = int(seconds * source_fps)
    wanted = min(max(seconds * FRAMES_PER_S, FRAMES_MIN), FRAMES_MAX, available)
    frames = int(wanted) // TEMPORAL_PATCH * TEMPORAL_PATCH
    if frames < TEMPORAL_PATCH:
        raise LocalError(f"a video of {seconds} s: expected at least {TEMPORAL_PATCH} frames")
    return frames


class Grid(NamedTuple):
    """Tokens of one picture or video: temporal patches, rows, columns."""

    times: int
    rows: int
    columns: int

    @property
    def tokens(self) -> int:
        """All of them."""
        return self.times * self.rows * self.columns


class Image(NamedTuple):
    """A picture, in pixels."""

    width: int
    height: int

    def grid(self, family: Family) -> Grid:
        """What it becomes."""
        high, wide = smart_resize(
            self.height, self.width, family.side, family.image_pixels_min, family.image_pixels_max
        )
        return Grid(1, high // family.side, wide // family.side)

    def __str__(self) -> str:
        return f"image {self.width}x{self.height}"


class Video(NamedTuple):
    """A video, in pixels and seconds."""

    width: int
    height: int
    seconds: float

    def grid(self, family: Family) -> Grid:
        """What it becomes."""
        frames = frames_sampled(self.seconds)
        low, high = family.video_pixels_min, family.video_pixels_max
        if family.frames_apart:
            rows, columns = smart_resize_volume(frames, self.height, self.width, family.side, low, high)
        else:
            share = family.video_pixels_total / frames * TEMPORAL_PATCH
            most = int(max(min(high, share), low * 1.05))
            rows, columns = smart_resize(self.height, self.width, family.side, low, most)
        return Grid(frames // TEMPORAL_PATCH, rows // family.side, columns // family.side)

    def __str__(self) -> str:
        return f"video {self.width}x{self.height} {self.seconds:g} s"


Medium = Image | Video
Positions = NDArray[np.int32]


# --- prompts and their positions ------------------------------------------------------------------------


@dataclass(frozen=True)
class Prompt:
    """What one request holds: so many tokens of text, media, so many tokens of text. No media: text alone."""

    media: tuple[Medium, ...]
    text_before: int = 16
    text_behind: int = 32
    name: str = ""

    def __str__(self) -> str:
        return self.name or ", ".join(map(str, self.media)) or f"{self.text_before + self.text_behind} tokens of text"


def time_text_tokens(second: float) -> int:
    """Tokens of a frame's time as Qwen3-VL writes it, ``<12.5 seconds>``: each figure is one, four are around them."""
    return len(f"{second:.1f}") - 1 + 4


def _runs(prompt: Prompt, family: Family) -> list[int | Grid]:
    """The prompt as a row of texts (a number of tokens) and grids."""
    runs: list[int | Grid] = [prompt.text_before]
    for medium in prompt.media:
        grid = medium.grid(family)
        if isinstance(medium, Video) and family.frames_apart:
            for index in range(grid.times):
                middle_s = (index + 0.5) * TEMPORAL_PATCH / FRAMES_PER_S
                runs += [time_text_tokens(middle_s) + 1, Grid(1, grid.rows, grid.columns), 1]
        else:
            runs += [1, grid, 1]  # between the markers of its beginning and its end
    return [*runs, prompt.text_behind]


def prompt_tokens(prompt: Prompt, family: Family) -> int:
    """The length of the sequence."""
    return sum(run if isinstance(run, int) else run.tokens for run in _runs(prompt, family))


def prompt_positions(prompt: Prompt, family: Family) -> tuple[Positions, int]:
    """Positions [tokens, 3] int32 (time, row, column of each token), and the position delta."""
    parts: list[Any] = []
    at = 0
    for run in _runs(prompt, family):
        if isinstance(run, int):
            if run:
                parts.append(np.repeat(np.arange(at, at + run, dtype=np.int32)[:, None], 3, axis=1))
                at += run
            continue
        # One temporal patch is one second of video at two frames a second.
        step = int(TEMPORAL_PATCH / FRAMES_PER_S * POSITIONS_PER_S)
        cells = np.indices(tuple(run), dtype=np.int32).reshape(3, -1).T
        cells = cells * np.array([step, 1, 1], np.int32) + np.int32(at)
        parts.append(cells)
        at = int(cells.max()) + 1
    positions = np.concatenate(parts).astype(np.int32, copy=False) if parts else np.zeros((0, 3), np.int32)
    return positions, at - len(positions)


def text_prompt(tokens: int) -> Prompt:
    """A sequence of exactly that many tokens, without media: its positions are simply counted."""
    if tokens < 1:
        raise LocalError(f"tokens={tokens}: expected 1 or more")
    return Prompt((), tokens, 0, f"{tokens} tokens")


# --- mixes ----------------------------------------------------------------------------------------------

_PHOTO, _SMALL, _LARGE = Image(2000, 2000), Image(448, 448), Image(3840, 2160)
_SCREEN, _PORTRAIT, _PAGE = Image(1920, 1080), Image(1080, 1920), Image(1240, 1754)
_CLIP, _LONG = Video(1280, 720, 10), Video(1280, 720, 60)

MIXES: dict[str, tuple[Prompt, ...]] = {
    "images": (
        Prompt((_SMALL,)),
        Prompt((_SCREEN,)),
        Prompt((_PAGE,), 24, 64),
        Prompt((_SMALL, _PORTRAIT), 40, 12),
    ),
    "mixed": (
        Prompt((_SCREEN,)),
        Prompt((_PHOTO,), 16, 1_000),
        Prompt((_SMALL, _SMALL, _PAGE), 64, 128),
        Prompt((_CLIP,), 24, 48),
        Prompt((_LARGE,)),
    ),
    "video": (
        Prompt((_LONG,), 20, 40),
        Prompt((_CLIP,), 20, 40),
    ),
}
"""The mixes by name: requests go through one again and again."""


def workload(
    family: Family, requests: int, *, mix: str = "images", tokens: Sequence[int] = ()
) -> tuple[Prompt, ...]:
    """The prompts of so many requests: the mix again and again, or texts of the ``tokens`` given.

    Raises :class:`LocalError` for an unknown mix, no requests, or a length below 1.
    """
    if requests < 1:
        raise LocalError(f"requests={requests}: expected 1 or more")
    if mix not in MIXES:
        raise LocalError(f"workload '{mix}': unknown; expected one of {', '.join(MIXES)}")
    cycle = tuple(text_prompt(count) for count in tokens) or MIXES[mix]
    return tuple(cycle[index % len(cycle)] for index in range(requests))


__all__ = [
    "MIXES", "MODELS", "QWEN3", "QWEN25", "Family", "Grid", "Image", "Medium", "Model", "Positions", "Prompt", "Video",
    "frames_sampled", "model_named", "prompt_positions", "prompt_tokens", "smart_resize", "smart_resize_volume",
    "text_prompt", "time_text_tokens", "workload",
]  # fmt: skip
