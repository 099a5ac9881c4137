"""Figures of chapter 9a."""

import numpy as np
from matplotlib.patches import Rectangle

from figures.style import COLOURS, NEUTRAL, RIGHT, WRONG, new, show


def lookup(words, at, k, chosen):
    """The text in boxes, an arrow from the newest two words to their last occurrence, the draft and
    what stands.
    """
    fig, ax = new(7.4, 2.6)
    held = next(
        i for i, (guess, want) in enumerate(zip(words[at:], chosen, strict=False)) if guess != want
    )

    def box(x, y, word, colour, alpha=0.35):
        ax.add_patch(Rectangle((x, y), 0.92, 0.8, facecolor=colour, alpha=alpha, edgecolor="white"))
        ax.text(x + 0.46, y + 0.4, word, ha="center", va="center", fontsize=10)

    n = len(words)
    for i, word in enumerate(words):
        gram = i in (at - 2, at - 1, n - 2, n - 1)
        box(
            i,
            1.3,
            word,
            COLOURS["T"] if gram else COLOURS["S"] if at <= i < at + k else NEUTRAL,
            0.35 if gram else 0.25,
        )
    for i in range(k):
        box(n + i, 1.3, words[at + i], COLOURS["S"], 0.25)
    for i, word in enumerate(chosen):
        box(n + i, 0, word, RIGHT if i <= held else WRONG)
        ax.text(
            n + i + 0.46,
            1.05,
            "=" if i < held else "≠",
            ha="center",
            va="center",
            color=RIGHT if i < held else WRONG,
        )
    ax.text(
        n + len(chosen) + 0.05,
        0.4,
        "discarded",
        ha="left",
        va="center",
        fontsize=8,
        color="#666666",
    )
    ax.annotate(
        "",
        (at + k / 2, 2.15),
        (n + k / 2, 2.15),
        arrowprops={"arrowstyle": "<|-", "color": "#555555", "connectionstyle": "arc3,rad=0.22"},
    )
    ax.text((at + n + k) / 2, 3.1, "copied", ha="center", fontsize=9, color="#555555")
    ax.text(-0.1, 1.7, "text, draft", ha="right", va="center", fontsize=9)
    ax.text(-0.1, 0.4, "the model's choices", ha="right", va="center", fontsize=9)
    ax.set(xlim=(-3.2, n + k + 0.4), ylim=(-0.2, 3.6), xticks=[], yticks=[])
    ax.grid(False)
    for spine in ax.spines.values():
        spine.set_visible(False)
    show(
        fig,
        "The text 'the cat sat on the mat . the cat', whose last two words occurred at its "
        "beginning. What followed them "
        "there, 'sat on the mat', is copied as a draft; the model chooses 'sat on a', so two "
        "guesses are accepted, and then 'a'.",
    )


def gains(tasks, most):
    """For each task: ids from every pass in order, and how often each number came."""
    fig, axes = new(7.4, 4.4, rows=len(tasks), columns=2, width_ratios=(2.4, 1))
    for (left, right), (task, values), colour in zip(
        axes, tasks.items(), (RIGHT, COLOURS["H"], WRONG), strict=True
    ):
        left.bar(np.arange(1, len(values) + 1), values, color=colour, width=0.8)
        left.set(
            ylabel="ids",
            title=f"{task}: {sum(values)} ids, {len(values)} passes",
            ylim=(0, most + 0.5),
            yticks=[1, 5, most],
        )
        left.set_xlim(0, max(map(len, tasks.values())) + 1)
        counts = np.bincount(values, minlength=most + 1)[1:]
        right.bar(np.arange(1, most + 1), counts, color=colour)
        right.set(xticks=range(1, most + 1), yticks=[0, max(counts)], ylabel="passes")
        right.grid(axis="x", visible=False)
    axes[0][1].set_title("how often")
    axes[-1][0].set_xlabel("pass after the prompt's")
    axes[-1][1].set_xlabel("ids from one pass")
    parts = [
        f"{task}: {sum(v)} ids from {len(v)} passes, {v.count(most)} of them {most} ids"
        for task, v in tasks.items()
    ]
    show(
        fig,
        f"Ids from each pass, and a histogram. {'; '.join(parts)}. Copying gives nine ids from "
        f"nearly every pass, memory one.",
    )


def expected(formula, lengths):
    """Expected ids per pass against the probability that a guess is accepted, for several draft
    lengths.
    """
    fig, ax = new(6.4, 3)
    a = np.linspace(0, 1, 101)
    for k, shade in zip(lengths, np.linspace(0.75, 0.05, len(lengths)), strict=True):
        ax.plot(a, [formula(x, k) for x in a], color=(shade, shade, 0.85), label=f"k = {k}")
    ax.plot(a[:-7], 1 / (1 - a[:-7]), color=NEUTRAL, linestyle=":", label="endless")
    ax.set(
        xlabel="probability that a guess is accepted, a",
        ylabel="ids per pass",
        yscale="log",
        yticks=[1, 2, 4, 8, 16],
    )
    ax.set_yticklabels(["1", "2", "4", "8", "16"])
    ax.minorticks_off()
    ax.legend(title="draft")
    show(
        fig,
        "Expected ids per pass rise slowly with a, to 2 at one half for any long draft, and "
        "steeply only near 1, where a "
        "draft of k tokens gives k + 1.",
    )


def speed_up(formula, balances, accepted):
    """Speed-up against the length of the draft; one panel per machine, one line per probability."""
    fig, axes = new(7.4, 2.8, columns=len(balances), sharey=True)
    k = np.arange(17)
    for ax, m in zip(axes, balances, strict=True):
        for a, colour in zip(accepted, (WRONG, COLOURS["D"], RIGHT), strict=True):
            ax.plot(
                k, [formula(a, n) / max(1, (n + 1) / m) for n in k], color=colour, label=f"a = {a}"
            )
        ax.axhline(1, color="#222222", linewidth=0.8)
        ax.set(title=f"m = {m}", xlabel="tokens in the draft, k", ylim=(0, 12))
    axes[0].set_ylabel("speed-up")
    axes[0].legend(loc="upper left")
    show(
        fig,
        "Speed-up against draft length. With m = 295 drafts only gain. With m = 10 the line of a = "
        "0.95 bends at 9 tokens, "
        "and with m = 4 long drafts of guesses that are seldom accepted are slower than none.",
    )


def margins(values, single, half):
    """Margins between the best two logits, and the farthest that any logit moves, on one
    logarithmic axis.
    """
    fig, ax = new(7.2, 2.8)
    bins = np.logspace(-5.2, 1.6, 50)
    for data, colour, label, at in (
        (single, RIGHT, "movement,\nfloat32", 1.2e-4),
        (half, WRONG, "movement,\nbfloat16", 0.05),
        (values, "#777777", "margin of\nthe choice", 5),
    ):
        high = np.histogram(data, bins)[0].max()
        ax.hist(data, bins, color=colour, alpha=0.7)
        side = "right" if colour == WRONG else "left"
        ax.text(at, 0.95 * high, label, color=colour, ha=side, va="top", fontsize=9)
    ax.set(xscale="log", xlabel="logits", ylabel="positions")
    show(
        fig,
        "Histograms on a logarithmic axis: float32 movements lie around 0.00002, margins between "
        "0.005 and 20, far to the "
        "right; bfloat16 movements lie between 0.1 and 1 and overlap the margins.",
    )
