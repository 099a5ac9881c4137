"""Figures of chapter 7."""

import itertools

import numpy as np

from figures.style import COLOURS, NEUTRAL, RIGHT, WRONG, new, show


PALETTE = [COLOURS[letter] for letter in "SDHKFWLTV"]


def bytemap(data: bytes, spans, alt, title="", per_row=16):
    """Every byte of a small file as a hexadecimal cell; spans: [(label, first byte, end)], one
    colour each.
    """
    rows = -(-len(data) // per_row)
    labels = {}
    n_labels = len({label for label, _, _ in spans})
    fig, ax = new(7.6, 0.3 * rows + 0.35 * -(-n_labels // 4) + 0.5)
    for (label, start, end), colour in zip(spans, itertools.cycle(PALETTE), strict=False):
        colour = labels.setdefault(label, colour)
        for at in range(start, end):
            row, column = divmod(at, per_row)
            ax.add_patch(plt_rectangle(column, row, colour, 0.35))
            text = chr(data[at]) if 32 < data[at] < 127 else ""
            ax.text(
                column + 0.36,
                row + 0.5,
                f"{data[at]:02x}",
                ha="center",
                va="center",
                fontsize=8,
                family="monospace",
            )
            ax.text(
                column + 0.8,
                row + 0.55,
                text,
                ha="center",
                va="center",
                fontsize=7,
                color="#555555",
            )
    swatches = [plt_rectangle(0, 0, colour, 0.35) for colour in labels.values()]
    bare(ax, per_row, rows, title)
    ax.set_yticks(
        [row + 0.5 for row in range(rows)], [str(row * per_row) for row in range(rows)], fontsize=8
    )
    ax.legend(
        swatches,
        labels,
        loc="upper center",
        bbox_to_anchor=(0.5, 0.0),
        ncol=4,
        fontsize=8,
        handletextpad=0.5,
    )
    show(fig, alt)


def plt_rectangle(x, y, colour, alpha, width=1.0, height=1.0):
    from matplotlib.patches import Rectangle

    return Rectangle((x, y), width, height, facecolor=colour, alpha=alpha, edgecolor="white")


def bare(ax, width, height, title=""):
    """An empty drawing area, row 0 at the top."""
    ax.set(xlim=(0, width), ylim=(height, 0), xticks=[], yticks=[], title=title)
    ax.grid(False)
    ax.tick_params(length=0)
    for spine in ax.spines.values():
        spine.set_visible(False)


def float_bits(rows):
    """Bit patterns: rows of (label, bits as text, number of exponent bits, value as text)."""
    fig, ax = new(7.6, 0.42 * len(rows) + 0.6)
    colours = {"sign": COLOURS["F"], "exponent": COLOURS["T"], "fraction": COLOURS["D"]}
    for row, (label, bits, exponent, value) in enumerate(rows):
        for i, bit in enumerate(bits):
            kind = "sign" if i == 0 else "exponent" if i <= exponent else "fraction"
            ax.add_patch(plt_rectangle(i, row + 0.1, colours[kind], 0.4, height=0.8))
            ax.text(i + 0.5, row + 0.5, bit, ha="center", va="center", fontsize=8)
        ax.text(-0.5, row + 0.5, label, ha="right", va="center")
        ax.text(len(bits) + 0.5, row + 0.5, value, va="center", fontsize=9)
    for kind, middle in (("sign", 0.0), ("exponent", 5.0), ("fraction", 20.5)):
        ax.text(middle, -0.05, kind, ha="center", va="bottom", fontsize=9, color="#444444")
    bare(ax, 32, len(rows))
    ax.set(xlim=(-5, 39), ylim=(len(rows), -0.6))
    show(
        fig,
        "The bits of 3.14159265 in three formats. float32: 1 sign, 8 exponent and 23 fraction "
        "bits. bfloat16: the first 16 "
        "bits of float32, cut off. float16: 5 exponent and 10 fraction bits.",
    )


def float_spacing(sizes, errors):
    """Relative rounding error of the 16-bit formats over the size of the number."""
    fig, ax = new(6.8, 2.8)
    for (label, values), colour in zip(errors.items(), (COLOURS["K"], RIGHT), strict=True):
        ax.loglog(sizes, np.maximum(values, 1e-5), ".", color=colour, markersize=3)
        place = (1e2, 1e-2) if label == "bfloat16" else (2e-7, 0.4)
        ax.text(*place, label, color=colour, va="center")
    ax.set(xlabel="size of the number", ylabel="relative rounding error")
    show(
        fig,
        "bfloat16's relative error stays below 0.004 at every size; float16's below 0.0005 between "
        "0.0001 and 65,504, but "
        "it rises to 1 for smaller numbers and is infinite above.",
    )


def loading(curves, machines):
    """Bytes in memory while the 8B model's tensors are loaded one by one, with lines at common
    memory sizes.
    """
    fig, ax = new(7.2, 3.1)
    labels = {
        "naive": ("the whole file, then float32", 20, 31),
        "float32": ("one tensor at a time, float32", 185, 18.7),
        "bfloat16": ("one tensor at a time, bfloat16", 185, 6.5),
    }
    for (name, curve), colour in zip(curves.items(), (WRONG, COLOURS["S"], RIGHT), strict=True):
        label, x, y = labels[name]
        ax.plot(range(1, len(curve) + 1), curve.numpy() / 1e9, color=colour)
        ax.text(x, y, label, color=colour, fontsize=9, va="center")
    ax.hlines(machines, 0, len(curve), color=NEUTRAL, linestyle="--", linewidth=1)
    for size in machines:
        ax.text(len(curve) + 3, size, f"{size} GB", va="center", fontsize=8, color="#666666")
    ax.set(xlabel="tensors loaded", ylabel="GB in memory", ylim=(0, 54), xlim=(0, len(curve) + 24))
    show(
        fig,
        "Memory over the 291 tensors of the 8B model. The naive way starts at 18 GB and climbs to "
        "48; one tensor at a time "
        "climbs from nothing to 33 GB in float32 and to 16 in bfloat16. Dashed lines at 16, 24 and "
        "48 GB.",
    )
