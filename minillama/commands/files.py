"""fetch, verify, convert: files of weights come, are checked, and become other files."""

from argparse import RawDescriptionHelpFormatter

import torch

from minillama.checkpoints import hub, repository, verify
from minillama.checkpoints.hugging_face_writer import save_hugging_face
from minillama.checkpoints.meta_writer import save_meta
from minillama.commands.options import DEFAULT_MODEL, DTYPE_NAMES
from minillama.inference.loading import load
from minillama.training.adapters import load_adapter
from minillama.training.finetuning import merge_lora


def add(commands) -> None:
    fetch = commands.add_parser(
        "fetch", help="fetch real weights, a vocabulary or a benchmark by name, once",
        epilog=repository.HELP, formatter_class=RawDescriptionHelpFormatter,
    )  # fmt: skip
    fetch.add_argument(
        "name", help=", ".join([*hub.ARTEFACTS, "all (of these)", "or ORG/NAME at Hugging Face"])
    )
    fetch.set_defaults(run=run_fetch)

    check = commands.add_parser(
        "verify", help="check a checkpoint, and compare it with Meta's code and transformers"
    )
    check.add_argument(
        "model",
        nargs="?",
        default=DEFAULT_MODEL,
        help="a name, a .gguf file or a folder (%(default)s)",
    )
    check.set_defaults(run=run_verify)

    change = commands.add_parser(
        "convert",
        help="write any checkpoint as a folder that others read",
        description="Write a checkpoint as a folder of Hugging Face's form, which most programs "
        "read, or of Meta's. "
        "An older checkpoint there is replaced when the new one is complete; a folder with other "
        "files is left alone.",
    )
    change.add_argument("source", help="a name, a .gguf file or a folder")
    change.add_argument("folder", help="where to write")
    change.add_argument(
        "--adapter", metavar="FOLDER", help="of finetune or peft, to be added to the weights"
    )
    change.add_argument(
        "--format", choices=["hugging-face", "meta"], default="hugging-face", help="(%(default)s)"
    )
    change.add_argument(
        "--dtype",
        choices=DTYPE_NAMES,
        help="of the weights (the source's; float32 if it is quantized)",
    )
    change.set_defaults(run=run_convert)


def run_fetch(args) -> int:
    for name in hub.ARTEFACTS if args.name == "all" else [args.name]:
        path = hub.fetch(name)
        print(
            f"{name}: {path}"
            + (f" ({hub.ARTEFACTS[name].licence})" if name in hub.ARTEFACTS else "")
        )
    return 0


def run_verify(args) -> int:
    return verify.verify(args.model)


def run_convert(args) -> int:
    model, tokenizer = load(args.source, dtype=getattr(torch, args.dtype) if args.dtype else None)
    if args.adapter:
        model = merge_lora(load_adapter(model, args.adapter))
    save = save_meta if args.format == "meta" else save_hugging_face
    save(model, tokenizer, args.folder)
    count, dtype = sum(p.numel() for p in model.parameters()), model.norm.weight.dtype
    without = "" if tokenizer else ", and no tokenizer, as the source has none"
    print(f"{args.folder}: {count:,} parameters in {str(dtype).removeprefix('torch.')}{without}")
    return 0
