"""The stages of training: one entry, one file, and never a loop of its own."""

from ziphius.train.stage import Stage
from ziphius.train.stages.pretrain import Pretrain

STAGES: dict[str, type[Stage]] = {
    "pretrain": Pretrain,
}
"""By `Stage.name`."""

__all__ = ["STAGES", "Pretrain"]
