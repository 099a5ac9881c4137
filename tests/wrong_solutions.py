"""Plausible wrong solutions, as small edits of the reference, and right ones that look different.

WRONG: task -> rows (old text, new text, words that the message must contain). RIGHT: task -> rows
(old text, new text). The old code stands once in the task's solution cells, however these are
formatted; None replaces all between BEGIN SOLUTION and END SOLUTION.
"""

# everybody may look everywhere
UNMASKED = "AttentionMask(mask.positions, 0, torch.ones(1, dtype=torch.bool))"

WRONG = {
    "config-LlamaConfig": [
        (
            "if self.n_heads % self.n_kv_heads:",
            "if self.n_kv_heads > self.n_heads:",
            "heads that do not divide was accepted",
        ),
        ("if self.head_dim % 2:", "if self.head_dim < 2:", "odd head width was accepted"),
        ('or not 0 < value < float("inf")', "or value <= 0", "not a number was accepted"),
    ],
    "config-ex1": [
        ("return 2 * cfg", "return cfg", "a key and a value"),
        ("cfg.n_kv_heads", "cfg.n_heads", "only the K kv heads are kept"),
        ("cfg.n_layers * ", "", "every block keeps its own"),
    ],
    "config-ex2": [
        ("(width + multiple_of - 1) // multiple_of", "width // multiple_of", "round up"),
        ("int(multiplier * width)", "width", "forget the multiplier"),
    ],
    "config-ex3": [
        (
            "logits[:-1].log_softmax(-1)  # (T - 1, V)\n    return "
            "-log_probs[torch.arange(len(ids) - 1), ids[1:]]",
            "logits.log_softmax(-1)\n    return -log_probs[torch.arange(len(ids)), ids]",
            "predicts token t + 1",
        ),
        (
            "logits[:-1].log_softmax(-1)  # (T - 1, V)\n    return "
            "-log_probs[torch.arange(len(ids) - 1), ids[1:]]",
            "logits[1:].log_softmax(-1)\n    return -log_probs[torch.arange(len(ids) - 1), "
            "ids[:-1]]",
            "the shift goes the other way",
        ),
        (".mean()", ".sum()", "the mean, not the sum"),
        ("return -log", "return log", "minus: a loss is positive"),
    ],
    "config-ex4": [
        ("tied_embeddings=True", "tied_embeddings=False", "the head is tied"),
        ("n_kv_heads=8", "n_kv_heads=32", "keys and values have 8 heads"),
        ("factor=32.0", "factor=8.0", "3.2 uses factor 32"),
    ],
    "config-ex5": [
        ("len(top_ids) - unbroken", "unbroken", "where the agreement begins"),
        ("len(top_ids) - unbroken", "same.argmax(0)", "comes back"),
    ],
    "tokenizer-merge_pair": [
        ("i += 2", "i += 1", "each part may be used once"),
        ("merged.append(parts[i])", "pass", "do not drop the parts"),
    ],
    "tokenizer-train_bpe": [
        (
            None,
            """
while len(vocab) < vocab_size and counts:
    best = max(counts, key=counts.get)
    vocab[best[0] + best[1]] = len(vocab)
    for chunk in words:
        words[chunk] = merge_pair(words[chunk], best)
    counts.clear()
    for chunk in words:
        recount(chunk, +1)
""",
            "the first in byte order",
        ),
        (
            None,
            """
while len(vocab) < vocab_size:
    counts.clear()
    for parts in words.values():
        for pair in zip(parts, parts[1:], strict=False):
            counts[pair] += 1
    if not counts:
        break
    best = min(counts, key=lambda pair: (-counts[pair], pair))
    vocab[best[0] + best[1]] = len(vocab)
    for chunk in words:
        words[chunk] = merge_pair(words[chunk], best)
""",
            "occurs five times counts five times",
        ),
        (
            None,
            """
for pair in sorted(counts, key=lambda pair: (-counts[pair], pair))[: vocab_size - 256]:
    vocab[pair[0] + pair[1]] = len(vocab)
""",
            "join the pair in every word",
        ),
    ],
    "tokenizer-merge_by_rank": [
        ("heapq.heappop(queue)", "queue.pop()", "lowest rank"),
        (" or (parts[i], parts[j]) != pair", "", "outdated"),
        ("        offer(left[i], i)\n", "", "left neighbour"),
        ("        offer(i, right[i])\n", "", "right neighbour"),
    ],
    "tokenizer-Tokenizer": [
        (
            "parts = [part for byte in data if (part := bytes([byte])) in self.vocab]\n"
            "        return tuple(self.vocab[part] for part in merge_by_rank(parts, self.rank))",
            "ids = []\n"
            "        while data:\n"
            "            size = next(n for n in range(len(data), 0, -1) if data[:n] in "
            "self.vocab)\n"
            "            ids, data = [*ids, self.vocab[data[:size]]], data[size:]\n"
            "        return tuple(ids)",
            "longest match",
        ),
        ("merge_by_rank(parts, self.rank)", "parts", "no merge at all"),
        (
            "decoder.decode(self.id_to_bytes(id))",
            'self.id_to_bytes(id).decode("utf-8", "replace")',
            "hold an incomplete character back",
        ),
        (
            'self.specials if allowed_special == "all" else allowed_special',
            "self.specials",
            "plain text unless it is allowed",
        ),
    ],
    "tokenizer-ex1": [
        ("2 * 128_256", "128_256", "two matrices"),
    ],
    "tokenizer-ex2": [
        ("times, left = 3, 10", "times, left = 2, 11", "both words"),
    ],
    "tokenizer-ex3": [
        ("\\d{1,3}(?=(?:\\d{3})*(?!\\d))", "\\d{1,3}", "cuts from the left"),
    ],
    "tokenizer-ex4": [
        (
            "[0b110_00000 | code_point >> 6, 0b10_000000 | code_point & 63]",
            "[0b110_00000 | code_point >> 6, code_point & 63]",
            "mark the bytes",
        ),
    ],
    "tokenizer-ex5": [
        (
            "return len(data) - back if back < needed else len(data)",
            "return len(data)",
            "half a character",
        ),
    ],
    "tokenizer-ex6": [
        ("in vocab)", "in vocab - {data})", "abc itself"),
    ],
    "rmsnorm-RMSNorm": [
        (
            "torch.rsqrt(mean_square + self.eps)",
            "(1 / (mean_square.sqrt() + self.eps))",
            "eps inside the square root",
        ),
        (".mean(-1", ".sum(-1", "the mean of the squares"),
        (" * self.weight", "", "forget the weight"),
        (
            "x32 = x.float()",
            "x32 = x.float() - x.float().mean(-1, keepdim=True)",
            "do not subtract the mean",
        ),
        ("mean_square + self.eps", "mean_square", "forget eps"),
        (".to(x.dtype) * ", " * ", "float16 in"),
    ],
    "rmsnorm-ex1": [
        ("(2 * 32 + 1)", "(2 * 32)", "after the last block"),
    ],
    "rmsnorm-ex2": [
        ("M * w", "M * w[: len(M), None]", "columns of M"),
    ],
    "rmsnorm-ex3": [
        ("(heads / rms(heads)).flatten(-2)", "x / rms(x)", "per head"),
    ],
    "rope-rope_frequencies": [
        ("/ head_dim", "/ (head_dim // 2)", "by W, not by W/2"),
        ("1.0 / theta**exponents", "theta**exponents", "the exponent is negative"),
        ("1.0 / theta**exponents", "1.0 / 10_000.0**exponents", "theta is an argument"),
    ],
    "rope-apply_rope": [
        (
            "x.float().unflatten(-1, (-1, 2)).unbind(-1)\n"
            "    turned = torch.stack((even * cos - odd * sin, even * sin + odd * cos), dim=-1)",
            "x.float().unflatten(-1, (2, -1)).unbind(-2)\n"
            "    turned = torch.stack((even * cos - odd * sin, even * sin + odd * cos), dim=-2)",
            "half a head apart",
        ),
        (
            "even * cos - odd * sin, even * sin + odd",
            "even * cos + odd * sin, odd * cos - even * sin + 0 * odd",
            "clockwise",
        ),
        (
            "torch.stack((even * cos - odd * sin, even * sin + odd * cos), dim=-1)\n    return "
            "turned.flatten(-2)",
            "torch.cat((even * cos - odd * sin, even * sin + odd * cos), dim=-1)\n    return "
            "turned",
            "put each pair back together",
        ),
        (".to(x.dtype)", "", "float16"),
    ],
    "rope-scale_frequencies": [
        ("keep = keep.clamp(0, 1)", "keep = keep.clamp(max=1)", "clamp the blend at 0"),
        ("keep = keep.clamp(0, 1)", "keep = keep.clamp(min=0)", "clamp the blend at 1"),
        ("    keep = keep.clamp(0, 1)\n", "", "from 0 to 1"),
        ("keep = keep.clamp(0, 1)", "keep = (keep >= 1).float()", "there is something to keep"),
        (
            "keep * freqs + (1 - keep) * freqs / scaling.factor",
            "(1 - keep) * freqs + keep * freqs / scaling.factor",
            "the slow ones",
        ),
        (
            "keep * freqs + (1 - keep) * freqs / scaling.factor",
            "freqs / scaling.factor",
            "position interpolation",
        ),
        ("keep * freqs + (1 - keep) * freqs / scaling.factor", "freqs", "nothing is scaled"),
        ("freqs / scaling.factor", "freqs * scaling.factor", "do not multiply"),
        (" / (2 * math.pi)", "", "2 pi"),
    ],
    "rope-ex1": [
        ("-2.0, 0.0, -4.0, 0.0", "-2.0, 0.0, 4.0, 0.0", "counterclockwise"),
    ],
    "rope-ex2": [
        (".nonzero()[0])", ".nonzero()[0]) - 1", "the first pair that fails"),
    ],
    "rope-ex3": [
        ("(n_heads, -1, 2)", "(2 * n_heads, -1, 2)", "fewer heads than a query matrix"),
        ("(n_heads, -1, 2)", "(1, -1, 2)", "inside each head"),
        ("(n_heads, -1, 2)", "(n_heads, 2, -1)", "this is the inverse"),
    ],
    "rope-ex4": [
        ("k, 2 + s)", "k, 2)", "shift the key as well"),
    ],
    "rope-ex5": [
        (
            "1 / ((1 - s) / (factor * w) + s / w)",
            "(1 - s) * factor * w + s * w",
            "a blend of frequencies",
        ),
        (
            "1 / ((1 - s) / (factor * w) + s / w)",
            "1 / (s / (factor * w) + (1 - s) / w)",
            "s is 1 where",
        ),
        ("32 * 8192", "8 * 8192", "32 times, not 8"),
    ],
    "rope-ex6": [
        ("torch.tensor([s])", "torch.tensor([-s])", "sign of s"),
    ],
    "attention-attend": [
        ("diagonal=n_keys - n_queries", "diagonal=0", "align the last query"),
        ("diagonal=n_keys - n_queries", "diagonal=n_keys - n_queries - 1", "may look at itself"),
        ("diagonal=n_keys - n_queries", "diagonal=n_keys - n_queries + 1", "one diagonal too many"),
        ("math.sqrt(W)", "W", "by the root of W, not by W"),
        (" / math.sqrt(W)", "", "divide the scores by the root"),
        (
            "B, H, T, W = q.shape",
            "k, v = (z.repeat(1, q.shape[1] // z.shape[1], 1, 1) for z in (k, v))\n    B, H, T, W "
            "= q.shape",
            "repeat_interleave, not repeat",
        ),
        ("masked_fill(~allowed", "masked_fill(allowed", "True means may look"),
        ("if allowed is not None", "if False", "did you use the mask"),
        (
            "scores.float().softmax(dim=-1)",
            "scores.float().softmax(dim=-2).nan_to_num()",
            "softmax over the keys",
        ),
    ],
    "attention-Attention": [
        (
            "q, k = apply_rope(q, *rope), apply_rope(k, *rope)",
            "q = apply_rope(q, *rope)",
            "rotate k too",
        ),
        (
            "q, k = apply_rope(q, *rope), apply_rope(k, *rope)",
            "q, k, v = (apply_rope(z, *rope) for z in (q, k, v))",
            "v is not",
        ),
        (".transpose(1, 2).flatten(2)", ".reshape(len(x), x.shape[1], -1)", "exchange H and T"),
        ("attend(q, k, v, mask)", f"attend(q, k, v, {UNMASKED})", "pass the mask on"),
        ("k, v = cache.update(k, v)", "pass", "what cache.update gives back"),
        ("k, v = cache.update(k, v)", "cache.update(k, v)", "what cache.update gives back"),
        (
            "self.wo(attend(q, k, v, mask).transpose(1, 2).flatten(2))",
            "attend(q, k, v, mask).transpose(1, 2).flatten(2)",
            "wo is still missing",
        ),
    ],
    "attention-ex1": [
        ("[0.67, 0.09, 0.24]", "[0.87, 0.02, 0.12]", "divide the scores by the root of W"),
    ],
    "attention-ex2": [
        (
            "scores - scores.amax(-1, keepdim=True)",
            "scores - scores.max()",
            "a largest score of its own",
        ),
        ("(scores - scores.amax(-1, keepdim=True)).exp()", "scores.exp()", "before exp"),
    ],
    "attention-ex3": [
        ("h // (n_heads // n_kv_heads)", "h % n_kv_heads", "neighbours share"),
        ("h // (n_heads // n_kv_heads)", "h // n_kv_heads", "size of a group"),
    ],
    "attention-ex4": [
        ("same & causal", "same | causal", "both conditions"),
        (" & causal_mask(len(documents), len(documents))", "", "look ahead"),
    ],
    "attention-ex5": [
        ("shift - window + 1", "shift - window", "counts the token itself"),
        ("shift - window + 1", "shift - window + 2", "one too few"),
    ],
    "attention-ex6": [
        ("(l1 - torch.logaddexp(l1, l2)).exp()", "l1 / (l1 + l2)", "l is a logarithm"),
        ("share * o1 + (1 - share) * o2", "share * o2 + (1 - share) * o1", "exchanged"),
        (
            "(l1 - torch.logaddexp(l1, l2)).exp()",
            "l1.exp() / (l1.exp() + l2.exp())",
            "subtract logarithms before exp",
        ),
    ],
    "feedforward-FeedForward": [
        (
            "F.silu(self.gate(x)) * self.up(x)",
            "self.gate(x) * F.silu(self.up(x))",
            "silu belongs on the gate",
        ),
        (
            "F.silu(self.gate(x)) * self.up(x)",
            "F.silu(self.gate(x) * self.up(x))",
            "before the product",
        ),
        ("F.silu", "torch.sigmoid", "the sigmoid alone"),
        ("F.silu", "F.gelu", "this is GELU"),
        (" * self.up", " + self.up", "not added"),
    ],
    "feedforward-ex1": [
        (None, "return z * z.exp() / (1 + z.exp())", "e to the 200"),
        ("return z * sigmoid", "return sigmoid", "multiply by z"),
    ],
    "feedforward-ex2": [
        ("[0.0, -1.0, 0.0]", "[0.0, 1.0, 0.0]", "negated too"),
    ],
    "feedforward-ex3": [
        ("gate, up = (", "up, gate = (", "the gate's rows come first"),
    ],
    "feedforward-ex4": [
        ("product[..., None] * ", "0 * product[..., None] + ", "gated value"),
    ],
    "model-Block": [
        (
            "x = x + self.attention(self.attention_norm(x), rope, mask, cache, attend)\n"
            "        return x + self.feed_forward(self.ffn_norm(x))",
            "x = self.attention_norm(x + self.attention(x, rope, mask, cache, attend))\n"
            "        return self.ffn_norm(x + self.feed_forward(x))",
            "post-norm",
        ),
        ("return x + self", "return self", "the second addition is missing"),
        ("x = x + self.attention(", "x = self.attention(", "add to x what attention gives"),
        (
            "self.attention(self.attention_norm(x), ",
            "self.attention(x, ",
            "attention needs its norm",
        ),
        ("rope, mask, cache, attend)\n", f"rope, {UNMASKED}, cache, attend)\n", "pass the mask on"),
        (
            "self.feed_forward(self.ffn_norm(x))",
            "self.feed_forward(x)",
            "the feed-forward layer needs its norm",
        ),
    ],
    "model-Llama": [
        ("return self.norm(x)", "return x", "the last norm is missing"),
        (
            "AttentionMask.causal(T, device=tokens.device)",
            "AttentionMask(torch.arange(T), T, torch.ones(1, dtype=torch.bool))",
            "the causal mask is missing",
        ),
        ("mask.positions)", "mask.positions - mask.positions[0])", "the positions go on"),
        ("cache.length += T", "pass", "add T to cache.length"),
        (
            "zip(self.blocks, layers, strict",
            "zip(self.blocks, [layers[0]] * len(layers), strict",
            "handed its own part",
        ),
    ],
    "model-ex1": [
        ("(1 if cfg.tied_embeddings else 2)", "2", "a tied head has no parameters"),
        (" + 2 * cfg.dim\n", " + cfg.dim\n", "two norms"),
        ("block + cfg.dim + tables", "block + tables", "the norm after the last block"),
    ],
    "model-ex2": [
        ("(24 * 10**9 - weight_bytes)", "24 * 10**9", "take the weights off"),
    ],
    "model-ex3": [
        (
            "parts.append(block.attention(block.attention_norm(x), rope, mask))\n"
            "        x = x + parts[-1]\n"
            "        parts.append(block.feed_forward(block.ffn_norm(x)))\n"
            "        x = x + parts[-1]",
            "x = x + block.attention(block.attention_norm(x), rope, mask)\n"
            "        parts.append(x)\n"
            "        x = x + block.feed_forward(block.ffn_norm(x))\n"
            "        parts.append(x)",
            "a part is what was added",
        ),
    ],
    "checkpoints-rename": [
        ('.replace("N", number[0])', "", "instead of N"),
        ("0|[1-9][0-9]{0,5}", "[0-9]", "tensor 'layers.117.ffn_norm.weight' is not part"),
    ],
    "checkpoints-ex1": [
        ("first + 256 * second", "second + 256 * first", "little-endian"),
        ("(1 + fraction / 128)", "(fraction / 128)", "1 in front"),
        ("(-1) ** sign * ", "", "the sign is the highest bit"),
    ],
    "checkpoints-ex2": [
        ("size = 4 * tensor.shape[1]", "size = tensor.shape[1]", "four bytes"),
    ],
    "checkpoints-ex3": [
        ("in sorted(spans)", "in spans", "any order"),
        (None, "return sum(last - first for first, last in spans) == size", "lengths can add up"),
    ],
    "hugging_face-interleave": [
        (
            "view(heads, 2, -1, weight.shape[-1])",
            "view(heads, -1, 2, weight.shape[-1])",
            "the other direction",
        ),
        (
            "view(heads, 2, -1, weight.shape[-1])",
            "view(1, 2, -1, weight.shape[-1])",
            "every head by itself",
        ),
        (
            "weight.view(heads, 2, -1, weight.shape[-1]).transpose(1, 2).reshape(weight.shape)",
            "weight",
            "forget to permute",
        ),
    ],
    "hugging_face-shards": [
        ("lists[-1] and filled", "filled", "no empty list"),
        ("filled + size > most", "filled + size >= most", "to the last byte"),
    ],
    "hugging_face-merges_of": [
        ("sorted(vocab, key=vocab.get)", "sorted(vocab)", "in the order of the ranks"),
        ("if left in vocab and right in vocab", "if left in vocab", "both of them"),
    ],
    "hugging_face-ex2": [
        (
            "x * cos - y * sin, x * sin + y * cos",
            "x * cos + y * sin, y * cos - x * sin",
            "signs of the sines",
        ),
        (
            "torch.cat((x * cos - y * sin, x * sin + y * cos))",
            "torch.stack((x * cos - y * sin, x * sin + y * cos), 1).flatten()",
            "put all x first",
        ),
    ],
    "hugging_face-ex3": [
        ("(a - b).abs()", "(a - b)", "absolute value"),
        ("else -1", "else 0", "-1 where nothing differs"),
    ],
    "meta-cut_along": [
        (
            'return 1 if name.endswith(("wo.weight", "down.weight")) else 0',
            "return 0",
            "by columns",
        ),
        (
            'return 1 if name.endswith(("wo.weight", "down.weight")) else 0',
            'return 0 if name.endswith(("wo.weight", "down.weight", "head.weight")) else 1',
            "wq and gate make outputs",
        ),
        ("0 if shape[-1] == dim else 1", "0", "Llama 2 is cut by columns"),
    ],
    "meta-read_joined": [
        ("zip(pieces, whole", "zip(pieces[::-1], whole", "rank 0 comes first"),
    ],
    "meta-read_without_copies": [
        (
            "return once.reshape(-1, stored.shape[1])",
            "return stored.read()",
            "the copies are still there",
        ),
        (None, "return stored.read()[: stored.shape[0] // copies]", "copies are neighbours"),
        (None, "return stored.read()[::copies]", "a head has head_dim rows"),
    ],
    "meta-ffn_width": [
        (
            "multiple_of * -(-width // multiple_of)",
            "multiple_of * (width // multiple_of)",
            "round up",
        ),
        ("2 * 4 * dim / 3", "4 * dim", "two thirds"),
    ],
    "meta-piece_of": [
        ("rank * cfg.n_kv_heads // ranks", "rank % cfg.n_kv_heads", "ranks 0 and 1 have head 0"),
    ],
    "meta-ex1": [
        ("15 * norms", "16 * norms", "already counted"),
    ],
    "meta-ex2": [
        ("return sum(results)", "return torch.cat(results)", "do not concatenate"),
        ("return sum(results)", "return sum(results) / 2", "not a mean"),
    ],
    "meta-ex3": [
        (
            "[piece for piece in pieces for _ in range(2)]",
            "pieces + pieces",
            "copies of a head are neighbours",
        ),
    ],
    "gguf-unpack": [
        (
            "for shift in range(0, 8, bits)",
            "for shift in reversed(range(0, 8, bits))",
            "low halves come first",
        ),
        ("dim=2).flatten", "dim=3).flatten", "all low halves of a run first"),
        (" & 2**bits - 1", "", "mask the low half"),
    ],
    "gguf-q6_k": [
        ("- 32).view", "- 0).view", "subtract 32"),
        ("2, 32) << 4", "2, 32)", "16, 32 and 48"),
        ("block[:, 192:208].view(torch.int8)", "block[:, 192:208]", "signed byte"),
        ("- minima[:, :, None])", "+ minima[:, :, None])", "the minima are subtracted"),
    ],
    "gguf-quantize_q8_0": [
        ("/ 127", "/ 128", "not 128"),
        ("whole += (2 * (levels.abs() - whole)).floor()", "pass", "do not cut off"),
        ("levels.sign() * whole", "levels.round()", "away from zero"),
    ],
    "gguf-kind_of": [
        ("if len(shape) == 1:", "if False:", "norms stay in F32"),
        ('kind.startswith("Q4") and', "False and", "not stored in four bits"),
        ('"embedding.weight" if tied else "head.weight"', '"head.weight"', "is the head"),
        ("while shape", "if shape", "may need a fallback"),
    ],
    "gguf-ex1": [
        ("// 32 * 20", "// 2", "also stores its step"),
    ],
    "gguf-ex2": [
        ("(level - 8)", "level", "subtract 8"),
        (
            "[byte & 15 for byte in block[2:]] + [byte >> 4 for byte in block[2:]]",
            "[half for byte in block[2:] for half in (byte & 15, byte >> 4)]",
            "all low halves first",
        ),
    ],
    "gguf-ex3": [
        ("- 32)", "- 0)", "subtract 32"),
        ('unpack("b"', 'unpack("B"', "signed byte"),
        ("16 * high", "high", "16, 32 and 48"),
    ],
    "pth-ex1": [
        (', "STACK_GLOBAL"', "", "STACK_GLOBAL"),
        (', "INST"', "", "INST"),
    ],
    "pth-ex2": [
        (
            "offset * width, (last + 1) * width",
            "offset, (last + 1) * width - offset * (width - 1)",
            "counts elements, not bytes",
        ),
        ("last + 1", "last", "one behind"),
    ],
    "pth-ex3": [
        ("2**rounds", "2 * rounds", "doubles"),
    ],
    "pth-run_pickle": [
        ('case "SETITEM":\n', 'case "SETITEM" if False:\n', "its program asks for SETITEM"),
        ("[stack.pop(), stack.pop()][::-1]", "[stack.pop(), stack.pop()]", "is no text"),
    ],
    "kv_cache-ex1": [
        ("2 * 30 * 3", "2 * 30 * 9", "kv heads, not query heads"),
        ("2 * 30", "30", "a key and a value"),
    ],
    "kv_cache-ex2": [
        ("p + n - 1", "p + n", "with a cache, too"),
        ("p + i", "p", "read again, too"),
        ("range(n)), p + n - 1", "range(n + 1)), p + n", "the last new token"),
    ],
    "kv_cache-ex3": [
        ("slots - padding[:, None]", "slots + padding[:, None]", "do not add"),
        ("slots - padding[:, None]", "slots.expand(len(padding), -1)", "padding does not count"),
        (" | (keys == slots[:, None])", "", "NaN"),
        ("(keys <= slots[:, None]) & ", "", "look ahead"),
    ],
    "kv_cache-ex4": [
        ("return held", "return sorted(held)", "order of the slots"),
        ("[-1] * w", "[0] * w", "never written"),
    ],
    "kv_cache-ex5": [
        (
            None,
            "cache = KVCache(model.cfg, 1, 99)\n"
            "model(text, cache=cache)\n"
            "return torch.stack([model(question, cache=cache)[0, -1] for question in questions])",
            "forget one question",
        ),
        ("truncate(text.shape[1])", "truncate(0)", "not to 0"),
    ],
    "generation-distribution": [
        ("keepdim=True)) / temperature", "keepdim=True)) * temperature", "do not multiply"),
        ("probs.cumsum(dim=-1) - probs >", "probs.cumsum(dim=-1) >", "compare cumsum - p"),
        ("        probs /= probs.sum(dim=-1, keepdim=True)\n", "", "sum to 1 again"),
        ("torch.zeros_like(probs).scatter(-1, ids, probs)", "probs", "scatter"),
        ("keepdim=True)) / temperature", "keepdim=True))", "temperature has no effect"),
        ("top_p is not None and", "False and", "top_p has no effect"),
    ],
    "generation-sample": [
        (
            "distribution(logits, temperature, top_k, top_p).cumsum",
            "distribution(logits, temperature).cumsum",
            "top_k has no effect",
        ),
        ("    if temperature == 0:\n        return logits.argmax(dim=-1)\n", "", "greedy"),
        ("if not logits.amax(dim=-1).isfinite().all()", "if False", "should have been refused"),
    ],
    "generation-next_logits": [
        (", last=count", "", "only the last `count` places"),
        (
            "for chunk in tokens.split(PREFILL_CHUNK, dim=1):",
            "for chunk in [tokens]:",
            "at most PREFILL_CHUNK tokens",
        ),
    ],
    "generation-generate": [
        (
            "            if id in params.stop_ids:\n                return\n            yield id",
            "            yield id\n            if id in params.stop_ids:\n                return",
            "the stop id is no part",
        ),
        (
            "params.sample(logits, generator, state)[:, None]",
            "params.sample(logits, None, state)[:, None]",
            "the same seed, the same ids",
        ),
        ("if id in params.stop_ids", "if id == -1", "a stop id ends the text"),
    ],
    "generation-generate_batch": [
        ("seed + b)", "seed)", "another seed"),
        ("model.device, padding)", "model.device)", "tell the cache about it"),
    ],
    "generation-ex1": [
        ("[1.0, 3**0.5, 3.0]", "[1.0, 9.0, 81.0]", "you squared"),
    ],
    "generation-ex2": [
        ("min_p * probs.max()", "min_p", "share of the best"),
        ("return probs / probs.sum()", "return probs", "sum to 1"),
    ],
    "generation-ex3": [
        ("torch.where(old > 0, old / penalty, old * penalty)", "old / penalty", "multiply there"),
    ],
    "generation-ex4": [
        ("math.log(q)", "math.log2(q)", "base e"),
    ],
    "generation-ex5": [
        (
            "held[: held.index(stop)]",
            "held[: held.index(stop) + len(stop)]",
            "not part of the text",
        ),
        ("    yield held\n", "    pass\n", "must come out at the end"),
        (
            "keep = max(n for n in range(len(stop)) if held.endswith(stop[:n]))",
            "keep = 0",
            "spread over two pieces",
        ),
    ],
    "generation-ex6": [
        (
            "logits[:-1].log_softmax(-1).gather(-1, ids[1:, None])",
            "logits.log_softmax(-1).gather(-1, ids[:, None])",
            "speaks about token t + 1",
        ),
        ("-log_p.mean()", "log_p.mean()", "minus sign"),
    ],
    "speculation-speculate": [
        ("chosen[: accepted + 1]:", "chosen[: accepted + 2]:", "only accepted guesses count"),
        (
            "if id != chosen[i]), len(draft))",
            "if False), len(draft))",
            "only accepted guesses count",
        ),
        ("copied[: end - len(text) - 1]", "copied[: end - len(text)]", "not one more"),
        (
            "                if id in params.stop_ids:\n                    return\n",
            "",
            "also inside a draft",
        ),
    ],
    "speculation-ex1": [
        ('list("dac")', 'list("dab")', "the model is right"),
        ('list("dabd")', 'list("cabd")', "not the first"),
    ],
    "speculation-ex2": [
        ("max(1, (k + 1) / m)", "((k + 1) / m)", "never shorter"),
        ("range(k + 1))", "range(1, k + 1))", "even if no guess"),
    ],
    "speculation-ex3": [
        ("range(len(text) - 1, n - 1, -1)", "range(n, len(text))", "not the first"),
        ("range(len(text) - 1", "range(len(text)", "found themselves"),
    ],
    "speculation-ex4": [
        ("    others[d] = 0.0\n", "", "draw from the others"),
    ],
    "automata-spans": [
        (
            "    if high[1:] != highest:\n        found += [((last, last), *rest) for rest in "
            "spans(lowest, high[1:], least, most)]\n        last -= 1\n",
            "",
            "the number of ranges",
        ),
        ("last -= 1", "last -= 2", "without the ragged beginning or end"),
        ("*[(least, most)] * tail", "*[(0x80, 0xBF)] * tail", "numbers from 37 to 205"),
    ],
    "automata-TokenMasks": [
        ("if automaton.accepts(state):", "if False:", "where the text may end"),
        ("states[trie.nodes] > 0", "states[trie.nodes] >= 0", "the mask at the start"),
    ],
    "automata-ex1": [
        ("3, 3, 1", "2, 3, 1", "the second group opens in two ways"),
        ("3, 3, 1", "3, 2, 1", "opens in two ways"),
        ("3, 3, 1", "3, 3, 0", "is a whole text"),
    ],
    "automata-ex2": [
        ("return fit / fit.sum()", "return fit", "divide by the sum"),
        ("(joint * allowed).sum(-1)", "joint.sum(-1) * allowed.any(-1)", "the mask's answer"),
    ],
    "automata-ex3": [
        ("10 ** (digits - 1) if digits > 1 else 0", "0", "the numbers"),
        ("min(high, 10**digits - 1)", "min(high - 1, 10**digits - 1)", "one of them"),
        ("len(str(high)) + 1", "len(str(high))", "the numbers"),
    ],
    "automata-ex4": [
        ('stack.pop() + char not in ("()", "[]")', "not stack.pop()", "a counter does not see"),
        ("            return -1\n", "            continue\n", "the open brackets"),
    ],
    "automata-ex5": [
        ("return 2**optional, any_order", "return 2**optional, 24 * 2**optional", "orders, k!"),
        ("return 2**optional, any_order", "return 6, any_order", "there or not"),
    ],
    "chat-encode_llama3": [
        (', *encode("\\n\\n")', "", "blank line"),
        ('encode("\\n\\n")', 'encode("\\n")', "blank line"),
        (' + header("assistant")', "", "the generation prompt is missing"),
        (
            'encode(message.get("content", "")), "eot"',
            'encode(message.get("content", ""), allowed_special="all"), "eot"',
            "what a user writes is text",
        ),
        ("ids = [*format_of(tokenizer).first]", "ids = []", "BOS is missing"),
        (', control[f"<|{end}_id|>"]]', "]", "ends with eot"),
    ],
    "chat-fit": [
        ("messages[:start] + messages[first:]", "messages[first:]", "system"),
        ("<= limit", "< limit", "the limit itself still fits"),
    ],
    "chat-parse": [
        ("rest = rest[end:]", "break", "several calls"),
        (
            '[*calls, {"error": f"malformed call: {error}", "text": rest}]',
            "calls",
            "the malformed one is reported",
        ),
    ],
    "chat-run_dialog": [
        (
            "messages = [*messages, message, *results]",
            "messages = [*messages, *results]",
            "message",
        ),
        ("if not results:", "if False:", "an answer without a call ends the conversation"),
        ('"role": "ipython"', '"role": "tool"', "ipython"),
    ],
    "chat-ex1": [
        ("1 + 5 * n + 4", "5 * n + 4", "BOS is missing"),
    ],
    "chat-ex2": [
        ("header == [assistant]", "header != [assistant]", "not the user"),
    ],
    "chat-ex4": [
        (
            'tool(**arguments) if allow(name, arguments) else "refused"',
            "tool(**arguments)",
            "allow was not asked",
        ),
    ],
    "quantization-to_levels": [
        ("(2**bits - 1)", "2**bits", "3 steps"),
        (".round()\n", "\n", "the nearest level"),
        (
            "groups.amin(2), groups.amax(2)",
            "groups.amin((1, 2))[:, None].expand(groups.shape[:2]), groups.amax((1, 2))[:, "
            "None].expand(groups.shape[:2])",
            "each group has a grid",
        ),
    ],
    "quantization-unpack": [
        (
            "(columns & 15, columns >> 4)",
            "(columns >> 4, columns & 15)",
            "low halves are the first rows",
        ),
    ],
    "quantization-ex1": [
        ("blocks // 64 * 4", "blocks // 64 * 2", "4 bytes together"),
    ],
    "quantization-ex2": [
        ("/ -8", "/ 8", "the other sign"),
        (".clamp(-8, 7)", "", "16 levels"),
        ("group[group.abs().argmax()] / -8", "group.abs().max() / 7", "not by 7"),
    ],
    "quantization-ex3": [
        (
            "bytes_per_weight / 26e9 * 400e9",
            "26e9 / (bytes_per_weight * 400e9)",
            "the other way round",
        ),
    ],
    "training-document_positions": [
        ("same & causal_mask(*same.shape[1:], same.device)", "same", "nobody looks ahead"),
        (
            "(same & causal_mask(*same.shape[1:], same.device)).unsqueeze(1)",
            "causal_mask(*same.shape[1:], same.device).expand_as(same).unsqueeze(1)",
            "no document sees another",
        ),
        (
            "return places - (places * fresh).cummax(dim=1).values",
            "return places",
            "they begin again",
        ),
    ],
    "training-learning_rate": [
        ("(step + 1)", "step", "the first rate is not 0"),
        (
            "settings.min_lr_ratio + (1 - settings.min_lr_ratio) * (1 +",
            "(1 +",
            "ends at min_lr_ratio",
        ),
    ],
    "training-ex1": [
        (".mean().neg().exp()", ".mean().neg()", "take its exponential"),
        (".neg().exp()", ".exp()", "minus sign"),
    ],
    "training-ex2": [
        ("total - used - 1", "total - used", "the last target"),
        ("max(lengths)", "T", "fills its row"),
    ],
    "training-ex3": [
        ("/ asked.sum()", "/ len(targets)", "three targets"),
        ("pushes * asked[:, None]", "pushes", "nothing is asked"),
        (" / asked.sum()", "", "a mean, not a sum"),
    ],
    "training-ex4": [
        (
            "(m / (1 - b1**t)) / ((v / (1 - b2**t)) ** 0.5 + eps)",
            "m / (v ** 0.5 + eps)",
            "correct the bias",
        ),
        ("w = w - lr * decay * w", "w = w - decay * w", "multiplied by the learning rate"),
        ("    w = w - lr * decay * w\n", "    g = g + decay * w\n", "decay stands outside"),
    ],
    "parallel-ex1": [
        (
            "g, u, d = gate.chunk(t)[r], up.chunk(t)[r], down.chunk(t, dim=1)[r]",
            "g, u, d = gate, up, down",
            "a quarter of",
        ),
        ("F.silu(x @ g.T) * (x @ u.T)", "(x @ g.T) * F.silu(x @ u.T)", "silu is for the gate"),
    ],
    "parallel-ex2": [
        ("r * K // t", "r % K", "neighbours share a head"),
        ("r * K // t", "r // K", "how many ranks share"),
    ],
    "parallel-ex3": [
        (
            "return rows, columns // t * size",
            "return 1, columns // t * rows * size",
            "a column is not one run",
        ),
        (
            "return 1, rows // t * columns * size",
            "return rows // t, columns * size",
            "neighbouring rows are one run",
        ),
    ],
    "parallel-ex4": [
        ("len(counts) * count / sum(counts)", "count / sum(counts)", "once more"),
        ("len(counts) * count / sum(counts)", "1.0", "count more"),
    ],
    "parallel-ex5": [
        ("(2 * 2 * 252 * BIG.dim * 2)", "(2 * 252 * BIG.dim * 2)", "counts twice"),
    ],
    "scaling_laws-ex1": [
        ("(3.0 - 1.5) / (2.0 - 1.5)", "3.0 / 2.0", "subtract what nobody can know"),
        ("exponent = ", "exponent = -", "larger models lose less"),
        ("(3.0 - 1.5) * 1e6", "3.0 * 1e6", "the debt is 1.5"),
    ],
    "scaling_laws-ex2": [
        ("delta * (size - delta / 2)", "delta * size", "subtract half of delta"),
        ("size**2 / 2", "size**2", "half the square"),
        (".mean()", ".sum()", "the mean, not the sum"),
    ],
    "scaling_laws-ex3": [
        ("law(2 * N, D), law(N, 2 * D)", "law(N, 2 * D), law(2 * N, D)", "first twice the weights"),
    ],
    "scaling_laws-ex4": [
        ("w / (s - 1)", "w", "one particular wrong symbol"),
        ("w / (s - 1)", "w / s", "not among the slips"),
    ],
    "scaling_laws-ex5": [
        ("C - 2 * sizes * served", "C - 0 * sizes", "serving costs operations too"),
        ("C - 2 * sizes", "C - 6 * sizes", "2 N, not 6 N"),
    ],
    "addition-ex1": [
        ("3 * n + 3 + 9 * n", "3 * n + 3 + 8 * n", "the commas are tokens"),
        ("3 * n + 3, 3 * n + 3 + 9 * n", "3 * n + 2, 3 * n + 2 + 9 * n", "the newline is a token"),
    ],
    "addition-ex3": [
        ("(len(asked) - 1) + said", "len(asked) + said[1:]", "predicted at the equals sign"),
        ("[IGNORE] * (len(asked) - 1) + said", "ids[1:]", "the question is masked"),
        ("ids[:-1],", "ids,", "the last id has no target"),
    ],
    "addition-ex4": [
        ("str(a)[::-1]", "str(a)", "from the right"),
        ("carry = result // 10", "carry = 0", "the carry is added"),
        ("{result:02}", "{result}", "two digits"),
    ],
    "addition-ex5": [
        ("total == 9 and length", "total == 9", "only if a carry comes in"),
        ("1 if total > 9 else", "length + 1 if total > 9 else", "begins anew"),
    ],
    "finetuning-ex1": [
        ("2 * (4096 + 1024)", "2 * (4096 + 4096)", "k and v have 8 heads"),
        ("32 * per_block", "per_block", "that is one block"),
        (None, "trained_8b = 32 * 16 * (2 * 4096 * 4096 + 2 * 4096 * 1024)", "not rNC"),
        (None, "trained_8b = 32 * 16 * 4 * 4096", "both count"),
    ],
    "finetuning-ex2": [
        ("alpha / len(a)", "alpha", "divide alpha by the rank"),
        ("alpha / len(a)", "alpha / len(b)", "a's rows, not of b's"),
        ("alpha / len(a) * ", "", "alpha is missing"),
        ("x @ W.T + ", "", "frozen layer's own result"),
        (None, "return alpha / len(a) * (x @ W.T + (x @ a.T) @ b.T)", "which is not scaled"),
    ],
    "finetuning-ex3": [
        ("s1 * b1, s2 * b2", "b1, b2", "the factors are missing"),
        ("torch.cat((a1, a2))", "torch.cat((s1 * a1, s2 * a2))", "one of the two parts"),
        (None, "return a1 + a2, s1 * b1 + s2 * b2", "side by side"),
        (", dim=1", "", "must share r"),
        (None, "return s1 * b1 @ a1 + s2 * b2 @ a2", "not their product"),
    ],
    "finetuning-ex4": [
        (None, "return b", "nothing has moved"),
        (
            ".view(kv_heads, -1, 2, b.shape[-1]).transpose(1, 2)",
            ".view(-1, 2, b.shape[-1]).transpose(0, 1)",
            "per head",
        ),
        (
            "(kv_heads, -1, 2, b.shape[-1])",
            "(kv_heads, 2, -1, b.shape[-1])",
            "that is the way back",
        ),
    ],
    "finetuning-ex5": [
        ("s * s * G", "s * G", "s comes twice"),
        ("s * s * G", "G", "s is missing"),
        ("-eta", "eta", "against the gradient"),
        (None, "return -eta * G", "the step of full training"),
    ],
    "instructions-ex1": [
        (
            "found.append(writing)\n        writing = writing and id != end",
            "writing = writing and id != end\n        found.append(writing)",
            "decision too",
        ),
        (
            "max(0, i - len(header)) : i",
            "max(0, i - len(header) + 1) : i + 1",
            "the header is given",
        ),
        ("        writing = writing and id != end\n", "", "what the user wrote"),
    ],
    "instructions-ex2": [
        ("(2 * 3.0 + 30 * 0.2) / 32", "1.6", "every token counts alike"),
        ("(3.0 + 0.2) / 2", "over_tokens", "every conversation counts alike"),
    ],
    "instructions-ex3": [
        (None, "return -(-sum(sizes) // room)", "they are not cut"),
        (None, "return len(sizes)", "a row holds several"),
        (None, "return 6", "other sizes"),
        (
            "enumerate(left) if",
            "enumerate(left) if i == len(left) - 1 and",
            "earlier rows may have room",
        ),
    ],
    "instructions-ex4": [
        (None, "return wrote", "the first answer is not asked for"),
        ("start <= i < end", "i == end - 1", "the whole last answer"),
        ("start <= i < end", "start <= i", "what follows the last answer"),
    ],
    "instructions-ex5": [
        ("json.loads(text) == json.loads(right)", "text == right", "no difference of value"),
        (
            "json.loads(text)",
            "json.JSONDecoder().raw_decode(text)[0]",
            "nothing else may stand there",
        ),
        (
            "json.loads(text) == json.loads(right)",
            'json.loads(text.replace(\'"2"\', "2")) == json.loads(right)',
            '"2" is a text',
        ),
    ],
    "preferences-ex1": [
        ("wins / losses", "wins / (wins + losses)", "not the share of all votes"),
        ("math.log(wins / losses)", "wins / (wins + losses)", "the chance to win"),
        ("math.log(wins / losses)", "wins / losses", "take their logarithm"),
        ("wins / losses", "losses / wins", "the sign is wrong"),
        ("math.log(", "math.log10(", "the natural logarithm"),
    ],
    "preferences-ex2": [
        ("reference.log() + ", "", "starts from the reference"),
        ("reference.log()", "reference", "the reference's logarithm"),
        ("reward / beta", "reward * beta", "do not multiply"),
        ("reward / beta", "reward", "beta is missing"),
        (None, "return reference * (reward / beta).exp()", "divide by Z"),
    ],
    "preferences-ex3": [
        ("range(n - 1, len(ids) - 1), ids[n:]", "range(len(ids) - 1), ids[1:]", "not the prompt"),
        ("range(n - 1, len(ids) - 1), ids[n:]", "range(n, len(ids)), ids[n:]", "go one place back"),
        (
            "range(n - 1, len(ids) - 1), ids[n:]",
            "range(n, len(ids) - 1), ids[n + 1 :]",
            "the answer's first token",
        ),
        (
            "range(n - 1, len(ids) - 1), ids[n:]",
            "range(n - 1, len(ids) - 2), ids[n:-1]",
            "its last token counts",
        ),
        (".log_softmax(1)", "", "log-softmax"),
        ("each.sum()", "each.mean()", "not the mean"),
        ("each.sum()", "each.sum().exp()", "not the probability"),
    ],
    "preferences-ex4": [
        (
            "(1 - share) * F.logsigmoid(margin) + share *",
            "share * F.logsigmoid(margin) + (1 - share) *",
            "the doubt belongs",
        ),
        (" + share * F.logsigmoid(-margin)", "", "counts with its share too"),
        ("(1 - share) * ", "", "they add up to 1"),
        (" + share", " - share", "adds to the loss"),
        (".mean()", ".sum()", "not the sum"),
    ],
    "preferences-ex5": [
        ("- share", "+ share", "the sign"),
        (" / counts[0]", "", "per token"),
        ("scores[0] / counts[0]", "scores / counts", "not to both"),
        ("scores[0] / counts[0]", "scores[1] / counts[1]", "not to the rejected ones"),
        ("share * ", "", "share is missing"),
        ("(scores[0] / counts[0]).mean()", "scores[0].sum() / counts[0].sum()", "then the mean"),
    ],
    "evaluation-ex1": [
        ("math.log2(perplexity)", "math.log(perplexity)", "bits, not nats"),
        ("n_tokens / n_bytes", "1", "that is per token"),
        ("n_tokens / n_bytes", "n_bytes / n_tokens", "a token has several bytes"),
    ],
    "evaluation-ex2": [
        ("i - start", "i - start + 1", "is not its context"),
        ("i - start", "i", "a window that moves"),
        ("i - start", "end - 1 - start", "token 4 stands behind token 3"),
    ],
    "evaluation-ex3": [
        ("p / len(text.encode())", "p * len(text.encode())", "divide by the bytes"),
        ("len(text.encode())", "len(text)", "bytes, not characters"),
        ("max(range", "min(range", "nearest to zero"),
        ("(logprobs, per_byte)", "(per_byte, logprobs)", "the sum comes first"),
    ],
    "evaluation-ex4": [
        (None, "return 1 - (1 - c / n) ** k", "the naive estimate"),
        ("return 1 - math.prod", "return math.prod", "1 minus the product"),
        ("range(n - c + 1, n + 1)", "range(n - c + 1, n)", "go up to n itself"),
    ],
    "evaluation-ex5": [
        (
            None,
            "x, y = (torch.tensor(z, dtype=torch.float64) for z in (a, b))\n"
            "return ((x.var() + y.var()) / len(x)).sqrt().item()",
            "answered other questions",
        ),
        (" / len(x) ** 0.5", "", "divide by the root of n"),
        ("len(x) ** 0.5", "len(x)", "not by n"),
        ("x.std()", "x.std(correction=0)", "by n - 1"),
    ],
    "evaluation-ex6": [
        ("0.1 - 0.02**2", "0.02 - 0.02**2", "they differ on 6 + 4"),
        ("2 * 0.5 * 0.5", "0.5 * 0.5", "two variances"),
    ],
    "evaluation-ex7": [
        ("[1] * 25 + [0] * 75", "[0] * 100", "look at the distance"),
        ("[1] * 90 + [0] * 10", "[1] * 10 + [0] * 90", "between 1.0 and 0.9"),
    ],
}

RIGHT = {
    "config-ex3": [
        (
            None,
            """
steps = range(len(ids) - 1)
return -sum(logits[t].log_softmax(-1)[ids[t + 1]] for t in steps) / len(steps)
""",
        ),
    ],
    "config-ex5": [
        (
            None,
            """
answer = []
for column in top_ids.T.tolist():
    state = len(column) - 1
    while state and column[state - 1] == column[-1]:
        state -= 1
    answer.append(state)
return torch.tensor(answer)
""",
        ),
    ],
    "tokenizer-merge_pair": [
        (
            None,
            """
done, rest = [], list(parts)
while rest:
    if rest[:2] == list(pair):
        done.append(b"".join(pair))
        del rest[:2]
    else:
        done.append(rest.pop(0))
return done
""",
        ),
    ],
    "tokenizer-ex4": [
        (None, "return list(chr(code_point).encode())"),
    ],
    "tokenizer-ex6": [
        (
            None,
            """
if not data:
    return 1
return sum(spellings(data[len(token) :], vocab) for token in vocab if data.startswith(token))
""",
        ),
    ],
    "rmsnorm-RMSNorm": [
        (
            None,
            "length = (torch.einsum('...d,...d->...', x.double(), x.double()) / x.shape[-1] + "
            "self.eps) ** "
            "0.5\n"
            "return (x / length[..., None]).to(x.dtype) * self.weight",
        ),
        (
            None,
            """
import numpy as np

a = x.detach().numpy().astype(np.float32)
a = a / np.sqrt((a**2).mean(axis=-1, keepdims=True) + self.eps)
return torch.from_numpy(a).to(x.dtype) * self.weight
""",
        ),
    ],
    "rmsnorm-ex3": [
        (
            None,
            "return torch.cat([head / head.square().mean(-1, keepdim=True).sqrt() for head in "
            "x.chunk(n_heads, -1)], -1)",
        ),
    ],
    "rope-rope_frequencies": [
        (
            None,
            """
freqs = torch.tensor([theta ** (-2 * i / head_dim) for i in range(head_dim // 2)])
if scaling:
    freqs = scale_frequencies(freqs, scaling)
return freqs
""",
        ),
    ],
    "rope-apply_rope": [
        (
            None,
            """
z = torch.view_as_complex(x.float().reshape(*x.shape[:-1], -1, 2))
return torch.view_as_real(z * torch.complex(cos, sin)).reshape(x.shape).to(x.dtype)
""",
        ),
        (
            None,
            """
a, b, out = x[..., ::2].float(), x[..., 1::2].float(), torch.zeros(x.shape)
out[..., ::2] = a * cos - b * sin
out[..., 1::2] = b * cos + a * sin
return out.to(x.dtype)
""",
        ),
    ],
    "rope-scale_frequencies": [
        (
            None,
            """
scaled = []
for f in freqs.tolist():
    wavelength = 2 * math.pi / f
    if wavelength > scaling.original_max_seq_len / scaling.low_freq_factor:
        f = f / scaling.factor
    elif wavelength > scaling.original_max_seq_len / scaling.high_freq_factor:
        s = scaling.original_max_seq_len / wavelength - scaling.low_freq_factor
        s = s / (scaling.high_freq_factor - scaling.low_freq_factor)
        f = (1 - s) * f / scaling.factor + s * f
    scaled.append(f)
return torch.tensor(scaled, dtype=freqs.dtype)
""",
        ),
    ],
    "rope-ex3": [
        (
            None,
            """
width = len(weight) // n_heads
order = [h * width + i for h in range(n_heads) for half in (0, 1) for i in range(half, width, 2)]
return weight[order]
""",
        ),
    ],
    "attention-attend": [
        (
            "allowed = torch.ones(n_queries, n_keys, dtype=torch.bool, device=device)\n"
            "    return allowed.tril(diagonal=n_keys - n_queries)",
            "t = torch.arange(n_queries, device=device) + n_keys - n_queries\n"
            "    return t[:, None] >= torch.arange(n_keys, device=device)",
        ),
        (
            "K, S = k.shape[1:3]\n"
            "    q = q.reshape(B, K, H // K * T, W)  # the G heads of a group are just more "
            "queries to the "
            "same keys\n"
            "    scores = (q @ k.transpose(-2, -1) / math.sqrt(W)).view(B, H, T, S)",
            "K, S = k.shape[1:3]\n"
            "    k = k.repeat_interleave(H // K, dim=1)\n"
            "    scores = torch.einsum('bhtw,bhsw->bhts', q / W**0.5, k)",
        ),
    ],
    "attention-Attention": [
        (
            None,
            """
B, T, _ = x.shape
q = self.wq(x).view(B, T, -1, self.head_dim).permute(0, 2, 1, 3)
k = self.wk(x).view(B, T, -1, self.head_dim).permute(0, 2, 1, 3)
v = self.wv(x).view(B, T, -1, self.head_dim).permute(0, 2, 1, 3)
q, k = apply_rope(q, *rope), apply_rope(k, *rope)
if cache:
    k, v = cache.update(k, v)
out = attend(q, k, v, mask)
return self.wo(out.permute(0, 2, 1, 3).reshape(B, T, -1))
""",
        ),
    ],
    "attention-ex2": [
        (None, "return (scores - scores.logsumexp(-1, keepdim=True)).exp()"),
    ],
    "attention-ex5": [
        (
            None,
            """
mask = torch.zeros(n_queries, n_keys, dtype=torch.bool)
for t in range(n_queries):
    own = n_keys - n_queries + t
    mask[t, max(0, own - window + 1) : own + 1] = True
return mask
""",
        ),
    ],
    "feedforward-FeedForward": [
        (None, "g = self.gate(x)\nreturn self.down(self.up(x) * g / (1 + torch.exp(-g)))"),
        (
            None,
            """
gate = torch.einsum("btd,fd->btf", x, self.gate.weight)
up = torch.einsum("btd,fd->btf", x, self.up.weight)
return torch.einsum("btf,df->btd", gate * gate.sigmoid() * up, self.down.weight)
""",
        ),
    ],
    "model-Block": [
        (
            None,
            """
attended = self.attention(self.attention_norm(x), rope=rope, mask=mask, cache=cache, attend=attend)
stream = attended.add(x)
return self.feed_forward(self.ffn_norm(stream)).add(stream)
""",
        ),
    ],
    "model-Llama": [
        (
            "x = self.embedding(tokens)",
            "x = self.embedding.weight[tokens]",
        ),
        (
            "for block, layer in zip(self.blocks, layers, strict=True):\n"
            "            x = self.through(block, x, rope, mask, layer, backend.attend)",
            "for i in range(self.cfg.n_layers):\n"
            "            x = self.blocks[i](x, rope, mask, layers[i], backend.attend)",
        ),
    ],
    "model-ex1": [
        (
            None,
            'with torch.device("meta"):\n    return sum(weight.numel() for weight in '
            "Llama(cfg).parameters())",
        ),
    ],
    "checkpoints-rename": [
        (
            None,
            """
parts, numbers = name.split("."), [part for part in name.split(".") if part.isdigit()]
pattern = ".".join("N" if part.isdigit() else part for part in parts)
if pattern not in table or name == pattern and "N" in parts:
    raise CheckpointError(f"no Llama has a {name}")
for number in numbers:
    return table[pattern].replace("N", number)
return table[pattern]
""",
        ),
    ],
    "checkpoints-ex1": [
        (
            None,
            "return torch.tensor([first, second], dtype=torch.uint8).view(torch.bfloat16).item()",
        ),
    ],
    "hugging_face-interleave": [
        (
            None,
            """
out = []
for head in weight.chunk(heads):
    first, second = head.chunk(2)
    out += [row for pair in zip(first, second, strict=True) for row in pair]
return torch.stack(out)
""",
        ),
    ],
    "meta-read_joined": [
        (None, "return torch.cat([piece.read() for piece in pieces], dim=along)"),
    ],
    "gguf-unpack": [
        (
            None,
            """
import numpy as np

runs = data.numpy().reshape(len(data), -1, 1, run)
shifts = np.arange(0, 8, bits, dtype=np.uint8)[:, None]
return torch.from_numpy(((runs >> shifts) & (2**bits - 1)).reshape(len(data), -1))
""",
        ),
    ],
    "kv_cache-ex4": [
        (
            None,
            "return [max((p for p in range(n) if p % w == slot), default=-1) for slot in range(w)]",
        ),
    ],
    "generation-distribution": [
        (
            None,
            """
out = torch.zeros(logits.shape)
for row, z in enumerate(logits.double() / min(max(temperature, 1e-30), 1e30)):
    order = sorted(range(len(z)), key=lambda i: -z[i])[: top_k or len(z)]
    p = (z[order] - z[order[0]]).exp()
    p, before = p / p.sum(), 0.0
    for i, share in zip(order, p.tolist(), strict=True):
        if top_p is None or before <= top_p:
            out[row, i] = share
        before += share
return out / out.sum(-1, keepdim=True)
""",
        ),
    ],
    "generation-ex3": [
        (
            None,
            """
out = logits.tolist()
for id in set(seen):
    out[id] = out[id] * penalty if out[id] < 0 else out[id] / penalty
return torch.tensor(out)
""",
        ),
    ],
    "generation-ex6": [
        (None, "return torch.nn.functional.cross_entropy(logits[:-1], ids[1:]).exp()"),
    ],
    "speculation-ex3": [
        (
            None,
            """
places = [i + n for i in range(len(text) - n) if text[i : i + n] == text[len(text) - n :]]
draft = []
while places and len(draft) < k:
    draft.append((text + draft)[places[-1] + len(draft)])
return draft
""",
        ),
    ],
    "chat-fit": [
        (
            None,
            """
keep, rest = [], list(messages)
while rest and rest[0]["role"] == "system":
    keep.append(rest.pop(0))
gone = []
while len(encode_dialog(tokenizer, keep + rest)) > limit:
    last = max((i for i, message in enumerate(rest) if message["role"] == "user"), default=0)
    if last == 0:
        raise ValueError(f"no {limit} ids are enough")
    gone.append(rest.pop(0))
    while rest[0]["role"] != "user":
        gone.append(rest.pop(0))
return keep + rest, gone
""",
        ),
    ],
    "quantization-to_levels": [
        (
            None,
            """
import numpy as np

rows, columns = weight.shape
if columns % group:
    raise ValueError("groups do not fit")
levels, step, low = np.zeros((rows, columns)), np.zeros((rows, columns // group)), np.zeros((rows, columns // group))
for n, row in enumerate(weight.float().numpy()):
    for g, part in enumerate(row.reshape(-1, group)):
        low[n, g], step[n, g] = part.min(), max((part.max() - part.min()) / (2**bits - 1), 1e-8)
        levels[n, g * group : (g + 1) * group] = np.rint((part - low[n, g]) / step[n, g])
return torch.tensor(levels, dtype=torch.uint8), torch.tensor(step).float(), torch.tensor(low).float()
""",
        ),
    ],
    "training-document_positions": [
        (
            "places = torch.arange(documents.shape[1], "
            "device=documents.device).expand_as(documents)\n"
            "    fresh = torch.ones_like(documents, dtype=torch.bool)\n"
            "    fresh[:, 1:] = documents[:, 1:] != documents[:, :-1]\n"
            "    return places - (places * fresh).cummax(dim=1).values",
            "out = torch.zeros_like(documents)\n"
            "    for t in range(1, documents.shape[1]):\n"
            "        out[:, t] = torch.where(documents[:, t] == documents[:, t - 1], out[:, t - 1] "
            "+ 1, 0)\n"
            "    return out",
        ),
    ],
    "training-ex1": [
        (None, "return F.cross_entropy(logits, targets, ignore_index=IGNORE).exp()"),
    ],
    "training-ex4": [
        (
            None,
            """
w = w.clone()
m = b1 * m + (1 - b1) * g
v = b2 * v + (1 - b2) * g * g
step = (m / (1 - b1**t)) / (torch.sqrt(v / (1 - b2**t)) + eps)
w *= 1 - lr * decay
w -= lr * step
return w, m, v
""",
        ),
    ],
    "finetuning-ex2": [
        (None, "return (W @ x.T + alpha / a.shape[0] * b @ (a @ x.T)).T"),
        (None, "return F.linear(x, W) + F.linear(F.linear(x, a) * (alpha / len(a)), b)"),
    ],
    "finetuning-ex3": [(None, "return torch.cat((s1 * a1, s2 * a2)), torch.hstack((b1, b2))")],
    "finetuning-ex4": [
        (None, "return torch.cat([rows[i::2] for rows in b.chunk(kv_heads) for i in (0, 1)])"),
    ],
    "finetuning-ex5": [(None, "b = -eta * s * G @ a.T\nreturn s * b @ a")],
    "instructions-ex1": [
        (
            None,
            """
            found, i = [False] * len(ids), 0
            while i < len(ids):
                if ids[i : i + len(header)] == header:
                    i += len(header)
                    while i < len(ids):
                        found[i] = True
                        if ids[i] == end:
                            break
                        i += 1
                i += 1
            return found
            """,
        ),
    ],
    "instructions-ex4": [
        (
            None,
            """
            after, found = "before", []
            for mine in reversed(wrote):
                if after == "before" and mine:
                    after = "in"
                elif after == "in" and not mine:
                    after = "past"
                found.append(after == "in")
            return found[::-1]
            """,
        ),
    ],
    "preferences-ex2": [
        (None, "product = reference * torch.exp(reward / beta)\nreturn product / product.sum()")
    ],
    "preferences-ex3": [
        (None, "return sum(scores[i - 1].log_softmax(0)[ids[i]] for i in range(n, len(ids)))"),
    ],
    "preferences-ex4": [
        (None, "return (1 - share) * dpo_loss(rewards) + share * dpo_loss(rewards.flip(0))"),
    ],
    "evaluation-ex3": [
        (
            None,
            "x = torch.tensor(logprobs)\n"
            "n = torch.tensor([len(text.encode()) for text in choices])\n"
            "return [x.argmax().item(), (x / n).argmax().item()]",
        ),
    ],
    "evaluation-ex4": [(None, "return 1 - math.comb(n - c, k) / math.comb(n, k)")],
}
