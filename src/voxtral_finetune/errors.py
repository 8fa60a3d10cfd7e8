"""What can go wrong, as one small tree.

    FinetuneError            something a person can put right: says what is wrong and what to do
    ├── DataError            speech or text: a file, a row, a corpus
    ├── ModelError           a checkpoint or adapter
    ├── RunError             a run directory: not there, in use, not resumable
    ├── SettingsError        a flag or a line of a settings file
    └── StopRequested        a person asked the run to end; what it has learned is on disk

Caught in three places only: the command line, the Studio's one decorator, and `pipeline.execute`.
"""

from __future__ import annotations


class FinetuneError(Exception):
    """A problem with its remedy: `what` is wrong, and the `fix` to try, each a plain sentence."""

    def __init__(self, what: str, fix: str = "") -> None:
        super().__init__(f"{what} {fix}".strip())
        self.what = what
        self.fix = fix

    def __reduce__(self) -> tuple[type[FinetuneError], tuple[str, str]]:
        """Both parts survive the way from a worker process."""
        return type(self), (self.what, self.fix)


class DataError(FinetuneError):
    """Speech or text that cannot be used."""


class ModelError(FinetuneError):
    """A checkpoint or adapter that cannot be used."""


class RunError(FinetuneError):
    """A run directory that cannot be used."""


class SettingsError(FinetuneError):
    """A setting that cannot be used."""


class StopRequested(FinetuneError):
    """The run was asked to stop; it ends as `stopped` and can be resumed."""
