"""Chat: a conversation as ids.

Written by notebooks/10_chat.ipynb: edit it there.
"""

from minillama.tokenizer import Tokenizer


SMOLLM2_SYSTEM = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"


def encode_dialog(tokenizer: Tokenizer, messages: list[dict]) -> list[int]:
    """Ids of a conversation, ending with the assistant's header so that the model answers.

    messages: [{"role": ..., "content": ...}, ...]. Control ids are inserted here; content is always plain text.
    """
    if "<|start_header_id|>" in tokenizer.specials:
        return encode_llama3(tokenizer, messages)
    if "<|im_start|>" in tokenizer.specials:
        return encode_chatml(tokenizer, messages)
    raise ValueError("this tokenizer has no chat tokens; use tokenizer.encode and continue plain text")


def encode_llama3(tokenizer: Tokenizer, messages: list[dict]) -> list[int]:
    """BOS, then per message: <|start_header_id|> role <|end_header_id|> blank line content <|eot_id|>."""
    control = tokenizer.specials

    def header(role):
        name = tokenizer.encode(role)
        return [control["<|start_header_id|>"], *name, control["<|end_header_id|>"], *tokenizer.encode("\n\n")]

    ids = [control["<|begin_of_text|>"]]
    for message in messages:
        ids += header(message["role"]) + tokenizer.encode(message["content"]) + [control["<|eot_id|>"]]
    return ids + header("assistant")


def encode_chatml(tokenizer: Tokenizer, messages: list[dict]) -> list[int]:
    """Per message: <|im_start|> role newline content <|im_end|> newline. SmolLM2 was trained with a system line."""
    if not messages or messages[0]["role"] != "system":
        messages = [{"role": "system", "content": SMOLLM2_SYSTEM}, *messages]
    start, end = tokenizer.specials["<|im_start|>"], tokenizer.specials["<|im_end|>"]
    ids = []
    for message in messages:
        ids += [start, *tokenizer.encode(f"{message['role']}\n{message['content']}"), end, *tokenizer.encode("\n")]
    return [*ids, start, *tokenizer.encode("assistant\n")]
