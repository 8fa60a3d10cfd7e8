"""A run as a terminal shows it: one line for what is done, one bar for what is being done."""

from __future__ import annotations

import warnings
from logging import ERROR, getLogger
from types import TracebackType
from typing import Any

import click
from tqdm import tqdm

from voxtral_finetune.run import Event


def quiet_libraries() -> None:
    """Leaves stdout and stderr to this program: no bars for a model's parts, no notices meant for developers."""
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    getLogger("bitsandbytes").setLevel(ERROR)
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")


class Bar:
    """A progress bar on stderr: called with (done, total); closed at the end of its `with`."""

    def __init__(self, title: str) -> None:
        tqdm.monitor_interval = 0  # no thread that watches over bars: decoding forks, and a fork wants one thread
        self.bar = tqdm(desc=title, dynamic_ncols=True, leave=False, delay=0.5)

    def __call__(self, done: int, total: int, **shown: Any) -> None:
        self.bar.total = total
        self.bar.set_postfix(shown, refresh=False)
        self.bar.update(done - self.bar.n)

    def __enter__(self) -> Bar:
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.close()


class Console:
    """Draws the events of a run as they happen."""

    def __init__(self) -> None:
        self.bar: Bar | None = None
        self.title = ""

    def __enter__(self) -> Console:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self._close()

    def __call__(self, event: Event) -> None:
        draw = getattr(self, f"_{event.kind}", None)
        if draw:
            draw(**event.fields)

    def _stage(self, title: str, **_: Any) -> None:
        self._close()
        self.title = title
        click.echo(title)

    def _progress(self, done: int, total: int, **_: Any) -> None:
        self._bar()(done, total)

    def _warning(self, what: str, fix: str = "", line: int | None = None, **_: Any) -> None:
        tqdm.write(" ".join(filter(None, (f"  line {line}:" if line else " ", what, fix))))

    def _paused(self, what: str, fix: str = "", **_: Any) -> None:
        tqdm.write(f"  {what} {fix}")

    def _resumed(self, **_: Any) -> None:
        tqdm.write("  Going on.")

    def _skipped_update(self, step: int, in_a_row: int, samples: list[str]) -> None:
        tqdm.write(f"  update {step} left out, its loss is no number ({in_a_row} in a row): {'; '.join(samples)[:200]}")

    def _data(self, train: Any, dev: Any, test: Any, note: str, skipped: int, **_: Any) -> None:
        self._close()
        counts = f"{dev['utterances']} dev, {test['utterances']} test utterances"
        if train["utterances"]:  # there are none where training streams
            counts = f"{train['utterances']} train, {counts}; {train['seconds'] / 60:.1f} minutes to learn from"
        click.echo(f"  {counts}. {note}")
        if skipped:
            click.echo(f"  {skipped} rows skipped, named above.")

    def _plan(self, **plan: Any) -> None:
        for line in plan_lines(**plan):
            click.echo(f"  {line}")

    def _weights(self, total: int, trainable: int, kernels: list[str]) -> None:
        used = f"; {', '.join(kernels)}" if kernels else ""
        click.echo(f"  {trainable / 1e6:.2f} M of {total / 1e6:.2f} M weights learn{used}")

    def _probe(self, micro_batch: int, about_seconds: float, **_: Any) -> None:
        click.echo(
            f"  the longest window was tried ({micro_batch} at a time): all steps take about {_time(about_seconds)}"
        )

    def _step(self, step: int, steps: int, loss: float, learning_rate: float, perplexity: float, **more: Any) -> None:
        shown = {"loss": f"{loss:.3f}", "ppl": f"{perplexity:.2f}", "lr": f"{learning_rate:.1e}"}
        if "speech_hours_per_hour" in more:
            shown["speech"] = f"{more['speech_hours_per_hour']:.0f}×"
        self._bar()(step, steps, **shown)

    def _eval(self, step: int, loss: float, wer: float, **_: Any) -> None:
        tqdm.write(f"  step {step}: dev loss {loss:.3f}, dev WER {100 * wer:.1f} %")

    def _scales(self, kept: float, tried: list[dict[str, Any]], **_: Any) -> None:
        for one in tried:
            rates = ", ".join(
                f"{name} {100 * rate:.1f} %" for name, rate in {"dev": one["dev"], **one["guards"]}.items()
            )
            tqdm.write(f"  scale {one['scale']:g}: {rates}{' (kept)' if one['scale'] == kept else ''}")

    def _early_stop(self, step: int, best_step: int) -> None:
        tqdm.write(f"  stopping early at step {step}: step {best_step} was the best")

    def _bar(self) -> Bar:
        self.bar = self.bar or Bar(self.title)
        return self.bar

    def _close(self) -> None:
        if self.bar:
            self.bar.__exit__()
            self.bar = None


def plan_lines(**plan: Any) -> list[str]:
    """A run's plan (its event of that name) in lines: what is heard, how it is taught, what it takes, what is kept."""
    how = "packed" if plan["packing"] else "one utterance each"
    each = f"{plan['utterances_per_update']:g} utterances ({plan['speech_seconds_per_update']:g} s of speech)"
    count = "an unknown number of" if plan["windows"] is None else plan["windows"]
    each += f", {plan['replay']} an epoch replayed" if plan.get("replay") else ""
    windows = f"{count} windows of {plan['window_seconds']:g} s ({how}, {100 * plan['efficiency']:.0f} % speech)"
    heard = f"{windows}; {plan['updates']} updates of {plan['windows_per_update']} windows, about {each}"
    taught = f"on {plan['device']}, learning rate {plan['learning_rate']:g}: {plan['micro_batch']} windows at a time"
    taught += f", {plan['accumulation']} times an update" if plan["accumulation"] > 1 else ""
    taught += ", activations recomputed" if plan["checkpointing"] else ""
    changed = [name for name, on in (("speed", plan["vary_speed"]), ("spectrum", plan["mask_spectrum"])) if on]
    taught += f"; {' and '.join(changed)} varied" if changed else ""
    taken = f"memory about {plan['memory_bytes'] / 1e9:.1f} GB of {plan['budget_bytes'] / 1e9:.1f} GB; "
    taken += f"download {plan['download_bytes'] / 1e9:.1f} GB; " if plan["download_bytes"] else ""
    taken += f"checkpoints {plan['disk_bytes'] / 1e9:.2f} GB of {plan['disk_free'] / 1e9:.0f} GB free"
    cache = f"what the encoder makes of the windows is {'kept on disk' if plan['cache'] else 'not kept'}"
    return [heard, taught, taken, f"{cache}: {plan['cache_why']}"]


def _time(seconds: float) -> str:
    return (
        f"{seconds:.0f} s"
        if seconds < 120
        else f"{seconds / 60:.0f} min"
        if seconds < 7200
        else f"{seconds / 3600:.1f} h"
    )
