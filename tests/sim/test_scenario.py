"""Scenarios: what is read, what is refused and how, and that writing and reading agree."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fsm.allocators import ALLOCATORS
from fsm.errors import LocalError
from sim import scenario as scenario_module
from sim.scenario import (
    Faults,
    Payload,
    Pool,
    RankCounts,
    Request,
    Result,
    Scenario,
    ScenarioError,
    Schedule,
    Source,
    Time,
    Variant,
    dump_toml,
    load_scenario,
    reference_markdown,
    scenario_from_json,
    scenario_from_mapping,
    scenario_to_json,
    validate_scenario,
)

ROOT = Path(__file__).resolve().parents[2]
EXAMPLE = ROOT / "sim" / "scenarios" / "example.toml"


def refusal(text: str, **names: Any) -> tuple[str, ...]:
    with pytest.raises(ScenarioError) as caught:
        load_scenario(text + "\n", source="my.toml", **names)
    assert caught.value.source == "my.toml"
    assert str(caught.value) == "\n".join(f"my.toml: {problem}" for problem in caught.value.problems)
    return caught.value.problems


# What is read ---------------------------------------------------------------------------------------------


def test_the_example_is_read_key_by_key() -> None:
    scenario = load_scenario(EXAMPLE, detectors=["watermark"], hazards=[])
    assert scenario == Scenario(
        pool=Pool(
            blocks=8,
            block_tokens=4,
            allocator="fifo",
            grant_blocks_max=2,
            refusals_max=0,
            stale_header_tokens=3,
        ),
        source=Source(blocks=64),
        requests=(Request(tokens=24, grant_tokens=8, count=1, arrives_at_tick=0, room=1),),
        ranks=RankCounts(receivers=1, senders=1),
        variant=Variant(detector="watermark", hazards=()),
        schedule=Schedule(
            polls_per_delivery=1,
            status_lags_data=False,
            data_lags_status=False,
            rank_skew_ticks=0,
            ticks_max=2000,
        ),
        time=Time(deadline_ticks=400, queue_deadline_ticks=1600, resend_ticks=40),
        payload=Payload(mrope=True, deepstack_levels=0),
        faults=Faults(rate=0.05),
    )


def test_the_defaults_are_those_of_the_example_with_its_optional_keys_left_out() -> None:
    optional = ("grant_blocks_max", "stale_header_tokens", "grant_tokens", "room")
    lines = [line for line in EXAMPLE.read_text().splitlines() if not line.startswith(optional)]
    assert len(lines) == len(EXAMPLE.read_text().splitlines()) - len(optional)
    assert load_scenario("\n".join(lines)) == Scenario() == load_scenario("\n")


def test_the_defaults_of_the_keys_that_the_example_leaves_out() -> None:
    scenario = Scenario()
    assert (scenario.pool.blocks_by_rank, scenario.pool.stingy_blocks) == ((), 1)
    assert scenario.result == Result(tokens=0)
    assert (scenario.schedule.sender_order, scenario.schedule.ticks_free) == ("same", False)
    time = scenario.time
    assert (time.bootstrap_ticks, time.tombstone_ticks, time.heartbeat_ticks) == (400, 800, 0)
    assert scenario.payload.total_tokens_max == 1_048_576
    budgets = msgspec.structs.asdict(scenario.faults)
    assert budgets.pop("rate") == 0.05
    assert set(budgets.values()) == {0}
    assert {"heartbeat_loss_max", "duplicate_room_max"} <= set(budgets)


def test_a_path_may_be_a_string_and_may_carry_a_byte_order_mark(tmp_path: Path) -> None:
    file = tmp_path / "with mark.toml"
    file.write_bytes("[pool]\r\nblocks = 3\r\n".encode("utf-8-sig"))
    assert load_scenario(str(file)).pool.blocks == load_scenario(file).pool.blocks == 3


def test_a_whole_number_is_a_rate_too() -> None:
    rate = load_scenario("[faults]\nrate = 1").faults.rate
    assert (rate, type(rate)) == (1.0, float)


def test_every_allocator_is_known_here() -> None:
    assert {"fifo", "lifo", "same-again", "disjoint", "stingy", "adversary"} <= set(ALLOCATORS)
    for name in ALLOCATORS:
        assert load_scenario(f'[pool]\nallocator = "{name}"').pool.allocator == name


def test_a_scenario_is_one_frozen_hashable_value() -> None:
    scenario = load_scenario(EXAMPLE)
    assert hash(scenario) == hash(load_scenario(EXAMPLE))
    with pytest.raises(AttributeError):
        scenario.pool.blocks = 9  # type: ignore[misc]


# Rooms, copies, unequal pools -----------------------------------------------------------------------------


def test_copies_are_unrolled_and_rooms_numbered_around_the_given_ones() -> None:
    text = """
    [[requests]]
    tokens = 8
    count = 3
    [[requests]]
    tokens = 5
    room = 2
    count = 2
    [[requests]]
    tokens = 9
    arrives_at_tick = 7
    """
    single = load_scenario(text).expanded_requests()
    assert [(request.tokens, request.room) for request in single] == [
        (8, 1),
        (8, 3),
        (8, 4),
        (5, 2),
        (5, 2),
        (9, 5),
    ]
    assert {request.count for request in single} == {1}
    assert single[-1].arrives_at_tick == 7


@given(st.lists(st.builds(Request, count=st.integers(1, 4), room=st.integers(0, 6)), min_size=1, max_size=6))
def test_expanding_keeps_order_and_given_rooms_and_shares_no_assigned_one(requests: list[Request]) -> None:
    single = Scenario(requests=tuple(requests)).expanded_requests()
    sources = [request for request in requests for _ in range(request.count)]
    assert len(single) == len(sources)
    assigned = [one.room for one, source in zip(single, sources, strict=True) if not source.room]
    assert assigned == sorted(set(assigned))
    assert not set(assigned) & {request.room for request in requests if request.room}
    assert all(one.room == source.room for one, source in zip(single, sources, strict=True) if source.room)
    assert Scenario(requests=single).expanded_requests() == single


def test_unequal_pools_replace_the_common_size() -> None:
    scenario = load_scenario("[pool]\nblocks = 5\nblocks_by_rank = [8, 6]\n[ranks]\nreceivers = 2")
    assert [scenario.pool_blocks(rank) for rank in range(2)] == [8, 6]
    equal = load_scenario("[pool]\nblocks = 5\n[ranks]\nreceivers = 2")
    assert [equal.pool_blocks(rank) for rank in range(2)] == [5, 5]


# What is refused ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("[pool]\nblocks = 0", "pool.blocks: got 0, expected a whole number from 1 to 65,536"),
        ("[pool]\nblocks = true", "pool.blocks: got true, expected a whole number from 1 to 65,536"),
        ("[pool]\nblocks = 8.0", "pool.blocks: got 8.0, expected a whole number from 1 to 65,536"),
        ('[pool]\nblocks = "8"', 'pool.blocks: got "8", expected a whole number from 1 to 65,536'),
        ("[pool]\nblocks = {a = 1}", "pool.blocks: got a section, expected a whole number from 1 to 65,536"),
        ("[pool]\nblocks = 1979-05-27", "pool.blocks: got a date, expected a whole number from 1 to 65,536"),
        (
            "[pool]\nblocks_by_rank = [8, 0]",
            "pool.blocks_by_rank: got [8, 0], expected a list, each item a whole number from 1 to 65,536",
        ),
        ("[faults]\nrate = 1.5", "faults.rate: got 1.5, expected a number from 0.0 to 1.0"),
        ("[faults]\nrate = nan", "faults.rate: got nan, expected a number from 0.0 to 1.0"),
        ("[faults]\ndrop_max = -1", "faults.drop_max: got -1, expected a whole number from 0 to 1,000,000"),
        ("[schedule]\nticks_free = 1", "schedule.ticks_free: got 1, expected true or false"),
        (
            '[schedule]\nsender_order = "random"',
            'schedule.sender_order: got "random", expected one of "same", "reversed"',
        ),
        ("[variant]\ndetector = 3", "variant.detector: got 3, expected a string that is not empty"),
        ('[variant]\nhazards = "x"',
         'variant.hazards: got "x", expected a list, each item a string that is not empty'),
        ("[[requests]]\n[[requests]]\ntokens = 0",
         "requests[1].tokens: got 0, expected a whole number from 1 to 2,147,483,647"),
        ("pool = 3", "pool: got 3, expected a section with keys"),
        ("[[pool]]\nblocks = 1", "pool: got a list of sections, expected [pool] once"),
        ("requests = []", "requests: got an empty list, expected at least one [[requests]]"),
        ("requests = 3", "requests: got 3, expected [[requests]] (a list of sections)"),
        ("requests = [3]", "requests[0]: got 3, expected a section with keys"),
        ("[requests]\ntokens = 3",
         "requests: got one section [requests], expected [[requests]] (a list of sections)"),
        (
            "[pool]\nblocks_by_rank = [8, 6]",
            "pool.blocks_by_rank: got [8, 6], expected a list of 1, a number for each of ranks.receivers",
        ),
        (
            '[variant]\nhazards = ["a", "b", "a"]',
            'variant.hazards[2]: got "a" again, expected each once',
        ),
        ("[schedule]\ndrop_max = 1", "schedule.drop_max: unknown key, but a key of [faults]"),
        ("[pool]\ntokens = 1", "pool.tokens: unknown key, but a key of [result] and [[requests]]"),
        ("block_tokens = 1", "block_tokens: unknown section, but a key of [pool]"),
    ],
)  # fmt: skip
def test_a_refusal_names_key_given_and_expected(text: str, problem: str) -> None:
    assert refusal(text) == (problem,)


def test_a_misspelt_key_section_or_name_is_told_the_likely_one() -> None:
    (problem,) = refusal("[pool]\nblock_token = 4")
    assert problem.startswith("pool.block_token: unknown key, did you mean 'block_tokens'? (known: blocks, ")
    (problem,) = refusal("[poll]\nblocks = 4")
    assert problem.startswith("poll: unknown section, did you mean 'pool'? (known: pool, ")
    (problem,) = refusal('[pool]\nallocator = "fito"')
    assert problem.startswith('pool.allocator: got "fito", expected the name of a known allocator, ')
    assert "did you mean 'fifo'? (known: fifo, lifo, " in problem
    assert refusal('[variant]\ndetector = "watermarks"', detectors=["flag", "watermark"]) == (
        'variant.detector: got "watermarks", expected the name of a known detector, '
        "did you mean 'watermark'? (known: flag, watermark)",
    )
    assert refusal('[variant]\nhazards = ["late-status", "qqq"]', hazards=["late-status", "no-reserve"]) == (
        'variant.hazards[1]: got "qqq", expected the name of a known hazard, known: late-status, no-reserve',
    )


def test_names_pass_where_nobody_says_which_are_known() -> None:
    variant = load_scenario('[variant]\ndetector = "mine"\nhazards = ["also-mine"]').variant
    assert variant == Variant(detector="mine", hazards=("also-mine",))


def test_all_faults_of_a_file_are_reported_at_once() -> None:
    problems = refusal('[pool]\nblocks = 0\nallocater = "fifo"\n[time]\nresend_ticks = 0\n[nothing]')
    assert [problem.split(":")[0] for problem in problems] == [
        "pool.blocks", "pool.allocater", "time.resend_ticks", "nothing",
    ]  # fmt: skip


def test_a_long_value_or_a_strange_key_stays_on_one_short_line() -> None:
    (problem,) = refusal(f'[pool]\nblocks = "{"x" * 500}"')
    assert len(problem) < 140 and "xxx..., expected" in problem
    (problem,) = refusal('[pool]\n"two\\nlines" = 1')
    assert problem.startswith('pool."two\\nlines": unknown key')


@pytest.mark.parametrize(
    ("text", "where"),
    [
        ("[pool]\nblocks = \n", "line 2, column 10"),
        ("[pool]\nblocks = 8\nblocks = 9\n", "line 3"),
        ("\n\n[pool\n", "line 3"),
        ('[pool]\nallocator = """\nnever closed', "line 3"),
        ("\n[pool]\nblocks = " + "9" * 6000, "line 3"),
        ("\nx = " + "[" * 100_000, "line 2"),
    ],
)
def test_broken_toml_is_told_with_its_line(text: str, where: str) -> None:
    (problem,) = refusal(text)
    assert re.match(rf"{where}\b.*: not valid TOML: \S", problem), problem


def test_a_file_that_cannot_be_read_is_a_refusal_of_the_file(tmp_path: Path) -> None:
    for path in (tmp_path / "missing.toml", tmp_path, tmp_path / "nul\0"):
        with pytest.raises(ScenarioError) as caught:
            load_scenario(path)
        assert caught.value.source == str(path)
    binary = tmp_path / "binary.toml"
    binary.write_bytes(b"\xff\xfe[pool]")
    with pytest.raises(ScenarioError, match="is not text in UTF-8"):
        load_scenario(binary)
    assert issubclass(ScenarioError, LocalError)


def test_a_scenario_that_was_built_in_code_meets_the_same_checks() -> None:
    good = Scenario(pool=Pool(blocks_by_rank=(3, 4)), ranks=RankCounts(receivers=2))
    assert validate_scenario(good) == good
    bad = Scenario(pool=Pool(blocks=0), variant=Variant(hazards=("late-statu",)))
    with pytest.raises(ScenarioError) as caught:
        validate_scenario(bad, hazards=["late-status"], source="--hazard")
    keys = [problem.split(":")[0] for problem in caught.value.problems]
    assert keys == ["pool.blocks", "variant.hazards[0]"]
    assert str(caught.value).startswith("--hazard: pool.blocks")


SCALARS = (
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.binary(max_size=2)
)
JUNK = SCALARS | st.lists(SCALARS, max_size=3) | st.dictionaries(st.text(max_size=3), SCALARS, max_size=2)
KEYS = st.text(max_size=3) | st.sampled_from(
    ["pool", "requests", "variant", "faults", "blocks", "blocks_by_rank", "rate", "hazards", "tokens"]
)
SECTIONS = st.dictionaries(KEYS, JUNK, max_size=4)


@given(st.dictionaries(KEYS, JUNK | SECTIONS | st.lists(SECTIONS, max_size=2), max_size=4))
def test_any_data_is_a_scenario_or_a_refusal(data: dict[str, Any]) -> None:
    try:
        scenario = scenario_from_mapping(data)
    except ScenarioError as error:
        assert error.problems and all("\n" not in problem for problem in error.problems)
    else:
        assert scenario_from_mapping(msgspec.to_builtins(scenario)) == scenario


# Writing and reading agree --------------------------------------------------------------------------------


def drawn(kind: type[msgspec.Struct]) -> st.SearchStrategy[Any]:
    """Any valid value of a section, drawn from the annotations themselves."""
    fields: dict[str, st.SearchStrategy[Any]] = {}
    described = msgspec.inspect.type_info(kind)
    assert isinstance(described, msgspec.inspect.StructType)
    for field in described.fields:
        info = field.type.type if isinstance(field.type, msgspec.inspect.Metadata) else field.type
        fields[field.name] = values_of(info)
    if kind is Pool:
        fields["allocator"] = st.sampled_from(list(ALLOCATORS))
        fields["blocks_by_rank"] = st.just(())
    if kind is Variant:
        fields["hazards"] = st.lists(st.text(min_size=1), unique=True).map(tuple)
    return st.builds(kind, **fields)


def values_of(info: Any) -> st.SearchStrategy[Any]:
    if isinstance(info, msgspec.inspect.IntType):
        return st.integers(info.ge, info.le)
    if isinstance(info, msgspec.inspect.FloatType):
        return st.floats(info.ge, info.le)
    if isinstance(info, msgspec.inspect.BoolType):
        return st.booleans()
    if isinstance(info, msgspec.inspect.LiteralType):
        return st.sampled_from(info.values)
    return st.text(st.characters(exclude_categories=["Cs"]), min_size=1)


SCENARIOS = st.builds(
    Scenario,
    pool=drawn(Pool),
    source=drawn(Source),
    result=drawn(Result),
    requests=st.lists(drawn(Request), min_size=1, max_size=3).map(tuple),
    ranks=drawn(RankCounts),
    variant=drawn(Variant),
    schedule=drawn(Schedule).map(
        lambda schedule: msgspec.structs.replace(
            schedule, notice_lags=schedule.notice_lags and not schedule.data_lags_status
        )
    ),
    time=drawn(Time).map(
        lambda time: msgspec.structs.replace(time, tombstone_ticks=max(time.tombstone_ticks, time.deadline_ticks))
    ),
    payload=drawn(Payload),
    faults=drawn(Faults),
)


@given(SCENARIOS)
def test_toml_and_json_round_trip_exactly(scenario: Scenario) -> None:
    assert load_scenario(dump_toml(scenario)) == scenario
    assert scenario_from_json(scenario_to_json(scenario)) == scenario
    assert "\n" not in scenario_to_json(scenario)


def test_unequal_pools_round_trip() -> None:
    scenario = Scenario(pool=Pool(blocks_by_rank=(8, 6)), ranks=RankCounts(receivers=2))
    assert load_scenario(dump_toml(scenario)) == scenario
    assert scenario_from_json(scenario_to_json(scenario)) == scenario


def test_written_toml_names_every_key_and_looks_like_a_hand_written_file() -> None:
    text = dump_toml(Scenario(requests=(Request(tokens=3), Request(tokens=4))))
    assert text.startswith('[pool]\nblocks = 8\nblocks_by_rank = []\nblock_tokens = 4\nallocator = "fifo"\n')
    assert text.count("\n\n[[requests]]\n") == 2
    assert 'sender_order = "same"\nticks_free = false\n' in text


@pytest.mark.parametrize("text", ["", "{", "[]", b"\xff", '{"pool": {"blocks": 0}}'])
def test_json_that_is_no_scenario_is_refused(text: str | bytes) -> None:
    with pytest.raises(ScenarioError, match=r"^header: "):
        scenario_from_json(text, source="header")


# The documents --------------------------------------------------------------------------------------------


def test_the_reference_in_the_docs_is_current() -> None:
    page = (ROOT / "docs" / "scenario.md").read_text()
    held = page.split("<!-- generated:scenario -->\n")[1].split("<!-- end generated:scenario -->")[0]
    assert held.strip() == reference_markdown().strip()


def test_the_errors_shown_in_the_docs_are_the_real_ones() -> None:
    page = (ROOT / "docs" / "scenario.md").read_text()
    shown = page.split("<!-- shown:errors -->\n```text\n")[1].split("\n```")[0]
    assert shown.splitlines() == [
        f"my.toml: {problem}"
        for problem in refusal('[pool]\nblocks = 0\nalocator = "fifo"\n[schedule]\ndrop_max = 1')
    ]


def test_the_reference_has_every_key_with_default_and_meaning() -> None:
    text = reference_markdown()
    assert "| `blocks` | a whole number from 1 to 65,536 | `8` | landing blocks of each rec" in text
    assert '| `sender_order` | one of "same", "reversed" | `"same"` |' in text
    assert 'one of "fifo"' in text
    keys = re.findall(r"^\| `(\w+)` \| [^|]+ \| `[^`]+` \| [^|]+ \|$", text, flags=re.MULTILINE)
    assert len(keys) == len([line for line in dump_toml(Scenario()).splitlines() if " = " in line])


def test_the_reference_does_not_depend_on_the_hash_seed() -> None:
    code = "from sim.scenario import *; print(reference_markdown(), dump_toml(Scenario()))"
    outputs = [
        subprocess.run(
            [sys.executable, "-c", code],
            env={"PYTHONHASHSEED": seed, "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    ]
    assert outputs[0] == outputs[1] != ""


def test_every_built_in_scenario_is_valid_and_packaged_beside_the_module() -> None:
    files = sorted((Path(scenario_module.__file__).parent / "scenarios").glob("*.toml"))
    assert EXAMPLE.name in [file.name for file in files]
    for file in files:
        load_scenario(file)


def test_a_tombstone_must_outlive_the_deadline() -> None:
    text = "[time]\ndeadline_ticks = 50\ntombstone_ticks = 49\n"
    refusal = r"time.tombstone_ticks: got 49, expected at least time.deadline_ticks \(50\)"
    with pytest.raises(ScenarioError, match=refusal):
        load_scenario(text)
    assert load_scenario(text.replace("49", "50")).time.tombstone_ticks == 50


def test_two_physics_at_once_are_refused() -> None:
    """Where a write that has ended is there, it cannot be that it is not."""
    with pytest.raises(ScenarioError, match=r"schedule\.notice_lags: got true together with"):
        validate_scenario(Scenario(schedule=Schedule(notice_lags=True, data_lags_status=True)))
