"""Known speech heard again while something new is learned: how much, which of it, and nothing that is measured on."""

from pathlib import Path

import pytest

from voxtral_finetune.data import divide, sources
from voxtral_finetune.data.rows import Utterance
from voxtral_finetune.data.split import Split
from voxtral_finetune.errors import DataError, SettingsError
from voxtral_finetune.pipeline import execute
from voxtral_finetune.run import Run
from voxtral_finetune.settings import Settings
from voxtral_finetune.training.checks import check_training
from voxtral_finetune.training.dataset import Hearing, Timeline
from voxtral_finetune.training.schedule import longest_window, schedule


def rows(count, name, seconds=1.0):
    return [
        Utterance(Path(f"{name}-{number}.wav"), f"{name} {number}", "en", name, seconds, sha256=f"{name}{number:060x}")
        for number in range(count)
    ]


NEW, KNOWN = rows(30, "a"), rows(100, "b")


def heard(timeline, epoch):
    return [row for _, window in timeline.epoch(epoch) for row in window.utterances]


@pytest.mark.parametrize("packing", [False, True])
@pytest.mark.parametrize(("share", "count"), [(0.25, 10), (0.5, 30), (0.9, 100)])
def test_an_epoch_holds_all_that_is_new_and_its_share_of_what_is_known(share, count, packing):
    timeline = Timeline(NEW, Hearing(4.0, 2, 3, packing, replay_share=share), KNOWN)
    for epoch in range(3):
        found = heard(timeline, epoch)
        assert sorted(row.text for row in found if row.speaker == "a") == sorted(row.text for row in NEW)
        again = [row.text for row in found if row.speaker == "b"]
        assert len(again) == len(set(again)) == count


def test_what_is_replayed_follows_from_seed_and_epoch_alone():
    def drawn(seed, epoch):
        return [row.text for row in Timeline(NEW, Hearing(4.0, 2, seed, replay_share=0.25), KNOWN).replayed(epoch)]

    assert drawn(0, 5) == drawn(0, 5)
    assert len({tuple(drawn(seed, epoch)) for seed in (0, 1) for epoch in (0, 1)}) == 4
    later = Timeline(NEW, Hearing(4.0, 2, 0, replay_share=0.25), KNOWN)
    assert [row.text for row in heard(later, 7)] == [
        row.text for row in heard(Timeline(NEW, Hearing(4.0, 2, 0, replay_share=0.25), KNOWN), 7)
    ]


def test_the_plan_counts_what_is_replayed_and_expects_the_longest_of_it():
    long = [*KNOWN, Utterance(Path("l.wav"), "long", "en", "b", 50.0, sha256="l")]
    made = schedule(NEW, Settings.of({"packing": False}), 30.0, 1, long)
    assert made.facts()["replay"] == 10
    assert made.windows == 40
    assert made.longest == 2
    assert longest_window([*NEW, *long], made).text == "long"
    assert schedule(NEW, Settings.of({"packing": False}), 30.0, 1).facts()["replay"] == 0


@pytest.mark.parametrize(
    ("chosen", "said"),
    [
        ({"replay": "none"}, "--replay: none does not exist"),
        ({"replay": ".", "cache_audio": True, "preset": "vocabulary"}, "--cache-audio is not possible"),
        ({"replay": ".", "stream": True}, "--replay cannot go with --stream"),
    ],
)
def test_what_replay_cannot_go_with_is_said_at_once(chosen, said):
    with pytest.raises(SettingsError, match=said):
        check_training(Settings.of(chosen))


def test_nothing_that_is_measured_on_is_replayed(write_corpus):
    texts = ["low", "mid", "high", "low mid", "low high", "mid high", "mid low"]
    corpus = write_corpus([(text, {"split": "test"} if text == "mid low" else {}) for text in texts])
    known = sources.survey(corpus).utterances
    divided = Split(known[:1], known[1:2], known[2:3], "random", "")
    found = divide.replayed(corpus, divided, {known[3].sha256}, lambda done, total: None)
    assert [row.text for row in found] == ["low high", "mid high"]
    with pytest.raises(DataError, match="nothing to replay"):
        divide.replayed(corpus, divided, {row.sha256 for row in known}, lambda done, total: None)


def test_a_run_learns_from_both_and_says_so(small_checkpoint, write_corpus, tmp_path):
    texts = [
        f"{first} {second} {third}" for first in ("low", "mid") for second in ("low", "high") for third in ("mid",)
    ]
    mine = write_corpus([(f"{text} {last}", {}) for text in texts for last in ("low", "mid", "high")])
    known = write_corpus(
        [(text, {"language": "en"}) for text in ("high", "high high", "high low", "high mid")], "known"
    )
    chosen = {"model_checkpoint": str(small_checkpoint), "dataset_jsonl": mine, "device": "cpu", "epochs": 1}
    more = {"replay": known, "replay_share": 0.2, "guard": [known], "eval_count": 2, "output_dir": tmp_path / "run"}
    run = Run.create(Settings.of({**chosen, **more}))
    report = execute(run)
    divided = Split.load(run.folder / "split.json")
    assert len(divided.replay) == 2, "of four two are the guard"
    (plan,) = [event for event in run.events() if event.kind == "plan"]
    assert plan.fields["replay"] == round(len(divided.train) * 0.25)
    assert report.data["replay"]["utterances"] == 2
    assert report.guards[0]["utterances"] == 2
    assert "known before" in (run.folder / "README.md").read_text()
