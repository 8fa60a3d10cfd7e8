import random

import pytest

from voxtral_finetune.data.align import align


def texts(drafts, transcript):
    return [one.text for one in align(drafts, transcript)]


def test_words_keep_their_case_and_punctuation_and_scores_ignore_them():
    transcript = 'He said: "Go!" Then he left -- at once.  Nobody\nfollowed.'
    first, second = align(["he said go then he left", "at once nobody followed"], transcript)
    assert first.text == 'He said: "Go!" Then he left --'
    assert second.text == "at once.  Nobody\nfollowed."
    assert first.score == second.score == 1.0
    assert (first.start_word, first.end_word, second.start_word, second.end_word) == (0, 6, 6, 10)


def test_no_word_is_lost_or_doubled_whatever_the_drafts():
    rng = random.Random(0)
    words = [f"w{rng.randrange(40)}" for _ in range(300)]
    drafts = [" ".join(rng.choices(words, k=rng.randrange(12))) for _ in range(30)]
    aligned = align(drafts, " ".join(words))
    assert " ".join(one.text for one in aligned if one.text) == " ".join(words)
    assert all(not one.text for one, draft in zip(aligned, drafts, strict=True) if not draft)


@pytest.mark.parametrize(
    ("drafts", "expected"),
    [
        (["one two three", "five six"], ["one two three four.", "five six"]),
        (["one two three", "six"], ["one two three four.", "five six"]),
        (["one too tree for", "fife sicks"], ["one two three four.", "five six"]),
        (["one two three four", "well five six seven"], ["one two three four.", "five six"]),
    ],
    ids=["missed", "missed on both sides", "misheard", "invented"],
)
def test_a_border_goes_where_the_letters_fit_and_in_doubt_after_punctuation(drafts, expected):
    assert texts(drafts, "one two three four. five six") == expected


def test_speech_without_transcript_and_transcript_without_speech_cost_only_their_own_pieces():
    said = [f"alpha{n} beta{n} gamma{n} delta{n}" for n in range(6)]
    missing = align(said, " ".join(said[:2] + said[3:]))
    assert [round(one.score, 1) for one in missing] == [1.0, 1.0, 0.0, 1.0, 1.0, 1.0]
    footnote = "this was printed at the foot of the page and nobody ever read it aloud"
    extra = align(said, " ".join([*said[:3], footnote, *said[3:]]))
    assert sorted(one.score == 1.0 for one in extra) == [False] + [True] * 5


def test_text_in_another_order_is_accepted_on_one_side_only():
    said = [f"alpha{n} beta{n} gamma{n} delta{n}" for n in range(9)]
    scores = [one.score for one in align(said, " ".join(said[6:] + said[:6]))]
    assert scores[1:6] == [1.0] * 5
    assert max(scores[6:]) < 0.5


def test_numbers_written_as_digits_are_kept_and_stay_with_their_piece():
    drafts = ["it began in eighteen twenty three they say", "and ended in nineteen oh five"]
    first, second = align(drafts, "It began in 1823, they say, and ended in 1905.")
    assert first.text == "It began in 1823, they say,"
    assert second.text == "and ended in 1905."
    assert 0.4 < second.score < first.score < 1


def test_an_unrelated_transcript_scores_low_everywhere():
    rng = random.Random(1)
    ours, theirs = ([f"{rng.randrange(10**6)}" for _ in range(500)] for _ in range(2))
    drafts = [" ".join(ours[n : n + 25]) for n in range(0, 500, 25)]
    assert max(one.score for one in align(drafts, " ".join(theirs))) < 0.5


def test_nothing_to_align_is_no_error():
    assert align([], "some text") == []
    assert texts(["hello", ""], "") == ["", ""]
    assert texts(["", ""], "some text") == ["", ""]
    assert texts(["hello"], " ... -- ") == [""]
    assert [one.score for one in align(["hello", ""], "")] == [0.0, 0.0]


def test_scripts_without_spaces_are_divided_by_character_and_written_as_they_were():
    assert texts(["今天天气很", "我们去公圆"], "今天天气很好。我们去公园！") == ["今天天气很好。", "我们去公园！"]
    assert texts(["สวัสดีครับ", "ขอบคุณ"], "สวัสดีครับขอบคุณ") == ["สวัสดีครับ", "ขอบคุณ"]
    assert texts(["彼は言った", "行こう"], "彼は言った「行こう」") == ["彼は言った", "「行こう」"]


def test_letters_are_compared_without_case_and_form_and_marks_count():
    scored = align(["strasse cafe\u0301"], "STRAßE café")
    assert scored[0].score == 1.0
    assert align(["नमसत"], "नमस्ते")[0].score < 1


def test_an_hour_of_speech_takes_a_moment():
    rng = random.Random(2)
    words = [f"w{int(rng.paretovariate(0.7)) % 5000}" for _ in range(10_000)]
    heard = [word if rng.random() > 0.2 else f"w{rng.randrange(5000)}" for word in words]
    drafts = [" ".join(heard[n : n + 30]) for n in range(0, 10_000, 30)]
    aligned = align(drafts, " ".join(words))
    right = sum(abs(one.start_word - 30 * n) <= 1 for n, one in enumerate(aligned))
    assert right > 0.9 * len(drafts)
