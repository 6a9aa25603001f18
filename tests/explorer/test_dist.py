"""What is built of the explorer's script: of these very sources, with its licences. No Node is needed to see that."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from sim.explorer import page

WEB = Path(page.__file__).parent / "web"


def digest_of_sources() -> str:
    """As in ``build.mjs``: the names and contents of all that ``dist`` is made from."""
    files = ["build.mjs", "package-lock.json", *sorted(f"src/{file.name}" for file in (WEB / "src").iterdir())]
    digest = hashlib.sha256()
    for file in files:
        digest.update(file.encode() + b"\0" + (WEB / file).read_bytes() + b"\0")
    return digest.hexdigest()


def test_what_is_built_is_of_these_sources() -> None:
    built = (WEB / "dist" / "sources.sha256").read_text(encoding="utf-8").strip()
    assert built == digest_of_sources(), "cd sim/explorer/web && npm ci && npm run build"


def test_every_bundled_library_has_its_licence() -> None:
    text = (WEB / "dist" / "LICENSES.txt").read_text(encoding="utf-8")
    wanted = json.loads((WEB / "package.json").read_text(encoding="utf-8"))["dependencies"]
    for name, version in wanted.items():
        assert f"{name} {version} (" in text
    assert text.count("Permission") >= len(wanted)


def test_the_lock_file_says_versions_and_no_addresses() -> None:
    lock = json.loads((WEB / "package-lock.json").read_text(encoding="utf-8"))
    assert not [name for name, entry in lock["packages"].items() if "resolved" in entry]
    assert all("integrity" in entry for name, entry in lock["packages"].items() if name)
