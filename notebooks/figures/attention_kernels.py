"""Figures of chapter 11b."""

from figures.style import NEUTRAL, RIGHT, WRONG, new, show


def traffic(read, least, enough):
    """Bytes of keys and values that blocks of so many rows read for a prompt; `enough` can be read
    while the arithmetic is done.
    """
    fig, ax = new(7.2, 3.0)
    rows = [f"{n} row{'s' * (n > 1)}\n({name})" for name, n in read]
    names, sizes = [*rows, "everything\nonce"], [*read.values(), least]
    colours = [RIGHT] * 2 + ["#8fbcd9"] * (len(read) - 2) + [NEUTRAL]
    ax.axvspan(enough / 1e9, 4000, color="#f3f3f3", zorder=0)
    ax.axvline(enough / 1e9, color="#222222", linestyle="--", linewidth=1)
    for i, (size, colour) in enumerate(zip(sizes, colours, strict=True)):
        ax.plot(size / 1e9, i, "o", color=colour, markersize=9)
        ax.text(size / 1e9 * 1.3, i, f"{size / 1e9:.3g} GB", va="center", fontsize=9)
    sides = ((0.9, "right", "arithmetic is the limit"), (1.1, "left", "memory is the limit"))
    for factor, side, text in sides:
        ax.text(enough / 1e9 * factor, -0.62, text, ha=side, va="center", fontsize=9)
    ax.set(
        xscale="log",
        xlabel="keys and values read (GB), a prompt of 8,192 tokens, one layer of 8B",
        xlim=(0.05, 4000),
        ylim=(len(names) - 0.6, -1),
        yticks=range(len(names)),
        yticklabels=names,
        ylabel="rows that share\nwhat is read",
    )
    ax.tick_params(axis="y", labelsize=9)
    ax.minorticks_off()
    ax.set_xticks([0.1, 1, 10, 100, 1000], ["0.1", "1", "10", "100", "1,000"])
    show(
        fig,
        "Dots on a logarithmic axis of GB read. One row by itself: 550 GB; 16 rows: 34 GB; 64 rows: "
        "8.6 GB; 128 rows: 4.3 GB; everything once: 0.2 GB. A dashed line at 2.7 GB marks "
        "what can be read during the arithmetic; all but the last dot are to its right, where "
        "memory is the limit.",
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
    for i, error in enumerate(found.values()):
        ax.text(error * 1.1, i, f"{error:.2g}", fontsize=8, va="center")
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
