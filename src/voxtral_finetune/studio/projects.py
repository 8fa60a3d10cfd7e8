"""What the recording page does to a corpus, without a widget: names, phrases, takes, uploads, how many are enough.

All state is the corpus under `datasets/`: which phrase is next follows from the texts that it already holds. Whatever
a browser sends is checked here, because any program on this computer can call the page's handlers.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import soundfile
from gradio.utils import get_upload_folder, is_in_or_equal

from voxtral_finetune.data import audio
from voxtral_finetune.data.corpus import Corpus, Utterance, tidy
from voxtral_finetune.data.phrases import Phrase, phrases
from voxtral_finetune.data.split import MIN_UTTERANCES
from voxtral_finetune.errors import DataError, FinetuneError, SettingsError
from voxtral_finetune.settings import home
from voxtral_finetune.studio import texts

MAX_SECONDS = 60.0
"""The longest take: someone forgot to stop, or it is not one utterance."""

MAX_BYTES = 50_000_000
"""More than a minute of the largest usual format (96 kHz, 24 bit, stereo) needs."""


@dataclass(frozen=True)
class Prompt:
    """The phrase on the screen, all that the recorder shows of a corpus; sent back by the browser with each action."""

    project: str
    pack: str
    language: str
    id: str
    text: str
    number: int
    total: int
    takes: int


def check_name(name: Any, what: str = "A project's name") -> str:
    """The name of a corpus or run as a folder may be called; raises SettingsError for any other."""
    if isinstance(name, str) and re.fullmatch(r"[A-Za-z0-9_-]{1,64}", name):
        return name
    raise SettingsError(
        f"{what} cannot be {str(name)[:80]!r}.", "Use up to 64 letters (a to z), digits, hyphens and underscores."
    )


def check_language(language: Any) -> str | None:
    """A language code, or None where it was left empty; raises SettingsError for anything else."""
    code = str(language or "").strip().lower()
    if code and not re.fullmatch(r"[a-z]{2,3}", code):
        raise SettingsError(f"{code[:80]!r} is not a language code.", "Write two letters, for example en or fr.")
    return code or None


def folder(name: Any) -> Path:
    """Where the corpus of that name lies, whether it exists or not."""
    return home() / "datasets" / check_name(name)


def names() -> list[str]:
    """Every corpus in the home, the one changed last first."""
    manifests = (home() / "datasets").glob("*/data.jsonl")
    return [path.parent.name for path in sorted(manifests, key=lambda path: -path.stat().st_mtime)]


def takes(name: Any) -> list[Utterance]:
    """The rows of a corpus; none where it does not exist yet."""
    place = folder(name)
    return Corpus(place).rows()[0] if (place / "data.jsonl").exists() else []


def check_enough(name: Any) -> Corpus:
    """The corpus of that name; raises DataError saying how many takes are missing before it can be trained on."""
    if not name:
        raise DataError("No project is chosen.", "Record one first, or choose it from the list.")
    count = len(takes(name))
    if count < MIN_UTTERANCES:
        raise DataError(texts.takes(name, count), texts.more(count))
    return Corpus(folder(name))


def prompt(project: Any, pack: str, language: str, at: int) -> Prompt:
    """The phrase at a place in its pack; places before the first and after the last wrap around."""
    rows = phrases(pack, language)
    place = at % len(rows)
    count = _counts(project)[rows[place].text]
    return Prompt(check_name(project), pack, language, rows[place].id, rows[place].text, place + 1, len(rows), count)


def next_prompt(project: Any, pack: str, language: str, after: int = -1) -> Prompt:
    """The next phrase to read: of those with the fewest takes, the first after a place."""
    rows = phrases(pack, language)
    counts = _counts(project)
    least = min(counts[row.text] for row in rows)
    order = [(after + step) % len(rows) for step in range(1, len(rows) + 1)]
    return prompt(project, pack, language, next(place for place in order if counts[rows[place].text] == least))


def place_of(shown: Any) -> tuple[str, str, str, int, Phrase]:
    """(project, pack, language, place, phrase) that a browser says it showed; raises DataError for a made-up one."""
    if not isinstance(shown, dict):
        raise DataError("The recorder sent nothing that can be used.", "Reload the page.")
    pack, language, wanted = (str(shown.get(key)) for key in ("pack", "language", "id"))
    rows = phrases(pack, language)
    place = next((place for place, row in enumerate(rows) if row.id == wanted), None)
    if place is None:
        raise DataError(f"There is no phrase {wanted[:80]!r} in {pack}.", "Reload the page.")
    return check_name(shown.get("project")), pack, language, place, rows[place]


def save_take(project: str, upload: Any, text: str, language: str | None, speaker: Any) -> None:
    """Keeps a recorded take in its corpus and removes the upload."""
    path = uploaded(upload)
    wave, rate = _read(path)
    fields = {"language": language, "speaker": tidy(str(speaker or "")) or None, "source": "recorded"}
    Corpus.create(folder(project)).add(wave, rate, text, **fields)
    path.unlink(missing_ok=True)


def add_files(project: Any, uploads: list[Any], script: str, language: Any, speaker: Any) -> tuple[int, list[str]]:
    """Takes uploaded files with their transcripts into a corpus: (how many, why each other file was refused)."""
    place, code = folder(project), check_language(language)
    fields = {"language": code, "speaker": tidy(str(speaker or "")) or None, "source": "uploaded"}
    files = sorted((uploaded(upload) for upload in uploads), key=lambda path: path.name)
    transcripts = _transcripts(files, script)
    added, refused = 0, []
    for path in files:
        try:
            if not transcripts.get(path):
                raise DataError(f"{path.name} has no transcript.", "Add a line for it.")
            wave, rate = _read(path)
            Corpus.create(place).add(wave, rate, transcripts[path], **fields)
        except FinetuneError as error:
            # The uploads lie in a folder with a long name that says nothing to the person who sent them.
            refused.append(f"{error.what} {error.fix}".replace(f"{path.parent}/", ""))
        else:
            added += 1
            path.unlink(missing_ok=True)
    return added, refused


def uploaded(upload: Any) -> Path:
    """The file a browser says it uploaded, if it lies in the upload folder, links followed; raises DataError."""
    path = Path(str(upload)).resolve() if "\0" not in str(upload) else None
    if path is None or not is_in_or_equal(path, get_upload_folder()) or not path.is_file():
        raise DataError("This recording was not uploaded by this page.", "Record it again.")
    return path


def read_script(upload: Any) -> str:
    """The text of an uploaded .txt or .tsv; raises DataError where it is too large or not UTF-8."""
    path = uploaded(upload)
    content = path.read_bytes()[: MAX_BYTES + 1]
    if len(content) > MAX_BYTES:
        raise DataError(f"{path.name} is too large for a list of transcripts.", "Upload it in parts.")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{path.name} is not UTF-8 text.", "Save it as UTF-8.") from error


def _transcripts(files: list[Path], script: str) -> dict[Path, str]:
    """What is said in each file: by name where the lines hold a tab, otherwise line by line in file-name order."""
    lines = [line for line in script.splitlines() if line.strip()]
    if not any("\t" in line for line in lines):
        if len(lines) != len(files):
            raise DataError(
                f"There are {len(files)} files and {len(lines)} lines of text.",
                "Write one line for each file, in the order of the file names, or name the file, a tab, the text.",
            )
        return dict(zip(files, lines, strict=True))
    named = {name.strip(): text for name, _, text in (line.partition("\t") for line in lines)}
    return {path: named.get(path.name) or named.get(path.stem) or "" for path in files}


def _read(path: Path) -> tuple[audio.Wave, int]:
    """Decodes an upload within the limits; length is checked before anything is decoded where the file tells it."""
    too_long = DataError(f"{path.name} lasts more than {MAX_SECONDS:.0f} seconds.", "Cut it into single sentences.")
    if path.stat().st_size > MAX_BYTES:
        raise DataError(f"{path.name} is over {MAX_BYTES // 1_000_000} MB.", "Cut it into single sentences.")
    if _told_seconds(path) > MAX_SECONDS:
        raise too_long
    wave, rate = audio.read(path)
    if len(wave) > MAX_SECONDS * rate:
        raise too_long
    return wave, rate


def _told_seconds(path: Path) -> float:
    try:
        return float(soundfile.info(path).duration)
    except soundfile.LibsndfileError:
        return 0.0  # another container: audio.read knows more of them


def _counts(project: Any) -> Counter[str]:
    return Counter(row.text for row in takes(project))
