"""The page in a real browser, from a file and without a network: what a reader sees, does, and can hand on."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from sim.explorer.page import PAGE_VERSION
from tests.explorer.kit_browser import (
    FLAGS,
    broken_page,
    browser_path,
    calm_page,
    long_page,
    view_of,
    words,
    write_page,
)

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed (extra 'test')")
if browser_path() is None:
    pytest.skip("no Chromium or Chrome on this machine", allow_module_level=True)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with sync_api.sync_playwright() as play:
        chromium = play.chromium.launch(executable_path=browser_path(), args=FLAGS)
        yield chromium
        chromium.close()


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("pages")
    calm = calm_page()
    pages = {
        "early": broken_page("sent-accumulate"),
        "lost": broken_page("indices-after"),
        "calm": calm,
        "long": long_page(calm, 3000),
        "newer": msgspec.structs.replace(calm, version=PAGE_VERSION + 1),
    }
    return {name: write_page(folder, name, page) for name, page in pages.items()}


def test_the_head_says_what_this_is_and_how_to_make_it_again(browser: Any, files: dict[str, Path]) -> None:
    with view_of(browser, files["early"]) as view:
        head = words(view.page.locator("header.head").inner_text())
        assert "sent-accumulate" in head and "✕ violated I2" in head
        assert "a request that succeeds was delivered whole, each token once, and equal to its source" in head
        again = view.page.locator(".reproduce code").all_inner_texts()
        assert "resumark check --detector sent-accumulate" in again and len(again) == 2, "one for each run"
        assert view.step == 6, "a page opens where it went wrong"


def test_one_sees_which_block_is_read_before_it_is_written(browser: Any, files: dict[str, Path]) -> None:
    """In the head in words, and in the pool in its cell: the row of the block, the column of the step."""
    with view_of(browser, files["early"], "#compare=0") as view:
        line = words(view.page.locator(".alarm-line").inner_text())
        assert "READ BEFORE WRITTEN" in line and "Step 6" in line and "b2 b3 b4 b5" in line
        assert "Nothing is ever written there" in line
        tags = view.page.locator(".drawing .alarm-words", has_text="READ BEFORE WRITTEN")
        assert tags.count() == 4
        cell = view.page.locator(".alarm-cell").first.bounding_box()
        name = view.page.locator(".gutter text", has_text="b2").bounding_box()
        column = view.page.locator(".step-number.now").bounding_box()
        assert cell["y"] < name["y"] + name["height"] / 2 < cell["y"] + cell["height"]
        assert cell["x"] < column["x"] + column["width"] / 2 < cell["x"] + cell["width"]
        tag = tags.first.bounding_box()
        assert tag["y"] + tag["height"] <= 800 and tag["x"] > 0, "seen without scrolling"


def test_steps_by_key_click_slider_and_button(browser: Any, files: dict[str, Path]) -> None:
    with view_of(browser, files["early"], "#compare=0") as view:
        view.press("Home")
        assert view.step == 0
        view.press("ArrowRight", "ArrowDown", "ArrowRight")
        assert view.step == 3 and "current" in view.row(3).get_attribute("class")
        assert "GRANT 0" in view.page.locator(".details").inner_text()
        view.press("ArrowLeft", "ArrowUp")
        assert view.step == 1
        view.press("ArrowUp", "ArrowUp", "ArrowUp")
        assert view.step == 0, "there is nothing before the first step"
        view.row(2).click()
        assert view.step == 2
        view.page.get_by_role("button", name="next step", exact=True).click()
        assert view.step == 3
        view.page.get_by_role("slider").fill("5")
        assert view.step == 5
        view.press("End")
        assert view.step == 6 and view.page.get_by_role("button", name="next step", exact=True).is_disabled()
        assert "Step 6 of 6" in view.page.locator("[aria-live]").inner_text()
        assert view.page.locator(".sequence").get_attribute("aria-activedescendant") == "a-6"


def test_jumps_to_violation_no_return_and_resumes(browser: Any, files: dict[str, Path]) -> None:
    with view_of(browser, files["early"], "#step=3&compare=0") as view:
        view.press("v")
        assert view.step == 6
        view.press("p")
        assert view.step == 0
        view.press("n")
        assert view.step == 6
        assert view.page.get_by_role("button", name="next fault").is_disabled()
    with view_of(browser, files["calm"]) as view:
        for name in ("violation", "no return"):
            assert view.page.get_by_role("button", name=name, exact=True).is_disabled()
        view.press("n")
        first = view.step
        view.press("n")
        assert view.step > first > 0
        view.press("Shift+N")
        assert view.step == first and "resume" in view.page.locator("[aria-live]").inner_text()


def test_a_room_alone(browser: Any, files: dict[str, Path]) -> None:
    with view_of(browser, files["calm"]) as view:
        whole = view.page.locator(".flight").count()
        view.press("/")
        assert view.page.evaluate("document.activeElement.tagName") == "SELECT"
        view.page.locator(".filter select").select_option("2")
        assert view.page.locator(".row.folded").count() > 0
        assert 0 < view.page.locator(".flight").count() < whole
        view.fragment("room=2")
        assert "room 1" not in view.page.locator(".details").inner_text()
        assert view.page.locator(".curve .line-watermark").count() == 2, "one, and one in the key"
        view.page.locator(".filter select").select_option("")
        assert view.page.locator(".row.folded").count() == 0


def test_a_link_leads_to_the_same_place(browser: Any, files: dict[str, Path]) -> None:
    with view_of(browser, files["calm"]) as view:
        view.press("n")
        view.page.locator(".filter select").select_option("1")
        link, step = view.fragment("room=1"), view.step
    with view_of(browser, files["calm"], link) as view:
        assert view.step == step and view.page.locator(".filter select").input_value() == "1"
        view.page.evaluate("location.hash = '#step=2'")
        view.page.wait_for_selector("#a-2.current")
        view.page.evaluate("location.hash = '#step=99999&room=77&take=1.x&from=-1'")
        view.page.wait_for_selector(".where b >> text=/^(?!2$)/")
        last = int(view.page.get_by_role("slider").get_attribute("max"))
        assert view.step == last, "what a link says wrongly is put right"


def test_the_command_is_copied(browser: Any, files: dict[str, Path]) -> None:
    """With the clipboard's interface, and without it as in a file of a strict browser."""
    with view_of(browser, files["early"], "#compare=0") as view:
        view.page.evaluate("document.body.append(document.createElement('textarea'))")
        for clipboard in (True, False):
            if not clipboard:
                view.page.evaluate("Object.defineProperty(navigator, 'clipboard', { value: undefined })")
            view.page.get_by_role("button", name="copy the command").click()
            view.page.wait_for_selector(".copied >> text=copied")
            view.page.locator("textarea").focus()
            view.press("Control+A", "Control+V")
            assert view.page.locator("textarea").input_value() == "resumark check --detector sent-accumulate"
            view.page.locator("textarea").fill("")


def test_two_runs_side_by_side(browser: Any, files: dict[str, Path]) -> None:
    with view_of(browser, files["lost"], "#step=10") as view:
        assert view.page.locator(".compared").count() == 2
        assert "cannot" in view.row(10, "b").inner_text() and "skipped" in view.row(10, "b").get_attribute("class")
        left, right = view.row(10).bounding_box(), view.row(10, "b").bounding_box()
        assert abs(left["y"] - right["y"]) < 2 and left["x"] + left["width"] < right["x"] + 2
        view.press("End")
        assert "only in this run" in words(view.row(view.step, "b").inner_text())
        assert "This run has ended" in view.page.locator("#a-pane").inner_text()
        view.press("c")
        assert view.page.locator(".compared").count() == 0
        alone = view.fragment("compare=0")
        view.press("c")
        assert view.page.locator(".compared").count() == 2
    with view_of(browser, files["lost"], alone) as view:
        assert view.page.locator(".compared").count() == 0
    with view_of(browser, files["lost"], "#step=10&compare=1", width=390) as view:
        assert view.page.locator(".compared:visible").count() == 1
        view.page.get_by_role("button", name="watermark", exact=True).click()
        assert view.row(10, "b").is_visible() and not view.row(10).is_visible()


def test_a_path_of_ones_own(browser: Any, files: dict[str, Path]) -> None:
    """Another choice leaves the recorded run, a link keeps the path, Backspace takes it back."""
    with view_of(browser, files["calm"]) as view:
        while view.page.locator(".choice:not(.taken):not([aria-disabled])").count() == 0:
            view.press("ArrowRight")
        left = view.step
        greyed = view.page.locator(".choice[aria-disabled=true]").first
        greyed.dispatch_event("click")
        assert view.step == left, "what is not possible cannot be taken"
        other = view.page.locator(".choice:not(.taken):not([aria-disabled])").first
        text = other.locator(".text").inner_text()
        other.focus()
        view.press("Enter")
        assert view.step == left + 1
        assert view.page.evaluate("document.activeElement.closest('.choices') !== null"), "the focus stays"
        assert view.page.locator("h1").inner_text() == "watermark: your own path"
        assert f"1 step from step {left}" in words(view.page.locator(".banner").inner_text())
        assert text in words(view.row(left + 1).inner_text())
        view.page.locator(".choice:not([aria-disabled])").first.click()
        assert view.step == left + 2 and "2 steps" in view.page.locator(".banner").inner_text()
        link = view.fragment(rf"from={left}&take=\d+\.\d+$")
        view.press("Backspace")
        assert view.step == left + 1
        view.press("Backspace")
        assert view.step == left and view.page.locator(".banner").count() == 0
    with view_of(browser, files["calm"], link) as view:
        assert view.step == left + 2 and text in words(view.row(left + 1).inner_text())
        view.press("c")
        assert view.page.locator(".compared").count() == 2, "the recorded run can be seen beside it"
        view.page.get_by_role("button", name="back to the recorded run").click()
        assert view.step == left and view.page.locator(".banner").count() == 0
        assert view.page.evaluate("document.activeElement.className") == "sequence", "its button is gone, not the focus"


def test_the_taken_choice_goes_along_the_run(browser: Any, files: dict[str, Path]) -> None:
    with view_of(browser, files["calm"], "#step=0") as view:
        last = int(view.page.get_by_role("slider").get_attribute("max"))
        for step in range(1, 6):
            view.page.locator(".choice.taken").click()
            assert view.step == step and view.page.locator(".banner").count() == 0
        view.press("End")
        assert view.step == last and "ends well" in view.page.locator(".choices").inner_text()
    with view_of(browser, files["early"], "#compare=0") as view:
        assert "I2 is broken here" in view.page.locator(".choices").inner_text()
        blocks = words(view.page.locator(".details").inner_text())
        assert "Free → Granted → Landed → Reading → Free" in blocks, "what a step does to a block is told whole"
        view.press("ArrowLeft")
        assert "breaks I2" in view.page.locator(".choices").inner_text()


GROUND = "getComputedStyle(document.body).backgroundColor"


def test_light_and_dark(browser: Any, files: dict[str, Path]) -> None:
    """As the system says, also if it changes its mind; until the reader says otherwise."""
    with view_of(browser, files["early"], "#compare=0", color_scheme="light") as view:
        light = view.page.evaluate(GROUND)
        view.page.emulate_media(color_scheme="dark")
        view.page.wait_for_function(f"() => {GROUND} !== '{light}'")
        view.press("d")
        view.page.wait_for_function(f"() => {GROUND} === '{light}'")


def test_a_narrow_page_does_not_scroll_sideways(browser: Any, files: dict[str, Path]) -> None:
    wide = "document.documentElement.scrollWidth"
    with view_of(browser, files["early"], width=390) as view:
        assert view.page.evaluate(wide) == 390
    with view_of(browser, files["calm"], width=390) as view:
        view.press("n", "ArrowRight")
        assert view.page.evaluate(wide) == 390
        sequence = view.page.locator(".sequence:visible")
        assert sequence.evaluate("element => element.scrollWidth <= element.clientWidth")


def test_with_the_keyboard_alone(browser: Any, files: dict[str, Path]) -> None:
    """Tab reaches every control, what has the focus shows it, Enter works, and dialogs open and close."""
    with view_of(browser, files["calm"]) as view:
        reached = []
        for _ in range(40):
            view.press("Tab")
            outline, name = view.page.evaluate(
                "[getComputedStyle(document.activeElement).outlineStyle,"
                " document.activeElement.getAttribute('aria-label') || document.activeElement.textContent]"
            )
            if name == reached[:1] or view.page.evaluate("document.activeElement === document.body"):
                break
            assert outline != "none", f"{name} has the focus and does not show it"
            reached.append(name)
        for wanted in ("copy the command", "next step", "next resume", "step", "help: keys"):
            assert wanted in reached
        assert any(name.startswith("steps of") for name in reached)
        view.page.get_by_role("button", name="next step", exact=True).focus()
        view.press("Enter")
        assert view.step == 1
        view.press("?")
        assert view.page.locator("dialog").is_visible()
        explained = view.page.locator("dialog").inner_text()
        for short in ("@8", "[8,16)", "#1", "generation", "seq", "Quarantined", "epoch"):
            assert short in explained
        view.press("ArrowRight")
        assert view.step == 1, "keys belong to the dialog while it is open"
        view.press("Escape")
        assert not view.page.locator("dialog").is_visible()


def test_a_long_run_keeps_few_rows_in_the_document(browser: Any, files: dict[str, Path]) -> None:
    with view_of(browser, files["long"], "#step=1500") as view:
        assert view.row(1500).is_visible() and view.page.locator(".row").count() < 60
        view.press(*["ArrowDown"] * 12)
        assert view.step == 1512 and view.row(1512).is_visible()
        view.press("End")
        view.page.wait_for_selector("#a-2999.current")
        assert view.page.locator("*").count() < 6000


def test_all_of_a_run_is_printed(browser: Any, files: dict[str, Path]) -> None:
    with view_of(browser, files["lost"]) as view:
        rows, steps = view.page.locator("#a-pane .row"), int(view.page.locator("#a-11").get_attribute("aria-setsize"))
        assert rows.count() < steps
        view.page.evaluate("window.dispatchEvent(new Event('beforeprint'))")
        view.page.wait_for_function(f"document.querySelectorAll('#a-pane .row').length === {steps}")
        view.page.emulate_media(media="print")
        assert view.page.locator(".compared:visible").count() == 2 and not view.page.locator(".toolbar").is_visible()
        shown = view.page.locator("#a-pane .sequence").evaluate("e => e.scrollHeight <= e.clientHeight + 1")
        assert shown, "nothing is hidden behind a scroll bar on paper"


def test_other_data_are_refused_in_words(browser: Any, files: dict[str, Path]) -> None:
    with view_of(browser, files["newer"]) as view:
        said = view.page.get_by_role("alert").inner_text()
        assert f"version {PAGE_VERSION + 1}" in said and "resumark explore" in said
        assert any("version" in line for line in view.noise)
        view.noise.clear()
