"""A checkpoint in any form hears recordings: loaded, checked, timed."""

from __future__ import annotations

import time
from collections.abc import Sequence

from voxtral_finetune.evaluation.pieces import Recording
from voxtral_finetune.evaluation.transcribe import Progress, Transcriber
from voxtral_finetune.evaluation.transcripts import Transcripts
from voxtral_finetune.model import load


def transcriber(
    checkpoint: str, device: str = "auto", batch_size: int = 8, revision: str | None = None, native: bool = False
) -> tuple[Transcriber, str]:
    """(the checkpoint ready to transcribe, its fingerprint).

    Raises ModelError where it cannot be loaded, or is an adapter that changes nothing of its base.
    """
    model = load.load_model(checkpoint, revision, load.pick_device(device))
    made = Transcriber(model, load.load_processor(checkpoint, revision), batch_size, native)
    return made, made.check_adapter()


def hear(
    checkpoint: str,
    recordings: Sequence[Recording],
    device: str = "auto",
    batch_size: int = 8,
    revision: str | None = None,
    progress: Progress | None = None,
) -> Transcripts:
    """A test set as a checkpoint hears it; raises as `transcriber` does, and DataError where one cannot be read."""
    return timed(*transcriber(checkpoint, device, batch_size, revision), recordings, progress)


def timed(
    ready: Transcriber, fingerprint: str, recordings: Sequence[Recording], progress: Progress | None = None
) -> Transcripts:
    """What `transcriber` made ready hears, and how long it takes; raises DataError where a recording cannot be read."""
    started = time.monotonic()
    heard = [each for each in ready.hear(recordings, progress) if each is not None]
    took = time.monotonic() - started
    seconds = sum(recording.seconds or 0.0 for recording in recordings)
    return Transcripts.of(heard, seconds, took, fingerprint)
