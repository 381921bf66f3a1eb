"""The browser that tests of pages use tells a good page from a bad one."""

from __future__ import annotations

import io
import shutil
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import chromium
import pytest
from PIL import Image

GOOD = """<!doctype html><html lang="en"><meta charset="utf-8"><title>Good</title>
<style>body { margin: 8px } @media (prefers-color-scheme: dark) { body { background: #000 } }
@media print { p { display: none } }</style>
<body><h1>Kräfte</h1><p id="p">0.5 kcal/mol</p>
<div style="height: 3000px"></div><b style="background: #f00; color: #f00">end</b></body></html>"""


def with_script(script: str) -> str:
    return GOOD.replace("</body>", f"<script>{script}</script></body>")


def test_a_good_page_has_no_errors_and_can_be_read(browser: chromium.Browser) -> None:
    with browser.page(GOOD) as page:
        assert page.errors == [] and page.requests == []
        assert page.text.split("\n")[0] == "Kräfte"
        assert page.evaluate("document.title") == "Good"
        assert page.evaluate("Promise.resolve({a: [1, null, 'x']})") == {"a": [1, None, "x"]}
        assert not chromium.blank(page.screenshot())
    assert "Chrom" in browser.version


@pytest.mark.parametrize(
    ("script", "words"),
    [
        ("console.error('no such frame', 3, {a: 1})", "no such frame 3 Object"),
        ("console.assert(1 === 2, 'unequal')", "unequal"),
        ("nothing.there()", "ReferenceError: nothing is not defined"),
        ("Promise.reject(new Error('lost'))", "Error: lost"),
        ("setTimeout(() => { throw 'late' }, 0)", "late"),
        ("let x = ;", "SyntaxError"),
        ("document.body.append(Object.assign(new Image(), {src: 'gone.png'}))", "gone.png"),
    ],
)
def test_errors_of_a_page_are_told(browser: chromium.Browser, script: str, words: str) -> None:
    with browser.page(with_script(script)) as page:
        assert len(page.errors) == 1
        assert words in page.errors[0]


def test_warnings_and_logs_are_no_errors(browser: chromium.Browser) -> None:
    with browser.page(with_script("console.log('a'); console.warn('b')")) as page:
        assert page.errors == []


def test_an_error_that_comes_later_is_told_at_the_next_command(browser: chromium.Browser) -> None:
    with browser.page(GOOD.replace("<p ", "<p onclick='gone()' ")) as page:
        assert page.errors == []
        page.evaluate("document.getElementById('p').click()")
        assert "gone is not defined" in page.errors[0]


def test_what_a_page_asks_for_is_told_and_no_network_is_reached(browser: chromium.Browser) -> None:
    elsewhere = "http://example.org/plot.js"
    page_text = GOOD.replace("<body>", f'<body><script src="{elsewhere}"></script>')
    with browser.page(page_text) as page:
        assert page.requests == [elsewhere]
        assert "ERR_NAME_NOT_RESOLVED" in page.errors[0]


@pytest.mark.parametrize("body", ["", "<p hidden>text</p>", "<p style='color: #fff'>text</p>"])
def test_a_page_that_shows_nothing_is_blank(browser: chromium.Browser, body: str) -> None:
    with browser.page(f"<!doctype html><body style='background: #fff'>{body}") as page:
        assert chromium.blank(page.screenshot())
    with browser.page(f"<!doctype html><body>{body}<p>text</p>") as page:
        assert not chromium.blank(page.screenshot())


def test_a_page_too_wide_for_a_telephone_is_seen(browser: chromium.Browser) -> None:
    wide = GOOD.replace("<p ", "<p style='width: 600px' ")
    with browser.page(wide, width=400) as page:
        assert page.content_width == 608
        page.resize(1280)
        assert page.content_width == 1280
    with browser.page(GOOD, width=400) as page:
        assert page.content_width == 400


def test_a_screenshot_goes_down_to_the_end_of_the_page(browser: chromium.Browser) -> None:
    with browser.page(GOOD) as page:
        for width in (1280, 400):
            with Image.open(io.BytesIO(page.screenshot(width))) as image:
                assert image.width == width
                assert image.height == page.evaluate("document.documentElement.scrollHeight")
                red = image.convert("RGB").crop((0, image.height - 30, width, image.height))
            assert (255, 0, 0) in {colour for _, colour in red.getcolors(width * 30) or ()}


def test_paper_and_the_dark_scheme_can_be_asked_for(browser: chromium.Browser) -> None:
    colour = "getComputedStyle(document.body).backgroundColor"
    with browser.page(GOOD) as page:
        assert page.evaluate(colour) == "rgba(0, 0, 0, 0)" and "kcal" in page.text
        page.media(scheme="dark")
        assert page.evaluate(colour) == "rgb(0, 0, 0)"
        page.media("print")
        assert "kcal" not in page.text


def test_pages_stand_side_by_side_and_know_their_own_errors(
    browser: chromium.Browser, tmp_path: Path
) -> None:
    file = tmp_path / "with spaces & ü.html"
    file.write_text(GOOD)
    with browser.page(file) as one, browser.page(with_script("gone()")) as other:
        assert not chromium.blank(one.screenshot()) and not chromium.blank(other.screenshot())
        assert one.errors == [] and len(other.errors) == 1


def test_wrong_expressions_files_and_commands_are_refused(
    browser: chromium.Browser, tmp_path: Path
) -> None:
    with browser.page(GOOD) as page:
        with pytest.raises(chromium.ChromiumError, match=r"gone\(\): .*not defined"):
            page.evaluate("gone()")
        with pytest.raises(chromium.ChromiumError, match="wasn't found"):
            page.send("Page.fly")
    with (
        pytest.raises(chromium.ChromiumError, match="ERR_FILE_NOT_FOUND"),
        browser.page(tmp_path / "none.html"),
    ):
        pass


def test_it_ends_with_the_tests_however_they_end() -> None:
    chromium.require()
    program = (
        "import chromium as c, time; b = c.Browser(); print(b.folder, flush=True); time.sleep(60)"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program],
        cwd=Path(__file__).parent,
        stdout=subprocess.PIPE,
        text=True,
    ) as owner:
        assert owner.stdout is not None
        folder = Path(owner.stdout.readline().strip())
        assert running(folder)
        owner.kill()
    deadline = time.monotonic() + 20
    while running(folder) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert running(folder) == []
    shutil.rmtree(folder)


def running(folder: Path) -> list[bytes]:
    """The command lines that name the folder; those of dead processes are empty."""
    found = []
    for file in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):
            found.append(file.read_bytes())
    return [line for line in found if bytes(folder) in line]


def test_without_chromium_a_test_is_skipped_but_fails_in_ci(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert chromium.find() is None
    monkeypatch.setenv("CI", "true")
    with pytest.raises(pytest.fail.Exception, match="apt install chromium"):
        chromium.require()
    monkeypatch.delenv("CI")
    with pytest.raises(pytest.skip.Exception, match="apt install chromium"):
        chromium.require()
