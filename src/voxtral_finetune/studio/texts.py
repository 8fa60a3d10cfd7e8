"""Every sentence of the Studio, in one place."""

from __future__ import annotations

from typing import Any

from voxtral_finetune.data.split import MIN_UTTERANCES
from voxtral_finetune.evaluation.verdict import ENOUGH

TITLE = "Voxtral Studio"

RECORD = "Record"
TRAIN = "Train"
RESULTS = "Results"

RECORD_INTRO = "Read the phrases aloud. Every take that you accept is saved at once; you can go on at any time."
PROJECT = "Project"
PROJECT_INFO = "Choose one, or type a new name: letters, digits, - and _."
FIRST_PROJECT = "my-voice"
LANGUAGE = "Language"
PACK = "Phrases"
PACKS = {"digits": "Digits (what the built-in model knows)", "everyday": "Everyday sentences"}
SPEAKER = "Speaker (optional)"
SPEAKER_INFO = "A name or code; it lets the test use other people than the training."
TO_TRAINING = "Train on these takes"

UPLOAD = "Upload recordings instead"
UPLOAD_INTRO = (
    "Audio files of up to 60 seconds each, and what is said in them: one line for each file in the order of the file"
    " names, or lines of file name, tab, text."
)
UPLOAD_FILES = "Audio files"
UPLOAD_SCRIPT = "Transcripts"
UPLOAD_SCRIPT_FILE = "Read the transcripts from a .txt or .tsv file"
UPLOAD_LANGUAGE = "Language of the files (empty: Voxtral detects it)"
UPLOAD_ADD = "Add to the project"

RECORDER = {
    "group": "Recorder",
    "record": "Record",
    "stop": "Stop",
    "redo": "Redo",
    "accept": "Accept",
    "skip": "Skip",
    "previous": "Previous phrase",
    "next": "Next phrase",
    "ready": "Press Space to record.",
    "opening": "Waiting for the microphone.",
    "recording": "Recording. Press Space to stop.",
    "take": "Press Enter to accept, R to record it again.",
    "saving": "Saving.",
    "failed": "Not saved; the message says why. Press Enter to try again.",
    "upload_failed": "Not saved: the Studio does not answer. Press Enter to try again.",
    "silent": "Almost nothing was heard. Check the microphone, then press R to record it again.",
    "clipped": "Too loud: the sound was cut off. Move back a little and press R, or press Enter to accept.",
    "too_long": "Stopped after a minute. Press R to record it again, Enter to accept.",
    "too_short": "That was too short. Press Space, speak, and press Space again.",
    "missing": "No microphone was found. Plug one in and press Record again.",
    "denied": "The browser may not use the microphone. Allow it beside the address bar and press Record again.",
    "insecure": "The browser gives out the microphone only on localhost or https. Open http://127.0.0.1 instead.",
    "busy": "The microphone cannot be opened. Close other programs that use it and press Record again.",
    "done": "takes of this phrase",
}

TRAIN_INTRO = "Training runs on its own: closing this page, or the Studio, changes nothing."
CORPUS = "Project to learn from"
CHECKPOINT = "Checkpoint"
CHECKPOINT_INFO = "Choose one, or type a Hub id or a folder.  --model-checkpoint"
RUN_NAME = "Name of the run (optional)"
RUN_NAME_INFO = "Default: date and time.  --output-dir"
ADVANCED = "Advanced"
AUTOMATIC = "default"
YES, NO = "yes", "no"
COMMAND = "The same from the command line"
START = "Start training"
STOP = "Stop"
CONTINUE = "Continue"
NO_RUN = "No run yet."
LOSS = "Loss"
WER = "Word error rate on dev (%)"
LOG = "Log"

STARTING = "Starting: loading the program."
STOPPING = "Stopping: a checkpoint is being saved."
FINISHED = "Finished."
DIED = "The process ended without saying why; the log may tell. Continue goes on from the last checkpoint."
WORKING = "Working"
STOPPED = "Stopped."
NOT_STARTED = "The process did not start; the log may tell why. Continue tries again."

RUNS = ["Run", "Status", "Checkpoint", "Method", "Before", "After", "Verdict"]
RESULTS_INTRO = "Before and after, measured on recordings that were not in training. Choose a run."
RUNS_LABEL = "Runs, newest first"
RUNS_NONE = "No run yet. Train one first."
UTTERANCES = ["Said", "Heard before", "Heard after"]
UTTERANCES_LABEL = "Test recordings"
NO_REPORT = "This run has no result yet."
COMPARED = ["", "before", "after", "difference"]


def takes(name: str, count: int) -> str:
    return f"{name} has {number(count, 'take')}."


def more(count: int) -> str:
    """How many takes are still missing, and for what; three times ENOUGH give a test set of ENOUGH (data.split)."""
    verdict = 3 * ENOUGH
    if count < MIN_UTTERANCES:
        return f"{MIN_UTTERANCES - count} more before it can be trained on; {verdict} in all for a verdict."
    if count < verdict:
        return f"Enough to try. {verdict - count} more for a verdict, which needs {ENOUGH} to test with."
    return f"Enough to learn from and for a verdict: {ENOUGH} or more to test with."


def progress(name: str, count: int, seconds: float) -> str:
    return f"{takes(name, count)[:-1]}, {seconds / 60:.1f} minutes. {more(count)}"


def added(count: int, refused: int) -> str:
    return f"{number(count, 'recording')} added." + (f" {number(refused, 'file')} refused:" if refused else "")


def busy(name: str) -> tuple[str, str]:
    return f"The run {name} is still going.", "Wait for it or stop it first; two at once slow each other down."


def number(count: int, thing: str) -> str:
    return f"{count} {thing}{'' if count == 1 else 's'}"


def data(facts: dict[str, Any]) -> str:
    sets = {name: facts[name]["utterances"] for name in ("train", "dev", "test")}
    sizes = ", ".join(f"{count} {name}" for name, count in sets.items() if count)
    skipped = f" {number(facts['skipped'], 'row')} skipped." if facts["skipped"] else ""
    return f"{sizes} utterances. {facts['note']}{skipped}"


def weights(facts: dict[str, Any]) -> str:
    return f"{facts['trainable'] / 1e6:.2f} M of {facts['total'] / 1e6:.2f} M weights learn."


def early_stop(facts: dict[str, Any]) -> str:
    return f"Stopped early at step {facts['step']}: step {facts['best_step']} was the best."


def skipped(facts: dict[str, Any]) -> str:
    return f"Update {facts['step']} was left out, its loss is no number; it heard {'; '.join(facts['samples'])[:200]}."


def more_warnings(count: int) -> str:
    return f"and {number(count, 'more warning')}."
