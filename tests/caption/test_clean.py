import pytest

from alip.caption.clean import clean, collapse


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("  a dog\n on\ta  beach ", "a dog on a beach"),
        ("a dog , sitting .", "a dog, sitting."),
        ("a\u2028b\x00c", "a b c"),
        ("the the the the dog", "the dog"),
        ("bye bye baby", "bye bye baby"),
        ("a cat, a cat, a cat.", "a cat."),
        ("a dog and a dog and a dog and a dog", "a dog and a dog"),
        ("A red car a red car on a road", "a red car on a road"),
        ("", ""),
    ],
)
def test_clean(text, wanted):
    assert clean(text) == wanted


def test_repeats_may_be_kept():
    assert clean("a cat a cat", collapse_repeats=False) == "a cat a cat"


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("a picture of a dog", "a dog"),
        ("This is a photo of two men", "two men"),
        ("there is an image of snow", "snow"),
        ("The image shows a red bus", "a red bus"),
        ("a close-up photograph of a bee", "a bee"),
        ("a picture frame on a wall", "a picture frame on a wall"),
        ("a dog looks at a picture of a cat", "a dog looks at a picture of a cat"),
        ("a picture of", "a picture of"),
        ("a photo of a picture of a cat", "a picture of a cat"),
    ],
)
def test_strip_lead(text, wanted):
    assert clean(text, strip_lead=True) == wanted
    assert clean(text) == text  # only when asked


def test_collapse_takes_long_phrases_once():
    phrase = "a man riding a wave on top of a surfboard"
    assert collapse(f"{phrase} {phrase} {phrase}") == phrase
    assert collapse(f"two dogs, {phrase}, {phrase}") == f"two dogs, {phrase}"
