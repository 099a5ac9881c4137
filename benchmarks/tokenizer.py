"""How fast is our tokenizer? Against tiktoken and Hugging Face's tokenizers: the same ids, runs
taken in turns.

    python benchmarks/tokenizer.py [--repeats 5] [--json FILE]

Encode: 2 MB of Python's standard library, file by file, under Llama 3.1's vocabulary. Train: 4,096
tokens on 4 MB of it, with the same split. Hugging Face's trainer uses every core, ours one.
"""

import argparse
import json
import os
import platform
import statistics
import sysconfig
import time
from importlib.metadata import version
from pathlib import Path

import tiktoken
import tokenizers
from tokenizers import models, pre_tokenizers, trainers

from minillama import Tokenizer
from minillama.checkpoints import hub
from minillama.tokenizer import LLAMA3_PATTERN, gpt2_bytes, train_bpe


ENCODE_BYTES, TRAIN_BYTES, TRAIN_TOKENS = 2_000_000, 4_000_000, 4096


def source_code(size: int) -> list[str]:
    """Files of the standard library in alphabetical order, `size` bytes of them."""
    texts, left = [], size
    for path in sorted(Path(sysconfig.get_path("stdlib")).glob("**/*.py")):
        if "site-packages" in path.parts or "test" in path.parts:
            continue
        data = path.read_bytes()[:left]
        texts.append(data.decode(errors="ignore"))
        left -= len(data)
        if not left:
            return texts
    raise SystemExit(f"the standard library has only {size - left:,} bytes of source code here")


def split():
    """Llama 3's pattern, then GPT-2's spelling of bytes, as in Hugging Face's file."""
    pattern = pre_tokenizers.Split(tokenizers.Regex(LLAMA3_PATTERN), behavior="isolated")
    return pre_tokenizers.Sequence(
        [pattern, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )


def hugging_face(vocab: dict[bytes, int]) -> tokenizers.Tokenizer:
    """The vocabulary with a list of merges: every way to make a token of two, in the order of what
    they make.
    """
    spelled = {byte: char for char, byte in gpt2_bytes().items()}
    spell = {token: "".join(spelled[byte] for byte in token) for token in vocab}
    merges = []
    for token in sorted(vocab, key=vocab.get):
        halves = [
            (token[:i], token[i:])
            for i in range(1, len(token))
            if token[:i] in vocab and token[i:] in vocab
        ]
        merges += [
            (spell[a], spell[b])
            for a, b in sorted(halves, key=lambda pair: [vocab[half] for half in pair])
        ]
    ids = {spell[token]: id for token, id in vocab.items()}
    tokenizer = tokenizers.Tokenizer(models.BPE(ids, merges, ignore_merges=True))
    tokenizer.pre_tokenizer = split()
    return tokenizer


def seconds(work, *args) -> float:
    """How long one call takes."""
    start = time.perf_counter()
    work(*args)
    return time.perf_counter() - start


def measure_encoding(repeats: int) -> dict:
    """Megabytes per second: {name: median}. All must give the same ids."""
    texts = source_code(ENCODE_BYTES)
    path = hub.fetch("llama-3.1-tokenizer")
    ours = {engine: Tokenizer.from_file(path, engine) for engine in ("python", "tiktoken")}
    bare = tiktoken.Encoding(
        "llama3", pat_str=LLAMA3_PATTERN, mergeable_ranks=ours["python"].vocab, special_tokens={}
    )
    theirs = hugging_face(ours["python"].vocab)
    sides = {
        "minillama, new text": lambda text: ours["python"].encode(text),
        "minillama, again": lambda text: ours["python"].encode(text),
        "minillama, engine tiktoken": lambda text: ours["tiktoken"].encode(text),
        "tiktoken": bare.encode_ordinary,
        "tokenizers": lambda text: theirs.encode(text, add_special_tokens=False).ids,
    }
    # also the warm-up
    ids = {name: [encode(text) for text in texts] for name, encode in sides.items()}
    assert all(other == ids["tiktoken"] for other in ids.values()), "not the same ids"
    times = {name: [] for name in sides}
    for _ in range(repeats):
        for name, encode in sides.items():
            if name == "minillama, new text":
                # nothing remembered; tokenizers keeps its own cache
                ours["python"].encode_chunk.cache_clear()
            times[name].append(seconds(lambda encode=encode: [encode(text) for text in texts]))
    return {name: ENCODE_BYTES / 1e6 / statistics.median(runs) for name, runs in times.items()}


def measure_training(repeats: int) -> dict:
    """Seconds: {name: median}."""
    texts = source_code(TRAIN_BYTES)
    whole = "\n".join(texts)

    def theirs():
        tokenizer = tokenizers.Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = split()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        trainer = trainers.BpeTrainer(
            vocab_size=TRAIN_TOKENS, initial_alphabet=alphabet, show_progress=False
        )
        tokenizer.train_from_iterator(texts, trainer)
        assert tokenizer.get_vocab_size() == TRAIN_TOKENS

    sides = {"minillama": lambda: train_bpe(whole, TRAIN_TOKENS), "tokenizers": theirs}
    times = {name: [] for name in sides}
    for _ in range(repeats):
        for name, train in sides.items():
            times[name].append(seconds(train))
    return {name: statistics.median(runs) for name, runs in times.items()}


def machine() -> dict:
    """What the figures depend on."""
    names = (
        Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        if Path("/proc/cpuinfo").exists()
        else []
    )
    model = next(
        (line.split(":")[1].strip() for line in names if line.startswith("model name")),
        platform.processor(),
    )
    packages = ("regex", "tiktoken", "tokenizers")
    versions = {"python": platform.python_version()} | {name: version(name) for name in packages}
    return {"cpu": model, "cores": os.cpu_count(), "versions": versions}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", metavar="FILE", help="write the figures and the machine here")
    args = parser.parse_args()
    result = {
        "encode_bytes": ENCODE_BYTES,
        "train_bytes": TRAIN_BYTES,
        "train_tokens": TRAIN_TOKENS,
        "repeats": args.repeats,
        "machine": machine(),
        "encode_megabytes_per_second": measure_encoding(args.repeats),
        "train_seconds": measure_training(min(args.repeats, 3)),
    }
    speeds, times = result["encode_megabytes_per_second"], result["train_seconds"]
    print(f"{result['machine']['cpu']}, {result['machine']['cores']} cores")
    print(f"{'encode':28}{'MB/s':>8}{'of tiktoken':>14}")
    for name, speed in speeds.items():
        print(f"{name:28}{speed:8.1f}{speed / speeds['tiktoken']:14.2f}")
    print(f"{'train':28}{'seconds':>8}{'of tokenizers':>14}")
    for name, time_taken in times.items():
        print(f"{name:28}{time_taken:8.1f}{time_taken / times['tokenizers']:14.2f}")
    if args.json:
        Path(args.json).write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
