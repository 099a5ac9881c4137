"""Tiny random models: transformers writes them, our loader reads them back; tables of cases in one
test.
"""

import contextlib
import copy
import json
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import transformers

from minillama import CheckpointError
from minillama.inference.attention_backends import use_attention
from minillama.inference.decode_graph import GraphStep
from minillama.inference.loading import load


BASE = dict(
    hidden_size=64,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=16,
    intermediate_size=96,
    vocab_size=128,
    max_position_embeddings=16_384,
    rms_norm_eps=1e-5,
    tie_word_embeddings=False,
)
PLAIN = {"rope_type": "default", "rope_theta": 10_000.0}
SCALED = {
    "rope_type": "llama3",
    "rope_theta": 500_000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}


def tiny_hugging_face(seed=0, rope=PLAIN, **changes) -> transformers.LlamaForCausalLM:
    """transformers' Llama with random weights that leave no part without effect (norm weights are
    not 1).
    """
    model = transformers.LlamaForCausalLM(
        transformers.LlamaConfig(**BASE | changes, rope_parameters=dict(rope))
    )
    generator = torch.Generator().manual_seed(seed)
    for name, weight in model.named_parameters():
        mean, std = (1.0, 0.2) if "norm" in name else (0.0, 0.15)
        torch.nn.init.normal_(weight, mean, std, generator=generator)
    return model.eval()


def tiny_pair(folder, **changes):
    """(transformers' model, ours): ours read from the folder in which transformers saved it."""
    reference = tiny_hugging_face(**changes)
    reference.save_pretrained(folder)
    return reference, load(folder)[0]


def with_attention(model, name: str, one_graph: bool = False):
    """A copy of the model with that attention backend and, if wanted, decode steps as one graph;
    `ran` starts anew.
    """
    model = use_attention(copy.deepcopy(model), name)
    model.decode_step = GraphStep(model) if one_graph else None
    model.ran.clear()
    return model


def edit_json(path, change) -> None:
    """Rewrite a JSON file after `change` has altered its object in place."""
    value = json.loads(path.read_text(encoding="utf-8"))
    change(value)
    path.write_text(json.dumps(value), encoding="utf-8")


def random_ids(count: int, seed=0, vocab_size=BASE["vocab_size"]) -> torch.Tensor:
    """(1, count) seeded ids."""
    return torch.randint(vocab_size, (1, count), generator=torch.Generator().manual_seed(seed))


def refused(path, match="") -> None:
    """load raises one line that begins with this file's name, within a second."""
    start = time.process_time()
    with pytest.raises(CheckpointError) as caught:
        load(path)
    assert time.process_time() - start < 1
    file, _, message = str(caught.value).partition(": ")
    assert file == str(path) and re.search(match, message) and "\n" not in message


@contextlib.contextmanager
def table():
    """`with row(name):` around the checks of each row of a table: all rows run, those that fail are
    told together.
    """
    failed = {}

    @contextlib.contextmanager
    def row(*name):
        try:
            yield
        except (Exception, pytest.fail.Exception) as error:
            failed[" ".join(map(str, name))] = error

    yield row
    if failed:
        told = [f"{name}: {type(error).__name__}: {error}"[:1000] for name, error in failed.items()]
        raise AssertionError("\n".join([f"{len(failed)} rows", *told[:20]])) from next(
            iter(failed.values())
        )


BYTES, SECONDS = 200e6, 1


def all_refused(good: Path, broken: dict[str, tuple[Path, str]]) -> None:
    """Each is refused in one line that begins with its path and holds these words, costs little and
    touches nothing else: open_all.py, a process of its own, loads the good one and then all of
    them.
    """
    done = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("open_all.py"))],
        input="\n".join([str(good), *(str(path) for path, _ in broken.values())]),
        capture_output=True,
        encoding="utf-8",
    )
    assert done.returncode == 0, done.stderr[-2000:]
    with table() as row:
        for (name, (path, words)), line in zip(
            broken.items(), done.stdout.splitlines(), strict=True
        ):
            with row(name):
                found = json.loads(line)
                file, _, message = found["text"].partition(": ")
                assert found["known"] and file == str(path) and "\n" not in message, found["text"]
                assert re.search(words, message), message
                assert found["seconds"] < SECONDS and found["bytes"] < BYTES, found
                for event, touched, *how in found["touched"]:
                    reads = (event == "open" and how[0] in ("r", "rb")) or event == "os.scandir"
                    assert reads and Path(touched).is_relative_to(good.parent), (
                        event,
                        touched,
                        how,
                    )
