"""What a worker is told once: typed sections, read from TOML or made in code, and checked in the same way.

Each key is declared once, below: its type, range, default and meaning. The reader, the error messages and
:func:`reference` (the table of keys for people) take them from there. A file that is wrong is refused with every
fault in it, each naming the key, what was given and what was expected; nothing is guessed and nothing is ignored.

A receiver's file and a sender's file are two files. ``[layout]`` and ``checksum`` must say the same in both: the
layout is compared at REGISTER, and a checksum is only worth something if both sides compute the same. A section that
both have may hold a key that only one side reads (:data:`RECEIVER_ONLY`, :data:`SENDER_ONLY`); a key that does nothing
is an error, so the other side's file may not have it.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Annotated, Any, Final, Literal, TypeVar, get_args, get_origin, get_type_hints

import msgspec
from msgspec import Meta

from fsm.allocators import ALLOCATORS
from fsm.errors import LocalError
from fsm.messages import SIZE_MAX
from fsm.timing import Timing
from gpu_backend.transports import AUTO, MODULES
from gpu_backend.transports.options import problems_with
from gpu_backend.wording import advice, expected, meaning, shown

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

Positive = Annotated[int, Meta(ge=1, le=2**31 - 1)]
Count = Annotated[int, Meta(ge=0, le=2**31 - 1)]
Blocks = Annotated[int, Meta(ge=1, le=1 << 24)]
BlocksOrNone = Annotated[int, Meta(ge=0, le=65_536)]
Rank = Annotated[int, Meta(ge=0, le=1023)]
Ranks = Annotated[int, Meta(ge=1, le=1024)]
Levels = Annotated[int, Meta(ge=0, le=64)]
Bytes = Annotated[int, Meta(ge=1024, le=1 << 40)]
Seconds = Annotated[float, Meta(gt=0.0, le=1e6)]
SecondsOrNone = Annotated[float, Meta(ge=0.0, le=1e6)]
Name = Annotated[str, Meta(min_length=1)]
Text = str

RECEIVER_ONLY: Final = {"file_of": "receiver"}
SENDER_ONLY: Final = {"file_of": "sender"}
"""Marks a key that only one side reads."""
RECEIVER_MUST: Final = {"required_by": "receiver"}
"""Marks a key whose default is good for the sender only."""

SENDER_TOKENS_MAX: Final = 1 << 20
"""What ``limits.total_tokens_max = 0`` means at the sender."""


class Section(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The root of every section; a plain frozen value."""


class LayoutConfig(Section, frozen=True, kw_only=True):
    """`[layout]`: how the payload lies in a block; the same on both sides."""

    dim: Annotated[Positive, Meta(description="elements of one token's embedding")]
    block_tokens: Annotated[Positive, Meta(description="tokens that one block holds")] = 128
    dtype: Annotated[Literal["bfloat16", "float16", "float32"], Meta(description="of embeddings and deepstack")] = (
        "bfloat16"
    )
    deepstack_levels: Annotated[Levels, Meta(description="further embeddings of each token; 0 = none")] = 0


class PoolConfig(Section, frozen=True, kw_only=True):
    """`[pool]`: the blocks that the transport works on: landing blocks here, source blocks at the sender."""

    blocks: Annotated[
        Blocks, Meta(description="how many; at the sender they bound the payloads staged at one time")
    ] = 64
    device: Annotated[Name, Meta(description="`cpu`, `cuda` or `cuda:N`")] = "cpu"
    huge_pages: Annotated[bool, Meta(description="`cpu` only: ask the kernel for huge pages")] = True
    allocator: Annotated[str, Meta(description="which free blocks are given", extra=RECEIVER_ONLY)] = "fifo"


class ResultConfig(Section, frozen=True, kw_only=True):
    """`[results]`: where the receiver puts finished requests together."""

    tokens: Annotated[
        Positive,
        Meta(
            description="result memory, allocated at the start; taken until `release()`. No request may be longer, nor "
            "longer than half of it where `limits.total_tokens_max` is left out"
        ),
    ] = 65_536
    copy_threads: Annotated[
        int,
        Meta(
            ge=0, le=1, description="`cpu` only: 1 = copies run on a thread of their own; 0 = in slices within `poll`"
        ),
    ] = 1


class RankConfig(Section, frozen=True, kw_only=True):
    """`[ranks]`: receiver rank r is served by sender rank r mod `senders`."""

    rank: Annotated[Rank, Meta(description="of this worker on its own side")] = 0
    receivers: Annotated[Ranks, Meta(description="receiver ranks; each gets the whole payload")] = 1
    senders: Annotated[Ranks, Meta(description="sender ranks")] = 1
    store: Annotated[
        Text,
        Meta(
            description="with several receivers: `host:port` where the ranks meet; rank 0 listens there",
            extra=RECEIVER_ONLY,
        ),
    ] = ""
    timeout_s: Annotated[
        Seconds, Meta(description="a rank that does not answer for so long is lost", extra=RECEIVER_ONLY)
    ] = 10.0

    @property
    def sender_rank(self) -> int:
        """Who serves this receiver rank."""
        return self.rank % self.senders

    @property
    def receiver_ranks(self) -> tuple[int, ...]:
        """Whom this sender rank serves."""
        return tuple(range(self.rank, self.receivers, self.senders))


class ControlConfig(Section, frozen=True, kw_only=True):
    """`[control]`: the sockets of the control plane."""

    address: Annotated[
        Text,
        Meta(
            description="sender: where to listen (port 0 = any free one); receiver: where its sender listens",
            extra=RECEIVER_MUST,
        ),
    ] = "tcp://127.0.0.1:0"
    keys: Annotated[Text, Meta(description="file with this worker's pair of CURVE keys; empty = no encryption")] = ""
    server_key: Annotated[
        Text,
        Meta(description="the sender's public key; empty = the one in `keys` (one pair for all)", extra=RECEIVER_ONLY),
    ] = ""
    client_keys: Annotated[
        tuple[Text, ...],
        Meta(description="the receivers' public keys; empty = the one in `keys` (one pair for all)", extra=SENDER_ONLY),
    ] = ()
    insecure: Annotated[
        bool, Meta(description="without keys, only loopback addresses are allowed unless this says otherwise")
    ] = False
    message_bytes_max: Annotated[Bytes, Meta(description="a longer message is refused by the socket")] = SIZE_MAX


class TransportConfig(Section, frozen=True, kw_only=True):
    """`[transport]`: what carries the payload; the same on both sides."""

    name: Annotated[Name, Meta(description="`auto`, or the name of one; `docs/transports.md` tells of each")] = "auto"
    options: Annotated[
        dict[str, Any], Meta(description="of that transport; `docs/transports.md` lists them, and no other is taken")
    ] = {}


class LimitConfig(Section, frozen=True, kw_only=True):
    """`[limits]`: what is refused or done in parts."""

    total_tokens_max: Annotated[
        Count,
        Meta(
            description="a longer request is refused. 0 = at the receiver half of `results.tokens`, the most with "
            f"which early grants can be made; at the sender {SENDER_TOKENS_MAX:,}"
        ),
    ] = 0
    grant_blocks_max: Annotated[
        BlocksOrNone, Meta(description="never more blocks in one grant; 0 = no limit", extra=RECEIVER_ONLY)
    ] = 0
    staging_bytes: Annotated[
        Bytes, Meta(description="how much is copied into the source pool within one `poll`", extra=SENDER_ONLY)
    ] = 64 << 20
    messages_per_poll: Annotated[Positive, Meta(description="control messages taken within one `poll`")] = 256


class TimingConfig(Section, frozen=True, kw_only=True):
    """`[timing]`: the protocol's times; what each is for is told in `docs/protocol.md`."""

    deadline_s: Annotated[Seconds, Meta(description="from the last progress to the failure of a request")] = 30.0
    queue_deadline_s: Annotated[Seconds, Meta(description="the same while it queues for memory")] = 300.0
    bootstrap_s: Annotated[Seconds, Meta(description="until the peer has answered for the first time")] = 300.0
    resend_s: Annotated[Seconds, Meta(description="from an unanswered message to the same bytes again")] = 2.0
    tombstone_s: Annotated[Seconds, Meta(description="so long a request that ended is remembered")] = 60.0
    heartbeat_s: Annotated[SecondsOrNone, Meta(description="period of the HEARTBEAT; 0 = none")] = 5.0

    def timing(self) -> Timing:
        """The same as ``fsm`` takes it."""
        return Timing(
            self.deadline_s, self.queue_deadline_s, self.bootstrap_s, self.resend_s, self.tombstone_s, self.heartbeat_s
        )


class ObserveConfig(Section, frozen=True, kw_only=True):
    """`[observe]`: what is watched and written down."""

    checks: Annotated[
        bool, Meta(description="run the checkers of the protocol's properties on everything that happens")
    ] = False
    trace: Annotated[Text, Meta(description="write everything that happens to this file; empty = no trace")] = ""
    trace_flush: Annotated[
        Literal["second", "event"],
        Meta(description="when that is handed to the system: once a second, or each event at once, to survive SIGKILL"),
    ] = "second"
    ring: Annotated[
        Text, Meta(description="keep the last events in this file, which survives SIGKILL; empty = no such file")
    ] = ""
    ring_kib: Annotated[
        int, Meta(ge=64, le=1 << 20, description="size of the ring, be it that file or kept for dumps")
    ] = 1024
    dump_dir: Annotated[
        Text, Meta(description="where a request fails, write the last events into this directory; empty = do not")
    ] = ""
    dumps_max: Annotated[Positive, Meta(description="so many dumps of this worker are left there")] = 16
    metrics: Annotated[bool, Meta(description="show metrics to Prometheus (extra `metrics`)")] = False


class _Worker(Section, frozen=True, kw_only=True):
    layout: LayoutConfig
    pool: PoolConfig = PoolConfig()
    ranks: RankConfig = RankConfig()
    control: ControlConfig = ControlConfig()
    transport: TransportConfig = TransportConfig()
    limits: LimitConfig = LimitConfig()
    timing: TimingConfig = TimingConfig()
    observe: ObserveConfig = ObserveConfig()
    checksum: Annotated[
        Literal["none", "header", "full"],
        Meta(description="of each chunk: nothing, ids and positions, or every byte; the same on both sides"),
    ] = "none"


class ReceiverWorkerConfig(_Worker, frozen=True, kw_only=True):
    """Everything that a receiver worker is told."""

    results: ResultConfig = ResultConfig()

    def __post_init__(self) -> None:
        _set_tokens_max(self, lambda: max(1, self.results.tokens // 2))

    @property
    def early_grants(self) -> bool:
        """Whether early grants can be made at all: each reserves the longest request, and leaves as much free (R6)."""
        return 2 * min(self.limits.total_tokens_max, self.results.tokens) <= self.results.tokens


class SenderWorkerConfig(_Worker, frozen=True, kw_only=True):
    """Everything that a sender worker is told."""

    def __post_init__(self) -> None:
        _set_tokens_max(self, lambda: SENDER_TOKENS_MAX)


def _set_tokens_max(config: _Worker, tokens: Callable[[], int]) -> None:
    """Put in what ``limits.total_tokens_max = 0`` stands for. Whatever is no number is told of by the checks."""
    try:
        if config.limits.total_tokens_max == 0:
            limits = msgspec.structs.replace(config.limits, total_tokens_max=tokens())
            msgspec.structs.force_setattr(config, "limits", limits)
    except (AttributeError, TypeError):
        pass


class ConfigError(LocalError):
    """A configuration that was refused; ``problems`` has one line for each fault in it."""

    def __init__(self, source: str, problems: Collection[str]) -> None:
        self.source = source
        self.problems = tuple(problems)
        super().__init__("\n".join(f"{source}: {problem}" for problem in self.problems))


ConfigT = TypeVar("ConfigT", ReceiverWorkerConfig, SenderWorkerConfig)


def load_config(kind: type[ConfigT], path: str | os.PathLike[str]) -> ConfigT:
    """Read a TOML file: ``load_config(ReceiverWorkerConfig, "receiver.toml")``.

    Raises :class:`ConfigError` for a file that cannot be read, for bad TOML (with line and column), and with every
    key that is unknown, missing, or has a value that is not allowed.
    """
    source = os.fspath(path)
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
    except OSError as error:
        raise ConfigError(source, [f"cannot be read: {error.strerror or error}"]) from None
    except ValueError as error:
        raise ConfigError(source, [f"is not text in UTF-8: {error}"]) from None
    return parse_config(kind, text, source=source)


def parse_config(kind: type[ConfigT], text: str, *, source: str = "<text>") -> ConfigT:
    """The same for TOML in a string; ``source`` is what errors call it."""
    try:
        data = tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        raise ConfigError(source, [f"not valid TOML: {error}"]) from None
    return config_from_mapping(kind, data, source=source)


def config_from_mapping(kind: type[ConfigT], data: Mapping[str, Any], *, source: str = "<config>") -> ConfigT:
    """The same for plain data. Raises :class:`ConfigError` with every fault found."""
    problems: list[str] = []
    values = _read_section(kind, data, "", problems, _side(kind))
    config = kind(**values) if not problems else None
    if config is not None:
        _check_together(config, problems)
    if config is None or problems:
        raise ConfigError(source, problems)
    return config


def validate_config(config: ConfigT, *, source: str = "<config>") -> ConfigT:
    """The same checks for a configuration that was made in code; returns an equal one if it passes."""
    return config_from_mapping(type(config), _plain_worker(config), source=source)


def plain_config(config: ReceiverWorkerConfig | SenderWorkerConfig) -> dict[str, Any]:
    """All of it as data that JSON can hold; an option that is an object is named only."""
    plain = _plain_worker(config)
    options = plain["transport"]["options"]
    plain["transport"]["options"] = {
        name: value if isinstance(value, str | int | float | bool) else repr(value) for name, value in options.items()
    }
    return plain


def reference(kind: type[Section]) -> str:
    """The table of the keys of one side's file in Markdown: key, expected value, default, meaning."""
    lines = ["| key | expected | default | meaning |", "| --- | --- | --- | --- |"]
    for path, field, hint in _all_keys(kind, ""):
        if _mark(hint, "file_of") not in ("", _side(kind)):
            continue
        must = field.required or _mark(hint, "required_by") == _side(kind)
        default = "(must be given)" if must else f"`{shown(_default(field))}`"
        lines.append(f"| `{path}` | {expected(hint)} | {default} | {meaning(hint)} |")
    return "\n".join(lines) + "\n"


# Reading --------------------------------------------------------------------------------------------------------


def _is_section(hint: Any) -> bool:
    return isinstance(hint, type) and issubclass(hint, Section)


def _read_section(kind: type[Section], data: Any, path: str, problems: list[str], side: str) -> dict[str, Any]:
    """What can be read; faults are added to ``problems``, so that all of them are told at once."""
    prefix = f"{path}." if path else ""
    if not isinstance(data, Mapping):
        problems.append(f"{path}: got {shown(data)}, expected a section with keys")
        return {}
    hints = get_type_hints(kind, include_extras=True)
    values: dict[str, Any] = {}
    for key, given in data.items():
        hint = hints.get(key)
        if hint is None:
            problems.append(f"{prefix}{key}: unknown key, {advice(str(key), _places(kind, str(key)), hints)}")
        elif _mark(hint, "file_of") not in ("", side):
            problems.append(
                f"{prefix}{key}: got {shown(given)}, expected no such key in a {side}'s file: "
                f"only a {_mark(hint, 'file_of')} reads it"
            )
        elif _is_section(hint):
            inner = _read_section(hint, given, prefix + key, problems, side)
            if not _missing(hint, inner):
                values[key] = hint(**inner)
        else:
            try:
                values[key] = given if isinstance(given, dict) else msgspec.convert(given, hint)
                if isinstance(given, dict) and get_origin(get_args(hint)[0]) is not dict:
                    raise msgspec.ValidationError
            except msgspec.ValidationError:
                problems.append(f"{prefix}{key}: got {shown(given)}, expected {expected(hint)}")
    for key in _missing(kind, data):
        if _is_section(hints[key]):
            inner_keys = ", ".join(f"{key}.{name}" for name in _missing(hints[key], {}))
            problems.append(f"{prefix}{key}: missing, expected a section [{key}] with {inner_keys}")
        else:
            problems.append(f"{prefix}{key}: missing, expected {expected(hints[key])}: {meaning(hints[key])}")
    return values


def _missing(kind: type[Section], data: Mapping[str, Any]) -> list[str]:
    return [field.name for field in msgspec.structs.fields(kind) if field.required and field.name not in data]


def _side(kind: type[Section]) -> str:
    return "receiver" if issubclass(kind, ReceiverWorkerConfig) else "sender"


def _mark(hint: Any, name: str) -> str:
    """What a key is marked with; empty if it is not."""
    notes = get_args(hint)[1:] if get_origin(hint) is Annotated else ()
    marks = [note.extra for note in notes if isinstance(note, Meta) and note.extra]
    return next((str(mark[name]) for mark in marks if name in mark), "")


def _plain_worker(config: ReceiverWorkerConfig | SenderWorkerConfig) -> dict[str, Any]:
    """The whole as dictionaries, without the other side's keys as far as nobody has changed them."""
    plain: dict[str, Any] = _plain(config)
    for path, field, hint in _all_keys(type(config), ""):
        section, _, name = path.rpartition(".")
        keys = plain[section] if section else plain
        others = _mark(hint, "file_of") not in ("", _side(type(config)))
        if others and isinstance(keys, dict) and keys.get(name) == _default(field):
            keys.pop(name, None)
    return plain


def _plain(value: Any) -> Any:
    """Sections as dictionaries; everything else, such as an option that is an object, stays what it is."""
    if isinstance(value, Section):
        return {name: _plain(getattr(value, name)) for name in value.__struct_fields__}
    return value


def _check_together(config: ReceiverWorkerConfig | SenderWorkerConfig, problems: list[str]) -> None:
    """What no single key can tell."""
    ranks, timing, pool = config.ranks, config.timing, config.pool
    receiver = isinstance(config, ReceiverWorkerConfig)
    own = ranks.receivers if receiver else ranks.senders
    if ranks.rank >= own:
        problems.append(f"ranks.rank: got {ranks.rank}, expected less than {own}, the number of ranks of this side")
    if timing.tombstone_s < timing.deadline_s:
        problems.append(
            f"timing.tombstone_s: got {timing.tombstone_s}, expected at least timing.deadline_s ({timing.deadline_s}): "
            "a tombstone must outlive every resend that it answers"
        )
    if not re.fullmatch(r"cpu|cuda(:\d+)?", pool.device):
        problems.append(f'pool.device: got {shown(pool.device)}, expected "cpu", "cuda" or "cuda:N"')
    if pool.allocator not in ALLOCATORS:
        problems.append(f"pool.allocator: got {shown(pool.allocator)}, {advice(pool.allocator, [], ALLOCATORS)}")
    _check_transport(config, problems)
    observe = config.observe
    if observe.ring and observe.ring == observe.trace:
        problems.append(f"observe.ring: got {shown(observe.ring)}, expected another file than observe.trace")
    if receiver and ranks.receivers > 1 and not ranks.store:
        problems.append(
            f'ranks.store: got "", expected "host:port": {ranks.receivers} receiver ranks must meet somewhere'
        )
    address = config.control.address
    if receiver and (not address or address.endswith(":0")):
        default = ControlConfig().address
        given = "missing" if address in ("", default) else f"got {shown(address)}"
        problems.append(
            f"control.address: {given}, expected the address at which the sender listens (it prints it when it starts)"
        )


def _check_transport(config: ReceiverWorkerConfig | SenderWorkerConfig, problems: list[str]) -> None:
    """Its name, and its options by name and type. ``auto``: those of all that it chooses from."""
    name, options = config.transport.name, config.transport.options
    if name != "auto" and name not in MODULES:
        problems.append(f"transport.name: got {shown(name)}, {advice(name, [], ['auto', *MODULES])}")
        return
    names = AUTO.get(config.pool.device.partition(":")[0], ()) if name == "auto" else (name,)
    problems += [f"transport.options.{problem}" for problem in problems_with(names, options)] if names else []


# What errors say ------------------------------------------------------------------------------------------------


def _all_keys(kind: type[Section], path: str) -> list[tuple[str, Any, Any]]:
    hints = get_type_hints(kind, include_extras=True)
    keys: list[tuple[str, Any, Any]] = []
    for field in msgspec.structs.fields(kind):
        hint = hints[field.name]
        if _is_section(hint):
            keys += _all_keys(hint, f"{path}{field.name}.")
        else:
            keys.append((path + field.name, field, hint))
    return sorted(keys, key=lambda key: "." in key[0])


def _default(field: Any) -> Any:
    return field.default_factory() if field.default is msgspec.NODEFAULT else field.default


def _places(kind: type[Section], given: str) -> list[str]:
    """Where a key of that name belongs, if it was put into the wrong section."""
    places = []
    for root in (ReceiverWorkerConfig, SenderWorkerConfig):
        for path, _, _ in _all_keys(root, ""):
            if path.split(".")[-1] == given and path not in places:
                places.append(path)
    return places


__all__ = [
    "ConfigError", "ControlConfig", "LayoutConfig", "LimitConfig", "ObserveConfig", "PoolConfig", "RankConfig",
    "ReceiverWorkerConfig", "ResultConfig", "SenderWorkerConfig", "TimingConfig", "TransportConfig",
    "config_from_mapping", "load_config", "parse_config", "plain_config", "reference", "validate_config",
]  # fmt: skip
