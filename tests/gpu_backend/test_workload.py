"""The published token rules: sizes that are on record, positions, and the bounds that a resize must keep."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fsm.errors import LocalError
from gpu_backend import workload
from gpu_backend.workload import MIXES, MODELS, QWEN3, QWEN25, Image, Prompt, Video


@pytest.mark.parametrize(
    ("width", "height", "qwen25", "qwen3"),
    [(448, 448, 256, 196), (1920, 1080, 2691, 2040), (2000, 2000, 5041, 3844), (3840, 2160, 10549, 8160)],
)
def test_an_image_becomes_as_many_tokens_as_is_on_record(width: int, height: int, qwen25: int, qwen3: int) -> None:
    assert Image(width, height).grid(QWEN25).tokens == qwen25
    assert Image(width, height).grid(QWEN3).tokens == qwen3


@pytest.mark.parametrize(
    ("model", "token_bytes"), [("qwen2.5-vl-72b", 16_400), ("qwen3-vl-235b-a22b", 32_784), ("qwen2.5-vl-7b", 7_184)]
)
def test_a_token_takes_as_many_bytes_as_is_on_record(model: str, token_bytes: int) -> None:
    assert MODELS[model].token_bytes == token_bytes


def test_an_image_beyond_the_bounds_is_shrunk_or_grown_into_them() -> None:
    assert Image(20_000, 20_000).grid(QWEN25).tokens <= 16_384
    assert Image(10, 10).grid(QWEN25).tokens == 4
    assert Image(10, 10).grid(QWEN3).tokens == 64


def test_a_video_of_ten_seconds_has_ten_temporal_patches_of_bounded_frames() -> None:
    grid = Video(1280, 720, 10).grid(QWEN25)
    assert grid == (10, 20, 36)
    assert grid.rows * grid.columns <= 768


def test_a_volume_is_resized_as_the_published_code_does() -> None:
    assert workload.smart_resize_volume(46, 720, 1280, 32, 2_500_000, 73_728_000) == (704, 1280)


def test_long_videos_stay_below_their_total() -> None:
    assert Video(1280, 720, 60).grid(QWEN25).tokens <= 24_576
    assert Video(1920, 1080, 600).grid(QWEN3).tokens <= 25_165_824 // (2 * 32 * 32)


@pytest.mark.parametrize(("seconds", "frames"), [(0.2, 4), (3.0, 6), (3.9, 6), (60, 120), (10_000, 768)])
def test_frames_are_even_and_within_bounds(seconds: float, frames: int) -> None:
    assert workload.frames_sampled(seconds) == frames


@given(
    st.integers(1, 9_000), st.integers(1, 9_000), st.sampled_from([QWEN25, QWEN3])
)  # fmt: skip
def test_a_resize_gives_multiples_within_the_bounds(height: int, width: int, family: workload.Family) -> None:
    if max(height, width) > 200 * min(height, width):
        with pytest.raises(LocalError, match="200:1"):
            Image(width, height).grid(family)
        return
    grid = Image(width, height).grid(family)
    assert min(grid) >= 1
    # Never above the bound, but for a side that cannot be less than one token.
    pixels = grid.rows * grid.columns * family.side**2
    assert pixels <= family.image_pixels_max or min(grid.rows, grid.columns) == 1
    assert pixels >= family.image_pixels_min * 0.99


# --- positions ------------------------------------------------------------------------------------------


def test_text_is_counted_and_has_no_delta() -> None:
    positions, delta = workload.prompt_positions(workload.text_prompt(5), QWEN25)
    assert positions.tolist() == [[p, p, p] for p in range(5)]
    assert (positions.dtype, delta) == (np.dtype(np.int32), 0)


def test_an_image_spans_rows_and_columns_and_text_goes_on_behind_the_largest() -> None:
    prompt = Prompt((Image(56, 84),), text_before=2, text_behind=2)  # three rows of two tokens
    positions, delta = workload.prompt_positions(prompt, QWEN25)
    at = 3  # two tokens of text and the marker
    expected = [[0, 0, 0], [1, 1, 1], [2, 2, 2]]
    expected += [[at, at + row, at + column] for row in range(3) for column in range(2)]
    expected += [[6, 6, 6], [7, 7, 7], [8, 8, 8]]
    assert positions.tolist() == expected
    assert delta == 9 - len(expected) == -3


def test_time_moves_two_positions_a_second_in_one_family_and_stands_in_text_in_the_other() -> None:
    prompt = Prompt((Video(112, 112, 4),), 1, 1)
    old, _ = workload.prompt_positions(prompt, QWEN25)
    grid = Video(112, 112, 4).grid(QWEN25)
    inside = old[2:-2]
    assert len(inside) == grid.tokens and grid.times == 4
    assert sorted(set(inside[:, 0].tolist())) == [2, 4, 6, 8]
    new, _ = workload.prompt_positions(prompt, QWEN3)
    frames = Video(112, 112, 4).grid(QWEN3)
    text = sum(workload.time_text_tokens(second) for second in (0.5, 1.5, 2.5, 3.5))
    assert len(new) == frames.tokens + text + 2 * frames.times + 2


@pytest.mark.parametrize("family", [QWEN25, QWEN3], ids=lambda family: family.name)
@pytest.mark.parametrize("mix", sorted(MIXES))
def test_every_token_of_a_prompt_has_a_position_of_its_own(mix: str, family: workload.Family) -> None:
    for prompt in MIXES[mix]:
        positions, delta = workload.prompt_positions(prompt, family)
        assert positions.shape == (workload.prompt_tokens(prompt, family), 3)
        assert len(np.unique(positions, axis=0)) == len(positions)
        assert positions.max() + 1 - len(positions) == delta


# --- mixes ----------------------------------------------------------------------------------------------


def test_a_workload_goes_through_its_mix_again_and_again() -> None:
    prompts = workload.workload(QWEN25, 6, mix="images")
    assert prompts[:4] == MIXES["images"] and prompts[4:] == MIXES["images"][:2]


def test_explicit_lengths_replace_the_mix() -> None:
    prompts = workload.workload(QWEN25, 3, tokens=(880, 5041))
    assert [workload.prompt_tokens(prompt, QWEN25) for prompt in prompts] == [880, 5041, 880]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(requests=0), "requests=0: expected 1"),
        (dict(requests=1, mix="holiday"), "workload 'holiday': unknown; expected one of images"),
        (dict(requests=1, tokens=(0,)), "tokens=0: expected 1"),
    ],
)
def test_what_makes_no_workload_is_refused_by_name(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(LocalError, match=message):
        workload.workload(QWEN25, **arguments)  # type: ignore[arg-type]


def test_an_unknown_model_is_refused_with_the_names_that_there_are() -> None:
    with pytest.raises(LocalError, match=r"model 'qwen9': unknown; expected one of qwen2\.5-vl-3b"):
        workload.model_named("qwen9")


def test_sizes_can_be_had_without_torch() -> None:
    code = "import sys; import gpu_backend.workload; assert 'torch' not in sys.modules"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
