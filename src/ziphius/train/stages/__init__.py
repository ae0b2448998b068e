"""The stages of training: one entry, one file, and never a loop of its own."""

from ziphius.train.stage import Stage
from ziphius.train.stages.extend import Extend
from ziphius.train.stages.pretrain import Pretrain
from ziphius.train.stages.sft import Sft

STAGES: dict[str, type[Stage]] = {
    "pretrain": Pretrain,
    "extend": Extend,
    "sft": Sft,
}
"""By `Stage.name`."""

__all__ = ["STAGES", "Extend", "Pretrain", "Sft"]
