"""The ranks' agreement among real processes: all get the same, in one gather, and a loss reaches everybody."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from fsm.errors import LocalError
from fsm.ranks import Observation
from gpu_backend.collective import RankGroup, RankLost, RankStore, hash_config
from tests.gpu_backend.kit_ranks import Ranks, all_ranks, at_once, exchange, form, observed, seen

SOON_S = 1.0
"""A time limit that a test lets pass: nothing waits for it but the ranks that must notice."""


@pytest.fixture(scope="module")
def ranks() -> Iterator[Ranks]:
    with all_ranks() as made:
        yield made


def lost(result: Any) -> bool:
    return isinstance(result, tuple) and bool(result) and result[0] == "RankLost"


# ---- a tick ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [2, 3])
def test_all_ranks_get_the_same_in_rank_order(ranks: Ranks, count: int) -> None:
    group = ranks.take(count)
    assert form(group) == [tuple(100 + rank for rank in range(count))] * count
    for tick in range(3):
        brought = [observed(rank, [seen(room, 10 * rank + tick) for room in range(rank)]) for rank in range(count)]
        assert exchange(group, *brought) == [tuple(brought)] * count


def test_the_largest_and_smallest_numbers_arrive_whole(ranks: Ranks) -> None:
    group = ranks.take(2)
    form(group, boot_id=[2**63 - 1, 1])
    top = 2**63 - 1
    row = seen(top, top, counter=top)._replace(delivered_tokens=-1, total_tokens=-2)
    brought = [Observation(0, (row,), top, 0), Observation(1, (), 0, top)]
    assert exchange(group, *brought) == [tuple(brought)] * 2


def test_a_tick_is_one_gather_of_fixed_size(ranks: Ranks) -> None:
    """Whatever the ranks have to say: a different number or size of collectives on one rank is a hang."""
    group = ranks.take(2)
    form(group, rows_max=4)
    exchange(group, observed(0), observed(1))
    exchange(group, observed(0, [seen(room) for room in range(9)]), observed(1))
    exchange(group, observed(0), observed(1, [seen(1), seen(2)]))
    for sizes in at_once(group, "counted"):
        assert len(sizes) == 3
        assert len(set(sizes)) == 1


def test_rows_that_do_not_fit_wait_and_are_renewed(ranks: Ranks) -> None:
    group = ranks.take(2)
    form(group, rows_max=2)
    first, second = exchange(group, observed(0, [seen(1), seen(2), seen(3), seen(4)]), observed(1))
    assert first == second
    assert first[0].rooms == (seen(1), seen(2)), "the own observation, too, is only what was sent"
    # Room 4 has news, and keeps its place; room 1 has news, and is at the end of the queue.
    first, second = exchange(group, observed(0, [seen(1, 77), seen(4, 99)]), observed(1))
    assert first == second
    assert first[0].rooms == (seen(3), seen(4, 99))
    assert group[0].ask("get", "waiting") == 1
    first, second = exchange(group, observed(0), observed(1, [seen(5)]))
    assert first == second == (observed(0, [seen(1, 77)]), observed(1, [seen(5)]))


def test_an_error_that_a_rank_survives_moves_nothing(ranks: Ranks) -> None:
    """Between any two exchanges of rank 1 something is raised and caught: it stays in step."""
    group = ranks.take(2)
    form(group)
    brought = [[observed(rank, [seen(tick)]) for tick in range(5)] for rank in range(2)]
    group[0].tell("exchange", *brought[0])
    group[1].tell("stumble", *brought[1])
    assert [rank.result() for rank in group] == [(brought[0][-1], brought[1][-1])] * 2
    assert at_once(group, "get", "ticks") == [5, 5]
    assert [len(sizes) for sizes in at_once(group, "counted")] == [5, 5]


@pytest.mark.parametrize(
    "broken",
    [observed(0), observed(1, [seen(2**70)]), observed(1)._replace(free_blocks=2**64), None, "words"],
    ids=["another-rank", "too-large", "too-many-blocks", "none", "no-observation"],
)
def test_a_rank_that_has_no_words_still_takes_part(ranks: Ranks, broken: Any) -> None:
    """A rank that stayed away would let the others wait. It takes part, and all know."""
    group = ranks.take(2)
    form(group)
    exchange(group, observed(0), observed(1))
    results = exchange(group, observed(0), broken)
    assert [result[0] for result in results] == ["RankLost", "RankLost"]
    assert [result[2] for result in results] == [(1,), (1,)]
    assert all("could not put its observation into words" in result[1] for result in results)
    assert [len(sizes) for sizes in at_once(group, "counted")] == [2, 2]


# ---- a loss ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("victim", [0, 1, 2])
def test_a_rank_that_is_killed_is_lost_on_all_others(ranks: Ranks, victim: int) -> None:
    """Rank 0 too, which offers the store. The time limit is far away: the broken connections tell."""
    group = ranks.take(3)
    form(group)
    exchange(group, *map(observed, range(3)))
    others = [rank for rank in range(3) if rank != victim]
    for rank in others:
        group[rank].tell("exchange", observed(rank))
    group[victim].kill()
    for rank in others:
        assert lost(group[rank].result())
        assert lost(group[rank].ask("exchange", observed(rank))), "and so it stays"


def test_a_rank_that_does_not_come_is_lost_on_all_others(ranks: Ranks) -> None:
    group = ranks.take(3)
    form(group, timeout_s=SOON_S)
    for rank in (0, 1):
        group[rank].tell("exchange", observed(rank))
    assert all(lost(group[rank].result()) for rank in (0, 1))
    assert lost(group[2].ask("exchange", observed(2))), "and when it comes after all, it learns of it"


def test_a_rank_that_leaves_is_lost_on_all_others(ranks: Ranks) -> None:
    group = ranks.take(3)
    form(group)
    for rank in (0, 2):
        group[rank].tell("exchange", observed(rank))
    assert group[1].ask("close") is None
    assert all(lost(group[rank].result()) for rank in (0, 2))


def test_what_one_rank_alone_has_noticed_reaches_the_others(ranks: Ranks) -> None:
    """It closes its connections; else the others would wait for ten minutes here."""
    group = ranks.take(3)
    form(group, timeout_s=600.0)
    for rank in (0, 2):
        group[rank].tell("exchange", observed(rank))
    group[1].ask("lose")
    assert all(lost(group[rank].result()) for rank in (0, 2))


@pytest.mark.parametrize(
    ("name", "value", "text"),
    [
        ("ticks", 7, "is at tick 7"),
        ("config_hash", 5, "has another configuration (hash 0000000000000005, not 0000000000000000)"),
        ("own_boot_id", 999, "has boot_id 999, and had 101"),
    ],
)
def test_a_rank_that_is_out_of_step_is_lost_on_all_ranks(ranks: Ranks, name: str, value: int, text: str) -> None:
    group = ranks.take(3)
    form(group)
    exchange(group, *map(observed, range(3)))
    group[1].ask("set", name, value)
    results = exchange(group, *map(observed, range(3)))
    assert all(lost(result) for result in results)
    for rank in (0, 2):
        assert results[rank][2] == (1,)
        assert f"rank 1 {text}" in results[rank][1]


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"config_hash": [5, 6, 5]}, "rank 1 has config_hash 6, not 5"),
        ({"rows_max": [512, 8, 512]}, "rank 1 has rows_max 8, not 512"),
        ({"generation": [1, 0, 1]}, "rank 1 has generation 0, not 1"),
    ],
    ids=["config", "rows_max", "generation"],
)
def test_ranks_that_differ_do_not_come_together(ranks: Ranks, options: dict[str, Any], text: str) -> None:
    """All of them learn why, before a collective whose size depends on it."""
    results = form(ranks.take(3), **options)
    assert all(lost(result) for result in results)
    assert text in results[0][1] and text in results[2][1]


def test_ranks_that_wait_in_vain(ranks: Ranks) -> None:
    zero, one = ranks.take(2)
    address = zero.ask("offer")
    result = one.ask("make", 1, 2, boot_id=1, address=address, timeout_s=SOON_S)
    assert lost(result)
    result = zero.ask("make", 0, 2, boot_id=1, offered=True, timeout_s=SOON_S)
    assert lost(result), "rank 1 was there once, but it has gone away since"


# ---- meeting again ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("victim", [0, 1, 2])
def test_the_ranks_meet_again_with_a_restarted_one(ranks: Ranks, victim: int) -> None:
    """Also where the store went down with rank 0, and comes back at the same address."""
    group = ranks.take(3)
    address = group[0].ask("offer")
    for rank in range(3):
        where: dict[str, Any] = {"address": address} if rank else {"offered": True}
        group[rank].tell("make", rank, 3, boot_id=100, timeout_s=60.0, **where)
    assert [rank.result() for rank in group] == [(100, 100, 100)] * 3
    exchange(group, *[observed(rank, [seen(1)]) for rank in range(3)])
    group[victim].kill()
    others = [rank for rank in range(3) if rank != victim]
    assert all(lost(result) for result in exchange([group[rank] for rank in others], *map(observed, others)))
    for rank in others:
        group[rank].tell("rebuild", 1, boot_id=200)
    group[victim] = ranks.fresh()
    group[victim].tell("make", victim, 3, boot_id=201, address=address, timeout_s=60.0, generation=1)
    boot_ids = tuple(201 if rank == victim else 200 for rank in range(3))
    assert [rank.result() for rank in group] == [boot_ids] * 3
    brought = [observed(rank, [seen(rank)]) for rank in range(3)]
    assert exchange(group, *brought) == [tuple(brought)] * 3


def test_ranks_that_gave_up_at_different_times_meet_at_last(ranks: Ranks) -> None:
    """What one of them began alone must not mislead the next attempt."""
    zero, one = ranks.take(2)
    address = zero.ask("offer")
    assert lost(zero.ask("make", 0, 2, boot_id=1, offered=True, timeout_s=SOON_S))
    for _ in range(2):
        assert lost(one.ask("make", 1, 2, boot_id=1, address=address, timeout_s=SOON_S))
    zero.tell("make", 0, 2, boot_id=1, offered=True, timeout_s=60.0)
    one.tell("make", 1, 2, boot_id=2, address=address, timeout_s=60.0)
    assert [zero.result(), one.result()] == [(1, 2)] * 2
    assert exchange([zero, one], observed(0), observed(1)) == [(observed(0), observed(1))] * 2


def test_a_rebuild_that_fails_can_be_tried_again(ranks: Ranks) -> None:
    group = ranks.take(2)
    form(group, timeout_s=SOON_S)
    assert lost(group[0].ask("exchange", observed(0)))
    assert lost(group[0].ask("rebuild", 1)), "alone"
    assert lost(group[0].ask("exchange", observed(0)))
    at_once(group, "set", "timeout_s", 60.0)
    assert at_once(group, "rebuild", 1) == [(100, 101)] * 2
    assert exchange(group, observed(0), observed(1)) == [(observed(0), observed(1))] * 2


def test_rows_that_waited_for_the_old_group_are_forgotten(ranks: Ranks) -> None:
    group = ranks.take(2)
    form(group, rows_max=1)
    exchange(group, observed(0, [seen(1), seen(2), seen(3)]), observed(1))
    group[1].ask("set", "ticks", 9)
    exchange(group, observed(0), observed(1))
    assert group[0].ask("get", "waiting") == 1
    at_once(group, "rebuild", 1)
    brought = (observed(0), observed(1))
    assert exchange(group, *brought) == [brought, brought]
    assert at_once(group, "get", "ticks") == [1, 1]


def test_a_new_group_brings_the_new_boot_ids_together(ranks: Ranks) -> None:
    """After a loss each rank has its own new name; from the group all learn one that is newer than each."""
    group = ranks.take(2)
    form(group)
    group[1].ask("set", "ticks", 9)
    exchange(group, observed(0), observed(1))
    group[0].tell("rebuild", 1, boot_id=300)
    group[1].tell("rebuild", 1, boot_id=200)
    assert [rank.result() for rank in group] == [(300, 200)] * 2
    assert at_once(group, "get", "boot_id") == [300, 300]


# ---- a process group that is there already ---------------------------------------------------------------


def given_group(ranks: Ranks, name: str, count: int = 2) -> list[Any]:
    group = ranks.take(count)
    address = group[0].ask("offer")
    for rank in range(count):
        group[rank].tell("torch_group", rank, count, address, name)
    assert [rank.result() for rank in group] == [None] * count
    return group


def test_an_existing_gloo_group_serves_as_well_and_stays_open(ranks: Ranks) -> None:
    group = given_group(ranks, "stays")
    for rank in range(2):
        group[rank].tell("make", rank, 2, boot_id=100 + rank, existing=True, timeout_s=60.0)
    assert [rank.result() for rank in group] == [(100, 101)] * 2
    assert exchange(group, observed(0), observed(1)) == [(observed(0), observed(1))] * 2
    at_once(group, "close")
    assert at_once(group, "torch_sum", 3) == [6, 6]


def test_the_time_limit_is_this_groups_own(ranks: Ranks) -> None:
    """The existing group would wait for ten minutes."""
    group = given_group(ranks, "limit")
    for rank in range(2):
        group[rank].tell("make", rank, 2, boot_id=1, existing=True, timeout_s=SOON_S)
    assert [rank.result() for rank in group] == [(1, 1)] * 2
    assert lost(group[0].ask("exchange", observed(0)))
    with_text = group[0].ask("rebuild", 1)
    assert with_text[0] == "LocalError" and "new process group" in with_text[1]


def test_an_existing_group_of_other_ranks_is_refused(ranks: Ranks) -> None:
    group = given_group(ranks, "others")
    kind, text, _ = group[1].ask("make", 2, 3, boot_id=1, existing=True)
    assert kind == "LocalError"
    assert "this is rank 1 of 2 there: expected 2 of 3" in text


# ---- one rank, and misuse --------------------------------------------------------------------------------


def test_one_rank_needs_nobody_and_no_torch() -> None:
    script = (
        "import sys\n"
        "from fsm.ranks import Observation\n"
        "from gpu_backend.collective import RankGroup\n"
        "group = RankGroup(0, 1, boot_id=5)\n"
        "observation = Observation(0, tuple(range(2000)), 3, 4)\n"
        "assert group.exchange(observation) == (observation,)\n"
        "group.rebuild(1, boot_id=6)\n"
        "assert group.boot_ids == (6,)\n"
        "group.close()\n"
        "print('torch' in sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


@pytest.mark.parametrize(
    ("arguments", "options", "text"),
    [
        ((0, 0), {}, "expected 0 <= rank < ranks"),
        ((2, 2), {"address": "127.0.0.1:5"}, "expected 0 <= rank < ranks"),
        ((-1, 2), {"address": "127.0.0.1:5"}, "expected 0 <= rank < ranks"),
        ((0, 1), {"boot_id": 0}, "boot_id=0"),
        ((0, 1), {"boot_id": 2**63}, "boot_id="),
        ((0, 1), {"config_hash": -1}, r"hash_config\(\) makes one"),
        ((0, 1), {"timeout_s": 0}, "timeout_s=0"),
        ((0, 1), {"rows_max": 0}, "rows_max=0"),
        ((0, 2), {}, "exactly one of address, store and group"),
        ((0, 2), {"address": "127.0.0.1:5", "store": object()}, "exactly one of address, store and group"),
        ((0, 2), {"address": "127.0.0.1:0"}, "RankStore"),
        ((1, 2), {"address": "127.0.0.1"}, "expected host:port"),
        ((1, 2), {"address": "10.0.0.1:5"}, "loopback address .* or say insecure=True"),
    ],
)
def test_wrong_arguments(arguments: tuple[int, int], options: dict[str, Any], text: str) -> None:
    with pytest.raises(LocalError, match=text):
        RankGroup(*arguments, **({"boot_id": 1} | options))


def test_a_store_is_for_this_machine_unless_said_otherwise() -> None:
    with pytest.raises(LocalError, match="insecure=True"):
        RankStore("0.0.0.0:0")
    store = RankStore("127.0.0.1:0")
    with pytest.raises(LocalError, match="cannot listen there"):
        RankStore(store.address)
    store.close()
    RankStore(store.address).close()
    RankStore("0.0.0.0:0", insecure=True).close()


def test_another_thread_and_after_close() -> None:
    group = RankGroup(0, 1, boot_id=1)
    errors: list[Exception] = []

    def other() -> None:
        for call in (lambda: group.exchange(observed(0)), lambda: group.rebuild(1), group.close):
            try:
                call()
            except LocalError as error:
                errors.append(error)

    thread = threading.Thread(target=other)
    thread.start()
    thread.join()
    assert len(errors) == 3
    group.exchange(observed(0))
    group.close()
    group.close()
    with pytest.raises(LocalError, match="used after close"):
        group.exchange(observed(0))


def test_a_hash_of_the_configuration_is_the_same_in_every_process() -> None:
    words = ("fifo", 64, 8192, None, ("a", 1.5))
    script = f"from gpu_backend.collective import hash_config; print(hash_config(*{words!r}))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert int(done.stdout) == hash_config(*words)
    assert hash_config(*words) != hash_config(*words[:-1])
    assert 0 <= hash_config() < 2**63


def test_a_loss_says_who() -> None:
    assert RankLost("rank 0: gone", [3, 4]).ranks == (3, 4)
    assert RankLost("rank 0: gone").ranks == ()
