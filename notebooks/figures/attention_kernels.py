"""Figures of chapter 11b."""

from figures.style import NEUTRAL, RIGHT, WRONG, new, show


def traffic(moved, least, enough):
    """Bytes that each rung reads for a prompt, beside the least there is and what the arithmetic
    leaves time for.
    """
    fig, ax = new(7.2, 2.6)
    names = [*moved, "everything once"]
    sizes = [*moved.values(), least]
    colours = [RIGHT] * 2 + ["#8fbcd9"] * (len(moved) - 2) + [NEUTRAL]
    ax.barh(names, [size / 1e9 for size in sizes], color=colours, height=0.62)
    for i, size in enumerate(sizes):
        ax.text(size / 1e9 * 1.12, i, f"{size / 1e9:.1f} GB", va="center", fontsize=9)
    ax.axvline(enough / 1e9, color="#222222", linestyle="--", linewidth=1)
    ax.set(
        xscale="log",
        xlabel="GB of keys and values read, a prompt of 8,192 tokens, one layer of 8B",
        xlim=(0.05, 4000),
    )
    ax.invert_yaxis()
    ax.grid(axis="y", visible=False)
    show(
        fig,
        "Bars on a logarithmic axis: a warp per row reads 550 GB, blocks of 16 rows 34 GB, of 64 "
        "rows 8.6 GB, of 128 rows 4.3 "
        "GB; everything once is 0.2 GB. A dashed line near 3 GB marks what can be read during the "
        "arithmetic.",
    )


def errors(found):
    """Relative errors of a right kernel and of wrong ones."""
    fig, ax = new(7.2, 3.0)
    names = list(found)
    ax.barh(
        names,
        list(found.values()),
        color=[RIGHT if name == "right" else WRONG for name in names],
        height=0.62,
    )
    ax.axvline(5e-3, color="#222222", linestyle="--", linewidth=1)
    ax.text(5.3e-3, -0.45, "limit", fontsize=8, va="center")
    ax.set(xscale="log", xlabel="relative error against float64", xlim=(1e-3, 10))
    ax.invert_yaxis()
    ax.grid(axis="y", visible=False)
    show(
        fig,
        "Relative errors on a logarithmic axis. The right kernel lies below the limit of 0.005. "
        "Seven wrong ones lie between "
        "0.08, a tile overwritten in use, and 4, a diagonal that begins upper left.",
    )
