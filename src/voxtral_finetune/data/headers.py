"""What the first bytes of a file say: which container it is, and whether a WAV header tells the truth."""

from __future__ import annotations

import os
from typing import BinaryIO

from voxtral_finetune.data.findings import Finding

STREAMED = 0xFFFFFF00
"""Sizes from here on mean "not known": FFmpeg writes 0xFFFFFFFF where it cannot go back to the header."""

MAX_CHUNKS = 1000
SLACK = 8
"""Bytes that may be missing or left over without being worth a word: padding."""

MPEG_SECOND = frozenset(b"\xe2\xe3\xf2\xf3\xfa\xfb\xf4\xf5\xfc\xfd\xf0\xf1\xf8\xf9")
"""What follows 0xFF in a frame of MPEG audio layer III, layer II, and AAC (ADTS). Layer I, which nobody uses, is left
out: its 0xFF 0xFE also begins UTF-16 text."""


def is_audio(head: bytes) -> bool:
    """Whether a file that begins with these (at least 16) bytes is in a container that holds sound."""
    if head[:4] in (b"RIFF", b"RIFX", b"RF64", b"riff", b"fLaC", b"OggS", b"FORM", b"caff", b".snd"):
        return True
    if head[:3] == b"ID3" or head[:4] == b"\x1a\x45\xdf\xa3" or head[4:8] == b"ftyp":
        return True
    return len(head) > 1 and head[0] == 0xFF and head[1] in MPEG_SECOND


def is_pointer(head: bytes) -> bool:
    """Whether a file is only Git LFS's note of where the real one is."""
    return head.startswith(b"version https://git-lfs")


def wav_findings(file: BinaryIO) -> list[Finding]:
    """Where the sizes in a WAV header differ from the bytes that are there. Leaves the file at any place."""
    end = os.fstat(file.fileno()).st_size
    file.seek(0)
    if file.read(4) != b"RIFF":
        return []
    place, byte_rate = 12, 0
    for _ in range(MAX_CHUNKS):
        file.seek(place)
        head = file.read(24)
        name, size = head[:4], int.from_bytes(head[4:8], "little")
        if len(head) < 8:
            return []
        if name == b"data":
            return _data_findings(file, size, end - place - 8, place + 8 + size + size % 2, byte_rate)
        if name == b"fmt ":
            byte_rate = int.from_bytes(head[16:20], "little")
        place += 8 + size + size % 2
    return []


def _data_findings(file: BinaryIO, size: int, there: int, after: int, byte_rate: int) -> list[Finding]:
    def seconds(count: int) -> str:
        return f"{count / byte_rate:.1f} s" if byte_rate else f"{count} bytes"

    fix = "Export it again, and check that the text fits what is there."
    if size == 0 and there > SLACK:
        return [Finding("header", f"Its header says it is empty; {seconds(there)} were read.", fix)]
    if there + SLACK < size < STREAMED:
        return [Finding("header", f"Its header promises {seconds(size)}; {seconds(there)} are there.", fix)]
    left = there - size
    if left > SLACK and size < STREAMED:
        file.seek(after)
        head = file.read(8)
        known = head[:4].isascii() and head[:4].decode("ascii").isprintable()
        if not known or int.from_bytes(head[4:8], "little") > left:
            return [Finding("header", f"Its header ends it after {seconds(size)}; {left // 1000} kB follow.", fix)]
    return []
