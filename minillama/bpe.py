"""Tokenizer: byte-level BPE, from text to ids and back.

Written by notebooks/01_tokenizer.ipynb: edit it there.
"""

import heapq
import re
from collections import Counter, defaultdict

import regex


def merge_pair(parts: list[bytes], pair: tuple[bytes, bytes]) -> list[bytes]:
    """`parts` with every occurrence of the pair, left to right, joined into one part."""
    merged, i = [], 0
    while i < len(parts):
        if tuple(parts[i : i + 2]) == pair:
            merged.append(pair[0] + pair[1])
            i += 2
        else:
            merged.append(parts[i])
            i += 1
    return merged


LLAMA3_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def train_bpe(text: str, vocab_size: int, pattern: str = LLAMA3_PATTERN) -> dict[bytes, int]:
    """Learn a vocabulary: 256 bytes, then one merged pair after another. Returns token bytes -> id
    (= rank).

    The most frequent pair is next, the first in byte order among equals. Ends early when no pair is
    left.
    """
    vocab = {bytes([byte]): byte for byte in range(256)}
    frequency = Counter(regex.findall(pattern, text))
    words = {chunk: [bytes([byte]) for byte in chunk.encode()] for chunk in frequency}
    # of a pair: how often in the text, and in which chunks
    counts, where = Counter(), defaultdict(set)
    queue, changed = [], set()

    def recount(chunk, sign):
        for pair in zip(words[chunk], words[chunk][1:], strict=False):
            counts[pair] += sign * frequency[chunk]
            where[pair].add(chunk)
            changed.add(pair)

    for chunk in words:
        recount(chunk, +1)
    while len(vocab) < vocab_size:
        for pair in changed:
            heapq.heappush(queue, (-counts[pair], pair))
        changed.clear()
        while queue and -queue[0][0] != counts[queue[0][1]]:
            # outdated: the pair is in the queue again, under its present count
            heapq.heappop(queue)
        if not queue or not queue[0][0]:
            break
        best = heapq.heappop(queue)[1]
        vocab[best[0] + best[1]] = len(vocab)
        for chunk in where.pop(best):  # only the chunks that hold the pair are touched
            recount(chunk, -1)
            words[chunk] = merge_pair(words[chunk], best)
            recount(chunk, +1)
    return vocab


def merge_by_rank(parts: list[bytes], rank) -> list[bytes]:
    """Join neighbours in the order their pairs were learned, leftmost first, until `rank(pair)` is
    None for all.
    """
    parts, queue = list(parts), []
    # of a place: its living neighbours
    left, right = list(range(-1, len(parts) - 1)), list(range(1, len(parts) + 1))

    def offer(i, j):
        if i >= 0 and j < len(parts) and (order := rank((parts[i], parts[j]))) is not None:
            heapq.heappush(queue, (order, i, (parts[i], parts[j])))

    for i in range(len(parts) - 1):
        offer(i, i + 1)
    while queue:
        _, i, pair = heapq.heappop(queue)
        j = right[i]
        if j == len(parts) or (parts[i], parts[j]) != pair:
            continue  # outdated: one of the two has been joined with its other neighbour since
        parts[i], parts[j] = pair[0] + pair[1], b""  # place j is empty from now on
        right[i] = right[j]
        if right[i] < len(parts):
            left[right[i]] = i
        offer(left[i], i)
        offer(i, right[i])
    return [part for part in parts if part]


def cut_long(text: str, length: int = 400_000, run: int = 25_000):
    """Yield the pieces that Meta's tokenizer encodes one by one.

    None is longer than `length`, and none has more than `run` characters in a row that are all
    white space or all not.
    """
    # subtle: re's \s is str.isspace
    long_run = re.compile(rf"(?<!\s)\s{{{run + 1},}}|(?<!\S)\S{{{run + 1},}}")
    for start in range(0, len(text), length):
        part = text[start : start + length]
        runs = long_run.finditer(part) if len(part) > run else []
        cuts = [cut for match in runs for cut in range(match.start() + run, match.end(), run)]
        yield from (part[a:b] for a, b in zip([0, *cuts], [*cuts, None], strict=True))
