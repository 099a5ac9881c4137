"""Chat: a conversation as ids.

Written by notebooks/10_chat.ipynb: edit it there.
"""

import json

from minillama.chat_formats import format_of, turn_ends
from minillama.interpreter import LIMITED, PythonInterpreter
from minillama.strict_json import unique
from minillama.tokenizer import Tokenizer
from minillama.tool_calls import (
    ASK,
    BUILTIN,
    CALL,
    FUNCTION,
    INSIDE,
    JSON,
    NAMES,
    OBJECT,
    QUERY,
    calls_among_words,
    parse,
    parse_one,
    render,
)


# what the module offers; the other files of this chapter hold some of it
__all__ = ["encode_dialog", "encode_llama3", "encode_chatml", "role_of", "ROLES", "fit"]
__all__ += ["system_prompt", "parse_assistant", "run_tool", "run_dialog"]
__all__ += ["BUILTIN", "render", "parse", "parse_one", "calls_among_words", "JSON", "unique"]
__all__ += ["NAMES", "ASK", "QUERY", "FUNCTION", "OBJECT", "CALL", "INSIDE"]
__all__ += ["PythonInterpreter", "LIMITED"]


ROLES = {
    "system": "system",
    "user": "user",
    "assistant": "assistant",
    "ipython": "ipython",
    "tool": "ipython",
}


def encode_dialog(tokenizer: Tokenizer, messages: list[dict], form="json") -> list[int]:
    """Ids of a conversation, ending with the assistant's header so that the model answers.

    messages: [{"role": ..., "content": ...}, ...]; an assistant's may have "calls", "tag" and
    "end", as `parse_assistant` returns them. Control ids are inserted here; content is always plain
    text. ValueError for a role that does not exist, for a call that cannot be written in this form
    ("json" or "function_tag"), and for a tokenizer of which the layout is not known.
    """
    layout = format_of(tokenizer)
    if layout.system and (not messages or messages[0].get("role") != "system"):
        messages = [{"role": "system", "content": layout.system}, *messages]
    try:
        return (encode_llama3 if layout.name == "llama3" else encode_chatml)(
            tokenizer, messages, form
        )
    except KeyError as error:
        raise ValueError(
            f"the conversation needs {error}, which this tokenizer does not have"
        ) from None


def role_of(message: dict) -> str:
    """The role as Llama 3.1 writes it (a tool's result comes from ipython); ValueError for any
    other.
    """
    role = message.get("role")
    if not isinstance(role, str) or role not in ROLES:
        raise ValueError(f"the role {role!r} is none of {', '.join(ROLES)}")
    if message.get("calls") and role != "assistant":
        raise ValueError(f"only the assistant calls tools, not {role}")
    return ROLES[role]


def encode_llama3(tokenizer: Tokenizer, messages: list[dict], form="json") -> list[int]:
    """BOS, then per message: <|start_header_id|> role <|end_header_id|> blank line body <|eot_id|>,
    as Meta does.
    """
    control, encode = tokenizer.specials, tokenizer.encode

    def header(role):
        return [
            control["<|start_header_id|>"],
            *encode(role),
            control["<|end_header_id|>"],
            *encode("\n\n"),
        ]

    ids = [*format_of(tokenizer).first]  # BOS
    for message in messages:
        role, body, end = role_of(message), encode(message.get("content", "")), "eot"
        if role == "assistant":
            calls, end = message.get("calls", []), message.get("end") or "eot"
            # subtle: a parsed message is written back as it came, words before the tag
            if message.get("tag"):
                body = [*body, control["<|python_tag|>"]]
            elif calls and calls[0].get("name") == "code_interpreter":
                body = [control["<|python_tag|>"], *body]
            for call in calls:
                body += encode(render(call, form))
        if end not in ("eot", "eom"):
            raise ValueError(f'a message ends with "eot" or "eom", not {end!r}')
        ids += [*header(role), *body, control[f"<|{end}_id|>"]]
    return ids + header("assistant")


def encode_chatml(tokenizer: Tokenizer, messages: list[dict], form="json") -> list[int]:
    """What comes first, if anything, then per message: <|im_start|> role newline body <|im_end|>
    newline.
    """
    start, end = tokenizer.specials["<|im_start|>"], tokenizer.specials["<|im_end|>"]
    ids = [*format_of(tokenizer).first]
    for message in messages:
        role = role_of(message).replace("ipython", "tool")
        body = message.get("content", "") + "".join(
            render(call, form) for call in message.get("calls", [])
        )
        ids += [start, *tokenizer.encode(f"{role}\n{body}"), end, *tokenizer.encode("\n")]
    return [*ids, start, *tokenizer.encode("assistant\n")]


def fit(tokenizer: Tokenizer, messages: list[dict], limit: int) -> tuple[list[dict], list[dict]]:
    """(kept, dropped): whole turns go, oldest first, until at most `limit` ids are left; ValueError
    if none helps.

    A turn is a user's message and all that follows it. System messages at the start and the last
    turn stay.
    """
    start = next(
        (i for i, message in enumerate(messages) if message["role"] != "system"), len(messages)
    )
    turns = [i for i in range(start, len(messages)) if i == start or messages[i]["role"] == "user"]
    for first in turns or [start]:
        kept = messages[:start] + messages[first:]
        if (size := len(encode_dialog(tokenizer, kept))) <= limit:
            return kept, messages[start:first]
    raise ValueError(f"the system prompt and the last turn take {size} tokens, more than {limit}")


def system_prompt(text="", builtin=(), functions=(), interpreter=False, form="json") -> str:
    """A system message that offers tools: Llama 3.1's lines for its own, JSON Schema for yours,
    then the text.

    builtin: names such as "brave_search". functions: {"name", "description", "parameters"} with
    parameters as JSON Schema. interpreter: code may be run. form: how calls of functions are
    written, "json" or "function_tag".
    """
    if unknown := set(builtin) - set(BUILTIN):
        raise ValueError(f"{min(unknown)!r} is no built-in tool; those are {', '.join(BUILTIN)}")
    head = "Environment: ipython" if builtin or functions or interpreter else ""
    parts = [head + (f"\nTools: {', '.join(builtin)}" if builtin else "")]
    if functions:
        call = render({"name": "NAME", "arguments": {"PARAMETER": "VALUE"}}, form)
        parts += ["You can call these functions:"]
        offers = [{"type": "function", "function": function} for function in functions]
        parts += [json.dumps(offer, indent=4, ensure_ascii=False) for offer in offers]
        parts += [f"To call a function, answer with nothing but a line of this form:\n{call}"]
    return "\n\n".join(part for part in [*parts, text] if part)


def parse_assistant(tokenizer: Tokenizer, ids, tools=True) -> dict:
    """The message that generated ids make: {"role", "content", "calls", "tag", "end"}.

    Control ids count, never their spelling. "tag": <|python_tag|> was there; what follows it are
    calls, without it those of `calls_among_words`. tools=False: no text is a call. "end": "eot",
    "eom" or None (cut off).
    """
    ends = dict.fromkeys([*tokenizer.stop_ids, *turn_ends(tokenizer)], "eot")
    ends |= {id: "eom" for id in ends if id == tokenizer.specials.get("<|eom_id|>")}
    ids, mark = list(ids), tokenizer.specials.get("<|python_tag|>")
    stop = next((place for place, id in enumerate(ids) if id in ends), len(ids))
    end, ids = ends[ids[stop]] if stop < len(ids) else None, ids[:stop]
    if tag := mark in ids:
        place = ids.index(mark)
        content, calls = tokenizer.decode(ids[:place]), parse(tokenizer.decode(ids[place + 1 :]))
    else:
        content = tokenizer.decode(ids)
        content, calls = calls_among_words(content) if tools else (content, [])
    return {"role": "assistant", "content": content, "calls": calls, "tag": tag, "end": end}


def run_tool(tools: dict, call: dict) -> str:
    """What a tool answers to a call, as text; a mistake of the model or of the tool is an answer
    too.
    """
    if "error" in call:
        return f"error: {call['error']}"
    if call["name"] not in tools:
        return f"error: there is no tool {call['name']!r}; there are: {', '.join(tools) or 'none'}"
    try:
        result = tools[call["name"]](**call["arguments"])
        text = result if isinstance(result, str) else json.dumps(result, ensure_ascii=False)
    except Exception as error:
        text = f"error: {type(error).__name__}: {error}"
    return text.encode("utf-8", "replace").decode()


def run_dialog(
    reply, tokenizer: Tokenizer, messages: list[dict], tools: dict, rounds=5, form="json"
) -> list[dict]:
    """The conversation, continued until the assistant answers without a call, or for `rounds`
    replies.

    reply: ids of a prompt -> ids of one message, its end token included. tools: name -> function
    that takes the call's arguments. If the limit is reached, the last message is a tool's, not an
    answer.
    """
    for _ in range(rounds):
        ids = reply(encode_dialog(tokenizer, messages, form))
        message = parse_assistant(tokenizer, ids, tools=bool(tools))
        results = [
            {"role": "ipython", "content": run_tool(tools, call)} for call in message["calls"]
        ]
        messages = [*messages, message, *results]
        if not results:
            break
    return messages
