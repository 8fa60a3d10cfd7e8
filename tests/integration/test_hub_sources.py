"""Datasets of the Hub, read by the unmodified clients from a Hub on loopback."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile

from voxtral_finetune.data import granary
from voxtral_finetune.data.corpus import Corpus
from voxtral_finetune.data.journal import journal_of
from voxtral_finetune.errors import DataError
from voxtral_finetune.run import Run

pytest_plugins = ["tests.hub.fixtures"]

RATE = 16_000


def encoded(number: int, seconds: float = 1.0, kind: str = "WAV") -> bytes:
    """A tone whose pitch is its number, as a file of some kind."""
    wave = 0.3 * np.sin(2 * np.pi * (200 + 40 * number) * np.arange(int(seconds * RATE)) / RATE)
    buffer = io.BytesIO()
    soundfile.write(buffer, wave, RATE, format=kind)
    return buffer.getvalue()


def parquet(rows: list[dict]) -> bytes:
    """Rows as the Hub holds them: audio columns are {"bytes", "path"}, and the schema says that they are audio."""
    table = pa.Table.from_pylist(rows)
    kinds = {"string": "string", "double": "float64", "int64": "int64"}
    features = {
        field.name: {"_type": "Audio"} if field.name == "audio" else {"dtype": kinds[str(field.type)], "_type": "Value"}
        for field in table.schema
    }
    about = {b"huggingface": json.dumps({"info": {"features": features}}).encode()}
    buffer = io.BytesIO()
    pq.write_table(table.replace_schema_metadata(about), buffer, row_group_size=4)
    return buffer.getvalue()


def speech(count: int, text: str = "text", first: int = 0, **fields) -> list[dict]:
    numbers = range(first, first + count)
    return [{"audio": {"bytes": encoded(n), "path": f"{n}.wav"}, text: f"phrase {n}", **fields} for n in numbers]


def card(configs: dict[str, list[str]], licence: str = "cc-by-4.0") -> bytes:
    """A README whose header names configs and their splits; the data are at <config>/<split>-*.parquet."""
    lines = [f"license: {licence}", "configs:"]
    for config, splits in configs.items():
        lines += [f"- config_name: {config}", "  data_files:"]
        lines += [f"  - split: {split}\n    path: {config}/{split}-*" for split in splits]
    return ("---\n" + "\n".join(lines) + "\n---\n# Speech\n").encode()


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "corpus"


@pytest.fixture
def bring(call, folder):
    """Imports into the corpus `folder`; returns what came of it."""

    def run(name: str, token: str | None = None, **spec):
        return call("import", token, spec={"name": name, **spec}, folder=str(folder))

    return run


def texts(folder: Path) -> list[str]:
    return [row.text for row in Corpus(folder).rows()[0]]


def test_parquet_with_wav_flac_and_ogg_becomes_a_corpus(hub, bring, folder):
    kinds = ("WAV", "FLAC", "OGG")
    rows = [
        {"audio": {"bytes": encoded(n, kind=kind), "path": "a"}, "text": f"Voilà  {kind}.", "speaker": f"s{n}"}
        for n, kind in enumerate(kinds)
    ]
    sha = hub.add(
        "dataset", "alice/speech", {"README.md": card({"default": ["train"]}), "default/train-0.parquet": parquet(rows)}
    )
    answer = bring("alice/speech", language="fr")["answer"]
    assert (answer["added"], answer["refused"], answer["revision"]) == (3, [], sha)
    assert answer["seconds"] == pytest.approx(3, abs=0.01)
    survey = Corpus(folder).survey()
    assert [row.text for row in survey.utterances] == [f"Voilà {kind}." for kind in kinds]
    assert [row.speaker for row in survey.utterances] == ["s0", "s1", "s2"]
    assert {row.language for row in survey.utterances} == {"fr"}
    assert {row.licence for row in survey.utterances} == {"cc-by-4.0"}
    assert {row.source for row in survey.utterances} == {f"alice/speech train @ {sha[:12]}"}


def test_several_licences_and_none_are_carried_as_they_are(hub, bring, folder):
    header = b"---\nlicense: [cc-by-4.0, cc0-1.0]\n---\n"
    hub.add("dataset", "alice/two", {"README.md": header, "train.parquet": parquet(speech(1))})
    hub.add("dataset", "alice/none", {"train.parquet": parquet(speech(1, first=1))})
    assert bring("alice/two")["answer"]["added"] == bring("alice/none")["answer"]["added"] == 1
    assert [row.licence for row in Corpus(folder).rows()[0]] == ["cc-by-4.0, cc0-1.0", None]


def test_the_layout_of_fleurs_is_read_with_the_text_that_has_case(hub, bring, folder):
    rows = [
        {**row, "raw_transcription": f"Phrase {n}.", "id": 7, "num_samples": RATE, "language": "French"}
        for n, row in enumerate(speech(3, "transcription"))
    ]
    splits = {"fr_fr/test-0.parquet": parquet(rows), "fr_fr/train-0.parquet": parquet(rows[:1])}
    hub.add("dataset", "google/fleurs", {"README.md": card({"fr_fr": ["train", "test"], "de_de": ["test"]}), **splits})
    assert bring("google/fleurs", config="fr_fr", split="test")["answer"]["added"] == 3
    assert texts(folder) == ["Phrase 0.", "Phrase 1.", "Phrase 2."]
    assert Corpus(folder).rows()[0][0].language is None  # "French" is no code


def test_columns_that_are_not_as_expected_are_shown_with_their_flag(hub, bring, folder):
    rows = [{"audio": row["audio"], "said": row["text"], "length": 1.0} for row in speech(2)]
    hub.add("dataset", "alice/odd", {"train.parquet": parquet(rows)})
    what, fix = bring("alice/odd")["error"]
    assert what == (
        "alice/odd has no column that is known to hold text; its columns: audio (audio), said (text), length (other)."
    )
    assert fix == "Name one with --text-column."
    assert bring("alice/odd", text_column="sung")["error"][0].startswith("alice/odd has no column 'sung' of text;")
    assert bring("alice/odd", audio_column="said", text_column="said")["error"][1] == "Name one with --audio-column."
    assert bring("alice/odd", text_column="said")["answer"]["added"] == 2


def test_a_revision_is_pinned_to_its_commit(hub, bring, folder):
    first = hub.add("dataset", "alice/speech", {"train.parquet": parquet(speech(1))})
    second = hub.add("dataset", "alice/speech", {"train.parquet": parquet(speech(1, first=5))})
    assert bring("alice/speech", revision=first)["answer"]["revision"] == first
    assert texts(folder) == ["phrase 0"]
    assert bring("alice/speech")["answer"]["revision"] == second
    assert texts(folder) == ["phrase 0", "phrase 5"]
    assert {request.path.split("/")[5] for request in hub.asked("/resolve/.*parquet")} == {first, second}


def test_max_hours_is_not_exceeded_and_a_larger_one_goes_on(hub, bring, folder):
    hub.add("dataset", "alice/speech", {"train.parquet": parquet(speech(10))})
    answer = bring("alice/speech", max_hours=3.5 / 3600)["answer"]
    assert (answer["added"], answer["seconds"], answer["calls"]) == (3, 3.0, [[1, 3], [2, 3], [3, 3]])
    answer = bring("alice/speech", max_hours=5 / 3600)["answer"]
    assert (answer["added"], answer["known"], answer["seconds"]) == (2, 3, 5.0)
    assert texts(folder) == [f"phrase {n}" for n in range(5)]


def test_a_sample_depends_on_its_seed_alone(hub, call, tmp_path):
    hub.add("dataset", "alice/speech", {f"train-{n}.parquet": parquet(speech(8, first=8 * n)) for n in range(3)})

    def sample(seed: int, name: str) -> list[str]:
        spec = {"name": "alice/speech", "seed": seed, "max_hours": 6 / 3600}
        assert call("import", spec=spec, folder=str(tmp_path / name))["answer"]["added"] == 6
        return texts(tmp_path / name)

    assert sample(1, "a") == sample(1, "b") != sample(2, "c")


def test_bad_rows_are_named_and_good_ones_go_on(hub, bring, folder):
    rows = speech(5)
    rows[1]["audio"]["bytes"] = b"no sound at all"
    rows[2]["audio"] = None
    rows[3]["text"] = " "
    hub.add("dataset", "alice/speech", {"train.parquet": parquet(rows)})
    answer = bring("alice/speech")["answer"]
    assert texts(folder) == ["phrase 0", "phrase 4"]
    assert [problem["line"] for problem in answer["refused"]] == [2, 3, 4]
    assert "Row 2 " in answer["refused"][0]["what"]
    assert "/" not in answer["refused"][0]["what"]  # not the temporary file it was decoded from
    assert answer["refused"][1]["what"] == "Row 3 holds no audio."
    assert answer["refused"][2]["what"] == "Row 4 holds no text."


def test_an_import_in_which_every_row_is_refused_ends(hub, bring):
    rows = [{"audio": {"bytes": b"mute", "path": str(n)}, "text": f"{n}"} for n in range(150)]
    hub.add("dataset", "alice/mute", {"train.parquet": parquet(rows)})
    assert bring("alice/mute")["error"][0].startswith("The first 100 rows are all refused. ")


def test_a_private_dataset_needs_its_owner_s_token(hub, bring):
    hub.add("dataset", "alice/secret", {"train.parquet": parquet(speech(1))}, private=True)
    for token in (None, "hf_bob"):
        what, fix = bring("alice/secret", token)["error"]
        assert what == "alice/secret is not on the Hub, or is private."
        assert "hf auth login" in fix
    assert bring("alice/secret", "hf_alice")["answer"]["added"] == 1


def test_a_gated_dataset_says_where_its_terms_are(hub, bring):
    hub.add("dataset", "alice/gated", {"train.parquet": parquet(speech(1))}, gated=True)
    for token in (None, "hf_bob"):
        what, fix = bring("alice/gated", token)["error"]
        assert what == "alice/gated is given only to those who accept its terms."
        assert "https://huggingface.co/datasets/alice/gated" in fix


def test_a_token_that_is_not_valid_is_told_from_a_missing_dataset(hub, bring):
    hub.add("dataset", "alice/speech", {"train.parquet": parquet(speech(1))})
    assert bring("alice/speech", "hf_old")["error"][0] == "The Hub does not accept this token."


def test_what_is_not_there_is_named(hub, bring):
    data = {"a/train-0.parquet": parquet(speech(1)), "b/train-0.parquet": parquet(speech(1))}
    hub.add("dataset", "alice/speech", {"README.md": card({"a": ["train"], "b": ["train"]}), **data})
    assert bring("alice/none")["error"][0] == "alice/none is not on the Hub, or is private."
    assert bring("alice/speech", revision="v9")["error"] == [
        "alice/speech has no revision v9.",
        "Check --dataset-revision.",
    ]
    assert bring("alice / speech")["error"][0] == "'alice / speech' is no name of a dataset."
    assert bring("tests/hub")["error"][0] == "There is a file or folder tests/hub here."
    for config in (None, "c"):
        wrong = bring("alice/speech", config=config)["error"]
        assert wrong == ["alice/speech needs a config: a, b.", "Name one with --dataset-config."]
    wrong = bring("alice/speech", config="a", split="test")["error"]
    assert wrong == ["alice/speech has no split 'test'; it has: train.", "Name one with --dataset-split."]


def test_a_hub_that_limits_requests_says_how_to_go_on(hub, bring):
    hub.add("dataset", "alice/speech", {"train.parquet": parquet(speech(1))})
    hub.fail(r"/api/datasets/alice/speech", status=429)
    what, fix = bring("alice/speech")["error"]
    assert what == "The Hub takes no more requests for now (429)."
    assert "Run the same command again" in fix


def test_a_hub_that_fails_for_a_moment_is_asked_again(hub, bring):
    hub.add("dataset", "alice/speech", {"train.parquet": parquet(speech(2))})
    hub.fail(r"/resolve/.*parquet", status=503, headers={"Retry-After": "0"})
    hub.fail(r"/resolve/.*parquet", cut=100)
    assert bring("alice/speech")["answer"]["added"] == 2
    assert all(not fault.times for fault in hub.faults)


def test_a_dataset_script_is_refused_and_its_parquet_copy_read(hub, bring, folder):
    hub.add("dataset", "google/fleurs", {"fleurs.py": b"raise SystemExit('this ran')", "README.md": card({}, "mit")})
    hub.add(
        "dataset", "google/fleurs", {"fr_fr/test/0000.parquet": parquet(speech(2))}, revision="refs/convert/parquet"
    )
    what, fix = bring("google/fleurs", config="fr_fr")["error"]
    assert what == "google/fleurs is a script, which would run its code here; it is refused."
    answer = bring("google/fleurs", config="fr_fr", split="test", revision=fix.split()[-1].rstrip("."))["answer"]
    assert answer["added"] == 2


def test_loose_audio_files_and_plain_texts_are_not_streamed(hub, bring):
    rows = json.dumps({"file_name": "0.wav", "text": "one"}) + "\n"
    hub.add("dataset", "alice/loose", {"train/metadata.jsonl": rows.encode(), "train/0.wav": encoded(0)})
    what, fix = bring("alice/loose")["error"]
    assert what == "alice/loose holds loose audio files, which cannot be streamed."
    assert "hf download" in fix
    hub.add("dataset", "alice/texts", {"train.jsonl": b'{"text": "one", "audio_filepath": "a.wav"}\n'})
    assert bring("alice/texts")["error"][0].startswith("alice/texts has no column that is known to hold audio;")
    hub.add("dataset", "alice/empty", {"notes.bin": b"bin"})
    assert bring("alice/empty")["error"][0] == "alice/empty holds no data files of a known kind."


def test_a_killed_import_goes_on_and_doubles_no_row(hub, bring, fresh_client, folder):
    hub.add("dataset", "alice/speech", {"train.parquet": parquet(speech(8))})
    spec = {"name": "alice/speech", "seed": 3}
    assert fresh_client.call("import", spec=spec, folder=str(folder), die_after=4) == {}
    journal = folder / "imported.jsonl"
    lines = journal.read_text().splitlines(keepends=True)
    assert len(lines) == 4 == len(texts(folder))
    journal.write_text("".join(lines[:3]) + lines[3][:20])  # as if it had been killed between a row and its note
    answer = bring(**spec)["answer"]
    assert (answer["added"], answer["known"], answer["seconds"]) == (4, 4, 8.0)
    assert sorted(texts(folder)) == [f"phrase {n}" for n in range(8)]
    assert bring(**spec)["answer"]["added"] == 0


def test_an_import_that_the_hub_ended_keeps_what_it_had(hub, bring, folder):
    shards = {f"train-{n}.parquet": parquet(speech(4, first=4 * n)) for n in range(2)}
    hub.add("dataset", "alice/speech", shards)
    hub.fail(r"/resolve/.*/train-1.parquet", status=403, times=99)
    assert bring("alice/speech")["error"][0] == "This token may not read alice/speech."
    assert texts(folder) == [f"phrase {n}" for n in range(4)]
    hub.faults.clear()
    assert bring("alice/speech")["answer"]["added"] == 4


def test_two_imports_into_one_corpus_do_not_mix(folder):
    corpus = Corpus.create(folder)
    with journal_of(corpus), pytest.raises(DataError, match="Another process is importing"), journal_of(corpus):
        pass


@pytest.fixture
def granary_hub(hub):
    """Both datasets of Granary in their layouts, small."""
    row = {"lang": "fr", "task": "asr", "translation_en": "", "original_audio_id": "v1", "original_audio_offset": 0.0}
    wanted = [{**r, "duration": 1.0, "utt_id": f"u{n}", **row} for n, r in enumerate(speech(3))]
    for each, text in zip(wanted, ("Bonjour à tous.", "[Musique] bonjour", "Un deux trois. " * 20), strict=True):
        each["text"] = text
    files = {
        "data/fr000/asr_only/00000000.parquet": parquet(wanted),
        "data/fr000/ast/00000000.parquet": parquet(wanted),
    }
    header = "---\nlicense: cc-by-3.0\nconfigs:\n- config_name: French\n  data_files:\n"
    header += "".join(f"  - split: {split}\n    path: data/fr000/{split}/*\n" for split in ("asr_only", "ast"))
    hub.add("dataset", granary.AUDIO, {"README.md": f"{header}---\n".encode(), **files})
    rows = [
        {
            "utt_id": f"fr{n}",
            "audio_filepath": f"fr/{n}.wav",
            "duration": 4.0,
            "text": f"Mesdames et messieurs, {'encore ' * (n % 7 + 1)}une phrase de la session {chr(97 + n % 26) * 3}.",
            "dataset_source": "voxpopuli",
            "original_source_id": f"session{n // 50}",
        }
        for n in range(4000)
    ]
    lines = "".join(json.dumps(each) + "\n" for each in rows).encode()
    hub.add("dataset", granary.TEXTS, {"README.md": b"# Granary\n", "fr/voxpopuli/fr_asr.jsonl": lines})
    return hub


def test_granary_brings_speech_with_licence_credit_and_what_its_texts_are(granary_hub, call, folder):
    answer = call("granary", folder=str(folder), language="fr", max_hours=1)["answer"]
    assert (answer["added"], answer["unwanted"]) == (1, 2)
    (row,) = Corpus(folder).rows()[0]
    assert (row.text, row.language, row.licence) == ("Bonjour à tous.", "fr", "cc-by-3.0")
    assert row.source.startswith("espnet/yodas-granary French asr_only @ ")
    assert "NVIDIA Granary" in row.source
    assert "pseudo-labels" in row.source
    assert "pseudo-labels" in granary.NOTICE
    assert not granary_hub.asked("/ast/")


def test_phrases_are_a_bounded_read_that_is_kept(granary_hub, call, home):
    first = call("phrases", home=str(home), language="fr", count=20, seed=1)["answer"]
    reads = [
        request.range for request in granary_hub.asked(r"fr_asr\.jsonl") if request.method == "GET" and request.range
    ]
    assert reads == [f"bytes=0-{granary.READ_BYTES - 1}"]
    assert len(first) == len({identity for identity, _ in first}) == 20
    assert all(granary.fit_to_read(text, 4) for _, text in first)
    kept = json.loads((home / "datasets" / ".phrases" / "granary.fr.json").read_text())
    assert (kept["corpus"], kept["licence"]) == ("voxpopuli", "cc-by-4.0")
    granary_hub.clear()
    assert call("phrases", home=str(home), language="fr", count=20, seed=1)["answer"] == first
    assert call("phrases", home=str(home), language="fr", count=20, seed=2)["answer"] != first
    what, fix = call("phrases", home=str(home), language="de", count=20, seed=1)["error"]
    assert what == "nvidia/Granary is not on the Hub, or is private."
    assert fix.endswith("Built-in phrases need no network.")


def test_phrases_without_a_network_say_what_to_use_instead():
    with pytest.raises(DataError, match="HF_HUB_OFFLINE is set") as offline:
        granary.phrases_from_granary("fr", 5, 0)
    assert "Built-in phrases need no network." in offline.value.fix


@pytest.mark.parametrize(
    ("chosen", "what"),
    [
        ({"language": "hi"}, "Granary has no language 'hi'"),
        ({"language": "mt"}, "Granary has Maltese texts, but no audio"),
        ({"language": "fr", "corpus": "ytc"}, "Granary's ytc is texts without audio"),
    ],
)
def test_granary_says_what_it_does_not_have(chosen, what):
    with pytest.raises(DataError, match=what):
        granary.spec(**chosen)


@pytest.mark.parametrize(
    ("text", "seconds", "learn", "read"),
    [
        ("Il faut que nous en parlions demain.", 3.0, True, True),
        ("Оттука нататък ще говорим за това.", 3.0, True, True),
        ("Il faut que nous en parlions demain.", 1.0, False, False),
        ("Il faut que nous en parlions demain.", 31.0, False, False),
        ("Oui.", 0.6, True, False),
        ("Oui.", 0.4, False, False),
        ("12 345 678 90 12 345 678", 5.0, False, False),
        ("Plus sur www.exemple.fr pour vous tous", 5.0, False, False),
        ("[Applaudissements] merci à vous tous", 5.0, False, False),
        ("mot " * 60, 12.0, True, False),
    ],
)
def test_texts_are_filtered(text, seconds, learn, read):
    assert (granary.fit_to_learn(text, seconds), granary.fit_to_read(text, seconds)) == (learn, read)


def test_the_table_of_languages_is_granary_s():
    assert len(granary.LANGUAGES) == 25
    assert sorted(code for code, language in granary.LANGUAGES.items() if not language.audio) == ["mt", "sl"]


def test_importing_the_modules_imports_nothing_heavy():
    heavy = {"torch", "transformers", "datasets", "huggingface_hub"}
    code = f"import sys, voxtral_finetune.data.granary; print(sorted({heavy} & set(sys.modules)))"
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert output.strip() == "[]"


def command(hub, home, *arguments):
    """The command line in a process of its own, with the loopback Hub as its Hub."""
    environment = {**hub.environment(home), "VOXTRAL_FINETUNE_HOME": str(home)}
    line = [sys.executable, "-m", "voxtral_finetune", *map(str, arguments)]
    return subprocess.run(line, env=environment, capture_output=True, text=True, check=False)


def test_the_command_line_brings_granary_and_says_that_its_texts_are_pseudo_labels(granary_hub, home):
    done = command(granary_hub, home, "prepare", "--granary", "fr", "--output", home / "datasets" / "fr")
    assert done.returncode == 0, done.stderr
    assert "pseudo-labels" in done.stderr
    assert "hours from espnet/yodas-granary French" in done.stdout
    assert Corpus(home / "datasets" / "fr").rows()[0]
    phrases = command(granary_hub, home, "phrases", "fr", "--granary", 20)
    assert "20 phrases in" in phrases.stdout, phrases.stderr
    assert len(command(granary_hub, home, "phrases", "fr", "--pack", "granary").stdout.splitlines()) == 20


def test_a_dataset_of_the_hub_is_learned_from_and_its_commit_noted(hub, home, small_checkpoint):
    sha = hub.add("dataset", "alice/speech", {"train.parquet": parquet(speech(12))})
    settings = ("--model-checkpoint", small_checkpoint, "--output-dir", home / "run", "--device", "cpu", "--epochs", 1)
    done = command(hub, home, "train", "--dataset-name", "alice/speech", "--language", "en", *settings)
    assert done.returncode == 0, done.stderr
    (imported,) = [event for event in Run(home / "run").events() if event.kind == "imported"]
    assert imported.fields["revision"] == sha
    assert "datasets:\n- alice/speech" in (home / "run" / "README.md").read_text()
    both = command(hub, home, "train", "--dataset-name", "alice/speech", "--dataset-jsonl", home, *settings)
    assert "Two corpora are named" in both.stderr
