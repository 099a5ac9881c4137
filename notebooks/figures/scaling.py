"""Figures of chapter 17."""

import numpy as np

from figures.style import COLOURS, NEUTRAL, RIGHT, WRONG, new, plt, show


PARTS = {
    "weights": COLOURS["D"],
    "cache": COLOURS["K"],
    "activations": COLOURS["S"],
    "gradients": COLOURS["F"],
    "optimizer": COLOURS["L"],
}


def context(sizes: dict, weights: dict, full: int):
    """Memory of weights and one row's cache against the length of the context, with cards of 80 GB
    as steps.
    """
    from minillama.distributed.memory import cache_bytes

    fig, ax = new(7.0, 3.3)
    tokens = np.linspace(0, full, 50)
    for (name, cfg), colour in zip(sizes.items(), (RIGHT, COLOURS["D"], WRONG), strict=True):
        for rows, style in ((1, "-"), (8, "--")):
            size = [(weights[name] + cache_bytes(cfg, rows, int(t))) / 1e9 for t in tokens]
            ax.semilogy(tokens / 1024, size, style, color=colour)
        ax.text(130, size[-1] / 1.4, name.upper(), color=colour, fontsize=9, va="center")
    for cards in (1, 8, 16):
        ax.axhline(72 * cards, color=NEUTRAL, linewidth=0.8)
        ax.text(6, 72 * cards * 1.03, f"{cards} × 72 GB", fontsize=8, color="#666666", va="bottom")
    ax.set_yticks([20, 50, 100, 200, 500, 1000], ["20", "50", "100", "200", "500", "1,000"])
    ax.plot([], [], color="#444444", label="weights and one row")
    ax.plot([], [], "--", color="#444444", label="weights and eight rows")
    ax.set(
        xlabel="tokens in each row, in units of 1,024", ylabel="GB", ylim=(11, 3500), xlim=(0, 128)
    )
    ax.legend(loc="upper left", ncols=2, fontsize=8)
    show(
        fig,
        "Memory for weights and cache against context, logarithmic. With eight rows 8B grows from "
        "16 to 153 GB at 131,072 "
        "tokens, 70B from 141 to 485, 405B from 812 to 1,353, which is more than sixteen cards' "
        "1,152.",
    )


def parts(sizes: dict):
    """Stacked bars: bytes by part, for serving eight rows of 8,192 tokens and for training on one
    such row.
    """
    fig, axes = new(7.2, 2.9, columns=2)
    for ax, task, title in zip(
        axes,
        ("serve", "train"),
        ("serving eight rows of 8,192", "training on one row, all activations kept"),
        strict=True,
    ):
        for y, (_, each) in enumerate(sizes.items()):
            total, start = sum(each[task].values()), 0.0
            for part, size in each[task].items():
                ax.barh(y, size / total, left=start, color=PARTS[part], height=0.6)
                if size / total > 0.1:
                    ax.text(
                        start + size / total / 2,
                        y,
                        f"{size / 1e9:,.0f}",
                        ha="center",
                        va="center",
                        color="white",
                        fontsize=8.5,
                    )
                start += size / total
            ax.text(1.02, y, f"{total / 1e9:,.0f} GB", va="center", fontsize=9)
        ax.set(
            yticks=range(len(sizes)),
            yticklabels=[name.upper() for name in sizes],
            xticks=[],
            xlim=(0, 1.34),
        )
        ax.set_title(title)
        ax.grid(False)
        ax.invert_yaxis()
        ax.spines["bottom"].set_visible(False)
    handles = [plt.Rectangle((0, 0), 1, 1, color=colour) for colour in PARTS.values()]
    fig.legend(handles, PARTS, loc="outside lower center", ncols=5, fontsize=8)
    show(
        fig,
        "Shares of memory by part for 8B, 70B and 405B. Serving eight rows of 8,192 tokens: mostly "
        "weights, for 8B a third cache. Training on one row: the optimizer's state is the largest "
        "part; activations are 30 percent for 8B and 11 percent for 405B.",
    )


def step(batches, steps, turn, most):
    """Milliseconds of a decode step by part against the batch."""
    fig, ax = new(7.0, 3.5)
    lines = {  # part: name, colour, batch at which the name stands, offset in points
        "weights": ("reading the weights", COLOURS["D"], 1.1, (0, -13)),
        "products": ("products of matrices", WRONG, 5, (4, -14)),
        "cache": ("reading the caches", COLOURS["K"], 1.1, (0, 42)),
        "links": ("links", NEUTRAL, 1.1, (0, 5)),
    }
    for part, (name, colour, place, offset) in lines.items():
        values = [1e3 * each[part] for each in steps]
        ax.loglog(batches, values, color=colour)
        at = np.exp(np.interp(np.log(place), np.log(batches), np.log(values)))
        ax.annotate(
            name,
            (place, at),
            offset,
            textcoords="offset points",
            color=colour,
            fontsize=9,
        )
    total = [
        1e3 * (max(e["weights"], e["products"]) + max(e["cache"], e["scores"]) + e["links"])
        for e in steps
    ]
    ax.loglog(batches, total, color="#222222", linewidth=2.2)
    ax.text(1.1, 42, "the whole step", color="#222222", fontsize=9)
    ax.axvline(turn, color=NEUTRAL, linestyle=":")
    ax.text(
        turn * 1.06,
        0.12,
        f"{turn:.0f}: as long to\ncompute as to read",
        fontsize=8.5,
        color="#555555",
    )
    ax.axvspan(most * 2**0.5, batches[-1], color="#f0f0f0", zorder=0)
    ax.text(most * 1.55, 600, "does not fit", fontsize=9, color="#555555")
    ax.set(
        xlabel="batch size, rows of 8,192 tokens",
        ylabel="milliseconds",
        xlim=(1, batches[-1]),
        ylim=(0.08, 1500),
    )
    ax.set_xticks([1, 4, 16, 64, 256, 1024], ["1", "4", "16", "64", "256", "1,024"])
    ax.set_yticks([0.1, 1, 10, 100, 1000], ["0.1", "1", "10", "100", "1,000"])
    ax.minorticks_off()
    show(
        fig,
        "Time of a decode step of 405B on 16 H100 against the batch size, logarithmic. Reading the "
        "weights is flat at thirty milliseconds, products rise and meet it at 295 rows, caches of "
        "8,192 tokens rise too and pass it at about 200 rows; memory ends before, at 64.",
    )


def cut(cfg, ranks):
    """Which part of each matrix a rank has: rows of the first ones, columns of wo and down."""
    fig, ax = new(7.0, 2.6)
    q, kv = cfg.n_heads * cfg.head_dim, cfg.n_kv_heads * cfg.head_dim
    shapes = {
        "wq": (q, cfg.dim, 0),
        "wk": (kv, cfg.dim, 0),
        "wv": (kv, cfg.dim, 0),
        "wo": (cfg.dim, q, 1),
        "gate": (cfg.ffn_dim, cfg.dim, 0),
        "up": (cfg.ffn_dim, cfg.dim, 0),
        "down": (cfg.dim, cfg.ffn_dim, 1),
    }
    left = 0
    for name, (rows, columns, along) in shapes.items():
        for rank, colour in zip(range(ranks), (RIGHT, COLOURS["D"]), strict=True):
            height, width = (rows / ranks, columns) if along == 0 else (rows, columns / ranks)
            x, y = (left, rank * height) if along == 0 else (left + rank * width, 0)
            ax.add_patch(
                plt.Rectangle(
                    (x, y), width, height, facecolor=colour, edgecolor="white", linewidth=1.5
                )
            )
            if height > 50:
                ax.text(
                    x + width / 2,
                    y + height / 2,
                    rank,
                    ha="center",
                    va="center",
                    color="white",
                    fontsize=8,
                )
        ax.text(left, -25, name, fontsize=9)
        left += columns + 60
    ax.set(xlim=(-5, left), ylim=(cfg.ffn_dim + 5, -90), aspect="equal")
    ax.axis("off")
    show(
        fig,
        "The matrices of a block, cut for two ranks: wq, wk, wv, gate and up between rows, wo and "
        "down between columns.",
    )


def frontier(points, best):
    """Tokens a second for one reader against the price of a million, by layout; the best ones
    joined.
    """
    fig, ax = new(7.2, 3.7)
    line = sorted(best, key=lambda q: q[3])
    ax.loglog([q[3] for q in line], [q[4] for q in line], color="#222222", linewidth=7, alpha=0.15)
    groups = sorted({(t, p) for t, p, *_ in points}, reverse=True)
    colours = (COLOURS["L"], RIGHT, COLOURS["H"], "#a06c00", WRONG)
    for (t, p), colour in zip(groups, colours, strict=False):
        each = [q for q in points if q[:2] == (t, p)]
        x, y = [q[3] for q in each], [q[4] for q in each]
        ax.loglog(x, y, "o-", color=colour, markersize=4, linewidth=0.8)
        ax.annotate(
            f"{t} tensor rank{'s' * (t > 1)}\n{p} stage{'s' * (p > 1)}",
            (x[0], y[0]),
            (0, 7),
            textcoords="offset points",
            ha="left" if t == 16 else "right" if t == 8 else "center",
            color=colour,
            fontsize=8.5,
        )
    for q in line:
        ax.annotate(
            f"B {q[2]}",
            (q[3], q[4]),
            (9, -5),
            textcoords="offset points",
            fontsize=8,
            color="#333333",
        )
    middle = [(a * b) ** 0.5 for a, b in zip(line[-2][3:5], line[-1][3:5], strict=True)]
    ax.annotate(
        "the frontier",
        middle,
        (40, 0),
        textcoords="offset points",
        va="center",
        fontsize=9,
        color="#555555",
        arrowprops={"arrowstyle": "-", "color": "#999999"},
    )
    ax.set(
        xlabel="tokens a second for one reader, at most",
        ylabel="dollars for a million tokens, at least",
    )
    ax.set_xticks([4, 8, 16, 32, 64], ["4", "8", "16", "32", "64"])
    ax.set_yticks(
        [3, 10, 30, 100, 300, 1000, 3000], ["3", "10", "30", "100", "300", "1,000", "3,000"]
    )
    ax.set(xlim=(3.2, 100), ylim=(2.5, 9000))
    ax.minorticks_off()
    show(
        fig,
        "Price of a million tokens against tokens a second for one reader, 405B on 16 H100, five "
        "layouts, batches of 1 to 64. The frontier consists of 16 and 8 tensor ranks; layouts with "
        "fewer are slower and more expensive everywhere.",
    )
