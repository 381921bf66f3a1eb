"""A report in a real browser, on a wide and on a narrow window."""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import chromium
import pytest
from PIL import Image
from report_tools import HOSTILE, a_simulation, report_of, with_results, with_rows, without_models
from store_tools import claim_of

from ensq import simulation, trained
from ensq.jobs import Outcome
from ensq.report import build, drawing, evaluated

SMALLEST = 9.0  # px of text in figures; of text on the page 11
WIDTHS = (1280, 400)
_SIZES = """
[...document.querySelectorAll('body *')].filter(e => e.offsetParent &&
  [...e.childNodes].some(n => n.nodeType === 3 && n.data.trim()))
  .map(e => parseFloat(getComputedStyle(e).fontSize))
"""
_IMAGES = """
[...document.images].map(i => [i.currentSrc, i.naturalWidth, i.getBoundingClientRect().width])
"""
_BOXES = """
[...document.querySelectorAll('section, figure, nav, header')].map(e => {
  const box = e.getBoundingClientRect();
  return [e.id || e.tagName, box.x, box.y + scrollY, box.width, box.height]
})
"""


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Path]]:
    """Reports of a trained ensemble, and of one under way whose texts are hostile."""
    made = {}
    patched = pytest.MonkeyPatch()
    patched.setattr(drawing, "_png", lambda *about: b"png")  # nothing on the page: time is saved
    for name in ("trained", "hostile"):
        folder = tmp_path_factory.mktemp(name)
        if name == "trained":
            store, ensemble = with_results(folder, (4.0, 2.25, 3.0))
            with pytest.MonkeyPatch.context() as patch:
                without_models(patch)
                members = trained.from_store(store, ensemble)
                evaluated.make(members)
            simulation.write(members.analysis / "simulation-set.npz", a_simulation())
        else:
            store, ensemble = with_rows(folder, name=HOSTILE, run_path="x", done=(12, 7, 3))
            claim = claim_of(store.jobs(ensemble.id)[0])
            store.fail(claim, Outcome.FAILURE, HOSTILE, retry=False)
        made[name] = folder / "report.html"
        build.write(report_of(store, ensemble), made[name])
    patched.undo()
    yield made


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("name", ["trained", "hostile"])
def test_a_report_is_seen_whole_at_each_width(
    browser: chromium.Browser, pages: dict[str, Path], name: str, width: int
) -> None:
    with browser.page(pages[name], width) as page:
        shown = page.screenshot()
        assert page.content_width == width
        assert min(page.evaluate(_SIZES)) >= 11
        boxes, images = page.evaluate(_BOXES), page.evaluate(_IMAGES)
        assert page.evaluate("typeof hacked") == "undefined"
        assert (page.errors, page.requests) == ([], [])
    assert len(images) == {"trained": 12, "hostile": 3}[name]
    for source, natural, drawn in images:
        assert natural > 0
        assert smallest_text(source) * drawn / natural >= SMALLEST
    with Image.open(io.BytesIO(shown)) as picture:
        for about, x, y, box_width, height in boxes:
            assert box_width > 0.8 * min(width - 40, 928), about
            part = picture.crop((int(x), int(y), int(x + box_width), int(y + height)))
            assert not blank(part), about


def smallest_text(source: str) -> float:
    """In px, before the figure is scaled."""
    svg = base64.b64decode(source.partition("base64,")[2]).decode()
    assert "DejaVu" not in svg  # the page's fonts, whatever matplotlib measured with
    sizes = [float(size) for size in re.findall(r"font(?:-size: |: (?:\w+ )*)([0-9.]+)px", svg)]
    assert sizes
    return min(sizes)


def blank(picture: Any) -> bool:
    return all(low == high for low, high in picture.convert("RGB").getextrema())


def test_a_page_with_faults_would_be_seen(browser: chromium.Browser) -> None:
    svg = '<svg xmlns="http://www.w3.org/2000/svg"><text style="font-size: 7px">a</text></svg>'
    source = f"data:image/svg+xml;base64,{base64.b64encode(svg.encode()).decode()}"
    faulty = (
        f'<!doctype html><body><section><p style="font-size: 6px; width: 900px">small</p>'
        f'<img src="data:image/png;base64,"><img src="{source}"></section>'
        f'<section style="height: 50px"></section></body>'
    )
    with browser.page(faulty, 400) as page:
        assert page.content_width > 400
        assert min(page.evaluate(_SIZES)) < 11
        images, boxes = page.evaluate(_IMAGES), page.evaluate(_BOXES)
        shown = page.screenshot()
    assert images[0][1] == 0
    assert smallest_text(images[1][0]) < SMALLEST
    _, x, y, width, height = boxes[1]
    with Image.open(io.BytesIO(shown)) as picture:
        assert blank(picture.crop((int(x), int(y), int(x + width), int(y + height))))


def test_narrow_windows_get_figures_of_their_own(
    browser: chromium.Browser, pages: dict[str, Path]
) -> None:
    with browser.page(pages["trained"], 1280) as page:
        wide = page.evaluate(_IMAGES)
        page.resize(400)
        page.screenshot()
        narrow = page.evaluate(_IMAGES)
    for one, other in zip(wide, narrow, strict=True):
        assert one[0] != other[0]
        assert (one[1], other[1]) == (928, 368)


def test_wide_tables_scroll_in_their_own_box(
    browser: chromium.Browser, pages: dict[str, Path]
) -> None:
    with browser.page(pages["trained"], 400) as page:
        boxes = page.evaluate(
            "[...document.querySelectorAll('.scroll')].map(e => [e.scrollWidth, e.clientWidth])"
        )
    assert any(content > box for content, box in boxes)


def test_on_paper_nothing_is_cut_off(browser: chromium.Browser, pages: dict[str, Path]) -> None:
    with browser.page(pages["trained"], 1280) as page:
        page.media("print")
        assert page.evaluate("getComputedStyle(document.querySelector('nav')).display") == "none"
        boxes = page.evaluate(
            "[...document.querySelectorAll('.scroll, pre')].filter(e => e.offsetParent)"
            ".map(e => [e.scrollHeight, e.clientHeight])"
        )
    assert all(content <= box for content, box in boxes)


def test_contents_and_links_lead_to_what_is_there(
    browser: chromium.Browser, pages: dict[str, Path]
) -> None:
    with browser.page(pages["trained"]) as page:
        lost = page.evaluate(
            "[...document.querySelectorAll('a[href^=\"#\"]')].map(a => a.getAttribute('href'))"
            ".filter(to => !document.getElementById(to.slice(1)))"
        )
        files = page.evaluate(
            "[...document.querySelectorAll('figcaption a')].map(a => a.getAttribute('href'))"
        )
    assert lost == []
    assert all((pages["trained"].parent / name).is_file() for name in files)
