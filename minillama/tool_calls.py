"""Chat: a conversation as ids.

Written by notebooks/10_chat.ipynb: edit it there.
"""

import json
import re

from minillama.strict_json import unique


BUILTIN = ("brave_search", "wolfram_alpha", "photogen")  # tools that take a query
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
