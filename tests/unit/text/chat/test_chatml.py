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


def test_an_answer_ends_at_its_token() -> None:
    assert CHATML.parse("a\n<|im_end|>\n<|im_start|>user").content == "a\n"
