"""13a. Stories: what a small model can learn.

Written by notebooks/13a_stories.ipynb: edit it there.
"""

import torch

from minillama.config import LlamaConfig, RopeScaling
from minillama.inference.attention_backends import use_attention
from minillama.model import Llama
from minillama.tokenizer import Tokenizer, train_bpe
from minillama.training.batches import batches_per_epoch, shuffled_batch
from minillama.training.loop import fit
from minillama.training.loss import count_targets, token_loss
from minillama.training.optimizer import Settings
from minillama.training.packing import pack, packed_logits, shift
from minillama.training.runs import Run, fingerprint


CONFIG = LlamaConfig(
    dim=128,
    n_layers=4,
    n_heads=4,
    n_kv_heads=2,
    head_dim=32,
    ffn_dim=352,
    vocab_size=1024,
    tied_embeddings=True,
    rope_scaling=RopeScaling(original_max_seq_len=256),
    max_seq_len=2048,
)
ROW_LENGTH, BATCH_SIZE = 256, 16  # tokens in a row, rows in a batch: 4,096 tokens a step
SETTINGS = Settings(
    steps=2000,
    peak_lr=4e-3,
    warmup=100,
    dtype="bfloat16",
    compiled=True,
    save_every=250,
    eval_every=250,
)


def story_tokenizer(texts: list[str]) -> Tokenizer:
    """Byte-level BPE of up to 1,022 tokens learned from texts (the first 10,000), and one for
    beginning and end each.
    """
    vocab = train_bpe("\n".join(texts[:10_000]), CONFIG.vocab_size - 2)
    specials = {"<|begin_of_text|>": len(vocab), "<|end_of_text|>": len(vocab) + 1}
    bos, eos = specials.values()
    return Tokenizer(vocab, specials, bos_id=bos, eos_id=eos, stop_ids=[eos])


class Rows:
    """Packed documents, one row after another in a seeded order, a new order each epoch."""

    def __init__(
        self,
        documents: list[list[int]],
        length: int = ROW_LENGTH,
        batch: int = BATCH_SIZE,
        seed: int = 0,
    ):
        self.rows, self.documents = pack(documents, length)
        self.batch, self.seed = batch, seed

    def __call__(self, i: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """The i-th batch: tokens, targets and documents, each (B, T)."""
        chosen = shuffled_batch(i, len(self.rows), self.batch, self.seed, drop_last=True)
        return shift(self.rows[chosen], self.documents[chosen])


def encode_all(tokenizer: Tokenizer, texts) -> list[list[int]]:
    """Each text as ids between the tokens for beginning and end."""
    return [tokenizer.encode(text, bos=True, eos=True) for text in texts]


def batch_loss(model: Llama, batch) -> torch.Tensor:
    """The loss on a batch of Rows."""
    tokens, targets, documents = batch
    return token_loss(packed_logits(model, tokens, documents), targets)


def mean_loss(model: Llama, rows: Rows) -> float:
    """The loss on all rows, once."""
    with torch.no_grad():
        count = batches_per_epoch(len(rows.rows), rows.batch, drop_last=True)
        losses = [batch_loss(model, rows(i)).item() for i in range(count)]
    return sum(losses) / len(losses)


def train(
    cfg: LlamaConfig,
    tokenizer: Tokenizer,
    texts,
    held,
    settings: Settings,
    folder=None,
    progress=True,
):
    """(model, metrics) of a Llama trained from nothing on texts, tried on the texts held back."""
    rows = Rows(encode_all(tokenizer, texts), seed=settings.seed)
    validation = Rows(encode_all(tokenizer, held))
    model = use_attention(Llama.from_scratch(cfg, settings.seed), "blocks")
    data = fingerprint(rows.rows, torch.tensor(list(repr(cfg).encode())))
    metrics = fit(
        model,
        batch_loss,
        rows,
        settings,
        Run(folder, data),
        validate=lambda m: mean_loss(m, validation),
        weigh=count_targets,
        progress=progress,
    )
    return model, metrics
