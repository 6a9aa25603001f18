"""The file: hostile text in the data does no harm, nothing may be loaded, everything is in it; and the script's records
are those of the page."""

from __future__ import annotations

import base64
import hashlib
import re
from html.parser import HTMLParser
from pathlib import Path

import msgspec
import pytest

from fsm.errors import LocalError
from sim.explorer import page as records
from sim.explorer.html import Parts, data_of, html_of, parts
from sim.explorer.page import Mark, Page, Run, Said, Step

WEB = Path(records.__file__).parent / "web"
PARTS = Parts("render(document.getElementById('page'));", "body{margin:0}", "Somebody's <licence> & terms\n")

HOSTILE = (
    "</script><script>alert(1)</script>",
    "<!-- <script>",
    "]]><img src=x onerror=alert(1)>",
    "' onload='alert(1)",
    "\u2028\u2029\x00 & &lt;",
    "</template></noscript></title><base href=//evil>",
)


class Tags(HTMLParser):
    """The elements of a file, and the text of each that holds text alone."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=False)
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[tuple[str, str]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        if self.tags:
            self.texts.append((self.tags[-1][0], data))

    def named(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


def page_with(text: str) -> Page:
    """A page in which every text is that text."""
    step = Step(0, text, text, said=(Said(text, 1, text),))
    run = Run(text, text, "violated", text, ((text, text),), (), (), (), (step,), (Mark("violation", 0, text, text),))
    return Page(records.PAGE_VERSION, text, (run,), {text: text}, ())


def read(data: bytes) -> Tags:
    tags = Tags()
    tags.feed(data.decode())
    return tags


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_text_stays_text(text: str) -> None:
    plain, spoilt = read(html_of(page_with("x"), PARTS)), read(html_of(page_with(text), PARTS))
    assert spoilt.tags == plain.tags


@pytest.mark.parametrize("text", HOSTILE)
def test_the_data_comes_out_as_it_went_in(text: str) -> None:
    document = html_of(page_with(text), PARTS).decode()
    found = re.search(r'<script type="application/json" id="page">(.*?)</script>', document, re.DOTALL)
    assert found is not None
    assert msgspec.json.decode(found[1], type=Page) == page_with(text)
    assert not re.search("[<>&]", data_of(page_with(text)))


def test_only_the_scripts_of_this_file_may_run_and_nothing_is_loaded() -> None:
    tags = read(html_of(page_with("x"), PARTS))
    (policy,) = [meta["content"] for meta in tags.named("meta") if meta.get("http-equiv")]
    assert policy is not None
    rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";"))

    def digest(text: str) -> str:
        return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"

    assert rules["default-src"] == "'none'"
    assert (rules["script-src"], rules["style-src"]) == (digest(PARTS.script), digest(PARTS.style))
    loads = [value for _, attributes in tags.tags for name, value in attributes.items() if name in ("src", "href")]
    assert loads == ["data:,"]


def test_licences_and_a_word_for_those_without_scripts_are_in_it() -> None:
    document = html_of(page_with("what happened"), PARTS).decode()
    assert "Somebody's &lt;licence&gt; &amp; terms" in document
    without = document.split("<noscript>")[1].split("</noscript>")[0]
    assert "needs JavaScript" in without and "what happened" in without


@pytest.mark.parametrize("script", ["a</script>", "if (a <!--b) c"])
def test_a_script_that_would_end_the_page_is_refused(script: str) -> None:
    with pytest.raises(LocalError, match=r"explorer\.js"):
        html_of(page_with("x"), PARTS._replace(script=script))


def test_the_script_that_came_with_the_package_is_whole() -> None:
    script, style, licences = parts()
    assert len(script) > 10_000 and len(style) > 1_000
    for library in ("preact", "dagre", "d3-"):
        assert library in licences


# --- the records, as the script knows them -----------------------------------------------------------------


def interfaces() -> dict[str, list[str]]:
    """The interfaces of ``types.ts`` and the names of their fields, in order."""
    text = re.sub(r"/\*.*?\*/|//[^\n]*", "", (WEB / "src" / "types.ts").read_text(encoding="utf-8"), flags=re.DOTALL)
    found = re.findall(r"export interface (\w+)[^{]*\{(.*?)\n\}", text, re.DOTALL)
    return {name: re.findall(r"^\s*(?:readonly )?(\w+)\??:", body, re.MULTILINE) for name, body in found}


def test_the_script_knows_every_record_field_by_field() -> None:
    told = {
        name: list(kind.__struct_fields__)
        for name, kind in vars(records).items()
        if isinstance(kind, type) and issubclass(kind, msgspec.Struct) and kind is not msgspec.Struct
    }
    known = interfaces()
    assert {name: known.get(name) for name in told} == told
    version = re.search(r"PAGE_VERSION = (\d+)", (WEB / "src" / "types.ts").read_text(encoding="utf-8"))
    assert version is not None and int(version[1]) == records.PAGE_VERSION
