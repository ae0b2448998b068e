"""The template of R1-Zero for base models: DeepSeek-R1 (arXiv 2501.12948), table 1.

All of it is plain text, the tags included, because a base model knows no tokens for them; so a
question can imitate any part of it. Other programs can not tell the answer from its frame: the
parser here takes the tags off again.
"""

from collections.abc import Mapping, Sequence

from ziphius.core.errors import ChatError
from ziphius.text import special
from ziphius.text.chat import parser
from ziphius.text.chat.format import Pieces, Vocabulary
from ziphius.text.chat.messages import Message, Tool
from ziphius.text.chat.parser import State, Step
from ziphius.text.chat.written import Turn, WrittenFormat
from ziphius.text.special import SpecialToken

PREAMBLE = (
    "A conversation between User and Assistant. The user asks a question, and the Assistant solves "
    "it. The assistant first thinks about the reasoning process in the mind and then provides the "
    "user with the answer. The reasoning process and answer are enclosed within <think> </think> "
    "and <answer> </answer> tags, respectively, i.e., <think> reasoning process here </think> "
    "<answer> answer here </answer>."
)
ANSWER, END_ANSWER = "<answer>", "</answer>"


class Plain(WrittenFormat):
    """One question and its answer, with the reasoning and the answer in tags."""

    name = "plain"
    ends_as_vocabulary = True
    thinking_modes = (True,)
    opens_own_thinking = True
    roles = ("user", "assistant")

    def start(self, system: str | None, tools: Sequence[Tool], reply: str) -> Pieces:
        """Describe the frame; the vocabulary says whether a token begins the text."""
        return [PREAMBLE, " "]

    def user(self, message: Message, tools: Sequence[Tool]) -> Pieces:
        """Write the question."""
        return [f"User: {message.content}. "]

    def opening(self, turn: Turn) -> Pieces:
        """End the prompt; the model opens its own think tag."""
        return ["Assistant:"]

    def completion(self, message: Message, turn: Turn) -> Pieces:
        """Write the reasoning and the answer in their tags."""
        thoughts = f" {special.THINK} {message.reasoning_content} {special.END_THINK}"
        answer = f" {ANSWER} {message.content} {END_ANSWER}"
        return [thoughts if message.reasoning_content is not None else "", answer]

    def states(self) -> Mapping[str, State]:
        """Take the tags off, each with one space inside; an answer without tags is content."""
        end = parser.ending(special.EOS)
        answer = {ANSWER: Step("answer", lead=" ")}
        after, over = Step("between"), Step("over")
        think: dict[str, Step] = {special.THINK: Step("reasoning", lead=" ")}
        return {
            "start": State(parser.content, think | answer, skip_space=True, otherwise="content"),
            "reasoning": State(
                parser.reasoning, {" " + special.END_THINK: after, special.END_THINK: after} | end
            ),
            "between": State(parser.content, answer, skip_space=True, otherwise="content"),
            "answer": State(parser.content, {" " + END_ANSWER: over, END_ANSWER: over} | end),
            "over": State(parser.content, end, skip_space=True),
            "content": State(parser.content, end),
        }

    def first_step(self, thinking: bool) -> Step:
        """The prompt never opens the tag, so both ways are the same."""
        return Step("start")

    def _checked_turns(
        self, messages: Sequence[Message], tools: Sequence[Tool], generation_prompt: bool
    ) -> list[Message]:
        turns = super()._checked_turns(messages, tools, generation_prompt)
        if [turn.role for turn in turns] not in (["user"], ["user", "assistant"]):
            raise ChatError("Chat format plain holds one question and at most its one answer.")
        return turns

    def _token_id(self, token: SpecialToken, tokenizer: Vocabulary) -> int:
        """Let a base model of any family end its answer with its own token."""
        assert token == self.end, "the template has no other special token"
        if not tokenizer.eos_ids:
            raise ChatError("The vocabulary names no token that ends a text; plain needs one.")
        return tokenizer.eos_ids[0]

    def _first_ids(self, tokenizer: Vocabulary) -> list[int]:
        return [tokenizer.bos_id] if tokenizer.add_bos and tokenizer.bos_id is not None else []
