"""Tokenizer: byte-level BPE, from text to ids and back.

Written by notebooks/01_tokenizer.ipynb: edit it there.
"""

import base64
import binascii
import codecs
import importlib.util
import operator
from functools import cached_property, lru_cache
from itertools import chain
from pathlib import Path

import regex

from minillama.bpe import LLAMA3_PATTERN, cut_long, merge_by_rank, merge_pair, train_bpe


# what the module offers; the other files of this chapter hold some of it
__all__ = ["Tokenizer", "llama3_special_names", "gpt2_bytes", "GPT2_SPLIT", "SMOLLM_SPLIT"]
__all__ += ["LLAMA3_PATTERN", "merge_pair", "train_bpe", "merge_by_rank", "cut_long"]


class Tokenizer:
    """Byte-level BPE: text <-> ids.

    vocab: token bytes -> id. specials: added token's name -> id; text never becomes one of these
    unless allowed. plain: those of them that belong to text and always are found in it, name ->
    found only in what the others leave. merges: pair -> rank where the file lists merges; without
    it, as in Meta's files, a pair's rank is the id of the joined token. whole_chunks: a chunk that
    is itself a token is taken without merging. A byte that is no token is left out, before merging,
    as Hugging Face's tokenizers do (SmolLM2 lacks 21 of the 256).
    """

    def __init__(
        self, vocab, specials, pattern=LLAMA3_PATTERN, merges=None, whole_chunks=True,
        bos_id=None, eos_id=None, stop_ids=(), plain=None,
    ):  # fmt: skip
        self.vocab, self.specials = vocab, specials
        self.merges, self.whole_chunks = merges, whole_chunks
        self.engine, self.plain = "python", plain or {}
        self.chat_format = None  # chapter 10: how a conversation is written, where a file says so
        self.pattern = regex.compile(pattern)
        self.bos_id, self.eos_id, self.stop_ids = bos_id, eos_id, frozenset(stop_ids)
        self.token_bytes = {id: token for token, id in vocab.items()}
        self.token_bytes |= {id: name.encode() for name, id in specials.items()}
        # a token that merges make, too
        both = sum(vocab.get(name.encode()) == specials[name] for name in self.plain)
        if len(self.token_bytes) != len(vocab) + len(specials) - both:
            raise ValueError("two tokens of the vocabulary have the same id")
        self.vocab_size = max(self.token_bytes, default=-1) + 1
        self.encode_chunk = lru_cache(maxsize=65_536)(self._encode_chunk)

    @classmethod
    def from_file(cls, path, engine="auto") -> "Tokenizer":
        """Meta's vocabulary file: a line per token, its bytes in base64 and its rank. ValueError if
        it is not.
        """
        vocab = {}
        for number, line in enumerate(Path(path).read_bytes().splitlines(), 1):
            try:
                token, rank = line.split()
                vocab[base64.b64decode(token, validate=True)] = int(rank)
            except (ValueError, binascii.Error):
                raise ValueError(
                    f"{path}: line {number} is not `base64 rank`; is this a tokenizer.model?"
                ) from None
        return cls.llama3(vocab, engine)

    @classmethod
    def llama3(cls, vocab: dict[bytes, int], engine="auto") -> "Tokenizer":
        """Llama 3.1's tokenizer around a vocabulary: 256 special tokens follow its last id.

        engine: "python" encodes with the code below, "tiktoken" with that package to the same ids,
        "auto" with tiktoken where it is installed.
        """
        installed = importlib.util.find_spec("tiktoken") is not None
        if engine not in ("auto", "python", "tiktoken") or (engine == "tiktoken" and not installed):
            raise ValueError(
                f"engine is auto, python or, if it is installed, tiktoken; not {engine!r}"
            )
        if set(vocab.values()) != set(range(len(vocab))) or any(
            bytes([byte]) not in vocab for byte in range(256)
        ):
            raise ValueError(
                "a vocabulary has the ranks 0, 1, 2, ... once each and holds all 256 bytes"
            )
        specials = {name: len(vocab) + i for i, name in enumerate(llama3_special_names())}
        stop = [specials[name] for name in ("<|end_of_text|>", "<|eom_id|>", "<|eot_id|>")]
        tokenizer = cls(
            vocab, specials, bos_id=specials["<|begin_of_text|>"], eos_id=stop[0], stop_ids=stop
        )
        tokenizer.engine = ("tiktoken" if installed else "python") if engine == "auto" else engine
        return tokenizer

    @classmethod
    def from_gpt2(
        cls,
        vocab,
        specials,
        merges,
        pattern,
        bos_id=None,
        eos_id=None,
        stop_ids=None,
        whole_chunks=False,
        plain=None,
    ) -> "Tokenizer":
        """A vocabulary spelled as GPT-2 spells bytes (Hugging Face files, GGUF): "Ġthe" is b" the".

        vocab: spelling -> id; merges: pairs of spellings, first learned first. ValueError for other
        characters, and for merges of or into tokens that do not exist.
        """
        byte = gpt2_bytes()
        try:
            spelled = {token: bytes(byte[char] for char in token) for token in vocab}
            ranks = {(spelled[a], spelled[b]): rank for rank, (a, b) in enumerate(merges)}
        except (KeyError, ValueError) as error:
            raise ValueError(f"the vocabulary is not spelled in GPT-2's bytes: {error}") from None
        ids = {spelled[token]: id for token, id in vocab.items()}
        if lost := next((a + b for a, b in ranks if a + b not in ids), None):
            raise ValueError(f"the merges make a token {lost!r} that the vocabulary does not have")
        stop_ids = [eos_id] if stop_ids is None and eos_id is not None else stop_ids or ()
        return cls(ids, specials, pattern, ranks, whole_chunks, bos_id, eos_id, stop_ids, plain)

    def encode(self, text: str, bos=False, eos=False, allowed_special=()) -> list[int]:
        """Ids of `text`. Names of control tokens in it are plain text unless listed in
        allowed_special (or "all").

        TypeError if it is no str; ValueError for half a surrogate pair, or an unknown name in
        allowed_special.
        """
        if not isinstance(text, str):
            raise TypeError(f"encode takes a str, not {type(text).__name__}")
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise ValueError(
                f"character {error.start} is half of a surrogate pair and has no UTF-8"
            ) from None
        if (bos and self.bos_id is None) or (eos and self.eos_id is None):
            raise ValueError(
                "this tokenizer has no such token: encode without bos=True or eos=True"
            )
        allowed = set(self.specials if allowed_special == "all" else allowed_special)
        if unknown := allowed - self.specials.keys():
            raise ValueError(
                f"{min(unknown)!r} is no special token; allowed_special takes a list of names, or "
                f'"all"'
            )
        parts = cut_long(text) if self.merges is None else [text]
        if allowed or self.plain:
            late = {name for name, last in self.plain.items() if last}
            parts = self.find(late, self.find((allowed | self.plain.keys()) - late, parts))
        ids = [self.bos_id] if bos else []
        for part in parts:
            ids += self.encode_plain(part) if isinstance(part, str) else [part]
        return ids + [self.eos_id] if eos else ids

    def find(self, names: set[str], parts):
        """Yield the parts, texts and ids, with the id of each of the names that a text holds; the
        longest name wins.
        """
        names = frozenset(names) - {""}
        pattern = regex.compile(r"(\L<names>)", names=names)  # which regex keeps for the next time
        for part in parts:
            pieces = pattern.split(part) if names and isinstance(part, str) else [part]
            # text, name, text
            yield from (self.specials[piece] if i % 2 else piece for i, piece in enumerate(pieces))

    def encode_plain(self, text: str) -> list[int]:
        """Ids of text in which no added token is looked for."""
        if self.engine == "tiktoken":
            return self.tiktoken.encode_ordinary(text)
        return list(chain.from_iterable(map(self.encode_chunk, self.pattern.findall(text))))

    @cached_property
    def tiktoken(self):
        """The same vocabulary and pattern in tiktoken, which is written in Rust."""
        import tiktoken  # subtle: only now, so that `import minillama` stays quick

        return tiktoken.Encoding(
            "llama3", pat_str=LLAMA3_PATTERN, mergeable_ranks=self.vocab, special_tokens={}
        )

    def _encode_chunk(self, chunk: str) -> tuple[int, ...]:
        data = chunk.encode()
        if self.whole_chunks and data in self.vocab:
            return (self.vocab[data],)
        parts = [part for byte in data if (part := bytes([byte])) in self.vocab]
        return tuple(self.vocab[part] for part in merge_by_rank(parts, self.rank))

    def rank(self, pair: tuple[bytes, bytes]) -> int | None:
        """The place of this pair in the order of learning; None if it never was learned."""
        return self.vocab.get(pair[0] + pair[1]) if self.merges is None else self.merges.get(pair)

    def decode(self, ids) -> str:
        """The text of ids; bytes that are not UTF-8 become U+FFFD. ValueError for an id outside the
        vocabulary.
        """
        return b"".join(map(self.id_to_bytes, ids)).decode("utf-8", errors="replace")

    def decode_stream(self, ids):
        """Yield text as ids arrive, "" while a character is incomplete; what is left over comes at
        the end.
        """
        decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        for id in ids:
            yield decoder.decode(self.id_to_bytes(id))
        yield decoder.decode(b"", final=True)

    def id_to_bytes(self, id: int) -> bytes:
        """The bytes of one token; ValueError for an id outside the vocabulary, TypeError for what
        is no integer.
        """
        if (token := self.token_bytes.get(operator.index(id))) is None:
            raise ValueError(f"id {id} is outside the vocabulary of {self.vocab_size}")
        return token


def llama3_special_names() -> list[str]:
    """Meta's names of Llama 3.1's 256 special tokens in the order of their ids (128000 to
    128255).
    """
    named = (
        "begin_of_text end_of_text reserved_special_token_0 reserved_special_token_1 "
        "finetune_right_pad_id step_id "
        "start_header_id end_header_id eom_id eot_id python_tag image"
    ).split()
    return [f"<|{name}|>" for name in named] + [
        f"<|reserved_special_token_{i}|>" for i in range(2, 246)
    ]


GPT2_SPLIT = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
# One digit at a time, and white space before a digit ends a chunk as it does before the end of the
# text.
SMOLLM_SPLIT = r"'s|'t|'re|'ve|'m|'ll|'d|\p{N}| ?\p{L}+| ?[^\s\p{L}\p{N}]+|\s+(?![^\s\p{N}])|\s+"


def gpt2_bytes() -> dict[str, int]:
    """GPT-2's printable stand-in for each byte -> the byte: itself where printable, else 256 and up
    in order.
    """
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    hidden = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {
        chr(256 + i): byte for i, byte in enumerate(hidden)
    }
