"""minillama as a model of lm-evaluation-harness, with all its tasks.

python -m minillama.evaluation.harness --model minillama --model_args path=MODEL --tasks ...

takes what the command `lm_eval` takes. The harness is installed by: pip install lm_eval
"""

import sys

import torch

from minillama.checkpoints.assemble import progress_bar
from minillama.evaluation.exact import write_until
from minillama.evaluation.likelihood import AnswerScorer, token_losses
from minillama.evaluation.tasks import encode_pair, encode_text, prefix_id
from minillama.inference.loading import load


try:
    from lm_eval.api.model import LM
    from lm_eval.api.registry import register_model
except ImportError as error:
    MISSING = f"lm-evaluation-harness is not there ({error}): pip install lm_eval"
    if __name__ != "__main__":
        raise ImportError(MISSING) from None
    print(f"minillama: {MISSING}", file=sys.stderr)
    sys.exit(2)


SAMPLING = ("temperature", "top_p", "top_k")


@register_model("minillama")
class MiniLlama(LM):
    """A model by name or path, as the harness asks it."""

    def __init__(self, path, dtype="float32", device=None, quantize=None, **_):
        super().__init__()
        self.model, self.llama_tokenizer = load(
            path, dtype=getattr(torch, dtype), device=device or "cpu", quantize=quantize or None
        )
        if self.llama_tokenizer is None:
            raise ValueError(f"{path} has no tokenizer")

    @classmethod
    def create_from_arg_string(cls, arg_string, additional_config=None):
        """From "path=...,dtype=..."; of the harness's own settings only the device matters here."""
        given = dict(part.split("=", 1) for part in arg_string.split(",") if part)
        return cls.create_from_arg_obj(given, additional_config)

    @classmethod
    def create_from_arg_obj(cls, arg_dict, additional_config=None):
        """As above, from a dict."""
        if "path" not in arg_dict:
            raise ValueError("--model_args must name the model: path=MODEL")
        device = (additional_config or {}).get("device") if torch.cuda.is_available() else None
        return cls(**({"device": device} | arg_dict))

    def loglikelihood(self, requests, disable_tqdm=False) -> list[tuple[float, bool]]:
        """For each (context, continuation): its log-probability, and whether greedy writes it.

        Requests in a row that share a context are one pass; those that do not share keys and values
        as far as they begin alike.
        """
        limit, scorer = self.model.cfg.max_seq_len, AnswerScorer(self.model)
        pairs = [encode_pair(self.llama_tokenizer, *request.args) for request in requests]
        # the longest context that all its continuations leave room for, as the harness cuts it
        pairs = [(ids[-(limit + 1 - len(after)) :], after) for ids, after in pairs]
        order = sorted(range(len(pairs)), key=lambda i: pairs[i][0])  # same beginnings meet
        found, bar = [None] * len(pairs), progress_bar(total=len(pairs), shown=not disable_tqdm)
        while order:
            context = pairs[order[0]][0]
            count = next((n for n, i in enumerate(order) if pairs[i][0] != context), len(order))
            now, order = order[:count], order[count:]
            scores = scorer(context, [pairs[i][1] for i in now])
            for i, score in zip(now, scores, strict=True):
                found[i] = (score.logprob, score.greedy)
                self.cache_hook.add_partial("loglikelihood", requests[i].args, found[i])
            bar.update(count)
        bar.close()
        return found

    def loglikelihood_rolling(self, requests, disable_tqdm=False) -> list[float]:
        """For each text: its log-probability, in windows as long as the model's; the last reaches
        back as far as it can, as in the harness.
        """
        found, window = [], self.model.cfg.max_seq_len
        for request in progress_bar(requests, shown=not disable_tqdm):
            text = self.llama_tokenizer.encode(request.args[0])
            ids = [prefix_id(self.llama_tokenizer), *text]
            found.append(-token_losses(self.model, ids, window, window).sum().item())
        return found

    def generate_until(self, requests, disable_tqdm=False) -> list[str]:
        """For each (context, settings): what the model writes up to the first stop string."""
        found = []
        for request in progress_bar(requests, shown=not disable_tqdm):
            context, asked = request.args
            stops = asked.get("until") or []
            draws = asked.get("do_sample") or asked.get("temperature")
            sampling = {key: asked[key] for key in SAMPLING if draws and key in asked}
            found.append(
                write_until(
                    self.model,
                    self.llama_tokenizer,
                    encode_text(self.llama_tokenizer, context),
                    [stops] if isinstance(stops, str) else stops,
                    asked.get("max_gen_toks", 256),
                    **sampling,
                )
            )
        return found


def main() -> int:
    """The harness's own command, in which the model `minillama` is known."""
    from lm_eval.__main__ import cli_evaluate

    try:
        cli_evaluate()
    except ValueError as error:
        print(f"minillama: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
