"""A transcript divided among the pieces of its recording, by what a first draft heard in each piece.

Words that occur once in the transcript and once in the drafts, alone or as part of a short phrase, are anchors where
they keep the order (the longest such chain, as "patience diff" does it); between anchors the words are paired by edit
distance; at last each border between two pieces is placed where letters fit best, at punctuation in doubt, since
people pause there. All of it is linear in memory: an hour of speech takes a fraction of a second and a few MB.

A "word" is what stands between spaces; scripts that write none (Han, Kana, Thai, Lao, Khmer, Myanmar) are aligned a
character at a time. Nothing of the transcript is dropped or changed: text that nobody speaks stays with a piece at its
place, and costs that piece its score.
"""

from __future__ import annotations

import unicodedata
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

from rapidfuzz.distance import Levenshtein

LONGEST_PHRASE = 4
"""Phrases of up to so many words can be anchors: single words do not repeat in few texts, digits in none."""

REACH = 60
"""How many words a border may move from where the pairing of words puts it: more than a page's header or a remark."""

PAUSES = frozenset(".,;:!?…。、，；：！？।॥؟،؛։။၊។")
CLOSING = frozenset({"Pe", "Pf"})

UNSPACED = frozenset({"CJK", "HIRAGANA", "KATAKANA", "BOPOMOFO", "THAI", "LAO", "KHMER", "MYANMAR"})
"""First words of the Unicode names of letters that are written without spaces between words."""


@dataclass(frozen=True)
class Aligned:
    """What the transcript says in one piece: words `start_word` up to `end_word` (exclusive), as written.

    `score` is 1 − edit distance to the draft / the longer one's length, in letters and digits without case and spaces.
    """

    text: str
    score: float
    start_word: int
    end_word: int


@dataclass(frozen=True)
class _Words:
    """A text's words: where each starts in it, and what is compared (never empty)."""

    text: str
    starts: list[int]
    plain: list[str]

    @property
    def mean_length(self) -> float:
        return sum(map(len, self.plain)) / max(1, len(self.plain))

    def part(self, first: int, last: int) -> str:
        """The words from `first` up to `last` (exclusive) as they are written."""
        ends = [*self.starts, len(self.text)]
        return self.text[ends[first] : ends[last]].strip()


def align(drafts: Sequence[str], transcript: str) -> list[Aligned]:
    """Divides all words of the transcript among the drafts, in order; a piece with an empty draft gets none."""
    words = _words(transcript)
    heard = [_words(draft).plain for draft in drafts]
    borders = _borders(words, [draft for draft in heard if draft])
    ends = iter(borders[1:])
    aligned, start = [], 0
    for draft in heard:
        end = next(ends) if draft else start
        score = Levenshtein.normalized_similarity("".join(words.plain[start:end]), "".join(draft)) if draft else 0.0
        aligned.append(Aligned(words.part(start, end), score if end > start else 0.0, start, end))
        start = end
    return aligned


def _words(text: str) -> _Words:
    """Splits a text; what has no letter or digit goes with the word before it, at the start with the one after."""
    found = [(start, _plain(text[start:end])) for start, end in _spans(text)]
    spoken = [(start, plain) for start, plain in found if plain]
    if spoken:
        spoken[0] = (0, spoken[0][1])
    return _Words(text, [start for start, _ in spoken], [plain for _, plain in spoken])


def _spans(text: str) -> list[tuple[int, int]]:
    """(start, end) of what stands between spaces, and of each character of a script that writes none."""
    starts: list[int] = []
    after_space, after_unspaced, complete = True, False, False  # complete: the word has a letter, not only a bracket
    for index, character in enumerate(text):
        if character.isspace():
            after_space = True
            continue
        kind = unicodedata.category(character)
        sounds = kind[0] in "LN"
        unspaced = kind[0] == "L" and unicodedata.name(character, "").split(" ")[0].split("-")[0] in UNSPACED
        joins = not (sounds or kind in ("Ps", "Pi")) or not (unspaced or after_unspaced)
        if after_space or (complete and not joins):
            starts.append(index)
            complete = False
        if sounds:
            complete, after_unspaced = True, unspaced
        after_space = False
    return list(zip(starts, [*starts[1:], len(text)], strict=False))


def _plain(word: str) -> str:
    """Letters, their marks and digits, in one case and one Unicode form."""
    folded = unicodedata.normalize("NFKC", word).casefold()
    return "".join(character for character in folded if unicodedata.category(character)[0] in "LNM")


def _borders(words: _Words, heard: list[list[str]]) -> list[int]:
    """Where each piece starts in the transcript's words, and their number at the end; one piece's words a list."""
    flat = [word for draft in heard for word in draft]
    ends = list(accumulate(map(len, heard)))
    anchors = _anchors(words.plain, flat)
    pairs = _pairs(words.plain, flat, anchors)
    paired = [index for _, index in pairs]
    borders = [0]
    for start, end, following in zip([0, *ends], ends, ends[1:], strict=False):
        position = bisect_left(paired, end)
        guess = pairs[position - 1][0] + 1 if position else 0
        position = bisect_left(anchors, end, key=lambda pair: pair[1])
        low = max(borders[-1], guess - REACH, anchors[position - 1][0] + 1 if position else 0)
        high = min(guess + REACH, anchors[position][0] if position < len(anchors) else len(words.plain))
        borders.append(_best_border(words, flat, pairs, (low, high), (start, end, following)))
    return [*borders, len(words.plain)] if heard else [0, 0]


def _best_border(
    words: _Words, flat: list[str], pairs: list[tuple[int, int]], range_: tuple[int, int], ends: tuple[int, int, int]
) -> int:
    """The border between `low` and `high` words at which letters fit best to the drafts before and after it."""
    (low, high), (start, end, following) = range_, ends
    first = bisect_left(pairs, (low, 0))
    last = bisect_left(pairs, (high, 0))
    before = "".join(flat[max(start, pairs[first - 1][1] + 1 if first else 0) : end])
    after = "".join(flat[end : min(following, pairs[last][1] if last < len(pairs) else following)])

    bonus = words.mean_length

    def cost(border: int) -> float:
        left = Levenshtein.distance("".join(words.plain[low:border]), before)
        right = Levenshtein.distance("".join(words.plain[border:high]), after)
        pause = bonus if border and _ends_at_pause(words.part(border - 1, border)) else 0.0
        return left + right + 0.1 * min(left, right) - pause  # one bad piece is better than two half bad ones

    return min(range(low, high + 1), key=cost)


def _ends_at_pause(written: str) -> bool:
    """Whether a word as written ends with punctuation at which a reader pauses."""
    while written and (unicodedata.category(written[-1]) in CLOSING or written[-1] in "\"'"):
        written = written[:-1]
    return bool(written) and (written[-1] in PAUSES or unicodedata.category(written[-1]) == "Pd")


def _anchors(said: list[str], heard: list[str]) -> list[tuple[int, int]]:
    """(place in the transcript, place in the drafts) of words that surely belong together, both rising."""
    points: set[tuple[int, int]] = set()
    for length in range(1, LONGEST_PHRASE + 1):
        ours, theirs = _unique(said, length), _unique(heard, length)
        for phrase in ours.keys() & theirs.keys():
            points |= {(ours[phrase] + step, theirs[phrase] + step) for step in range(length)}
    return _rising(points)


def _unique(words: list[str], length: int) -> dict[tuple[str, ...], int]:
    """Where each phrase of `length` words starts that occurs only once."""
    places: dict[tuple[str, ...], int] = {}
    for place in range(len(words) - length + 1):
        phrase = tuple(words[place : place + length])
        places[phrase] = -1 if phrase in places else place
    return {phrase: place for phrase, place in places.items() if place >= 0}


def _rising(points: set[tuple[int, int]]) -> list[tuple[int, int]]:
    """The longest chain of points in which both numbers rise (by patience sorting, n log n)."""
    tails: list[int] = []  # the smallest second number that a chain of this length can end with
    chains: list[tuple[tuple[int, int], int]] = []  # each point and the one before it in its chain
    ends: list[int] = []  # the chain's last point, by length
    for point in sorted(points, key=lambda pair: (pair[0], -pair[1])):
        length = bisect_left(tails, point[1])
        chains.append((point, ends[length - 1] if length else -1))
        tails[length : length + 1] = [point[1]]
        ends[length : length + 1] = [len(chains) - 1]
    chain: list[tuple[int, int]] = []
    place = ends[-1] if ends else -1
    while place >= 0:
        point, place = chains[place]
        chain.append(point)
    return chain[::-1]


def _pairs(said: list[str], heard: list[str], anchors: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """The anchors, and between them the words that edit distance puts opposite each other, equal or not."""
    pairs: list[tuple[int, int]] = []
    ours = theirs = 0
    for anchor in [*anchors, (len(said), len(heard))]:
        for block in Levenshtein.opcodes(said[ours : anchor[0]], heard[theirs : anchor[1]]):
            if block.tag in ("equal", "replace"):
                size = range(block.src_end - block.src_start)
                pairs += [(ours + block.src_start + step, theirs + block.dest_start + step) for step in size]
        pairs.append(anchor)
        ours, theirs = anchor[0] + 1, anchor[1] + 1
    return pairs[:-1]
