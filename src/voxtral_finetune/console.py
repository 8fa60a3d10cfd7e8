"""A run as a terminal shows it: one line for what is done, one bar for what is being done."""

from __future__ import annotations

import warnings
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

    def _warning(self, line: int, what: str, fix: str, **_: Any) -> None:
        tqdm.write(f"  line {line}: {what} {fix}")

    def _data(self, train: Any, dev: Any, test: Any, note: str, skipped: int, **_: Any) -> None:
        self._close()
        counts = f"{train['utterances']} train, {dev['utterances']} dev, {test['utterances']} test"
        click.echo(f"  {counts} utterances; {train['seconds'] / 60:.1f} minutes to learn from. {note}")
        if skipped:
            click.echo(f"  {skipped} rows skipped, named above.")

    def _plan(self, device: str, total: int, trainable: int, learning_rate: float) -> None:
        share = f"{trainable / 1e6:.2f} M of {total / 1e6:.2f} M weights"
        click.echo(f"  {share} learn, on {device}, learning rate {learning_rate:g}")

    def _step(self, step: int, steps: int, loss: float, learning_rate: float, perplexity: float, **_: Any) -> None:
        self._bar()(step, steps, loss=f"{loss:.3f}", ppl=f"{perplexity:.2f}", lr=f"{learning_rate:.1e}")

    def _eval(self, step: int, loss: float, wer: float, **_: Any) -> None:
        tqdm.write(f"  step {step}: dev loss {loss:.3f}, dev WER {100 * wer:.1f} %")

    def _early_stop(self, step: int, best_step: int) -> None:
        tqdm.write(f"  stopping early at step {step}: step {best_step} was the best")

    def _bar(self) -> Bar:
        self.bar = self.bar or Bar(self.title)
        return self.bar

    def _close(self) -> None:
        if self.bar:
            self.bar.__exit__()
            self.bar = None
