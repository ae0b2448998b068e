"""`ziphius chat`: a conversation with a model."""

import contextlib
import importlib
import importlib.util
import json
import sys
from typing import TYPE_CHECKING, Annotated

import tyro
from rich.console import Console

from ziphius.cli.answering import AnswerOptions, AnswerPrinter, Speed, load_model, token_limit
from ziphius.core.errors import ConfigError, OutputError, ZiphiusError
from ziphius.core.files import existing_path, user_path, write_file

if TYPE_CHECKING:
    from ziphius.engine.answer import Prompt
    from ziphius.engine.load import Loaded
    from ziphius.text.chat import ChatFormat, Event, Message

DEFAULT_MAX_NEW_TOKENS = 4096

HELP = """\
/reset         forget the conversation, keep the system message
/system TEXT   set the system message; without TEXT remove it
/save FILE     write the conversation to a new JSON file
/help          this list
/exit          leave, as does Ctrl-D; Ctrl-C stops an answer
A line that begins with a space is sent as it is, even if a / follows."""


class ChatConfig(AnswerOptions):
    """What `ziphius chat` needs to know."""

    model: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="MODEL")]
    """Model folder, .gguf file, or preset (with random weights)."""
    system: Annotated[str | None, tyro.conf.arg(metavar="TEXT")] = None
    """System message to begin with."""


def chat(config: ChatConfig) -> None:
    """Talk with a model, turn by turn.

    What the model thinks is shown apart, dim. Ctrl-C stops an answer but not the chat; /help
    lists the commands inside. Lines of a pipe are turns, too.

    Example:
        ziphius chat ./my-model
        ziphius chat model.gguf --system "Answer in one sentence." --temperature 0
    """
    from ziphius.text.chat import get_chat_format

    loaded = load_model(config.model, config)
    name = config.chat_format or loaded.tokenizer.chat_format
    if name is None:
        raise ConfigError(
            f"{config.model} has no chat format: give one with --chat-format, or let it continue "
            "text with ziphius generate --raw"
        )
    chat_format = get_chat_format(name)
    if config.thinking and True not in chat_format.thinking_modes:
        raise ConfigError(f"chat format {name} does not think: --thinking would have no effect")
    Chat(config, loaded, chat_format).run()


class Chat:
    """The conversation so far, and the loop that carries it on."""

    def __init__(self, config: ChatConfig, loaded: "Loaded", chat_format: "ChatFormat") -> None:
        from ziphius.engine.build import build_engine
        from ziphius.engine.config import EngineConfig

        self._config = config
        self._loaded = loaded
        # One for the whole chat: it keeps what it has computed of earlier turns.
        self._engine = build_engine(
            loaded.model,
            EngineConfig(max_num_seqs=1),
            vocab_limit=loaded.tokenizer.vocab_size,
        )
        self._format = chat_format
        self._console = Console()
        self._turns: list[Message] = []
        self._answers = 0
        self._system: str | None = None
        if config.system is not None:
            self.set_system(config.system)

    def run(self) -> None:
        """Read lines until /exit or their end, and answer each."""
        is_interactive = sys.stdin.isatty()
        if is_interactive:
            if importlib.util.find_spec("readline"):
                importlib.import_module("readline")  # gives input() its editing and its history
            self._console.print("/help lists the commands, Ctrl-D leaves", style="dim")
        while (line := self._read("> " if is_interactive else "")) is not None:
            try:
                if line.startswith("/"):
                    if not self.command(*line[1:].partition(" ")[::2]):
                        return
                elif line.strip():
                    self.answer(line)
            except ZiphiusError as error:
                if not is_interactive:
                    raise
                self._console.print(str(error), style="red", markup=False, highlight=False)

    def _read(self, prompt: str) -> str | None:
        """Return the next line, None at the end of input."""
        while True:
            try:
                return input(prompt)
            except EOFError:
                return None
            except UnicodeDecodeError as error:
                raise ConfigError(f"standard input is not UTF-8 text: {error}") from error
            except KeyboardInterrupt:
                if not prompt:
                    raise
                self._console.print("\nCtrl-D or /exit leaves", style="dim")

    def command(self, name: str, argument: str) -> bool:
        """Run a / command; return False if it ends the chat."""
        if name == "exit":
            return False
        if name == "reset":
            self._turns.clear()
        elif name == "system":
            self.set_system(argument.strip() or None)
        elif name == "save":
            self.save(argument.strip())
        elif name == "help":
            self._console.print(HELP, markup=False, highlight=False)
        else:
            raise ConfigError(f"there is no command /{name}; /help lists them")
        return True

    def set_system(self, text: str | None) -> None:
        """Begin every further prompt with this system message."""
        if text and "system" not in self._format.roles:
            raise ConfigError(f"chat format {self._format.name} has no system message")
        self._system = text

    def answer(self, text: str) -> None:
        """Answer one user message; keep both if there is an answer, stopped early or not."""
        from ziphius.engine.answer import chat_prompt
        from ziphius.text.chat import ContentText, Message, ReasoningText

        question = Message("user", text)
        prompt = chat_prompt(
            self._messages(question),
            self._loaded.tokenizer,
            self._format,
            thinking=self._config.thinking or None,
        )
        limit = token_limit(self._config, DEFAULT_MAX_NEW_TOKENS, self._loaded, prompt)
        events: list[Event] = []
        # Ctrl-C ends the answer, not the chat; the events so far are its answer.
        with contextlib.suppress(KeyboardInterrupt):
            self._stream(prompt, limit, events)
        # Calls are shown but not kept: nobody here could give them a result.
        content = "".join(event.text for event in events if isinstance(event, ContentText))
        reasoning = "".join(event.text for event in events if isinstance(event, ReasoningText))
        if content or reasoning:
            self._turns += [question, Message("assistant", content, reasoning)]

    def _stream(self, prompt: "Prompt", limit: int, events: "list[Event]") -> None:
        """Print one answer as it comes and collect its events."""
        from ziphius.engine.answer import stream_answers

        printer = AnswerPrinter(self._console, self._console)
        speed = Speed(len(prompt.ids))
        steps = stream_answers(
            self._engine,
            self._loaded.tokenizer,
            [prompt],
            max_new_tokens=[limit],
            # Counted over the whole chat: asking again after /reset gives another answer.
            sequence_ids=[self._answers],
            sampling=self._config.sampling,
            stop=self._config.stop,
            ignore_eos=self._config.ignore_eos,
        )
        self._answers += 1
        with contextlib.closing(steps):
            try:
                for [piece] in steps:
                    speed.step(1)
                    events += piece.events
                    printer.show(piece.events)
            finally:
                printer.end()
                if speed.new_tokens:
                    self._console.print(speed.line(), style="dim", highlight=False)

    def _messages(self, *further: "Message") -> "list[Message]":
        from ziphius.text.chat import Message

        system = [] if self._system is None else [Message("system", self._system)]
        return [*system, *self._turns, *further]

    def save(self, name: str) -> None:
        """Write the conversation to a new JSON file."""
        if not name:
            raise ConfigError("/save needs the name of a file")
        path = user_path(name)
        if existing_path(name) is not None:
            raise OutputError(f"{path} exists already: choose another name")
        messages = [
            {"role": message.role, "content": message.content}
            | (
                {"reasoning_content": message.reasoning_content}
                if message.reasoning_content
                else {}
            )
            for message in self._messages()
        ]
        document = {
            "model": self._config.model,
            "chat_format": self._format.name,
            "messages": messages,
        }
        write_file(path, json.dumps(document, indent=2, ensure_ascii=False) + "\n")
        self._console.print(
            f"Saved in {path}", style="dim", markup=False, highlight=False, soft_wrap=True
        )
