"""Synthesise the built-in demo corpus: digit strings in one voice that the mini Voxtral has never heard.

    python tools/build_demo_corpus.py --output src/voxtral_finetune/assets/demo

espeak-ng (GPL-3.0-or-later, a tool here and no dependency) speaks from a pinned wheel with the library and its data;
the mini learned people and Kokoro voices, so this one is strange to it. Linux on x86-64 only, as the wheel is.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import tempfile
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

import packages
from voxtral_finetune.data import audio
from voxtral_finetune.data.audio import SAMPLE_RATE, Wave

ENGINE = "espeak-ng 1.52.0"
WHEEL = ("espeakng-loader==0.2.4", "08721baf27d13d461f6be6eed9a65277e70d68234ff484fd8b9897b222cdcb6d")
VOICE = "en-gb-scotland+m3"
SPEAKER = "demo_espeak"
LICENCE = "CC0-1.0"
PAUSE = 3
"""Between words, in espeak-ng's unit of 10 ms at its normal speed."""
PEAK = 0.12
"""Of full scale: quiet enough that FLAC stays small, far above its 16 bits."""
SEED = 0
WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
LENGTHS = {1: 10, 2: 30, 3: 35, 4: 30, 5: 25}
"""How many strings of each length, in words; every text occurs once."""
LONGEST = 3.8
"""Seconds: one window of the mini holds 4."""

RETRIEVAL, RATE, PITCH, WORD_GAP, UTF8 = 1, 1, 3, 7, 1  # espeak-ng's speak_lib.h: output mode, parameters, characters
Callback = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p)


class Espeak:
    """One espeak-ng voice from an unpacked `espeakng_loader` folder."""

    def __init__(self, folder: Path, voice: str) -> None:
        self.library = ctypes.CDLL(str(folder / "libespeak-ng.so"))
        self.rate: int = self.library.espeak_Initialize(RETRIEVAL, 0, str(folder).encode(), 0)
        if self.rate <= 0 or self.library.espeak_SetVoiceByName(voice.encode()) != 0:
            raise SystemExit(f"espeak-ng in {folder} does not start with the voice {voice}.")
        self.pieces: list[np.ndarray] = []
        self.callback = Callback(self._receive)  # kept: the library holds only a pointer to it
        self.library.espeak_SetSynthCallback(self.callback)

    def _receive(self, samples, count, _events) -> int:  # type: ignore[no-untyped-def]  # called from C
        if samples and count:
            self.pieces.append(np.ctypeslib.as_array(samples, (count,)).copy())
        return 0

    def say(self, text: str, words_per_minute: int, pitch: int) -> Wave:
        """One text as 16 kHz samples (n,); `pitch` is 0–100, 50 being the voice's own."""
        self.pieces = []
        self.library.espeak_SetParameter(RATE, words_per_minute, 0)
        self.library.espeak_SetParameter(PITCH, pitch, 0)
        self.library.espeak_SetParameter(WORD_GAP, PAUSE, 0)
        encoded = text.encode()
        self.library.espeak_Synth(encoded, len(encoded) + 1, 0, 0, 0, UTF8, None, None)
        self.library.espeak_Synchronize()
        wave = np.concatenate(self.pieces).astype(np.float32) / 32768
        return trim(audio.resample(wave * (PEAK / np.abs(wave).max()), self.rate))


def trim(wave: Wave, margin: float = 0.05) -> Wave:
    """Leaves `margin` seconds of what is under 1 % of the peak at both ends."""
    loud = np.flatnonzero(np.abs(wave) > 0.01 * np.abs(wave).max())
    keep = int(margin * SAMPLE_RATE)
    return wave[max(0, loud[0] - keep) : loud[-1] + keep]


def texts(random: np.random.Generator) -> list[str]:
    """Distinct digit strings in a random order, LENGTHS of each length."""
    chosen: list[str] = []
    for length, count in LENGTHS.items():
        numbers = random.choice(10**length, size=count, replace=False)
        chosen += [" ".join(WORDS[int(digit)] for digit in f"{number:0{length}d}") for number in numbers]
    return [chosen[i] for i in random.permutation(len(chosen))]


def write_corpus(folder: Path, voice: Espeak) -> float:
    """Writes audio, rows and format number; returns the seconds of speech."""
    (folder / "audio").mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(SEED)
    rows: list[dict[str, Any]] = []
    for number, text in enumerate(texts(random)):
        wave = voice.say(text, int(random.integers(155, 196)), int(random.integers(35, 66)))
        if len(wave) > LONGEST * SAMPLE_RATE:
            raise SystemExit(f"{text!r} lasts {len(wave) / SAMPLE_RATE:.2f} s, over {LONGEST} s.")
        path = Path("audio") / f"digits-{number:03d}.flac"
        audio.write(folder / path, wave, SAMPLE_RATE)
        row = {
            "audio_path": path.as_posix(),
            "text": text,
            "language": "en",
            "speaker": SPEAKER,
            "seconds": round(len(wave) / SAMPLE_RATE, 2),
            "source": f"synthetic: {ENGINE} {VOICE}",
            "licence": LICENCE,
            "synthetic": True,
        }
        rows.append(row)
    (folder / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    (folder / "corpus.json").write_text(json.dumps({"format": 1}) + "\n", encoding="utf-8")
    return sum(float(row["seconds"]) for row in rows)


README = """# Demo corpus

{count} strings of one to five English digits, {seconds:.0f} seconds, in one synthetic voice: {engine}, voice `{voice}`,
at speeds and pitches that vary a little from string to string. Every text occurs once; 16 kHz mono FLAC.

The mini Voxtral beside this folder has never heard the voice and gets it badly wrong, so it shows in two minutes of CPU
time what fine-tuning does. No person speaks here.

- Licence of the recordings: CC0 1.0 (no rights are claimed in synthesised digits). espeak-ng itself is
  GPL-3.0-or-later; it made the sound and is not part of this package.
- Made by `python tools/build_demo_corpus.py --output FOLDER`, seed {seed}, from the wheel `{wheel}`
  (SHA-256 `{sha256}`).
- `data.jsonl` is a corpus like any other: one row a recording, paths relative to the file.
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--downloads", type=Path, default=Path("build/downloads"))
    options = parser.parse_args()
    wheel = packages.pypi(*WHEEL, options.downloads)
    with tempfile.TemporaryDirectory() as unpacked, zipfile.ZipFile(wheel) as archive:
        archive.extractall(unpacked)
        seconds = write_corpus(options.output, Espeak(Path(unpacked) / "espeakng_loader", VOICE))
    readme = README.format(
        count=sum(LENGTHS.values()),
        seconds=seconds,
        engine=ENGINE,
        voice=VOICE,
        wheel=WHEEL[0],
        sha256=WHEEL[1],
        seed=SEED,
    )
    (options.output / "README.md").write_text(readme, encoding="utf-8")
    print(f"{sum(LENGTHS.values())} strings, {seconds:.0f} s")


if __name__ == "__main__":
    main()
