"""Figures of chapter 11a."""

from matplotlib.patches import Rectangle

from figures.style import COLOURS, NEUTRAL, RIGHT, new, show


def machine():
    """Grid, blocks, warps and lanes, and who shares what."""
    fig, ax = new(7.4, 3.0)
    levels = [
        ("grid", "all blocks", "share the GPU's memory", 0.0, "#f4f4f4"),
        ("block", "on one multiprocessor", "shares a small memory, has barriers", 2.6, "#e3eef6"),
        ("warp", "32 lanes in step", "can read each other's registers", 5.2, "#cfe3f1"),
    ]
    for name, what, share, x, colour in levels:
        ax.add_patch(Rectangle((x, 0.55), 2.2, 2.05, facecolor=colour, edgecolor="#888888"))
        ax.text(x + 1.1, 2.72, f"{name}: {what}", ha="center", fontsize=9)
        ax.text(x + 1.1, 0.22, share, ha="center", fontsize=9, color="#444444")
    for i in range(12):  # blocks of the grid
        chosen = i == 6
        place = (0.12 + i % 4 * 0.5, 0.7 + i // 4 * 0.62)
        ax.add_patch(
            Rectangle(
                place, 0.44, 0.5, facecolor=RIGHT if chosen else "#ffffff", edgecolor="#888888"
            )
        )
    for i in range(8):  # warps of the block
        chosen = i == 5
        place = (2.75 + i % 2 * 0.98, 0.68 + i // 2 * 0.47)
        ax.add_patch(
            Rectangle(
                place, 0.9, 0.38, facecolor=RIGHT if chosen else "#ffffff", edgecolor="#888888"
            )
        )
    for i in range(32):  # lanes
        place = (5.32 + i % 8 * 0.25, 0.72 + i // 8 * 0.45)
        ax.add_patch(
            Rectangle(place, 0.2, 0.32, facecolor=COLOURS["D"], edgecolor="#888888", linewidth=0.5)
        )
    for a, b in (((1.56, 1.6), (2.6, 2.1)), ((4.63, 1.8), (5.2, 2.1))):
        ax.annotate("", b, a, arrowprops={"arrowstyle": "->", "color": RIGHT, "linewidth": 1.4})
    ax.set(xlim=(-0.05, 7.5), ylim=(0, 2.95), xticks=[], yticks=[])
    ax.grid(False)
    for side in ax.spines.values():
        side.set_visible(False)
    show(
        fig,
        "Three boxes. A grid of twelve blocks, which share the GPU's memory; one block, drawn "
        "larger, of eight warps on one "
        "multiprocessor, which share its memory and can wait for each other; one warp, drawn "
        "larger, of 32 lanes that work "
        "in step and can read each other's registers.",
    )


def butterfly(rows):
    """Eight lanes that add up in three steps."""
    fig, ax = new(7.0, 3.4)
    count = len(rows[0])
    for depth, row in enumerate(rows):
        for lane, value in enumerate(row):
            last = depth == len(rows) - 1
            ax.text(
                lane,
                -depth,
                str(value),
                ha="center",
                va="center",
                fontsize=10,
                zorder=3,
                bbox={
                    "boxstyle": "circle,pad=0.25",
                    "facecolor": COLOURS["S"] if last else "#ffffff",
                    "edgecolor": "#666666",
                },
            )
        if depth:
            step = count >> depth
            for lane in range(count):
                ax.plot([lane, lane], [-depth + 1, -depth], color=NEUTRAL, linewidth=1, zorder=1)
                ax.plot(
                    [lane ^ step, lane], [-depth + 1, -depth], color=RIGHT, linewidth=1, zorder=1
                )
            ax.text(-0.7, -depth + 0.5, f"step {step}", ha="right", va="center", fontsize=9)
    ax.text(-0.7, 0, "lanes hold", ha="right", va="center", fontsize=9)
    ax.set(xlim=(-2, count - 0.4), ylim=(-len(rows) + 0.5, 0.5), xticks=[], yticks=[])
    ax.grid(False)
    for side in ax.spines.values():
        side.set_visible(False)
    show(
        fig,
        "Eight lanes holding 1 to 8. In three steps each adds what the lane 4, 2 and 1 away holds; "
        "the crossing lines look like "
        "wings. After the third step all eight hold 36.",
    )
