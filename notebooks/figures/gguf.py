"""Figures of chapter 7c."""

import numpy as np

from figures.checkpoints import PALETTE, bytemap
from figures.style import COLOURS, NEUTRAL, RIGHT, WRONG, new, show


__all__ = [
    "bits_and_errors",
    "bytemap",
    "grid_search",
    "kinds_of_a_file",
    "levels",
    "nibble_order",
    "row_errors",
    "where_the_bytes_are",
    "wrong_files",
]


def levels(values, low, step, quantized):
    """A block's weights and the grid of 16 levels, each weight with the line to its level."""
    fig, ax = new(7.2, 2.2)
    for k in range(16):
        ax.axvline(low + k * step, color="#dddddd", linewidth=1)
        ax.text(low + k * step, 1.28, str(k), ha="center", fontsize=8, color="#777777")
    for x, q in zip(values, quantized, strict=True):
        ax.plot([x, low + q * step], [0.85, 0.15], color=NEUTRAL, linewidth=1)
    ax.scatter(values, [0.85] * len(values), color=COLOURS["D"], zorder=3)
    ax.scatter(
        [low + q * step for q in quantized],
        [0.15] * len(values),
        color=RIGHT,
        zorder=3,
    )
    edge = low + 15.4 * step
    ax.text(edge, 1.28, "level", fontsize=9, color="#777777")
    ax.text(edge, 0.85, "weights", color=COLOURS["D"], va="center")
    ax.text(edge, 0.15, "come back as", color=RIGHT, va="center")
    ax.set(ylim=(-0.1, 1.55), yticks=[], xlabel="value")
    ax.set_xlim(low - 0.5 * step, low + 18 * step)
    ax.set_xticks([low + k * step for k in range(0, 16, 3)])
    ax.grid(False)
    show(
        fig,
        "Eight weights above, sixteen evenly spaced levels from the smallest to the largest; each "
        "goes to the nearest.",
    )


def row_errors(row, versions):
    """Left: one block of a real row and its Q4_1 levels; right: errors of whole rows in three
    formats, sorted.
    """
    fig, (left, right) = new(7.6, 2.9, columns=2)
    left.step(range(32), row[:32], where="mid", color=NEUTRAL)
    left.plot(range(32), versions["Q4_1"][:32], ".", color=RIGHT)
    left.set(title="one block: the row as steps, Q4_1 as dots", xlabel="entry", ylabel="weight")
    for (label, values), colour in zip(
        versions.items(), (RIGHT, COLOURS["F"], COLOURS["D"]), strict=True
    ):
        errors = np.sort(np.abs(values - row))
        right.plot(errors, color=colour)
        right.text(585, errors[-8], label, color=colour, fontsize=9, va="center")
    right.set(
        title="errors of all 576 entries, sorted", xlabel="entry", ylabel="|error|", xlim=(-20, 700)
    )
    show(
        fig,
        "Left: 32 weights and their 4-bit versions, close but visibly off. Right: sorted errors; "
        "Q4_0's are the largest, "
        "Q4_1's somewhat smaller, Q8_0's lie almost on the axis.",
    )


def nibble_order(right_row, wrong_row):
    """The same bytes decoded in the two orders."""
    fig, (left, middle) = new(7.2, 2.9, columns=2, width_ratios=[1.6, 1])
    left.plot(right_row[:32], ".-", color=RIGHT, linewidth=0.8, label="low halves first")
    left.plot(wrong_row[:32], ".-", color=WRONG, linewidth=0.8, label="neighbours share a byte")
    left.set(xlabel="entry of the block", title="one block, the same 20 bytes")
    left.legend(fontsize=8, loc="upper left", bbox_to_anchor=(0, 1.02))
    left.margins(y=0.4)
    middle.scatter(right_row, wrong_row, s=6, color=WRONG, alpha=0.5)
    middle.set(xlabel="right", ylabel="wrong order", title="all entries of a row")
    show(
        fig,
        "Two zigzag lines over 32 entries that are bound to agree only at the first and the last; "
        "the scatter of right "
        "against wrong values is a shapeless cloud.",
    )


def where_the_bytes_are(kinds, total):
    """Horizontal bars: share of a file's bytes, and of its weights, per kind of tensor."""
    fig, ax = new(7.4, 1.9)
    for row, column in ((0, 1), (1, 0)):
        left, whole = 0, sum(kind[column] for kind in kinds.values())
        for (label, counts), colour in zip(kinds.items(), PALETTE, strict=False):
            share = counts[column] / whole
            ax.barh(
                row, share, left=left, color=colour, alpha=0.75, label=label if row == 0 else None
            )
            if share > 0.05:
                ax.text(left + share / 2, row, f"{share:.0%}", ha="center", va="center", fontsize=9)
            left += share
    ax.set_yticks([0, 1], ["bytes", "weights"])
    ax.set(xlim=(0, 1), xticks=[], title=f"{total / 1e6:.1f} MB")
    ax.grid(False)
    ax.legend(loc="upper center", bbox_to_anchor=(0.5, 0.0), ncol=5, fontsize=8)
    show(
        fig,
        "Feed-forward matrices hold 59% of the weights and 51% of the bytes; the embedding 21% and "
        "31%; attention 20% and "
        "17%; the norms and the header are slivers.",
    )


def bits_and_errors(trade):
    """Error of a matrix over the bits that a weight takes; trade: kind -> (bits per weight, share
    of error).
    """
    fig, ax = new(6.8, 3.0)
    bits = np.linspace(4.2, 9.2, 50)
    anchor = trade["Q4_K"]
    ax.semilogy(
        bits,
        anchor[1] * 2.0 ** (anchor[0] - bits),
        "--",
        color=NEUTRAL,
        linewidth=1,
        label="half the error per bit",
    )
    colours = {"0": COLOURS["F"], "1": COLOURS["F"], "K": RIGHT}
    for kind, (x, y) in trade.items():
        if x > 9:
            continue
        ax.semilogy(x, y, "o", color=colours[kind[-1]])
        where = (-7, -13) if kind == "Q4_K" else (6, 4)  # below Q4_0, which has as many bits
        ax.annotate(kind, (x, y), xytext=where, textcoords="offset points", fontsize=9)
    ax.plot([], [], "o", color=COLOURS["F"], label="blocks of 32")
    ax.plot([], [], "o", color=RIGHT, label="super-blocks of 256")
    ax.set(
        xlabel="bits per weight",
        ylabel="error, share of the weights",
        xlim=(4.2, 9.2),
        ylim=(0.003, 0.16),
    )
    ax.set_yticks([0.005, 0.01, 0.02, 0.05, 0.1], ["0.5%", "1%", "2%", "5%", "10%"])
    ax.minorticks_off()
    ax.legend(loc="upper right", fontsize=9)
    show(
        fig,
        "Error over bits per weight, falling by half for each bit. At 4.5 bits Q4_0 has 9.5% and "
        "Q4_K 8.2%; Q4_1 has 8.1% at 5 "
        "bits, Q5_K 4.1% at 5.5, Q6_K 2.0% at 6.6, Q8_0 0.6% at 8.5.",
    )


def grid_search(steps, errors, plain):
    """What remains of one block's error on each of the grids, and on the obvious one."""
    fig, ax = new(6.2, 2.6)
    best = int(np.argmin(errors))
    ax.axhline(plain, color=WRONG, linewidth=1)
    ax.text(32.95, plain, "obvious grid", color=WRONG, va="bottom", ha="right", fontsize=9)
    ax.plot(steps, errors, ".-", color=NEUTRAL, linewidth=0.8)
    ax.plot(steps[best], errors[best], "o", color=RIGHT)
    ax.annotate(
        "taken", (steps[best], errors[best]), (-14, -15), textcoords="offset points", color=RIGHT
    )
    ax.set(xlabel="steps from zero to the largest weight", ylabel="error, weighted")
    ax.set_ylim(0, 1.25 * max([*errors, plain]))
    show(
        fig,
        "The weighted error of one block on 19 grids: high at both ends, flat between; the lowest "
        "point, at 32.1 steps, lies a tenth below the line of the obvious grid.",
    )


def kinds_of_a_file(sizes):
    """Bars: the bytes of a file by the types of its tensors; sizes: asked for -> {type: bytes}."""
    fig, ax = new(7.2, 2.6)
    kinds = ("F16", "Q8_0", "Q6_K", "Q4_1", "Q4_0", "F32")
    colours = dict(zip(kinds, PALETTE, strict=False)) | {"F32": NEUTRAL}
    for row, parts in enumerate(reversed(sizes.values())):
        left = 0
        for kind in kinds:
            if size := parts.get(kind, 0) / 1e6:
                ax.barh(row, size, left=left, color=colours[kind], alpha=0.75)
                if size > 14:
                    ax.text(left + size / 2, row, kind, ha="center", va="center", fontsize=9)
                left += size
        ax.text(left + 3, row, f"{left:.0f} MB", va="center", fontsize=9)
    ax.set_yticks(range(len(sizes)), list(reversed(sizes)))
    ax.set(xlabel="MB", ylabel="asked for", xlim=(0, 310))
    ax.grid(False)
    show(
        fig,
        "Five bars of SmolLM2's bytes. F16 is one colour of 269 MB and Q8_0 one of 143 MB; Q6_K is "
        "mostly Q8_0 with a part in Q6_K; Q4_1 and Q4_0 have the embedding in Q8_0.",
    )


def wrong_files(differences):
    """How far two files' logits are from the right ones, over the position."""
    fig, ax = new(7.0, 2.9)
    for (label, values), colour in zip(differences.items(), (WRONG, COLOURS["T"]), strict=True):
        smooth = [
            np.mean(values[max(0, i - i // 8) : i + i // 8 + 1]) for i in range(1, len(values))
        ]
        ax.loglog(range(1, len(values)), smooth, color=colour, label=label)
    ax.set(xlabel="position", ylabel="difference of the logits", ylim=(1e-6, 3))
    ax.legend(loc="lower right", fontsize=9)
    show(
        fig,
        "Relative difference of the logits over positions 1 to 1,200, both axes logarithmic. Rows "
        "in halves are wrong from the second position on; without the divisors the difference "
        "starts tiny and grows with the position.",
    )
