import base64
import html
import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest

from tests.conftest import spoken
from voxtral_finetune.data import audio, doctor, doctor_page, pages, sources

ATTACKS = [
    "<script>alert(1)</script>",
    '"><img src=https://tracker.example/x onerror=alert(1)>',
    "' onmouseover='alert(1)",
    "</style></script><script>alert(1)</script>",
    "{{ 7 * 7 }} {% raw %} ${alert(1)} `",
    "![x](http://tracker.example) </details> <!-- ",
    "=HYPERLINK(1)",
    "x" * 5000,
]


class Elements(HTMLParser):
    """Every element of a page with its attributes."""

    def __init__(self, text):
        super().__init__()
        self.found = []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.found.append((tag, dict(attributes)))


def diagnose(folder):
    return doctor.diagnose(sources.survey(folder), folder)


@pytest.fixture
def hostile(tmp_path):
    """Names, texts, speakers and languages that try to be code."""
    folder = tmp_path / "<b>corpus</b>"
    (folder / "audio").mkdir(parents=True)
    rows = []
    for number, attack in enumerate(ATTACKS):
        name = f"audio/{attack[:60].replace('/', '_')}{number}.wav"
        audio.write(folder / name, spoken("low mid high low " * 4, seed=number), 16_000)
        rows.append({"audio_path": name, "text": attack, "speaker": attack, "language": attack[:40]})
    rows += [{"audio_path": attack, "text": "x"} for attack in ATTACKS] + [{attack: 1} for attack in ATTACKS]
    (folder / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def test_nothing_of_the_corpus_becomes_code(hostile):
    elements = Elements(doctor_page.page(diagnose(hostile), hostile, hostile)).found
    tags = [tag for tag, _ in elements]
    assert (tags.count("script"), tags.count("style"), tags.count("img"), tags.count("b")) == (1, 1, 0, 0)
    names = {name for _, attributes in elements for name in attributes}
    assert not [name for name in names if name.startswith("on") or name == "style"]
    sources = [attributes["data-source"] for _, attributes in elements if "data-source" in attributes]
    assert len(sources) == len(ATTACKS)
    assert all(source.startswith("./audio/") for source in sources)


def test_the_page_asks_for_nothing_from_elsewhere(hostile):
    text = doctor_page.page(diagnose(hostile), hostile, hostile)
    for tag, attributes in Elements(text).found:
        assert tag not in ("link", "iframe", "object", "embed", "form", "base")
        assert not attributes.get("src")
        assert attributes.get("href", "#rows") == "#rows"
    assert not re.search(r"url\(|@import|fetch\(|XMLHttp", text)
    (policy,) = re.findall(r'Content-Security-Policy" content="([^"]+)"', text)
    assert "default-src 'none'" in html.unescape(policy)


def test_the_policy_allows_exactly_the_script_and_the_style(write_corpus):
    folder = write_corpus([("low mid", {})])
    text = doctor_page.page(diagnose(folder), folder, folder)
    policy = html.unescape(re.findall(r'Content-Security-Policy" content="([^"]+)"', text)[0])
    for tag in ("script", "style"):
        (content,) = re.findall(f"<{tag}>(.*?)</{tag}>", text, re.DOTALL)
        assert pages.policy_hash(content) in policy


def test_long_text_is_cut(hostile):
    assert "x" * 400 not in doctor_page.page(diagnose(hostile), hostile, hostile)


def test_the_counts_are_those_of_the_diagnosis(write_corpus):
    folder = write_corpus([("low mid", {"speaker": "Ana", "language": "en"}) for _ in range(4)])
    (folder / "audio" / "0.wav").unlink()
    text = doctor_page.page(diagnose(folder), folder, folder)
    assert "<h1>3 of 4 rows can be used: 1.8 seconds, 1 named speaker.</h1>" in text
    assert text.count("<tr data-kinds") == 4
    assert text.count('class="play"') == 3
    assert text.index(">refused<") < text.index("audio/1.wav")  # worst first


def test_only_the_worst_rows_are_shown(write_corpus, monkeypatch):
    monkeypatch.setattr(doctor_page, "MOST_ROWS", 2)
    folder = write_corpus([("low mid", {}) for _ in range(4)])
    text = doctor_page.page(diagnose(folder), folder, folder)
    assert text.count("<tr data-kinds") == 2
    assert "Only the worst 2 of 4 rows are here" in text


def test_recordings_out_of_reach_are_kept_in_the_page(write_corpus, tmp_path, monkeypatch):
    folder = write_corpus([("low mid", {}) for _ in range(4)])
    monkeypatch.setattr(doctor_page, "MOST_EMBEDDED", 3)
    elsewhere = tmp_path / "elsewhere"
    elements = Elements(doctor_page.page(diagnose(folder), folder, elsewhere)).found
    sources = [attributes["data-source"] for _, attributes in elements if "data-source" in attributes]
    assert len(sources) == 3
    (tmp_path / "copy.flac").write_bytes(base64.b64decode(sources[0].partition(",")[2]))
    assert np.array_equal(audio.load(tmp_path / "copy.flac"), audio.load(folder / "audio" / "0.wav"))


def test_embedded_recordings_have_a_limit(write_corpus, tmp_path, monkeypatch):
    folder = write_corpus([("low mid", {}) for _ in range(4)])
    monkeypatch.setattr(doctor_page, "MOST_EMBEDDED_BYTES", 1000)
    assert "data:audio" not in doctor_page.page(diagnose(folder), folder, tmp_path / "elsewhere")


def test_a_part_plays_only_itself(write_corpus):
    folder = write_corpus([("low mid high low", {}), ("low mid high", {"offset": 0, "seconds": 0.5})])
    text = doctor_page.page(diagnose(folder), folder, folder)
    assert 'audio/0.wav"' in text
    assert 'audio/1.wav#t=0,0.5"' in text


def test_a_corpus_without_usable_rows_has_a_page(write_corpus):
    folder = write_corpus([("low", {})])
    (folder / "audio" / "0.wav").unlink()
    text = doctor_page.page(diagnose(folder), folder, folder)
    assert "0 of 1 row can be used" in text
    assert "<figure>" not in text


@pytest.mark.parametrize(
    "values",
    [[1.0], [0.0, 0.0], [-30.5, -20.0, -3.0], [*np.linspace(0, 10, 500), 1e6], list(np.logspace(-3, 3, 99))],
)
def test_histograms_hold_every_value_once(values):
    plot = doctor_page.histogram(values)
    counts = [int(bar["title"].split(": ")[1].split()[0]) for bar in plot["bars"]]
    assert sum(counts) == len(values)
    assert max(counts) == plot["most"]
    assert all(bar["x"] >= doctor_page.LEFT and bar["x"] + bar["width"] <= doctor_page.RIGHT for bar in plot["bars"])
    assert all(doctor_page.LEFT <= tick["x"] <= doctor_page.RIGHT + 0.1 for tick in plot["ticks"])
    assert 1 <= len(plot["ticks"]) <= 8


def test_no_values_no_histogram():
    assert doctor_page.histogram([]) is None
