"""The Studio as a person uses it: a real browser, a microphone, the keyboard, and a run that outlives the page."""

import re

import pytest

from voxtral_finetune.data.audio import read
from voxtral_finetune.data.corpus import Corpus
from voxtral_finetune.data.split import MIN_UTTERANCES
from voxtral_finetune.model import catalog
from voxtral_finetune.run import Run
from voxtral_finetune.studio import texts

pytestmark = pytest.mark.browser

RECORDING = "document.querySelector('.time').textContent.match(/^[1-9]/)"
PHRASE = "#recorder .phrase"
LONG = 300_000


def open_record(context, studio, project):
    """The page Record, at the first phrase of a new project."""
    page = context.new_page()
    page.goto(studio.url)
    page.wait_for_function(f"document.querySelector('{PHRASE}')?.textContent")
    box = page.locator("#project input")
    box.fill(project)
    box.press("Enter")
    box.blur()
    page.locator("#takes").get_by_text(f"{project} has").wait_for()
    return page


def record(page):
    """One take by keyboard, of more than a second, ready to be accepted."""
    page.keyboard.press("Space")
    page.wait_for_function(RECORDING)
    page.keyboard.press("Space")
    page.locator("[data-do=accept]:not([disabled])").wait_for()


def accept(page, count):
    page.keyboard.press("Enter")
    page.locator("#takes").get_by_text(f"has {texts.number(count, 'take')},").wait_for()


def open_train(context, studio, project):
    page = context.new_page()
    page.goto(f"{studio.url}/train?project={project}")
    page.wait_for_function("name => document.querySelector('#command textarea')?.value.includes(name)", arg=project)
    return page


def choose_checkpoint(page, name):
    """Where it is not what the Studio suggests here, and then waits for the settings that suit it."""
    if catalog.suggested().name != name:
        fill(page, "#checkpoint", name)
        shown = str(catalog.named(name).recommended.get("epochs", 3))
        page.wait_for_function("value => document.querySelector('#setting-epochs input').value === value", arg=shown)


def fill(page, selector, value):
    box = page.locator(f"{selector} input, {selector} textarea").first
    box.fill(value)
    box.press("Enter")
    box.blur()


def test_from_recording_to_result_with_the_page_closed_in_the_middle(studio, browser, checkpoint):
    with browser() as context:
        page = open_record(context, studio, "journey")
        said = []
        for count in range(1, MIN_UTTERANCES + 2):
            said.append(page.locator(PHRASE).inner_text())
            record(page)
            accept(page, count)
        rows = Corpus(studio.home / "datasets" / "journey").rows()[0]
        assert [row.text for row in rows] == said
        assert all(row.source == "recorded" and read(row.audio)[0].std() > 0.001 for row in rows)
        page.close()

        page = open_train(context, studio, "journey")
        choose_checkpoint(page, checkpoint)
        for name, value in {"epochs": "16", "batch_size": "1", "learning_rate": "0.001"}.items():
            fill(page, f"#setting-{name}", value)
        page.wait_for_function("document.querySelector('#command textarea').value.includes('--learning-rate 0.001')")
        page.locator("#start").click()
        page.locator("#status").get_by_text(re.compile(r"Training: \d")).wait_for(timeout=LONG)
        (run,) = Run.all(studio.home / "outputs")
        page.close()
        assert run.status() == "running"

        page = context.new_page()
        page.goto(f"{studio.url}/train")
        page.locator("#status strong").get_by_text(run.name).wait_for()
        page.locator("#status").get_by_text(texts.FINISHED).wait_for(timeout=LONG)
        assert run.settings().training.epochs == 16
        page.locator("#wer canvas, #wer svg").first.wait_for()
        page.locator("#status").get_by_role("link", name=texts.RESULTS).click()
        page.locator(".compared").get_by_text("word error rate").wait_for()
        page.locator("#utterances").get_by_text(texts.UTTERANCES[0]).first.wait_for()
        page.locator("#result").get_by_text("Too few to tell").wait_for()
        page.locator("#runs").get_by_text(run.name).locator("visible=true").first.wait_for()


def test_too_few_takes_say_how_many_more(studio, browser):
    with browser() as context:
        page = open_record(context, studio, "short")
        record(page)
        accept(page, 1)
        page = open_train(context, studio, "short")
        page.locator("#start").click()
        page.get_by_test_id("toast-text").get_by_text(f"{MIN_UTTERANCES - 1} more before").wait_for()
        assert not [
            run for run in Run.all(studio.home / "outputs") if "short" in str(run.settings().data.dataset_jsonl)
        ]


def test_a_take_that_could_not_be_saved_is_still_there(studio, browser):
    place = studio.home / "datasets" / "blocked"
    place.parent.mkdir(exist_ok=True)
    place.write_text("a file where the folder should be")
    with browser() as context:
        page = open_record(context, studio, "blocked")
        record(page)
        page.keyboard.press("Enter")
        page.get_by_text(texts.RECORDER["failed"]).wait_for()
        page.get_by_test_id("toast-text").get_by_text("cannot be made").wait_for()
        place.unlink()
        accept(page, 1)


def test_keys_move_through_the_phrases_but_not_while_typing(studio, browser):
    with browser() as context:
        page = open_record(context, studio, "keys")
        first = page.locator(PHRASE).inner_text()
        page.locator("#speaker").locator("input, textarea").press_sequentially("s s")
        assert page.locator("#speaker").locator("input, textarea").input_value() == "s s"
        assert page.locator(PHRASE).inner_text() == first
        page.locator("#recorder .recorder").focus()
        page.keyboard.press("s")
        page.locator(".place").get_by_text("2 /").wait_for()
        page.keyboard.press("ArrowRight")
        page.locator(".place").get_by_text("3 /").wait_for()
        page.keyboard.press("ArrowLeft")
        page.locator(".place").get_by_text("2 /").wait_for()
        record(page)
        page.keyboard.press("r")
        page.wait_for_function(RECORDING)
        page.keyboard.press("Space")
        page.locator("[data-do=accept]:not([disabled])").wait_for()


@pytest.mark.parametrize(
    ("flags", "script", "said"),
    [
        (["--use-fake-device-for-media-stream", "--deny-permission-prompts"], "", "denied"),
        (["--use-fake-ui-for-media-stream"], "", "missing"),
        (
            ["--use-fake-ui-for-media-stream"],
            "Object.defineProperty(navigator, 'mediaDevices', {value: undefined})",
            "insecure",
        ),
    ],
    ids=["denied", "missing", "insecure"],
)
def test_a_microphone_that_cannot_be_used_is_one_plain_sentence(studio, browser, flags, script, said):
    with browser(*flags) as context:
        context.add_init_script(script)
        page = open_record(context, studio, "silent")
        page.keyboard.press("Space")
        page.get_by_text(texts.RECORDER[said]).wait_for()


def test_uploads_go_into_the_project_and_refusals_have_a_reason(studio, browser, microphone, tmp_path):
    nothing = tmp_path / "b.wav"
    nothing.write_bytes(b"no audio")
    with browser() as context:
        page = open_record(context, studio, "brought")
        page.get_by_text(texts.UPLOAD).click()
        page.locator("#upload input[type=file]").first.set_input_files([microphone, nothing])
        page.locator("#upload").get_by_text("speech").first.wait_for()
        page.locator("#script textarea").fill("speech.wav\tone two three\nb.wav\tnothing")
        page.locator("#upload").get_by_role("button", name=texts.UPLOAD_ADD).click()
        page.locator("#outcome").get_by_text("1 recording added. 1 file refused:").wait_for()
        page.locator("#outcome").get_by_text("b.wav is not audio").wait_for()
        page.locator("#takes").get_by_text("brought has 1 take,").wait_for()
