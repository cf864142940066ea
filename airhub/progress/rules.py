"""General rules: counters, ratios and named figures in a line of any training code."""

from __future__ import annotations

import re

from airhub.progress.names import FIGURES, Role, is_figure, words
from airhub.progress.reading import Figures, Reading, figures, number

_COUNT = r"\d{1,3}(?:,\d{3})+(?![\d,])|\d{1,15}(?:\.\d{1,9})?(?:[eE][-+]?\d\d?)?[kKM]?"
_OF = r"(?:\s{0,4}[\])]?\s{0,2}\(?(?:/|\bof\b|\bout of\b|-of-)\s{0,6}(?P<total>" + _COUNT + r"))?"
_END = r"(?![\w%]|[.,]\d|/\s?\d|:\d\d|-\d\d)"
_JOIN = r"(?:[ ]?\((?:train|training)\))?['\"]?\s{0,8}(?:[:=#]|->|is)?\s{0,8}(?:number|no\.|num|nr\.?|n°)?\s{0,2}#?['\"]?[\[(]{0,2}\s{0,8}"

EPOCH = re.compile(
    r"(?<![A-Za-z_\-.0-9])(?<!\bper )(?<!\bbest )(?<!\bfrom )(?<!\beach )(?<!\bevery )(?<!\blast )(?<!\bmax )"
    rf"(?P<word>epochs?|ep\.?|eps|epoche|époque|época|эпоха|エポック|에포크|轮次|轮数|輪次|round)(?![A-Za-z])(?!\.\d){_JOIN}"
    rf"(?P<n>{_COUNT})['\"]?{_OF}{_END}",
    re.I,
)
STEP = re.compile(
    r"(?<![A-Za-z_\-.])(?<!\bper )(?<!\bbest )(?<!\bfrom )(?<!\beach )(?<!\bevery )(?<!\blast )(?<!\bmax )"
    r"(?P<word>(?P<global>global[ _]?steps?|total[ _]timesteps|num_updates|env[ _]?steps?)|"
    r"(?:micro_|local_|train_|batch_)?(?:steps?|iters?|iterations?|batch(?:es)?|updates?|idx)|mini-?batch(?:es)?|it|i|episodes?|up\.|timesteps?"
    r"|ステップ|스텝|шаг|步数|批次|迭代次数|迭代|步骤)"
    rf"(?![A-Za-z]){_JOIN}(?P<n>{_COUNT})['\"]?{_OF}{_END}",
    re.I,
)
_CHINESE_EPOCH = re.compile(
    r"第\s{0,3}(?P<n>\d{1,9})\s{0,3}(?:/\s{0,3}(?P<total>\d{1,9})\s{0,3})?个?\s{0,2}(?:轮|輪|回合|周期|世代|エポック|epoch)", re.I
)
_CHINESE_STEP = re.compile(
    r"第\s{0,3}(?P<n>\d{1,12})\s{0,3}(?:/\s{0,3}(?P<total>\d{1,12})\s{0,3})?个?\s{0,2}(?:步|批次|批|次迭代|batch|step|iter)", re.I
)
_CHINESE_TOTAL = re.compile(r"[共总總]\s{0,2}[:计]?\s{0,2}(?P<total>\d{1,9})\s{0,2}个?\s{0,2}(?:轮|輪|epoch)", re.I)

_RATIO_BODY = rf"(?P<n>{_COUNT})\s{{0,4}}/\s{{0,6}}(?P<total>{_COUNT})"
_NOT_RATIO = r"(?!\s?(?:tok|[kKMGT]i?B|B\b|s\b|ms|sec|/)|[\w/%]|\.\d|:\d)"
# The ratio that follows an epoch: "Epoch: [3][ 10/5005]", "Epoch 1 [640/60000 (1%)]", "epoch 3 | 200/ 2983 batches".
_NEXT_RATIO = re.compile(
    rf"['\"]?[\])]?[\s:|,;\-\[(>]{{0,12}}(?:(?:train|training|batch|step|iter|it)\s?[:\]]?\s?)?[\[(]?\s{{0,8}}{_RATIO_BODY}{_NOT_RATIO}", re.I
)
_NEXT_PERCENT = re.compile(r"\]?[\s:|,\-\[(]{1,8}(?:PROGRESS: at )?(?P<percent>\d{1,3}(?:\.\d+)?)\s?%", re.I)
_BRACKET_RATIO = re.compile(
    rf"(?P<before>(?:[A-Za-z]\w{{0,20}}\s?[:=]?\s?)?)[\[(]\s{{0,8}}{_RATIO_BODY}\s{{0,4}}(?:\(\s{{0,3}}\d{{1,3}}(?:\.\d+)?%\))?\s{{0,3}}[\])]"
)
_COUNTED_RATIO = re.compile(rf"{_RATIO_BODY}\s{{0,2}}(?:batches|steps|iterations|iters|updates|it\b)", re.I)
_RATIO_FIRST = re.compile(rf"^\W{{0,4}}(?:(?:train|training|progress|batch)\s?:?\s?)?{_RATIO_BODY}{_NOT_RATIO}", re.I)
_TWO_RATIOS = re.compile(
    r"^\W{0,3}\[\s{0,4}(?P<epoch>\d{1,9})\s{0,2}/\s{0,4}(?P<epochs>\d{1,9})\s{0,2}\]\W{0,3}"
    r"\[\s{0,8}(?P<step>\d{1,12})\s{0,2}/\s{0,8}(?P<steps>\d{1,12})\s{0,2}\]"
)
_PAIR_FIRST = re.compile(r"^\[\s{0,4}(?P<epoch>\d{1,9})\s{0,2},\s{0,8}(?P<step>\d{1,12})\s{0,2}\]\s")
_NUMBER_FIRST = re.compile(
    r"^#?(?P<n>\d{1,12})(?:\s?[|:]\s{0,6}|\s{1,8}[-]?\s{0,4})(?=[^.]{0,24}\b(?:\w{1,12}_)?(?:loss|cost)\b)", re.I
)
_PROGRESS = re.compile(
    r"(?:^|\b)(?:(?P<word>(?:training\s)?progress|训练进度|進度|进度|training|trained)\s{0,3}[:=]?\s{0,3}[\[(|]?\s{0,4}"
    r"(?P<percent>\d{1,3}(?:\.\d+)?)\s?%|(?P<later>\d{1,3}(?:\.\d+)?)\s?%\s(?:of training|trained|training complete))",
    re.I,
)

_EVAL_WORD = (
    r"(?:val|valid|validation|validating|validate|eval|evaluate|evaluation|evaluating|test|testing|dev|predict"
    r"|predicting|prediction|inference|sanity|devset|valset|testset|验证|测试|评估|驗證|測試|評估)"
)
_EVAL_START = re.compile(
    rf"^\W{{0,8}}(?:(?:running|start|starting|begin|beginning|now|the|final|average|overall|all|mean|in)\s)?{_EVAL_WORD}"
    rf"(?![\w/=\-.'])(?!\s{{1,3}}(?:{FIGURES})\b)(?!\s{{0,2}}[:=]\s{{0,2}}[-+.\d])",
    re.I,
)
_EVAL_TAG = re.compile(
    rf"[\[(|<{{]\s?{_EVAL_WORD}\s?[\])|>}}](?!\s{{0,2}}[:=]?\s?\d)"
    rf"|\b(?:phase|split|mode|stage|subset)['\"]?\s?[:=]\s?['\"]?{_EVAL_WORD}\b"
    rf"|^\W{{0,3}}(?:epoch|step|iter|iteration)\W{{0,3}}\d{{1,12}}(?:\s?/\s?\d{{1,12}})?[\])\s:|,\->]{{1,6}}[\[(]?{_EVAL_WORD}(?![\w/=\-.'])"
    rf"(?!\s{{1,3}}(?:{FIGURES})\b)(?!\s{{0,2}}[:=]\s{{0,2}}[-+.\d])",
    re.I,
)
_SECTION = re.compile(
    rf"(?<![\w'])[\['\"(]?(?P<name>train|training|trn|{_EVAL_WORD[3:-1]})['\"\])]?\s{{0,3}}(?:[:|>\])\-]|(?<=\]))\s{{0,3}}"
    r"(?=['\"{\[(]{0,3}[A-Za-z_])",
    re.I,
)
_DONE = re.compile(r"\b(?:finished|completed?|done|took|end of|ended|elapsed|summary|results?|averaged?|overall)\b|完成|结束|用时|耗时", re.I)
_NOTE = re.compile(
    r"improved from|did not improve|not improved|saving|\bsaved?\b|checkpoint|early.?stop|\(best\b|counter:|\bbest (?:epoch|model|val|so far"
    r"|result|score|at|iter|trial)|restor|resum|\bload(?:ed|ing)?\b|patience|plateau|adjusting learning|\bskip|保存|加载|最佳|早停",
    re.I,
)
_RESUME = re.compile(r"^\W{0,4}(?:re-?)?(?:load|resum|restor|found|continu|best|using|downloading|config|args|arguments|hyper|usage)", re.I)
_SETTINGS_LINE = re.compile(r"^\W{0,4}(?:\w+\s?=\s?)?(?:Namespace|TrainingArguments|\w*Config|\w*Args|\w*Arguments|Params|HParams)\s?\(|"
                            r"\b(?:hparams|hyper-?parameters|config(?:uration)?|arguments|args)\s?[:=]\s?[{(\[]", re.I)
_TRAINING = re.compile(r"(?<![a-z_])train(?:ing)?(?![a-z_])|训练|訓練|fine-?tun", re.I)
_NEGATIVE = re.compile(
    r"\b(?:download|pull|clon|unpack|extract|tokeniz|compil|build|install|fetch|upload|copy|index|collect|sync|receiv"
    r"|resolv|scann?|preprocess|import|convert|merg)ing\b|\b(?:download|install|apt|dpkg|docker|pip)\b",
    re.I,
)
_SCHEDULE = frozenset("lr learning_rate time eta weight_decay wd momentum learning rate".split())


def is_evaluation(text: str) -> bool:
    """Whether a line is about validation or test data as a whole."""
    return bool(_EVAL_START.match(text) or _EVAL_TAG.search(text))


def is_settings(text: str, found: Figures) -> bool:
    """Whether a line prints a configuration."""
    if found.settings >= 5 or (found.settings >= 3 and not found.losses):
        return True
    return bool(_SETTINGS_LINE.search(text))


def sectioned(text: str) -> Figures:
    """Find the figures of a line, those of a ``Val: loss 0.3`` section named as such."""
    marks = list(_SECTION.finditer(text)) if ":" in text or "]" in text or "|" in text else []
    if not marks or all(mark["name"].lower().startswith("tr") for mark in marks):
        return figures(text)
    found = figures(text[: marks[0].start()])
    for index, mark in enumerate(marks):
        end = marks[index + 1].start() if index + 1 < len(marks) else len(text)
        part = figures(text[mark.end() : end])
        found.pairs += part.pairs
        found.settings += part.settings
        if mark["name"].lower().startswith("tr"):
            found.losses += part.losses
            found.named += part.named
            found.parts += part.parts
            found.costs += part.costs
            found.others.update(part.others)
        else:
            for name, value in part.metrics().items():
                known = is_evaluation_name(name)
                found.others.setdefault(name if known else f"{mark['name']}_{name}", value)
        for meaning, value in part.counters.items():
            found.counters.setdefault(meaning, value)
    return found


def is_evaluation_name(name: str) -> bool:
    first = words(name)[:1]
    return bool(first) and first[0] in ("val", "valid", "validation", "eval", "test", "dev")


def count(text: str) -> float:
    """Read a counter: ``1,000`` and ``12k`` are understood."""
    factor = {"k": 1e3, "K": 1e3, "M": 1e6, "G": 1e9, "T": 1e12, "P": 1e15}.get(text[-1], 1)
    return number(text.rstrip("kKMGTP")) * factor


def read_line(text: str, bar: bool = False, evaluation: bool = False) -> Reading | None:
    """Read a line by the general rules; ``None`` where it says nothing about training."""
    low = text.lower()
    result = Reading(bar=bar)
    if _RESUME.match(text) and "epoch" != low[:5]:
        return None
    epoch_end = _read_epoch(text, low, result)
    found = sectioned(text)
    if is_settings(text, found):
        return None
    result.evaluation = evaluation or is_evaluation(text)
    value, how, name = found.choose_loss()
    if not result.evaluation:
        result.loss, result.loss_role = value, how
    result.metrics = found.metrics(but="" if result.evaluation else name)
    _read_step(text, result, epoch_end, bar)
    _use_counters(found, result)
    if result.epoch is None and result.step is None:
        _read_shapes(text, result)
    if _NOTE.search(text):
        result.note = True
        result.step = result.steps = None
        if result.loss is None:
            result.metrics = {}
    progress = _PROGRESS.search(text)
    if progress and not bar and not _NEGATIVE.search(text) and result.epoch is None and result.step is None:
        percent = number(progress["percent"] or progress["later"])
        if percent <= 100:
            result.percent = percent
    return _judge(text, result)


def _read_epoch(text: str, low: str, result: Reading) -> int | None:
    match = None
    if "ep" in low or "round" in low or not text.isascii():
        for match in EPOCH.finditer(text):
            word = match["word"].lower()
            # "epochs: 10" is a setting, "epochs: 3/10" a counter; so is a bare "round 3", which may be anything.
            if word in ("epochs", "eps", "轮数") and not match["total"]:
                continue
            if word == "round" and not (match["total"] and "loss" in low) and not text.strip("[] ").lower().startswith("round"):
                continue
            break
        else:
            match = None
        if match is None and not text.isascii():
            match = _CHINESE_EPOCH.search(text)
    if match is None:
        return None
    result.epoch = count(match["n"])
    if match["total"]:
        result.epochs = count(match["total"])
    elif not text.isascii():
        total = _CHINESE_TOTAL.search(text)
        if total:
            result.epochs = count(total["total"])
    return match.end()


def _read_step(text: str, result: Reading, epoch_end: int | None, bar: bool) -> None:
    best = None
    for match in STEP.finditer(text):
        word = match["word"].lower()
        plural = word.endswith("s") and word not in ("global_steps", "total timesteps", "num_updates", "total_timesteps")
        if plural and not match["total"] and result.loss is None:
            continue
        if word == "i" and not (match["total"] or result.loss is not None):
            continue
        if word in ("it", "batch") and not match["total"] and result.loss is None and result.epoch is None:
            continue
        # A total says most; a counter within the epoch says more than a global one.
        rank = (match["total"] is not None, match["global"] is None)
        if best is None or rank > best[0]:
            best = (rank, match)
    if best is None and not text.isascii():
        chinese = _CHINESE_STEP.search(text)
        best = ((True, True), chinese) if chinese else None
    ratio = _NEXT_RATIO.match(text, epoch_end) if epoch_end is not None and not (best and best[0][0]) else None
    if ratio:
        result.step, result.steps = count(ratio["n"]), count(ratio["total"])
    elif best:
        match = best[1]
        result.step = count(match["n"])
        if match["total"]:
            result.steps = count(match["total"])
        if match.groupdict().get("global"):
            result.scope = "run"
    elif result.epoch is not None and (percent := _NEXT_PERCENT.match(text, epoch_end)):
        if number(percent["percent"]) <= 100:
            result.fraction = number(percent["percent"]) / 100
    if result.steps is None and not bar and (result.epoch is not None or result.loss is not None):
        if found := _COUNTED_RATIO.search(text):
            result.step, result.steps = count(found["n"]), count(found["total"])
        elif result.step is None:
            for found in _BRACKET_RATIO.finditer(text):
                if found["before"].strip() and is_figure(found["before"]) and not found["before"].strip().lower().startswith("loss"):
                    continue
                if epoch_end is not None and found.end() <= epoch_end + 1:
                    continue
                result.step, result.steps = count(found["n"]), count(found["total"])
                break


def _use_counters(found: Figures, result: Reading) -> None:
    counters = found.counters
    if result.epoch is None and Role.EPOCH in counters:
        result.epoch = counters[Role.EPOCH]
    if result.step is None:
        if Role.STEP in counters:
            result.step = counters[Role.STEP]
        elif Role.GLOBAL_STEP in counters:
            result.step, result.scope = counters[Role.GLOBAL_STEP], "run"
    if result.epochs is None and result.epoch is not None and Role.EPOCHS in counters:
        result.epochs = counters[Role.EPOCHS]
    if result.steps is None and result.step is not None and Role.STEPS in counters:
        result.steps, result.scope = counters[Role.STEPS], "run"
    if result.step is not None and 0 <= counters.get(Role.PERCENT, -1) <= 100:
        result.percent = counters[Role.PERCENT]


def _read_shapes(text: str, result: Reading) -> None:
    """Read counters without a name: ``[0/5][50/1583]``, ``[1,  2000] loss``, ``100 | loss 3.1``."""
    if match := _TWO_RATIOS.match(text):
        result.epoch, result.epochs = count(match["epoch"]), count(match["epochs"])
        result.step, result.steps = count(match["step"]), count(match["steps"])
    elif result.loss is None:
        return
    elif match := _PAIR_FIRST.match(text):
        result.epoch, result.step = count(match["epoch"]), count(match["step"])
    elif match := _RATIO_FIRST.match(text):
        result.step, result.steps = count(match["n"]), count(match["total"])
    elif match := _NUMBER_FIRST.match(text):
        result.step = count(match["n"])


def _judge(text: str, result: Reading) -> Reading | None:
    for name in ("step", "epoch"):
        total = getattr(result, f"{name}s")
        value = getattr(result, name)
        if total is not None and value is not None and (total <= 0 or value > total + 1):
            setattr(result, f"{name}s", None)
    figured = result.loss is not None or any(is_figure(name) for name in result.metrics)
    if result.evaluation:
        result.step = result.steps = result.fraction = None
    if result.epoch is not None:
        if result.epoch > 1e7:
            return None
        told = any("_".join(words(name)) not in _SCHEDULE for name in result.metrics) or result.loss is not None
        alone = result.step is None and result.fraction is None and not result.bar
        result.done = alone and not result.note and (told or bool(_DONE.search(text))) and not result.evaluation
        result.header = alone and not result.done and not result.note
        if result.note and not re.match(r"\W{0,6}(?:epoch|第)", text, re.I):
            return None
        if not told and result.epochs is None and result.step is None and not result.evaluation:
            # A bare number after the word: only a line that is little else says where the run stands.
            if len(text) > 90 or _NEGATIVE.search(text):
                return None
        return result
    if result.step is not None and not figured and result.percent is None:
        if result.bar or (_TRAINING.search(text) and not _NEGATIVE.search(text)):
            return result
        return None
    if result.step is None and result.loss is None and result.percent is None:
        result.metrics = {name: value for name, value in result.metrics.items() if is_figure(name)}
        return result if result.metrics else None
    return result
