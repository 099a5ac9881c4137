"""Figures of chapter 17a."""

from figures.style import COLOURS, NEUTRAL, RIGHT, WRONG, new, plt, show


TWO = (RIGHT, COLOURS["D"])  # rank 0, rank 1


def grid(ax, left, top, matrix, colour_of, title):
    """A matrix of numbers; colour_of(row, column) -> whose it is."""
    for i, row in enumerate(matrix):
        for j, x in enumerate(row):
            box = plt.Rectangle(
                (left + j, top + i), 1, 1, facecolor=colour_of(i, j), alpha=0.55, edgecolor="white"
            )
            ax.add_patch(box)
            ax.text(left + j + 0.5, top + i + 0.5, f"{x:g}", ha="center", va="center", fontsize=10)
    ax.text(left, top - 0.25, title, fontsize=9, color="#444444")


def by_hand(x, up, h, down, shares, y):
    """A toy layer on two ranks: up between its rows, down between its columns, two shares and their
    sum.
    """
    fig, ax = new(7.2, 2.5)
    grey = lambda i, j: "#dddddd"  # noqa: E731
    rows, columns = (lambda i, j: TWO[i // 2]), (lambda i, j: TWO[j // 2])
    grid(ax, 0, 1, [[v] for v in x], grey, "x")
    grid(ax, 2, 0, up, rows, "up")
    grid(ax, 5.2, 0, [[v] for v in h], rows, "h")
    grid(ax, 7.4, 1, down, columns, "down")
    grid(ax, 12.6, 1, [[v] for v in shares[0]], lambda i, j: TWO[0], "share 0")
    ax.text(14.2, 2, "+", fontsize=13, ha="center", va="center")
    grid(ax, 14.8, 1, [[v] for v in shares[1]], lambda i, j: TWO[1], "share 1")
    ax.text(16.5, 2, "=", fontsize=13, ha="center", va="center")
    grid(ax, 17.2, 1, [[v] for v in y], grey, "y")
    for rank, colour in enumerate(TWO):
        ax.text(7.4 + 3.2 * rank, 4.6, f"rank {rank}", color=colour, fontsize=10, weight="bold")
    ax.set(xlim=(-0.3, 18.6), ylim=(4.9, -0.8), aspect="equal")
    ax.axis("off")
    show(
        fig,
        "A toy layer on two ranks. The four rows of up, and so the four entries of h, belong to "
        "rank 0 and rank 1, two each; "
        "so do the columns of down. Each rank has a share of y, a whole vector; y is the sum of "
        "the shares.",
    )


def messages():
    """What two ranks have before and after each of three collectives."""
    fig, axes = new(7.2, 2.5, columns=3)
    both = ("3", "4", "5", "6")
    cases = {
        "all-reduce": ((("1", "2"), ("10", "20")), (("11", "22"), ("11", "22"))),
        "all-gather": (((both[0], both[1]), (both[2], both[3])), (both, both)),
        "reduce-scatter": ((("1", "2"), ("10", "20")), (("11",), ("22",))),
    }
    for ax, (name, states) in zip(axes, cases.items(), strict=True):
        for place, state in enumerate(states):
            for rank, values in enumerate(state):
                for j, value in enumerate(values):
                    x, y = j, 1.5 * rank + 4 * place
                    mixed = name != "all-gather" and place == 1
                    colour = (
                        "#bbbbbb"
                        if mixed
                        else TWO[j // 2 if name == "all-gather" and place else rank]
                    )
                    ax.add_patch(
                        plt.Rectangle((x, y), 1, 1, facecolor=colour, alpha=0.6, edgecolor="white")
                    )
                    ax.text(x + 0.5, y + 0.5, value, ha="center", va="center", fontsize=10)
                ax.text(
                    -0.2,
                    1.5 * rank + 4 * place + 0.5,
                    f"rank {rank}",
                    ha="right",
                    va="center",
                    fontsize=8.5,
                )
        ax.annotate("", (1, 3.8), (1, 2.75), arrowprops={"arrowstyle": "->", "color": "#555555"})
        ax.set(xlim=(-2.0, 4.2), ylim=(6.7, -0.3), aspect="equal", title=name)
        ax.axis("off")
    show(
        fig,
        "Three collectives on two ranks, before and after. All-reduce: 1, 2 and 10, 20 become 11, "
        "22 on both. All-gather: 3, 4 "
        "and 5, 6 become 3, 4, 5, 6 on both. Reduce-scatter: the sums 11 and 22, one on each rank.",
    )


def mistakes(losses: dict, guessing: float):
    """Loss of the real model with its ranks emulated in one process, right and wrong, and that of a
    uniform guess.
    """
    fig, ax = new(7.2, 2.8)
    ax.axvline(guessing, color="#222222", linestyle=":", linewidth=1.2, zorder=0.8)
    ax.text(guessing - 0.1, -0.05, "uniform guess", fontsize=9, ha="right", va="center")
    for y, loss in enumerate(losses.values()):
        ax.barh(y, loss, color=RIGHT if y == 0 else WRONG, height=0.6)
        ax.text(loss - 0.1, y, f"{loss:.1f}", va="center", ha="right", color="white", fontsize=9)
    ax.set(
        yticks=range(len(losses)),
        yticklabels=list(losses),
        xlabel="loss over the text, nats per token",
    )
    ax.set_xlim(0, 1.05 * max(losses.values()))
    ax.invert_yaxis()
    show(
        fig,
        "Loss of the real model on a text: cut rightly for three ranks, as with one. Five wrong "
        "cuts have a much higher loss, most of them above that of a uniform guess.",
    )


def led(counts):
    """Passes that rank 0 broadcasts and rank 1 replays; what only rank 0 does."""
    fig, ax = new(7.6, 2.1)
    steps = []
    for count in counts:
        steps += [(f"pass over {count}", True), ("sample", False)]
    for x, (name, both) in enumerate([("read", False), *steps, ("print", False)]):
        for rank in (0, 1):
            if rank and not both:
                continue
            ax.add_patch(
                plt.Rectangle((x + 0.06, 1.6 * rank), 0.88, 0.8, facecolor=TWO[rank], alpha=0.6)
            )
            ax.text(x + 0.5, 1.6 * rank + 0.4, name, ha="center", va="center", fontsize=9)
        if both:
            ax.annotate(
                "",
                (x + 0.5, 1.58),
                (x + 0.5, 0.84),
                arrowprops={"arrowstyle": "->", "color": "#555555"},
            )
            ax.text(x + 0.56, 1.2, "broadcast", va="center", fontsize=8.5, color="#555555")
    for rank in (0, 1):
        ax.text(-0.15, 1.6 * rank + 0.4, f"rank {rank}", ha="right", va="center", fontsize=9)
    ax.set(xlim=(-1.1, len(steps) + 2.1), ylim=(2.6, -0.2))
    ax.axis("off")
    show(
        fig,
        "Rank 0 reads, makes a pass over three tokens and samples, makes a pass over one and "
        "samples, and prints. Each pass is broadcast to rank 1, which makes it too; reading, "
        "sampling and printing are rank 0's alone.",
    )


def in_the_file():
    """Where a rank's bytes lie in the file: one run for a matrix cut between rows, one in each row
    between columns.
    """
    fig, axes = new(7.0, 2.4, rows=2)
    for ax, title in zip(
        axes, ("cut between rows: one run", "cut between columns: a run in each row"), strict=True
    ):
        for byte in range(64):
            mine = 32 <= byte if "rows" in title.split(":")[0] else byte % 8 >= 4
            ax.add_patch(
                plt.Rectangle((byte, 0), 1, 1, facecolor=TWO[mine], alpha=0.9 if mine else 0.25)
            )
        for row in range(9):
            ax.plot([8 * row] * 2, [-0.15, 1.15], color="#444444", linewidth=0.8)
        ax.set(xlim=(-0.5, 64.5), ylim=(-0.2, 1.2), yticks=[], xticks=[], title=title)
        ax.grid(False)
        for spine in ax.spines.values():
            spine.set_visible(False)
        for rank in (0, 1) if "rows" in title.split(":")[0] else ():
            ax.text(32 * rank + 12, 0.5, f"rank {rank}", ha="center", va="center", fontsize=9)
    axes[1].set_xlabel("the 64 entries of an 8 x 8 matrix in the file's order; lines between rows")
    show(
        fig,
        "An 8 x 8 matrix as it lies in the file, 64 entries in a line. Rank 1's half, cut between "
        "rows: the last 32 entries, one run. Cut between columns: the last four entries of each "
        "row, eight runs.",
    )


def per_rank(counts, planned, cache, found: dict):
    """Bytes of 405B's weights and of eight rows' cache on each rank, planned and found in the
    simulation.
    """
    fig, ax = new(7.0, 3.1)
    ax.loglog(counts, [x / 1e9 for x in planned], color=COLOURS["D"])
    ax.loglog(list(found), [x / 1e9 for x in found.values()], "o", color="#222222")
    ax.loglog(counts, [x / 1e9 for x in cache], color=COLOURS["K"])
    ax.text(8.8, 250, "weights: line planned, dots simulated", fontsize=9, color="#9A6A00")
    ax.text(1.15, 12, "cache of 8 rows\nof 8,192 tokens", fontsize=9, color=COLOURS["K"], va="top")
    ax.axvline(8, color=NEUTRAL, linestyle=":")
    ax.text(8.4, 8, "as many ranks as kv heads", fontsize=8.5, color="#555555")
    ax.axhline(72, color=NEUTRAL, linewidth=0.8)
    ax.text(1.05, 77, "nine tenths of an 80 GB card", fontsize=8.5, color="#555555", va="bottom")
    ax.set(xlabel="tensor ranks", ylabel="GB on each", ylim=(3, 1200))
    ax.set_xticks(counts, [str(n) for n in counts])
    ax.set_yticks([5, 20, 50, 100, 500, 1000], ["5", "20", "50", "100", "500", "1,000"])
    ax.minorticks_off()
    show(
        fig,
        "GB on each rank against tensor ranks, both logarithmic. Weights fall from 812 to 7, the "
        "points of the simulation on the "
        "planned line. The cache falls from 34 to 4 at eight ranks, the number of kv heads, and "
        "stays there.",
    )


def stops(counts, steps, prompts):
    """Milliseconds of a decode step and of a prefill chunk, by part, against tensor ranks."""
    fig, axes = new(7.2, 3.1, columns=2)
    titles = ("decode: a token for each of 8 rows", "prefill: 512 tokens for each of 8 rows")
    for ax, parts, title in zip(axes, (steps, prompts), titles, strict=True):
        work = [
            1e3 * (max(p["weights"], p["products"]) + max(p["cache"], p["scores"])) for p in parts
        ]
        links = [1e3 * p["links"] for p in parts]
        both = [a + b for a, b in zip(work, links, strict=True)]
        ax.loglog(counts, both, color="#222222", linewidth=2.2)
        ax.loglog(counts, work, color=COLOURS["D"])
        ax.loglog(counts[1:], links[1:], color=WRONG)
        ax.axvline(8, color=NEUTRAL, linestyle=":")
        ax.set(xlabel="tensor ranks", title=title)
        ax.set_xticks(counts, [str(n) for n in counts])
        ax.minorticks_off()
    axes[0].set_yticks([3, 10, 30, 100, 300], ["3", "10", "30", "100", "300"])
    axes[1].set_yticks([30, 100, 300, 1000, 3000], ["30", "100", "300", "1,000", "3,000"])
    axes[0].set_ylabel("ms, lower bound")
    axes[0].text(18, 34, "together", fontsize=9)
    axes[0].text(128, 2.4, "weights, cache", fontsize=9, color="#9A6A00", ha="right")
    axes[0].text(2.2, 3.3, "links", fontsize=9, color=WRONG)
    axes[0].set_ylim(2.1, 320)
    axes[0].text(8.6, 200, "beyond one server", fontsize=8.5, color="#555555")
    axes[1].text(17, 1900, "together", fontsize=9)
    axes[1].text(24, 60, "weights,\ncache", fontsize=9, color="#9A6A00", ha="right", va="top")
    axes[1].text(2.2, 130, "links", fontsize=9, color=WRONG)
    show(
        fig,
        "Milliseconds against tensor ranks, 405B on H100, planned. Decoding: 251 with one rank, 34 with "
        "eight; beyond a server links are a third to three quarters of it, 14 with 128. Prefill: "
        "587 with eight ranks, 1,509 with sixteen, nearly all of it links.",
    )


def cores(measured: dict):
    """Work per second beside the plain model, and the share of time in collectives."""
    fig, axes = new(7.6, 3.0, columns=2, width_ratios=[9, 5])
    tasks = {"prompt": COLOURS["T"], "answer": COLOURS["F"], "training": COLOURS["L"]}
    named = {"prompt": "prefill", "answer": "decode", "training": "training"}
    most = max(count for _, _, count in measured)
    kinds = {"1 rank": ("strong", 1), f"{most}, strong": ("strong", most)}
    kinds[f"{most}, weak"] = ("weak", most)
    for ax, field, shown in (
        (axes[0], "ratio", list(kinds)),
        (axes[1], "messages_share", list(kinds)[1:]),
    ):
        ticks = []
        for place, (task, colour) in enumerate(tasks.items()):
            left = place * (len(shown) + 0.8)
            for i, kind in enumerate(shown):
                value = measured[task, *kinds[kind]][field]
                ax.bar(
                    left + i, value, color=colour, width=0.85, alpha=0.55 if "1 " in kind else 0.9
                )
                label = f"{value:.2f}" if field == "ratio" else f"{value:.0%}"
                ax.text(left + i, value, label, ha="center", va="bottom", fontsize=8.5)
                ticks.append((left + i, kind))
            middle, top = left + (len(shown) - 1) / 2, ax.get_xaxis_transform()
            ax.text(middle, 1.0, named[task], color=colour, transform=top, ha="center", va="bottom")
        ax.set_xticks([x for x, _ in ticks], [kind for _, kind in ticks], rotation=60, fontsize=8.5)
        ax.grid(axis="x", visible=False)
    for height, name in ((1, "plain model"), (most, f"ideal for {most} ranks")):
        axes[0].axhline(height, color="#222222", linestyle=":", linewidth=1, zorder=0.8)
        axes[0].text(10.7, height + 0.03, name, fontsize=8.5, va="bottom")
    axes[0].set(ylabel="work per second, plain = 1", ylim=(0, most + 0.2), xlim=(-0.7, 14.5))
    axes[1].set(ylabel="time in collectives", ylim=(0, 0.55))
    axes[1].set_yticks([0, 0.2, 0.4], ["0%", "20%", "40%"])
    said = {
        field: "; ".join(
            f"{named[task]}, {kind} {measured[task, *kinds[kind]][field]:.2f}"
            for task in tasks
            for kind in list(kinds)[1:]
        )
        for field in ("ratio", "messages_share")
    }
    show(
        fig,
        f"Measured: work per second beside the plain model in one process: {said['ratio']}. "
        f"Share of the time in collectives: {said['messages_share']}.",
    )
