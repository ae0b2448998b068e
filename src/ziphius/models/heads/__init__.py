"""What stands on the trunk: one entry, one file, one test."""

from ziphius.models.heads.language_model import LanguageModelHead

HEADS: dict[str, type[LanguageModelHead]] = {"lm": LanguageModelHead}
"""By `ModelConfig.head`. A head is a module whose `attribute` is its name in a checkpoint."""
