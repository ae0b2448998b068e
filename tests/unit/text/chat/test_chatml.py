"""ChatML, held to the template inside SmolLM2's file."""

from tests.unit.text.goldens import as_dicts, assistant, run_template, system, user
from ziphius.text.chat import CHAT_FORMATS

CHATML, SMOLLM2 = CHAT_FORMATS["chatml"], CHAT_FORMATS["smollm2"]
# SmolLM2-135M-Instruct, key tokenizer.chat_template.
TEMPLATE = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face"
    "<|im_end|>\n' }}{% endif %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + "
    "'<|im_end|>' + '\n'}}{% endfor %}{% if add_generation_prompt %}"
    "{{ '<|im_start|>assistant\n' }}{% endif %}"
)
TURNS = [user("u1"), assistant("a1"), user("u2")]


def test_smollm2_is_written_as_its_template_does() -> None:
    for turns in (TURNS, [system("S"), *TURNS], TURNS[:2]):
        asks = turns[-1].role == "user"
        theirs = run_template(TEMPLATE, as_dicts(turns), add_generation_prompt=asks)
        assert SMOLLM2.render(turns, generation_prompt=asks) == theirs


def test_chatml_has_no_default_system_text() -> None:
    assert CHATML.render([user("u")], generation_prompt=True) == (
        "<|im_start|>user\nu<|im_end|>\n<|im_start|>assistant\n"
    )
    assert CHATML.render([system(""), user("u")]).startswith("<|im_start|>system\n<|im_end|>\n")


def test_thinking_chatml_reads_what_it_writes() -> None:
    chat_format = CHAT_FORMATS["chatml-think"]
    prompt = chat_format.render([user("u")], generation_prompt=True)
    assert prompt == CHATML.render([user("u")], generation_prompt=True)
    for answer in (assistant("7", "3 + 4\n= 7"), assistant("7")):
        text = chat_format.render([user("u"), answer])
        assert chat_format.parse(text.removeprefix(prompt)) == answer
    thought = chat_format.render([user("u"), assistant("7", "3 + 4")])
    assert thought == prompt + "<think>\n3 + 4\n</think>\n\n7<|im_end|>\n"


def test_a_past_turn_of_thinking_chatml_shows_its_answer_alone() -> None:
    turns = [user("u1"), assistant("a1", "r1"), user("u2")]
    assert "r1" not in CHAT_FORMATS["chatml-think"].render(turns, generation_prompt=True)


def test_an_answer_ends_at_its_token() -> None:
    assert CHATML.parse("a\n<|im_end|>\n<|im_start|>user").content == "a\n"
