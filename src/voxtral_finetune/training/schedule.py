"""What a run will hear and how often: windows, updates, augmentation, and whether the encoder's work is kept.

Everything here follows from the settings and the lengths of the utterances; nothing depends on the device.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from voxtral_finetune.data.rows import Utterance
from voxtral_finetune.data.windows import Window, efficiency, packs
from voxtral_finetune.errors import SettingsError
from voxtral_finetune.settings import Settings
from voxtral_finetune.training.checks import hears_frozen
from voxtral_finetune.training.dataset import Hearing, Timeline
from voxtral_finetune.training.distributed import is_sharded, processes

UTTERANCES_PER_UPDATE = 8
"""How many an update gathers where nobody says: enough for a steady gradient, few enough to learn from 50 phrases."""

ENOUGH_HOURS = 5.0
"""Above so much speech nothing is augmented by default: the recordings differ enough by themselves."""


@dataclass(frozen=True)
class Schedule:
    """A run's windows: `updates` of `hearing.per_update` each; `cache` says whether embeddings are kept, `why` so."""

    hearing: Hearing
    updates: int
    windows: int
    utterances_per_update: float
    speech_per_update: float
    efficiency: float
    longest: int
    cache: bool
    why: str
    replay: int = 0
    """Utterances of an epoch that are drawn from the corpus that is replayed."""
    streamed: bool = False
    """The rows were a sample of a corpus that streams: nobody knows how many windows it has."""

    def epochs(self, updates: int) -> float | None:
        """How often so many updates go through the corpus; None where its size is not known."""
        return None if self.streamed else round(updates * self.hearing.per_update / self.windows, 3)

    def facts(self) -> dict[str, object]:
        """What is worth showing, for the event `plan`."""
        return {
            "packing": self.hearing.packing,
            "replay": self.replay,
            "windows": None if self.streamed else self.windows,
            "window_seconds": self.hearing.window_seconds,
            "updates": self.updates,
            "windows_per_update": self.hearing.per_update,
            "utterances_per_update": round(self.utterances_per_update, 1),
            "speech_seconds_per_update": round(self.speech_per_update, 1),
            "efficiency": round(self.efficiency, 3),
            "vary_speed": self.hearing.vary_speed,
            "mask_spectrum": self.hearing.mask_spectrum,
            "cache": self.cache,
            "cache_why": self.why,
        }


def schedule(
    rows: Sequence[Utterance],
    settings: Settings,
    window_seconds: float,
    cache_bytes: int,
    replay: Sequence[Utterance] = (),
) -> Schedule:
    """The schedule of a run over `rows`, and a share of `replay`; `cache_bytes` is what a window's embeddings take."""
    chosen = settings.training
    packing = packs(rows, window_seconds) if chosen.packing is None else chosen.packing
    small = not settings.data.stream and sum(row.seconds or 0.0 for row in rows) < ENOUGH_HOURS * 3600
    speed = small if chosen.vary_speed is None else chosen.vary_speed
    mask = small if chosen.mask_spectrum is None else chosen.mask_spectrum
    if chosen.cache_audio:  # asked for: what nobody asked for gives way
        speed, mask = bool(chosen.vary_speed), bool(chosen.mask_spectrum)
    hearing = Hearing(
        window_seconds,
        1,
        chosen.seed,
        packing,
        language_free_share=chosen.language_free_share,
        vary_speed=speed,
        mask_spectrum=mask,
        replay_share=chosen.replay_share if replay else 0.0,
    )
    timeline = Timeline(rows, hearing, replay)
    heard = len(rows) + len(timeline.replayed(0))
    windows = [window for _, window in timeline.epoch(0)]
    chunks = [timeline.chunks(window) for window in windows]
    cache, why = _cache(settings, hearing, small, sum(chunks) * cache_bytes)
    per_update = _per_update(settings, heard / len(windows))
    return Schedule(
        Hearing(**{**vars(hearing), "per_update": per_update, "repack": not cache}),
        updates=chosen.max_steps or max(1, math.ceil(len(windows) * chosen.epochs / per_update)),
        windows=len(windows),
        utterances_per_update=per_update * heard / len(windows),
        speech_per_update=per_update * sum(window.seconds for window in windows) / len(windows),
        efficiency=efficiency(windows, window_seconds),
        longest=max([*chunks, *(timeline.chunks(Window((row,))) for row in replay)]),  # any is drawn some time
        cache=cache,
        why=why,
        replay=heard - len(rows),
        streamed=settings.data.stream,
    )


def longest_window(rows: Sequence[Utterance], made: Schedule) -> Window:
    """The window of the first epoch that costs most: most windows of the checkpoint, then the longest text."""
    timeline = Timeline(rows, made.hearing)
    return max((window for _, window in timeline.epoch(0)), key=lambda each: (timeline.chunks(each), len(each.text)))


def _per_update(settings: Settings, utterances_per_window: float) -> int:
    chosen = settings.training
    steps = chosen.grad_accum or max(1, round(UTTERANCES_PER_UPDATE / (chosen.batch_size * utterances_per_window)))
    windows, (_, devices) = chosen.batch_size * steps, processes()
    if windows % devices:
        if chosen.grad_accum is None:
            return -(-windows // devices) * devices
        what = f"{windows} windows an update (--batch-size × --grad-accum) cannot be shared by {devices} processes."
        raise SettingsError(what, f"Choose a product that {devices} divides.")
    return windows


def _cache(settings: Settings, hearing: Hearing, small: bool, needed: int) -> tuple[bool, str]:
    """(whether embeddings are kept, the reason in words); raises SettingsError where they were asked for in vain."""
    chosen = settings.training
    changed = hearing.vary_speed or hearing.mask_spectrum or chosen.noise is not None
    limit = chosen.cache_gb * 1e9
    against = [
        (not hears_frozen(settings), "what hears the audio learns too"),
        (is_sharded(), "the encoder is sharded over devices"),
        (changed, "the audio is changed anew in each epoch"),
        (hearing.replay_share > 0, "other utterances are replayed in each epoch"),
    ]
    reasons = [why for holds, why in against if holds]
    if chosen.cache_audio:
        if reasons:
            raise SettingsError(f"--cache-audio is not possible: {reasons[0]}.", "Leave one of the two out.")
        return True, "asked for"
    by_default = [
        (settings.data.stream, "the corpus streams"),
        (chosen.cache_audio is False, "not asked for"),
        (chosen.epochs <= 1 and chosen.max_steps is None, "each window is heard once"),
        (hearing.packing and small, "a small corpus learns more from windows packed anew in each epoch"),
        (needed > limit, f"it would take {needed / 1e9:.0f} GB of the {chosen.cache_gb:g} that --cache-gb allows"),
    ]
    reasons += [why for holds, why in by_default if holds]
    return not reasons, reasons[0] if reasons else "the encoder is frozen, and its work is the same in each epoch"
