"""Make meta_chat.npz: how Meta's ChatFormat writes conversations and reads replies. Run once; the
result is committed.

    meta-env/bin/python data/golden/make_meta_chat.py      # the environment of make_meta_logits.py

Nothing here uses minillama. It writes

- meta_chat.npz: `dialogs`, the conversations as JSON in UTF-8 bytes, in minillama's spelling of messages; `ids`, Meta's
  ids of all of them, one after another; `lengths`, how many ids each has. `replies`, also JSON: for each its kind, what
  was meant by it (null: it is malformed), and what Meta's decode_assistant_message reads; `reply_ids`, `reply_lengths`.
- meta_chat_provenance.json: versions, sha256, and what the conversations and replies hold.
"""

import datetime
import hashlib
import importlib.metadata
import json
import platform
import random
from pathlib import Path

import numpy as np
from llama_models.datatypes import BuiltinTool, RawMessage, StopReason, ToolCall, ToolPromptFormat
from llama_models.llama3.chat_format import ChatFormat
from llama_models.llama3.tokenizer import Tokenizer
from llama_models.llama3.tool_utils import ToolUtils


HERE = Path(__file__).resolve().parent
SEED, COUNT, REPLIES_EACH = 10, 400, 25
WORDS = """the river of Asia is 6,300 km long; don't (really) x = [1, 2] <b> {"a": null} naïve Grüße 日本語 नमस्ते مرحبا
שלום например Việt Ελλάδα 🦙 👩‍🚀 e\u0301 $5 50% \\n 'quoted' "double" __init__ 123456""".split()
GAPS = [" ", " ", " ", " ", "  ", "\n", "\n\n", "\t", "", " \n "]
TOOLS = """Environment: ipython
Tools: brave_search, wolfram_alpha

You are a helpful assistant."""
CODE = ["print(6 * 7)\n", "import math\nprint(math.pi)", "", "for x in 'äö':\n    print(x)\n\n"]
STOP = {"eom": StopReason.end_of_message, "eot": StopReason.end_of_turn, None: None}


def some_text(rng: random.Random, names: list[str]) -> str:
    """Words of many languages, odd white space, and now and then the name of a control token."""
    parts = []
    for _ in range(rng.choice([0, 1, 1, 2, 5, 12])):
        parts += [rng.choice(names) if rng.random() < 0.15 else rng.choice(WORDS), rng.choice(GAPS)]
    return "".join(parts if rng.random() < 0.3 else parts[:-1])


def some_call(rng: random.Random, names: list[str]) -> dict:
    """A call of a built-in tool, of the interpreter or of a function with all kinds of
    arguments.
    """
    name = rng.choice(
        ["brave_search", "wolfram_alpha", "photogen", "code_interpreter", "function", "function"]
    )
    if name == "code_interpreter":
        return {"name": name, "arguments": {"code": rng.choice(CODE)}}
    if name != "function":
        return {"name": name, "arguments": {"query": some_text(rng, names)}}
    values = [rng.randrange(-9, 10**12), 0.25, True, None, [1, "zwei", 3.5], {"k": "v"}, [], {}]
    arguments = {
        rng.choice("abcdé"): rng.choice([*values, some_text(rng, names)])
        for _ in range(rng.randrange(4))
    }
    return {
        "name": rng.choice(["weather", "get_songs", "f.g-1", rng.choice(names)]),
        "arguments": arguments,
    }


def some_dialog(rng: random.Random, names: list[str]) -> dict:
    """Messages in any order of roles, and the form in which functions are called."""
    messages = [{"role": "system", "content": rng.choice([TOOLS, some_text(rng, names)])}] * (
        rng.random() < 0.6
    )
    for _ in range(rng.choice([1, 1, 2, 3, 5])):
        message = {
            "role": rng.choice(["user", "assistant", "tool", "ipython"]),
            "content": some_text(rng, names),
        }
        if message["role"] == "assistant":
            calls = [some_call(rng, names) for _ in range(rng.choice([0, 0, 1, 1, 2]))]
            message |= {"calls": calls} if calls else {}
            if end := rng.choice(["eot", "eom", None]):
                message["end"] = end
            if calls and rng.random() < 0.8:
                message["content"] = ""
        messages.append(message)
    return {"messages": messages, "form": rng.choice(["json", "function_tag"])}


def meta_ids(meta: ChatFormat, dialog: dict) -> list[int]:
    """Meta's ids of a dialog."""
    raw = []
    for message in dialog["messages"]:
        calls = [
            ToolCall(call_id=str(i), tool_name=call["name"], arguments=call["arguments"])
            for i, call in enumerate(message.get("calls", []))
        ]
        role = message["role"].replace("ipython", "tool")
        end = STOP[message.get("end")]
        raw.append(
            RawMessage(role=role, content=message["content"], stop_reason=end, tool_calls=calls)
        )
    return meta.encode_dialog_prompt(raw, ToolPromptFormat(dialog["form"])).tokens


def well_formed(rng: random.Random, names: list[str]) -> dict[str, tuple]:
    """One reply of each kind with a plain meaning: kind -> (words before, tag or not, body, the
    calls it means).
    """
    words = some_text(rng, WORDS).strip() or "Yes."
    query = {
        "name": rng.choice(["brave_search", "wolfram_alpha", "photogen"]),
        "arguments": {"query": "x"},
    }
    search, quoted = words.replace('"', ""), f'what does "{words}" mean'
    simple = rng.choice([7, -0.5, True, None, "zwei", "नमस्ते", [1, "a"]])
    flat = {"name": rng.choice(["weather", "get_songs", "f.g-1"]), "arguments": {"a": simple}}
    deep = {"name": "weather", "arguments": {"place": {"city": rng.choice(["Oslo", "Hà Nội"])}}}
    quote = {"name": "weather", "arguments": {"city": "Val d'Isère", "say": words}}
    any_call = some_call(rng, names)
    while any_call["name"] in BuiltinTool.__members__:
        any_call = some_call(rng, names)
    code, tag = rng.choice(CODE), rng.random() < 0.5
    prose = f"Try {written(query, search)} or {written(flat, form='function_tag')}"
    search_code = f'found = client.call(query="{search}")\nprint(found)\n'
    return {
        "answer": ("", False, words, []),
        "built-in": ("", tag, written(query, search), [query | {"arguments": {"query": search}}]),
        "code": ("", True, code, [interpret(code)]),
        "JSON": ("", tag, written(any_call), [any_call]),
        "JSON on several lines": ("", tag, json.dumps(json.loads(written(flat)), indent=2), [flat]),
        "function tag": ("", tag, written(flat, form="function_tag"), [flat]),
        "space in front": ("", False, f" {words}", []),
        "name of a control token": (
            "",
            False,
            f"{words} {rng.choice(['<|eot_id|>', '<|eom_id|>'])}",
            [],
        ),
        "python_tag spelled out": ("", False, f"<|python_tag|>{code}", []),
        "a call in running text": ("", False, prose, []),
        "words before the tag": (words, True, code, [interpret(code)]),
        "words before a call": (f"{words}\n", False, written(flat, form="function_tag"), [flat]),
        "several calls": ("", tag, f"{written(any_call)}; {written(flat)}", [any_call, flat]),
        "several queries": (
            "",
            True,
            "; ".join([written(query, search)] * 2),
            [query | {"arguments": {"query": search}}] * 2,
        ),
        "quotes in a query": (
            "",
            True,
            written(query, quoted),
            [query | {"arguments": {"query": quoted}}],
        ),
        "braces within braces": ("", tag, written(deep, form="function_tag"), [deep]),
        "an apostrophe": ("", tag, written(quote, form="function_tag"), [quote]),
        "code that calls": ("", True, search_code, [interpret(search_code)]),
    }


def malformed(rng: random.Random) -> dict[str, tuple]:
    """One reply of each kind that no reader should understand: kind -> (words before, tag or not,
    body, None).
    """
    name, city, tag = (
        rng.choice(["weather", "f.g-1"]),
        rng.choice(["Oslo", "Hà Nội"]),
        rng.random() < 0.5,
    )
    whole = written({"name": name, "arguments": {"city": city, "days": rng.randrange(9)}})
    bodies = {
        "cut off": whole[: rng.randrange(len('{"type": '), len(whole))],
        "single quotes": whole.replace('"', "'"),
        "no parameters": json.dumps({"name": name}),
        "parameters in a string": json.dumps(
            {"name": name, "parameters": json.dumps({"city": city})}
        ),
        "a key twice": f'{{"name": "{name}", "parameters": {{"city": "Rome", "city": "{city}"}}}}',
        "not a number": f'{{"name": "{name}", "parameters": {{"days": NaN}}}}',
        "no end of the function": f'<function={name}>{{"city": "Oslo"}}',
        "a query without quotes": f"brave_search.call(query={city})",
        "a query without an end": f'brave_search.call(query="{city}',
    }
    return {kind: ("", tag, body, None) for kind, body in bodies.items()}


def interpret(code: str) -> dict:
    return {"name": "code_interpreter", "arguments": {"code": code}}


def written(call: dict, query: str | None = None, form: str = "json") -> str:
    """Meta's text of a call."""
    arguments = call["arguments"] if query is None else {"query": query}
    return ToolUtils.encode_tool_call(
        ToolCall(call_id="", tool_name=call["name"], arguments=arguments), ToolPromptFormat(form)
    )


def read(meta: ChatFormat, kind: str, parts: tuple, end: str | None) -> tuple[dict, list[int]]:
    """A reply as ids, and beside what was meant what Meta reads from them."""
    before, tag, body, calls = parts
    control, encode = (
        meta.tokenizer.special_tokens,
        lambda text: meta.tokenizer.encode(text, bos=False, eos=False),
    )
    ids = (
        [*encode(before), control["<|python_tag|>"], *encode(body)]
        if tag
        else encode(before + body)
    )
    ids += [control[f"<|{end}_id|>"]] if end else []
    meant = (
        None
        if calls is None
        else {"content": before if calls else before + body, "calls": calls, "end": end}
    )
    try:
        message = meta.decode_assistant_message(ids, StopReason.out_of_tokens)
    except Exception as error:
        return {
            "kind": kind,
            "tag": tag,
            "meant": meant,
            "meta": {"raises": type(error).__name__},
        }, ids
    asked = [{"name": getattr(each.tool_name, "value", each.tool_name), "arguments": each.arguments}
             for each in message.tool_calls]  # fmt: skip
    ends = {
        StopReason.end_of_turn: "eot",
        StopReason.end_of_message: "eom",
        StopReason.out_of_tokens: None,
    }
    theirs = {"content": message.content, "calls": asked, "end": ends[message.stop_reason]}
    return {"kind": kind, "tag": tag, "meant": meant, "meta": theirs}, ids


def some_replies(
    meta: ChatFormat, rng: random.Random, names: list[str]
) -> list[tuple[dict, list[int]]]:
    """Every kind of reply, REPLIES_EACH times."""
    found = []
    for _ in range(REPLIES_EACH):
        for kind, parts in (well_formed(rng, names) | malformed(rng)).items():
            found.append(read(meta, kind, parts, rng.choice(["eot", "eom", None])))
    return found


def main() -> None:
    tokenizer = Tokenizer.get_instance()
    meta, rng = ChatFormat(tokenizer), random.Random(SEED)
    dialogs = [some_dialog(rng, sorted(tokenizer.special_tokens)) for _ in range(COUNT)]
    ids = [meta_ids(meta, dialog) for dialog in dialogs]
    replies, reply_ids = zip(
        *some_replies(meta, rng, sorted(tokenizer.special_tokens)), strict=True
    )
    texts = [
        np.frombuffer(json.dumps(each, ensure_ascii=False).encode(), np.uint8)
        for each in (dialogs, replies)
    ]
    np.savez_compressed(
        HERE / "meta_chat.npz",
        dialogs=texts[0],
        ids=np.int32(sum(ids, [])),
        lengths=np.int32([*map(len, ids)]),
        replies=texts[1],
        reply_ids=np.int32(sum(reply_ids, [])),
        reply_lengths=np.int32([*map(len, reply_ids)]),
    )
    messages = [message for dialog in dialogs for message in dialog["messages"]]
    packages = ("llama-models", "tiktoken", "pydantic", "numpy")
    provenance = {
        "made by": "data/golden/make_meta_chat.py",
        "date": datetime.date.today().isoformat(),
        "versions": {"python": platform.python_version()}
        | {p: importlib.metadata.version(p) for p in packages},
        "holds": {
            "dialogs": len(dialogs),
            "messages": len(messages),
            "ids": sum(map(len, ids)),
            "calls": sum(len(message.get("calls", [])) for message in messages),
            "messages ending in eom": sum(message.get("end") == "eom" for message in messages),
            "messages with a control token's name": sum(
                "<|" in json.dumps(message) for message in messages
            ),
            "empty contents": sum(not message["content"] for message in messages),
            "replies": len(replies),
            "replies that Meta reads as they were meant": sum(
                each["meta"] == each["meant"] for each in replies
            ),
        },
        "sha256": {
            "meta_chat.npz": hashlib.sha256((HERE / "meta_chat.npz").read_bytes()).hexdigest()
        },
    }
    (HERE / "meta_chat_provenance.json").write_text(
        json.dumps(provenance, indent=2) + "\n", encoding="utf-8"
    )
    print(json.dumps(provenance, indent=2))


if __name__ == "__main__":
    main()
