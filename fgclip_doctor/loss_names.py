"""Which logged series are losses of the training, by the words in their names."""

from __future__ import annotations

import re

EVALUATION = {"eval", "evaluation", "val", "valid", "validation", "test", "testing", "dev", "sanity"}
TOTAL = {"loss", "losses", "total", "overall", "train", "training", "step", "epoch", "iter", "batch"}  # no term's name
TOTAL |= {"objective", "obj", "sum", "combined", "all", "avg", "l", "j"}
OBJECTIVES = {"obj", "objective", "nce", "infonce", "itc", "ita", "ctr", "contrast", "contrastive", "xent", "xe"}
METRICS = {"acc", "accuracy", "recall", "rank", "rate", "lr", "norm", "top", "mem"}
AROUND = re.compile(r"scale|weight|ratio|bits|noise|chance|coef")  # a number about a loss


def words_of(name: str) -> set[str]:
    """The words of a name in lower case: `trainLoss` has two."""
    return set(re.findall("[a-z]+", re.sub("(?<=[a-z])(?=[A-Z])", "_", name).lower()))


def is_loss(name: str) -> bool:
    """Whether a series is a loss of the training: by the word, or by another that stands for nothing else."""
    lower, words = name.lower(), words_of(name)
    if words & (EVALUATION | METRICS):
        return False
    return "loss" in lower or bool(words & OBJECTIVES) or re.search(r"(?:^|[./])l_[a-z]", lower) is not None


def is_total(name: str) -> bool:
    """Whether a loss is no term's, by its name."""
    return words_of(name) <= TOTAL
