"""What the recording page does to a corpus, and what it refuses from a browser."""

from dataclasses import asdict

import pytest

from voxtral_finetune.data.corpus import Corpus
from voxtral_finetune.data.phrases import phrases
from voxtral_finetune.data.split import MIN_UTTERANCES, split
from voxtral_finetune.errors import DataError, FinetuneError, SettingsError
from voxtral_finetune.studio import projects, texts


@pytest.mark.parametrize("name", ["a", "my-voice_2", "x" * 64])
def test_names_that_a_folder_may_have(name):
    assert projects.check_name(name) == name


@pytest.mark.parametrize("name", ["", ".", "..", "../up", "a/b", "a b", "é", "x" * 65, "a\n", "a\0", None, 7, ["a"]])
def test_other_names_are_refused(name):
    with pytest.raises(SettingsError, match="64 letters"):
        projects.check_name(name)


def test_language_codes():
    assert [projects.check_language(code) for code in ("EN ", "yue", "", None)] == ["en", "yue", None, None]
    for bad in ("english", "e", "e1", "en\nfr", "<b>"):
        with pytest.raises(SettingsError):
            projects.check_language(bad)


def test_a_take_is_saved_with_what_is_known_and_the_upload_is_gone(upload, home):
    path = upload(seconds=1.0)
    projects.save_take("mine", str(path), "one two", "en", "  Ana ")
    (row,) = Corpus(home / "datasets" / "mine").rows()[0]
    assert (row.text, row.language, row.speaker, row.source, row.seconds) == ("one two", "en", "Ana", "recorded", 1.0)
    assert row.audio.is_file()
    assert not path.exists()


def test_paths_outside_the_upload_folder_are_refused_whatever_they_look_like(upload, home, tmp_path):
    inside = upload()
    secret = tmp_path / "secret.wav"
    secret.write_bytes(inside.read_bytes())
    link = inside.parent / "link.wav"
    link.symlink_to(secret)
    attacks = [secret, f"{inside.parent}/../../../secret.wav", link, inside.parent, "take.wav", "/etc/passwd"]
    attacks += ["", None, 7, {"path": str(inside)}, f"{inside}\0.wav", inside.with_name("no.wav"), "x" * 10_000]
    for attack in attacks:
        with pytest.raises(DataError):
            projects.save_take("mine", attack, "one", "en", None)
    assert secret.exists()
    assert not (home / "datasets").exists()


@pytest.mark.parametrize("shown", [None, [], "x", {}, {"pack": "digits", "language": "en", "id": "999"}])
def test_made_up_prompts_are_refused(shown):
    with pytest.raises(FinetuneError):
        projects.place_of(shown)


def test_a_prompt_is_looked_up_not_believed():
    shown = asdict(projects.prompt("mine", "digits", "en", 3)) | {"text": "something else"}
    project, pack, language, place, phrase = projects.place_of(shown)
    assert (project, pack, language, place, phrase) == ("mine", "digits", "en", 3, phrases("digits", "en")[3])
    with pytest.raises(SettingsError):
        projects.place_of(shown | {"project": "../up"})


def test_takes_that_are_too_long_too_big_or_no_audio_are_refused(upload, monkeypatch):
    with pytest.raises(DataError, match="more than 60 seconds"):
        projects.save_take("mine", str(upload(seconds=60.5)), "one", "en", None)
    with pytest.raises(DataError, match="not audio"):
        projects.save_take("mine", str(upload(content=b"RIFF nothing")), "one", "en", None)
    monkeypatch.setattr(projects, "MAX_BYTES", 1000)
    with pytest.raises(DataError, match="MB"):
        projects.save_take("mine", str(upload()), "one", "en", None)


def test_the_next_phrase_is_one_with_the_fewest_takes_after_the_last(upload):
    rows = phrases("digits", "en")
    assert projects.next_prompt("mine", "digits", "en").id == rows[0].id
    projects.save_take("mine", str(upload(seed=1)), rows[0].text, "en", None)
    projects.save_take("mine", str(upload(seed=2)), rows[2].text, "en", None)
    assert projects.next_prompt("mine", "digits", "en").id == rows[1].id
    assert projects.next_prompt("mine", "digits", "en", after=1).id == rows[3].id
    assert projects.next_prompt("mine", "digits", "en", after=len(rows) - 1).id == rows[1].id
    assert projects.prompt("mine", "digits", "en", 2).takes == 1
    assert projects.prompt("mine", "digits", "en", -1).number == len(rows)


def test_too_few_takes_say_how_many_more(upload):
    with pytest.raises(DataError, match=f"{MIN_UTTERANCES} more"):
        projects.check_enough("mine")
    for number in range(MIN_UTTERANCES):
        projects.save_take("mine", str(upload(seed=number)), f"text {number}", "en", None)
        if number < MIN_UTTERANCES - 1:
            with pytest.raises(DataError, match=f"{MIN_UTTERANCES - 1 - number} more"):
                projects.check_enough("mine")
    assert projects.check_enough("mine").rows()[0]
    with pytest.raises(DataError, match="No project"):
        projects.check_enough(None)


def test_the_count_for_a_verdict_is_the_one_that_the_split_needs(upload):
    from voxtral_finetune.data.corpus import Utterance

    def made(count):
        return split([Utterance(upload, f"text {n}", sha256=f"{n:064}") for n in range(count)])

    assert len(made(90).test) >= 30 > len(made(89).test)
    assert "90 in all" in texts.more(0)
    assert texts.more(60).startswith("Enough to try. 30 more")
    assert "more for" not in texts.more(90)


def test_files_are_paired_with_lines_in_the_order_of_their_names(upload, home):
    uploads = [str(upload(name, seed=n)) for n, name in enumerate(["b.wav", "a.flac"])]
    assert projects.add_files("mine", uploads, "first\n\nsecond\n", "fr", None) == (2, [])
    said = {row.text: row for row in Corpus(home / "datasets" / "mine").rows()[0]}
    assert list(said) == ["first", "second"]
    assert (said["first"].language, said["first"].source) == ("fr", "uploaded")


def test_files_are_paired_by_name_where_lines_name_them_and_each_refusal_has_a_reason(upload, home):
    names = ["a.wav", "b.wav", "c.wav", "d.wav"]
    contents = {"c.wav": b"not audio at all"}
    uploads = [str(upload(name, seed=n, content=contents.get(name))) for n, name in enumerate(names)]
    added, refused = projects.add_files("mine", uploads, "b\tof b\na.wav\tof a\nc.wav\tof c\nz.wav\tof z", "", None)
    assert added == 2
    assert [reason.split()[0] for reason in refused] == ["c.wav", "d.wav"]
    assert "no transcript" in refused[1]
    assert [row.text for row in Corpus(home / "datasets" / "mine").rows()[0]] == ["of a", "of b"]


def test_as_many_lines_as_files(upload):
    with pytest.raises(DataError, match="1 files and 2 lines"):
        projects.add_files("mine", [str(upload())], "one\ntwo", "en", None)


def test_a_script_is_read_as_utf_8(upload):
    assert projects.read_script(str(upload("t.tsv", content="\ufeffa.wav\té".encode()))) == "a.wav\té"
    with pytest.raises(DataError, match="UTF-8"):
        projects.read_script(str(upload("t.tsv", content=b"\xff\xfe\x00")))
    with pytest.raises(DataError):
        projects.read_script("/etc/hostname")
