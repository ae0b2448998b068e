"""Thirty steps of logit distillation give the losses they always gave.

A change of these numbers is a change of what training computes: explain it, then write them anew
with `python -m tests.numerics.test_golden_distill` from the repository's root.
"""

import json
import tempfile
from pathlib import Path

import pytest

from tests.numerics.test_golden_sft import SEQ_LEN, sums
from tests.tiny import build, grouped_config
from tests.training import Run, moe_config, train_config
from ziphius.data.conversation_encode import Encoding
from ziphius.data.conversations import ConversationLoader, encode_conversations
from ziphius.distill.logits import LogitConfig, LogitDistillation
from ziphius.text.chat import get_chat_format
from ziphius.text.vocabulary import deepseek_tokenizer

GOLDEN = Path(__file__).parent / "golden" / "distill.json"


def losses(folder: Path) -> list[dict[str, float]]:
    """Thirty steps of a tiny Llama beside a tiny V3 with experts."""
    config = train_config(
        budget="30-steps",
        seq_len=SEQ_LEN,
        global_batch_size=4,
        micro_batch_size=2,
        learning_rate=0.01,
    )
    tokenizer = deepseek_tokenizer(512)
    encoded = encode_conversations(
        sums(), tokenizer, get_chat_format("deepseek-r1"), Encoding(SEQ_LEN)
    )
    loader = ConversationLoader(
        encoded, seed=0, epochs=10, rows=config.batch_sizes, micro_batch_size=2
    )
    student = grouped_config(vocab_size=512)
    stage = LogitDistillation(
        loader,
        student,
        config,
        teacher=build(moe_config(vocab_size=512), seed=1),
        logits=LogitConfig(temperature=2.0, hard_share=0.1),
    )
    run = Run(folder, config, student, stage=stage)
    run.go()
    return [record.terms for record in run.recorder.steps]


def test_thirty_steps_of_logit_distillation(tmp_path: Path) -> None:
    golden = json.loads(GOLDEN.read_text())
    assert len(golden) == 30
    assert golden[-1]["kl"] < 0.9 * golden[0]["kl"]
    for found, known in zip(losses(tmp_path), golden, strict=True):
        assert found == pytest.approx(known, rel=1e-4)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        GOLDEN.write_text(json.dumps(losses(Path(folder)), indent=1) + "\n")
