"""Processes that are ranks: each does what it is told, so that a test can say who does what, and when."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from multiprocessing.connection import Connection
from typing import Any

from fsm.messages import Epoch
from fsm.ranks import Observation, Observed

HANG_S = 120.0
"""Longer than anything here can rightly take; reached only when something hangs."""


def seen(room: int, committed: int = 0, counter: int = 1) -> Observed:
    """What a rank has seen of a room; every field other than the next one."""
    return Observed(room, Epoch(7, counter), room % 2 == 0, 8192, 3, committed, -1, 2)


def observed(rank: int, rooms: Sequence[Observed] = (), blocks: int = 5) -> Observation:
    """What a rank brings to a tick."""
    return Observation(rank, tuple(rooms), blocks + rank, 1000 + rank)


class RankProcess:
    """One process. ``tell`` says what to do, ``result`` waits for what came of it: the value, or the error."""

    def __init__(self) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=serve, args=(theirs,), daemon=True)
        self._process.start()
        theirs.close()

    @property
    def pid(self) -> int:
        assert self._process.pid is not None
        return self._process.pid

    def tell(self, order: str, *arguments: Any, **options: Any) -> RankProcess:
        """Begin to do something (see :class:`Orders`)."""
        self._pipe.send((order, arguments, options))
        return self

    def result(self) -> Any:
        """The value, or ``(kind of error, text, ranks)``."""
        assert self._pipe.poll(HANG_S), "a rank does not come back"
        return self._pipe.recv()

    def ask(self, order: str, *arguments: Any, **options: Any) -> Any:
        """Tell, and wait."""
        return self.tell(order, *arguments, **options).result()

    def kill(self) -> None:
        """End it at once, whatever it is doing."""
        os.kill(self.pid, signal.SIGKILL)
        self._process.join()

    @property
    def alive(self) -> bool:
        return self._process.is_alive()


class Orders:
    """What a rank's process can be told."""

    def __init__(self) -> None:
        import torch

        torch.set_num_threads(1)
        self.group: Any = None
        self.default: Any = None
        self.store: Any = None
        self.gathers: list[tuple[int, ...]] = []

    def offer(self) -> str:
        """Offer a store; its address."""
        from gpu_backend.collective import RankStore

        self.store = RankStore("127.0.0.1:0")
        return str(self.store.address)

    def make(self, *arguments: Any, offered: bool = False, existing: bool = False, **options: Any) -> tuple[int, ...]:
        """Make a group; the boot ids of all ranks."""
        from gpu_backend.collective import RankGroup

        self.close()
        if offered:
            options["store"] = self.store
        if existing:
            options["group"] = self.default
        self.group = RankGroup(*arguments, **options)
        self._count()
        return tuple(self.group.boot_ids)

    def torch_group(self, rank: int, ranks: int, address: str, name: str) -> None:
        """Make a group of ``torch.distributed`` itself, with a timeout that is far too long."""
        import torch.distributed as dist
        from torch.distributed import PrefixStore, TCPStore  # type: ignore[attr-defined]

        host, port = address.split(":")
        store = PrefixStore(name, TCPStore(host, int(port), is_master=False))
        if dist.is_initialized():
            dist.destroy_process_group()
        dist.init_process_group("gloo", store=store, rank=rank, world_size=ranks, timeout=timedelta(seconds=600))
        self.default = dist.group.WORLD

    def torch_sum(self, number: int) -> int:
        """Use that group for something else."""
        import torch
        import torch.distributed as dist

        tensor = torch.tensor([number])
        dist.all_reduce(tensor)
        return int(tensor.item())

    def exchange(self, *observations: Any) -> Any:
        """Exchange these observations, one after the other; what came of the last."""
        for observation in observations:
            result = self.group.exchange(observation)
        return result

    def stumble(self, *observations: Any) -> Any:
        """Exchange, with an error between any two, which is caught, as a worker's loop does."""
        for observation in observations:
            try:
                result = self.group.exchange(observation)
                raise ZeroDivisionError
            except ZeroDivisionError:
                pass
        return result

    def set(self, name: str, value: Any) -> None:
        """Spoil the group."""
        setattr(self.group, name, value)

    def get(self, name: str) -> Any:
        """Look at the group."""
        return getattr(self.group, name)

    def lose(self) -> None:
        """Notice something that nobody else can know, as an interrupt in the middle of an exchange would be."""
        self.group._lose("on its own")

    def rebuild(self, generation: int, **options: Any) -> tuple[int, ...]:
        """Meet again; the boot ids of all ranks."""
        self.group.rebuild(generation, **options)
        self._count()
        return tuple(self.group.boot_ids)

    def close(self) -> None:
        """Leave."""
        if self.group is not None:
            self.group.close()
            self.group = None

    def counted(self) -> list[tuple[int, ...]]:
        """The sizes of all collectives since the group was made or rebuilt."""
        return self.gathers

    def _count(self) -> None:
        self.gathers = []
        if self.group._pg is not None:
            self.group._pg = Counting(self.group._pg, self.gathers)


class Counting:
    """In place of the process group. All that is asked of it goes through this; anything else is an error."""

    def __init__(self, group: Any, gathers: list[tuple[int, ...]]) -> None:
        self._group, self._gathers = group, gathers

    def _allgather_base(self, into: Any, own: Any, options: Any) -> Any:
        self._gathers.append((into.numel(), own.numel()))
        return self._group._allgather_base(into, own, options)


def serve(pipe: Connection) -> None:
    """The life of a rank's process."""
    from fsm.errors import ResumarkError

    orders = Orders()
    while True:
        try:
            order, arguments, options = pipe.recv()
        except EOFError:
            return
        try:
            result = getattr(orders, order)(*arguments, **options)
        except ResumarkError as error:
            result = (type(error).__name__, str(error), getattr(error, "ranks", ()))
            del error
        pipe.send(result)


class Ranks:
    """As many processes as a test needs, kept from test to test; those that were killed are replaced."""

    def __init__(self) -> None:
        self._kept: list[RankProcess] = []

    def take(self, count: int) -> list[RankProcess]:
        """That many processes without a group."""
        self._kept = [rank for rank in self._kept if rank.alive]
        while len(self._kept) < count:
            self._kept.append(RankProcess())
        for rank in self._kept:
            assert rank.ask("close") is None
        return self._kept[:count]

    def fresh(self) -> RankProcess:
        """A process that has never had a group."""
        rank = RankProcess()
        self._kept.append(rank)
        return rank

    def end(self) -> None:
        """Kill all."""
        for rank in self._kept:
            if rank.alive:
                rank.kill()


@contextmanager
def all_ranks() -> Iterator[Ranks]:
    """For a fixture of a module: torch takes seconds to start."""
    ranks = Ranks()
    try:
        yield ranks
    finally:
        ranks.end()


def at_once(ranks: Sequence[RankProcess], order: str, *arguments: Any, **options: Any) -> list[Any]:
    """Tell all ranks the same, and then wait for all."""
    for rank in ranks:
        rank.tell(order, *arguments, **options)
    return [rank.result() for rank in ranks]


def exchange(ranks: Sequence[RankProcess], *observations: Any, order: str = "exchange") -> list[Any]:
    """Let each rank bring its own observation, all at once."""
    for rank, observation in zip(ranks, observations, strict=True):
        rank.tell(order, observation)
    return [rank.result() for rank in ranks]


def form(ranks: Sequence[RankProcess], **options: Any) -> list[Any]:
    """Make a group of all of them; an option that is a list has a value for each."""
    address = ranks[0].ask("offer")
    for number, rank in enumerate(ranks):
        mine = {name: value[number] if isinstance(value, list) else value for name, value in options.items()}
        where: dict[str, Any] = {"offered": True} if number == 0 else {"address": address}
        rank.tell("make", number, len(ranks), **({"boot_id": 100 + number, "timeout_s": 60.0} | where | mine))
    return [rank.result() for rank in ranks]
