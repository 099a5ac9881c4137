"""fetch, verify, convert: files of weights come, are checked, and become other files."""

from argparse import RawDescriptionHelpFormatter
from pathlib import Path

import torch

from minillama.checkpoints import hub, repository, verify
from minillama.checkpoints.atomic import check_free
from minillama.checkpoints.files import CheckpointError
from minillama.checkpoints.formats import open_checkpoint
from minillama.checkpoints.gguf_writer import FILE_TYPES, save_gguf, write_gguf_file
from minillama.checkpoints.hugging_face_writer import STORED, save_hugging_face
from minillama.checkpoints.meta_writer import save_meta
from minillama.commands.options import DEFAULT_MODEL, DTYPE_NAMES
from minillama.inference.loading import load, stored_dtype
from minillama.training.adapters import load_adapter, save_gguf_lora
from minillama.training.finetuning import merge_lora


GGUF_DTYPES = {kind.lower(): kind for kind in FILE_TYPES}  # f32, ..., q6_k
GGUF_DTYPES |= {name: STORED[getattr(torch, name)] for name in DTYPE_NAMES}


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
        help="write any checkpoint in a form that others read",
        description="Write a checkpoint as a folder of Hugging Face's form, which most "
        "programs read, or of Meta's; as one GGUF file, which llama.cpp and its like read; or "
        "an adapter alone as a GGUF file (gguf-lora). "
        "An older checkpoint in the folder is replaced when the new one is complete; a folder with "
        "other files is left alone, and so is a file without --force.",
    )
    change.add_argument("source", help="a name, a .gguf file or a folder")
    change.add_argument("target", help="where to write: a folder, or out.gguf")
    change.add_argument(
        "--adapter", metavar="FOLDER", help="of finetune or peft, to be added to the weights"
    )
    change.add_argument(
        "--format", choices=["hugging-face", "meta", "gguf", "gguf-lora"], default="hugging-face",
        help="(%(default)s)",
    )  # fmt: skip
    change.add_argument(
        "--dtype",
        choices=GGUF_DTYPES,
        metavar="TYPE",
        help=f"of the weights (the source's, float32 if quantized): {', '.join(DTYPE_NAMES)}; "
        f"of GGUF's matrices {', '.join(map(str.lower, FILE_TYPES))}",
    )
    change.add_argument("--force", action="store_true", help="replace a GGUF file of that name")
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
    if args.format == "gguf":
        return run_convert_gguf(args)
    if args.format == "gguf-lora":
        return run_convert_lora(args)
    if args.dtype not in (None, *DTYPE_NAMES):
        raise ValueError(f"--dtype {args.dtype} goes with --format gguf")
    if Path(args.target).suffix == ".gguf":
        raise ValueError(f"{args.target} would be a folder: for a file, add --format gguf")
    model, tokenizer = load(args.source, dtype=getattr(torch, args.dtype) if args.dtype else None)
    if args.adapter is not None:
        model = merge_lora(load_adapter(model, args.adapter))
    save = save_meta if args.format == "meta" else save_hugging_face
    save(model, tokenizer, args.target)
    count, dtype = sum(p.numel() for p in model.parameters()), model.norm.weight.dtype
    without = "" if tokenizer else ", and no tokenizer, as the source has none"
    print(f"{args.target}: {count:,} parameters in {str(dtype).removeprefix('torch.')}{without}")
    return 0


def run_convert_lora(args) -> int:
    """A GGUF file with the adapter alone, for the model of the source."""
    if args.adapter is None or args.dtype is not None:
        raise ValueError("--format gguf-lora goes with --adapter, and without --dtype")
    check_free(Path(args.target), args.force)
    model, _ = load(args.source)
    count = save_gguf_lora(load_adapter(model, args.adapter), args.target, args.force)
    print(f"{args.target}: an adapter of {count} matrices")
    return 0


def run_convert_gguf(args) -> int:
    """A GGUF file, tensor by tensor from the source's; with an adapter, from the whole model."""
    source, target = hub.locate(args.source), Path(args.target)
    if target.exists() and (target.samefile(source) or target.parent.samefile(source)):
        raise ValueError(f"{target} would overwrite its source: choose another name")
    check_free(target, args.force)  # before a model is read
    try:
        checkpoint = open_checkpoint(source)
    except (CheckpointError, OSError) as error:
        raise CheckpointError(f"{source}: {getattr(error, 'strerror', None) or error}") from None
    kind = GGUF_DTYPES[args.dtype] if args.dtype else STORED[stored_dtype(checkpoint)]
    if args.adapter is None:
        counts = write_gguf_file(checkpoint, target, kind, args.force)
    else:
        model, tokenizer = load(args.source, dtype=None)
        model = merge_lora(load_adapter(model, args.adapter))
        counts = save_gguf(model, tokenizer, target, kind, args.force)
    kinds = ", ".join(f"{count} tensors in {kind}" for kind, count in counts.items())
    why = ", since not all rows divide into blocks" if counts.keys() - {kind, "F32"} else ""
    print(f"{target}: {target.stat().st_size:,} bytes, {kinds}{why}")
    return 0
