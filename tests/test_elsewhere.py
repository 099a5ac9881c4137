"""What we write runs in llama.cpp: the same ids of texts, and the same greedy answers.

Skipped unless MINILLAMA_ELSEWHERE names a Python that has llama-cpp-python, as `make
test-elsewhere` does: that package is built from source, in about ten minutes.
"""

import json
import os
import random
import subprocess
from pathlib import Path

import pytest
import torch
from test_finetuning import fill
from test_gguf_writer import WAYS, tiny, tokenizer_of

from minillama import Tokenizer, generate
from minillama.checkpoints.gguf_writer import save_gguf
from minillama.inference.loading import load
from minillama.training.adapters import save_gguf_lora
from minillama.training.finetuning import add_lora, merge_lora


PYTHON = os.environ.get("MINILLAMA_ELSEWHERE", "")
pytestmark = pytest.mark.skipif(
    not PYTHON, reason="MINILLAMA_ELSEWHERE names no Python with llama-cpp-python"
)
STORIES = Path(__file__).parent.parent / "data" / "stories"
ENGINE = """
import json, sys
from itertools import islice
from llama_cpp import Llama
asked = json.load(sys.stdin)
how = dict(n_ctx=1024, n_threads=1, verbose=False, type_k=0, type_v=0, lora_path=asked["lora"])
llama = Llama(asked["model"], **how)  # keys and values in float32, as ours
encode = lambda text: llama.tokenize(text.encode(), add_bos=False, special=False)
answer = {"ids": [encode(text) for text in asked["texts"]]}
answer["special"] = [llama.tokenize(t.encode(), add_bos=False, special=True) for t in asked["texts"]]
answer["bos"] = llama.tokenize(b"x", add_bos=True, special=False)
ids = llama.generate(asked["prompt"], temp=0.0, repeat_penalty=1.0)
answer["answer"] = list(islice(ids, asked["count"]))
answer["template"] = llama.metadata.get("tokenizer.chat_template")
print(json.dumps(answer))
"""


def elsewhere(model, texts=(), prompt=(), count=0, lora=None) -> dict:
    """What llama.cpp makes of texts and of a prompt."""
    asked = {"model": str(model), "texts": texts, "prompt": prompt, "count": count}
    asked = json.dumps(asked | {"lora": lora and str(lora)})
    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    how = dict(capture_output=True, encoding="utf-8", env=env, timeout=600)
    done = subprocess.run([PYTHON, "-c", ENGINE], input=asked, **how)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


def texts(count=300) -> list[str]:
    """Words, digits, white space and scripts, joined at random."""
    rng = random.Random(0)
    parts = "the The lamp's 1850 31x don't <|eot_id|> <|im_end|> ... $5.20 naïve Grüße 灯台 маяк".split()
    parts += [
        " ",
        "  ",
        "\n",
        "\n\n",
        "\t",
        "\r\n",
        "🦙",
        "مرحبا",
        "a_b",
        "{'a': 1}",
        "WE'LL",
        "\u00a0",
    ]
    return ["".join(rng.choices(parts, k=rng.randrange(1, 12))) for _ in range(count)]


def answer_of(model, prompt: list[int], count: int) -> list[int]:
    """Our greedy ids."""
    return list(generate(model, prompt, max_new_tokens=count, temperature=0))


def check_ids(tokenizer: Tokenizer, got: dict, asked: list[str]) -> None:
    """llama.cpp's ids are ours, with control tokens as text and as ids."""
    wrong = [t for t, ids in zip(asked, got["ids"], strict=True) if ids != tokenizer.encode(t)]
    assert not wrong, (len(wrong), wrong[:5])
    for text, ids in zip(asked, got["special"], strict=True):
        assert ids == tokenizer.encode(text, allowed_special="all"), text
    assert got["bos"] == tokenizer.encode("x", bos=tokenizer.bos_id is not None)


@pytest.mark.parametrize("how", WAYS, ids=["llama 3", "llama 3, merging", "smollm", "gpt-2"])
def test_ids_of_small_vocabularies(tmp_path, how):
    """All four names for how text is cut."""
    ours, asked = tokenizer_of(*how, merges=True), texts()
    save_gguf(tiny(), ours, tmp_path / "a.gguf")
    check_ids(ours, elsewhere(tmp_path / "a.gguf", asked), asked)


@pytest.mark.parametrize("kind", ["F32", "BF16", "Q8_0", "Q6_K", "Q4_1", "Q4_0"])
def test_the_stories_model(tmp_path, kind):
    """64 greedy ids in float32, beyond the context before the scaling too; other types load."""
    model, tokenizer = load(STORIES)
    save_gguf(model, tokenizer, tmp_path / "a.gguf", kind)
    asked = texts()
    for length in (8, 400):
        prompt = tokenizer.encode("Once upon a time there was a goose. " * 60, bos=True)[:length]
        got = elsewhere(tmp_path / "a.gguf", asked, prompt, 64)
        check_ids(tokenizer, got, asked)
        if kind == "F32":
            assert got["answer"] == answer_of(model, prompt, 64)
        assert len(got["answer"]) == 64


@torch.no_grad()
def test_an_adapter(tmp_path):
    """The adapter's own file beside the model's, and the two merged: the same greedy ids."""
    model, tokenizer = load(STORIES)
    prompt = tokenizer.encode("Once upon a time", bos=True)
    save_gguf(model, tokenizer, tmp_path / "a.gguf")
    plain = answer_of(model, prompt, 64)
    with torch.enable_grad():
        fill(add_lora(model, rank=4, alpha=16.0), size=0.3)
    save_gguf_lora(model, tmp_path / "lora.gguf")
    merged = merge_lora(model)
    save_gguf(merged, tokenizer, tmp_path / "merged.gguf")
    wanted = answer_of(merged, prompt, 64)
    assert wanted != plain
    beside = elsewhere(tmp_path / "a.gguf", prompt=prompt, count=64, lora=tmp_path / "lora.gguf")
    assert beside["answer"] == wanted
    assert elsewhere(tmp_path / "merged.gguf", prompt=prompt, count=64)["answer"] == wanted


@pytest.mark.weights
def test_smollm2(tmp_path, ours):
    """300 texts to our ids, 64 greedy ids of a chat, and the template that came with the file."""
    model, tokenizer = ours
    save_gguf(model, tokenizer, tmp_path / "a.gguf")
    asked, said = (
        texts(),
        "<|im_start|>user\nName three colours.<|im_end|>\n<|im_start|>assistant\n",
    )
    prompt = tokenizer.encode(said, allowed_special="all")
    got = elsewhere(tmp_path / "a.gguf", asked, prompt, 64)
    check_ids(tokenizer, got, asked)
    wanted = answer_of(model, prompt, 64)
    assert got["answer"][: len(wanted)] == wanted
    assert got["template"] == tokenizer.chat_format.template


@pytest.mark.weights
def test_llama_3_vocabulary(tmp_path, llama3_vocabulary):
    ours, asked = Tokenizer.from_file(llama3_vocabulary), texts()
    save_gguf(tiny(vocab_size=128_256, tied=True), ours, tmp_path / "a.gguf", "Q8_0")
    check_ids(ours, elsewhere(tmp_path / "a.gguf", asked), asked)
