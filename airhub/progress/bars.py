"""Progress bars of any library: tqdm, rich, Keras, alive-progress, click, progressbar2, fastprogress, H2O."""

from __future__ import annotations

import re
from dataclasses import dataclass

from airhub.progress.names import EVAL_WORDS
from airhub.progress.reading import Reading, number
from airhub.progress.rules import count, is_evaluation, read_line

_SIZE = r"[\d.,]{1,20}[kKMGTP]?"
_TQDM = re.compile(
    rf"(?P<percent>\d{{1,3}}(?:\.\d+)?)%\|(?P<bar>[^|]{{0,800}})(?:\|\s{{0,4}}(?P<n>{_SIZE})/(?P<total>{_SIZE}|\?)\s?"
    r"(?:\[(?P<inner>[^\[\]]{0,3000}(?:\[[^\[\]]{0,200}\][^\[\]]{0,1500}){0,4})(?:\]|$))?|(?=\s|$|,|\|))"
)
_ENDLESS = re.compile(
    r"(?:^|(?<=:\s)|(?<=:)|(?<=\s))(?P<n>\d{1,12}(?:\.\d+)?[kKMG]?)\s?(?P<unit>[A-Za-z][\w ]{0,16})\s?\[(?P<inner>\d{1,3}:\d\d(?::\d\d)?"
    r"(?:,[^\]]{0,2000})?)(?:\]|$)"
)
_UNICODE_BAR = re.compile(r"[━╸╺─╌█▉▊▋▌▍▎▏░▒▓■□▇▆⣿⣀⡿●○◼◻▰▱▮▯⠿]{2,}(?:[ ]{0,200}(?=\|))?|(?<=\|)[█▉▊▋▌▍▎▏][ ]{0,200}(?=\|)")
_ASCII_BAR = re.compile(
    r"\[[=#*\-+>. ·oO@]{4,300}\]|\|[=#*\->. ]{4,300}\||(?<=\s)[=#]{3,200}>?[.\- ]{0,200}(?=\])|\|#{1,300}\s{0,300}\|"
)
_PERCENT = re.compile(r"(?<![\w.])(?P<percent>\d{1,3}(?:\.\d+)?)\s?%")
_RATIO = re.compile(
    r"(?<![\w./])(?P<n>\d{1,3}(?:,\d{3})+|\d{1,12}(?:\.\d+)?[kKMG]?)\s?(?:/|\bof\b)\s?(?P<total>\d{1,3}(?:,\d{3})+|\d{1,12}(?:\.\d+)?[kKMG]?)"
    r"(?![\w./])(?!\s?(?:[kKMGT]i?B|bytes|B)\b)"
)
_BYTES = re.compile(r"\d\s?[kKMGTP]?i?B(?:/s|\b)|\b(?:bytes|files?|ex|examples?|rows?|records?|docs?|lines?|ba|tables?|pages?|frames)/s|\?\s?(?:B|\w{0,3}examples|files?|ex|ba)/s")
_KERAS = re.compile(
    r"^(?P<n>\d{1,12})/(?P<total>\d{1,12}|Unknown|\?)\s{0,4}(?:\[[=>.]{3,60}\]|(?=[━ ]*\s?\d{0,6}(?:m?s|:\d\d|us|h|m|d)\b)[━ ]*|-(?=\s\d{1,9}(?:\.\d)?(?:s|ms|us|:\d\d)))"
    r"(?P<rest>.*(?:\d(?:m|u)?s/(?:step|sample|epoch)|ETA:|\d(?:s|ms|us)\b).*)$"
)
_PREPARATION = re.compile(
    r"\b(?:download|map(?:ping)?\b|filter|tokeniz|tokenis|load|extract|scan|unpack|unzip|read(?:ing)?\b|cach|generat|encod|preproc|process|prepar|build"
    r"|creat|index|shard|fetch|upload|push|sav(?:e|ing)|writ|convert|collect|resolv|import|install|verify|check|comput|quantiz|copy|pars|profil"
    r"|materializ|initiali[sz]|warm.?up|pull|receiv|compress|decompress|split|shuffl|group|concat|flatten|cast|sort|clean|crawl|transcrib|infer\b"
    r"|generating|augment|featur|embed|comput|calculat|analy[sz]|rendering|visuali|collat|pack|dedup|chunk|search|export|merg|dispos|score\b|scoring"
    r"|creating|repo card|adding|apply|normali[sz]|get(?:ting)?\b|batches$|calibrat|mining|vocab|parse progress|clon|sampling (?!\d)|model.safetensors|\.(?:zip|gz|tgz|bin|safetensors|json|txt|pt|pth|parquet|h5|model)\b)",
    re.I,
)
_PREPARATION_CHINESE = re.compile(r"下载|加载|处理|预处理|分词|解压|读取|缓存|生成数据|验证|测试|评估|推理|预测|扫描")
_TRAINING = re.compile(
    r"(?<![a-z])(?:train|epoch|fit|fine.?tun|optimi[sz]|learn|steps?\b|iter|it\b|trial|boost|sampling \d|chain|model build|round|generation|timestep|episode|pretrain)|训练|轮|步|迭代|学习",
    re.I,
)
_SPLIT_OF_DATA = re.compile(r"\b(?:train(?:ing)?|val|test)\s?(?:set|data(?:set)?|split|examples|samples|images|files|labels|corpus)\b|\(train\)$|train:?\s(?:scann|cach)", re.I)
_EPOCHS_BAR = re.compile(
    r"^\W{0,6}(?:(?:training|train|total|overall|fit|all|outer|main|current)\s)?(?:epochs?|epoche|轮次|训练轮次|轮数|round|rounds|エポック|训练轮数)\W{0,6}$", re.I
)
_EVAL_DESCRIPTION = re.compile(
    r"(?<![\w])(?:val|valid|validation|validating|validate|eval|evaluate|evaluation|evaluating|test|testing|predict\w*|inference|inferencing|sanity"
    r"|dev)(?![\w])(?!\s?(?:[=:]\s?[-+.\d]|[-_ /]?(?:loss|acc|f1|auc|score|err|ppl|mse|iou|map|bleu|metric)))",
    re.I,
)
_DESCRIBED_RATIO = re.compile(r"(?<![\w./])[\[(]?(?P<n>\d{1,6})\s?/\s?(?P<total>\d{1,6})[\])]?(?![\w./])")


@dataclass
class Bar:
    """One drawn bar: what stands before it, its counter and what stands after."""

    description: str
    n: float | None
    total: float | None
    percent: float | None
    tail: str
    keras: bool = False
    plain: bool = False


def find_bars(text: str) -> tuple[list[Bar], str]:
    """Return the bars of a line and the text glued behind the last of them."""
    keras = _KERAS.match(text)
    if keras:
        total = None if not keras["total"].isdigit() else float(keras["total"])
        return [Bar("", float(keras["n"]), total, None, keras["rest"], keras=True)], ""
    if "%|" in text:
        bars, end = _tqdm_bars(text)
        if bars:
            return bars, text[end:]
    if "[" in text:
        endless = _ENDLESS.search(text)
        if endless and ("/s" in endless["inner"] or "s/" in endless["inner"]):
            tail = endless["inner"] + (" B/s" if endless["unit"].strip() in ("B", "iB") else "")
            bar = Bar(text[: endless.start()], count(endless["n"]), None, None, tail)
            return [bar], text[endless.end() :]
    return _drawn(text), ""


def _tqdm_bars(text: str) -> tuple[list[Bar], int]:
    bars, end = [], 0
    for match in _TQDM.finditer(text):
        description = text[end : match.start()]
        end = match.end()
        n = total = None
        tail = match["inner"] or ""
        if match["n"]:
            n = _size(match["n"])
            total = None if match["total"] == "?" else _size(match["total"])
        else:
            # A custom format: the counter may stand before the percentage, figures after the bar.
            ratios = list(_RATIO.finditer(description))
            if ratios:
                n, total = count(ratios[-1]["n"]), count(ratios[-1]["total"])
                description = description[: ratios[-1].start()].rstrip("[( ")
            tail = _glyphless(match["bar"]) + " " + text[end:]
            end = len(text)
        bars.append(Bar(description, n, total, number(match["percent"]), tail))
    return bars, end


def _glyphless(bar: str) -> str:
    return _UNICODE_BAR.sub(" ", bar)


def _size(text: str) -> float | None:
    try:
        return count(text)
    except ValueError:
        return None


def _drawn(text: str) -> list[Bar]:
    found = _UNICODE_BAR.search(text) or _ASCII_BAR.search(text)
    if not found:
        return []
    before, after = text[: found.start()].rstrip("|[ "), _UNICODE_BAR.sub(" ", text[found.end() :]).lstrip("|] ")
    percents = [*_PERCENT.finditer(before)][-1:] or [*_PERCENT.finditer(after)][:1]
    # The counter stands right behind the bar, or else right before it.
    near = _RATIO.search(after)
    n = total = None
    if near and (near.start() < 60 or not percents):
        n, total = count(near["n"]), count(near["total"])
        after = after[: near.start()] + " " + after[near.end() :]
    else:
        behind = [match for match in _RATIO.finditer(before) if len(before) - match.end() < 24]
        if behind and not re.search(r"epoch\W{0,3}$", before[: behind[-1].start()], re.I):
            n, total = count(behind[-1]["n"]), count(behind[-1]["total"])
            before = before[: behind[-1].start()] + " " + before[behind[-1].end() :]
    if n is None and not percents:
        return []
    percent = number(percents[0]["percent"]) if percents else None
    if percent is not None and percent > 100:
        return []
    if percents and percents[0].string == before:
        before = before[: percents[0].start()] + " " + before[percents[0].end() :]
    return [Bar(before, n, total, percent, after, plain=True)]


def read_bar(bar: Bar) -> tuple[Reading | None, str]:
    """Read one bar: ``train``, ``eval`` or ``none`` where it surely is that, ``unsure`` where only others can tell."""
    description = bar.description.strip(" :|-\t")
    if _BYTES.search(bar.tail[:120]) or _BYTES.search(description):
        return None, "none"
    body = f"{description} , {bar.tail}"
    reading = read_line(body, bar=True) or Reading(bar=True)
    if bar.keras:
        reading.step, reading.steps = bar.n, bar.total
        return reading, "train" if reading.loss is not None or reading.metrics else "unsure"
    kind = _kind(description, reading)
    if kind in ("none", "eval"):
        return (reading if kind == "eval" else None), kind
    _count(bar, description, reading)
    return reading, kind


def _kind(description: str, reading: Reading) -> str:
    low = description.lower()
    counted = reading.epoch is not None
    if _EVAL_DESCRIPTION.search(description) and not low.startswith("train") or _PREPARATION_CHINESE.search(description):
        return "eval"
    if is_evaluation(description):
        return "eval"
    if not counted and (_SPLIT_OF_DATA.search(description) or _PREPARATION.search(description)) and reading.loss is None:
        return "none"
    if counted or reading.loss is not None or _TRAINING.search(description):
        return "train"
    if description and EVAL_WORDS.intersection(low.split()):
        return "eval"
    return "unsure"


def _count(bar: Bar, description: str, reading: Reading) -> None:
    complete = bar.n is not None and bar.total is not None and bar.n >= bar.total
    if _EPOCHS_BAR.match(_nameless(description)) and bar.n is not None:
        reading.epoch, reading.epochs, reading.complete = bar.n, bar.total, True
        reading.header = False
        if reading.scope != "run":
            reading.step = reading.steps = None
        return
    if reading.epoch is None and reading.step is None and bar.n is not None and description:
        found = _DESCRIBED_RATIO.search(description)
        if found and reading.loss is not None:
            reading.epoch, reading.epochs = float(found["n"]), float(found["total"])
    if bar.n is not None:
        reading.step, reading.steps = bar.n, bar.total
        reading.scope = "run" if re.match(r"(?i)\W*(?:global |total )?steps?\W*$", description) else ""
    elif bar.percent is not None:
        reading.step = reading.steps = None
        if reading.epoch is not None:
            reading.fraction = bar.percent / 100
        else:
            reading.percent = bar.percent
    if complete and reading.epoch is not None:
        reading.header = False


def _nameless(description: str) -> str:
    """Drop figures from a description: ``Epochs loss=0.3`` is a bar of epochs."""
    return re.sub(r"[\w/]{1,40}\s?[=:]\s?[-+.\deE%]{1,20},?|\(.{0,80}\)", " ", description).strip(" ,:|-")
