"""Is a checkpoint what it says it is? `minillama verify` checks it by itself and beside other
programs.
"""

import gc

from minillama.checkpoints import hub
from minillama.checkpoints.assemble import assemble
from minillama.checkpoints.files import CheckpointError
from minillama.checkpoints.formats import open_checkpoint
from minillama.checkpoints.verify_checks import (
    LLAMA_3_SPECIALS,
    Report,
    check_known_answer,
    check_numbers,
    check_sizes,
    check_tokenizer,
)
from minillama.checkpoints.verify_references import (
    GOLDEN_NAME,
    compare_with_meta,
    compare_with_transformers,
    outputs,
)


def verify(name_or_path) -> int:
    """Print what a checkpoint is and check it: 0 if every check holds, else 1. CheckpointError if
    it is unreadable.
    """
    path, report = hub.locate(name_or_path), Report()
    try:
        checkpoint = open_checkpoint(path)
        dtype = checkpoint.tensors["blocks.0.attention.wk.weight"].read().dtype
        model, tokenizer = assemble(checkpoint, dtype), checkpoint.tokenizer
    except (CheckpointError, OSError) as error:
        raise CheckpointError(f"{path}: {getattr(error, 'strerror', None) or error}") from None
    check_sizes(report, model.cfg)
    check_tokenizer(report, tokenizer)
    if not check_numbers(report, model):
        print("with such values there is nothing to compare")
        return 1
    if path == hub.find(GOLDEN_NAME):
        compare_with_meta(report, model)
    if (
        model.cfg.dim == 4096
        and tokenizer
        and LLAMA_3_SPECIALS.items() <= tokenizer.specials.items()
    ):
        check_known_answer(report, model, tokenizer, strict="instruct" in path.name.lower())
    results = outputs(model, tokenizer)
    del model  # transformers' takes its place in memory
    gc.collect()
    compare_with_transformers(report, path, results)
    print(
        f"{report.failed} of these checks FAILED" if report.failed else "all of these checks hold"
    )
    return int(report.failed > 0)
