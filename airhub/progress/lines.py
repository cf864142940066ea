"""Prepares a line: takes off what log collectors put before it and tells whose it is."""

from __future__ import annotations

import re

WIDE = str.maketrans("：，（）【】％；｜＝／", ":,()[]%;|=/")

_DATES = re.compile(
    r"[\[(<]?\d{4}[-/.]\d\d?[-/.]\d\d?(?:[T ,_-]{1,3}\d\d?[:.]\d\d(?:[:.]\d\d)?(?:[.,:]\d{1,9})?)?"
    r"\s?(?:Z\b|UTC|GMT|[+-]\d\d:?\d\d\b)?[\])>]?"
    r"|\[?\b\d\d?/\d\d?(?:/\d{2,4})?[ ,-]{1,3}\d\d?:\d\d(?:[:.]\d\d)?(?:[.,]\d+)?\s?(?:AM|PM)?\]?"
    r"|\[?\b(?:Mon|Tue|Wed|Thu|Fri|Sat|Sun)?,?\s?(?:Jan|Feb|Mar|Apr|May|Jun|Jul|Aug|Sep|Oct|Nov|Dec)[a-z]*\s+\d\d?"
    r"(?:,? \d{4})?,?\s+\d\d?:\d\d:\d\d(?:\.\d+)?(?:\s\d{4})?\]?"
    r"|^[\[(]?\d\d:\d\d:\d\d(?:[.,]\d+)?[\])]?(?=[\s|,:-])"
    r"|^[IWEF]\d{4,8}\s\d\d:\d\d:\d\d(?:\.\d+)?\s+\d+\s"
    r"|(?<=\s)\d\d:\d\d:\d\d[.,]\d{3,6}(?=[\s\]])"
)
_RANKS = re.compile(
    r"^\[(?:default|rank|Rank |Rank|RANK |RANK|GPU|GPU |gpu|cuda:|worker|worker-|node|trainer)(?P<a>\d+)\]\s*:?\s*"
    r"|^\[\d+,(?P<b>\d+)\]<std\w+>\s*:\s?"
    r"|^\((?:\w+) (?:[^()]*, )?pid=\d+(?:, (?:rank=(?P<c>\d+)|[^(),]*)){0,3}\)\s?"
    r"|^(?:\[pod/[^\]]{1,120}\]|pod/\S{1,120})\s"
    r"|^[A-Za-z][\w.-]{0,60}?-(?P<d>\d+)\s{1,6}\|\s"
    r"|^(?:Rank|rank|RANK|Worker|worker|GPU|gpu|Process|process|Node|node)[ _:=\[#-]{0,2}(?P<e>\d+)\]?\s*[|:,\-]{1,2}\s+"
)
_INNER_RANK = re.compile(r"(?:\[| |^|,|\()(?:[Rr]ank|RANK|local_rank)[ _:=]{1,2}(?P<rank>\d+)(?=[\],|:)\s])")
_LEVELS = re.compile(
    r"^[\s|:>*-]{0,12}(?:\[\s?(?:INFO|DEBUG|WARNING|WARN|ERROR|CRITICAL|NOTICE|TRACE|info|debug|I|W|D|E)\s?[^\]\d]{0,40}\]"
    r"|(?:INFO|DEBUG|WARNING|WARN|ERROR|NOTICE|TRACE|info)\b:?)[\s|:-]{0,8}"
)
_LOGGER = re.compile(
    r"^(?:\[[A-Za-z_][\w./]{1,60}(?::\d+)?(?::\w+)?\]\s*(?:>>)?\s*"
    r"|(?:[A-Za-z_]\w*\.)+\w+(?::\w+)?(?::\d+)?\s*(?:\]|-|:|\|)\s+|(?:[A-Za-z_]\w*\.)+(?:py|cc|cpp|cu|h):\d+\s*[\]|:-]?\s+"
    r"|(?:tensorflow|root|__main__|absl|train|trainer|main|accelerate):\s?"
    r"|(?:root|__main__|train|trainer|main|logger|ppocr|paddle)\s?[:|-]\s{0,3}(?:(?:INFO|DEBUG|WARNING)\s?[:|-]\s{0,3})?"
    r"|(?:ppocr|ppdet\.\w+|ppcls|paddlex|ppgan|root|mmdet|mmengine|mmcls|detectron2|fvcore|d2|utils\.\w+)\s+(?:INFO|DEBUG)\s*[:\]-]\s*"
    r"|\w[\w.]*:(?:\w+:)?\d+\s(?:-|\]|\|)\s+)"
)
_CLUSTER = re.compile(r"\s*\[repeated \d+x across (?:all )?cluster\].*$")


def prepare(text: str) -> tuple[str, int | None]:
    """Return the line as the code printed it, and the rank that printed it where the line tells."""
    if not text.isascii():
        text = text.translate(WIDE)
    text = text.strip()
    rank = None
    for _ in range(4):
        before = text
        found = _DATES.search(text[:100])
        if found and (found.start() < 40):
            text = (text[: found.start()].rstrip("[( ") + " " + text[found.end() :].lstrip("]) ")).strip(" ")
            text = text.removeprefix("- ").removeprefix("| ").removeprefix(": ").lstrip()
        found = _RANKS.match(text)
        if found:
            named = found.lastgroup
            if named is not None and rank is None and found[named] is not None:
                rank = int(found[named][:9])
            text = text[found.end() :]
        found = _LEVELS.match(text)
        if found:
            text = text[found.end() :]
        found = _LOGGER.match(text)
        if found:
            text = text[found.end() :]
        if text == before:
            break
    if "[repeated " in text:
        text = _CLUSTER.sub("", text)
    if rank is None and "ank" in text:
        found = _INNER_RANK.search(text[:120])
        if found:
            rank = int(found["rank"][:9])
    return text.strip(), rank
