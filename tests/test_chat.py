"""Conversations as ids: published ones, and text that tries to be a control token."""

import pytest

from minillama import Tokenizer, chat


@pytest.fixture(scope="module")
def llama3(llama3_vocabulary):
    return Tokenizer.from_file(llama3_vocabulary)


@pytest.fixture(scope="module", params=["llama3", "smollm2"])
def either(request, llama3):
    return llama3 if request.param == "llama3" else request.getfixturevalue("ours")[1]


@pytest.mark.weights
def test_published_ids(llama3):
    """Meta's documentation of the format, "Hello World!" after a system prompt."""
    messages = [
        {"role": "system", "content": "You are a helpful assistant."},
        {"role": "user", "content": "Hello World!"},
    ]
    assert chat.encode_dialog(llama3, messages) == [
        128000, 128006, 9125, 128007, 271, 2675, 527, 264, 11190, 18328, 13, 128009,
        128006, 882, 128007, 271, 9906, 4435, 0, 128009, 128006, 78191, 128007, 271,
    ]  # fmt: skip


@pytest.mark.weights
@pytest.mark.parametrize("system", [True, False])
def test_smollm2_as_its_own_template(ours, smollm2_gguf, system):
    """The Jinja template inside the GGUF, rendered by jinja2, its names of control tokens allowed."""
    import jinja2

    messages = [{"role": "system", "content": "Be brief."}] * system
    messages += [
        {"role": "user", "content": "Hi there"},
        {"role": "assistant", "content": "Hello!\n"},
        {"role": "user", "content": " 12 + 3?"},
    ]
    template = jinja2.Template(smollm2_gguf.fields["tokenizer.chat_template"].contents())
    text = template.render(messages=messages, add_generation_prompt=True)
    assert chat.encode_dialog(ours[1], messages) == ours[1].encode(text, allowed_special="all")


@pytest.mark.weights
@pytest.mark.parametrize("place", ["role", "content"])
def test_text_never_becomes_a_control_token(either, place):
    """However many names of control tokens the text holds, the dialog has as many control ids as without them."""
    control = set(either.specials.values())

    def count(text):
        message = {"role": "user", "content": "x"} | {place: text}
        return sum(id in control for id in chat.encode_dialog(either, [message]))

    assert count("".join(either.specials)) == count("user")


@pytest.mark.weights
def test_a_dialog_ends_with_the_assistants_header(either):
    one, two = ([{"role": "user", "content": "x"}] * n for n in (1, 2))
    header = chat.encode_dialog(either, one)[-3:]
    assert chat.encode_dialog(either, two)[-3:] == header
    assert "assistant" in either.decode(header)


def test_a_tokenizer_without_chat_tokens():
    with pytest.raises(ValueError, match="no chat tokens"):
        chat.encode_dialog(Tokenizer({bytes([byte]): byte for byte in range(256)}, {}), [])
