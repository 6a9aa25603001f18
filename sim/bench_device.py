"""What exhaustive checking costs on a device: the vector engine on torch, on models whose counts are known.

Time is that on the wall, since a device's work is not the processor's; the first search of all, a small one, is not
counted, because it loads what torch loads when it is first used. What is counted includes everything from the model
to the answer. Two-phase commit must have the states that the literature gives, the protocol model the levels and
transitions that the numpy engine finds, which is measured beside it.
"""

from __future__ import annotations

from dataclasses import replace
from time import perf_counter, process_time

from fsm.errors import LocalError
from sim.bench_check import COMPARED, GIB, LARGE, PROTOCOL, PROTOCOL_QUICK, Say, Timed
from sim.model.form import Model
from sim.model.protocol_bounded import Bounds, bounded
from sim.model.two_phase import STATES, two_phase
from sim.render import Figure
from sim.vector.search import explore
from sim.vector_torch.device import Device
from sim.vector_torch.search import explore_torch

QUICK_MANAGERS = 4
AIM_STATES_PER_S = 100e6
"""What one would like of a GPU of the H200 class."""


def measure_all(device: str, say: Say = None, *, quick: bool = False, large: bool = False) -> dict[str, list[Figure]]:
    """Every figure of a device, as one group whose title names it; see :func:`device_figures`."""
    used = Device(device)
    return {f"exhaustive search of a model on {used.name}": device_figures(device, say, quick=quick, large=large)}


def device_figures(device: str, say: Say = None, *, quick: bool = False, large: bool = False) -> list[Figure]:
    """Figures of a device, each count checked. ``quick``: small models, to see that it works. ``large``: the largest
    one on a processor too, where it takes a minute.

    Raises LocalError where torch or the device is missing, or a count is wrong.
    """
    used = Device(device)
    figures = []
    sizes = [COMPARED, LARGE] if large or used.is_gpu else [COMPARED]
    for managers in [QUICK_MANAGERS] if quick else sizes:
        _tell(say, f"two-phase commit with {managers} managers on {used.name}")
        figures += _two_phase_figures(used, device, managers, aimed=used.is_gpu and managers == LARGE)
    _tell(say, f"a protocol model on {used.name}, and with numpy")
    figures += _protocol_figures(used, device, PROTOCOL_QUICK if quick else PROTOCOL)
    return figures


def _tell(say: Say, text: str) -> None:
    if say is not None:
        say(text)


def timed_on(used: Device, device: str, model: Model) -> Timed:
    """A search on a device. Raises LocalError if it does not come to its end."""
    explore_torch(two_phase(2), device=device)
    started, cpu_s = perf_counter(), process_time()
    result = explore_torch(model, device=device)
    used.synchronize()
    found = Timed(result, process_time() - cpu_s, perf_counter() - started)
    if result.verdict != "holds":
        raise LocalError(f"{model.name} on {used.name}: {result.verdict} ({result.bound}); expected it to hold")
    return found


def _two_phase_figures(used: Device, device: str, managers: int, *, aimed: bool) -> list[Figure]:
    found = timed_on(used, device, two_phase(managers))
    result = found.result
    if result.states != STATES[managers]:
        raise LocalError(
            f"two_phase({managers}) on {used.name}: {result.states:,} states were found, there are {STATES[managers]:,}"
        )
    note = f"{result.states:,} states, {result.transitions:,} transitions, {managers} managers"
    name = f"two-phase commit with {managers} managers, distinct states"
    aim = AIM_STATES_PER_S if aimed else None
    return [
        Figure(name, result.states / found.wall_s, "/s", None, "more", note, aim=aim),
        Figure("the same, time on the wall", found.wall_s, "s"),
        Figure("the same, processor time of the host", found.cpu_s, "s"),
        Figure("runs and buffers at most", result.memory_bytes / GIB, "GiB"),
    ]


def _protocol_figures(used: Device, device: str, bounds: Bounds) -> list[Figure]:
    model = replace(bounded(bounds), symmetry=())
    found = timed_on(used, device, model)
    started = perf_counter()
    numpy_s = explore(model)
    numpy_wall_s = perf_counter() - started
    result = found.result
    if (result.levels, result.transitions) != (numpy_s.levels, numpy_s.transitions):
        raise LocalError(
            f"{model.name} on {used.name}: {result.states:,} states and {result.transitions:,} transitions, with numpy "
            f"{numpy_s.states:,} and {numpy_s.transitions:,}"
        )
    how = ", kernels written for it" if result.bounds["fused"] else ""
    note = f"{result.states:,} states, {result.transitions:,} transitions, {result.bounds['words']} words{how}"
    return [
        Figure("protocol model, distinct states", result.states / found.wall_s, "/s", None, "more", note),
        Figure("the same, time on the wall", found.wall_s, "s"),
        Figure("the same, processor time of the host", found.cpu_s, "s"),
        Figure("the same with numpy, one core", numpy_s.states / numpy_wall_s, "/s", None, "more"),
        Figure("runs and buffers at most", result.memory_bytes / GIB, "GiB"),
    ]
