"""What the documents point at must be there: links, headings, files, and names in the code.

And none of them may know the machine that it was written on.
"""

from __future__ import annotations

import importlib
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
NAMES = [document.relative_to(ROOT).as_posix() for document in DOCUMENTS]

FOLDERS = ("fsm", "sim", "gpu_backend", "tests", "docs", "examples", ".ci")

LINK = re.compile(r"(?<!!)\[[^\]]*\]\(([^)\s]+)\)")
FENCE = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)
CODE = re.compile(r"`([^`\n]+)`")
HEADING = re.compile(r"^#+ +(.+?) *$", re.MULTILINE)
# Two parts at least, so that a fraction or an "and/or" is none; not the rest of a URL or of a relative path.
ABSOLUTE = re.compile(r"(?<![\w.:/<*-])(?:/[A-Za-z_][\w.-]*){2,}|\b[A-Za-z]:\\\\?\w|(?<!\w)~/\w|file:/")

# What every Linux has, and a configuration may well name.
EVERYWHERE = ("/dev/shm", "/var/tmp", "/proc/")

every_document = pytest.mark.parametrize("document", DOCUMENTS, ids=NAMES)


def prose(document: Path) -> str:
    """The text without fenced blocks, which show commands and output."""
    return FENCE.sub("", document.read_text(encoding="utf-8"))


def anchors(document: Path) -> list[str]:
    """What a link may name after the ``#``, as it is made from headings."""
    headings = HEADING.findall(prose(document))
    return [re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings]


def code_spans(document: Path) -> list[str]:
    return CODE.findall(prose(document))


@every_document
def test_links_lead_somewhere(document: Path) -> None:
    broken = []
    for target in LINK.findall(prose(document)):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        file = (document.parent / path).resolve() if path else document
        if not file.is_relative_to(ROOT) or not file.exists() or (anchor and anchor not in anchors(file)):
            broken.append(target)
    assert not broken


@every_document
def test_named_files_exist(document: Path) -> None:
    missing = []
    for span in code_spans(document):
        first = span.split("/")[0]
        if "/" in span and first in FOLDERS and " " not in span:
            if not any(ROOT.glob(span.rstrip("/"))):
                missing.append(span)
        elif re.fullmatch(r"[\w*]+\.py", span) and not any(
            any((ROOT / folder).rglob(span)) for folder in FOLDERS
        ):
            missing.append(span)
    assert not missing


@every_document
def test_named_things_in_the_code_exist(document: Path) -> None:
    """``fsm.messages.decode``: as much of it as is a module is imported, and the rest looked up in it."""
    missing = []
    for span in code_spans(document):
        parts = re.fullmatch(r"((?:fsm|sim|gpu_backend)(?:\.\w+)+)(?:\(.*\))?", span)
        if parts is not None and not _resolves(parts.group(1)):
            missing.append(span)
    assert not missing


def _resolves(name: str) -> bool:
    parts = name.split(".")
    for end in range(len(parts), 0, -1):
        try:
            found: object = importlib.import_module(".".join(parts[:end]))
        except ModuleNotFoundError:
            continue
        for attribute in parts[end:]:
            if not hasattr(found, attribute):
                return False
            found = getattr(found, attribute)
        return True
    return False


@every_document
def test_no_path_of_a_machine(document: Path) -> None:
    text = re.sub(r"https?://\S+", "", document.read_text(encoding="utf-8"))
    assert not [found.group() for found in ABSOLUTE.finditer(text) if not found.group().startswith(EVERYWHERE)]


def test_the_readme_leads_to_every_document() -> None:
    linked = [target.partition("#")[0] for target in LINK.findall(prose(ROOT / "README.md"))]
    assert [name for name in NAMES if name != "README.md" and name not in linked] == []


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("see /home/someone/x", True),
        ("C:\\Users", True),
        ("in ~/src", True),
        ("file:///x", True),
        ("and/or/neither, 1/2, sim/engines/check.py, ../a/b", False),
        ("https://example.org/a/b", False),
        ("probes /health", False),
    ],
)
def test_the_search_for_paths_sees_them(text: str, found: bool) -> None:
    assert bool(ABSOLUTE.search(re.sub(r"https?://\S+", "", text))) is found
