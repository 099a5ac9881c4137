"""How fast is a mask, and which tokens does it allow? Our constrained decoding beside xgrammar, over
Llama 3.1's vocabulary.

    python benchmarks/constrained.py [--schemas 200] [--steps 60] [--seed 0] [--json FILE]

Random schemas; for each a random walk over the tokens that both allow, with both masks at every step.
Printed: compile time, the first visit of a state and later ones (median and 99 percent), and how
often the masks are equal; differences are counted by cause, and what no cause explains is an error.
An enum of arrays or objects is left out: xgrammar writes them without spaces.
A finished document is judged by jsonschema. xgrammar is no dependency: pip install xgrammar.
"""

import argparse
import json
import random
import re
import statistics
import time
from collections import Counter
from importlib.metadata import version
from pathlib import Path

import jsonschema
import numpy as np
import torch
import xgrammar

from minillama import Tokenizer
from minillama.checkpoints import hub
from minillama.inference.json_schema import JsonSchema
from minillama.inference.token_masks import TokenMasks


NAMES = ["name", "age", "id", "tags", "x", "y", "city", "größe", "is_ok"]
VALUES = ["red", 'a"b', "é", "x\ny", 1, 2.5, -3, None, True, "grün"]
PATTERNS = [r"^[a-z]{2,5}$", r"^[0-9]{3}-[0-9]{4}$", r"^(foo|bar)+$", r"^[A-Z][a-z]* [0-9]{1,3}$"]


def random_schema(dice, depth=3):
    """A schema of the keywords that both support."""
    kinds = ["string", "integer", "number", "boolean", "null", "enum", "range", "length", "pattern"]
    kind = dice.choice(
        [*kinds, *["object", "array", "object", "array", "anyOf", "tuple"] * (depth > 0)]
    )
    low = dice.randint(-2000, 2000)
    if kind == "enum":
        return {"enum": dice.sample(VALUES, dice.randint(1, 5))}
    if kind == "range":
        if dice.random() < 0.5:
            return {
                "type": "integer",
                "minimum": low,
                "exclusiveMaximum": low + dice.randint(3, 3000),
            }
        return {
            "type": "number",
            "exclusiveMinimum": low / 4,
            "maximum": low / 4 + dice.randint(1, 300),
        }
    if kind == "length":
        least = dice.randint(0, 5)
        return {"type": "string", "minLength": least, "maxLength": least + dice.randint(0, 20)}
    if kind == "pattern":
        return {"type": "string", "pattern": dice.choice(PATTERNS)}
    if kind == "anyOf":
        return {"anyOf": [random_schema(dice, depth - 1) for _ in range(dice.randint(2, 3))]}
    if kind == "tuple":
        first = [random_schema(dice, depth - 1) for _ in range(dice.randint(1, 3))]
        return {"type": "array", "prefixItems": first, "items": False}
    if kind == "array":
        least = dice.randint(0, 2)
        items = random_schema(dice, depth - 1)
        return {
            "type": "array",
            "items": items,
            "minItems": least,
            "maxItems": least + dice.randint(1, 4),
        }
    if kind == "object":
        names = dice.sample(NAMES, dice.randint(1, 5))
        properties = {name: random_schema(dice, depth - 1) for name in names}
        schema = {"type": "object", "properties": properties}
        schema["required"] = [name for name in names if dice.random() < 0.6]
        return schema | dice.choice([{}, {}, {"additionalProperties": False}])
    return {"type": kind}


CAUSES = [  # (who allows it, what the end of the text with the token looks like, why)
    ("ours", rb"\\[^\n]*$", "xgrammar has no escapes in strings with a length"),
    ("theirs", rb"[\x00-\x1f]", "xgrammar allows raw control characters in strings with a length"),
    ("theirs", rb"\\u[dD][89a-fA-F]?", "xgrammar allows halves of surrogate pairs"),
    ("theirs", rb"\xed([\xa0-\xbf]|$)", "xgrammar allows halves of surrogate pairs"),
    ("theirs", rb"[eE][+-]?\d{3,}|\d{16,}", "xgrammar has no limit on digits"),
]


def cause(text: bytes, token: bytes, who: str) -> str | None:
    """Why only one of both allows a token behind a text; None if no cause is known."""
    end = (text + token)[-120:]
    fitting = (why for side, mark, why in CAUSES if side == who and re.search(mark, end))
    return next(fitting, None)


def bits(bitmask, size: int) -> np.ndarray:
    return np.unpackbits(bitmask.numpy().view(np.uint8), bitorder="little")[:size].astype(bool)


def measure(tokenizer, schemas: int, steps: int, seed: int) -> dict:
    """Walk over random schemas with both; times in seconds, and the differences."""
    dice, size = random.Random(seed), tokenizer.vocab_size
    special = set(tokenizer.specials.values())
    # xgrammar takes an empty text for a special token
    vocabulary = [b"" if id in special else tokenizer.token_bytes[id] for id in range(size)]
    info = xgrammar.TokenizerInfo(
        vocabulary,
        xgrammar.VocabType.RAW,
        vocab_size=size,
        stop_token_ids=sorted(tokenizer.stop_ids),
    )
    compiler = xgrammar.GrammarCompiler(info, max_threads=1, cache_enabled=False)
    bitmask = xgrammar.allocate_token_bitmask(1, size)
    times = {name: [] for name in ("compile", "first", "again", "their compile", "theirs")}
    found = {"states": 0, "equal": 0, "documents": 0, "causes": Counter(), "unexplained": []}

    def timed(name, function, *arguments):
        start = time.perf_counter()
        result = function(*arguments)
        times[name].append(time.perf_counter() - start)
        return result

    for _ in range(schemas):
        schema = random_schema(dice)
        ours = TokenMasks(tokenizer, timed("compile", JsonSchema, schema), canonical=False)
        grammar = timed(
            "their compile",
            lambda text: compiler.compile_json_schema(text, any_whitespace=False),
            json.dumps(schema),
        )
        matcher, state, text = xgrammar.GrammarMatcher(grammar), ours.start, b""
        for _ in range(steps):
            timed("theirs", matcher.fill_next_token_bitmask, bitmask)
            known = state in ours.masks
            mine = timed("again" if known else "first", ours.mask, state).numpy()
            timed("again", ours.mask, state)
            theirs = bits(bitmask, size)
            found["states"] += 1
            found["equal"] += bool((mine == theirs).all())
            why, sides = Counter(), {True: "ours", False: "theirs"}
            for id in np.flatnonzero(mine != theirs):
                why[reason := cause(text, vocabulary[id], sides[mine[id]])] += 1
                if reason is None:
                    found["unexplained"].append(
                        (schema, text[-60:], vocabulary[id], bool(mine[id]))
                    )
            found["causes"].update(dict.fromkeys(why, 1))
            both = np.flatnonzero(mine & theirs).tolist()
            stops = [id for id in both if id in tokenizer.stop_ids]
            tokens = [id for id in both if id not in tokenizer.stop_ids]
            if stops and (not tokens or dice.random() < 0.3):
                jsonschema.Draft202012Validator(schema).validate(json.loads(text))
                found["documents"] += 1
                break
            if not tokens:
                break
            close = [id for id in tokens if vocabulary[id][:1] in b'",]}']
            id = dice.choice(close if close and dice.random() < 0.25 else tokens)
            assert matcher.accept_token(id)
            state, text = ours.step(state, id), text + vocabulary[id]
    return {**found, "times": times}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--schemas", type=int, default=200)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    tokenizer = Tokenizer.from_file(hub.fetch("llama-3.1-tokenizer"))
    start = time.perf_counter()
    TokenMasks(tokenizer, JsonSchema(True))
    trie = time.perf_counter() - start
    found = measure(tokenizer, args.schemas, args.steps, args.seed)
    print(
        f"{tokenizer.vocab_size:,} tokens, trie once {trie:.1f} s; xgrammar {version('xgrammar')}\n"
    )
    print(f"{'milliseconds':32} {'median':>8} {'99 %':>8}")
    rows = {
        "compile": "our compilation",
        "their compile": "xgrammar's compilation",
        "first": "our mask, first visit",
        "again": "our mask, later visits",
        "theirs": "xgrammar's mask",
    }
    figures = {}
    for name, title in rows.items():
        values = sorted(found["times"][name])
        figures[title] = [
            1e3 * statistics.median(values),
            1e3 * values[int(0.99 * (len(values) - 1))],
        ]
        print(f"{title:32} {figures[title][0]:8.3f} {figures[title][1]:8.3f}")
    print(
        f"\n{found['equal']} of {found['states']} masks are equal; {found['documents']} documents, all valid"
    )
    for reason, count in found["causes"].most_common():
        print(f"{count:6} masks: {reason or 'NO CAUSE KNOWN'}")
    for each in found["unexplained"][:20]:
        print("   ", *each)
    if args.json:
        kept = {key: found[key] for key in ("states", "equal", "documents")}
        causes = {str(reason): count for reason, count in found["causes"].items()}
        text = json.dumps({"milliseconds": figures, **kept, "causes": causes}, indent=1)
        args.json.write_text(text + "\n", encoding="utf-8")
    if found["unexplained"]:
        raise SystemExit(f"{len(found['unexplained'])} differences have no known cause")


if __name__ == "__main__":
    main()
