"""What one line of output says (a ``Reading``), and how the figures of a line are found."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field

from airhub.progress.names import FIGURES, Role, plainness, role

NUMBER = r"[-+]?(?:\d{1,3}(?:,\d{3})+(?![\d,])(?:\.\d+)?|\d+(?:\.\d*)?|\.\d+)(?:[eEdD][-+]?\d+)?"
_NAN = r"[-+]?(?i:nan|inf(?:inity)?)(?![A-Za-z])"
# What may stand before the number: quotes, brackets, the name of an array type.
_WRAP = r"(?:(?:tensor|array|Array|np\.float\d\d|np\.array|numpy\.float\d\d|jnp\.array|DeviceArray|float)?[(\[]{1,2}|['\"])?"
_WORD = r"[A-Za-z_\u3040-\u9fff][\w.@/'+\-\u3040-\u9fff]{0,60}(?:\([A-Za-z%/ ]{1,12}\))?"
_MORE = r"(?:[ ](?:[A-Za-z(@\u3040-\u9fff][\w.@/'()+\-%]{0,30})){0,4}?"
PAIRS = re.compile(
    rf"(?<![\w.])['\"]?(?P<key>{_WORD}{_MORE})['\"]?\s{{0,12}}(?::=|[:=]|\bis\b)\s{{0,12}}"
    rf"{_WRAP}(?P<value>{NUMBER}|{_NAN})(?P<unit>%|[A-Za-zµ]{{1,4}}(?:/\w{{1,10}})?)?(?![\w:/]|\.\d|-\d)"
)
# "loss 0.83 acc 0.45": names and numbers with nothing between, where the name is a known kind of figure.
SPACED = re.compile(
    rf"(?<![\w.])(?P<key>(?:[A-Za-z][\w/.\-]{{0,30}}[ ]){{0,3}}?(?:[A-Za-z][\w/.]{{0,30}}[_/.\-])?(?:{FIGURES})"
    rf"(?:[_@][\w@]{{1,16}})?)\s{{1,12}}(?P<value>{NUMBER}|{_NAN})(?P<unit>%|[A-Za-zµ]{{1,4}}(?:/\w{{1,10}})?)?"
    r"(?![\w:/]|\.\d|-\d)",
    re.I,
)
# "第3轮" and the like have no separators, so Chinese figures may follow their name directly.
CHINESE = re.compile(
    rf"(?P<key>[A-Za-z\u3040-\u9fff]{{0,8}}(?:损失|損失|损失值|准确率|準確率|精度|学习率|困惑度|召回率|奖励))"
    rf"\s{{0,4}}[为是]?\s{{0,4}}(?P<value>{NUMBER}|{_NAN})(?P<unit>%)?(?![\w:/]|\.\d)"
)
_HAS_SPACED = re.compile(rf"(?:{FIGURES})(?:[_@][\w@]{{1,16}})?\s{{1,12}}[-+.\dni]", re.I)
_UNITS_OF_TIME = frozenset("s sec secs ms us ns min mins h hr m µs it img x mb gb kb mib gib kib g k b d M G K".split())


@dataclass
class Reading:
    """What one line says. ``scope`` is what ``steps`` counts: an ``epoch``, the ``run``, or not known ("")."""

    epoch: float | None = None
    epochs: float | None = None
    step: float | None = None
    steps: float | None = None
    scope: str = ""
    percent: float | None = None
    fraction: float | None = None
    loss: float | None = None
    loss_role: Role = Role.LOSS
    metrics: dict[str, float] = field(default_factory=dict)
    evaluation: bool = False
    # The line stands at the start of the epoch, or tells of a whole epoch.
    header: bool = False
    done: bool = False
    # The epoch counts what is complete (an outer bar), so that 3 of 10 is 30 %.
    complete: bool = False
    finished: bool = False
    note: bool = False
    bar: bool = False
    rank: int | None = None
    base: int | None = None

    @property
    def says_something(self) -> bool:
        return (
            self.epoch is not None
            or self.epochs is not None
            or self.step is not None
            or self.steps is not None
            or self.loss is not None
            or self.percent is not None
            or self.finished
            or bool(self.metrics)
        )


@dataclass
class Figures:
    """The named numbers of one line, sorted by what their names mean."""

    losses: list[tuple[str, float]] = field(default_factory=list)
    named: list[tuple[str, float]] = field(default_factory=list)
    parts: list[tuple[str, float]] = field(default_factory=list)
    costs: list[tuple[str, float]] = field(default_factory=list)
    others: dict[str, float] = field(default_factory=dict)
    counters: dict[Role, float] = field(default_factory=dict)
    settings: int = 0
    pairs: int = 0

    def choose_loss(self) -> tuple[float | None, Role, str]:
        """Return the training loss of the line, how sure its name is, and the name."""
        if self.losses:
            name, value = min(self.losses, key=lambda pair: plainness(pair[0]))
            return value, Role.LOSS, name
        if len(self.named) == 1 and not self.parts:
            return self.named[0][1], Role.NAMED_LOSS, self.named[0][0]
        if self.costs and not self.parts and not self.named:
            return self.costs[0][1], Role.COST, self.costs[0][0]
        return None, Role.LOSS, ""

    def metrics(self, but: str = "") -> dict[str, float]:
        """Return every figure but the one named."""
        found = dict(self.others)
        for pairs in (self.losses, self.named, self.parts, self.costs):
            for name, value in pairs:
                if name != but:
                    found.setdefault(name, value)
        return found


def number(text: str) -> float:
    """Read a printed number: thousands' commas, Fortran exponents, nan and inf are understood."""
    text = text.replace(",", "")
    try:
        return float(text)
    except ValueError:
        return float(text.replace("D", "e").replace("d", "e"))


def tidy(value: float | None) -> float | int | None:
    """Return whole numbers as integers: counters are printed so."""
    if value is None or not math.isfinite(value):
        return None
    return int(value) if value == int(value) else value


def figures(text: str) -> Figures:
    """Find the named numbers of a line."""
    found = Figures()
    for match in PAIRS.finditer(text):
        _sort(found, match)
    if _HAS_SPACED.search(text):
        for match in SPACED.finditer(text):
            _sort(found, match)
    if not text.isascii():
        for match in CHINESE.finditer(text):
            _sort(found, match)
    return found


_SETTINGS = re.compile(
    r"(?:^|_)(?:batch_size|bs|seed|workers|num_workers|hidden|hidden_size|num_layers|layers|dropout|momentum|"
    r"weight_decay|wd|warmup\w*|optimizer|optim|max_\w+|num_\w+|n_\w+|total_\w+|epochs|iters|steps|lr0|lrf|imgsz|"
    r"patience|betas?|eps|gamma|port|beta1|beta2|log_interval|save_\w+|eval_\w+|vocab_size|block_size|"
    r"gradient_accumulation_steps|per_device\w*|accumulate|world_size|dim|d_model|heads|clip|\w*_interval|"
    r"\w*_every|\w*_freq|\w*_size|lora_\w+|adam_\w+|\w*_steps|\w*_epochs|start_epoch|seq_len\w*|size)$"
)


def is_setting(name: str) -> bool:
    """Whether a name is one of a configuration."""
    return bool(_SETTINGS.search(name.strip("-'\"").lower().replace("-", "_").replace(" ", "_")))


def _sort(found: Figures, match: re.Match[str]) -> None:
    key, unit = match["key"].strip("'\" -."), match["unit"]
    value = number(match["value"])
    found.pairs += 1
    if is_setting(key):
        found.settings += 1
    meaning = role(key)
    if meaning in (Role.EPOCH, Role.STEP, Role.GLOBAL_STEP, Role.EPOCHS, Role.STEPS, Role.PERCENT):
        found.counters.setdefault(meaning, value)
        return
    if meaning is Role.NOISE or (unit and unit != "%" and unit.split("/")[0] in _UNITS_OF_TIME):
        return
    if meaning is Role.LOSS:
        _put(found.losses, key, value)
    elif meaning is Role.NAMED_LOSS:
        _put(found.named, key, value)
    elif meaning is Role.PART_LOSS:
        _put(found.parts, key, value)
    elif meaning is Role.COST:
        _put(found.costs, key, value)
    else:
        found.others.setdefault(key, value)


def _put(pairs: list[tuple[str, float]], key: str, value: float) -> None:
    if all(name != key for name, _ in pairs):
        pairs.append((key, value))
