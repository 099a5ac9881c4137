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


def mistakes(losses: dict):
    """Loss of the real model with its ranks played in one process, right and wrong."""
    fig, ax = new(7.0, 2.5)
    for y, loss in enumerate(losses.values()):
        ax.barh(y, loss, color=RIGHT if y == 0 else WRONG, height=0.6)
        ax.text(loss + 0.1, y, f"{loss:.1f}", va="center", fontsize=9)
    ax.set(
        yticks=range(len(losses)),
        yticklabels=list(losses),
        xlabel="loss over the text, nats a token",
    )
    ax.set_xlim(0, 1.12 * max(losses.values()))
    ax.invert_yaxis()
    show(
        fig,
        "Loss of the real model on a text: cut for three ranks, as with one. Every one of five "
        "wrong ways to cut it "
        "is higher, each without an error message.",
    )


def led(counts):
    """What rank 0 asks of its model, told to rank 1, which does the same; what only rank 0 does."""
    fig, ax = new(7.2, 2.1)
    steps = []
    for count in counts:
        steps += [(f"pass of {count}", True), ("draw", False)]
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
    for rank in (0, 1):
        ax.text(-0.15, 1.6 * rank + 0.4, f"rank {rank}", ha="right", va="center", fontsize=9)
    ax.set(xlim=(-1.1, len(steps) + 2.1), ylim=(2.6, -0.2))
    ax.axis("off")
    show(
        fig,
        "Rank 0 reads, makes a pass over three tokens and draws, makes a pass over one and draws, "
        "and prints. Each pass is told "
        "to rank 1, which makes it too; reading, drawing and printing are rank 0's alone.",
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
    axes[1].set_xlabel(
        "the 64 numbers of an 8 x 8 matrix in the order of the file; lines between its rows"
    )
    show(
        fig,
        "An 8 x 8 matrix as it lies in the file, 64 numbers in a line. Rank 1's half, cut between "
        "rows: the last 32 numbers, "
        "one run. Cut between columns: the last four numbers of each row, eight runs.",
    )


def per_rank(counts, planned, cache, found: dict):
    """Bytes of 405B's weights and of eight rows' cache on each rank, planned and found in the
    simulation.
    """
    fig, ax = new(7.0, 3.1)
    ax.loglog(counts, [x / 1e9 for x in planned], color=COLOURS["D"], label="weights, planned")
    ax.loglog(
        list(found),
        [x / 1e9 for x in found.values()],
        "o",
        color="#222222",
        label="weights, in the simulation",
    )
    ax.loglog(
        counts, [x / 1e9 for x in cache], color=COLOURS["K"], label="cache of eight rows of 8,192"
    )
    ax.axvline(8, color=NEUTRAL, linestyle=":")
    ax.text(8.4, 8, "as many ranks as kv heads", fontsize=8.5, color="#555555")
    ax.axhline(72, color=NEUTRAL, linewidth=0.8)
    ax.text(1.05, 77, "nine tenths of an 80 GB card", fontsize=8.5, color="#555555", va="bottom")
    ax.set(xlabel="tensor ranks", ylabel="GB on each", ylim=(3, 1200))
    ax.set_xticks(counts, [str(n) for n in counts])
    ax.set_yticks([5, 20, 50, 100, 500, 1000], ["5", "20", "50", "100", "500", "1,000"])
    ax.minorticks_off()
    ax.legend(fontsize=8.5, loc="upper right")
    show(
        fig,
        "GB on each rank against tensor ranks, both logarithmic. Weights fall from 812 to 7, the "
        "points of the simulation on the "
        "planned line. The cache falls from 34 to 4 at eight ranks, the number of kv heads, and "
        "stays there.",
    )


def stops(counts, steps, prompts):
    """Thousandths of a second for a step of decoding and for a prompt's piece, by part, against
    tensor ranks.
    """
    fig, axes = new(7.2, 3.1, columns=2)
    titles = ("a token for each of 8 rows", "512 tokens of a prompt, 8 rows")
    for ax, parts, title in zip(axes, (steps, prompts), titles, strict=True):
        work = [
            1e3 * (max(p["weights"], p["products"]) + max(p["cache"], p["scores"])) for p in parts
        ]
        links = [1e3 * p["links"] for p in parts]
        ax.loglog(
            counts,
            [a + b for a, b in zip(work, links, strict=True)],
            color="#222222",
            linewidth=2.2,
            label="together",
        )
        ax.loglog(counts, work, color=COLOURS["D"], label="weights and cache")
        ax.loglog(counts[1:], links[1:], color=WRONG, label="links")
        ax.axvline(8, color=NEUTRAL, linestyle=":")
        ax.set(xlabel="tensor ranks", title=title)
        ax.set_xticks(counts, [str(n) for n in counts])
        ax.minorticks_off()
    axes[0].set_yticks([3, 10, 30, 100, 300], ["3", "10", "30", "100", "300"])
    axes[1].set_yticks([30, 100, 300, 1000, 3000], ["30", "100", "300", "1,000", "3,000"])
    axes[0].set_ylabel("thousandths of a second, at least")
    axes[0].legend(fontsize=8, loc="upper right")
    axes[0].text(7.4, 4, "one server", ha="right", fontsize=8, color="#555555")
    show(
        fig,
        "Time against tensor ranks, 405B on H100, planned. Decoding: 251 with one rank, 34 with "
        "eight; beyond a server links "
        "are a third to three quarters of it, 14 with 128. A prompt: 587 with eight ranks, 1,509 "
        "with sixteen, nearly all of it links.",
    )


def cores(measured: dict):
    """Measured ratio to the plain model against ranks, and the messages' share of the time."""
    fig, axes = new(7.2, 3.0, columns=2)
    tasks = {"prompt": COLOURS["T"], "answer": COLOURS["F"], "training": COLOURS["L"]}
    counts = sorted({count for _, _, count in measured if count})
    axes[0].plot(counts, counts, color=NEUTRAL, linestyle=":", label="ideal")
    for task, colour in tasks.items():
        for scaling, line in (("strong", "-"), ("weak", "--")):
            ratios = [measured[task, scaling, count]["ratio"] for count in counts]
            axes[0].plot(
                counts, ratios, color=colour, linestyle=line, marker="o", label=f"{task}, {scaling}"
            )
    axes[0].set(
        xlabel="ranks",
        ylabel="work per second, plain = 1",
        xticks=counts,
        ylim=(0, 1.8 * counts[-1]),
    )
    axes[0].legend(fontsize=7.5, ncols=2, loc="upper left")
    most, places = counts[-1], []
    for place, (task, colour) in enumerate(tasks.items()):
        for shift, scaling in ((-0.2, "strong"), (0.2, "weak")):
            share = measured[task, scaling, most]["messages_share"]
            axes[1].bar(
                place + shift,
                100 * share,
                width=0.36,
                color=colour,
                alpha=0.9 if scaling == "strong" else 0.45,
            )
            places.append(f"{task}, {scaling} {share:.0%}")
    axes[1].set(xticks=range(3), xticklabels=list(tasks), ylabel="messages, percent of the time")
    axes[1].set_title(f"{most} ranks: strong (dark) and weak (light)", fontsize=9)
    ends = [
        f"{task}, {scaling} {measured[task, scaling, most]['ratio']:.2f}"
        for task in tasks
        for scaling in ("strong", "weak")
    ]
    show(
        fig,
        f"Measured: work per second with {most} ranks beside the plain model in one process: "
        f"{'; '.join(ends)}. "
        f"Share of the time that goes into messages: {'; '.join(places)}.",
    )
