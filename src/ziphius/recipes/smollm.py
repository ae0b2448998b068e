"""The main job from a published model on: SmolLM2-135M-Instruct (arXiv 2502.02737), no pretraining.

The same stages, tasks and report; what differs are the rates, which go down with a model's size,
and the chat format: the model's own, with a think block that it learns to open.
"""

from ziphius.models.presets import get_preset
from ziphius.recipes.family_settings import FamilySettings, StageSettings
from ziphius.recipes.lengths import Reference, StageLengths
from ziphius.train.optimizer_config import OptimizerConfig

REFERENCE = Reference(
    StageLengths(pretrain=1, sft=100, grpo=20, student=120, traced=150, measured=20),
    seconds=7_200.0,
    training_tokens_per_s=200.0,
)
"""Two hours on two cores, by estimate: no whole run was made."""


def smollm_settings(lengths: StageLengths, seed: int) -> FamilySettings:
    """Return the settings of the same path for a real model, SmolLM2-135M-Instruct.

    It knows English and numbers, so all stages are fine-tuning; its rates are those of its size.
    """
    return FamilySettings(
        recipe="smollm",
        lengths=lengths,
        seed=seed,
        base="smollm2-135m-instruct",
        shape=get_preset("smollm2-135m"),
        chat_format="chatml-think",
        stages=StageSettings(
            optimizer=OptimizerConfig(),
            grpo_optimizer=OptimizerConfig(),
            dtype="bfloat16",
            sft_rate=2e-4,
            more_sft_rate=5e-5,
            rft_rate=5e-5,
            grpo_rate=5e-6,
            student_rate=1e-3,
            grpo_global_batch_size=128,
            grpo_micro_batch_size=16,
        ),
    )
