"""The students that DeepSeek published are read as they are."""

import json
from pathlib import Path

import pytest

from tests.unit.models.students import CONFIGS, GENERATION, PARAMETERS, TOKENIZER
from ziphius.models.config import YarnScaling
from ziphius.models.cost import count_parameters
from ziphius.models.presets import PRESETS
from ziphius.models.published import to_published
from ziphius.models.rope import rope_multiplier
from ziphius.models.weights import read_model_config


@pytest.fixture(params=CONFIGS)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def folder(name: str, tmp_path: Path) -> Path:
    """What a download holds beside weights and vocabulary."""
    for file, data in (
        ("config.json", CONFIGS[name]),
        ("generation_config.json", GENERATION[name]),
        ("tokenizer_config.json", TOKENIZER),
    ):
        (tmp_path / file).write_text(json.dumps(data))
    return tmp_path


def test_a_published_student_is_read(name: str, folder: Path) -> None:
    config = read_model_config(folder)
    assert count_parameters(config).main == PARAMETERS[name]
    assert config.rope_theta == CONFIGS[name]["rope_theta"]
    assert config.eos_token_ids == (CONFIGS[name]["eos_token_id"],)
    if name in PRESETS:
        apart = {"other", "initializer_range", "bos_token_id"}
        assert config.model_dump(exclude=apart) == PRESETS[name].model_dump(exclude=apart)


def test_a_published_student_comes_back_whole(name: str, folder: Path) -> None:
    written = json.loads(json.dumps(to_published(read_model_config(folder))))
    for key, value in CONFIGS[name].items():
        if key == "rope_scaling":
            rope = {("rope_type" if k == "type" else k): v for k, v in written[key].items()}
            assert {k: rope[k] for k in value} == value
        elif key != "torch_dtype":
            assert written[key] == value, key


def test_transformers_reads_the_same(name: str) -> None:
    from transformers import AutoConfig

    from ziphius.models.published import from_published

    theirs = AutoConfig.for_model(**json.loads(json.dumps(CONFIGS[name])))
    ours = from_published(CONFIGS[name])
    assert theirs.rope_parameters["rope_theta"] == ours.rope_theta
    head = getattr(theirs, "head_dim", theirs.hidden_size // theirs.num_attention_heads)
    assert ours.head_dim == head
    assert from_published(theirs.to_dict()).rope_scaling == ours.rope_scaling


def test_the_temperature_of_the_youngest_student_cancels() -> None:
    from ziphius.models.published import from_published

    scaling = from_published(CONFIGS["r1-0528-qwen3-8b"]).rope_scaling
    assert isinstance(scaling, YarnScaling)
    assert rope_multiplier(scaling) == pytest.approx(1.0, abs=1e-12)
