"""Chat: a conversation as ids.

Written by notebooks/10_chat.ipynb: edit it there.
"""

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from minillama.chat_formats import format_of, turn_ends
from minillama.tokenizer import Tokenizer


ROLES = {
    "system": "system",
    "user": "user",
    "assistant": "assistant",
    "ipython": "ipython",
    "tool": "ipython",
}
BUILTIN = ("brave_search", "wolfram_alpha", "photogen")  # tools that take a query


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


NAMES = "|".join(BUILTIN)
ASK = rf"(?:{NAMES}|code_interpreter)\.call\("
QUERY = re.compile(  # quotes and all
    rf'((?:{NAMES})\.call\(query|code_interpreter\.call\(code)="(.*?)"\)(?=[\s;]*(?:\Z|{ASK}))',
    re.DOTALL,
)
FUNCTION = re.compile(r"<function=(.+?)>\s*(?=\{)")
OBJECT = r"\{\s*[\"'](?:type|name|parameters|arguments)[\"']\s*:"
CALL = re.compile(rf"\s*(?:{OBJECT}|<function=|{ASK})")


def render(call: dict, form="json") -> str:
    """The text of a tool call as Llama 3.1 writes it, so that parse(render(call)) == [call].

    call: {"name": ..., "arguments": {...}}. form: "json" or "function_tag", for functions that are
    not built in. ValueError if no text reads back as this call.
    """
    if form not in ("json", "function_tag"):
        raise ValueError(f'the form of a call is "json" or "function_tag", not {form!r}')
    if "error" in call:
        return call["text"]
    name, arguments = call.get("name"), call.get("arguments")
    try:
        texts = [json.dumps({"type": "function", "name": name, "parameters": arguments})]
        if form == "function_tag":
            texts.insert(0, f"<function={name}>{json.dumps(arguments)}</function>")
        if name in BUILTIN and [*arguments] == ["query"]:
            texts.insert(0, f'{name}.call(query="{arguments["query"]}")')
        if name == "code_interpreter" and [*arguments] == ["code"]:
            texts.insert(0, str(arguments["code"]))
        for text in texts:
            if parse(text.encode("utf-8", "replace").decode()) == [
                {"name": name, "arguments": arguments}
            ]:
                return text
    except (TypeError, ValueError, RecursionError):
        pass
    raise ValueError(f"no text reads back as this call: {call!r}"[:300])


def parse(text: str) -> list[dict]:
    """The calls that a text after <|python_tag|> holds, [{"name", "arguments"}, ...]; what is no
    call is code.

    Several calls may follow each other, with white space or ; between them. Where one is malformed,
    the last item is {"error": what is wrong, "text": the rest}: nothing is guessed.
    """
    if not CALL.match(text):
        return [{"name": "code_interpreter", "arguments": {"code": text}}]
    calls, rest = [], text
    while rest := rest.lstrip("; \t\r\n"):
        try:
            call, end = parse_one(rest)
        except (ValueError, RecursionError) as error:
            return [*calls, {"error": f"malformed call: {error}", "text": rest}]
        calls.append(call)
        rest = rest[end:]
    return calls


def parse_one(text: str) -> tuple[dict, int]:
    """The call at the start of the text and where it ends; ValueError says what is wrong with
    it.
    """
    if query := QUERY.match(text):
        name, _, argument = query[1].partition(".call(")
        return {"name": name, "arguments": {argument: query[2]}}, query.end()
    tag = FUNCTION.match(text)
    if not tag and not text.startswith("{"):
        raise ValueError(
            'expected {"name": ..., "parameters": {...}}, <function=NAME>{...}</function> or a '
            "query"
        )
    value, end = JSON.raw_decode(text, tag.end() if tag else 0)
    json.dumps(value, allow_nan=False)
    if tag:
        if not text.startswith("</function>", end) and text[end:].strip():
            raise ValueError("</function> is missing after the arguments")
        value, end = {"name": tag[1], "parameters": value}, min(end + len("</function>"), len(text))
    name, given = (
        value.get("name"),
        [value[key] for key in ("parameters", "arguments") if key in value],
    )
    if not isinstance(name, str) or len(given) != 1 or not isinstance(given[0], dict):
        raise ValueError(
            'a call needs a "name", which is a string, and "parameters", which are an object'
        )
    return {"name": name, "arguments": given[0]}, end


def unique(pairs: list[tuple]) -> dict:
    """An object of JSON; ValueError if a key occurs twice."""
    if len(value := dict(pairs)) < len(pairs):
        raise ValueError("a key occurs twice")
    return value


JSON = json.JSONDecoder(object_pairs_hook=unique)


def calls_among_words(text: str) -> tuple[str, list[dict]]:
    """(words, calls) of a text without <|python_tag|>; a malformed call is an error and stays among
    the words.
    """
    words, calls, found = "", [], CALL.match(text)
    while found := found or INSIDE.search(text):
        before, rest = text[: found.start()], text[found.start() :].lstrip("; \t\r\n")
        try:
            call, end = parse_one(rest)
        except (ValueError, RecursionError) as error:
            # an object within words that is none of a call's
            if before.strip() and rest.startswith("{"):
                break
            return words + text, [*calls, {"error": f"malformed call: {error}", "text": ""}]
        words, calls, text = words + before, [*calls, call], rest[end:]
        text = text if text.strip("; \t\r\n") else ""
        found = CALL.match(text.lstrip("; \t\r\n"))
    return words + text, calls


# an object within another is data
INSIDE = re.compile(rf'^<function=|(?<!":)(?<!": ){OBJECT}', re.MULTILINE)


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


class PythonInterpreter:
    """A tool that runs Python code in a process of its own and returns what it printed.

    This is no sandbox: the code can read, change and send away whatever you can. What is limited is
    time, output and, where the system can (not on Windows), memory, so that an endless loop does no
    harm. Use it on code you would run.
    """

    def __init__(self, seconds=5.0, characters=4_000, megabytes=512):
        self.seconds, self.characters, self.megabytes = seconds, characters, megabytes

    def __call__(self, code: str) -> str:
        """Run the code; its output, cut at the limit, and a last line that says how it ended unless
        it ended well.
        """
        with (
            tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder,
            open(f"{folder}/out", "w+b") as out,
        ):
            Path(folder, "code.py").write_text(code, encoding="utf-8", errors="replace")
            command = [
                sys.executable,
                "-I",
                "-u",
                "-X",
                "utf8",
                "-c",
                LIMITED,
                str(self.megabytes * 1_000_000),
            ]
            # no secrets
            env = {
                name: value for name in ("PATH", "SYSTEMROOT") if (value := os.environ.get(name))
            }
            streams = dict(stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.STDOUT)
            process = subprocess.Popen(
                command, cwd=folder, env=env, start_new_session=True, **streams
            )
            try:
                note = self.wait(process, out)
            finally:
                # end it and, but for Windows, whatever it has started
                with contextlib.suppress(OSError):
                    os.killpg(process.pid, signal.SIGKILL) if hasattr(
                        os, "killpg"
                    ) else process.kill()
                process.wait()
            out.seek(0)
            text = out.read(4 * self.characters + 1).decode("utf-8", "replace")
        if len(text) > self.characters:
            text, note = text[: self.characters], note or "[the rest of the output was cut]"
        return "\n".join(part for part in (text.rstrip("\n"), note) if part)

    def wait(self, process, out) -> str:
        """Wait until the process ends or reaches a limit; a note on the end, "" if it ended
        well.
        """
        deadline = time.monotonic() + self.seconds
        while process.poll() is None:
            if time.monotonic() > deadline:
                return f"[stopped after {self.seconds:g} s]"
            if os.fstat(out.fileno()).st_size > 4 * self.characters:
                return "[stopped: too much output]"
            time.sleep(0.01)
        return f"[exit status {process.returncode}]" if process.returncode else ""


LIMITED = """import sys
try:
    import resource
    resource.setrlimit(resource.RLIMIT_AS, (int(sys.argv[1]),) * 2)
except (ImportError, ValueError, OSError):
    pass
exec(compile(open("code.py", encoding="utf-8").read(), "code.py", "exec"), {"__name__": "__main__"})
"""
