"""Figures of chapter 12."""

import numpy as np

from figures.style import COLOURS, NEUTRAL, RIGHT, WRONG, new, show


def ceilings(sizes: dict, bandwidths: dict):
    """Tokens per second that memory allows, for formats of the 8B model, on machines of several
    bandwidths.
    """
    fig, ax = new(7.2, 3.2)
    speed = np.geomspace(10, 4000, 100)
    for (name, size), colour in zip(
        sizes.items(), (NEUTRAL, COLOURS["D"], COLOURS["H"], RIGHT), strict=True
    ):
        ax.loglog(speed, speed / size, color=colour, label=name)
        ax.text(4300, 4000 / size, name, color=colour, va="center", fontsize=9)
    for name, value in bandwidths.items():
        ax.axvline(value, color="#bbbbbb", linestyle="--", linewidth=1)
        ax.text(value, 1500, f"{name}, {value:,}", ha="center", fontsize=9, color="#666666")
    ax.set(
        xlabel="memory bandwidth, GB/s",
        ylabel="tokens/s at most",
        ylim=(0.2, 1300),
        xlim=(10, 4000),
    )
    ax.set_xticks([10, 100, 1000], ["10", "100", "1,000"])
    ax.set_yticks([1, 10, 100, 1000], ["1", "10", "100", "1,000"])
    show(
        fig,
        "Four parallel rising lines on logarithmic axes: the 8B model in float32, bfloat16, 8 and "
        "4 bits. At 50 GB/s they allow about 1.6, 3.1, 6.2 and 10 tokens per second; each halving "
        "of the bytes doubles the ceiling.",
    )


def grids(weights, low, scale, symmetric):
    """A group's weights on two grids of 16 levels: from its smallest to its largest, and centred
    on zero.
    """
    fig, axes = new(7.4, 2.4, rows=2, sharex=True)
    both = (
        (low + scale * np.arange(16), RIGHT, "low + scale·q"),
        (symmetric * np.arange(-8, 8), WRONG, "scale·q"),
    )
    for ax, (grid, colour, name) in zip(axes, both, strict=True):
        ax.vlines(grid, 0, 1, color=colour, linewidth=1)
        nearest = grid[np.abs(weights[:, None] - grid).argmin(1)]
        for x, y in zip(weights, nearest, strict=True):
            ax.plot([x, y], [0.8, 0.3], color="#aaaaaa", linewidth=0.8)
        ax.plot(weights, np.full(len(weights), 0.8), "o", color="#333333", markersize=3)
        ax.plot(nearest, np.full(len(weights), 0.3), "o", color=colour, markersize=3)
        ax.set(yticks=[], ylabel=name, ylim=(0, 1.05))
        ax.yaxis.label.set(rotation=0, ha="right", va="center")
        ax.grid(False)
    axes[1].set(xlabel="weight")
    show(
        fig,
        "Thirty-two weights and two grids of sixteen levels. The grid from the smallest weight to "
        "the largest spans just the weights; the one centred on zero reaches beyond them on one "
        "side and its levels are farther apart.",
    )


def error_by_group(groups, errors, bits):
    """Relative error of a real matrix over the group size, and the bits that each size costs."""
    fig, (left, right) = new(7.6, 3, columns=2)
    for (name, values), colour in zip(errors.items(), (WRONG, RIGHT), strict=True):
        left.loglog(groups, values, "o-", color=colour)
        above = colour == WRONG
        left.annotate(
            name,
            (groups[3], values[3]),
            xytext=(-6, 6) if above else (6, -6),
            textcoords="offset points",
            ha="right" if above else "left",
            va="bottom" if above else "top",
            color=colour,
            fontsize=9,
        )
    left.set(xlabel="group size", ylabel="error / size of the weights", xticks=groups)
    left.set_xticklabels([str(g) for g in groups], fontsize=9)
    left.minorticks_off()
    left.set_yticks([0.05, 0.1, 0.2, 0.4], ["5%", "10%", "20%", "40%"])
    right.plot(groups, bits, "o-", color=COLOURS["L"])
    right.set(
        xlabel="group size", ylabel="bits per weight", xscale="log", xticks=groups, ylim=(3.8, 8.2)
    )
    right.set_xticklabels([str(g) for g in groups], fontsize=9)
    right.minorticks_off()
    show(
        fig,
        "Left: relative error of four-bit weights grows with the group size, for the matrix as it "
        "is and, far more, after "
        "one outlier was put into it. Right: bits per weight fall from 8 at groups of 8 to little "
        "more than 4 at 576.",
    )


def tile_picture():
    """Where the kernel keeps the levels of 64 rows: one byte holds rows r and r + 32 of a
    column.
    """
    from matplotlib.patches import Rectangle

    fig, ax = new(7.2, 2.6)
    for r, (label, colour) in enumerate((("rows 0..31", RIGHT), ("rows 32..63", COLOURS["D"]))):
        for column in range(6):
            ax.add_patch(
                Rectangle(
                    (column, 1.2 - 1.1 * r), 0.9, 1, facecolor=colour, alpha=0.35 + 0.08 * column
                )
            )
            ax.text(
                column + 0.45, 1.7 - 1.1 * r, f"k={column}", ha="center", va="center", fontsize=8
            )
        ax.text(-0.2, 1.7 - 1.1 * r, label, ha="right", va="center", fontsize=9)
    for column in range(6):
        x = 8 + 0.95 * column
        ax.add_patch(
            Rectangle((x, 1.2), 0.85, 0.5, facecolor=COLOURS["D"], alpha=0.35 + 0.08 * column)
        )
        ax.add_patch(Rectangle((x, 0.7), 0.85, 0.5, facecolor=RIGHT, alpha=0.35 + 0.08 * column))
        ax.text(x + 0.42, 1.85, f"k={column}", ha="center", fontsize=8)
    ax.text(7.8, 1.45, "high halves", ha="right", va="center", fontsize=9)
    ax.text(7.8, 0.95, "low halves", ha="right", va="center", fontsize=9)
    ax.text(10.8, 0.3, "32 bytes for each k, one after another", ha="center", fontsize=9)
    ax.set(xlim=(-1.9, 14), ylim=(-0.1, 2.5), xticks=[], yticks=[])
    ax.grid(False)
    for spine in ax.spines.values():
        spine.set_visible(False)
    show(
        fig,
        "Left, a tile of 64 rows cut into an upper and a lower half, column by column. Right, the "
        "bytes: for each column k, "
        "32 bytes whose low halves are the upper rows' levels and whose high halves are the lower "
        "rows'.",
    )


def quality(in_file: dict, moved: dict):
    """Divergence from float32 for each format, of the weights as in the file and moved off its
    grid.
    """
    fig, ax = new(7.0, 3.1)
    for rank, name in enumerate(in_file):
        old, now = in_file[name][1], moved[name][1]
        ax.plot([old, now], [rank, rank], color="#cccccc", zorder=1)
        for value, other, colour in ((old, now, RIGHT), (now, old, WRONG)):
            ax.plot(value, rank, "o", color=colour, markersize=7)
            ax.annotate(
                f"{value:#.2g}",
                (value, rank),
                xytext=(-8 if value < other else 8, 0),
                textcoords="offset points",
                ha="right" if value < other else "left",
                va="center",
                fontsize=9,
                color=colour,
            )
    first = list(in_file)[1]
    for found, text, colour in (
        (in_file, "as in the file", RIGHT),
        (moved, "the same function, off the file's grid", WRONG),
    ):
        ax.annotate(
            text,
            (found[first][1], 1),
            xytext=(0, 9),
            textcoords="offset points",
            ha="center",
            color=colour,
            fontsize=9,
        )
    ax.set(xscale="log", xlim=(6e-4, 3), ylim=(len(in_file) - 0.6, -0.5))
    ax.set_yticks(range(len(in_file)), list(in_file))
    ax.set_xticks([0.001, 0.01, 0.1, 1], ["0.001", "0.01", "0.1", "1"])
    ax.set(xlabel="KL divergence from float32, nats (logarithmic)")
    show(
        fig,
        "Divergence from the float32 model, two points for each format: weights as in the file, and "
        "the same function with weights off its grid. int8 stays below a hundredth of a nat in both; "
        "int4 in groups of 32 is near 0.002 in the file's own blocks and more than a hundred times "
        "that off the grid; groups of 64 and 192 cost more still.",
    )


def by_layer(kl_by_part: dict):
    """Divergence when only one kind of matrix is quantized."""
    fig, ax = new(6.6, 2.8)
    names = list(kl_by_part)
    ax.barh(
        names,
        kl_by_part.values(),
        color=[COLOURS["V"] if "head" in n else COLOURS["F"] for n in names],
    )
    for i, value in enumerate(kl_by_part.values()):
        ax.text(value, i, f" {value:.2g}", va="center", fontsize=9)
    ax.invert_yaxis()
    ax.set(xlabel="KL divergence from float32, nats", xlim=(0, 1.2 * max(kl_by_part.values())))
    show(
        fig, "Bars: " + ", ".join(f"{name} {value:.2g}" for name, value in kl_by_part.items()) + "."
    )
