"""10a. Constrained decoding: output that always parses.

Written by notebooks/10a_constrained.ipynb: edit it there.
"""

from dataclasses import dataclass, field
from functools import cached_property
from math import inf

import numpy as np


MAX_STATES = 50_000  # of an automaton, a kilobyte each, before it forgets them and starts anew
MAX_DEPTH = 64  # rules within rules: as deep as an answer may nest
MAX_OPEN = 10_000  # ways of reading the same text that are followed at once


@dataclass(frozen=True, eq=False)
class Byte:
    """One byte out of a set."""

    allowed: frozenset


@dataclass(frozen=True, eq=False)
class Sequence:
    """One part after the other."""

    parts: tuple


@dataclass(frozen=True, eq=False)
class OneOf:
    """Any one of the options; with none, nothing matches."""

    options: tuple


@dataclass(frozen=True, eq=False)
class Repeat:
    """The item at least so often and, unless it is None, at most so often."""

    item: object
    least: int = 0
    most: int | None = None
    one_less: list = field(default_factory=list)  # the repetition behind the first item, once made

    def rest(self) -> "Repeat":
        """What may follow when one item is there; the same object each time."""
        if self.least == 0 and self.most is None:
            return self
        if not self.one_less:
            most = None if self.most is None else self.most - 1
            self.one_less.append(Repeat(self.item, max(self.least - 1, 0), most))
        return self.one_less[0]


@dataclass(frozen=True, eq=False)
class Rule:
    """What a name stands for, looked up when it is needed: it may mention itself."""

    rules: dict
    name: str


def literal(text: str | bytes) -> Sequence:
    """Exactly this text."""
    data = text.encode() if isinstance(text, str) else text
    return Sequence(tuple(Byte(frozenset([byte])) for byte in data))


class Stack:
    """What must still come: this expression, then the rest, a Stack or None. depth: rules around
    it.
    """

    __slots__ = ("depth", "rest", "top")

    def __init__(self, top, rest, depth):
        self.top, self.rest, self.depth = top, rest, depth


DEAD = frozenset()  # the state after a byte that nothing allows


class Automaton:
    """The states of an expression and the step of each byte, made when first needed.

    A state is the set of stacks that could be the truth after the bytes so far; None among them
    means that the text may end here. No state but DEAD is a dead end. ValueError if no text
    matches.
    """

    def __init__(self, expression):
        self.heights = heights(expression)
        if self.heights[expression] > MAX_DEPTH:
            raise ValueError("nothing can satisfy this constraint")
        self.forget()
        self.start = self.open([self.push(expression, None, 0)])

    def forget(self):
        """Empty the tables; states that someone holds stay valid."""
        self.stacks, self.numbers, self.states = {}, {DEAD: 0}, [DEAD]
        self.table = np.zeros((64, 256), np.int32)  # (states, bytes) -> state
        self.filled = np.zeros(64, bool)
        self.filled[0] = True

    def push(self, top, rest, depth) -> Stack:
        """The stack with this on top of that; the same object each time."""
        key = (top, rest, depth)
        if key not in self.stacks:
            self.stacks[key] = Stack(top, rest, depth)
        return self.stacks[key]

    def open(self, stacks) -> frozenset:
        """The state of these stacks: each is opened until a byte, or nothing, is on top."""
        waiting, seen, state = list(stacks), set(), set()
        while waiting:
            stack = waiting.pop()
            if stack in seen:
                continue
            seen.add(stack)
            if stack is None or isinstance(stack.top, Byte):
                state.add(stack)
            else:
                waiting += self.opened(stack.top, stack.rest, stack.depth)
            if len(seen) > MAX_OPEN:
                raise ValueError(f"the constraint can be read in more than {MAX_OPEN} ways at once")
        return frozenset(state)

    def opened(self, top, rest, depth):
        """The stacks that one stands for, one step nearer to its bytes."""
        if isinstance(top, Sequence):
            for part in reversed(top.parts):
                rest = self.push(part, rest, depth)
            return [rest]
        if isinstance(top, OneOf):
            return [
                self.push(option, rest, depth) for option in top.options if self.fits(option, depth)
            ]
        if isinstance(top, Repeat):
            stacks = [rest] if top.least == 0 else []
            if top.most != 0 and self.fits(top.item, depth):
                stacks.append(self.push(top.item, self.push(top.rest(), rest, depth), depth))
            return stacks
        if isinstance(top, Rule):
            return [self.push(top.rules[top.name], rest, depth + 1)]
        return top.opened(self, rest, depth)

    def fits(self, expression, depth) -> bool:
        """Whether this can be completed, and without nesting too deep."""
        return depth + self.heights[expression] <= MAX_DEPTH

    def number(self, state: frozenset) -> int:
        """The row of a state in the table."""
        if state not in self.numbers:
            self.numbers[state] = len(self.states)
            self.states.append(state)
            if len(self.states) > len(self.table):
                self.table = np.concatenate([self.table, np.zeros_like(self.table)])
                self.filled = np.concatenate([self.filled, np.zeros_like(self.filled)])
        return self.numbers[state]

    def fill(self, numbers):
        """Compute the rows of these states that are not there yet."""
        for number in numbers[~self.filled[numbers]]:
            if not self.filled[number]:
                readers = [None] * 256  # which stacks take a byte
                stacks = [stack for stack in self.states[number] if stack is not None]
                for i, stack in enumerate(stacks):
                    for byte in stack.top.allowed:
                        readers[byte] = (readers[byte] or 0) | 1 << i
                steps = {}
                for byte, taken in enumerate(readers):
                    if taken is not None:
                        if taken not in steps:
                            left = [s.rest for i, s in enumerate(stacks) if taken >> i & 1]
                            steps[taken] = self.number(self.open(left))
                        self.table[number, byte] = steps[taken]
                self.filled[number] = True

    def row(self, state: frozenset) -> list:
        """The state behind each of the 256 bytes."""
        number = self.number(state)
        self.fill(np.array([number]))
        return [self.states[after] for after in self.table[number]]

    def step(self, state: frozenset, data: bytes) -> frozenset:
        """The state after more bytes; DEAD if they are not allowed."""
        number = self.number(state)
        for byte in data:
            if not self.filled[number]:
                self.fill(np.array([number]))
            number = self.table[number, byte]
        return self.states[number]

    def accepts(self, state: frozenset) -> bool:
        """Whether the text may end here."""
        return None in state

    def ends(self, state: frozenset) -> bool:
        """Whether the text must end here."""
        return state == {None}

    def matches(self, text: str | bytes) -> bool:
        """Whether a whole text is allowed."""
        data = text.encode() if isinstance(text, str) else text
        return self.accepts(self.step(self.start, data))

    def forced(self, state: frozenset, most=256) -> bytes:
        """The bytes that must come next, as long as there is no choice."""
        data = b""
        while len(data) < most and None not in state:
            row = self.row(state)
            open_bytes = [byte for byte, after in enumerate(row) if after]
            if len(open_bytes) > 1:
                break
            data += bytes(open_bytes)
            state = row[open_bytes[0]]
        return data


def heights(expression) -> dict:
    """How many rules must at least be opened one within the other to complete each expression; inf
    where it never ends.
    """
    found, waiting, order = {expression}, [expression], []
    while waiting:  # everything that is mentioned
        order.append(node := waiting.pop())
        new = [part for part in mentions(node) if part not in found and not found.add(part)]
        waiting += new
    table, changed = dict.fromkeys(order, inf), True
    while changed:  # from the parts to the whole, until nothing gets lower
        changed = False
        for node in reversed(order):
            height = height_of(node, table)
            changed |= height < table[node]
            table[node] = height
    return table


def mentions(node) -> tuple:
    """The expressions that one is made of."""
    if isinstance(node, Rule):
        return (node.rules[node.name],)
    if isinstance(node, Repeat):
        return (node.item,)
    return getattr(node, "parts", ()) or getattr(node, "options", ())


def height_of(node, table) -> float:
    """The height of one expression, given those of what it mentions."""
    if isinstance(node, Byte):
        return 0 if node.allowed else inf
    if isinstance(node, Sequence):
        return max((table[part] for part in node.parts), default=0)
    if isinstance(node, OneOf):
        return min((table[option] for option in node.options), default=inf)
    if isinstance(node, Repeat):
        return table[node.item] if node.least else 0
    if isinstance(node, Rule):
        return 1 + table[node.rules[node.name]]
    return 0 if node.alive() else inf


class Both:
    """What two automata without rules both match, from a state of each."""

    def __init__(self, first, second, at=None, known=None):
        self.first, self.second = first, second
        self.at = at or (first.start, second.start)
        self.known = {} if known is None else known  # at -> Both
        self.known[self.at] = self
        self.live = None
        self.may_end = None in self.at[0] and None in self.at[1]

    @cached_property
    def steps(self) -> list:
        """(bytes, the pair that they lead to)"""
        found = {}
        rows = [
            each.row(state) for each, state in zip((self.first, self.second), self.at, strict=True)
        ]
        for byte, pair in enumerate(zip(*rows, strict=True)):
            if DEAD not in pair:
                found.setdefault(pair, []).append(byte)
        pairs = [
            (self.known.get(at) or Both(self.first, self.second, at, self.known), each)
            for at, each in found.items()
        ]
        return [(Byte(frozenset(each)), pair) for pair, each in pairs]

    def alive(self) -> bool:
        """Whether an end can be reached. ValueError if that takes too many states to find out."""
        seen, waiting = {self}, [self]
        while waiting and self.live is None:
            here = waiting.pop()
            if here.may_end or here.live:
                self.live = True
            elif here.live is None:
                new = {pair for _, pair in here.steps} - seen
                seen |= new
                waiting += new
            if len(seen) > MAX_STATES:
                raise ValueError("two constraints on one text need too many states together")
        if self.live is None:
            for each in seen:
                each.live = False
        return self.live

    def opened(self, automaton, rest, depth) -> list:
        """As of any other expression: a byte, then this pair one step on; or nothing more."""
        behind = [
            (byte, automaton.push(pair, rest, depth)) for byte, pair in self.steps if pair.alive()
        ]
        return [rest] * self.may_end + [automaton.push(byte, left, depth) for byte, left in behind]
