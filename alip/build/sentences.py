"""A text split into its sentences, by rules. In doubt they do not split: two sentences together are still a caption,
half a sentence is not."""

from __future__ import annotations

import re

# Before a full stop they do not end a sentence, whatever follows.
_TITLES = re.compile("mr|mrs|ms|mx|dr|prof|rev|hon|st|mt|ft|jr|sr|gen|col|capt|lt|sgt|gov|sen|rep|pres|messrs")
_SHORT = re.compile(
    r"vs|etc|cf|al|approx|ca|c|figs?|nos?|vol|pp|eds?|depts?|est|inc|ltd|corp|co|bros|ave|blvd|rd|str|nr|bzw|usw|ggf|"
    r"jan|feb|mar|apr|jun|jul|aug|sept?|oct|nov|dec|mon|tues?|wed|thu|thurs?|fri|sat|sun|ph\.d"
)
_UNITS = re.compile("nos?|figs?|vol|pp?|ca|c|approx|nr")  # a number follows them
_CLOSERS = "\"'”’»)]}*_"
_OPENERS = "\"'“‘«([{*_¿¡-–—"
_WIDE_CLOSERS = "”’»）】》」』"
_END = re.compile(
    rf"(?P<wide>[。！？｡]+[{_WIDE_CLOSERS}{re.escape(_CLOSERS)}]*)"  # no space follows these
    rf"|(?P<mark>[.!?…؟।۔॥]+[{re.escape(_CLOSERS)}{_WIDE_CLOSERS}]*)(?=\s|$)"
)
_BULLET = re.compile(r"^(?:[-–—*•·▪‣]+\s+|\d{1,3}[.)]\s+|#{1,6}\s+)+")
_WORD = re.compile(r"[^\s" + re.escape(_OPENERS) + r"]*$")
_LOOK = (
    40  # characters looked at on either side of a mark: a text of a million takes no longer than its length asks for
)
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
    word = _WORD.search(line, max(start, match.start() - _LOOK), match.start()).group().lower()
    if _TITLES.fullmatch(word) or (len(word) > 1 and _INITIAL.fullmatch(word)):
        return False  # "U.S.", "e.g.", "p.m."
    if len(word) == 1 and line[match.start() - 1].isupper():
        return False  # "J. Smith"
    if _UNITS.fullmatch(word):
        return not following.isdigit()  # "No. 5", but "I said no."
    if _SHORT.fullmatch(word):
        return False
    return not (word.isdigit() and not line[start : match.start() - len(word)].strip())  # "1. The dog": a list's number
