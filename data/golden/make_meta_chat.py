"""Make meta_chat.npz: what Meta's ChatFormat makes of generated conversations. Run once; the result is committed.

    meta-env/bin/python data/golden/make_meta_chat.py      # the environment of make_meta_logits.py

Nothing here uses minillama. It writes

- meta_chat.npz: `dialogs`, the conversations as JSON in UTF-8 bytes, in minillama's spelling of messages; `ids`, Meta's
  ids of all of them, one after another; `lengths`, how many ids each has.
- meta_chat_provenance.json: versions, sha256, and what the conversations hold.
"""

import datetime
import hashlib
import importlib.metadata
import json
import platform
import random
from pathlib import Path

import numpy as np
from llama_models.datatypes import RawMessage, StopReason, ToolCall, ToolPromptFormat
from llama_models.llama3.chat_format import ChatFormat
from llama_models.llama3.tokenizer import Tokenizer


HERE = Path(__file__).resolve().parent
SEED, COUNT = 10, 400
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
    """A call of a built-in tool, of the interpreter or of a function with all kinds of arguments."""
    name = rng.choice(["brave_search", "wolfram_alpha", "photogen", "code_interpreter", "function", "function"])
    if name == "code_interpreter":
        return {"name": name, "arguments": {"code": rng.choice(CODE)}}
    if name != "function":
        return {"name": name, "arguments": {"query": some_text(rng, names)}}
    values = [rng.randrange(-9, 10**12), 0.25, True, None, [1, "zwei", 3.5], {"k": "v"}, [], {}]
    arguments = {rng.choice("abcdé"): rng.choice([*values, some_text(rng, names)]) for _ in range(rng.randrange(4))}
    return {"name": rng.choice(["weather", "get_songs", "f.g-1", rng.choice(names)]), "arguments": arguments}


def some_dialog(rng: random.Random, names: list[str]) -> dict:
    """Messages in any order of roles, and the form in which functions are called."""
    messages = [{"role": "system", "content": rng.choice([TOOLS, some_text(rng, names)])}] * (rng.random() < 0.6)
    for _ in range(rng.choice([1, 1, 2, 3, 5])):
        message = {"role": rng.choice(["user", "assistant", "tool", "ipython"]), "content": some_text(rng, names)}
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
        raw.append(RawMessage(role=role, content=message["content"], stop_reason=end, tool_calls=calls))
    return meta.encode_dialog_prompt(raw, ToolPromptFormat(dialog["form"])).tokens


def main() -> None:
    tokenizer = Tokenizer.get_instance()
    meta, rng = ChatFormat(tokenizer), random.Random(SEED)
    dialogs = [some_dialog(rng, sorted(tokenizer.special_tokens)) for _ in range(COUNT)]
    ids = [meta_ids(meta, dialog) for dialog in dialogs]
    text = json.dumps(dialogs, ensure_ascii=False).encode()
    np.savez_compressed(
        HERE / "meta_chat.npz", dialogs=np.frombuffer(text, np.uint8), ids=np.int32(sum(ids, [])),
        lengths=np.int32([len(each) for each in ids]),
    )  # fmt: skip
    messages = [message for dialog in dialogs for message in dialog["messages"]]
    packages = ("llama-models", "tiktoken", "pydantic", "numpy")
    provenance = {
        "made by": "data/golden/make_meta_chat.py",
        "date": datetime.date.today().isoformat(),
        "versions": {"python": platform.python_version()} | {p: importlib.metadata.version(p) for p in packages},
        "holds": {
            "dialogs": len(dialogs),
            "messages": len(messages),
            "ids": sum(map(len, ids)),
            "calls": sum(len(message.get("calls", [])) for message in messages),
            "messages ending in eom": sum(message.get("end") == "eom" for message in messages),
            "messages with a control token's name": sum("<|" in json.dumps(message) for message in messages),
            "empty contents": sum(not message["content"] for message in messages),
        },
        "sha256": {"meta_chat.npz": hashlib.sha256((HERE / "meta_chat.npz").read_bytes()).hexdigest()},
    }
    (HERE / "meta_chat_provenance.json").write_text(json.dumps(provenance, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(provenance, indent=2))


if __name__ == "__main__":
    main()
