"""report.html in a real browser: opened as a file, light and dark, narrow and wide."""

import os
from pathlib import Path

import pytest

from tests.unit.evaluation.test_page import finished
from voxtral_finetune.evaluation.compared import compared, write_page
from voxtral_finetune.evaluation.page import write_page as write_report

ATTACK = "<img src=x onerror=document.title='gone'>"
RIGHT_TO_LEFT = "اهلا بك"

CONTRAST = """() => {
  const parts = (colour) => colour.match(/[\\d.]+/g).map(Number);
  const light = (colour) => {
    const linear = (v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
    const [r, g, b] = parts(colour).slice(0, 3).map((v) => linear(v / 255));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const behind = (element) => {
    for (let at = element; at; at = at.parentElement) {
      const colour = getComputedStyle(at).backgroundColor;
      if ((parts(colour)[3] ?? 1) === 1) return colour;
    }
    return "rgb(255, 255, 255)";
  };
  const weak = [];
  for (const element of document.body.querySelectorAll("*:not(script):not(svg *)")) {
    const own = [...element.childNodes].some((node) => node.nodeType === 3 && node.data.trim());
    if (!own || !element.checkVisibility()) continue;
    const [a, b] = [light(getComputedStyle(element).color), light(behind(element))].sort((x, y) => y - x);
    if ((a + 0.05) / (b + 0.05) < 4.5) weak.push(element.outerHTML.slice(0, 100));
  }
  return weak;
}"""
"""Texts whose contrast is under the 4.5 of WCAG AA."""


def opened(context, path, width, scheme):
    """The page of a file, and what it says on the console and asks for."""
    page = context.new_page()
    said = []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("request", lambda request: said.append(request.url) if request.url.startswith("http") else None)
    page.set_viewport_size({"width": width, "height": 900})
    page.emulate_media(color_scheme=scheme)
    page.goto(path.as_uri())
    return page, said


def check_readable(page):
    """No sideways scrolling, enough contrast, a name for each control; axe-core too where AXE names its file."""
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert page.evaluate(CONTRAST) == []
    for control in page.locator("button:visible, select:visible, input:visible").all():
        assert control.evaluate("it => (it.ariaLabel || it.labels?.[0]?.textContent || it.textContent).trim()")
    if axe := os.environ.get("AXE"):
        page.evaluate(Path(axe).read_text(encoding="utf-8"))
        assert [found["id"] for found in page.evaluate("axe.run()")["violations"]] == []


@pytest.fixture
def report(tmp_path):
    """Of 120 utterances one is a gain, one worse, one an attack, one written from right to left."""
    odd = [("low mid", "low", "low mid"), ("high", "high", "high low low"), (ATTACK, ATTACK, ATTACK)]
    odd.append((RIGHT_TO_LEFT, "اهلا", RIGHT_TO_LEFT))
    run = finished(tmp_path / "run", [*odd, *[("mid high", "mid low", "mid low")] * 116], speaker=ATTACK)
    return write_report(run.folder)


@pytest.mark.browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 1920])
def test_the_report_can_be_read_sorted_filtered_and_heard(browser, report, scheme, width):
    with browser() as context:
        page, said = opened(context, report, width, scheme)
        page.locator("details").evaluate_all("all => all.forEach(each => each.open = true)")
        check_readable(page)
        rows = page.locator("#rows > li")
        assert rows.count() == 50
        page.get_by_role("button", name="Show more").press("Enter")
        assert rows.count() == 100
        page.keyboard.press("Tab")
        assert page.evaluate("document.activeElement.closest('#rows > li:nth-child(n + 51), #more') !== null")
        page.get_by_role("button", name="Show more").press("Enter")
        assert rows.count() == 120 and page.get_by_role("button", name="Show more").is_hidden()
        assert rows.nth(2).locator("dd").first.inner_text() == ATTACK
        assert rows.nth(3).locator("dd").first.inner_text() == RIGHT_TO_LEFT

        page.locator("#which").select_option("worse than before")
        assert rows.count() == 1 and "+2 worse" in rows.inner_text() and "+low" in rows.inner_text().replace("\n", "")
        assert page.locator("#shown").inner_text() == "1 of 120 utterances"
        page.locator("#which").select_option("all")
        page.locator("#sort").select_option("best gain first")
        assert "−1 better" in rows.first.inner_text()
        page.locator("#speaker").select_option(ATTACK)
        assert rows.count() == 50 and page.locator("#shown").inner_text().startswith("60 of 120")
        page.locator("#search").fill("nothing like it")
        assert page.get_by_text("No utterance is like that.").is_visible()
        assert page.locator("#language").is_hidden()

        page.evaluate("window.heard = new Promise((done) => player.addEventListener('ended', () => done(true))); null")
        play = page.locator("#regressions .play").first
        play.press("Enter")
        assert play.get_attribute("aria-pressed") == "true"
        assert page.evaluate("window.heard")
        assert play.get_attribute("aria-pressed") == "false"
        assert page.title() == "run: report"
        assert said == []


@pytest.mark.browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 1920])
def test_the_comparison_can_be_read(browser, tmp_path, scheme, width):
    runs = [finished(tmp_path / f"a-run-with-a-rather-long-name-{seed}", seed=seed).folder for seed in range(6)]
    path = tmp_path / "runs.html"
    write_page(path, compared(runs))
    with browser() as context:
        page, said = opened(context, path, width, scheme)
        check_readable(page)
        assert page.get_by_role("row", name="verdict").locator("td").count() == 6
        assert page.get_by_role("row", name="seed").locator("td").all_inner_texts() == list("012345")
        assert said == []
