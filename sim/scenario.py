"""Scenarios: what a world is made of, read from TOML, validated, and written back.

A scenario is a frozen value. Every key has a default, so the empty file is a scenario too; ``0`` or an
empty list means "not asked for" wherever the reference says so. The structs below are the only place
where a key is declared: its type, range, default and meaning are read from here by the validation, by the
error messages, by the writer and by the reference table in ``docs/scenario.md``.

Names of detectors and hazards are not known here: whoever runs a scenario passes the lists in. A scenario
that was built in code, or changed on the command line, goes through :func:`validate_scenario` and meets the
same checks as one that was read from a file.
"""

from __future__ import annotations

import difflib
import json
import os
import re
import sys
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_args, get_origin, get_type_hints

import msgspec
from msgspec import Meta

from fsm.allocators import ALLOCATORS
from fsm.errors import LocalError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

# The ranges. The upper ends only keep a slip of the finger from filling the machine; the protocol's own
# limits (31 bits of tokens, 65,536 blocks in one message) are where they come from.
Positive = Annotated[int, Meta(ge=1, le=2**31 - 1)]
Count = Annotated[int, Meta(ge=0, le=2**31 - 1)]
Blocks = Annotated[int, Meta(ge=1, le=65_536)]
BlocksOrNone = Annotated[int, Meta(ge=0, le=65_536)]
Ranks = Annotated[int, Meta(ge=1, le=64)]
Levels = Annotated[int, Meta(ge=0, le=64)]
Copies = Annotated[int, Meta(ge=1, le=100_000)]
Budget = Annotated[int, Meta(ge=0, le=1_000_000)]
Rate = Annotated[float, Meta(ge=0.0, le=1.0)]
Room = Annotated[int, Meta(ge=0, le=2**63 - 1)]
Name = Annotated[str, Meta(min_length=1)]


class Section(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The root of every section; sections are compared, hashed and shared as plain values."""


class Pool(Section, frozen=True, kw_only=True):
    """`[pool]`: the landing blocks of the receivers and who deals them out."""

    blocks: Annotated[Blocks, Meta(description="landing blocks of each receiver rank")] = 8
    blocks_by_rank: Annotated[
        tuple[Blocks, ...],
        Meta(description="unequal pools: a number for each receiver rank, instead of `blocks`"),
    ] = ()
    block_tokens: Annotated[Positive, Meta(description="tokens that one block holds")] = 4
    allocator: Annotated[str, Meta(description="which free blocks are given")] = "fifo"
    stingy_blocks: Annotated[Blocks, Meta(description="`stingy` only: at most so many blocks a grant")] = 1
    grant_blocks_max: Annotated[
        BlocksOrNone, Meta(description="never more blocks in one grant; 0 = no limit")
    ] = 0
    refusals_max: Annotated[
        Budget, Meta(description="`adversary` only: how often it may refuse, or give less than it could")
    ] = 0
    stale_header_tokens: Annotated[
        Count,
        Meta(description="blocks start with headers of earlier requests of so many tokens; 0 = clean"),
    ] = 0
    lease: Annotated[
        bool,
        Meta(description="a request that one grant holds is not copied out: its blocks are kept, and come back later"),
    ] = False


class Source(Section, frozen=True, kw_only=True):
    """`[source]`: the sender's own pool, where a payload is pinned until its last chunk has landed."""

    blocks: Annotated[Blocks, Meta(description="blocks of each sender rank, of `pool.block_tokens` each")] = (
        64
    )


class Result(Section, frozen=True, kw_only=True):
    """`[result]`: the receiver's result memory, reserved whole before a grant is asked for."""

    tokens: Annotated[Count, Meta(description="result memory of each receiver rank; 0 = unlimited")] = 0
    held: Annotated[bool, Meta(description="results are used for a while after the request has ended")] = False


class Request(Section, frozen=True, kw_only=True):
    """`[[requests]]`: one request, or `count` equal ones; write the section once for each kind."""

    tokens: Annotated[Positive, Meta(description="length of the payload")] = 24
    grant_tokens: Annotated[
        Count, Meta(description="an early grant of this size, given before the OFFER; 0 = wait for the OFFER")
    ] = 0
    count: Annotated[Copies, Meta(description="so many requests of this kind")] = 1
    arrives_at_tick: Annotated[Count, Meta(description="when the request (each of `count`) is submitted")] = 0
    room: Annotated[
        Room, Meta(description="its number; two requests may name one room; 0 = the next number not named")
    ] = 0


class RankCounts(Section, frozen=True, kw_only=True):
    """`[ranks]`: receiver rank r is served by sender rank r mod `senders`."""

    receivers: Annotated[Ranks, Meta(description="receiver ranks; each gets the whole payload")] = 1
    senders: Annotated[Ranks, Meta(description="sender ranks; one without a receiver takes no part")] = 1


class Variant(Section, frozen=True, kw_only=True):
    """`[variant]`: which version of the receiver and the sender is run."""

    detector: Annotated[Name, Meta(description="how the receiver decides that a resume is due")] = "watermark"
    hazards: Annotated[tuple[Name, ...], Meta(description="mistakes that are switched on, combinable")] = ()


class Schedule(Section, frozen=True, kw_only=True):
    """`[schedule]`: in which order things may happen."""

    polls_per_delivery: Annotated[Positive, Meta(description="receiver ticks between any two deliveries")] = 1
    status_lags_data: Annotated[
        bool, Meta(description="the chunk is in memory while its STATUS is still under way")
    ] = False
    data_lags_status: Annotated[
        bool, Meta(description="send completion does not prove arrival: data may land after its STATUS")
    ] = False
    notice_lags: Annotated[
        bool,
        Meta(description="a write tells the receiver itself that it has ended: before its STATUS or after"),
    ] = False
    rank_skew_ticks: Annotated[
        Count, Meta(description="steps that may pass between a rank's and another's part in a tick; 0 = in step")
    ] = 0
    ticks_max: Annotated[Positive, Meta(description="a run that has not ended by then is stopped")] = 2000
    sender_order: Annotated[
        Literal["same", "reversed"],
        Meta(description="order in which requests that arrive together reach the sender side"),
    ] = "same"
    ticks_free: Annotated[
        bool, Meta(description="receiver ticks are scheduled freely instead of being tied to deliveries")
    ] = False
    copy_lags: Annotated[bool, Meta(description="a copy out takes time: other things happen before it ends")] = False
    staging_lags: Annotated[bool, Meta(description="staging a payload takes time, likewise")] = False


class Time(Section, frozen=True, kw_only=True):
    """`[time]`: the protocol's periods, in ticks of the virtual clock."""

    deadline_ticks: Annotated[
        Positive, Meta(description="from the last progress to the failure of a request")
    ] = 400
    queue_deadline_ticks: Annotated[
        Positive, Meta(description="the same while it queues for blocks or for staging")
    ] = 1600
    resend_ticks: Annotated[
        Positive, Meta(description="from an unanswered message to the same bytes again")
    ] = 40
    bootstrap_ticks: Annotated[
        Positive,
        Meta(description="until REGISTER_ACK or OFFER: so long UNKNOWN_ROOM and NOT_READY are retried"),
    ] = 400
    tombstone_ticks: Annotated[Count, Meta(description="so long a room that has ended is remembered")] = 800
    heartbeat_ticks: Annotated[Count, Meta(description="period of the HEARTBEAT; 0 = none")] = 0


class Payload(Section, frozen=True, kw_only=True):
    """`[payload]`: what a token carries besides its id and its embedding."""

    mrope: Annotated[bool, Meta(description="tokens carry three position numbers")] = True
    deepstack_levels: Annotated[Levels, Meta(description="further embeddings a token; 0 = none")] = 0
    total_tokens_max: Annotated[Positive, Meta(description="an OFFER of more is refused")] = 1_048_576


class Faults(Section, frozen=True, kw_only=True):
    """`[faults]`: budgets. *check* places them everywhere, *simulate* draws them at `rate`."""

    rate: Annotated[Rate, Meta(description="chance that *simulate* spends a fault where it can")] = 0.05
    duplicate_max: Annotated[Budget, Meta(description="messages that arrive twice")] = 0
    delay_max: Annotated[Budget, Meta(description="messages that may be overtaken")] = 0
    drop_max: Annotated[Budget, Meta(description="messages that are lost")] = 0
    abort_max: Annotated[Budget, Meta(description="aborts, at any point, by either side")] = 0
    sender_crash_max: Annotated[Budget, Meta(description="restarts of a sender, with a new boot_id")] = 0
    receiver_crash_max: Annotated[Budget, Meta(description="restarts of a receiver, with a new boot_id")] = 0
    partition_max: Annotated[Budget, Meta(description="times that the two sides cannot reach each other")] = 0
    clock_jump_max: Annotated[Budget, Meta(description="jumps of one side's clock")] = 0
    poison_max: Annotated[Budget, Meta(description="malformed messages")] = 0
    heartbeat_loss_max: Annotated[Budget, Meta(description="heartbeats that are lost")] = 0
    duplicate_room_max: Annotated[Budget, Meta(description="submits that name a room already live")] = 0


class Scenario(Section, frozen=True, kw_only=True):
    """A whole world, as one frozen value; ``Scenario()`` is the scenario of an empty file."""

    pool: Pool = Pool()
    source: Source = Source()
    result: Result = Result()
    requests: tuple[Request, ...] = (Request(),)
    ranks: RankCounts = RankCounts()
    variant: Variant = Variant()
    schedule: Schedule = Schedule()
    time: Time = Time()
    payload: Payload = Payload()
    faults: Faults = Faults()

    def expanded_requests(self) -> tuple[Request, ...]:
        """Every single request: ``count`` unrolled to 1 each, and a room number on all of them.

        A room that was given stays, for each copy of its request. The others get 1, 2, 3 and so on in
        the order of the file, leaving out the numbers that were given.
        """
        given = [request.room for request in self.requests if request.room]
        single: list[Request] = []
        room = 0
        for request in self.requests:
            for _ in range(request.count):
                if not request.room:
                    room += 1
                    while room in given:
                        room += 1
                single.append(msgspec.structs.replace(request, count=1, room=request.room or room))
        return tuple(single)

    def pool_blocks(self, receiver_rank: int) -> int:
        """How many landing blocks one receiver rank has."""
        by_rank = self.pool.blocks_by_rank
        return by_rank[receiver_rank] if by_rank else self.pool.blocks


class ScenarioError(LocalError):
    """A scenario that was refused.

    ``source`` is the file (or other name) it came from and ``problems`` every fault found in it, each
    naming the key, what was given and what was expected. The text has one line for each.
    """

    def __init__(self, source: str, problems: Iterable[str]) -> None:
        self.source = source
        self.problems = tuple(problems)
        super().__init__("\n".join(f"{source}: {problem}" for problem in self.problems))


# Reading --------------------------------------------------------------------------------------------------


def load_scenario(
    path_or_text: str | os.PathLike[str],
    *,
    detectors: Collection[str] | None = None,
    hazards: Collection[str] | None = None,
    source: str = "<text>",
) -> Scenario:
    """Read and validate a scenario.

    A ``Path`` is a file, and so is a string of one line; a string that holds a line break is taken as the
    TOML itself, and ``source`` is then the name by which errors call it. ``detectors`` and ``hazards``
    are the names that are known; with ``None`` any name passes.

    Raises :class:`ScenarioError` for a file that cannot be read, for bad TOML (with line and column) and for
    every key or value that is not allowed.
    """
    if isinstance(path_or_text, str) and "\n" in path_or_text:
        text = path_or_text
    else:
        source = os.fspath(path_or_text)
        text = _read_file(Path(path_or_text), source)
    try:
        data = tomllib.loads(text)
    except (ValueError, RecursionError) as error:  # also numbers and nesting that Python itself gives up on
        raise _syntax_error(source, text, error) from None
    return scenario_from_mapping(data, detectors=detectors, hazards=hazards, source=source)


def scenario_from_mapping(
    data: Mapping[str, Any],
    *,
    detectors: Collection[str] | None = None,
    hazards: Collection[str] | None = None,
    source: str = "<scenario>",
) -> Scenario:
    """Validate plain data (parsed TOML or JSON). Raises :class:`ScenarioError` with every fault found."""
    problems: list[str] = []
    scenario = _read_scenario(data, problems)
    _check_names(scenario, detectors, hazards, problems)
    _check_together(scenario, problems)
    if problems:
        raise ScenarioError(source, problems)
    return scenario


def validate_scenario(
    scenario: Scenario,
    *,
    detectors: Collection[str] | None = None,
    hazards: Collection[str] | None = None,
    source: str = "<scenario>",
) -> Scenario:
    """The same checks for a scenario that was built or changed in code; returns it unchanged if it passes."""
    return scenario_from_mapping(
        msgspec.to_builtins(scenario), detectors=detectors, hazards=hazards, source=source
    )


def scenario_to_json(scenario: Scenario) -> str:
    """One line of JSON with every key, for a trace: later changes of a default cannot alter its meaning."""
    return msgspec.json.encode(scenario).decode()


def scenario_from_json(text: str | bytes, *, source: str = "<json>") -> Scenario:
    """Read what :func:`scenario_to_json` wrote. Raises :class:`ScenarioError`."""
    try:
        data = msgspec.json.decode(text)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ScenarioError(source, [f"not valid JSON: {error}"]) from None
    if not isinstance(data, dict):
        raise ScenarioError(source, [f"got {_shown(data)}, expected a JSON object"])
    return scenario_from_mapping(data, source=source)


def _read_file(path: Path, source: str) -> str:
    try:
        # "utf-8-sig" forgives the byte order mark that some editors put in front.
        return path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise ScenarioError(source, [f"cannot be read: {error.strerror or error}"]) from None
    except (UnicodeDecodeError, ValueError) as error:
        raise ScenarioError(source, [f"is not text in UTF-8: {error}"]) from None


def _syntax_error(source: str, text: str, error: Exception) -> ScenarioError:
    """Name the line also where the parser only says "at end of document"."""
    said = str(error)
    place = re.search(r" \(at line (\d+), column (\d+)\)$", said)
    if place:
        where = f"line {place.group(1)}, column {place.group(2)}"
        said = said[: place.start()]
    else:
        where = f"line {len(text.splitlines()) or 1}"
    return ScenarioError(source, [f"{where}: not valid TOML: {said}"])


SectionT = TypeVar("SectionT", bound=Section)


def _read_scenario(data: Mapping[str, Any], problems: list[str]) -> Scenario:
    sections: dict[str, Any] = {}
    kinds = get_type_hints(Scenario)
    for name, value in data.items():
        if name == "requests":
            sections[name] = _read_requests(value, problems)
        elif name in kinds:
            if isinstance(value, list | tuple):
                problems.append(f"{name}: got a list of sections, expected [{name}] once")
            else:
                sections[name] = _read_section(kinds[name], value, name, problems)
        else:
            problems.append(f"{_key(name)}: unknown section, {_section_hint(name)}")
    return Scenario(**sections)


def _read_requests(value: Any, problems: list[str]) -> tuple[Request, ...]:
    if isinstance(value, dict):
        problems.append("requests: got one section [requests], expected [[requests]] (a list of sections)")
    elif not isinstance(value, list | tuple):
        problems.append(f"requests: got {_shown(value)}, expected [[requests]] (a list of sections)")
    elif not value:
        problems.append("requests: got an empty list, expected at least one [[requests]]")
    else:
        return tuple(
            _read_section(Request, item, f"requests[{index}]", problems) for index, item in enumerate(value)
        )
    return (Request(),)


def _read_section(kind: type[SectionT], data: Any, path: str, problems: list[str]) -> SectionT:
    """Read what can be read; a key with a fault keeps its default, so that the other faults are found too."""
    if not isinstance(data, dict):
        problems.append(f"{path}: got {_shown(data)}, expected a section with keys")
        return kind()
    hints = get_type_hints(kind, include_extras=True)
    values: dict[str, Any] = {}
    for key, given in data.items():
        if key not in hints:
            problems.append(f"{path}.{_key(key)}: unknown key, {_key_hint(key, list(hints))}")
            continue
        try:
            values[key] = msgspec.convert(given, hints[key])
        except msgspec.ValidationError:
            problems.append(f"{path}.{key}: got {_shown(given)}, expected {_expected(hints[key])}")
    return kind(**values)


def _check_names(
    scenario: Scenario,
    detectors: Collection[str] | None,
    hazards: Collection[str] | None,
    problems: list[str],
) -> None:
    """Names are looked up in what is really there, so that a new allocator or hazard needs no change here."""
    wanted: list[tuple[str, str, str, Collection[str]]] = [
        ("pool.allocator", "allocator", scenario.pool.allocator, ALLOCATORS),
    ]
    if detectors is not None:
        wanted.append(("variant.detector", "detector", scenario.variant.detector, detectors))
    if hazards is not None:
        for index, hazard in enumerate(scenario.variant.hazards):
            wanted.append((f"variant.hazards[{index}]", "hazard", hazard, hazards))
    for path, noun, given, known in wanted:
        if given not in known:
            hint = _hint(given, list(known))
            problems.append(f"{path}: got {_shown(given)}, expected the name of a known {noun}, {hint}")


def _check_together(scenario: Scenario, problems: list[str]) -> None:
    """What no single key can tell."""
    by_rank, receivers = scenario.pool.blocks_by_rank, scenario.ranks.receivers
    if by_rank and len(by_rank) != receivers:
        problems.append(
            f"pool.blocks_by_rank: got {_shown(list(by_rank))}, expected a list of {receivers}, "
            f"a number for each of ranks.receivers"
        )
    if scenario.time.tombstone_ticks < scenario.time.deadline_ticks:
        problems.append(
            f"time.tombstone_ticks: got {scenario.time.tombstone_ticks}, expected at least time.deadline_ticks "
            f"({scenario.time.deadline_ticks}): a tombstone must outlive every resend that it answers"
        )
    if scenario.schedule.notice_lags and scenario.schedule.data_lags_status:
        problems.append(
            "schedule.notice_lags: got true together with schedule.data_lags_status, expected one of them: in the "
            "one a write that has ended is there, in the other it may not be"
        )
    seen: list[str] = []
    for index, hazard in enumerate(scenario.variant.hazards):
        if hazard in seen:
            problems.append(f"variant.hazards[{index}]: got {_shown(hazard)} again, expected each once")
        seen.append(hazard)


# What errors say ------------------------------------------------------------------------------------------


def _sections() -> dict[str, type[Section]]:
    """Every section's name and its struct, in the order in which a file is written."""
    kinds: dict[str, Any] = get_type_hints(Scenario)
    return {name: Request if name == "requests" else kind for name, kind in kinds.items()}


def _keys(kind: type[Section]) -> list[str]:
    return [field.name for field in msgspec.structs.fields(kind)]


def _hint(given: str, known: Collection[str]) -> str:
    close = difflib.get_close_matches(given, sorted(known), n=1)
    listed = f"known: {', '.join(known)}"
    return f"did you mean '{close[0]}'? ({listed})" if close else listed


def _section_hint(given: str) -> str:
    owners = [name for name, kind in _sections().items() if given in _keys(kind)]
    if owners:
        return f"but a key of {' and '.join(_heading(name) for name in owners)}"
    return _hint(given, list(_sections()))


def _key_hint(given: str, known: list[str]) -> str:
    """A key that is spelt right but stands in the wrong section is told its section."""
    owners = [name for name, kind in _sections().items() if given in _keys(kind)]
    if owners:
        return f"but a key of {' and '.join(_heading(name) for name in owners)}"
    return _hint(given, known)


def _key(given: str) -> str:
    """A key as it may stand in a message of one line: quoted where it is not a plain word."""
    return given if re.fullmatch(r"[A-Za-z0-9_-]+", given) else _shown(given)


def _heading(name: str) -> str:
    return f"[[{name}]]" if name == "requests" else f"[{name}]"


def _shown(value: Any) -> str:
    """A value as a reader of TOML knows it, cut to a length that fits a line."""
    try:
        text = _toml_value(value)
    except (TypeError, ValueError):  # a section, a date, a number too long to print
        text = "a section" if isinstance(value, dict) else f"a {type(value).__name__}"
    return text if len(text) <= 60 else text[:57] + "..."


def _expected(hint: Any) -> str:
    """A type and its range in words, from the annotation itself."""
    if get_origin(hint) is Annotated:
        base, *notes = get_args(hint)
        meta = [note for note in notes if isinstance(note, Meta)]
        low = next((note.ge for note in meta if note.ge is not None), None)
        high = next((note.le for note in meta if note.le is not None), None)
        if any(note.min_length for note in meta):
            return "a string that is not empty"
        bounds = f" from {low:,} to {high:,}" if low is not None and high is not None else ""
        return _expected(base) + bounds
    if get_origin(hint) is tuple:
        return f"a list, each item {_expected(get_args(hint)[0])}"
    if get_origin(hint) is Literal:
        return "one of " + ", ".join(_toml_value(choice) for choice in get_args(hint))
    words: dict[Any, str] = {bool: "true or false", int: "a whole number", float: "a number", str: "a string"}
    return words[hint]


# Writing --------------------------------------------------------------------------------------------------


def dump_toml(scenario: Scenario) -> str:
    """The scenario as a TOML file with every key, so that :func:`load_scenario` gives the same value back."""
    parts: list[str] = []
    for name in _sections():
        value = getattr(scenario, name)
        for section in value if name == "requests" else (value,):
            lines = [_heading(name)]
            lines += [f"{key} = {_toml_value(getattr(section, key))}" for key in _keys(type(section))]
            parts.append("\n".join(lines) + "\n")
    return "\n".join(parts)


def _toml_value(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return repr(value)
    if isinstance(value, str):
        # JSON's escapes are TOML's, except that TOML wants DEL escaped as well.
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    if isinstance(value, list | tuple):
        return "[" + ", ".join(_toml_value(item) for item in value) + "]"
    raise TypeError(f"no TOML form for {type(value).__name__}")


# The reference --------------------------------------------------------------------------------------------


def reference_markdown() -> str:
    """The table of every key in ``docs/scenario.md``: type and range, default, meaning."""
    parts: list[str] = []
    for name, kind in _sections().items():
        essay = (kind.__doc__ or "").split(": ", 1)[1]
        lines = [f"### `{_heading(name)}`", "", essay[:1].upper() + essay[1:], ""]
        lines += ["| key | type | default | meaning |", "|---|---|---|---|"]
        hints = get_type_hints(kind, include_extras=True)
        for field in msgspec.structs.fields(kind):
            hint = hints[field.name]
            meaning = next(note.description for note in reversed(hint.__metadata__) if note.description)
            expected = _expected(hint)
            if (name, field.name) == ("pool", "allocator"):
                expected = "one of " + ", ".join(_toml_value(known) for known in ALLOCATORS)
            lines.append(f"| `{field.name}` | {expected} | `{_toml_value(field.default)}` | {meaning} |")
        parts.append("\n".join(lines) + "\n")
    return "\n".join(parts)
