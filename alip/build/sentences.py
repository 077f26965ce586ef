"""A text split into its sentences, by rules. In doubt they do not split: two sentences together are still a caption,
half a sentence is not."""

from __future__ import annotations

import re

# Abbreviations: before a full stop they do not end a sentence, whatever follows.
_ALWAYS = re.compile(
    "mr|mrs|ms|mx|dr|prof|jr|sr|messrs|vs|etc|cf|al|vol|eds|inc|ltd|corp|bros|ave|blvd|rd|dept|bzw|usw|ggf|"
    r"ph\.d"
)
# The same with a capital letter; with a small one they are mostly words: "the cat sat.", "in the sun."
_CAPITALISED = re.compile(
    "Jan|Feb|Mar|Apr|Jun|Jul|Aug|Sept?|Oct|Nov|Dec|Mon|Tues?|Wed|Thu|Thurs?|Fri|Sat|Sun|St|Mt|Ft|Gen|Col|Capt|Lt|Sgt|"
    "Gov|Sen|Rep|Pres|Rev|Hon|Co|Ed|Est|Str"
)
_UNITS = re.compile("nos?|figs?|pp?|ca|c|approx|nr")  # a number follows them
_CLOSERS = "\"'”’»)]}*_"
_OPENERS = "\"'“‘«([{*_¿¡-–—"
_WIDE_CLOSERS = "”’»）】》」』"
_END = re.compile(
    rf"(?P<wide>[。！？｡]+[{_WIDE_CLOSERS}{re.escape(_CLOSERS)}]*)"  # no space follows these
    rf"|(?P<mark>[.!?…؟।۔॥]+[{re.escape(_CLOSERS)}{_WIDE_CLOSERS}]*)(?=\s|$)"
)
_BULLET = re.compile(r"^(?:[-–—*•·▪‣]+\s+|\d{1,3}[.)]\s+|#{1,6}\s+)+")
_WORD = re.compile(r"[^\s" + re.escape(_OPENERS) + r"]*$")
# Characters looked at on either side of a mark, so that the time that a text takes grows with its length only.
_LOOK = 40
_INITIAL = re.compile(r"(?:[^\W\d_]\.)*[^\W\d_]")  # J, or U.S (its last full stop is the one in question)


def split_sentences(text: str) -> list[str]:
    """The sentences of a text, in order, without white space, list marks or headings' signs around them.

    An end is a full stop, question mark, exclamation mark or ellipsis before white space, one of the wide marks of
    Chinese and Japanese anywhere, and a line's end. A full stop is none in a number, behind an initial, a title or
    another abbreviation, or where a small letter follows (unless the text has no capital letters at all). What has
    neither a letter nor a digit is no sentence.
    """
    found = []
    has_capitals = any(letter.isupper() for letter in text)
    for line in text.splitlines():
        line = _BULLET.sub("", line.strip())
        start = 0
        for match in _END.finditer(line):
            if match["wide"] or _ends(line, start, match, has_capitals):
                found.append(line[start : match.end()])
                start = match.end()
        found.append(line[start:])
    return [one for one in map(str.strip, found) if any(letter.isalnum() for letter in one)]


def _ends(line: str, start: int, match: re.Match, has_capitals: bool) -> bool:
    """Whether a mark that white space follows ends a sentence."""
    following = line[match.end() : match.end() + _LOOK].lstrip().lstrip(_OPENERS).lstrip()[:1]
    if has_capitals and following.islower():
        return False  # "e.g. a dog", "approx. five", '"Stop!" he said'
    mark = match["mark"].rstrip(_CLOSERS + _WIDE_CLOSERS)
    if mark != ".":
        return True
    spelled = _WORD.search(line, max(start, match.start() - _LOOK), match.start()).group()
    word = spelled.lower()
    if _ALWAYS.fullmatch(word) or _CAPITALISED.fullmatch(spelled):
        return False
    if len(word) > 1 and _INITIAL.fullmatch(word):
        return False  # "U.S.", "e.g.", "p.m."
    if len(word) == 1 and spelled.isupper():
        return False  # "J. Smith"
    if _UNITS.fullmatch(word):
        return not following.isdigit()  # "No. 5", but "I said no."
    return not (word.isdigit() and not line[start : match.start() - len(word)].strip())  # "1. The dog": a list's number
