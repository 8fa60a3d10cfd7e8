"""A batch taken in parts is the same batch: in what it holds, in its loss, in its gradients."""

import numpy as np
import pytest
import torch

from tests.conftest import spoken
from voxtral_finetune.data.collate import Example, TranscriptionCollator
from voxtral_finetune.model import load
from voxtral_finetune.training.batches import parts, rows_in
from voxtral_finetune.training.trainer import only_at_labels

TEXTS = ["low mid high low mid high low mid high", "mid high", "high low mid low high mid low", "low", "mid"]
"""Of 0.3 s a word: the first and the third fill two windows of 2 s."""


@pytest.fixture(scope="module")
def model(small_checkpoint):
    return load.load_model(str(small_checkpoint)).eval()


@pytest.fixture(scope="module")
def collator(small_checkpoint):
    return TranscriptionCollator(load.load_processor(str(small_checkpoint)))


def examples(known=()):
    """Those of TEXTS; of those in `known` the embeddings are kept, filled with their number."""
    found = []
    for number, text in enumerate(TEXTS):
        windows = 2 if len(text.split()) > 6 else 1
        kept = torch.full((windows, 25, 64), float(number)) if number in known else None
        wave = np.zeros(0, np.float32) if number in known else spoken(text)
        found.append(Example(wave, text, "en", text, index=number if known else None, embeds=kept))
    return found


@pytest.mark.parametrize("halvings", [0, 1, 2, 3, 5])
def test_losses_and_gradients_add_up(model, collator, halvings):
    batch = collator(examples())
    items = (batch["labels"] != -100).sum()

    def taught(pieces):
        model.zero_grad()
        losses = []
        for piece in pieces:
            out = model(**piece, **only_at_labels(piece["labels"]), use_cache=False, num_items_in_batch=items)
            out.loss.backward()
            losses.append(out.loss.detach())
        return sum(losses), {name: weight.grad.clone() for name, weight in model.named_parameters()}

    loss, gradients = taught([batch])
    in_parts, again = taught(parts(batch, halvings))
    torch.testing.assert_close(in_parts, loss, rtol=1e-6, atol=1e-6)
    for name, gradient in gradients.items():
        torch.testing.assert_close(again[name], gradient, rtol=1e-4, atol=1e-6, msg=name)


@pytest.mark.parametrize(("halvings", "sizes"), [(0, [5]), (1, [2, 3]), (2, [1, 1, 1, 2]), (3, [1] * 5)])
@pytest.mark.parametrize("known", [(), (0,), (1, 2), (3, 4), (0, 2, 4), (0, 1, 2, 3, 4)])
def test_each_row_keeps_its_own_windows(collator, known, halvings, sizes):
    batch = collator(examples(known))
    pieces = list(parts(batch, halvings))
    assert [rows_in(piece) for piece in pieces] == sizes
    alone = iter(examples(known))
    for piece in pieces:
        single = [collator([next(alone)]) for _ in range(rows_in(piece))]
        for name in ("input_features", "audio_embeds", "audio_known", "audio_index"):
            expected = [each[name] for each in single if name in each]
            assert (name in piece) == bool(expected), name
            if expected:
                torch.testing.assert_close(piece[name], torch.cat(expected), rtol=0, atol=0)
        for name in ("input_ids", "labels", "attention_mask"):
            for row, each in enumerate(single):
                length = each[name].shape[1]
                assert torch.equal(piece[name][row, :length], each[name][0])
