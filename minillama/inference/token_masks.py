"""10a. Constrained decoding: output that always parses.

Written by notebooks/10a_constrained.ipynb: edit it there.
"""

import weakref

import numpy as np
import torch

from minillama.inference.automata import DEAD, MAX_STATES


MAX_MASKS = 2_048  # that a TokenMasks keeps, a bit per token


class Trie:
    """The tokens of a vocabulary by their beginnings, in layers: every node of a layer adds one
    byte to one of the layer before.
    """

    def __init__(self, token_bytes: dict[int, bytes], size: int):
        order = sorted((data, id) for id, data in token_bytes.items() if data)
        self.ids, self.size = np.array([id for _, id in order], np.int64), size
        lengths = np.array([len(data) for data, _ in order])
        text = np.frombuffer(b"".join(data for data, _ in order), np.uint8)
        begin = lengths.cumsum() - lengths
        self.layers, self.nodes = [], np.zeros(len(order), np.int64)  # the node of each token
        where, count = np.zeros(len(order), np.int64), 1  # node 0 is the root
        for depth in range(lengths.max(initial=0)):
            long = lengths > depth
            keys = where[long] * 256 + text[begin[long] + depth]
            found, inverse = np.unique(keys, return_inverse=True)
            self.layers.append((found // 256, found % 256))
            where[long] = count + inverse
            self.nodes[long] = where[long]
            count += len(found)
        self.count = count


class TokenMasks:
    """Which tokens may come next under a constraint, for a tokenizer: `generate(constraint=...)`.

    A state is the automaton's. The tokenizer's stop ids are allowed where the text may end.
    canonical: text that must come is cut into tokens as the tokenizer would cut it.
    """

    tries = weakref.WeakKeyDictionary()  # one for each tokenizer

    def __init__(self, tokenizer, automaton, stop_ids=None, canonical=True):
        self.automaton, self.canonical, self.masks = automaton, canonical, {}
        self.stop_ids = frozenset(tokenizer.stop_ids if stop_ids is None else stop_ids)
        if not self.stop_ids:
            raise ValueError("a constraint needs stop ids: this tokenizer has none, so give some")
        self.special = frozenset(tokenizer.specials.values())
        if tokenizer not in self.tries:
            known = tokenizer.token_bytes.items()
            tokens = {id: data for id, data in known if id not in self.special}
            self.tries[tokenizer] = Trie(tokens, tokenizer.vocab_size)
        self.trie, self.tokenizer = self.tries[tokenizer], tokenizer
        self.start = automaton.start

    def walk(self, state) -> np.ndarray:
        """Whether each token may come next: (V,) bool, from one walk over the trie."""
        automaton, trie = self.automaton, self.trie
        states = np.zeros(trie.count, np.int32)  # of each node; 0 is DEAD
        states[0], first = automaton.number(state), 1
        for parents, added in trie.layers:
            before = states[parents]
            automaton.fill(np.unique(before))
            states[first : first + len(parents)] = here = automaton.table[before, added]
            first += len(parents)
            if not here.any():
                break
        mask = np.zeros(trie.size, bool)
        mask[trie.ids] = states[trie.nodes] > 0
        if automaton.accepts(state):
            mask[list(self.stop_ids)] = True
        return mask

    def mask(self, state) -> torch.Tensor:
        """`walk`, once for each state, and of text that must come only its first token: (V,)
        bool.
        """
        if state not in self.masks:
            if len(self.automaton.states) > MAX_STATES:
                self.automaton.forget()
            if len(self.masks) >= MAX_MASKS:
                self.masks.clear()
            mask, ids = self.walk(state), self.forced(state) if self.canonical else []
            # subtle: the last of the ids could be another one together with what follows
            if len(ids) > 1 and mask[ids[0]]:
                mask[:] = np.arange(len(mask)) == ids[0]
            self.masks[state] = np.packbits(mask)
        bits = np.unpackbits(self.masks[state], count=self.trie.size)
        return torch.from_numpy(bits.view(bool))

    def rule_out(self, logits: torch.Tensor, state) -> torch.Tensor:
        """Logits (..., V), those of tokens that may not come next at -inf. ValueError if none
        may.
        """
        mask = self.mask(state)
        if not mask.any():
            raise ValueError("no token of the vocabulary can continue what the constraint wants")
        mask = torch.nn.functional.pad(mask, (0, logits.shape[-1] - len(mask))).to(logits.device)
        return logits.masked_fill(~mask, -torch.inf)

    def step(self, state, id: int):
        """The state behind a token; DEAD for one that is not allowed."""
        if id in self.special:
            return DEAD
        return self.automaton.step(state, self.tokenizer.token_bytes[id])

    def forced(self, state) -> list[int]:
        """The ids of the text that must come next, as the tokenizer would cut it; [] where there is
        a choice.
        """
        data = self.automaton.forced(state)
        return self.tokenizer.encode(data.decode(errors="ignore"))
