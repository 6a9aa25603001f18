"""The measurements run, and figures mean what they say; how large they are is for nobody to assert."""

from __future__ import annotations

import pytest

from gpu_backend import bench_transfer
from gpu_backend.bench_transfer import COPY, LEASE, MANY, ONE, QUARTER, RAW, SERIAL, Setting
from gpu_backend.cli_common import Figure, figures_json
from tests.gpu_backend.kit_cli import need, refused, resumark

TIMES = {
    RAW: [1.0, 1.0, 3.0], MANY: [1.25, 1.25, 3.0], SERIAL: [2.5, 2.5, 6.0], ONE: [1.5, 1.5, 1.5],
    QUARTER: [1.5, 1.5, 1.5], LEASE: [1.0, 1.0, 3.0], COPY: [0.5, 0.5, 0.5],
}  # fmt: skip
RESUMES = {MANY: 31, SERIAL: 31, ONE: 0, QUARTER: 7, LEASE: 0}


def figures(times: dict[str, list[float]]) -> dict[str, Figure]:
    return {figure.name: figure for figure in bench_transfer.large_figures(times, 1_000_000, RESUMES)}


def test_ratios_compare_what_was_measured_in_the_same_round() -> None:
    found = figures(TIMES)
    assert found["many grants over raw"].value == pytest.approx(80.0)
    assert found["many grants over raw"].met is False
    assert found["lease over raw"].value == pytest.approx(100.0)
    assert found["eight grants through a quarter over one"].met is True, "one exact grant in the same time"
    assert found["serial grants over many"].value == pytest.approx(50.0)
    assert found["request, 32 grants"].value == pytest.approx(16.4e9 / 1.25 / 1e9)
    assert "request, 8 grants through a quarter" in found


def test_where_there_is_no_yardstick_requests_are_compared_with_each_other() -> None:
    found = figures({name: times for name, times in TIMES.items() if name != RAW})
    assert not any("raw" in name for name in found)
    assert found["eight grants through a quarter over one"].value == pytest.approx(100.0)


@pytest.mark.parametrize("size_mb", bench_transfer.SIZES_MB)
def test_the_ways_are_what_they_are_called(size_mb: int) -> None:
    tokens = bench_transfer._tokens_of(size_mb)
    ways = {way.name: way for way in bench_transfer.large_ways(Setting("cpu", "auto", False, print), tokens)}
    blocks = ways[ONE].plan.blocks_of(tokens)
    assert abs(tokens * 16_400 - (size_mb << 20)) < 0.1 * (size_mb << 20)
    assert ways[ONE].plan.pool_blocks == ways[ONE].plan.sender_blocks == blocks
    assert (ways[QUARTER].plan.pool_blocks * 4, ways[QUARTER].plan.grant_blocks_max * 8) == (blocks, blocks)
    assert ways[SERIAL].plan.pool_blocks == ways[MANY].plan.grant_blocks_max < ways[MANY].plan.pool_blocks
    assert ways[LEASE].lease and [way.name for way in ways.values() if way.raw] == [ONE]


def test_figures_without_a_target_are_neither_met_nor_missed() -> None:
    (one,) = figures_json({"group": [Figure("a", 1.0, "us")]})
    assert (one["group"], one["target"], one["met"]) == ("group", None, None)
    assert Figure("b", 2.0, "us", 1.0, "less").met is False


BEGINNINGS = {
    "nixl": ("1,000 requests in flight", "16 MB (1,024 tokens", "checksums, 16 MB", "small requests of 73,728"),
    "gloo": ("16 MB (1,024 tokens",),
}


@pytest.mark.parametrize(("transport", "parts"), [("nixl", ()), ("gloo", ("--part", "large"))])
def test_a_quick_run_measures_everything_beside_the_library_alone(transport: str, parts: tuple[str, ...]) -> None:
    need(transport)
    done = resumark("bench", "transfer", "--quick", "--transport", transport, *parts, "--json")
    assert done.code == 0, done.err
    titles = sorted({one["group"] for one in done.data})
    expected = BEGINNINGS[transport]
    assert len(titles) == len(expected) and all(map(str.startswith, titles, expected)), titles
    assert all(one["value"] > 0 for one in done.data if one["unit"] != "us")
    assert any(one["name"] == "many grants over raw" for one in done.data)


def test_what_cannot_be_measured_is_refused() -> None:
    refused(resumark("bench", "transfer", "--transport", "in-process"), "expected one between processes")
    refused(resumark("bench", "transfer", "--part", "everything"), "Invalid value for '--part'")
