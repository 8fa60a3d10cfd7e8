"""Train, dev and test: who teaches, who chooses, who judges.

dev chooses the checkpoint and when to stop; test is scored once, last, and is all that report, card and verdict show.
No audio (by content hash) is ever in two of them. Beyond that the three are apart by speaker, by text, or both, as far
as the corpus allows, and the split says which in words. It is a pure function of the utterances and the seed: the order
of the rows does not matter.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from voxtral_finetune.data.corpus import Utterance
from voxtral_finetune.errors import DataError, RunError
from voxtral_finetune.run import write_durably

FORMAT = 1
MIN_UTTERANCES = 6
"""Fewer cannot fill three sets with anything that could be learned or measured."""

ENOUGH_TO_JUDGE = 30
"""Test utterances under which no verdict is given (evaluation.verdict); a small corpus gives up to a third for it."""

MAX_DEV, MAX_TEST = 200, 1000
"""More would not make the choice or the interval noticeably better, only slower."""

Key = Callable[[Utterance], str]

NOTES = {
    "speaker and text": "No speaker and no text of the test set was heard in training.",
    "speaker": "No speaker of the test set was heard in training; texts are shared, the corpus has too few different.",
    "text": "No text of the test set was in training; speakers are shared.",
    "random": "Speakers and texts of the test set were in training too, in other takes.",
    "corpus": "The corpus itself says which utterances are for training and which for testing.",
}


@dataclass(frozen=True)
class Split:
    """Three disjoint lists; `by` says what they do not share and `note` says it in a sentence.

    `replay` are the rows of another corpus that are learned from along with `train`; none is in dev or test.
    """

    train: list[Utterance]
    dev: list[Utterance]
    test: list[Utterance]
    by: str
    note: str
    replay: list[Utterance] = field(default_factory=list)

    def save(self, path: Path) -> None:
        lists = {name: [_as_json(row) for row in getattr(self, name)] for name in ("train", "dev", "test")}
        replayed = {"replay": [_as_json(row) for row in self.replay]} if self.replay else {}
        content = {"format": FORMAT, "by": self.by, "note": self.note, **lists, **replayed}
        write_durably(path, json.dumps(content, ensure_ascii=False, indent=1) + "\n")

    @staticmethod
    def load(path: Path) -> Split:
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise RunError(f"{path} is damaged.", "Start a new run.") from error
        if content.get("format") != FORMAT:
            raise RunError(f"{path} was written by another version.", "Start a new run.")
        lists = {name: [_from_json(row) for row in content[name]] for name in ("train", "dev", "test")}
        replayed = [_from_json(row) for row in content.get("replay", [])]
        return Split(**lists, by=content["by"], note=content["note"], replay=replayed)


def split(
    utterances: Iterable[Utterance],
    by: str = "auto",
    seed: int = 0,
    train_count: int | None = None,
    eval_count: int | None = None,
) -> Split:
    """Divides decoded utterances (with `sha256`); raises DataError where there are too few or `by` is impossible."""
    rows = _distinct(utterances)
    if len(rows) < MIN_UTTERANCES:
        raise DataError(
            f"The corpus has {len(rows)} usable utterances.",
            f"Record at least {MIN_UTTERANCES - len(rows)} more; 50 to learn from and 30 to test are a good start.",
        )
    if any(row.split in ("dev", "test") for row in rows):
        made = _as_given(rows, seed, eval_count)
    else:
        made = _divide(rows, by, seed, eval_count)
    train = sorted(made.train, key=lambda row: _draw(seed, row.sha256 or ""))[:train_count]
    return Split(_in_order(train), _in_order(made.dev), _in_order(made.test), made.by, made.note)


def _as_given(rows: list[Utterance], seed: int, eval_count: int | None) -> Split:
    """The corpus's own division; dev and test are taken from train where it names none."""
    train = [row for row in rows if row.split in ("train", None)]
    sets: dict[str, list[Utterance]] = {}
    drawn: list[str] = []
    for name, most, size in (("test", MAX_TEST, _test_size(len(rows))), ("dev", MAX_DEV, _dev_size(len(train)))):
        named = [row for row in rows if row.split == name]
        drawn += [] if named else [name]
        count = min(eval_count or most, most if named else size)
        sets[name] = sorted(named or train, key=lambda row: _draw(seed, row.sha256 or ""))[:count]
        taken = {row.sha256 for row in sets[name]}
        train = [row for row in train if row.sha256 not in taken]
    if not train:
        raise DataError("The corpus leaves nothing to train on.", 'Mark some rows with "split": "train".')
    if "test" in drawn:
        return Split(train, sets["dev"], sets["test"], "random", NOTES["random"])
    shared = {_text(row) for row in sets["test"]} & {_text(row) for row in train}
    also = f" {len(shared)} of the test texts were in training too." if shared else ""
    return Split(train, sets["dev"], sets["test"], "corpus", NOTES["corpus"] + also)


def _divide(rows: list[Utterance], by: str, seed: int, eval_count: int | None) -> Split:
    keys: dict[str, list[Key]] = {
        "speaker and text": [_speaker, _text],
        "speaker": [_speaker],
        "text": [_text],
        "random": [],
    }
    wanted = list(keys) if by == "auto" else [by]
    for kind in wanted:
        if by == "auto" and not _allowed(kind, rows):
            continue
        test_size = min(_test_size(len(rows)), eval_count or MAX_TEST)
        dev_size = min(_dev_size(len(rows)), eval_count or MAX_DEV)
        test, rest = _take(_groups(rows, keys[kind]), test_size, seed)
        dev, train = _take(rest, dev_size, seed + 1)
        if _balanced(train, dev, test, len(rows)):
            return Split(_flat(train), _flat(dev), _flat(test), kind, NOTES[kind])
    raise DataError(
        f"The corpus cannot be divided by {by}: too few different ones.",
        "Use --split-by auto, or random, or record more.",
    )


def _allowed(kind: str, rows: list[Utterance]) -> bool:
    """Whether holding whole speakers or texts back still leaves something like them to learn from."""
    speakers = {row.speaker for row in rows}
    texts = {_text(row) for row in rows}
    enough_speakers = None not in speakers and len(speakers) >= 3
    enough_texts = len(texts) >= max(MIN_UTTERANCES, len(rows) / 3)
    return {
        "speaker and text": enough_speakers and enough_texts,
        "speaker": enough_speakers,
        "text": enough_texts,
        "random": True,
    }[kind]


def _balanced(train: list[Any], dev: list[Any], test: list[Any], total: int) -> bool:
    return bool(train and dev and test) and len(_flat(train)) >= total / 3


def _groups(rows: list[Utterance], keys: list[Key]) -> list[list[Utterance]]:
    """Rows that must stay together: those that share a key, directly or through others (union-find)."""
    parent = list(range(len(rows)))

    def root(index: int) -> int:
        while parent[index] != index:
            parent[index] = parent[parent[index]]
            index = parent[index]
        return index

    first: dict[tuple[int, str], int] = {}
    for index, row in enumerate(rows):
        for number, key in enumerate(keys):
            parent[root(index)] = root(first.setdefault((number, key(row)), index))
    groups: dict[int, list[Utterance]] = defaultdict(list)
    for index, row in enumerate(rows):
        groups[root(index)].append(row)
    return list(groups.values())


def _take(groups: list[list[Utterance]], size: int, seed: int) -> tuple[list[list[Utterance]], list[list[Utterance]]]:
    """(groups of about `size` rows in all, the others), drawn by seed; at least one group is taken."""
    taken: list[list[Utterance]] = []
    left: list[list[Utterance]] = []
    count = 0
    for group in sorted(groups, key=lambda group: _draw(seed, min(row.sha256 or "" for row in group))):
        if not taken or count + len(group) <= size:
            taken.append(group)
            count += len(group)
        else:
            left.append(group)
    return taken, left


def _test_size(total: int) -> int:
    return max(round(total * 0.2), min(ENOUGH_TO_JUDGE, total // 3))


def _dev_size(total: int) -> int:
    return max(round(total * 0.1), min(10, total // 6), 1)


def _distinct(utterances: Iterable[Utterance]) -> list[Utterance]:
    """One row for each different audio; a row that is for testing wins, so that a copy never teaches."""
    best: dict[str, Utterance] = {}
    for row in utterances:
        known = best.setdefault(row.sha256 or row.id, row)
        if row.split == "test" != known.split:
            best[row.sha256 or row.id] = row
    return list(best.values())


def _draw(seed: int, key: str) -> str:
    return hashlib.sha256(f"{seed}:{key}".encode()).hexdigest()


def _speaker(row: Utterance) -> str:
    if not row.speaker:
        raise DataError(f"Line {row.line} names no speaker.", "Add it to every row or use another --split-by.")
    return row.speaker


def _text(row: Utterance) -> str:
    return " ".join(re.findall(r"\w+", row.text.casefold()))


def _flat(groups: list[list[Utterance]]) -> list[Utterance]:
    return [row for group in groups for row in group]


def _in_order(rows: list[Utterance]) -> list[Utterance]:
    return sorted(rows, key=lambda row: (row.line, str(row.audio)))


def summary(rows: list[Utterance]) -> dict[str, Any]:
    """How much there is: utterances, seconds, and utterances by language and by speaker."""
    return {
        "utterances": len(rows),
        "seconds": round(sum(row.seconds or 0 for row in rows), 1),
        "languages": dict(Counter(row.language or "not named" for row in rows)),
        "speakers": len({row.speaker for row in rows if row.speaker}),
    }


def _as_json(row: Utterance) -> dict[str, Any]:
    return {key: str(value) if key == "audio" else value for key, value in asdict(row).items() if value is not None}


def _from_json(row: dict[str, Any]) -> Utterance:
    return Utterance(**{**row, "audio": Path(row["audio"])})
