"""What the Hub's clients raise, said as one line with a remedy."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

from voxtral_finetune.errors import DataError

LOG_IN = "log in with `hf auth login` or set HF_TOKEN"
AGAIN = "Run the same command again: it goes on where it stopped."


@contextmanager
def hub_errors(name: str, revision: str | None = None) -> Iterator[None]:
    """Within it, what `huggingface_hub` and `datasets` raise about dataset `name` becomes a DataError.

    ValueError, RuntimeError and ImportError are among them: `datasets` has no errors of its own for an unknown config,
    a dataset script, or audio that it would have to decode.
    """
    from datasets.exceptions import DatasetsError
    from huggingface_hub.errors import HTTPError

    try:
        yield
    except (HTTPError, OSError, DatasetsError, ValueError, RuntimeError, ImportError) as error:
        raise explained(error, name, revision) from error


def explained(error: BaseException, name: str, revision: str | None = None) -> DataError:
    """The DataError for what a client raised; the first in its chain of causes that is known decides."""
    chain = list(_causes(error))
    for each in chain:
        known = _access(each, name, revision) or _status(each, name) or _dataset(each, name)
        if known:
            return DataError(*known)
    detail = _line(str(error)) or type(error).__name__
    return DataError(f"{name} cannot be read from the Hub: {detail}", f"Check the connection. {AGAIN}")


def _access(error: BaseException, name: str, revision: str | None) -> tuple[str, str] | None:
    from huggingface_hub import errors

    if isinstance(error, errors.OfflineModeIsEnabled):
        return "The Hub cannot be asked: HF_HUB_OFFLINE is set.", "Unset it, or import a dataset from this machine."
    if isinstance(error, errors.HFValidationError):
        return f"{name!r} is no name of a dataset.", "Write it as on the Hub: owner/name."
    if isinstance(error, errors.GatedRepoError):
        page = f"https://huggingface.co/datasets/{name}"
        return f"{name} is given only to those who accept its terms.", f"Accept them on {page}, then {LOG_IN}."
    if isinstance(error, errors.RepositoryNotFoundError):
        return f"{name} is not on the Hub, or is private.", f"Check the name; if it is private, {LOG_IN}."
    if isinstance(error, errors.RevisionNotFoundError):
        return f"{name} has no revision {revision or 'main'}.", "Check --dataset-revision."
    return None


def _status(error: BaseException, name: str) -> tuple[str, str] | None:
    from huggingface_hub.errors import HfHubHTTPError

    if not isinstance(error, HfHubHTTPError) or error.response is None:
        return None
    status = error.response.status_code
    if status == 401:
        return "The Hub does not accept this token.", f"Make a new one on the Hub, then {LOG_IN}."
    if status == 403:
        return f"This token may not read {name}.", f"Give it read access on the Hub, then {LOG_IN}."
    if status == 404:
        return f"A file of {name} is not there (404).", "Check --dataset-revision."
    if status == 429:
        wait = f"Wait five minutes; to be allowed more, {LOG_IN}."
        return "The Hub takes no more requests for now (429).", f"{wait} {AGAIN}"
    return f"The Hub does not answer as it should ({status}).", f"Try later. {AGAIN}"


def _dataset(error: BaseException, name: str) -> tuple[str, str] | None:
    """Datasets that are there but not as they should be; told apart by the words of `datasets` 4 and 5."""
    text = _line(str(error))
    by_hand = "Download it with `hf download --repo-type dataset` and give the folder to `voxtral-finetune prepare`."
    if "scripts are no longer supported" in text:
        copy = "Read the Hub's Parquet copy: --dataset-revision refs/convert/parquet."
        return f"{name} is a script, which would run its code here; it is refused.", copy
    configs = re.search(r"(?:Available|available configs): (\[.*?\])", text)
    if configs:
        names = configs[1].strip("[]").replace("'", "")
        return f"{name} needs a config: {names}.", "Name one with --dataset-config."
    if isinstance(error, ImportError) and "torchcodec" in text:
        return f"{name} holds loose audio files, which cannot be streamed.", by_hand
    if type(error).__name__ in ("EmptyDatasetError", "DataFilesNotFoundError"):
        return f"{name} holds no data files of a known kind.", by_hand
    return None


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _line(text: str) -> str:
    return " ".join(text.split())
