"""Names of the DeepSeek family's special tokens: the only place where they are spelled.

The bar is U+FF5C and the joint U+2581, so that no keyboard types them by accident. Their ids differ
between vocabularies; `Tokenizer.token_id` finds them.
"""

from collections.abc import Sequence


class SpecialToken(str):
    """A special token in a prompt, told apart from text that spells the same by its type alone.

    Joined to other text it becomes text: only a chat format that lists it as a piece of its own
    makes the token.
    """

    __slots__ = ()


BOS = SpecialToken("<\uff5cbegin\u2581of\u2581sentence\uff5c>")
EOS = SpecialToken("<\uff5cend\u2581of\u2581sentence\uff5c>")
PAD = SpecialToken("<\uff5c\u2581pad\u2581\uff5c>")

THINK = SpecialToken("<think>")
END_THINK = SpecialToken("</think>")
FIM_HOLE = SpecialToken("<\uff5cfim\u2581hole\uff5c>")
FIM_BEGIN = SpecialToken("<\uff5cfim\u2581begin\uff5c>")
FIM_END = SpecialToken("<\uff5cfim\u2581end\uff5c>")
USER = SpecialToken("<\uff5cUser\uff5c>")
ASSISTANT = SpecialToken("<\uff5cAssistant\uff5c>")
EOT = SpecialToken("<|EOT|>")
CALLS_BEGIN = SpecialToken("<\uff5ctool\u2581calls\u2581begin\uff5c>")
CALLS_END = SpecialToken("<\uff5ctool\u2581calls\u2581end\uff5c>")
CALL_BEGIN = SpecialToken("<\uff5ctool\u2581call\u2581begin\uff5c>")
CALL_END = SpecialToken("<\uff5ctool\u2581call\u2581end\uff5c>")
OUTPUTS_BEGIN = SpecialToken("<\uff5ctool\u2581outputs\u2581begin\uff5c>")
OUTPUTS_END = SpecialToken("<\uff5ctool\u2581outputs\u2581end\uff5c>")
OUTPUT_BEGIN = SpecialToken("<\uff5ctool\u2581output\u2581begin\uff5c>")
OUTPUT_END = SpecialToken("<\uff5ctool\u2581output\u2581end\uff5c>")
CALL_SEP = SpecialToken("<\uff5ctool\u2581sep\uff5c>")
DSML = SpecialToken("\uff5cDSML\uff5c")  # V3.2; without angle brackets

IM_START = SpecialToken("<|im_start|>")
IM_END = SpecialToken("<|im_end|>")
TOOL_CALL = SpecialToken("<tool_call>")
END_TOOL_CALL = SpecialToken("</tool_call>")
TOOL_RESPONSE = SpecialToken("<tool_response>")
END_TOOL_RESPONSE = SpecialToken("</tool_response>")

# Llama 3
BEGIN_OF_TEXT = SpecialToken("<|begin_of_text|>")
START_HEADER = SpecialToken("<|start_header_id|>")
END_HEADER = SpecialToken("<|end_header_id|>")
EOT_ID = SpecialToken("<|eot_id|>")
PYTHON_TAG = SpecialToken("<|python_tag|>")

TURN_TOKENS = (
    *(BOS, EOS, USER, ASSISTANT, EOT, CALL_BEGIN, CALL_END, CALL_SEP),
    *(IM_START, IM_END, BEGIN_OF_TEXT, START_HEADER, END_HEADER, EOT_ID),
)
"""What no model was trained to read as text: a format that writes them needs their tokens."""

HEAD_TOKENS = (BOS, EOS, PAD)
"""Ids 0, 1, 2 of every vocabulary of the family since V3."""

TAIL_TOKENS = (
    THINK,
    END_THINK,
    FIM_HOLE,
    FIM_BEGIN,
    FIM_END,
    USER,
    ASSISTANT,
    EOT,
    CALLS_BEGIN,
    CALLS_END,
    CALL_BEGIN,
    CALL_END,
    OUTPUTS_BEGIN,
    OUTPUTS_END,
    OUTPUT_BEGIN,
    OUTPUT_END,
    CALL_SEP,
    DSML,
    *(SpecialToken(f"<\uff5cplace\u2581holder\u2581no\u2581{slot}\uff5c>") for slot in range(14)),
)
"""What our own vocabularies end with: R1's ids 128798..128814 in their order, then V3.2's.

The placeholders fill the block to 32, as DeepSeek's own file does: a later format takes a slot over
and no id moves.
"""


def split_special(text: str, tokens: Sequence[SpecialToken]) -> list[str]:
    """Cut a text of ours at the special tokens it spells; never for text of others."""
    pieces: list[str] = [text]
    for token in tokens:
        cut: list[str] = []
        for piece in pieces:
            first, *others = [piece] if isinstance(piece, SpecialToken) else piece.split(token)
            cut.append(first)
            for other in others:
                cut += [token, other]
        pieces = cut
    return pieces
