"""The registry, ``auto`` and the promises that every transport makes in its traits."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from fsm.errors import LocalError
from gpu_backend import transports
from gpu_backend.layout import make_layout
from gpu_backend.pool import BlockPool, SourcePool
from gpu_backend.transports.base import ReceiverTransport, SenderTransport
from gpu_backend.transports.options import OPTIONS


@pytest.mark.parametrize("name", transports.MODULES)
def test_every_transport_can_be_imported_and_says_what_it_is(name: str) -> None:
    transport = transports.get(name)
    assert transport.traits.name == name
    assert transport.receiver.traits == transport.sender.traits == transport.traits
    assert issubclass(transport.receiver, ReceiverTransport)
    assert issubclass(transport.sender, SenderTransport)
    assert set(transport.traits.devices) <= {"cpu", "cuda"} and transport.traits.devices
    why = transport.absent()
    assert why is None or why.strip()


@pytest.mark.parametrize("name", transports.MODULES)
def test_every_transport_says_how_it_proves_that_nothing_is_outstanding(name: str) -> None:
    # The documents print this; one or two whole sentences.
    proof = transports.get(name).traits.proof
    assert proof.endswith(".") and 20 < len(proof) < 500 and "\n" not in proof


def test_importing_the_package_needs_no_library_of_any_transport() -> None:
    code = (
        "import sys; sys.modules.update(dict.fromkeys(['nixl', 'nixl_cu12', 'nixl_cu13', 'zmq']))\n"
        "from gpu_backend import transports\n"
        "assert 'torch' not in sys.modules and 'gpu_backend.transports.nixl' not in sys.modules\n"
        "from gpu_backend.transports import nixl, cuda_ipc, in_process\n"
        "why = transports.available()['nixl']\n"
        "assert 'cannot be imported' in why, why\n"
        "name, text = transports.auto('cpu')\n"
        "assert name == 'gloo' and why in text, text\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_an_unknown_name_is_refused_with_the_known_ones() -> None:
    for call in (transports.get, transports.absent):
        with pytest.raises(LocalError, match=r"'carrier-pigeon'.*nixl.*gloo"):
            call("carrier-pigeon")


@pytest.fixture
def presence(monkeypatch: pytest.MonkeyPatch) -> dict[str, str | None]:
    """What ``absent`` says, as a test sets it."""
    said: dict[str, str | None] = dict.fromkeys(transports.MODULES)
    monkeypatch.setattr(transports, "absent", lambda name: said[name])
    return said


def test_auto_takes_the_best_that_is_there_and_says_why_not_a_better_one(presence: dict[str, str | None]) -> None:
    assert transports.auto("cuda:1")[0] == "nixl"
    assert transports.auto("cpu")[0] == "nixl"
    presence["nixl"] = "no wheel"
    name, why = transports.auto("cpu")
    assert name == "gloo" and "nixl (no wheel)" in why
    assert transports.auto("cuda")[0] == "cuda-ipc"
    presence["cuda-ipc"] = "no device"
    name, why = transports.auto("cuda")
    assert name == "nccl" and "nixl (no wheel)" in why and "cuda-ipc (no device)" in why


def test_auto_with_nothing_there_names_every_reason(presence: dict[str, str | None]) -> None:
    presence.update({"nixl": "no wheel", "gloo": "no torch"})
    with pytest.raises(LocalError, match=r"no wheel.*no torch"):
        transports.auto("cpu")
    with pytest.raises(LocalError, match="'meta'"):
        transports.auto("meta")


def test_a_module_that_cannot_be_imported_is_absent_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(transports.MODULES, "gloo", "gpu_backend.transports.no_such_module")
    assert "no_such_module" in (transports.available()["gloo"] or "")


def test_a_side_is_not_made_where_it_cannot_run() -> None:
    layout = make_layout(4, 8)
    pool, source = BlockPool(layout, 1), SourcePool(layout, 1)
    for name in ("cuda-ipc", "nccl"):
        with pytest.raises(LocalError, match=name):
            transports.make_receiver(name, pool, rank=0, boot_id=1)
        with pytest.raises(LocalError, match=name):
            transports.make_sender(name, source, rank=0, boot_id=1)
    with pytest.raises(LocalError, match="fabric"):
        transports.make_receiver("in-process", pool, rank=0, boot_id=1)
    with pytest.raises(LocalError, match=r"nothing|expected"):
        transports.make_sender("none", source, rank=0, boot_id=1)


def test_check_refuses_a_pool_on_the_wrong_kind_of_device() -> None:
    with pytest.raises(LocalError, match="'cuda:0'"):
        transports.check("gloo", "cuda:0")


def test_options_are_judged_by_the_transport_that_auto_chose() -> None:
    """What the chosen one does not read would do nothing, so it is refused where the side is made."""
    pool = SourcePool(make_layout(16, 8), 2, huge_pages=False)
    name = transports.auto("cpu")[0]
    for chosen in ("auto", name):
        with pytest.raises(LocalError, match=rf"transport\.options\.slice_byte: not an option of {name}"):
            transports.make_sender(chosen, pool, rank=0, boot_id=1, options={"slice_byte": 3})
    pool.close()


def test_the_table_of_options_has_every_option_that_a_module_reads() -> None:
    """One that is read and not named there could never be given."""
    known = {option.name for option in OPTIONS}
    folder = Path(transports.__file__).parent
    read = set()
    for file in folder.glob("*.py"):
        read |= set(re.findall(r'(?:options\.get\(|positive(?:_option)?\(options, )"(\w+)"', file.read_text()))
    assert read == known
