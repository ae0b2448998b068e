"""Thirty steps of fine-tuning give the losses they always gave.

A change of these numbers is a change of what training computes: explain it, then write them anew
with `python -m tests.numerics.test_golden_sft` from the repository's root.
"""

import json
import tempfile
from pathlib import Path

import numpy as np

from tests.numerics.golden_losses import assert_golden
from tests.training import Run, moe_config, train_config
from ziphius.data.conversation_encode import Encoding
from ziphius.data.conversations import ConversationLoader, encode_conversations
from ziphius.data.messages import Conversation
from ziphius.text.chat import Message, get_chat_format
from ziphius.text.vocabulary import deepseek_tokenizer
from ziphius.train.stages.sft import Sft

GOLDEN = Path(__file__).parent / "golden" / "sft.json"
SEQ_LEN = 64


def sums() -> list[Conversation]:
    """Short conversations about sums, every third with a system message and reasoning."""
    generator = np.random.default_rng(0)
    found = []
    for number in range(40):
        first, second = (int(value) for value in generator.integers(0, 100, 2))
        thinks = number % 3 == 0
        answer = Message(
            "assistant",
            str(first + second),
            reasoning_content=f"{first} and {second}" if thinks else None,
        )
        system = (Message("system", "Add."),) if thinks else ()
        ask = Message("user", f"{first} + {second}?")
        found.append(Conversation(f"line {number}", (*system, ask, answer)))
    return found


def losses(folder: Path) -> list[float]:
    """Thirty steps of a tiny V3 with experts, MTP and a balance loss."""
    config = train_config(
        budget="30-steps",
        seq_len=SEQ_LEN,
        global_batch_size=4,
        micro_batch_size=2,
        learning_rate=0.003,
    )
    tokenizer = deepseek_tokenizer(512)
    encoded = encode_conversations(
        sums(), tokenizer, get_chat_format("deepseek-r1"), Encoding(SEQ_LEN)
    )
    loader = ConversationLoader(
        encoded, seed=0, epochs=10, rows=config.batch_sizes, micro_batch_size=2
    )
    model_config = moe_config(vocab_size=512)
    run = Run(folder, config, model_config, stage=Sft(loader, model_config, config))
    run.go()
    return run.recorder.losses


def test_thirty_steps_of_sft(tmp_path: Path) -> None:
    golden = json.loads(GOLDEN.read_text())
    assert len(golden) == 30
    assert golden[-1] < 0.8 * golden[0]
    assert_golden(losses(tmp_path), golden)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        GOLDEN.write_text(json.dumps(losses(Path(folder)), indent=1) + "\n")
