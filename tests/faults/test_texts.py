"""Texts that nothing can be learned from are refused by their line, and never cut short."""

import json


def test_each_text_that_cannot_be_learned_is_named(warm, settings, write_corpus, tmp_path):
    good = [(text, {"language": "en"}) for text in ("low", "mid", "high", "low mid", "mid low", "high low") * 2]
    bad = {13: "", 14: " \t ", 15: "low " * 400, 16: "?!…", 17: "\u200b\u200b"}
    corpus = write_corpus([*good, *(("low", {}) for _ in bad)])
    rows = [json.loads(line) for line in (corpus / "data.jsonl").read_text().splitlines()]
    for line, text in bad.items():
        rows[line - 1]["text"] = text
    (corpus / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "settings.json").write_text(json.dumps({**settings, "dataset_jsonl": str(corpus), "max_steps": 1}))
    home = {"VOXTRAL_FINETUNE_HOME": str(tmp_path / "home")}
    words = ("train", "--config", tmp_path / "settings.json", "--output-dir")
    done = warm.start(*words, tmp_path / "run", env=home, folder=tmp_path)
    assert done.wait() == 0, done.said()
    for line in bad:
        assert f"line {line}: " in done.said(), (line, done.said())
    split = json.loads((tmp_path / "run" / "split.json").read_text())
    learned = {row["text"] for part in ("train", "dev", "test") for row in split[part]}
    assert learned == {text for text, _ in good}
    strict = warm.start(*words, tmp_path / "strict", "--strict", env=home, folder=tmp_path)
    assert strict.wait() == 1
    assert "rows cannot be used" in strict.said()
