"""What the names that training code prints mean: a loss, a counter, a total, a validation figure, noise."""

from __future__ import annotations

import re
from enum import Enum
from functools import lru_cache


class Role(Enum):
    LOSS = "the training loss"
    NAMED_LOSS = "one loss with a name of its own, the training loss where it is alone"
    PART_LOSS = "one of several losses that add up to the training loss"
    COST = "what some trainers print in place of a loss"
    EVAL = "a figure of validation or test data"
    EPOCH = "the epoch, as a counter"
    STEP = "the step, as a counter"
    GLOBAL_STEP = "the step counted over the whole run"
    EPOCHS = "the number of epochs"
    STEPS = "the number of steps of the whole run"
    PERCENT = "the share of the whole run, in percent"
    METRIC = "any other figure"
    NOISE = "times, memory, versions, settings"


EVAL_WORDS = frozenset(
    "val vali valid valida validate validation validating eval evaluate evaluation evaluating evaluator test testing "
    "tst dev cv holdout best heldout valset testset lowest highest top "
    "predict prediction predicting inference sanity".split()
)
TRAIN_WORDS = frozenset("train training trained tr trn learn training's finetune finetuning fit fitting".split())
_NEUTRAL = TRAIN_WORDS | frozenset(
    "loss losses batch batches minibatch mini total tot avg avr ave average averaged mean running current curr cur "
    "step steps epoch iter iteration lm reduced moving smoothed smooth ema overall sum final last latest global model "
    "all the is value per sample token tokens in this now so far main t e accumulated accum acc interval window "
    "raw scalar full output net objective metrics logs new started with of for at and log".split()
)
_NOT_A_LOSS = frozenset(
    "scale scaler scaling weight weights coef coefficient lambda function fn type threshold delta diff improvement "
    "std stddev var variance ratio name packet not no improve improved improvement reduction spike lr rate factor "
    "patience mode fun stop time seconds ms count grad".split()
)
_PARTS = frozenset(
    "box cls dfl obj bbox rpn mask kpt pose policy value actor critic entropy ent d g dis disc discriminator gen "
    "generator adv adversarial aux auxiliary surrogate vf pi q q1 q2 qf qf1 qf2 alpha reg giou iou l1 l2 l0 conf "
    "distill teacher student feat feature perceptual recon style content pg kl kld cycle idt identity gp real fake a b "
    "objectness classification regularization regression localization commit commitment vq mel dur duration ctc att "
    "tok2vec ner tagger parser textcat balance router z mtp sub decoder encoder bc td reward belief "
    "ce0 ce1 left right seg depth".split()
)
_COSTS = frozenset(
    "cost nll xent ce crossentropy mse objective obj cross_entropy cross-entropy train_mse train_cost train_nll "
    "avg_cost cross_entropy_error train_xent neg_elbo".split()
)
_NOISE = frozenset(
    "eta elapsed secs sec seconds sec/step ms wall walltime mem memory max_mem gpu_mem vram version v_num pid rank "
    "world_size local_rank duration remaining date hour hours minutes min timestamp seed port id uuid "
    "instances nnodes nproc device gpu gpus node host line code exit total_time time_elapsed".split()
)
_EPOCH_NAMES = frozenset(
    "epoch ep current_epoch cur_epoch epoch_num epoch_idx epoch_id train_epoch trainer_epoch epoch_no epoch_number "
    "轮次 轮数 训练轮次 当前轮次 训练轮数 当前轮数 epoch_i".split()
)
_STEP_NAMES = frozenset(
    "step iter iteration batch minibatch it update iterations_done train_step train_iter current_step current_steps "
    "cur_step cur_iter step_num batch_idx batch_id iter_num iteration_num training_iteration micro_step batch_num "
    "steps iters iterations updates batches episode episodes 步数 步 迭代 批次 迭代次数 当前步数 local_step minibatches "
    "mini_batch round i_step n_iter learning_iteration i_iter step_idx".split()
)
_GLOBAL_NAMES = frozenset(
    "global_step globalstep global_steps total_timesteps timesteps timestep num_updates n_updates env_step env_steps "
    "trainer_global_step train_global_step gstep global_iter total_env_steps totalenvinteracts num_timesteps "
    "timesteps_total num_env_steps_sampled total_env_interacts gradient_step env_frames frames 全局步数".split()
)
_EPOCHS_NAMES = frozenset("epochs num_epochs total_epochs max_epochs n_epochs num_train_epochs max_epoch 总轮数".split())
_STEPS_NAMES = frozenset("total_steps max_steps num_steps total_iters max_iters total_iterations num_training_steps".split())
_PERCENT_NAMES = frozenset("percentage progress percent pct progress_percentage 进度 训练进度".split())
# Words that say "this figure is about training" even where nothing else on its line does.
FIGURES = (
    "loss|acc|accuracy|lr|learning_rate|ppl|perplexity|bleu|f1|auc|mse|mae|rmse|cost|error|err|reward|return|score|"
    "map|iou|dice|precision|recall|psnr|ssim|wer|cer|gnorm|grad_norm|top1|top5|acc1|acc5|r2|elbo|nll|bpc|bpb|fid|miou|"
    "losses|mfu|inertia"
)
_FIGURE = re.compile(rf"(?:^|[^a-z])(?:{FIGURES}|损失|损耗|準確率|准确率|精度|学习率|損失|奖励|acc@\d)(?:$|[^a-z])")
_CHINESE_EVAL = re.compile(r"验证|驗證|测试|測試|评估|評估|検証|最佳|最优")
_CHINESE_LOSS = re.compile(r"损失|損失|损耗")
_CAMEL = re.compile(r"(?<=[a-z])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])")
_SPLIT = re.compile(r"[^a-z0-9'\u3040-\u9fff]+")
_CHINESE_RATE = re.compile(r"率|精度|得分|分数|奖励|范数|困惑度|f1", re.I)


def words(name: str) -> list[str]:
    """Return the lower-case words of a name: ``trainLoss``, ``train/loss`` and ``Train Loss`` are the same."""
    return [word for word in _SPLIT.split(_CAMEL.sub("_", name).lower()) if word]


@lru_cache(8192)
def role(name: str) -> Role:
    """Return what a printed name means."""
    parts = words(name)
    joined = "_".join(parts)
    if not parts:
        return Role.NOISE
    counter = _counter(joined)
    if counter:
        return counter
    if len(parts) > 1 and (parts[0] in ("train", "trainer", "training", "time") or parts[-1] == "no"):
        counter = _counter("_".join(parts[1:] if parts[0] != joined else parts))
        if counter:
            return counter
    if EVAL_WORDS.intersection(parts) or parts[0].startswith("valid") or _CHINESE_EVAL.search(name):
        return Role.EVAL
    if _is_loss(parts, name):
        return _loss_role(parts, name)
    if joined in _COSTS or (parts[-1] in ("cost", "nll", "xent", "ce") and TRAIN_WORDS.intersection(parts[:-1])):
        return Role.COST
    if joined in ("cross_entropy", "avg_cost", "average_cost", "mean_cost", "train_cross_entropy"):
        return Role.COST
    if joined in _NOISE or _timing(parts):
        return Role.NOISE
    return Role.METRIC


def is_figure(name: str) -> bool:
    """Whether the name alone says that a number comes from training or evaluation."""
    low = "_".join(words(name))
    return bool(_FIGURE.search(low.replace("_", " ")) or _FIGURE.search(low))


def _counter(joined: str) -> Role | None:
    if joined in _EPOCH_NAMES:
        return Role.EPOCH
    if joined in _GLOBAL_NAMES:
        return Role.GLOBAL_STEP
    if joined in _STEP_NAMES:
        return Role.STEP
    if joined in _EPOCHS_NAMES:
        return Role.EPOCHS
    if joined in _STEPS_NAMES:
        return Role.STEPS
    if joined in _PERCENT_NAMES:
        return Role.PERCENT
    return None


def _is_loss(parts: list[str], name: str) -> bool:
    if _NOT_A_LOSS.intersection(parts):
        return False
    return any(part.endswith(("loss", "losses")) for part in parts) or bool(_CHINESE_LOSS.search(name))


def _loss_role(parts: list[str], name: str) -> Role:
    rest = []
    for part in parts:
        if part.endswith("loss") and part not in ("loss", "trainloss", "tloss", "avgloss", "totalloss"):
            rest.append(part[:-4])
        elif part not in _NEUTRAL and part not in ("trainloss", "tloss", "avgloss", "totalloss"):
            rest.append(part)
    rest = [part for part in rest if not part.isdigit() or len(parts) == 2]
    if not rest or _CHINESE_LOSS.search(name):
        return Role.LOSS
    if _PARTS.intersection(rest) or any(part.isdigit() for part in rest) or "function" in parts:
        return Role.PART_LOSS
    return Role.NAMED_LOSS


def _timing(parts: list[str]) -> bool:
    return bool({"time", "timing", "eta", "elapsed", "seconds", "secs", "ms", "memory", "mem"}.intersection(parts))


def plainness(name: str) -> int:
    """Rank names of the training loss: the plainest is the one to show."""
    parts = words(name)
    if parts in (["loss"], ["损失"]):
        return 0
    return len(parts) + (1 if {"avg", "average", "mean", "ema", "running", "smoothed"}.intersection(parts) else 0)
