"""How the bytes of a write travel: they land, whether or not anybody still wants them; who learns of it, and when."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fsm.events import Wrote
from sim.flight import Flight
from sim.memory import Header

if TYPE_CHECKING:
    from sim.world import World


def land(world: World, index: int) -> None:
    """The bytes of a write arrive; unless completions come on their own, the sender learns of it at once."""
    flight = world.flights[index]
    put(world, flight)
    if world.scenario.schedule.data_lags_status:
        _replace_flight(world, index, flight._replace(landed=True))
        _notice(world, flight)
    elif not flight.noticed:
        _replace_flight(world, index, flight._replace(landed=True))
    else:
        _end_flight(world, index)
        _tell_sender(world, flight)


def notice(world: World, index: int) -> None:
    """The receiver learns from the write itself that it has ended."""
    flight = world.flights[index]
    _replace_flight(world, index, flight._replace(noticed=True))
    _notice(world, flight)


def _notice(world: World, flight: Flight) -> None:
    grant, rank = flight.grant, flight.grant.receiver_rank
    if world.incarnations[rank] == flight.incarnation:
        world._from_receiver(rank, world.receivers[rank].landed(grant.room, grant.epoch, grant.seq, world.now))


def tell(world: World, index: int) -> None:
    """The sender learns that its write has ended."""
    flight = world.flights[index]
    _replace_flight(world, index, flight._replace(told=True))
    _tell_sender(world, flight)


def vanish(world: World, index: int) -> None:
    """A write of a process that is dead never happens."""
    _end_flight(world, index)


def abandon_flights(world: World, sender: int, boot_id: int) -> None:
    """The process that began these writes is dead, and will not hear of their end."""
    flights = []
    for flight in world.flights:
        if flight.boot_id == boot_id and world.sender_of[flight.grant.receiver_rank] == sender:
            flight = flight._replace(told=True)
        if not flight.over:
            flights.append(flight)
    world.flights = tuple(flights)


def _end_flight(world: World, index: int) -> None:
    world.flights = world.flights[:index] + world.flights[index + 1 :]


def _replace_flight(world: World, index: int, flight: Flight) -> None:
    kept = () if flight.over else (flight,)
    world.flights = world.flights[:index] + kept + world.flights[index + 1 :]


def _tell_sender(world: World, flight: Flight) -> None:
    grant = flight.grant
    rank = world.sender_of[grant.receiver_rank]
    sender = world.senders[rank]
    if sender.boot_id == flight.boot_id:
        world._from_sender(rank, sender.sent(grant.room, grant.epoch, grant.receiver_rank, grant.seq, world.now))


def put(world: World, flight: Flight) -> None:
    """The bytes are in memory."""
    if world.observer is not None:
        world.observer.bytes_land(flight)
    grant = flight.grant
    rank = grant.receiver_rank
    if world.incarnations[rank] != flight.incarnation:
        return  # that memory is gone with its process
    ledger = world.receivers[rank].ledger
    reached = -(-flight.tokens // world.scenario.pool.block_tokens)
    trespass = ""
    for ref in grant.blocks[:reached]:
        if not ledger.may_write(ref, grant.room, grant.epoch, grant.seq):
            record = ledger.record(ref.block)
            trespass = (
                f"a write of room {grant.room} seq {grant.seq} landed in block {ref.block} "
                f"(generation {ref.generation}), which is {record.state} (generation {record.generation})"
                + (f" and belongs to room {record.owner.room} seq {record.owner.seq}" if record.owner else "")
            )
            break
    blocks = [ref.block for ref in grant.blocks]
    header = Header(flight.total_tokens, flight.request + 1) if grant.start == 0 else None
    if world.touched == "sender":
        world.touched = "memory" if world.blind else "all"
    world.memories[rank].write(blocks, flight.request, flight.source_start, flight.tokens, header)
    world._emit(Wrote(rank, grant.room, grant.epoch, grant.seq, grant.start, flight.tokens, trespass))
