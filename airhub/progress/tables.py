"""Tables: a header names the columns and rows of bare numbers follow (fastai, skorch, spaCy, scikit-learn, CSV)."""

from __future__ import annotations

import re

from airhub.progress.names import Role, is_figure, role, words
from airhub.progress.reading import NUMBER, Figures, Reading, number
from airhub.progress.rules import count

_CELL = re.compile(r"\S+(?: \S+)*")
_WORD = re.compile(r"\S+")
_VALUE = re.compile(rf"^[^\w\s+\-.]?(?P<value>{NUMBER}|[-+]?(?:nan|inf))(?P<unit>%|[a-zA-Z]{{1,3}})?\+?$", re.I)
_COUNTER = re.compile(r"^(?P<n>\d{1,12}(?:\.\d+)?)(?:/(?P<total>\d{1,12}))?$")
_RULER = re.compile(r"^[\s|+\-=:─━┄┼╇╪├┤┏┓┡┩└┘┴┬]+$")
_FIRST = frozenset("epoch epochs e iter iteration iterations step steps # round update ep it batch generation".split())
_NUMBERS = re.compile(r"\d")


class Table:
    """Remembers the last header; reads rows below it until one does not fit."""

    def __init__(self) -> None:
        self._names: list[str] = []
        self._spans: list[tuple[int, int]] = []
        self._split = ""
        self._misses = 0

    def copy(self) -> Table:
        other = Table()
        other.__dict__.update(self.__dict__)
        return other

    @property
    def open(self) -> bool:
        return bool(self._names)

    def header(self, text: str) -> bool:
        """Take the line as a header if it is one."""
        if len(text) > 600 or len(text) < 8:
            return False
        for split in ("|", "│", "┃", "\t", ",", ";", " "):
            if split != " " and split not in text:
                continue
            cells = _cells(text, split)
            if len(cells) < 2 or not _names_columns([cell for cell, _, _ in cells]):
                continue
            self._names = [cell for cell, _, _ in cells]
            self._spans = [(start, end) for _, start, end in cells]
            self._split = "|" if split in "│┃|" else split
            self._misses = 0
            return True
        return False

    def row(self, text: str) -> Reading | None:
        """Read the line as a row below the last header."""
        if not self._names or _RULER.match(text):
            return None
        columns = self._columns(text.replace("│", "|").replace("┃", "|"))
        if columns is None:
            self._misses += 1
            if self._misses > 12:
                self._names = []
            return None
        self._misses = 0
        result, found = Reading(done=True), Figures()
        for name, cell in columns:
            _place(name, cell, result, found)
        value, how, name = found.choose_loss()
        result.loss, result.loss_role = value, how
        result.metrics = found.metrics(but=name)
        if result.epoch is None:
            result.done = False
        if result.epoch is None and result.step is None:
            return None
        return result

    def _columns(self, text: str) -> list[tuple[str, str]] | None:
        cells = _cells(text, self._split)
        if self._split == " " and len(cells) != len(self._names):
            words_ = [(match[0], match.start(), match.end()) for match in _WORD.finditer(text)]
            if len(words_) == len(self._names):
                cells = words_
            else:
                return self._aligned(words_)
        if len(cells) != len(self._names) and self._split != " ":
            return None
        values = [cell for cell, _, _ in cells]
        if not _has_values(values):
            return None
        return list(zip(self._names, values, strict=False))

    def _aligned(self, cells: list[tuple[str, int, int]]) -> list[tuple[str, str]] | None:
        # A column may be empty in this row: find each cell's column by where it stands.
        if len(cells) < 2 or not _has_values([cell for cell, _, _ in cells]):
            return None
        placed = []
        for cell, start, end in cells[: len(self._names) + 4]:
            best = min(
                range(len(self._spans)),
                key=lambda at: min(abs(self._spans[at][1] - end), abs(self._spans[at][0] - start)),  # noqa: B023
            )
            off = min(abs(self._spans[best][1] - end), abs(self._spans[best][0] - start))
            if off <= 2:
                placed.append((self._names[best], cell))
        return placed if len(placed) >= max(2, len(cells) - 2) else None


def _cells(text: str, split: str) -> list[tuple[str, int, int]]:
    if split == " ":
        return [(match[0], match.start(), match.end()) for match in _CELL.finditer(text)]
    if split in "│┃|":
        text = text.replace("│", "|").replace("┃", "|")
        split = "|"
    cells, start = [], 0
    for piece in text.strip(split + " \n").split(split):
        cells.append((piece.strip(" \"'"), start, start + len(piece)))
        start += len(piece) + 1
    return cells


def _names_columns(names: list[str]) -> bool:
    if any(_NUMBERS.match(name) for name in names) or any(not name for name in names):
        return False
    if any(":" in name or "=" in name or len(name) > 40 for name in names):
        return False
    first = ["_".join(words(name)) or name for name in names]
    counter = any(name in _FIRST or role(name) in (Role.EPOCH, Role.GLOBAL_STEP) for name in first[:3])
    return counter and any(is_figure(name) or role(name) is not Role.METRIC for name in names if name.lower() not in _FIRST)


def _has_values(values: list[str]) -> bool:
    counter = _COUNTER.match(values[0]) or (len(values) > 1 and _COUNTER.match(values[1]))
    good = sum(1 for value in values if _VALUE.match(value) or _COUNTER.match(value))
    return bool(counter) and good >= 2 and good * 2 >= len(values)


def _place(name: str, cell: str, result: Reading, found: Figures) -> None:
    meaning = role(name)
    low = name.lower().strip()
    counter = _COUNTER.match(cell)
    if low == "e" or meaning is Role.EPOCH or low in ("epochs", "round"):
        if counter and result.epoch is None:
            result.epoch = count(counter["n"])
            result.epochs = count(counter["total"]) if counter["total"] else None
        return
    if low == "#" or meaning in (Role.STEP, Role.GLOBAL_STEP):
        if counter and result.step is None:
            result.step = count(counter["n"])
            result.steps = count(counter["total"]) if counter["total"] else None
        return
    value = _VALUE.match(cell)
    if value is None or meaning is Role.NOISE or (value["unit"] or "%") != "%":
        return
    amount = number(value["value"])
    if meaning is Role.LOSS:
        found.losses.append((name, amount))
    elif meaning is Role.NAMED_LOSS:
        found.named.append((name, amount))
    elif meaning is Role.PART_LOSS:
        found.parts.append((name, amount))
    elif meaning is Role.COST:
        found.costs.append((name, amount))
    else:
        found.others.setdefault(name, amount)
