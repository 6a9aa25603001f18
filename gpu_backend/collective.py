"""What all ranks of a receiver agree on: one gather for each tick, and a lost rank is noticed by all.

Every rank brings its :class:`~fsm.ranks.Observation` to :meth:`RankGroup.exchange` and gets back those of all
ranks, in rank order. What follows from them is decided in :mod:`fsm`, by every rank for itself and alike.

**One gather, always the same.** Ranks that enter different collectives hang or mix up their data. So a tick is
exactly one ``all_gather`` of fixed size, whatever a rank has to say, and nothing local decides whether or how it is
made. A rank with more news than fit in keeps the rest for the next tick. A rank that cannot put its observation
into words still takes part, and says so. The counter of ticks lives here and not at the caller, so that an error
which the caller survives between two exchanges moves nothing.

**Lost.** Each contribution names its tick, the rank's ``boot_id`` and the hash of its configuration. If one of them
is not as expected, if a rank has ended or does not come within ``timeout_s``, :class:`RankLost` is raised: on all
ranks, since they gather the same words, and since a rank that has raised it closes its connections, which the
others notice. A rank may still have got through a tick that another did not; it learns of the loss at the next
one. Afterwards the caller fails its requests, and :meth:`RankGroup.rebuild` meets the others anew.

**Meeting.** The ranks meet in a key-value store that rank 0 offers. They need not know of each other's restarts:
each draws a ticket and shows it for as long as it waits, and rank 0 calls all of them together as soon as every
rank shows one. So a rank that was restarted, ranks that gave up waiting at different times, and a rank 0 that offers
a new store, find each other by trying again.

Transport is gloo over TCP, in a group of its own: control and data never share a communicator, and the default
group of ``torch.distributed`` is neither needed nor touched. gloo knows neither keys nor encryption, so that an
address which others can reach needs ``insecure=True``. A group of one rank needs nothing of all this, and torch is
not even imported.
"""

from __future__ import annotations

import hashlib
import itertools
import socket
import time
from collections.abc import Iterable, Sequence
from datetime import timedelta
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from fsm.errors import LocalError, ResumarkError
from fsm.messages import Epoch
from fsm.ranks import Observation, Observed
from gpu_backend.addresses import is_loopback, split_host_port
from gpu_backend.process import Owner

if TYPE_CHECKING:
    from torch._C._distributed_c10d import Store, TCPStore
    from torch.distributed import ProcessGroup

ROWS_MAX: Final = 512
"""The most requests that one rank can report in one tick, unless the group says otherwise."""

_MAGIC: Final = 0x5265_7375_6D61_0001
"""Says that these words are ours, and their version."""

_ROW_WORDS: Final = 9
# The words of a contribution before its rows.
_HEADER_WORDS: Final = 10
_H_MAGIC, _H_RANK, _H_TICK, _H_BOOT, _H_CONFIG, _H_BLOCKS, _H_TOKENS, _H_ROWS, _H_FAULT, _H_WAITING = range(10)
# The words with which a rank introduces itself to a new group.
_INTRO_NAMES: Final = ("protocol", "number of ranks", "rows_max", "config_hash", "generation")
_INTRO_WORDS: Final = len(_INTRO_NAMES) + 2

_TICKET_S: Final = 0.002
"""How often a ticket is shown, and looked for."""

_STORE_S: Final = 0.05
"""How long until a store that went away is looked for again."""

_INT64_MAX: Final = 2**63 - 1

Words = NDArray[np.int64]


class RankLost(ResumarkError):
    """The ranks are no longer in step; this group is over. ``ranks`` are those known to be at fault."""

    def __init__(self, text: str, ranks: Iterable[int] = ()) -> None:
        super().__init__(text)
        self.ranks = tuple(ranks)


def hash_config(*words: object) -> int:
    """A number for whatever all ranks must have alike: the same in every process, from 0 up to 2**63 - 1."""
    digest = hashlib.blake2b(repr(words).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") & _INT64_MAX


class RankStore:
    """The store in which ranks meet, offered by rank 0 at ``address``, ``host:port``; port 0 takes a free one.

    Make it before the group where the port is not known beforehand, hand ``address`` to the other ranks, and give
    the store itself to rank 0's group. Raises :class:`LocalError` if the address cannot be listened at, or others
    can reach it and ``insecure`` is not said.
    """

    def __init__(self, address: str, *, timeout_s: float = 10.0, insecure: bool = False) -> None:
        host, port = _checked_address(address, insecure)
        from torch._C._distributed_c10d import TCPStore

        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        try:
            # A socket of our own: the store itself would listen on all interfaces.
            listener = socket.create_server((host, port), family=family, backlog=128)
        except OSError as error:
            raise LocalError(f"address={address!r}: cannot listen there: {error}") from error
        port = listener.getsockname()[1]
        self.address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        self.store: TCPStore | None = TCPStore(
            host, port, is_master=True, wait_for_workers=False, use_libuv=True, master_listen_fd=listener.detach(),
            timeout=timedelta(seconds=timeout_s),
        )  # fmt: skip

    def close(self) -> None:
        """Stop listening; the ranks that are connected lose their connection."""
        self.store = None


class RankGroup:
    """One rank's membership in the group of all ranks of a receiver. Making it waits for the others.

    ``address`` is where the ranks meet: rank 0 listens there, the others connect. Instead, ``store`` may be a
    :class:`RankStore` or any ``torch.distributed`` store that all ranks share, or ``group`` an existing gloo
    process group of the same ranks, which is then never closed here. With ``ranks=1`` none of them is needed.
    ``boot_id`` is this process's own; ``config_hash`` (see :func:`hash_config`), ``rows_max`` and ``generation``
    must be the same on all ranks. No call waits longer than about ``timeout_s``.

    Raises :class:`LocalError` for a wrong argument, :class:`RankLost` if the ranks do not come together in time,
    or differ.
    """

    def __init__(
        self,
        rank: int,
        ranks: int,
        *,
        boot_id: int,
        config_hash: int = 0,
        address: str = "",
        store: RankStore | Store | None = None,
        group: ProcessGroup | None = None,
        timeout_s: float = 10.0,
        rows_max: int = ROWS_MAX,
        generation: int = 0,
        insecure: bool = False,
    ) -> None:
        _check_numbers(rank, ranks, boot_id, config_hash, timeout_s, rows_max)
        if ranks > 1 and bool(address) + (store is not None) + (group is not None) != 1:
            raise LocalError(f"{ranks} ranks need exactly one of address, store and group to come together")
        if address and _checked_address(address, insecure)[1] == 0 and ranks > 1:
            raise LocalError(
                f"address={address!r}: the others cannot know a port that is chosen later: make a RankStore with that "
                f"address in rank 0, give it as store there, and its own address to the others"
            )
        self.rank, self.ranks = rank, ranks
        self.config_hash, self.rows_max, self.timeout_s = config_hash, rows_max, timeout_s
        self.generation = generation
        self.own_boot_id = boot_id
        self.boot_ids: tuple[int, ...] = (boot_id,)
        """Those of all ranks, in rank order."""
        self.ticks = 0
        """Exchanges completed in this group."""
        self._owner = Owner(f"the rank group of rank {rank}")
        self._insecure, self._given_group = insecure, group
        self._address = store.address if isinstance(store, RankStore) else address
        self._given_store: Any = store.store if isinstance(store, RankStore) else store
        self._store: Any = self._given_store
        self._offered: RankStore | None = None
        self._pg: Any = None
        self._waiting: dict[int, Observed] = {}
        self._lost = ""
        if ranks > 1:
            self._words = _HEADER_WORDS + _ROW_WORDS * rows_max
            self._own: Words = np.zeros(self._words, np.int64)
            self._all: Words = np.zeros((ranks, self._words), np.int64)
            try:
                self._form()
            except BaseException:
                self.close()
                raise

    @property
    def boot_id(self) -> int:
        """The largest ``boot_id`` of all ranks: one that every rank can take on, since it is not older than its own."""
        return max(self.boot_ids)

    @property
    def waiting(self) -> int:
        """Rows that did not fit into the last exchange."""
        return len(self._waiting)

    # A tick ---------------------------------------------------------------------------------------------

    def exchange(self, observation: Observation) -> tuple[Observation, ...]:
        """Give this rank's observation, and get those of all ranks in rank order. Waits at most ``timeout_s``.

        The own one comes back as it was sent: rows beyond ``rows_max`` wait for the next tick, where newer rows of
        the same rooms take their place. Raises :class:`RankLost` when the ranks are not in step, at every later
        call as well until :meth:`rebuild`.
        """
        self._owner.check()
        if self.ranks == 1:
            self.ticks += 1
            return (observation,)
        if self._lost:
            raise RankLost(f"the group was lost before: {self._lost}")
        fault = self._fill(observation)
        try:
            self._gather(self._all, self._own)
        except RuntimeError as error:
            raise self._lose(f"tick {self.ticks}: {_first_line(error)}") from error
        except BaseException:
            self._lose("interrupted in the middle of an exchange")
            raise
        headers: list[list[int]] = self._all[:, :_HEADER_WORDS].tolist()
        at_fault = {rank: text for rank, header in enumerate(headers) if (text := self._objection(rank, header))}
        if at_fault:
            text = "; ".join(f"rank {rank} {text}" for rank, text in at_fault.items())
            raise self._lose(f"tick {self.ticks}: {text}", at_fault) from fault
        self.ticks += 1
        return tuple(self._observation(rank, header) for rank, header in enumerate(headers))

    def _fill(self, observation: Observation) -> Exception | None:
        """Write the own contribution. An error does not keep this rank from taking part: it is said, and returned."""
        own = self._own
        own[:_HEADER_WORDS] = 0
        own[_H_MAGIC], own[_H_RANK], own[_H_TICK] = _MAGIC, self.rank, self.ticks
        own[_H_BOOT], own[_H_CONFIG] = self.own_boot_id, self.config_hash
        try:
            if observation.rank != self.rank:
                raise LocalError(f"observation.rank={observation.rank}: expected that of this group, {self.rank}")
            # A room that waits already keeps its place, and its row becomes the newer one.
            self._waiting.update((seen.room, seen) for seen in observation.rooms)
            rooms = list(itertools.islice(self._waiting, self.rows_max))
            sent = map(self._waiting.__getitem__, rooms)
            words = itertools.chain.from_iterable((seen[0], *seen[1], *seen[2:]) for seen in sent)
            end = _HEADER_WORDS + _ROW_WORDS * len(rooms)
            own[_HEADER_WORDS:end] = np.fromiter(words, np.int64, _ROW_WORDS * len(rooms))
            own[_H_BLOCKS], own[_H_TOKENS] = observation.free_blocks, observation.free_result_tokens
            for room in rooms:
                del self._waiting[room]
            own[_H_ROWS], own[_H_WAITING] = len(rooms), len(self._waiting)
        except Exception as error:
            own[_H_FAULT] = 1
            return error
        return None

    def _objection(self, rank: int, header: Sequence[int]) -> str:
        """Why this rank is not in step; empty if it is."""
        if header[_H_MAGIC] != _MAGIC or header[_H_RANK] != rank:
            return "sent something that is no observation of its own"
        if header[_H_TICK] != self.ticks:
            return f"is at tick {header[_H_TICK]}"
        if header[_H_BOOT] != self.boot_ids[rank]:
            return f"has boot_id {header[_H_BOOT]}, and had {self.boot_ids[rank]}"
        if header[_H_CONFIG] != self.config_hash:
            return f"has another configuration (hash {header[_H_CONFIG]:016x}, not {self.config_hash:016x})"
        if header[_H_FAULT]:
            return "could not put its observation into words"
        if not 0 <= header[_H_ROWS] <= self.rows_max:
            return f"sent {header[_H_ROWS]} rows"
        return ""

    def _observation(self, rank: int, header: Sequence[int]) -> Observation:
        end = _HEADER_WORDS + _ROW_WORDS * header[_H_ROWS]
        columns = self._all[rank, _HEADER_WORDS:end].reshape(-1, _ROW_WORDS).T.tolist()
        room, boot_id, counter, registered, *others = columns
        rows = tuple(map(Observed, room, map(Epoch, boot_id, counter), map(bool, registered), *others))
        return Observation(rank, rows, header[_H_BLOCKS], header[_H_TOKENS])

    def _gather(self, into: Words, own: Words) -> None:
        """THE collective: ``into[rank]`` becomes that rank's ``own``. RuntimeError from gloo if not all took part."""
        import torch
        from torch._C._distributed_c10d import AllgatherOptions

        options = AllgatherOptions()
        options.timeout = timedelta(seconds=self.timeout_s)
        self._pg._allgather_base(torch.from_numpy(into.reshape(-1)), torch.from_numpy(own), options).wait()

    def _lose(self, text: str, ranks: Iterable[int] = ()) -> RankLost:
        """End the group. Closing the connections is what tells the others."""
        self._lost = text
        self._pg = None
        return RankLost(f"rank {self.rank}: {text}", ranks)

    # Coming together ------------------------------------------------------------------------------------

    def rebuild(self, generation: int, *, boot_id: int | None = None, group: ProcessGroup | None = None) -> None:
        """Meet the others again after :class:`RankLost`; every rank calls this, a restarted one makes a new group.

        ``generation`` must be the same on all ranks. ``boot_id`` is what this process is called from now on. A group
        that was made from an existing process group needs a new ``group``. What was waiting is forgotten, and ticks
        count from 0. Raises :class:`RankLost` if the ranks do not come together in time; call it again then.
        """
        self._owner.check()
        if (group is None) != (self._given_group is None):
            raise LocalError("rebuild: give a new process group exactly where the first one was given as well")
        if boot_id is not None:
            _check_numbers(self.rank, self.ranks, boot_id, self.config_hash, self.timeout_s, self.rows_max)
            self.own_boot_id = boot_id
        self._given_group = group
        self.generation = generation
        self._pg = None
        self._waiting.clear()
        self.ticks = 0
        self.boot_ids = (self.own_boot_id,)
        if self.ranks > 1:
            self._form()

    def _form(self) -> None:
        deadline_s = time.monotonic() + self.timeout_s
        try:
            self._pg = self._backend_of_given() if self._given_group is not None else self._meet(deadline_s)
            self._introduce()
            self._lost = ""
        except RankLost:
            raise
        except RuntimeError as error:
            raise self._lose(f"the {self.ranks} ranks did not come together: {_first_line(error)}") from error
        except BaseException:
            self._lose("interrupted while the ranks were coming together")
            raise

    def _backend_of_given(self) -> Any:
        import torch

        group: Any = self._given_group
        if (group.rank(), group.size()) != (self.rank, self.ranks):
            raise LocalError(
                f"group: this is rank {group.rank()} of {group.size()} there: expected {self.rank} of {self.ranks}"
            )
        try:
            backend = group._get_backend(torch.device("cpu"))
            name = backend.name()
        except RuntimeError as error:
            raise LocalError(f"group: it has no backend for the CPU: {_first_line(error)}") from error
        if name != "gloo":
            raise LocalError(f"group: its backend for the CPU is {name}: expected gloo")
        return backend

    def _meet(self, deadline_s: float) -> Any:
        """Form a new process group in the store. RuntimeError if it could not be done before the deadline."""
        while True:
            try:
                store = self._store if self._store is not None else self._open_store(deadline_s)
                number = self._call_all(store, deadline_s) if self.rank == 0 else self._be_called(store, deadline_s)
                break
            except RuntimeError:
                # The store went away with an earlier rank 0, perhaps; a new one may be coming.
                if self._given_store is not None or self.rank == 0 or time.monotonic() + _STORE_S >= deadline_s:
                    raise
                self._store = None
                time.sleep(_STORE_S)
        return self._make_group(store, number, deadline_s)

    def _open_store(self, deadline_s: float) -> Any:
        from torch._C._distributed_c10d import TCPStore

        if self.rank == 0:
            self._offered = RankStore(self._address, timeout_s=self.timeout_s, insecure=self._insecure)
            self._store = self._offered.store
        else:
            host, port = split_host_port("address", self._address)
            if port == 0:
                raise LocalError(
                    "address: port 0 means any free one, which only rank 0 can choose; hand its address on"
                )
            self._store = TCPStore(host, port, is_master=False, timeout=_left(deadline_s))
        return self._store

    def _be_called(self, store: Any, deadline_s: float) -> int:
        """Draw a ticket, and show that somebody holds it, until rank 0 calls it; the number of the new group."""
        ticket = f"{self.rank}/{int(store.add(f'tickets/{self.rank}', 1))}"
        while not store.check([f"call/{ticket}"]):
            if time.monotonic() >= deadline_s:
                raise self._lose(f"not called by rank 0 within {self.timeout_s} s", [0])
            store.add(f"held/{ticket}", 1)
            time.sleep(_TICKET_S)
        return int(store.get(f"call/{ticket}"))

    def _call_all(self, store: Any, deadline_s: float) -> int:
        """Wait until every other rank holds a ticket, which it shows by going on to say so, and call them."""
        first: dict[str, int] = {}
        while True:
            tickets = {rank: f"{rank}/{int(store.add(f'tickets/{rank}', 0))}" for rank in range(1, self.ranks)}
            missing = []
            for rank, ticket in tickets.items():
                held = int(store.add(f"held/{ticket}", 0))
                if held <= first.setdefault(ticket, held):
                    missing.append(rank)
            if not missing:
                break
            if time.monotonic() >= deadline_s:
                raise self._lose(f"no word from ranks {missing} within {self.timeout_s} s", missing)
            time.sleep(_TICKET_S)
        number = int(store.add("groups", 1))
        for ticket in tickets.values():
            store.set(f"call/{ticket}", str(number))
        return number

    def _make_group(self, store: Any, number: int, deadline_s: float) -> Any:
        from torch._C._distributed_c10d import PrefixStore, ProcessGroupGloo

        backend: Any = ProcessGroupGloo
        options = backend._Options()
        options._timeout = _left(deadline_s)
        host = split_host_port("address", self._address)[0] if self._address else ""
        if is_loopback(host):
            options._devices = [backend.create_device(hostname="127.0.0.1" if host == "localhost" else host)]
        else:
            options._devices = [backend.create_default_device()]
        return backend(PrefixStore(f"group/{number}", store), self.rank, self.ranks, options)

    def _introduce(self) -> None:
        """One gather of a fixed size in which all ranks tell what must be equal, before sizes depend on it."""
        mine = (_MAGIC, self.ranks, self.rows_max, self.config_hash, self.generation)
        own = np.array([*mine, self.rank, self.own_boot_id], np.int64)
        words: Words = np.zeros((self.ranks, _INTRO_WORDS), np.int64)
        self._gather(words, own)
        told = words.tolist()
        at_fault: dict[int, str] = {}
        for rank, theirs in enumerate(told):
            differ = [
                f"{name} {value}, not {expected}"
                for name, value, expected in zip(_INTRO_NAMES, theirs, mine, strict=False)
                if value != expected
            ]
            if theirs[-2] != rank:
                differ.append(f"rank {theirs[-2]}")
            if differ:
                at_fault[rank] = ", ".join(differ)
        if at_fault:
            text = "; ".join(f"rank {rank} has {text}" for rank, text in at_fault.items())
            raise self._lose(text, at_fault)
        self.boot_ids = tuple(row[-1] for row in told)

    # The end --------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Leave the group, which the others notice at their next exchange; a second call does nothing."""
        if self._owner.closed:
            return
        self._owner.check()
        self._owner.closed = True
        self._pg = None
        self._store = None
        if self._offered is not None:
            self._offered.close()

    def __enter__(self) -> RankGroup:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _left(deadline_s: float) -> timedelta:
    """What is left until the deadline: at least a moment, since 0 means "for ever" in some places."""
    return timedelta(seconds=max(0.01, deadline_s - time.monotonic()))


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n", 1)[0][:300]


def _checked_address(address: str, insecure: bool) -> tuple[str, int]:
    host, port = split_host_port("address", address)
    if not is_loopback(host) and not insecure:
        raise LocalError(
            f"address={address!r} can be reached by others, and the ranks' agreement has neither keys nor encryption: "
            f"use a loopback address such as 127.0.0.1:0, or say insecure=True if everybody who can reach it is trusted"
        )
    return host, port


def _check_numbers(rank: int, ranks: int, boot_id: int, config_hash: int, timeout_s: float, rows_max: int) -> None:
    if ranks < 1 or not 0 <= rank < ranks:
        raise LocalError(f"rank={rank}, ranks={ranks}: expected 0 <= rank < ranks")
    if not 1 <= boot_id <= _INT64_MAX:
        raise LocalError(f"boot_id={boot_id}: expected 1 up to 2**63 - 1")
    if not 0 <= config_hash <= _INT64_MAX:
        raise LocalError(f"config_hash={config_hash}: expected 0 up to 2**63 - 1; hash_config() makes one")
    if timeout_s <= 0:
        raise LocalError(f"timeout_s={timeout_s}: expected more than 0 seconds")
    if rows_max < 1:
        raise LocalError(f"rows_max={rows_max}: expected 1 or more")
