"""Names of the DeepSeek family's special tokens: the only place where they are spelled.

The bar is U+FF5C and the joint U+2581, so that no keyboard types them by accident. Their ids differ
between vocabularies; `Tokenizer.token_id` finds them.
"""

from collections.abc import Sequence


class Mark(str):
    """A special token in a prompt, told apart from text that spells the same by its type alone.

    Joined to other text it becomes text: only a chat format that lists it as a piece of its own
    makes the token.
    """

    __slots__ = ()


BOS = Mark("<\uff5cbegin\u2581of\u2581sentence\uff5c>")
EOS = Mark("<\uff5cend\u2581of\u2581sentence\uff5c>")
PAD = Mark("<\uff5c\u2581pad\u2581\uff5c>")

THINK = Mark("<think>")
END_THINK = Mark("</think>")
FIM_HOLE = Mark("<\uff5cfim\u2581hole\uff5c>")
FIM_BEGIN = Mark("<\uff5cfim\u2581begin\uff5c>")
FIM_END = Mark("<\uff5cfim\u2581end\uff5c>")
USER = Mark("<\uff5cUser\uff5c>")
ASSISTANT = Mark("<\uff5cAssistant\uff5c>")
EOT = Mark("<|EOT|>")
CALLS_BEGIN = Mark("<\uff5ctool\u2581calls\u2581begin\uff5c>")
CALLS_END = Mark("<\uff5ctool\u2581calls\u2581end\uff5c>")
CALL_BEGIN = Mark("<\uff5ctool\u2581call\u2581begin\uff5c>")
CALL_END = Mark("<\uff5ctool\u2581call\u2581end\uff5c>")
OUTPUTS_BEGIN = Mark("<\uff5ctool\u2581outputs\u2581begin\uff5c>")
OUTPUTS_END = Mark("<\uff5ctool\u2581outputs\u2581end\uff5c>")
OUTPUT_BEGIN = Mark("<\uff5ctool\u2581output\u2581begin\uff5c>")
OUTPUT_END = Mark("<\uff5ctool\u2581output\u2581end\uff5c>")
CALL_SEP = Mark("<\uff5ctool\u2581sep\uff5c>")
DSML = Mark("\uff5cDSML\uff5c")  # V3.2; without angle brackets

IM_START = Mark("<|im_start|>")
IM_END = Mark("<|im_end|>")
TOOL_CALL = Mark("<tool_call>")
END_TOOL_CALL = Mark("</tool_call>")
TOOL_RESPONSE = Mark("<tool_response>")
END_TOOL_RESPONSE = Mark("</tool_response>")

# Llama 3
BEGIN_OF_TEXT = Mark("<|begin_of_text|>")
START_HEADER = Mark("<|start_header_id|>")
END_HEADER = Mark("<|end_header_id|>")
EOT_ID = Mark("<|eot_id|>")
PYTHON_TAG = Mark("<|python_tag|>")

TURN_MARKS = (
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
    *(Mark(f"<\uff5cplace\u2581holder\u2581no\u2581{slot}\uff5c>") for slot in range(14)),
)
"""What our own vocabularies end with: R1's ids 128798..128814 in their order, then V3.2's mark.

The placeholders fill the block to 32, as DeepSeek's own file does: a later format takes a slot over
and no id moves.
"""


def marked(text: str, marks: Sequence[Mark]) -> list[str]:
    """Cut a text of ours at the marks it spells; never for text of others."""
    pieces: list[str] = [text]
    for mark in marks:
        cut: list[str] = []
        for piece in pieces:
            first, *others = [piece] if isinstance(piece, Mark) else piece.split(mark)
            cut.append(first)
            for other in others:
                cut += [mark, other]
        pieces = cut
    return pieces
