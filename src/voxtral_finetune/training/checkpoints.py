"""Checkpoints that are whole or not there: written aside, made durable, then given their name.

    checkpoints/
        .saving/checkpoint-30/    being written; left by a kill: finished or moved aside by `newest`
        checkpoint-20/            whole: its COMPLETE says step, versions, and size and SHA-256 of each file
        checkpoint-10.incomplete/ what could not be gone on from, and was reported
        .gone/                    being deleted

Order is by step, never by a clock. Imports no torch.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from voxtral_finetune.durable import NO_SPACE, Format, sync_files, sync_folder, write_durably
from voxtral_finetune.errors import RunError
from voxtral_finetune.run import Run
from voxtral_finetune.training.room import POLL_SECONDS, PROBE, NoRoomError, amount, is_full, wait_for_room

COMPLETE = "COMPLETE"

KEPT = 2
"""Newest checkpoints that are kept, beside the best one."""

MANIFEST = Format(2, {1: lambda sizes, folder: _described(folder, list(sizes))}, RunError, unnamed=1)
"""The versions of COMPLETE; 1: only {name: size}."""


def save(folder: Path, step: int, write: Callable[[Path], None]) -> Path:
    """Has `write(staging)` fill a folder, and makes it `folder/checkpoint-<step>`; returns that.

    A kill at any point leaves no `checkpoint-<step>` or a whole one. The files are written into `.saving/`, a name
    that nothing goes on from; they and their names are on disk before COMPLETE is, and COMPLETE is before the folder
    gets its name by one rename. So a folder called `checkpoint-<step>` has all of its content, also after a power cut.
    An earlier save of the same step gives up its name just before; a kill between the two renames leaves a staging
    folder with a COMPLETE, which `newest` gives the name that it was about to get.

    Raises NoRoomError where the disk is full, with nothing left behind; other checkpoints are as they were.
    """
    staging = _staging(folder, step)
    try:
        begin(folder, step)
        write(staging)
        return finish(staging)
    except (OSError, RuntimeError, SafetensorError) as error:
        if is_full(error, staging):
            needed = max([_bytes_in(staging) + len(PROBE), *(_bytes_in(path) for path in whole(folder).values())])
            raise NoRoomError(folder, needed) from error
        raise
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def begin(folder: Path, step: int) -> Path:
    """An empty folder to write a checkpoint into, named as transformers' Trainer would name it."""
    staging = _staging(folder, step)
    if staging.exists():
        shutil.rmtree(staging)
    staging.mkdir(parents=True)
    return staging


def finish(staging: Path) -> Path:
    """Makes what was written since `begin` a whole checkpoint, in place of an earlier one of that step."""
    sync_files(staging)
    names = [path.relative_to(staging).as_posix() for path in sorted(staging.rglob("*")) if path.is_file()]
    packages = {name: version(name) for name in ("voxtral-finetune", "torch", "transformers")}
    manifest = {"format": MANIFEST.number, "versions": packages, **_described(staging, names)}
    write_durably(staging / COMPLETE, json.dumps(manifest, indent=1) + "\n")
    return _publish(staging)


def save_when_there_is_room(
    run: Run, step: int, write: Callable[[Path], None], poll_seconds: float = POLL_SECONDS
) -> Path:
    """`save` into the run's checkpoints; on a full disk the run waits, as event `paused`, until it could save.

    Then follows `resumed`. Raises StopRequested where the run is asked to stop while it waits.
    """
    folder, paused = run.folder / "checkpoints", False
    while True:
        try:
            saved = save(folder, step, write)
        except NoRoomError as full:
            if not paused:
                what = f"The disk is full: the checkpoint of update {step} needs {amount(full.needed)} in {folder}."
                fix = "Free some space; the run goes on by itself."
                run.emit("paused", what=what, fix=fix, step=step, folder=str(folder), needed=full.needed)
            paused = True
            wait_for_room(run, full.needed, poll_seconds)
        else:
            if paused:
                run.emit("resumed", what=f"There is space again; the checkpoint of update {step} is saved.", step=step)
            return saved


def whole(folder: Path) -> dict[int, Path]:
    """The checkpoints that were written whole, by step: every file is there in its size. Content is not read."""
    return {step: path for step, path in _named(folder).items() if flaw(path, content=False) is None}


def newest(folder: Path, said: Callable[..., None]) -> Path | None:
    """The checkpoint of the highest step whose files are what was saved, by SHA-256; None where there never was one.

    What cannot be gone on from is moved aside as `checkpoint-<step>.incomplete`, and `said("warning", what=…, fix=…)`
    is told which file is wrong. Raises RunError where there were checkpoints and none of them can be used.
    """
    for staging in sorted(folder.glob(".saving/checkpoint-*")):
        if found := flaw(staging):
            _move_aside(staging, folder, found, said)
        else:  # killed between the last byte and the name
            _publish(staging)
    lost = False
    for _, path in sorted(_named(folder).items(), reverse=True):
        found = flaw(path)
        if found is None:
            MANIFEST.migrate(path / COMPLETE)
            return path
        lost |= (path / COMPLETE).exists()
        _move_aside(path, folder, found, said)
    if lost:
        again = "or resume once more to train from the beginning."
        raise RunError(f"No checkpoint in {folder} can be used any more.", f"Put a copy of one back there, {again}")
    return None


def flaw(checkpoint: Path, content: bool = True) -> str | None:
    """What is wrong with a checkpoint, naming the file; None where it is whole. `content=False` looks at sizes only.

    Raises RunError where a newer version of this program wrote it.
    """
    if not (checkpoint / COMPLETE).exists():
        return f"it has no {COMPLETE}: its saving was cut off"
    try:
        manifest, number = MANIFEST.read(checkpoint / COMPLETE)
    except RunError:
        return f"{COMPLETE} is damaged"
    MANIFEST.check(checkpoint / COMPLETE, number)
    try:
        files = manifest["files"] if number > 1 else {name: {"size": size} for name, size in manifest.items()}
        saved = {checkpoint / name: (entry["size"], entry.get("sha256")) for name, entry in files.items()}
    except (KeyError, TypeError, AttributeError):
        return f"{COMPLETE} is damaged"
    for path, (size, _) in saved.items():
        if not path.is_file():
            return f"{path.name} is missing"
        if path.stat().st_size != size:
            return f"{path.name} has {path.stat().st_size} bytes instead of {size}"
    if content:
        hashed = [path for path, (_, digest) in saved.items() if digest]
        for path, digest in zip(hashed, _hashes(hashed), strict=True):
            if digest != saved[path][1]:
                return f"{path.name} is not what was saved (its SHA-256 differs)"
    return None


def rotate(folder: Path, keep: set[int]) -> None:
    """Deletes checkpoints but the KEPT newest whole ones and those of the steps in `keep`.

    Each loses its name at once, before its files: half of one is never gone on from. Of what was moved aside the newest
    stays, for whoever wants to look at it.
    """
    aside = sorted(folder.glob("checkpoint-*.incomplete*"), key=lambda path: (_step(path), path.name))
    old = [path for step, path in sorted(whole(folder).items())[:-KEPT] if step not in keep]
    try:
        for path in (*old, *aside[:-1]):
            _delete(path)
    except OSError as error:
        if error.errno not in NO_SPACE:  # on a full disk what could not be deleted is deleted after the next save
            raise
    shutil.rmtree(folder / ".gone", ignore_errors=True)  # also what a kill has left there


def check_room(folder: Path, checkpoint_bytes: int) -> None:
    """Raises RunError where the disk has no room for those kept, the best and the next one, as far as not yet there."""
    still = max(KEPT + 2 - len(whole(folder)), 1)
    free = shutil.disk_usage(folder if folder.exists() else folder.parent).free
    if free < still * checkpoint_bytes:
        each = f"{still} of {amount(checkpoint_bytes)} each"
        what = f"{folder} needs {amount(still * checkpoint_bytes)} for checkpoints ({each}), {amount(free)} are free."
        raise RunError(what, "Free some space, or choose another --output-dir.")


def _staging(folder: Path, step: int) -> Path:
    return folder / ".saving" / f"checkpoint-{step}"


def _named(folder: Path) -> dict[int, Path]:
    """All folders that are called checkpoints, by step."""
    return {_step(path): path for path in folder.glob("checkpoint-*") if re.fullmatch(r"checkpoint-\d+", path.name)}


def _step(path: Path) -> int:
    found = re.match(r"checkpoint-(\d+)", path.name)
    return int(found[1]) if found else -1


def _publish(staging: Path) -> Path:
    folder = staging.parent.parent
    final = folder / staging.name
    if final.exists():
        _rename_to_gone(final)
    staging.rename(final)
    sync_folder(folder)
    shutil.rmtree(folder / ".gone", ignore_errors=True)
    return final


def _delete(path: Path) -> None:
    gone = _rename_to_gone(path)
    sync_folder(path.parent)  # the name is gone from the disk before the first file is
    shutil.rmtree(gone)


def _rename_to_gone(path: Path) -> Path:
    (path.parent / ".gone").mkdir(exist_ok=True)
    return path.rename(path.parent / ".gone" / uuid.uuid4().hex)


def _move_aside(path: Path, folder: Path, found: str, said: Callable[..., None]) -> None:
    moved, number = folder / f"{path.name}.incomplete", 1
    while moved.exists():
        number += 1
        moved = folder / f"{path.name}.incomplete-{number}"
    path.rename(moved)
    sync_folder(folder)
    what = f"{path.name} cannot be used: {found}."
    said("warning", what=what, fix=f"It is kept as {moved.name}, and passed over.", step=_step(path))


def _described(folder: Path, names: list[str]) -> dict[str, Any]:
    """The body of a COMPLETE: the step that the folder is named after, and size and SHA-256 of these files."""
    paths = [folder / name for name in names]
    files = {
        name: {"size": path.stat().st_size, "sha256": digest}
        for name, path, digest in zip(names, paths, _hashes(paths), strict=True)
    }
    return {"step": _step(folder), "files": files}


def _hashes(paths: list[Path]) -> list[str]:
    """SHA-256 of each file; several at a time, since hashing leaves Python's lock to others."""

    def hashed(path: Path) -> str:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()

    with ThreadPoolExecutor(4) as pool:
        return list(pool.map(hashed, paths))


def _bytes_in(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
