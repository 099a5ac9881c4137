"""Figures of chapter 7b."""

from matplotlib.patches import Rectangle

from figures.checkpoints import bare
from figures.style import COLOURS, NEUTRAL, RIGHT, WRONG, new, numbers, show


RANK = (COLOURS["T"], COLOURS["D"])  # of rank 0 and rank 1


def toy_cuts(matrix):
    """A 4 x 4 matrix cut by rows and by columns, with what goes in and comes out."""
    fig, axes = new(6.4, 2.6, columns=2)
    rows = [[value.item() for value in row] for row in matrix]
    for ax, title in zip(
        axes, ("by rows: each makes some outputs", "by columns: each uses some inputs"), strict=True
    ):
        numbers(ax, rows, "{:.0f}", colour="#ffffff", size=11)
        ax.set_title(title)
        for part in (0, 1):
            corner, width, height = (
                ((0, 2 * part), 4, 2) if ax is axes[0] else ((2 * part, 0), 2, 4)
            )
            ax.add_patch(
                Rectangle(corner, width, height, facecolor=RANK[part], alpha=0.35, edgecolor="none")
            )
            middle = (4.25, 2 * part + 1) if ax is axes[0] else (2 * part + 1, 4.35)
            ax.text(
                *middle,
                f"rank {part}",
                ha="left" if ax is axes[0] else "center",
                va="center",
                color=RANK[part],
            )
        ax.set(xlim=(-0.1, 5.4), ylim=(4.6, -0.1))
    show(
        fig,
        "The same four by four matrix twice. On the left its upper two rows belong to rank 0 and "
        "the lower two to rank 1; on "
        "the right the left two columns to rank 0 and the right two to rank 1.",
    )


def block_cuts(ranks):
    """Every matrix of a model, drawn to scale of its toy shape, with the cut between two ranks."""
    D, H, K, F, V = 4, 4, 2, 6, 7
    groups = {
        "attention": (("wq", H, D, 0), ("wk", K, D, 0), ("wv", K, D, 0), ("wo", D, H, 1)),
        "feed-forward": (("gate", F, D, 0), ("up", F, D, 0), ("down", D, F, 1)),
        "outside": (("embedding", V, D, 0), ("head", V, D, 0), ("norm", 1, D, None)),
    }
    fig, ax = new(7.8, 2.3)
    x = 0.2
    for group, matrices in groups.items():
        ax.text(x, -0.9, group, fontsize=10, fontweight="bold")
        for name, rows, columns, along in matrices:
            for part in range(ranks):
                corner, width, height = (x, 0), columns, rows
                if along == 0:
                    corner, height = (x, part * rows / ranks), rows / ranks
                if along == 1:
                    corner, width = (x + part * columns / ranks, 0), columns / ranks
                colour = NEUTRAL if along is None else RANK[part]
                ax.add_patch(
                    Rectangle(corner, width, height, facecolor=colour, alpha=0.5, edgecolor="white")
                )
            ax.text(x + columns / 2, rows + 0.25, name, ha="center", va="top", fontsize=9)
            x += columns + 0.6
        x += 0.8
    for part, colour in enumerate((*RANK, NEUTRAL)):
        ax.scatter(
            [],
            [],
            marker="s",
            color=colour,
            alpha=0.6,
            label=f"rank {part}" if part < 2 else "in every file",
        )
    bare(ax, x - 1, 8.4)
    ax.set_ylim(9.4, -1.4)
    ax.set_aspect("equal")
    ax.legend(loc="lower left", ncol=3, fontsize=9)
    show(
        fig,
        "Ten rectangles: wq, wk, wv, gate, up, embedding and head are divided by a horizontal cut, "
        "wo and down by a vertical "
        "one; a norm is in every file.",
    )


def wrong_joins(variants):
    """Largest difference from Meta's logits, for each way of joining; a logarithmic axis."""
    fig, ax = new(7.4, 2.5)
    names = list(variants)[::-1]
    for y, name in enumerate(names):
        colour = RIGHT if variants[name] < 1e-3 else WRONG
        ax.plot([1e-7, variants[name]], [y, y], color=colour, linewidth=2, alpha=0.5)
        ax.plot(variants[name], y, "o", color=colour)
    ax.set_yticks(range(len(names)), names)
    ax.set(
        xscale="log",
        xlim=(1e-7, 30),
        ylim=(-0.6, len(names) - 0.4),
        xlabel="largest difference from Meta's logits",
    )
    show(
        fig,
        "Six ways of joining, on a logarithmic axis. As cut and with all of the blocks swapped: "
        "about one millionth. The four "
        "others: about five, which is as much as the logits themselves.",
    )


def doubled_heads(ranks, kv_heads, heads):
    """Which query heads and which kv head each of the files has."""
    fig, ax = new(7.8, 2.5)
    copies = ranks // kv_heads
    for rank in range(ranks):
        ax.add_patch(Rectangle((rank, 2.2), 0.92, 0.8, facecolor=COLOURS["H"], alpha=0.45))
        first = rank * heads // ranks
        ax.text(
            rank + 0.46,
            2.6,
            f"{first}–\n{first + heads // ranks - 1}",
            ha="center",
            va="center",
            fontsize=7.5,
        )
        head = rank // copies
        alpha = 0.7 if rank % copies == 0 else 0.25
        ax.add_patch(Rectangle((rank, 1.1), 0.92, 0.8, facecolor=COLOURS["K"], alpha=alpha))
        ax.text(rank + 0.46, 1.5, str(head), ha="center", va="center", fontsize=10)
        ax.text(
            rank + 0.46, 3.35, f"{rank:02}", ha="center", va="center", fontsize=8, color="#555555"
        )
        ax.plot(
            [rank + 0.46, copies * head + copies / 2 - 0.04],
            [1.05, 0.72],
            color=NEUTRAL,
            linewidth=1,
        )
    for head in range(kv_heads):
        ax.add_patch(
            Rectangle(
                (copies * head + copies / 2 - 0.5, 0), 0.92, 0.7, facecolor=COLOURS["K"], alpha=0.7
            )
        )
        ax.text(
            copies * head + copies / 2 - 0.04,
            0.35,
            str(head),
            ha="center",
            va="center",
            fontsize=10,
        )
    for y, label in (
        (3.35, "file"),
        (2.6, "query heads"),
        (1.5, "kv head"),
        (0.35, "kv heads kept"),
    ):
        ax.text(-0.25, y, label, ha="right", va="center", fontsize=9)
    bare(ax, ranks, 3.6)
    ax.set(xlim=(-3.2, ranks), ylim=(-0.1, 3.6))
    show(
        fig,
        "Sixteen files in a row. Each has eight of the 128 query heads and one kv head; files 00 "
        "and 01 have kv head 0, files 02 "
        "and 03 kv head 1, and so on up to head 7 in files 14 and 15. Of each pair one is kept.",
    )
