"""Several processes that train one run, started by torchrun or `accelerate launch`.

The first one (rank 0) owns the run folder: it alone writes events, the split, the model and the report. The others
help with training and leave. Imports torch only where there is more than one process.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any, TypeVar

from voxtral_finetune.errors import FinetuneError, RunError

Value = TypeVar("Value")

PATIENCE = timedelta(hours=12)
"""How long processes wait for one that reads a large corpus or tests the model before training."""


def processes() -> tuple[int, int]:
    """(this process's rank, how many there are), as torchrun and accelerate say it."""
    return int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))


def is_sharded() -> bool:
    """Whether accelerate shards the model over the processes (FSDP), so that none holds it whole."""
    return os.environ.get("ACCELERATE_USE_FSDP", "").lower() == "true"


def join(on_cpu: bool) -> None:
    """Meets the other processes; each takes the device of its local rank."""
    if processes()[1] > 1:
        from accelerate import PartialState

        PartialState(cpu=on_cpu, timeout=PATIENCE)


def agree(make: Callable[[], Value]) -> Value:
    """What the first process makes, in all of them; an error of it ends all of them."""
    rank, size = processes()
    if size == 1:
        return make()
    from accelerate.utils import broadcast_object_list

    made: list[Any] = [None, None]
    if rank == 0:
        try:
            made[0] = make()
        except FinetuneError as error:
            made[1] = error
    broadcast_object_list(made)
    if isinstance(made[1], FinetuneError):
        raise made[1] if rank == 0 else RunError("The first process has failed.", "Its message says why.")
    result: Value = made[0]
    return result


def wait() -> None:
    """Until all processes are here."""
    if processes()[1] > 1:
        from accelerate import PartialState

        PartialState().wait_for_everyone()


def any_of(here: bool) -> bool:
    """Whether it is so in any process."""
    if processes()[1] == 1:
        return here
    from accelerate.utils import gather_object

    return any(gather_object([here]))


def least(here: int) -> int:
    """The smallest of what the processes have."""
    if processes()[1] == 1:
        return here
    from accelerate.utils import gather_object

    return int(min(gather_object([here])))


def shared(rows: Sequence[Value], work: Callable[[Sequence[Value]], Sequence[Any]]) -> list[Any]:
    """`work` on all rows, each process doing its share; in their order, in every process.

    Where the model is sharded every process has to take part in every step, so each does all of them.
    """
    rank, size = processes()
    if size == 1 or is_sharded():
        return list(work(rows))
    from accelerate.utils import gather_object

    found = gather_object([(rank + size * place, done) for place, done in enumerate(work(rows[rank::size]))])
    return [done for _, done in sorted(found, key=lambda each: each[0])]
