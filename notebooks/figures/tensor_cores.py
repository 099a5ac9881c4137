"""Figures of chapter 11c."""

import numpy as np
from matplotlib.patches import Rectangle

from figures.style import COLOURS, NEUTRAL, RIGHT, WRONG, new, show


def fragments(lane, of_a, of_b, of_c):
    """The three matrices of one instruction, with the entries that one lane holds filled in."""
    fig, axes = new(7.6, 3.3, 1, 3, width_ratios=[16, 8, 8])
    parts = [
        ("A, rows × inner", 16, 16, of_a, COLOURS["T"]),
        ("B, inner × columns", 16, 8, of_b, COLOURS["S"]),
    ]
    parts.append(("C, rows × columns", 16, 8, of_c, COLOURS["H"]))
    for ax, (title, rows, columns, places, colour) in zip(axes, parts, strict=True):
        for r in range(rows):
            for c in range(columns):
                mine = (r, c) in places
                ax.add_patch(
                    Rectangle(
                        (c, r), 1, 1, facecolor=colour if mine else "#ffffff", edgecolor="#cccccc"
                    )
                )
        for i, (r, c) in enumerate(places):
            ax.text(c + 0.5, r + 0.5, str(i), ha="center", va="center", fontsize=8, color="#ffffff")
        ax.set(
            xlim=(0, columns),
            ylim=(rows, 0),
            title=title,
            aspect="equal",
            xticks=[0, 8, 16][: columns // 8 + 1],
        )
        ax.set_yticks([0, 8, 16])
        ax.grid(False)
    show(
        fig,
        f"Grids of A (16 by 16), B (16 by 8) and C (16 by 8). Lane {lane} holds eight entries of "
        f"A, two neighbours in rows 2 "
        "and 10 at columns 2 and 10; four of B, in column 2; four of C, two neighbours in rows 2 "
        "and 10.",
    )


def sums(lengths, wide, narrow):
    """Relative error of a long sum of products kept in float32 and in bfloat16."""
    fig, ax = new(6.6, 2.8)
    ax.loglog(lengths, narrow, "o-", color=WRONG)
    ax.loglog(lengths, wide, "o-", color=RIGHT)
    ax.text(
        lengths[-1] * 1.1, narrow[-1], "summed in bfloat16", color=WRONG, va="center", fontsize=9
    )
    ax.text(lengths[-1] * 1.1, wide[-1], "summed in float32", color=RIGHT, va="center", fontsize=9)
    ax.set(
        xlabel="products in the sum",
        ylabel="relative error",
        xlim=(lengths[0] * 0.8, lengths[-1] * 12),
    )
    ax.set_xticks(lengths, [f"{n:,}" for n in lengths])
    ax.minorticks_off()
    show(
        fig,
        "Error of a sum of products of bfloat16 values over its length, both axes logarithmic. "
        "Summed in float32 it stays below "
        "one in a million; summed in bfloat16 it grows from a hundredth to almost all of the sum.",
    )


def pieces(straight, turned):
    """Banks in which the pieces of eight rows lie, with and without the exclusive or."""
    fig, axes = new(7.4, 2.7, 1, 2)
    for ax, banks, title in (
        (axes[0], straight, "piece c at c"),
        (axes[1], turned, "piece c at c ^ (r mod 8)"),
    ):
        banks = np.asarray(banks)
        for r in range(8):
            for c in range(8):
                wanted = banks[r, c] == 2
                ax.add_patch(
                    Rectangle(
                        (c, r), 1, 1, facecolor=RIGHT if wanted else "#ffffff", edgecolor="#cccccc"
                    )
                )
                ax.text(c + 0.5, r + 0.5, banks[r, c], ha="center", va="center", fontsize=8,
                        color="#ffffff" if wanted else "#444444")  # fmt: skip
        ax.set(
            xlim=(0, 8),
            ylim=(8, 0),
            title=title,
            xlabel="place in the row: 4 banks each",
            ylabel="row r",
        )
        ax.grid(False)
    show(
        fig,
        "Two 8 by 8 grids of the pieces that lie at each place of eight rows. Left, piece 2 of "
        "every row stands in the same "
        "column, so in the same banks. Right, piece 2 stands in another column in each row.",
    )


def on_the_way(tiles=4):
    """Copying and computing, in turn and at once."""
    fig, ax = new(7.2, 2.1)
    for i in range(tiles):
        for y, start, text, colour in (
            (1.0, 2 * i, "copy", COLOURS["S"]),
            (1.0, 2 * i + 1, "compute", COLOURS["H"]),
            (0.0, i, "copy", COLOURS["S"]),
            (-0.5, i + 1, "compute", COLOURS["H"]),
        ):
            ax.add_patch(
                Rectangle((start, y), 1, 0.42, facecolor=colour, edgecolor="#ffffff", alpha=0.75)
            )
            ax.text(start + 0.5, y + 0.21, f"{text} {i}", ha="center", va="center", fontsize=7.5)
    ax.text(-0.15, 1.21, "one buffer", ha="right", va="center", fontsize=9)
    ax.text(-0.15, -0.04, "two buffers", ha="right", va="center", fontsize=9)
    ax.set(xlim=(-1.5, 2 * tiles + 0.1), ylim=(-0.6, 1.6), xticks=[], yticks=[])
    ax.set_xlabel("time")
    ax.grid(False)
    for side in ax.spines.values():
        side.set_visible(False)
    show(
        fig,
        "Two time lines. With one buffer, copying and computing take turns: eight units for four "
        "tiles. With two, tile 1 is copied while tile 0 is computed: five units.",
    )


def splits(counts, keys_each, chosen, processors):
    """Keys that the busiest multiprocessor looks at, over the number of parts."""
    fig, ax = new(6.8, 2.8)
    ax.plot(counts, keys_each, color=NEUTRAL, linewidth=1)
    ax.scatter(
        counts, keys_each, color=[RIGHT if c == chosen else NEUTRAL for c in counts], s=16, zorder=3
    )
    ax.axhline(keys_each[0] * 8 / processors, color="#222222", linestyle="--", linewidth=1)
    ax.text(
        1, keys_each[0] * 8 / processors * 0.93, "an equal share for each", fontsize=9, va="top"
    )
    i = counts.index(chosen)
    ax.annotate(
        f"{chosen} parts",
        (chosen, keys_each[i]),
        (chosen * 0.8, keys_each[i] * 3),
        color=RIGHT,
        fontsize=9,
        ha="center",
        arrowprops={"arrowstyle": "-", "color": RIGHT},
    )
    ax.set(
        xscale="log",
        yscale="log",
        xlabel="parts of the keys",
        ylabel="keys, busiest multiprocessor",
        ylim=(370, 10_000),
    )
    ax.set_xticks([1, 2, 4, 8, 16, 33, 64], ["1", "2", "4", "8", "16", "33", "64"])
    ax.set_yticks([512, 1024, 2048, 4096, 8192], ["512", "1,024", "2,048", "4,096", "8,192"])
    ax.minorticks_off()
    show(
        fig,
        "Keys of the busiest of 132 multiprocessors, over the number of parts, both "
        "axes logarithmic. One part: 8,192. "
        "It falls to about 512 at 16 parts, steps up at 17, and comes close to an equal share at "
        "33.",
    )


def errors(found, limit):
    """Relative errors of right kernels and of wrong ones."""
    fig, ax = new(7.2, 2.9)
    names = list(found)
    ax.barh(
        names,
        list(found.values()),
        color=[RIGHT if n.startswith("right") else WRONG for n in names],
        height=0.62,
    )
    ax.axvline(limit, color="#222222", linestyle="--", linewidth=1)
    ax.text(limit * 1.06, -0.45, "limit", fontsize=8, va="center")
    for y, value in enumerate(found.values()):
        if value >= 9:
            ax.text(
                8, y, "NaN, or 9 and more", color="white", ha="right", va="center", fontsize=8.5
            )
    ax.set(xscale="log", xlabel="relative error against float64", xlim=(1e-3, 10))
    ax.invert_yaxis()
    ax.grid(axis="y", visible=False)
    show(
        fig,
        "Relative errors on a logarithmic axis. The right kernels lie below the limit of 0.005; "
        "six wrong ones lie far above it.",
    )
