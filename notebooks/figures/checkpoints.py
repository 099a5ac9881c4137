"""Figures of chapter 7."""

import numpy as np

from figures.style import COLOURS, NEUTRAL, RIGHT, WRONG, new, show


PALETTE = [COLOURS[letter] for letter in "SDHKFWLTV"]


def bytemap(data: bytes, spans, alt, title="", per_row=16):
    """Every byte of a small file as a hexadecimal cell; spans: [(label, first byte, end)], one colour each."""
    rows = -(-len(data) // per_row)
    fig, ax = new(7.6, 0.3 * rows + 0.35 * -(-len(spans) // 4) + 0.5)
    labels = {}
    for (label, start, end), colour in zip(spans, PALETTE * 3, strict=False):
        colour = labels.setdefault(label, colour)
        for at in range(start, end):
            row, column = divmod(at, per_row)
            ax.add_patch(plt_rectangle(column, row, colour, 0.35))
            text = chr(data[at]) if 32 < data[at] < 127 else ""
            ax.text(
                column + 0.36, row + 0.5, f"{data[at]:02x}", ha="center", va="center", fontsize=8, family="monospace"
            )
            ax.text(column + 0.8, row + 0.55, text, ha="center", va="center", fontsize=7, color="#555555")
    for label, colour in labels.items():
        ax.scatter([], [], marker="s", color=colour, alpha=0.5, label=label)
    bare(ax, per_row, rows, title)
    ax.set_yticks([row + 0.5 for row in range(rows)], [str(row * per_row) for row in range(rows)], fontsize=8)
    ax.legend(loc="upper center", bbox_to_anchor=(0.5, 0.0), ncol=4, fontsize=8, handletextpad=0.2)
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
    fig, ax = new(7.6, 0.42 * len(rows) + 0.5)
    colours = {"sign": COLOURS["F"], "exponent": COLOURS["T"], "fraction": COLOURS["D"]}
    for row, (label, bits, exponent, value) in enumerate(rows):
        for i, bit in enumerate(bits):
            kind = "sign" if i == 0 else "exponent" if i <= exponent else "fraction"
            ax.add_patch(plt_rectangle(i, row + 0.1, colours[kind], 0.4, height=0.8))
            ax.text(i + 0.5, row + 0.5, bit, ha="center", va="center", fontsize=8)
        ax.text(-0.5, row + 0.5, label, ha="right", va="center")
        ax.text(len(bits) + 0.5, row + 0.5, value, va="center", fontsize=9)
    for kind, colour in colours.items():
        ax.scatter([], [], marker="s", color=colour, alpha=0.5, label=kind)
    bare(ax, 32, len(rows))
    ax.set_xlim(-5, 39)
    ax.legend(loc="lower right", ncol=1, fontsize=8)
    show(
        fig,
        "The bits of 3.14159265 in three formats. float32: 1 sign, 8 exponent and 23 fraction bits. bfloat16: the first 16 "
        "bits of float32, cut off. float16: 5 exponent and 10 fraction bits.",
    )


def float_spacing(sizes, errors):
    """Relative rounding error of the 16-bit formats over the size of the number."""
    fig, ax = new(6.8, 2.8)
    for (label, values), colour in zip(errors.items(), (COLOURS["K"], RIGHT), strict=True):
        ax.loglog(sizes, np.maximum(values, 1e-5), ".", color=colour, markersize=3, label=label)
    ax.set(xlabel="size of the number", ylabel="relative rounding error")
    ax.legend(loc="upper right", markerscale=4)
    show(
        fig,
        "bfloat16's relative error stays below 0.004 at every size; float16's below 0.0005 between 0.0001 and 65,504, but "
        "it rises to 1 for smaller numbers and is infinite above.",
    )


def levels(values, low, step, quantized):
    """A block's numbers on the ladder of 16 levels, each with the line to its level."""
    fig, ax = new(7.2, 2.2)
    for k in range(16):
        ax.axvline(low + k * step, color="#dddddd", linewidth=1)
        ax.text(low + k * step, 1.28, str(k), ha="center", fontsize=8, color="#777777")
    for x, q in zip(values, quantized, strict=True):
        ax.plot([x, low + q * step], [0.85, 0.15], color=NEUTRAL, linewidth=1)
    ax.scatter(values, [0.85] * len(values), color=COLOURS["D"], zorder=3, label="the numbers")
    ax.scatter([low + q * step for q in quantized], [0.15] * len(values), color=RIGHT, zorder=3, label="their levels")
    ax.set(ylim=(-0.1, 1.55), yticks=[], xlabel="value")
    ax.grid(False)
    ax.legend(loc="center left", bbox_to_anchor=(1, 0.5))
    show(
        fig,
        "Eight numbers above, sixteen evenly spaced levels from the smallest to the largest; each goes to the nearest.",
    )


def row_errors(row, versions):
    """Left: one block of a real row and its Q4_1 levels; right: errors of whole rows in three formats, sorted."""
    fig, (left, right) = new(7.6, 2.9, columns=2)
    left.step(range(32), row[:32], where="mid", color=NEUTRAL, label="the row")
    left.plot(range(32), versions["Q4_1"][:32], ".", color=RIGHT, label="Q4_1")
    left.set(title="one block of a row", xlabel="entry")
    left.legend(fontsize=8)
    for (label, values), colour in zip(versions.items(), (RIGHT, COLOURS["F"], COLOURS["D"]), strict=True):
        right.plot(np.sort(np.abs(values - row)), color=colour, label=label)
    right.set(title="errors of all 576 entries, sorted", xlabel="entry", ylabel="|error|")
    right.legend(fontsize=8)
    show(
        fig,
        "Left: 32 weights and their 4-bit versions, close but visibly off. Right: sorted errors; Q4_0's are the largest, "
        "Q4_1's somewhat smaller, Q8_0's lie almost on the axis.",
    )


def nibble_order(right_row, wrong_row):
    """The same bytes decoded in the two orders."""
    fig, (left, middle) = new(7.2, 2.9, columns=2, width_ratios=[1.6, 1])
    left.plot(right_row[:32], ".-", color=RIGHT, linewidth=0.8, label="low halves first")
    left.plot(wrong_row[:32], ".-", color=WRONG, linewidth=0.8, label="neighbours share a byte")
    left.set(xlabel="entry of the block", title="one block, the same 20 bytes")
    left.legend(fontsize=8, loc="upper left", bbox_to_anchor=(0, 1.02))
    left.margins(y=0.25)
    middle.scatter(right_row, wrong_row, s=6, color=WRONG, alpha=0.5)
    middle.set(xlabel="right", ylabel="wrong order", title="all entries of a row")
    show(
        fig,
        "Two zigzag lines over 32 entries that are bound to agree only at the first and the last; the scatter of right "
        "against wrong values is a shapeless cloud.",
    )


def where_the_bytes_are(kinds, total):
    """Horizontal bars: share of a file's bytes, and of its numbers, per kind of tensor."""
    fig, ax = new(7.4, 1.9)
    for row, column in ((0, 1), (1, 0)):
        left, whole = 0, sum(kind[column] for kind in kinds.values())
        for (label, counts), colour in zip(kinds.items(), PALETTE, strict=False):
            share = counts[column] / whole
            ax.barh(row, share, left=left, color=colour, alpha=0.75, label=label if row == 0 else None)
            if share > 0.05:
                ax.text(left + share / 2, row, f"{share:.0%}", ha="center", va="center", fontsize=9)
            left += share
    ax.set_yticks([0, 1], ["bytes", "numbers"])
    ax.set(xlim=(0, 1), xticks=[], title=f"{total / 1e6:.1f} MB")
    ax.grid(False)
    ax.legend(loc="upper center", bbox_to_anchor=(0.5, 0.0), ncol=5, fontsize=8)
    show(
        fig,
        "Feed-forward matrices hold 59% of the numbers and 51% of the bytes; the embedding 21% and 31%; attention 20% and "
        "17%; the norms and the header are slivers.",
    )


def two_orders(width):
    """One head's rows in the neighbour order and in the half-split order, with lines between equal rows."""
    fig, ax = new(6.6, 2.5)
    pairs, colours = width // 2, [COLOURS[letter] for letter in "THDFKSLW"]
    for i in range(width):
        pair, second = divmod(i, 2)
        j = pair + second * pairs
        colour = colours[pair % len(colours)]
        ax.add_patch(plt_rectangle(i, 0, colour, 0.45))
        ax.add_patch(plt_rectangle(j, 2.2, colour, 0.45))
        name = f"{'xy'[second]}{pair}"
        ax.text(i + 0.5, 0.5, name, ha="center", va="center")
        ax.text(j + 0.5, 2.7, name, ha="center", va="center")
        ax.plot([i + 0.5, j + 0.5], [1, 2.2], color=colour, linewidth=1.2)
    bare(ax, width, 3.3)
    ax.set_xlim(-3.6, width)
    ax.text(-0.3, 0.5, "Meta, GGUF:\nneighbours", ha="right", va="center", fontsize=9)
    ax.text(-0.3, 2.7, "Hugging Face:\nhalves", ha="right", va="center", fontsize=9)
    show(
        fig,
        f"The {width} rows of one head. Above, partners x and y of each pair side by side; below, all x first, then all y. "
        "Lines join equal rows; only the first and the last stay in place.",
    )


def permutation_damage(curves, losses):
    """Largest logit difference at each position; loss of the next token averaged over the text."""
    fig, (left, right) = new(7.6, 3, columns=2, width_ratios=[2, 1])
    colours = [NEUTRAL, COLOURS["D"], WRONG]
    for (label, values), colour in zip(curves.items(), colours[1:], strict=True):
        left.plot(values, color=colour, label=label)
    left.set(
        xlabel="position in the text", ylabel="largest difference of a logit", title="the first token is always right"
    )
    left.set_ylim(-1, 48)
    left.legend(fontsize=8, loc="upper left")
    right.barh(range(len(losses)), list(losses.values()), color=colours)
    right.set_yticks(range(len(losses)), list(losses), fontsize=8)
    right.invert_yaxis()
    right.set(title="loss per token")
    for i, value in enumerate(losses.values()):
        right.text(value, i, f" {value:.2f}", va="center", fontsize=9)
    right.margins(x=0.25)
    show(
        fig,
        "Left: both wrong loaders differ by nothing at position 0 and by 4 to 36 units after it. Right: the right order "
        "has a loss of 3.9, weights left in halves 5.4, k permuted with twice its heads 8.4.",
    )


def memory(formats, machines):
    """Bytes of a model in each format, with lines at common memory sizes."""
    fig, ax = new(7, 2.2)
    for row, size in enumerate(formats.values()):
        ax.barh(row, size / 2**30, color=PALETTE[row], alpha=0.75)
        ax.text(size / 2**30, row, f" {size / 2**30:.1f}", va="center", fontsize=9)
    ax.set_yticks(range(len(formats)), list(formats))
    ax.invert_yaxis()
    for size in machines:
        ax.axvline(size, color=NEUTRAL, linestyle="--", linewidth=1)
        ax.text(size, -0.62, f"{size} GiB", ha="center", fontsize=8, color="#666666")
    ax.set(xlabel="GiB", xlim=(0, 36))
    show(
        fig,
        "Bars for the 8B model: float32 needs 29.9 GiB, bfloat16 15.0, Q8_0 7.9, Q4_1 4.7; dashed lines at 8, 16 and 24 GiB.",
    )
