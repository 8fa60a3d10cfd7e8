"""The data doctor's page in a real browser: light and dark, narrow and wide."""

import http.server
import threading
from functools import partial

import pytest

from voxtral_finetune.data import audio, doctor, doctor_page, sources


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


@pytest.fixture
def address(write_corpus):
    """A served corpus of thirty rows, two clipped and one missing, with its page."""
    attack = "<img src=x onerror=document.title='gone'>"
    rows = [("low mid high low mid", {"speaker": attack if number else "Ana"}) for number in range(30)]
    folder = write_corpus(rows)
    for number in (3, 4):
        wave = audio.load(folder / "audio" / f"{number}.wav")
        audio.write(folder / "audio" / f"{number}.wav", (wave * 20).clip(-0.9, 0.9), 16_000)
    (folder / "audio" / "5.wav").unlink()
    doctor_page.write(folder / "report.html", doctor.diagnose(sources.survey(folder), folder), folder)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=folder))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/report.html"
    server.shutdown()


@pytest.mark.browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 1920])
def test_the_page_can_be_read_filtered_and_heard(browser, address, scheme, width):
    with browser() as context:
        page = context.new_page()
        said = []
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.set_viewport_size({"width": width, "height": 900})
        page.emulate_media(color_scheme=scheme)
        page.goto(address)
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        rows = page.locator(".rows tbody tr:visible")
        assert rows.count() == 30

        page.get_by_role("button", name="Show rows: Clipped").press("Enter")
        assert rows.count() == 2
        assert page.locator("#shown").inner_text() == "2 of 30 shown"
        page.locator("#kind").select_option("")
        page.get_by_label("Search").fill("ana low")
        assert rows.count() == 1
        page.get_by_label("Search").fill("nothing like it")
        assert page.get_by_text("No row is like that.").is_visible()
        page.get_by_label("Search").fill("")

        page.evaluate("window.heard = new Promise((done) => player.addEventListener('ended', () => done(true))); null")
        play = page.get_by_role("button", name="Play line 4")
        play.press("Enter")
        assert play.get_attribute("aria-pressed") == "true"
        assert page.evaluate("window.heard")
        assert play.get_attribute("aria-pressed") == "false"
        assert page.title() == "corpus: data doctor"
        assert said == []
