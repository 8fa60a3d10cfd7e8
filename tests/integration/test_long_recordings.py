"""Long recordings of real speech: what is accepted is right, what does not belong is aside, memory is bounded."""

import json
import os
import random
import subprocess
import sys
from bisect import bisect_left
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import pytest
import soundfile

from voxtral_finetune.data import audio
from voxtral_finetune.data.audio import SAMPLE_RATE
from voxtral_finetune.data.segments import PIECE_SECONDS, segment
from voxtral_finetune.data.speech import FRAME, activity, blocks, cut
from voxtral_finetune.model.catalog import ASSETS

WORD_ERRORS = 0.2
STEP = 160  # samples over which the tests judge loudness: 10 ms


@dataclass(frozen=True)
class Word:
    """A word of the reading, and when it is spoken, in seconds."""

    text: str
    start: float
    end: float


@pytest.fixture(scope="module")
def chapter(speech_data, tmp_path_factory):
    """13.6 minutes of one reader: (recording, transcript, its words in time)."""
    folder = tmp_path_factory.mktemp("chapter")
    subprocess.run([sys.executable, speech_data / "build_longform.py", folder], check=True, capture_output=True)
    wave, _ = soundfile.read(folder / "lj003.flac", dtype="float32")
    sentences = [json.loads(line) for line in (folder / "lj003.segments.jsonl").read_text().splitlines()]
    words = [word for row in sentences for word in words_of(wave, row["text"], row["start"], row["end"])]
    return folder / "lj003.flac", (folder / "lj003.txt").read_text(), words


def sounding(wave, start, end):
    """Times of the 10 ms steps of a stretch in which there is sound: at most 30 dB under its loud ones."""
    part = wave[int(start * SAMPLE_RATE) : int(end * SAMPLE_RATE)]
    power = 10 * np.log10(np.square(part[: len(part) // STEP * STEP].reshape(-1, STEP)).mean(axis=1) + 1e-12)
    return start + np.flatnonzero(power > np.percentile(power, 90) - 30) * STEP / SAMPLE_RATE


def words_of(wave, text, start, end):
    """The words of a stretch, its sound shared out by their letters; the first and the last begin and end with it."""
    times, words = sounding(wave, start, end), text.split()
    marks = np.cumsum([0, *(len(word) + 1 for word in words)])
    places = (marks / marks[-1] * (len(times) - 1)).round().astype(int)
    return [Word(word, times[places[i]], times[places[i + 1]]) for i, word in enumerate(words)]


def corrupted(words, rng, vocabulary):
    """A draft of words with WORD_ERRORS of them replaced, dropped or followed by another, a third each."""
    draft = []
    for word in words:
        if rng.random() >= WORD_ERRORS:
            draft.append(word)
            continue
        kind = rng.choice(["replace", "drop", "insert"])
        draft += {"replace": [rng.choice(vocabulary)], "drop": [], "insert": [word, rng.choice(vocabulary)]}[kind]
    return " ".join(draft)


class Drafter:
    """Hears, with errors, the words whose middle lies in a piece, piece after piece; `words` then have exact ends."""

    def __init__(self, recording, words):
        self.pieces = cut(activity(blocks(recording)), PIECE_SECONDS)
        middles = [(one.end + other.start) / 2 for one, other in pairwise(self.pieces)]
        owners = np.searchsorted(middles, [(word.start + word.end) / 2 for word in words]).tolist()
        firsts = [bisect_left(owners, piece) for piece in range(len(self.pieces) + 1)]
        texts = [" ".join(word.text for word in words[first:last]) for first, last in pairwise(firsts)]
        wave = audio.load(recording)
        self.heard = [words_of(wave, text, p.start, p.end) for text, p in zip(texts, self.pieces, strict=True)]
        self.words = [word for words in self.heard for word in words]
        self.vocabulary = sorted({word.text for word in words})
        self.start(seed=0)

    def start(self, seed):
        self.rng, self.next = random.Random(seed), 0

    def __call__(self, waves):
        first, self.next = self.next, self.next + len(waves)
        spoken = [[word.text for word in words] for words in self.heard[first : self.next]]
        return [corrupted(words, self.rng, self.vocabulary) for words in spoken]


def well_placed(found, words):
    """How many words are accepted in pieces that start and end within 0.3 s of their first and last word."""
    count = place = 0
    accepted = {one.piece for one in found.accepted}
    for one in sorted(found.accepted + found.aside, key=lambda one: one.piece.start):
        mine = words[place : place + len(one.text.split())]
        place += len(mine)
        if one.piece in accepted:
            off = max(abs(one.piece.start - mine[0].start), abs(one.piece.end - mine[-1].end))
            count += len(mine) if off <= 0.3 else 0
    return count


def test_nine_words_of_ten_are_accepted_in_the_right_place(chapter):
    recording, transcript, words = chapter
    drafter = Drafter(recording, words)
    shares = []
    for seed in range(3):
        drafter.start(seed)
        shares.append(well_placed(segment(recording, transcript, drafter), drafter.words) / len(words))
    assert np.mean(shares) >= 0.9, shares


def test_of_an_unrelated_transcript_next_to_nothing_is_accepted(chapter, speech_data):
    recording, _, words = chapter
    lines = (speech_data / "ivr_en" / "manifest.jsonl").read_text(encoding="utf-8").splitlines()
    unrelated = " ".join(json.loads(line)["text"] for line in lines)
    found = segment(recording, unrelated, Drafter(recording, words))
    assert sum(len(one.text.split()) for one in found.accepted) < 0.05 * len(unrelated.split())


def test_pieces_end_in_silence(chapter):
    recording, _, _ = chapter
    heard = activity(blocks(recording))
    for piece in cut(heard, PIECE_SECONDS):
        assert piece.end - piece.start <= PIECE_SECONDS
        frames = [round(piece.start * SAMPLE_RATE / FRAME), round(piece.end * SAMPLE_RATE / FRAME) - 1]
        assert heard.speech[frames].max() < 0.5
        assert not piece.in_speech


MEMORY = """
import sys
from pathlib import Path
from voxtral_finetune.data.segments import segment
from voxtral_finetune.run import peak_rss
for recording in sys.argv[1:]:
    found = segment(Path(recording), None, lambda waves: ["la" for _ in waves])
    print(len(found.aside), peak_rss() // 1_000_000)
print(sorted({"torch", "torchaudio", "transformers"} & set(sys.modules)))
"""


def test_memory_does_not_grow_with_the_recording(chapter, tmp_path):
    recording, _, _ = chapter
    times = 9 if os.environ.get("VOXTRAL_SOAK") else 3  # 2 hours, or 40 minutes
    wave, _ = soundfile.read(recording, dtype="int16")
    with soundfile.SoundFile(tmp_path / "long.flac", "w", SAMPLE_RATE, 1) as file:
        for _ in range(times):
            file.write(wave)
    command = [sys.executable, "-c", MEMORY, recording, tmp_path / "long.flac"]
    short, long, heavy = subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()
    assert int(long.split()[0]) == pytest.approx(times * int(short.split()[0]), abs=2 * times)
    samples = 4 * (times - 1) * len(wave) / 1e6
    assert int(long.split()[1]) - int(short.split()[1]) < 0.25 * samples, "MB more than for one chapter"
    assert heavy == "[]"


def digits(speech_data, speaker, count):
    """A recording of `count` spoken digits, a longer pause after every third, and when each is said."""
    manifest = speech_data / "fsdd" / "manifest.jsonl"
    rows = [json.loads(line) for line in manifest.read_text(encoding="utf-8").splitlines()]
    takes = [row for row in rows if row["speaker"] == speaker and row["split"] == "test"]
    parts, words, length = [np.zeros(SAMPLE_RATE, np.float32)], [], SAMPLE_RATE
    for number, row in enumerate(random.Random(0).choices(takes, k=count)):
        wave = audio.load(manifest.parent / row["audio_path"])
        words.append(Word(row["text"], length / SAMPLE_RATE, (length + len(wave)) / SAMPLE_RATE))
        parts += [wave, np.zeros(int((0.8 if number % 3 == 2 else 0.1) * SAMPLE_RATE), np.float32)]
        length += len(wave) + len(parts[-1])
    return np.concatenate(parts), words


@pytest.mark.parametrize("speaker", ["fsdd_jackson", "fsdd_george"])
def test_digits_drafted_by_the_built_in_checkpoint_are_divided_exactly(speech_data, tmp_path, speaker):
    if not (ASSETS / "mini" / "model.safetensors").exists():
        pytest.skip("the built-in checkpoint is not there")
    import torch

    from voxtral_finetune.evaluation.transcribe import Transcriber
    from voxtral_finetune.model.load import load_model, load_processor

    transcriber = Transcriber(load_model("mini", None, torch.device("cpu")), load_processor("mini"))
    wave, words = digits(speech_data, speaker, 120)
    audio.write(tmp_path / "digits.wav", wave, SAMPLE_RATE)
    found = segment(
        tmp_path / "digits.wav",
        " ".join(word.text for word in words),
        lambda waves: transcriber.transcribe(waves, ["en"] * len(waves)),
        transcriber.collator.window_samples / SAMPLE_RATE,
    )
    assert not found.aside
    assert " ".join(one.text for one in found.accepted) == " ".join(word.text for word in words)
    for one in found.accepted:
        inside = [word.text for word in words if one.piece.start < (word.start + word.end) / 2 < one.piece.end]
        assert one.text == " ".join(inside)
