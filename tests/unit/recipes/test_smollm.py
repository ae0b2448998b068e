"""The main job from a published model on: its settings, and the format its model learns."""

import pytest

from ziphius.core.assets import ASSETS, fetch
from ziphius.models.cost import count_parameters
from ziphius.recipes.family import stages_of
from ziphius.recipes.smollm import REFERENCE, smollm_settings
from ziphius.text.chat import Message, get_chat_format
from ziphius.text.tokenizer import Tokenizer


def test_the_job_begins_with_the_published_model() -> None:
    settings = smollm_settings(REFERENCE.lengths, seed=1)
    assert settings.base in ASSETS
    assert stages_of(settings)[0] == "base"
    assert "pretrain" not in stages_of(settings)
    assert count_parameters(settings.shape).main == 134_515_008


@pytest.mark.net("smollm2-135m-instruct")
def test_the_model_can_write_and_stop_in_its_format() -> None:
    chat_format = get_chat_format(smollm_settings(REFERENCE.lengths, seed=1).chat_format)
    tokenizer = Tokenizer.from_gguf(fetch("smollm2-135m-instruct"))
    messages = [Message("user", "3+4=?"), Message("assistant", "7", reasoning_content="3+4=7")]
    encoded = chat_format.encode(messages, tokenizer)
    learned = [
        token for token, in_loss in zip(encoded.ids, encoded.loss_mask, strict=True) if in_loss
    ]
    assert tokenizer.decode(learned[:-1]) == "<think>\n3+4=7\n</think>\n\n7"
    assert learned[-1] in chat_format.stop_ids(tokenizer)
