"""The main job from a published model on: SmolLM2-135M-Instruct (arXiv 2502.02737), no pretraining.

The same stages, tasks and report; what differs are the rates, which go down with a model's size,
and the chat format: the model's own, with a think block that it learns to open.
"""

from ziphius.models.presets import get_preset
from ziphius.recipes.family_settings import FamilySettings, StageSettings
from ziphius.train.optimizer_config import OptimizerConfig


def smollm_settings(budget: str, seed: int) -> FamilySettings:
    """Return the settings of the same path for a real model, SmolLM2-135M-Instruct.

    It knows English and numbers, so all stages are fine-tuning; its rates are those of its size.
    """
    return FamilySettings(
        recipe="smollm",
        budget=budget,
        seed=seed,
        base="smollm2-135m-instruct",
        shape=get_preset("smollm2-135m"),
        chat_format="chatml-think",
        stages=StageSettings(
            optimizer=OptimizerConfig(),
            dtype="bfloat16",
            sft_rate=2e-4,
            control_rate=5e-5,
            grpo_rate=5e-6,
            student_rate=1e-3,
            answers=128,
            answers_at_once=16,
            shares={
                "sft": 0.15,
                "grpo": 0.25,
                "control": 0.25,
                "r1-lite": 0.12,
                "r1-lite-logits": 0.06,
            },
        ),
    )
