"""A model that is there, loaded to be trained: in which numbers, and whether there is room.

Trained weights are float32, whatever they are stored in. Weights that adapters freeze stay in the
dtype of their checkpoint where products are taken in it.
"""

from pathlib import Path

import torch

from ziphius.core.device import resolve_device, resolve_dtype
from ziphius.core.memory import refuse_too_large
from ziphius.dist.world import local_device
from ziphius.models.adapter_cost import adapter_memory
from ziphius.models.config import ModelConfig
from ziphius.models.cost import model_cost
from ziphius.models.lora_config import LoraConfig
from ziphius.models.model import Model
from ziphius.models.weights import load, read_model_config, stored_dtype
from ziphius.train.config import TrainConfig

ADVISED_RANK = 16
"""Of adapters, where they are named as what would fit."""


def settle_dtype(config: TrainConfig, source: Path) -> TrainConfig:
    """Say in which numbers a model is trained where `auto` leaves it to how it is stored.

    What is settled stands in the settings of the run: it would not go on exactly on a machine that
    would settle it in another way.
    """
    device = local_device(resolve_device(config.device))
    plain = resolve_dtype(config.dtype, device)
    dtype = resolve_dtype(config.dtype, device, stored_dtype(source))
    if dtype == plain:
        return config
    return config.model_copy(update={"dtype": str(dtype).removeprefix("torch.")})


def load_to_train(
    source: Path, config: TrainConfig, lora: LoraConfig, *, drop_mtp: bool = False
) -> Model:
    """Load a model whose weights, or adapters on them, are to be trained.

    Args:
        source: model folder, .gguf file or folder of adapters.
        config: with a dtype that `settle_dtype` has settled.
        lora: which adapters are trained, if any.
        drop_mtp: see `weights.load`.

    Raises:
        DeviceError: it does not fit into memory; the error says what would.
    """
    device = local_device(resolve_device(config.device))
    dtype = torch.float32
    if lora.rank and resolve_dtype(config.dtype, device) == stored_dtype(source) == torch.bfloat16:
        dtype = torch.bfloat16
    refuse_untrainable(str(source), read_model_config(source), device, rank=lora.rank, frozen=dtype)
    return load(source, dtype=dtype, drop_mtp=drop_mtp)


def refuse_untrainable(
    name: str,
    config: ModelConfig,
    device: torch.device,
    *,
    rank: int = 0,
    frozen: torch.dtype = torch.float32,
) -> None:
    """Refuse to train what does not fit, before it takes any memory.

    Weights, gradients and the optimizer's two moments count; what activations take hangs on rows
    and context, and is tried.

    Args:
        name: of the model, for the error.
        config: of the model.
        device: that it is to be trained on.
        rank: of the adapters that are trained; 0 where all weights are.
        frozen: dtype of the weights below adapters.

    Raises:
        DeviceError: it does not fit.
    """
    whole = model_cost(config, context=1, dtype="float32").memory
    needed = whole.masters + whole.gradients + whole.moments
    rank_told = rank or ADVISED_RANK
    narrow, wide = (
        adapter_memory(config, tokens=1, dtype=dtype, rank=rank_told).without_activations
        for dtype in ("bfloat16", "float32")
    )
    if rank:
        is_narrow = frozen == torch.bfloat16
        what = f"To train adapters of rank {rank} on {name}, which stays {_word(frozen)},"
        others = {} if is_narrow else {"a bfloat16 checkpoint with dtype bfloat16": narrow}
        refuse_too_large(what, narrow if is_narrow else wide, device, others)
        return
    refuse_too_large(
        f"To train all weights of {name} ({whole.masters / 1e9:,.1f} GB, their gradients "
        f"{whole.gradients / 1e9:,.1f} and the optimizer {whole.moments / 1e9:,.1f})",
        needed,
        device,
        {
            f"adapters on it, lora.rank {ADVISED_RANK}, as float32": wide,
            f"adapters on it, lora.rank {ADVISED_RANK}, as bfloat16": narrow,
        },
    )


def _word(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
