"""Figures of chapter 7d."""

import pickletools
import zipfile

from figures.checkpoints import bytemap
from figures.style import COLOURS, NEUTRAL, new, show


KINDS = {
    "BINUNICODE": "push a string",
    "GLOBAL": "push by name",
    "BININT1": "push an integer",
    "REDUCE": "call",
    "BINPERSID": "the storage",
    "MARK": "tuples and the like",
}


def program_bytes(program: bytes):
    """The bytes of a pickle, coloured by what kind of instruction they belong to."""
    places = [
        (KINDS.get(instruction.name, KINDS["MARK"]), at)
        for instruction, _, at in pickletools.genops(program)
    ]
    ends = [at for _, at in places[1:]] + [len(program)]
    spans = [(kind, at, end) for (kind, at), end in zip(places, ends, strict=True)]
    # in this order, whichever comes first in the program
    colours = [(kind, 0, 0) for kind in KINDS.values()]
    bytemap(
        program,
        colours + spans,
        "The bytes of the program that rebuilds one tensor. Nearly all belong to strings and to "
        "three names; the calls, the "
        "integers and the instruction for the storage take one or two bytes each.",
    )


def archive_map(path):
    """Where an archive's headers, contents and directory lie, to scale."""
    with zipfile.ZipFile(path) as archive:
        infos, directory = archive.infolist(), archive.start_dir
    size, data = path.stat().st_size, path.read_bytes()
    fig, ax = new(7.8, 2.2)
    ax.barh(0, size, color=NEUTRAL, alpha=0.2, label="headers and padding")
    ax.barh(0, size - directory, left=directory, color=NEUTRAL, alpha=0.7, label="directory")
    for i, info in enumerate(infos):
        lengths = (int.from_bytes(data[info.header_offset + at :][:2], "little") for at in (26, 28))
        start, name = info.header_offset + 30 + sum(lengths), info.filename.partition("/")[2]
        kind = (
            "program"
            if name == "data.pkl"
            else "tensor data"
            if name.startswith("data/")
            else "other contents"
        )
        colour = {
            "program": COLOURS["S"],
            "tensor data": COLOURS["F"],
            "other contents": COLOURS["D"],
        }[kind]
        ax.barh(0, info.file_size, left=start, color=colour, label=kind, edgecolor=colour)
        y = 0.55 + 0.3 * (2 - i % 3)
        ax.plot([start, start], [0.42, y], color=NEUTRAL, linewidth=0.8)
        ax.text(
            start,
            y,
            name,
            va="bottom",
            fontsize=8,
            bbox={"facecolor": "white", "edgecolor": "none", "pad": 1},
        )
    ax.set(ylim=(-0.45, 1.5), xlim=(0, size), yticks=[], xlabel="byte")
    ax.spines["left"].set_visible(False)
    ax.grid(False)
    handles = dict(zip(*reversed(ax.get_legend_handles_labels()), strict=True))
    ax.legend(
        handles.values(),
        handles.keys(),
        loc="upper center",
        bbox_to_anchor=(0.5, -0.35),
        ncol=5,
        fontsize=8,
    )
    show(
        fig,
        "A strip of about 1,600 bytes: the program takes a ninth of it at the start, the four "
        "bytes of the tensor are a thin line in the "
        "middle, the directory is the last third, and most of what is left is headers and padding.",
    )
