"""How a model's conversations are written, read off the text of its chat template, which is never
run.

Two formats are known, Llama 3's and ChatML; chapter 10 writes them. What is not known is said in
one line.
"""

import re
from dataclasses import dataclass
from itertools import pairwise

from minillama.tokenizer import Tokenizer


MARKS = {"llama3": ("<|start_header_id|>", "<|end_header_id|>"), "chatml": ("<|im_start|>",)}
ENDS = {"llama3": ("<|eot_id|>", "<|eom_id|>"), "chatml": ("<|im_end|>",)}  # of a message


@dataclass(frozen=True)
class ChatFormat:
    """How a model's conversations are written: "llama3" or "chatml", or None and why that is not
    known.

    first: the ids before all messages. system: a message where none is given. template: the file's,
    as text.
    """

    name: str | None
    first: tuple[int, ...] = ()
    system: str = ""
    template: str | None = None
    why: str = ""


def format_of(tokenizer: Tokenizer) -> ChatFormat:
    """How conversations are written with this tokenizer; ValueError says why that is not known."""
    layout = tokenizer.chat_format or chat_format(tokenizer)
    if layout.name is None:
        raise ValueError(layout.why)
    return layout


def chat_format(
    tokenizer: Tokenizer, template: str | None = None, bos_id: int | None = None
) -> ChatFormat:
    """What the text of a chat template shows or, without one, the vocabulary. bos_id: what it calls
    bos_token.
    """
    name, system, why, begin = None, "", "", tokenizer.specials.get("<|begin_of_text|>")
    bos_id = bos_id if type(bos_id) is int and bos_id in tokenizer.token_bytes else None
    try:
        found = format_name(tokenizer, template or "")
        name, system = found, default_system(found, template or "")
    except ValueError as error:
        why = str(error)
    if template:
        first = (
            begin
            if "<|begin_of_text|>" in template
            else bos_id
            if "bos_token" in template
            else None
        )
    else:
        first = begin if name == "llama3" else None
    return ChatFormat(name, () if first is None else (first,), system, template or None, why)


def format_name(tokenizer: Tokenizer, template: str) -> str:
    """The format whose marks the template shows or, without one, the vocabulary; ValueError if that
    is not just one.
    """
    if len(template) > 100_000:
        raise ValueError(
            f"its chat template has {len(template):,} characters, at most 100,000 are read"
        )
    specials, where = tokenizer.specials, "its chat template" if template else "its vocabulary"
    shown = [name for name in MARKS if MARKS[name][0] in (template or specials)]
    if len(shown) == 2 and not template:  # the token at which it stops may tell
        shown = [
            name for name in shown if specials.get(ENDS[name][0], -1) == tokenizer.eos_id
        ] or shown
    if len(shown) == 2:
        raise ValueError(f"{where} has the marks of Llama 3's chat format and of ChatML")
    if not shown and not template:
        raise ValueError(
            "this tokenizer has no chat tokens; use tokenizer.encode and continue plain text"
        )
    if not shown:
        theirs = ", ".join(dict.fromkeys(re.findall(r"<[|｜][\w▁.-]{1,40}[|｜]>", template)))[:80]
        raise ValueError(
            f"{where} ({theirs or 'no marks'}) is neither Llama 3's chat format nor ChatML"
        )
    needed = [*MARKS[shown[0]], ENDS[shown[0]][0]]
    needed += ["<|begin_of_text|>"] if shown == ["llama3"] and not template else []
    if missing := [mark for mark in needed if mark not in specials]:
        raise ValueError(
            f"{where} has {needed[0]}, but there is no token {missing[0]}, which belongs to it"
        )
    return shown[0]


SET_SYSTEM = re.compile(
    r"""\bset\s+\w{0,40}system\w{0,40}\s*=\s*(?:'((?:[^'\\]|\\.)*)'|"((?:[^"\\]|\\.)*)")"""
)


def default_system(name: str, template: str) -> str:
    """The system message that a template writes where none is given, "" if it has none; ValueError
    for several.
    """
    opening = {
        "llama3": "<|start_header_id|>system<|end_header_id|>\n\n",
        "chatml": "<|im_start|>system\n",
    }[name]
    template = template.replace(r"\n", "\n")  # as in a string of the template language
    found = {single or double for single, double in SET_SYSTEM.findall(template)}
    for before, after in pairwise(template.split(opening)):
        text, end, _ = after.partition(ENDS[name][0])
        quote = before[-1:] if before[-1:] in ("'", '"') else "{"
        # nothing is put in there: these are the words
        if end and quote not in re.sub(r"\\.", "", text):
            found.add(text)
    if len(found := found - {""}) > 1:
        raise ValueError(
            "its chat template has several default system messages, and only running it would "
            "choose"
        )
    return re.sub(r"\\(.)", r"\1", max(found, default=""))


def set_chat_format(tokenizer: Tokenizer, template=None, bos_id: int | None = None) -> Tokenizer:
    """The tokenizer, which now knows its format, stops where a message ends, and takes no control
    id from text.

    ValueError if the template is no text, or if a control token is an ordinary one as well.
    """
    if not isinstance(template, str | None):
        raise ValueError(f"its chat template is no text but {template!r}"[:200])
    layout = tokenizer.chat_format = chat_format(tokenizer, template, bos_id)
    ends = turn_ends(tokenizer)
    tokenizer.stop_ids |= frozenset(ends)
    tokenizer.eos_id = ends[0] if ends and tokenizer.eos_id is None else tokenizer.eos_id
    marks = {tokenizer.specials.get(name) for name in MARKS.get(layout.name, ())}
    control = {tokenizer.bos_id, *layout.first, *tokenizer.stop_ids, *marks}
    for name in [name for name in tokenizer.plain if tokenizer.specials[name] in control]:
        del tokenizer.plain[name]  # whatever the file says of it
        if name.encode() in tokenizer.vocab:
            raise ValueError(f"its control token {name!r} is an ordinary token as well")
    return tokenizer


def turn_ends(tokenizer: Tokenizer) -> list[int]:
    """The ids that end a message in this tokenizer's chat format, the usual one first; none where
    it is not known.
    """
    layout = tokenizer.chat_format or chat_format(tokenizer)
    return [
        tokenizer.specials[name] for name in ENDS.get(layout.name, ()) if name in tokenizer.specials
    ]


# For a tokenizer that came without a template: what chapter 10 writes, in the template language.
# A message may have tool_calls, as everywhere, or calls, tag and end, as `chat.parse_assistant`
# returns them; functions are offered as `chat.system_prompt` does. The minus signs take away all
# white space between the parts.
TEMPLATE = r"""
{%- if messages and messages[0].role == 'system' -%}
  {%- set words, others = messages[0].content, messages[1:] -%}
{%- else -%}
  {%- set words, others = none, messages -%}
{%- endif -%}
{%- if tools or builtin_tools -%}
  {%- set builtin = (builtin_tools or []) | reject('equalto', 'code_interpreter') | list -%}
  {{- open + 'system' + close + 'Environment: ipython' -}}
  {{- '\nTools: ' + builtin | join(', ') if builtin else '' -}}
  {%- if tools -%}
    {{- '\n\nYou can call these functions:' -}}
    {%- for tool in tools -%}
      {%- set offer = tool if tool.function else {'type': 'function', 'function': tool} -%}
      {{- '\n\n' + offer | tojson(indent=4) -}}
    {%- endfor -%}
    {{- '\n\nTo call a function, answer with nothing but a line of this form:\n' -}}
    {{- '{"type": "function", "name": "NAME", "parameters": {"PARAMETER": "VALUE"}}' -}}
  {%- endif -%}
  {{- ('\n\n' + words if words else '') + end -}}
{%- elif words is not none -%}
  {{- open + 'system' + close + words + end -}}
{%- endif -%}
{%- for message in others -%}
  {%- set calls = message.tool_calls or message.calls or [] -%}
  {%- if message.role not in ['system', 'user', 'assistant', 'tool', 'ipython'] -%}
    {{- raise_exception('the role ' + message.role + ' is not known') -}}
  {%- elif calls and message.role != 'assistant' -%}
    {{- raise_exception('only the assistant calls tools, not ' + message.role) -}}
  {%- endif -%}
  {{- open + (tool_role if message.role in ['tool', 'ipython'] else message.role) + close -}}
  {%- set first = (calls[0].function or calls[0]).name if calls else '' -%}
  {{- tag if first == 'code_interpreter' and not message.tag else '' -}}
  {{- message.content or '' -}}
  {{- tag if message.tag else '' -}}
  {%- for each in calls -%}
    {%- set call = each.function or each -%}
    {%- set given = call.arguments -%}
    {%- set keys = given | list if given is mapping else [] -%}
    {%- if call.name in ['brave_search', 'wolfram_alpha', 'photogen'] and keys == ['query'] -%}
      {{- call.name + '.call(query="' + given.query + '")' -}}
    {%- elif call.name == 'code_interpreter' and keys == ['code'] -%}
      {{- given.code -}}
    {%- else -%}
      {{- '{"type": "function", "name": ' + call.name | tojson(ensure_ascii=true) -}}
      {{- ', "parameters": ' -}}
      {{- (given if given is string else given | tojson(ensure_ascii=true)) + '}' -}}
    {%- endif -%}
  {%- endfor -%}
  {{- (message_end if message.end == 'eom' else end) -}}
{%- endfor -%}
{%- if add_generation_prompt -%}
  {{- open + 'assistant' + close -}}
{%- endif -%}
"""
CHAT_TEMPLATES = {
    "llama3": "{%- set open, close = '<|start_header_id|>', '<|end_header_id|>\\n\\n' -%}"
    "{%- set end, message_end = '<|eot_id|>', '<|eom_id|>' -%}"
    "{%- set tool_role, tag = 'ipython', '<|python_tag|>' -%}"
    "{{- '<|begin_of_text|>' -}}" + TEMPLATE,
    "chatml": "{%- set open, close = '<|im_start|>', '\\n' -%}"
    "{%- set end, message_end = '<|im_end|>\\n', '<|im_end|>\\n' -%}"
    "{%- set tool_role, tag = 'tool', '' -%}" + TEMPLATE,
}
