"""Configurations: what is accepted, and that a fault in one names the key, what was given and what was expected."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fsm.errors import LocalError
from fsm.timing import Timing
from gpu_backend.config import (
    ConfigError,
    LayoutConfig,
    LimitConfig,
    PoolConfig,
    RankConfig,
    ReceiverWorkerConfig,
    ResultConfig,
    SenderWorkerConfig,
    TransportConfig,
    load_config,
    parse_config,
    plain_config,
    reference,
    validate_config,
)

RECEIVER = """
checksum = "header"
[layout]
dim = 4096
deepstack_levels = 3
[pool]
blocks = 128
allocator = "lifo"
[control]
address = "tcp://10.0.0.7:5000"
keys = "keys.txt"
[ranks]
rank = 3
receivers = 4
senders = 2
store = "10.0.0.7:5001"
[timing]
resend_s = 1
[transport]
name = "nixl"
options = { slice_bytes = 1048576 }
"""


def test_a_file_is_read_and_what_it_leaves_out_has_a_default(tmp_path: Path) -> None:
    path = tmp_path / "receiver.toml"
    path.write_text("\ufeff" + RECEIVER, encoding="utf-8")
    config = load_config(ReceiverWorkerConfig, path)
    assert (config.layout.dim, config.layout.block_tokens, config.layout.deepstack_levels) == (4096, 128, 3)
    assert (config.checksum, config.pool.blocks, config.pool.allocator) == ("header", 128, "lifo")
    assert config.transport.options == {"slice_bytes": 1048576}
    assert config.timing.timing() == Timing(resend_s=1.0)
    assert config.ranks.sender_rank == 1


def test_ranks_say_who_serves_whom() -> None:
    """Receiver rank r is served by sender rank r mod senders; a sender without a receiver serves none."""
    served = [RankConfig(rank=rank, receivers=5, senders=3).receiver_ranks for rank in range(3)]
    assert served == [(0, 3), (1, 4), (2,)]
    assert [RankConfig(rank=rank, receivers=5, senders=3).sender_rank for rank in range(5)] == [0, 1, 2, 0, 1]
    assert RankConfig(rank=3, receivers=2, senders=4).receiver_ranks == ()


@pytest.mark.parametrize(
    "text, says",
    [
        ("", "layout: missing, expected a section [layout] with layout.dim"),
        ("[layout]", "layout.dim: missing, expected a whole number from 1 to 2,147,483,647"),
        ("layout = 3", "layout: got 3, expected a section with keys"),
        ("layout.dim = 0", "layout.dim: got 0, expected a whole number from 1"),
        ("layout.dim = 2.5", "layout.dim: got 2.5, expected a whole number"),
        ('layout.dim = "x"', 'layout.dim: got "x", expected a whole number'),
        ("layout.dim = true", "layout.dim: got true, expected a whole number"),
        ("layout.dim = 8\nlayout.dtype = 'int8'", 'layout.dtype: got "int8", expected one of "bfloat16", "float16"'),
        ("layout.dim = 8\nlayout.dims = 8", "layout.dims: unknown key, did you mean 'dim'?"),
        ("layout.dim = 8\nblocks = 9", "blocks: unknown key, but there is pool.blocks"),
        ("layout.dim = 8\n[trasport]", "trasport: unknown key, did you mean 'transport'?"),
        ("layout.dim = 8\n[pool]\nblocks = -1", "pool.blocks: got -1, expected a whole number from 1 to 16,777,216"),
        ("layout.dim = 8\n[pool]\ndevice = 'tpu'", 'pool.device: got "tpu", expected "cpu", "cuda" or "cuda:N"'),
        ("layout.dim = 8\n[timing]\nresend_s = 0", "timing.resend_s: got 0, expected a number above 0"),
        ("layout.dim = 8\n[timing]\nresend_s = nan", "timing.resend_s: got nan"),
        ("layout.dim = 8\n[timing]\ntombstone_s = 1", "expected at least timing.deadline_s (30.0)"),
        ("layout.dim = 8\n[ranks]\nrank = 1", "ranks.rank: got 1, expected less than 1"),
        ("layout.dim = 8\n[transport]\noptions = 3", "transport.options: got 3, expected a section with keys"),
        ("layout.dim = 8\n[transport]\nname = ''", 'transport.name: got "", expected a string that is not empty'),
        ("layout.dim = 8\n[control]\nclient_keys = 'k'", 'client_keys: got "k", expected a list, each item a string'),
        ("layout.dim = 8\n[observe]\nchecks = 1", "observe.checks: got 1, expected true or false"),
        ("layout.dim = 8\nchecksum = 'md5'", 'checksum: got "md5", expected one of "none", "header", "full"'),
        ("layout.dim = 8\n[results]\ntokens = 9", "results: unknown key"),
        ("layout.dim = = 8", "not valid TOML"),
        ("[[layout]]\ndim = 3", "layout: got [a section], expected a section with keys"),
    ],
)
def test_a_fault_is_named_with_what_was_given_and_expected(text: str, says: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_config(SenderWorkerConfig, text, source="sender.toml")
    assert says in str(caught.value)
    assert str(caught.value).startswith("sender.toml: ")


def test_all_faults_are_told_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        parse_config(SenderWorkerConfig, "checksum = 1\n[layout]\ndim = 0\n[pool]\nblocks = 0\nbolcks = 2")
    assert len(caught.value.problems) == 4


@pytest.mark.parametrize(
    "text, says",
    [
        ("layout.dim = 8\n[ranks]\nreceivers = 2", 'ranks.store: got "", expected "host:port"'),
        ("layout.dim = 8", "control.address: missing, expected the address at which the sender listens"),
        ("layout.dim = 8\n[control]\naddress = ''", "control.address: missing, expected the address"),
        (
            "layout.dim = 8\n[control]\naddress = 'tcp://10.0.0.5:0'",
            'control.address: got "tcp://10.0.0.5:0", expected',
        ),
        ("layout.dim = 8\n[pool]\nallocator = 'fif'", "pool.allocator: got \"fif\", did you mean 'fifo'?"),
    ],
)
def test_a_receiver_must_know_where_others_are(text: str, says: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_config(ReceiverWorkerConfig, text)
    assert says in str(caught.value)


HERE = "layout.dim = 8\n[control]\naddress = 'tcp://127.0.0.1:9'\n"

ONE_SIDED: list[tuple[str, type[Any], str]] = [
    ("pool.allocator = 'lifo'", SenderWorkerConfig, "receiver"),
    ("ranks.store = 'host:1'", SenderWorkerConfig, "receiver"),
    ("ranks.timeout_s = 3", SenderWorkerConfig, "receiver"),
    ("limits.grant_blocks_max = 3", SenderWorkerConfig, "receiver"),
    ("control.server_key = 'k'", SenderWorkerConfig, "receiver"),
    ("control.client_keys = ['k']", ReceiverWorkerConfig, "sender"),
    ("limits.staging_bytes = 4096", ReceiverWorkerConfig, "sender"),
]


@pytest.mark.parametrize("line, kind, whose", ONE_SIDED)
def test_a_key_of_the_other_side_is_refused_by_name(line: str, kind: type[Any], whose: str) -> None:
    """A key that does nothing is an error; in the file of the side that reads it, it is a value."""
    key = line.split(" ")[0]
    text = f"{line}\ncontrol.address = 'tcp://127.0.0.1:9'\nlayout.dim = 8"
    with pytest.raises(ConfigError) as caught:
        parse_config(kind, text)
    (problem,) = caught.value.problems
    assert problem.startswith(f"{key}: got ") and f"only a {whose} reads it" in problem
    other: type[Any] = ReceiverWorkerConfig if kind is SenderWorkerConfig else SenderWorkerConfig
    parse_config(other, text)
    assert (f"`{key}`" in reference(kind), f"`{key}`" in reference(other)) == (False, True)


def test_a_key_of_the_other_side_is_refused_in_code_too() -> None:
    """Where every key has a value: refused if somebody has changed it."""
    with pytest.raises(ConfigError, match=r"limits\.grant_blocks_max: got 2, expected no such key in a sender's file"):
        validate_config(SenderWorkerConfig(layout=LayoutConfig(dim=8), limits=LimitConfig(grant_blocks_max=2)))
    plain = plain_config(SenderWorkerConfig(layout=LayoutConfig(dim=8)))
    assert "allocator" not in plain["pool"] and plain["limits"]["staging_bytes"] == 64 << 20


def test_the_receivers_address_must_be_given() -> None:
    rows = {line.split("`")[1]: line for line in reference(ReceiverWorkerConfig).splitlines()[2:] if line}
    assert "(must be given)" in rows["control.address"]
    assert "(must be given)" not in next(
        line for line in reference(SenderWorkerConfig).splitlines() if "`control.address`" in line
    )


def test_early_grants_can_be_made_with_the_defaults() -> None:
    """R6: one reserves the longest request and leaves as much free, so the limit follows the result memory."""
    default = parse_config(ReceiverWorkerConfig, HERE)
    assert default.limits.total_tokens_max == 32_768 == default.results.tokens // 2
    assert default.early_grants
    small = parse_config(ReceiverWorkerConfig, HERE + "[results]\ntokens = 101")
    assert small.limits.total_tokens_max == 50 and small.early_grants
    given = parse_config(ReceiverWorkerConfig, HERE + "[results]\ntokens = 100\n[limits]\ntotal_tokens_max = 51")
    assert given.limits.total_tokens_max == 51 and not given.early_grants
    assert parse_config(ReceiverWorkerConfig, HERE + "[results]\ntokens = 1").limits.total_tokens_max == 1
    assert parse_config(SenderWorkerConfig, "layout.dim = 8").limits.total_tokens_max == 1 << 20
    made = ReceiverWorkerConfig(layout=LayoutConfig(dim=8), results=ResultConfig(tokens="many"))  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r'results\.tokens: got "many"'):
        validate_config(made)


@pytest.mark.parametrize("kind", [ReceiverWorkerConfig, SenderWorkerConfig])
@pytest.mark.parametrize(
    "name, options, says",
    [
        ("nixl", "slice_byte = 3", "transport.options.slice_byte: not an option of nixl, did you mean 'slice_bytes'?"),
        ("nixl", "progress_thread = 'no'", 'transport.options.progress_thread: got "no", expected true or false'),
        ("nixl", "slice_bytes = 0", "transport.options.slice_bytes: got 0, expected a whole number from 1"),
        ("nixl", "window = true", "transport.options.window: got true, expected a whole number"),
        ("nixl", "host = 'a'", "transport.options.host: not an option of nixl, but of gloo and nccl"),
        ("gloo", "stall_timeout_s = 0", "transport.options.stall_timeout_s: got 0, expected a number above 0"),
        ("gloo", "host = ''", 'transport.options.host: got "", expected a string that is not empty'),
        ("auto", "fabrik = 1", "transport.options.fabrik: not an option of nixl or gloo"),
        ("in-process", "fabrik = 1", "did you mean 'fabric'?"),
        ("nixxl", "window = 1", "transport.name: got \"nixxl\", did you mean 'nixl'?"),
    ],
)
def test_an_option_that_no_transport_reads_is_refused(kind: type[Any], name: str, options: str, says: str) -> None:
    """Its name, and its value; for both workers."""
    with pytest.raises(ConfigError) as caught:
        parse_config(kind, f"{HERE}[transport]\nname = '{name}'\noptions = {{ {options} }}")
    assert caught.value.problems[0].startswith(says) or says in caught.value.problems[0]


def test_options_are_taken_as_they_are() -> None:
    """``auto`` takes those of all that it chooses from; the one that it chooses may refuse them when it is made."""
    for name in ("nixl", "auto"):
        config = parse_config(SenderWorkerConfig, f"{HERE}[transport]\nname = '{name}'\noptions.slice_bytes = 4096")
        assert config.transport.options == {"slice_bytes": 4096}


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read: No such file"):
        load_config(SenderWorkerConfig, tmp_path / "none.toml")
    (tmp_path / "bytes.toml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="is not text in UTF-8"):
        load_config(SenderWorkerConfig, tmp_path / "bytes.toml")


def test_what_was_made_in_code_meets_the_same_checks_and_keeps_its_objects() -> None:
    """Options may be objects (a fabric); numbers of a struct made in code are checked by nobody else."""
    thing = object()
    config = SenderWorkerConfig(
        layout=LayoutConfig(dim=8), transport=TransportConfig(name="in-process", options={"fabric": thing})
    )
    assert validate_config(config) == config
    assert validate_config(config).transport.options["fabric"] is thing
    with pytest.raises(ConfigError, match=r"pool\.blocks: got 0"):
        validate_config(SenderWorkerConfig(layout=LayoutConfig(dim=8), pool=PoolConfig(blocks=0)))


@pytest.mark.parametrize("kind", [ReceiverWorkerConfig, SenderWorkerConfig])
def test_the_reference_has_every_key_and_its_meaning(kind: Any) -> None:
    rows = [line for line in reference(kind).splitlines()[2:] if line]
    assert all(line.count("|") == 5 for line in rows)
    assert all(line.split("|")[4].strip() for line in rows)
    assert any(line.startswith("| `layout.dim` |") and "(must be given)" in line for line in rows)
    assert any("| `results.tokens` |" in line for line in rows) == (kind is ReceiverWorkerConfig)


JUNK: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.binary(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
KEYS = st.sampled_from(["layout", "pool", "ranks", "control", "transport", "limits", "timing", "checksum", "results"])


@given(st.dictionaries(KEYS | st.text(max_size=6), JUNK, max_size=4))
def test_any_data_is_a_configuration_or_a_fault_that_is_named(data: dict[str, Any]) -> None:
    """Whatever a file may hold: never another exception than ours, and never an empty one."""
    from gpu_backend.config import config_from_mapping

    try:
        config_from_mapping(SenderWorkerConfig, data)
    except LocalError as error:
        assert str(error)
