"""How strong an adapter had best be: the rule, what is kept of a scan, and that the scale is in the weights."""

import json

import pytest
import torch

from voxtral_finetune.data import sources
from voxtral_finetune.data.split import Split
from voxtral_finetune.errors import SettingsError
from voxtral_finetune.evaluation import guard, scale
from voxtral_finetune.evaluation.scale import SCALES, Tried, choose
from voxtral_finetune.evaluation.transcripts import Transcripts
from voxtral_finetune.model import adapt, export, load
from voxtral_finetune.run import Run
from voxtral_finetune.settings import Settings
from voxtral_finetune.training.checks import check_training

CPU = torch.device("cpu")


def tried(*pairs):
    return [Tried(number, dev, {}, over) for number, (dev, over) in zip(SCALES, pairs, strict=False)]


@pytest.mark.parametrize(
    ("found", "kept"),
    [
        (tried((0.3, 0), (0.2, 0), (0.1, 0.01), (0.05, 0.2)), 0.5),  # the best dev of those within budget
        (tried((0.3, 0.1), (0.2, 0.1), (0.1, 0.1), (0.1, 0.3)), 0.75),  # none is: the best trade
        (tried((0.2, 0), (0.1, 0), (0.1, 0)), 0.5),  # of equals the weaker
    ],
)
def test_the_rule(found, kept):
    assert choose(found).scale == kept


def test_a_scan_that_was_stopped_goes_on_and_its_table_is_kept(write_corpus, tmp_path):
    dev = sources.survey(write_corpus([("low mid high low", {})])).utterances
    other = write_corpus([("mid mid", {})], "other")
    settings = Settings.of({"guard": [other], "guard_budget": 10, "output_dir": tmp_path / "run"})
    run = Run.create(settings)
    guard.read(run, settings, Split([], dev, [], "random", ""))
    for key in ("-guard-0", "-quiet"):
        Transcripts(["mid mid"], [False], 1.0, 1.0, "").save(run.folder / f"heard-base{key}.json")
    asked = []

    def hears(number, recordings):
        if len(asked) == 3:
            asked.append("stopped")
            raise KeyboardInterrupt
        asked.append(number)
        wrong = {0.25: 3, 0.5: 2, 0.75: 1}.get(number, 0)
        return ["low mid high low".replace("low", "x", wrong), "mid mid" if number < 1 else "mid"]

    with pytest.raises(KeyboardInterrupt):
        scale.scan(run, settings, dev, 7, hears)
    assert scale.scan(run, settings, dev, 7, hears) == 0.75
    assert asked == [0.25, 0.5, 0.75, "stopped", 1.0, 1.25]
    table = scale.table(run)
    assert [one["scale"] for one in table if one["kept"]] == [0.75]
    assert [one["dev"] for one in table] == [0.5, 0.5, 0.25, 0, 0]
    assert [one["guards"]["other"] for one in table] == [0, 0, 0, 0.5, 0.5]
    assert run.events()[-1].fields["kept"] == 0.75
    json.dumps(table)


def test_full_fine_tuning_has_no_scale():
    with pytest.raises(SettingsError, match="--scale-scan"):
        check_training(Settings.of({"method": "full", "scale_scan": True}))


@pytest.mark.parametrize("merge", [False, True])
def test_the_scale_is_in_the_weights_whoever_loads_them(small_checkpoint, tmp_path, merge):
    name = str(small_checkpoint)
    model = adapt.adapt(load.load_model(name, device=CPU), Settings.of({}).training, name)
    random = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = 0.1 * torch.randn(parameter.shape, generator=random)
    model.save_pretrained(tmp_path / "checkpoint")
    processor = load.load_processor(name)
    export.export(tmp_path / "checkpoint", processor, tmp_path / "made", torch.float32, merge, 0.5)
    model.eval()
    ids = torch.arange(20, 30)[None]

    def answers(one):
        with torch.inference_mode():
            return one(input_ids=ids).logits

    whole = answers(model)
    export.set_scale(model, 0.5)
    half = answers(model)
    assert not torch.allclose(whole, half, atol=1e-3)
    made = load.load_model(str(tmp_path / "made"), device=CPU).eval()
    assert hasattr(made, "peft_config") != merge
    torch.testing.assert_close(answers(made), half, atol=1e-4, rtol=1e-4)
