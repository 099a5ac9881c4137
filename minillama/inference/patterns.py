"""10a. Constrained decoding: output that always parses.

Written by notebooks/10a_constrained.ipynb: edit it there.
"""

from functools import lru_cache

from minillama.inference.automata import Automaton, Byte, OneOf, Repeat, Sequence, literal


TOP = 0x10FFFF


def spans(low: bytes, high: bytes, least=0x80, most=0xBF) -> list:
    """Sequences of byte ranges that make up all texts from low to high, two of the same length;
    bytes behind the first go from `least` to `most`.
    """
    if not low:
        return [()]
    first, last, tail = low[0], high[0], len(low) - 1
    lowest, highest = bytes([least]) * tail, bytes([most]) * tail
    if first == last:
        return [((first, first), *rest) for rest in spans(low[1:], high[1:], least, most)]
    found = []
    if low[1:] != lowest:
        found += [((first, first), *rest) for rest in spans(low[1:], highest, least, most)]
        first += 1
    if high[1:] != highest:
        found += [((last, last), *rest) for rest in spans(lowest, high[1:], least, most)]
        last -= 1
    return found + ([((first, last), *[(least, most)] * tail)] if first <= last else [])


SURROGATES = (0xD800, 0xDFFF)
ENDS = (0x7F, 0x7FF, 0xFFFF, TOP)  # the last characters of one, two, three and four bytes in UTF-8


def without(ranges, gone) -> list:
    """Ranges of characters without those of others, in order."""
    for low, high in gone:
        left = [(a, min(b, low - 1)) for a, b in ranges] + [
            (max(a, high + 1), b) for a, b in ranges
        ]
        ranges = sorted({(a, b) for a, b in left if a <= b})
    return ranges


@lru_cache(maxsize=4096)
def from_to(low: int, high: int) -> Byte:
    """One byte from low to high."""
    return Byte(frozenset(range(low, high + 1)))


def utf8(ranges):
    """One character out of the ranges, as the bytes of UTF-8."""
    options, single = [], set()
    for low, high in without(ranges, [SURROGATES]):
        for end in ENDS:
            if low <= min(high, end):
                found = spans(chr(low).encode(), chr(min(high, end)).encode())
                single.update(*(range(s[0][0], s[0][1] + 1) for s in found if len(s) == 1))
                options += [s for s in found if len(s) > 1]
                low = end + 1
    parts = [Byte(frozenset(single))] if single else []
    parts += [Sequence(tuple(from_to(a, b) for a, b in s)) for s in options]
    return parts[0] if len(parts) == 1 else OneOf(tuple(parts))


DIGIT, SPACE = [(48, 57)], [(9, 13), (32, 32)]
WORD = [(48, 57), (65, 90), (95, 95), (97, 122)]
NEWLINES = [(10, 10), (13, 13), (0x2028, 0x2029)]
CLASSES = {"d": DIGIT, "w": WORD, "s": SPACE}
CONTROLS = {"n": 10, "r": 13, "t": 9, "f": 12, "v": 11, "0": 0}
MAX_COUNT = 10_000


class Parser:
    """A regular expression -> an expression; `spell` says how a set of characters is written."""

    def __init__(self, pattern: str, spell=utf8):
        self.text, self.at, self.spell = pattern, 0, spell

    def error(self, what) -> ValueError:
        return ValueError(f"the regular expression {self.text!r} at character {self.at}: {what}")

    def take(self, wanted: str) -> bool:
        """Whether this comes next; if so, it is taken."""
        found = self.text.startswith(wanted, self.at)
        self.at += len(wanted) * found
        return found

    def char(self, of: str) -> str:
        """The next character, which belongs to `of`."""
        if self.at == len(self.text):
            raise self.error(f"it ends within {of}")
        self.at += 1
        return self.text[self.at - 1]

    def parse(self, search=False):
        """All of it. search: the text may have more before and behind where no ^ or $ forbids
        it.
        """
        options = [self.branch(search)]
        while self.take("|"):
            options.append(self.branch(search))
        if self.at < len(self.text):
            raise self.error("this ) closes nothing")
        return OneOf(tuple(options))

    def branch(self, search):
        """One of the alternatives of the whole, with its anchors."""
        more = Repeat(self.spell([(0, TOP)]))
        before = () if self.take("^") or not search else (more,)
        parts = self.sequence()
        behind = () if self.take("$") or not search else (more,)
        if self.text[self.at : self.at + 1] not in ("", "|", ")"):
            raise self.error("$ is known only at the end of an alternative")
        return Sequence((*before, parts, *behind))

    def sequence(self):
        """Parts one after the other."""
        parts = []
        while self.text[self.at : self.at + 1] not in ("", "|", ")", "$"):
            parts.append(self.repeated())
        return Sequence(tuple(parts))

    def group(self):
        """What stands between ( and )."""
        if self.take("?") and not self.take(":"):
            raise self.error("of the groups that start with ?, only (?: is known")
        options = [self.sequence()]
        while self.take("|"):
            options.append(self.sequence())
        if not self.take(")"):
            raise self.error("a ( is not closed, or holds an anchor")
        return OneOf(tuple(options))

    def repeated(self):
        """An item and how often it comes."""
        item, marks = self.item(), {"*": (0, None), "+": (1, None), "?": (0, 1)}
        while (mark := self.text[self.at : self.at + 1]) and mark in "*+?{":
            self.at += 1
            least, most = marks.get(mark) or self.counts()
            if self.take("?"):
                pass  # as few as possible or as many: the same texts
            elif self.text[self.at : self.at + 1] == "+":
                raise self.error("a possessive repetition is not known")
            item = Repeat(item, least, most)
        return item

    def counts(self) -> tuple:
        """The numbers of {3}, {3,} or {3,5}."""
        text = ""
        while not self.take("}"):
            text += self.char("a repetition")
        least, comma, most = text.partition(",")
        if not least.isdecimal() or not (most.isdecimal() or most == ""):
            raise self.error("a repetition is {3}, {3,} or {3,5}; write a brace as \\{")
        least, most = int(least), int(most) if most else (None if comma else int(least))
        if max(least, most or 0) > MAX_COUNT or (most is not None and most < least):
            raise self.error(f"a repetition goes upwards, and to {MAX_COUNT:,} at most")
        return least, most

    def item(self):
        """A group, a set or one character."""
        if self.take("("):
            return self.group()
        if self.take("["):
            return self.spell(self.set())
        if self.take("."):
            return self.spell(without([(0, TOP)], NEWLINES))
        char = self.char("a character")
        if char in "*+?{^":
            raise self.error(f"{char!r} has nothing to stand for here; write \\{char}")
        return self.spell(self.escape() if char == "\\" else [(ord(char), ord(char))])

    def escape(self) -> list:
        """The characters that a backslash and what follows it mean."""
        char = self.char("an escape")
        if char.lower() in CLASSES:
            ranges = CLASSES[char.lower()]
            return ranges if char.islower() else without([(0, TOP)], ranges)
        if char in CONTROLS:
            return [(CONTROLS[char], CONTROLS[char])]
        if char in "xu":
            digits = "".join(self.char("an escape") for _ in range(2 if char == "x" else 4))
            if not set(digits) <= set("0123456789abcdefABCDEF"):
                raise self.error(f"\\{char} takes hexadecimal digits")
            return [(int(digits, 16), int(digits, 16))]
        if char.isalnum():
            raise self.error(f"\\{char} is not known")
        return [(ord(char), ord(char))]

    def set(self) -> list:
        """What stands between [ and ]."""
        others, ranges = self.take("^"), []
        while not self.take("]"):
            low = self.member()
            if self.text[self.at : self.at + 1] == "-" and self.text[self.at + 1 :][:1] != "]":
                self.at += 1
                high = self.member()
                if len(low) + len(high) > 2 or low[0][0] != low[0][1] or low > high:
                    raise self.error("a range goes from one character up to another")
                low = [(low[0][0], high[0][1])]
            ranges += low
        return without([(0, TOP)], ranges) if others else sorted(ranges)

    def member(self) -> list:
        """One character of a set, or a class such as \\d."""
        char = self.char("a set")
        return self.escape() if char == "\\" else [(ord(char), ord(char))]


class Regex(Automaton):
    """Texts that match a regular expression from beginning to end.

    Known: characters, . [] | () (?:) * + ? {m,n}, \\d \\w \\s (of ASCII) and their capitals, and
    ^ and $ at the ends. ValueError for anything else.
    """

    def __init__(self, pattern: str):
        super().__init__(Parser(pattern).parse())


class Choice(Automaton):
    """One of some texts."""

    def __init__(self, options):
        options = [options] if isinstance(options, str) else list(options)
        if not options or not all(isinstance(option, str) for option in options):
            raise ValueError("Choice takes one or more texts")
        super().__init__(OneOf(tuple(literal(option) for option in options)))
