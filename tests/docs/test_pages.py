"""Every command and every piece of Python in README and documents is run, page by page, in the order of the page.

``tests/docs/fences.py`` says how a page marks what it needs. What is not run is listed here, with the page's own
reason. ``python -m tests.docs.test_pages`` prints that list as the pages have it.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.docs.fences import Fence, fences, fences_of
from tests.docs.running import Page

FENCES = fences()
NAMED = {
    mark[len("runs:") :].split(" ")[0]: fence for fence in FENCES for mark in fence.marks if mark.startswith("runs:")
}

NOT_RUN = {
    "docs/cli.md": [
        "what there is; each has examples of its own below",
        "up to three minutes and 9 GB",
        "up to a minute",
        "the zoo once more, ten thousand runs, and Ray",
        "all tests; .ci/run does this",
        "gigabytes, and a process for each rank; test_cli_run.py and test_kills.py run small ones",
        "each waits for the other; tests/gpu_backend/test_cli_run.py runs both",
        "each round kills a process and takes two to four seconds",
        "a part of another project's file",
    ],
    "docs/conformance.md": [
        "starts processes; tests/gpu_backend/test_kills.py runs small ones",
        "needs a trace that is refused; tests/sim/test_conform_cli.py makes one",
    ],
    "docs/examples.md": [
        "installs packages; tests/examples/test_encode_scheduler.py runs the program",
        "installs packages; tests/examples/test_own_lifecycle.py runs the program",
    ],
    "docs/explorer.md": ["starts processes; tests/explorer/test_seen.py makes such pages"],
    "docs/mutation.md": ["most of an hour"],
    "docs/performance.md": ["half a minute", "minutes, and a GPU", "a minute", "half a minute each", "minutes"],
    "docs/proof.md": ["tests/sim/test_prove.py does this"],
    "docs/quiescence.md": ["each round kills a process and takes two to four seconds"],
    "docs/run-on-a-gpu.md": ["installs packages", "needs a GPU", "needs a GPU", "needs a GPU"],
    "docs/run-on-several-machines.md": ["needs two machines", "needs two machines"],
    "docs/tutorial.md": [
        "installs packages; .ci/run does this",
        ".ci/run does this",
        "installs a package, and one of the tests fails on purpose",
    ],
    "docs/workers.md": ["installs packages"],
    "docs/write-your-own-lifecycle.md": [
        "tests/examples/test_own_lifecycle.py and tests/sim/test_cli_file.py run such commands"
    ],
    "docs/zoo.md": [".ci/run does this"],
}
"""Every block that is left out, by page: the reasons in order. They say who runs it, where somebody does."""


def left_out() -> dict[str, list[str]]:
    """The same as the pages have it."""
    found: dict[str, list[str]] = {}
    for fence in FENCES:
        why = fence.mark("not run:")
        if why is not None:
            found.setdefault(fence.page, []).append(why)
    return found


@pytest.mark.parametrize("name", list(dict.fromkeys(fence.page for fence in FENCES)))
def test_a_page_runs(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    run_page([fence for fence in FENCES if fence.page == name])


def run_page(blocks: list[Fence]) -> None:
    """Run the blocks of one page in the current directory."""
    page = Page(NAMED)
    try:
        for fence in blocks:
            page.run(fence)
        page.python_is_shown()
    finally:
        page.close()


def test_what_is_not_run_is_listed() -> None:
    """A block cannot be left out by a mark on its page alone."""
    assert left_out() == NOT_RUN


def test_most_blocks_run() -> None:
    runnable = [fence for fence in FENCES if fence.language in ("sh", "python", "toml")]
    assert len(runnable) >= 90
    assert 4 * sum(map(len, NOT_RUN.values())) < len(runnable) + 40


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("```sh\nresumark check --detector flag\n```\n", "a.md:1: resumark check --detector flag: exit code 3"),
        ("<!-- exit: 3, 0 -->\n```sh\nresumark check --detector flag\n```\n", "1 commands, and 2 exit codes"),
        ("```sh\npip install it\n```\n", "a.md:1: no way to run 'pip' here"),
        ("```toml\n[pool]\n```\n", "a.md:1: say what this is"),
        ("```c\nint x;\n```\n", "a.md:1: no way to run a block of 'c'"),
        ("<!-- config:sender -->\n```toml\n[layout]\n```\n", "layout.dim"),
        ("```python\nassert 1 == 2\n```\n", ""),
        ("```python\n1 / 0\n```\n", "division by zero"),
        (
            "```sh\nresumark diagram block\n```\n\n<!-- shown -->\n```text\nstateDiagram-v3\n```\n",
            "a.md:6: 'stateDiagram-v3' is not printed",
        ),
        ("<!-- program -->\n```python\nraise SystemExit(1)\n```\n", "a.md:2: "),
        ("<!-- skip -->\n```sh\nresumark check\n```\n", "a.md: unknown comment 'skip'"),
    ],
)
def test_what_is_wrong_on_a_page_is_seen(
    text: str, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The runner itself, held against what it must see."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(Exception) as caught:
        run_page(fences_of(text, "a.md"))
    assert says in str(caught.value)


def test_output_that_a_page_keeps_to_itself_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    page = "docs/write-your-own-lifecycle.md"
    for text in ("```python\nprint(7)\n```\n", "```python\nprint(7)\n```\n\n```text\n8\n```\n"):
        with pytest.raises(AssertionError, match="7"):
            run_page(fences_of(text, page))
    run_page(fences_of("```python\nprint(7)\n```\n\n```text\n7\n```\n", page))


def test_the_page_of_lifecycles_shows_every_kind_of_refusal_that_it_announces() -> None:
    shown = [fence.text for fence in FENCES if fence.page == "docs/write-your-own-lifecycle.md"]
    assert sum(text.count("- table 'review'") for text in shown) == 11


if __name__ == "__main__":
    import pprint

    pprint.pprint(left_out(), width=110)
