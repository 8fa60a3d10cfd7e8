"""A large corpus loads, is checked and is split in bounded memory. `make soak` does it with 100 000 rows."""

import json
import os
import subprocess
import sys

import numpy as np

from voxtral_finetune.data import audio

ROWS = 100_000 if os.environ.get("VOXTRAL_SOAK") else 3_000
LIMIT_BYTES = 1_000_000_000

WORK = """
import json, sys
from pathlib import Path
from voxtral_finetune.data import doctor, sources
from voxtral_finetune.data.split import split
from voxtral_finetune.run import peak_rss
survey = sources.survey(Path(sys.argv[1]))
diagnosis = doctor.diagnose(survey)
divided = split(survey.utterances)
print(json.dumps({
    "usable": len(survey.utterances),
    "diagnosed": len(diagnosis.rows),
    "divided": sum(map(len, (divided.train, divided.dev, divided.test))),
    "peak": peak_rss(),
}))
"""


def test_a_large_corpus_takes_less_than_a_gigabyte(tmp_path):
    (tmp_path / "audio").mkdir()
    rng = np.random.default_rng(0)
    noise = (0.1 * rng.standard_normal(1600 + ROWS)).astype(np.float32)
    with (tmp_path / "data.jsonl").open("w") as manifest:
        for number in range(ROWS):
            name = f"audio/{number}.wav"
            audio.write(tmp_path / name, noise[number : number + 1600], 8000)
            row = {"audio_path": name, "text": f"take {number}", "language": "en", "speaker": f"s{number % 50}"}
            manifest.write(json.dumps(row) + "\n")
    command = [sys.executable, "-c", WORK, str(tmp_path / "data.jsonl")]
    found = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    assert found["usable"] == found["diagnosed"] == ROWS
    assert 0 < found["divided"] <= ROWS
    assert found["peak"] < LIMIT_BYTES
