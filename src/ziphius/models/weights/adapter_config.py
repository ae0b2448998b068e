"""adapter_config.json of PEFT, read: which projections have an adapter, and how it is scaled.

PEFT (https://github.com/huggingface/peft) has dozens of settings there, and most of them change
what is computed. Those that do are applied here or refused by name; so is a setting that this code
does not know, unless it is off. The rules, for a projection of the name n:

1. the rank is that of the entry of `rank_pattern` that matches n, else `r`; the numerator likewise
   that of `alpha_pattern`, else `lora_alpha`. An entry matches as a regular expression for n or for
   the end of n after a dot; the first that matches counts;
2. the product is scaled by numerator / rank, with `use_rslora` by numerator / sqrt(rank)
   (arXiv 2312.03732);
3. n has an adapter if a name in `target_modules` is n, or is the end of n after a dot and n is in
   `layers_to_transform` where that is given; but not if a name in `exclude_modules` is n or its
   end. "all-linear" are all projections in the blocks.

Where one of the two lists is a regular expression instead, the file of the weights says which
projections it matched: expressions that somebody else wrote can take forever.
"""

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, NoReturn, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ziphius.core.config import explain
from ziphius.core.errors import CheckpointError
from ziphius.core.reading import read_object

CONFIG_FILE = "adapter_config.json"
ALL_LINEAR = "all-linear"
MAX_FILE_BYTES = 8 * 1024 * 1024
LARGEST_RANK = 65_536

_REFUSED = {
    "alora_invocation_tokens": "switches the adapters on and off within a text",
    "bias": "trains biases of the base beside the adapters",
    "fan_in_fan_out": "is for weights that are stored transposed, and no projection here is",
    "layer_replication": "repeats layers of the base",
    "lora_bias": "gives the adapters biases",
    "megatron_config": "is for the parallel layers of Megatron",
    "modules_to_save": "replaces whole modules of the base",
    "target_parameters": "adapts stacked experts, which have no adapters here",
    "trainable_token_indices": "replaces rows of the embedding",
    "use_dora": "normalises the merged weights (DoRA)",
    "use_qalora": "pools what goes into the adapters",
}
"""Settings that compute something else than a scaled product of low rank beside a projection."""
# Where the adapters come from, how they were begun and trained: nothing of what they compute.
_WITHOUT_EFFECT = (
    "auto_mapping",
    "base_model_name_or_path",
    "corda_config",
    "ensure_weight_tying",
    "eva_config",
    "inference_mode",
    "init_lora_weights",
    "loftq_config",
    "lora_dropout",
    "lora_ga_config",
    "megatron_core",
    "peft_type",
    "peft_version",
    "qalora_group_size",
    "revision",
    "runtime_config",
    "task_type",
)
# Others, such as PiSSA and OLoRA, take what the adapters begin with out of the base.
_HARMLESS_BEGINNINGS = (True, False, None, "gaussian", "eva", "orthogonal")
_OFF: tuple[Any, ...] = (None, False, "none", 0, [], {})
_MERGE = "Merge the adapters with PEFT (merge_and_unload) and load the model that results"

_Alpha = Annotated[float, Field(gt=0)]
_Rank = Annotated[int, Field(ge=1, le=LARGEST_RANK)]
V = TypeVar("V")


class AdapterConfig(BaseModel):
    """The settings of PEFT that decide what is computed, under PEFT's names."""

    model_config = ConfigDict(frozen=True, extra="ignore", allow_inf_nan=False)

    r: _Rank
    lora_alpha: _Alpha
    target_modules: list[str] | str
    exclude_modules: list[str] | str | None = None
    use_rslora: bool = False
    rank_pattern: dict[str, _Rank] | None = None
    alpha_pattern: dict[str, _Alpha] | None = None
    layers_to_transform: list[int] | int | None = None
    layers_pattern: list[str] | str | None = None

    def rank(self, name: str) -> int:
        """Return the rank of a projection's adapter."""
        return _lookup(self.rank_pattern or {}, name, self.r)

    def scaling(self, name: str) -> float:
        """Return the factor on the product of a projection's adapter."""
        rank, alpha = self.rank(name), _lookup(self.alpha_pattern or {}, name, self.lora_alpha)
        return alpha / math.sqrt(rank) if self.use_rslora else alpha / rank

    def select(self, names: Sequence[str]) -> list[str] | None:
        """Choose the projections that have adapters; None where only the weights can tell."""
        targets, excluded = self.target_modules, self.exclude_modules or []
        if isinstance(excluded, str) or (isinstance(targets, str) and targets != ALL_LINEAR):
            return None
        return [
            name
            for name in names
            if (targets == ALL_LINEAR or self._is_target(name, targets))
            and not _ends_as(name, excluded)
        ]

    def _is_target(self, name: str, targets: Sequence[str]) -> bool:
        return name in targets or (_ends_as(name, targets) and self._is_in_chosen_layer(name))

    def _is_in_chosen_layer(self, name: str) -> bool:
        wanted, patterns = self.layers_to_transform, self.layers_pattern or []
        if wanted is None or wanted == []:
            return True
        patterns = [patterns] if isinstance(patterns, str) else patterns
        for before in map(re.escape, patterns) if patterns else ("[^.]*",):
            if found := re.match(rf".*\.{before}\.(\d+)\.", name):
                return int(found[1]) in ([wanted] if isinstance(wanted, int) else wanted)
        return False


def read_adapter_config(folder: Path) -> AdapterConfig:
    """Read the settings of a folder of adapters.

    Raises:
        CheckpointError: the file is missing or no JSON object, or a setting is refused; the message
            names it.
    """
    path = folder / CONFIG_FILE
    data = read_object(path, MAX_FILE_BYTES, CheckpointError)
    if data.get("peft_type", "LORA") != "LORA":
        _refuse(path, "peft_type", data["peft_type"], "only LORA is known")
    known = {*AdapterConfig.model_fields, *_WITHOUT_EFFECT}
    for name, value in data.items():
        if name not in known and value not in _OFF:
            reason = f"it {_REFUSED[name]}" if name in _REFUSED else "it is not known here"
            _refuse(path, name, value, f"{reason}. {_MERGE}")
    beginning = data.get("init_lora_weights")
    if beginning not in _HARMLESS_BEGINNINGS:
        _refuse(path, "init_lora_weights", beginning, f"it may have changed the base. {_MERGE}")
    try:
        config = AdapterConfig.model_validate(data, strict=True)
    except ValidationError as error:
        raise CheckpointError(f"{path}: {explain(error)}.") from error
    for pattern in (*(config.rank_pattern or {}), *(config.alpha_pattern or {})):
        _check_pattern(path, pattern)
    _refuse_layers_without_effect(path, config)
    return config


def _refuse_layers_without_effect(path: Path, config: AdapterConfig) -> None:
    layers = config.layers_to_transform
    if layers not in (None, []) and isinstance(config.target_modules, str):
        _refuse(path, "layers_to_transform", layers, "it needs a list of target_modules")
    if layers in (None, []) and config.layers_pattern:
        _refuse(path, "layers_pattern", config.layers_pattern, "it needs layers_to_transform")


def _lookup(by_pattern: Mapping[str, V], name: str, default: V) -> V:
    for pattern, value in by_pattern.items():
        if re.match(rf"(.*\.)?({pattern})$", name):
            return value
    return default


def _ends_as(name: str, endings: Sequence[str]) -> bool:
    return any(f".{name}".endswith(f".{ending}") for ending in endings)


def _check_pattern(path: Path, pattern: str) -> None:
    """Refuse expressions that could take long: repeated groups, references, many repetitions."""
    try:
        re.compile(pattern)
    except re.error as error:
        raise CheckpointError(f"{path}: {pattern!r} is no regular expression: {error}.") from error
    is_wild = re.search(r"\)[*+{]|\(\?[^:]|\\\d", pattern) is not None
    if is_wild or len(pattern) > 1_000 or len(re.findall(r"[*+?{]", pattern)) > 4:
        raise CheckpointError(
            f"{path}: the pattern {pattern!r} is too involved: name the projections one by one."
        )


def _refuse(path: Path, name: str, value: Any, reason: str) -> NoReturn:
    raise CheckpointError(f"{path}: {name} = {value!r} is not supported: {reason}.")
