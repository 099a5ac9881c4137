"""10a. Constrained decoding: output that always parses.

Written by notebooks/10a_constrained.ipynb: edit it there.
"""

import json
from fractions import Fraction
from functools import cache, lru_cache
from math import ceil, floor

from minillama.inference.automata import (
    Automaton,
    Both,
    Byte,
    OneOf,
    Repeat,
    Rule,
    Sequence,
    literal,
)
from minillama.inference.patterns import TOP, Parser, from_to, spans, utf8, without


SPECIAL = {34: '\\"', 92: "\\\\", 8: "\\b", 12: "\\f", 10: "\\n", 13: "\\r", 9: "\\t"}
NOTHING = OneOf(())


def spell_json(ranges):
    """One character out of the ranges as `json.dumps` writes it within a string."""
    must = [*range(32), 34, 92]  # cannot stand for themselves
    plain = utf8(without(ranges, [(code, code) for code in must]))
    inside = [code for code in must if any(low <= code <= high for low, high in ranges)]
    return OneOf((plain, *[literal(SPECIAL.get(code, f"\\u{code:04x}")) for code in inside]))


HEX = r"[0-9a-fA-F]"
PAIR = rf"\\u[dD][89abAB]{HEX}{{2}}\\u[dD][c-fC-F]{HEX}{{2}}"  # halves come in pairs, or not at all
SINGLE = rf"\\u([0-9a-cefA-CEF]{HEX}{{3}}|[dD][0-7]{HEX}{{2}})"
CHARACTER = rf'[^"\\\x00-\x1f]|\\["\\/bfnrt]|{SINGLE}|{PAIR}'
DIGITS = 15  # of a number: as many as a float64 keeps
NUMBER = r"-?(0|[1-9]\d{0,14})(\.\d{1,15})?([eE][+-]?\d{1,2})?"
INTEGER = r"0|-?[1-9]\d{0,17}"  # fits in 64 bits
DECIMALS = 6  # of a number within bounds, unless a bound has more
DATE = (
    r"\d{4}-((0[13578]|1[02])-(0[1-9]|[12]\d|3[01])|(0[469]|11)-(0[1-9]|[12]\d|30)"
    r"|02-(0[1-9]|1\d|2[0-8]))"
)
TIME = r"([01]\d|2[0-3]):[0-5]\d:[0-5]\d(\.\d{1,6})?(Z|[+-]([01]\d|2[0-3]):[0-5]\d)"
UUID = "-".join(f"[0-9a-f]{{{n}}}" for n in (8, 4, 4, 4, 12))
FORMATS = {"date": DATE, "time": TIME, "date-time": f"{DATE}T{TIME}", "uuid": UUID}

BOUNDS = ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum")
KEYWORDS = {  # type -> the keywords that speak of it
    "object": ("properties", "required", "additionalProperties"),
    "array": ("items", "prefixItems", "minItems", "maxItems"),
    "string": ("minLength", "maxLength", "pattern", "format"),
    "number": BOUNDS,
    "integer": BOUNDS,
    "boolean": (),
    "null": (),
}
GENERAL = ("type", "enum", "const", "anyOf", "allOf", "$ref")
SILENT = "title description default examples deprecated readOnly writeOnly $comment $schema $defs"
SILENT = frozenset([*SILENT.split(), "definitions"])  # they allow and forbid nothing
KNOWN = SILENT.union(GENERAL, *KEYWORDS.values())
TOGETHER = ({"properties", "additionalProperties"}, {"items", "prefixItems"})


@cache
def parsed(pattern: str):
    """The expression of a pattern, parsed at its first use."""
    return Parser(pattern).parse()


@cache
def any_character():
    """Any one character, as `json.dumps` writes it within a string."""
    return spell_json([(0, TOP)])


def dumps(value) -> str:
    """The one text that we write for a value; ValueError for one that JSON does not have."""

    def plain(value):  # 1.0 is 1
        if isinstance(value, float) and value.is_integer() and abs(value) < 2**53:
            return int(value)
        if isinstance(value, dict):
            return {key: plain(each) for key, each in value.items()}
        return [plain(each) for each in value] if isinstance(value, list) else value

    return json.dumps(plain(value), ensure_ascii=False, allow_nan=False)


def between(low: Fraction, high: Fraction, places: int, longest: int) -> list:
    """Numbers from low to high, 0 <= low, with exactly so many decimals and at most `longest`
    digits.
    """
    low, high, options = ceil(low * 10**places), floor(high * 10**places), []
    for digits in range(places + 1, longest + 1):
        first = max(low, 10 ** (digits - 1) if digits > places + 1 else 0)
        last = min(high, 10**digits - 1)
        if first <= last:
            ends = (str(each).zfill(digits).encode() for each in (first, last))
            for span in spans(*ends, *b"09"):
                parts = [from_to(*each) for each in span]
                if places:
                    parts.insert(digits - places, literal("."))
                options.append(Sequence(tuple(parts)))
    return options


class Compiler:
    """A schema -> an expression. whitespace: how many spaces or newlines may stand between parts;
    None: none but those of `json.dumps`.
    """

    def __init__(self, root, whitespace=None):
        self.root, self.rules = root, {}
        gap = Sequence(())
        self.comma, self.colon = literal(", "), literal(": ")
        if whitespace is not None:
            gap = Repeat(Byte(frozenset(b" \n")), 0, whitespace)
            self.comma = Sequence((gap, literal(","), gap))
            self.colon = Sequence((gap, literal(":"), gap))
        self.gap = gap

    def error(self, where, what) -> ValueError:
        return ValueError(f"schema at {where}: {what}")

    def compile(self, schema, where="#"):
        """What a schema allows. ValueError names what it holds that is not known here."""
        if isinstance(schema, bool):
            return self.value() if schema else NOTHING
        if not isinstance(schema, dict):
            raise self.error(where, f"a schema is an object, true or false, not {schema!r:.60}")
        if unknown := sorted(str(key) for key in schema if key not in KNOWN):
            raise self.error(where, f"the keyword {unknown[0]!r} is not supported")
        schema = {key: value for key, value in schema.items() if key not in SILENT}
        if "$ref" in schema:
            return self.reference(schema, where)
        for part in self.several(schema.pop("allOf", None), "allOf", where):
            schema = self.merge(schema, part, where)
        if "$ref" in schema:
            return self.reference(schema, where)
        if "anyOf" in schema:
            options = self.several(schema.pop("anyOf"), "anyOf", where)
            merged = [self.merge(schema, option, where) for option in options]
            return OneOf(
                tuple(self.compile(each, f"{where}/anyOf/{i}") for i, each in enumerate(merged))
            )
        if "enum" in schema or "const" in schema:
            return self.values(schema, where)
        return OneOf(
            tuple(getattr(self, type)(schema, where) for type in self.types(schema, where))
        )

    def several(self, schemas, keyword, where) -> list:
        """The schemas of anyOf or allOf."""
        if schemas is None:
            return []
        if not isinstance(schemas, list) or not schemas:
            raise self.error(where, f"{keyword} takes a list of schemas")
        return schemas

    def merge(self, schema, other, where):
        """One schema for what satisfies both."""
        if isinstance(other, bool) or not schema:
            return schema if other is True else other
        if not isinstance(other, dict):
            raise self.error(where, f"a schema is an object, true or false, not {other!r:.60}")
        other, merged = {k: v for k, v in other.items() if k not in SILENT}, dict(schema)
        both = schema.keys() | other.keys()
        if "$ref" in both and schema and other:
            raise self.error(where, "$ref beside other keywords is not supported")
        for group in TOGETHER:
            if group & schema.keys() and group & other.keys():
                names = " and ".join(sorted(group & both))
                raise self.error(where, f"{names} from several schemas are not supported")
        for key, value in other.items():
            if key == "required" and key in schema:
                value = [*schema[key], *(name for name in value if name not in schema[key])]
            elif key == "type" and key in schema:
                value = [
                    each for each in self.types(other, where) if each in self.types(schema, where)
                ]
            elif key in schema and schema[key] != value:
                raise self.error(where, f"{key!r} from several schemas is not supported")
            merged[key] = value
        return merged

    def types(self, schema, where) -> list:
        """The types that a schema allows; where it names none, those of which it speaks."""
        spoken = [type for type, words in KEYWORDS.items() if not schema.keys().isdisjoint(words)]
        types = schema.get("type", spoken or list(KEYWORDS))
        types = [types] if isinstance(types, str) else types
        if not isinstance(types, list) or not all(
            isinstance(t, str) and t in KEYWORDS for t in types
        ):
            raise self.error(
                where, f"type is one or more of {', '.join(KEYWORDS)}, not {types!r:.60}"
            )
        return [type for type in types if type != "integer" or "number" not in types]

    def reference(self, schema, where):
        """$ref: a rule by the place that it names, made once, so that it may contain itself."""
        target = schema["$ref"]
        if len(schema) > 1:
            raise self.error(where, "$ref beside other keywords is not supported")
        if not isinstance(target, str) or not (target == "#" or target.startswith("#/")):
            raise self.error(
                where, f"$ref leads to a place in the schema, #/..., not {target!r:.60}"
            )
        if target not in self.rules:
            self.rules[target] = NOTHING
            found = self.root
            for step in target.split("/")[1:]:
                step = step.replace("~1", "/").replace("~0", "~")
                key = int(step) if isinstance(found, list) and step.isdecimal() else step
                try:
                    found = found[key]
                except (KeyError, IndexError, TypeError):
                    raise self.error(where, f"$ref leads to {target}, which is not there") from None
            self.rules[target] = self.compile(found, target)
        return Rule(self.rules, target)

    def value(self):
        """Any value: the rule that mentions itself."""
        if "value" not in self.rules:
            self.rules["value"] = NOTHING
            self.rules["value"] = self.compile({})
        return Rule(self.rules, "value")

    def values(self, schema, where):
        """enum and const: their values that the other keywords allow, too."""
        values = schema["enum"] if "enum" in schema else [schema["const"]]
        if not isinstance(values, list):
            raise self.error(where, "enum takes a list of values")
        try:
            texts = [dumps(value) for value in values]
            if "const" in schema:
                texts = [text for text in texts if text == dumps(schema["const"])]
            options = [literal(text) for text in texts]
        except ValueError as error:
            raise self.error(where, f"a value that JSON cannot hold: {error}") from None
        rest = {key: each for key, each in schema.items() if key not in ("enum", "const")}
        if rest:
            try:
                fits = Automaton(Compiler(self.root).compile(rest, where)).matches
            except ValueError as error:
                if "schema at" in str(error):
                    raise
                return NOTHING
            options = [option for option, text in zip(options, texts, strict=True) if fits(text)]
        return OneOf(tuple(options))

    def count(self, schema, key, where, default=None):
        """A number of things, from 0 on."""
        value = schema.get(key, default)
        if value is not None and (isinstance(value, bool) or value != floor_of(value) or value < 0):
            raise self.error(where, f"{key} is a whole number from 0 on, not {value!r:.60}")
        return value if value is None else int(value)

    def null(self, schema, where):
        return literal("null")

    def boolean(self, schema, where):
        return OneOf((literal("true"), literal("false")))

    def string(self, schema, where):
        """A string: free, of some length, of a pattern."""
        least, most = (
            self.count(schema, "minLength", where, 0),
            self.count(schema, "maxLength", where),
        )
        pattern = schema.get("pattern")
        if (format := schema.get("format")) is not None:
            if format not in FORMATS or pattern is not None:
                raise self.error(
                    where,
                    f"format is one of {', '.join(FORMATS)} without pattern, not {format!r:.60}",
                )
            pattern = f"^({FORMATS[format]})$"
        if most is not None and most < least:
            return NOTHING
        if pattern is None:
            return self.quoted(Repeat(parsed(CHARACTER), least, most))
        if not isinstance(pattern, str):
            raise self.error(where, f"pattern is a string, not {pattern!r:.60}")
        try:
            text = Parser(pattern, spell_json).parse(search=True)
            if least or most is not None:
                text = Both(Automaton(text), Automaton(Repeat(any_character(), least, most)))
        except ValueError as error:
            raise self.error(where, error) from None
        return self.quoted(text)

    def quoted(self, text):
        return Sequence((literal('"'), text, literal('"')))

    def bounds(self, schema, where) -> tuple:
        """(low, high, whether each is itself out), as fractions or None."""
        found = {}
        for key in BOUNDS:
            value = schema.get(key)
            if value is not None and (
                isinstance(value, bool) or not isinstance(value, int | float)
            ):
                raise self.error(where, f"{key} is a number, not {value!r:.60}")
            try:
                found[key] = None if value is None else Fraction(str(value))
            except ValueError:
                raise self.error(where, f"{key} is a number, not {value!r:.60}") from None
        low, high = found["minimum"], found["maximum"]
        above, below = found["exclusiveMinimum"], found["exclusiveMaximum"]
        out = [
            above is not None and (low is None or above >= low),
            below is not None and (high is None or below <= high),
        ]
        return (above if out[0] else low), (below if out[1] else high), *out

    def integer(self, schema, where):
        return self.numbers(schema, where, 0, parsed(INTEGER), 18)

    def number(self, schema, where):
        return self.numbers(schema, where, DECIMALS, parsed(NUMBER), DIGITS)

    def numbers(self, schema, where, decimals, free, digits):
        """Numbers: free, or between bounds with up to so many decimals."""
        low, high, low_out, high_out = self.bounds(schema, where)
        if low is None and high is None:
            return free
        given = [each for each in (low, high) if each is not None]
        longest = max(len(str(abs(floor(each)))) for each in given)
        digits = max(digits, longest)
        if digits > 400:
            raise self.error(where, "a bound has more than 400 digits")
        if decimals:
            decimals = min(max(decimals, *(places(each) for each in given)), digits - longest)
        least = Fraction(-(10**digits)) if low is None else low
        most = Fraction(10**digits) if high is None else high
        options = []
        for count in range(decimals + 1):
            unit = Fraction(1, 10**count)
            a = (floor(least / unit) + 1) * unit if low_out else ceil(least / unit) * unit
            b = (ceil(most / unit) - 1) * unit if high_out else floor(most / unit) * unit
            options += between(max(a, Fraction(0)), b, count, digits)
            negative = between(max(-b, unit), -a, count, digits)
            options += [Sequence((literal("-"), each)) for each in negative]
        return OneOf(tuple(options))

    def array(self, schema, where):
        """An array: prefixItems first, then items."""
        least, most = (
            self.count(schema, "minItems", where, 0),
            self.count(schema, "maxItems", where),
        )
        first = self.several(schema.get("prefixItems"), "prefixItems", where)
        items = schema.get("items", not first or least > len(first))
        first = [self.compile(each, f"{where}/prefixItems/{i}") for i, each in enumerate(first)]
        if most is not None and most < least:
            return NOTHING
        item, n = self.compile(items, f"{where}/items"), len(first)
        left = None if most is None else max(most - n, 0)
        rest = Repeat(Sequence((self.comma, item)), max(least - n, 0), left)
        if not n and most != 0:
            fewer = Repeat(rest.item, max(least - 1, 0), None if most is None else most - 1)
            rest = self.optional(Sequence((item, fewer)), least == 0)
        for i in reversed(range(n)):
            here = Sequence((self.comma if i else Sequence(()), first[i], rest))
            rest = self.optional(here, i >= least) if most is None or i < most else Sequence(())
        return Sequence((literal("["), self.gap, rest, self.gap, literal("]")))

    def optional(self, expression, may_lack):
        return OneOf((expression, Sequence(()))) if may_lack else expression

    def object(self, schema, where):
        """An object: the declared properties in their order, then others if additionalProperties
        says so.
        """
        properties, required = schema.get("properties", {}), schema.get("required", [])
        if not isinstance(properties, dict) or not isinstance(required, list):
            raise self.error(where, "properties is an object of schemas, required a list of names")
        if not all(isinstance(name, str) for name in required):
            raise self.error(where, "required is a list of names")
        others = schema.get("additionalProperties", not properties)
        unnamed = schema.get("additionalProperties", True)
        every = {**properties, **{name: unnamed for name in required if name not in properties}}
        parts = {
            name: self.compile(each, f"{where}/properties/{name}") for name, each in every.items()
        }
        ends = {
            False: Sequence(()),
            True: Sequence(()),
        }  # what follows, if nothing or something is before
        if others is not False:
            name = self.quoted(other_than(frozenset(every)) if every else Repeat(parsed(CHARACTER)))
            other = Sequence(
                (name, self.colon, self.compile(others, f"{where}/additionalProperties"))
            )
            more = Repeat(Sequence((self.comma, other)))
            ends = {False: self.optional(Sequence((other, more)), True), True: more}
        for name, part in reversed(parts.items()):
            pair = Sequence((literal(dumps(name)), self.colon, part, ends[True]))
            taken = {False: pair, True: Sequence((self.comma, pair))}
            ends = {
                c: OneOf((taken[c], *[ends[c]] * (name not in required))) for c in (False, True)
            }
        return Sequence((literal("{"), self.gap, ends[False], self.gap, literal("}")))


def floor_of(value):
    """The whole number below, or None for what is no number."""
    return floor(value) if isinstance(value, int | float) and abs(value) < 1e18 else None


def places(value: Fraction) -> int:
    """How many decimals a decimal fraction has."""
    count = 0
    while (value * 10**count).denominator != 1:
        count += 1
    return count


@lru_cache(maxsize=256)
def other_than(names: frozenset):
    """The inside of any string but these."""
    firsts = sorted({name[0] for name in names if name})
    codes = [(ord(char), ord(char)) for char in firsts]
    options = [Sequence((spell_json(without([(0, TOP)], codes)), Repeat(any_character())))]
    for char, code in zip(firsts, codes, strict=True):
        tails = frozenset(name[1:] for name in names if name.startswith(char))
        options.append(Sequence((spell_json([code]), other_than(tails))))
    return OneOf((*options, *[Sequence(())] * ("" not in names)))


def compiled(schema, whitespace=None):
    """The expression of a schema; ValueError also for one that is nested too deep to be read."""
    if whitespace is not None and (
        isinstance(whitespace, bool) or not isinstance(whitespace, int) or whitespace < 0
    ):
        raise ValueError(f"whitespace is None or a whole number from 0 on, not {whitespace!r}")
    try:
        return Compiler(schema, whitespace).compile(schema)
    except RecursionError:
        raise ValueError("the schema is nested too deep") from None


class JsonSchema(Automaton):
    """JSON that fits a schema: a dict, True or False. ValueError names a keyword that is not
    supported.

    Everything that it allows fits; it does not allow everything that fits. Properties come in the
    order of their declaration; undeclared ones only if additionalProperties asks for them. White
    space is that of `json.dumps`, or up to `whitespace` spaces or newlines wherever JSON has room.
    """

    def __init__(self, schema, whitespace: int | None = None):
        super().__init__(compiled(schema, whitespace))


class ToolCalls(Automaton):
    """A call of one of the functions, {"name", "parameters": a schema}, as chapter 10 writes it."""

    def __init__(self, functions, form="json"):
        options = []
        for function in functions:
            name = function["name"]
            arguments = compiled({"type": "object", **function.get("parameters", {})})
            call = f'{{"type": "function", "name": {dumps(name)}, "parameters": ', "}"
            before, behind = call if form == "json" else (f"<function={name}>", "</function>")
            options.append(Sequence((literal(before), arguments, literal(behind))))
        super().__init__(OneOf(tuple(options)))
