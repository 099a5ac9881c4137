"""Figures of chapter 9."""

import numpy as np

from figures.style import COLOURS, NEUTRAL, RIGHT, WRONG, new, show


HEAT = ("#0072B2", "#56B4E9", "#E69F00", "#D55E00")  # from cold to hot


def likeliest(positions):
    """Bars of the likeliest tokens after each prompt; positions: {prompt: [(token, probability),
    ...]}.
    """
    fig, axes = new(7.4, 2.9, columns=len(positions), sharex=True)
    for ax, (prompt, tokens) in zip(axes, positions.items(), strict=True):
        names = [repr(token) for token, _ in tokens]
        bars = ax.barh(names, [p for _, p in tokens], color=COLOURS["V"])
        ax.bar_label(bars, [f"{p:.3f}" for _, p in tokens], padding=3, fontsize=8)
        ax.invert_yaxis()
        ax.set(title=f"{prompt} ...", xlabel="probability", xlim=(0, 1))
        ax.grid(axis="y", visible=False)
    show(
        fig,
        "Left: after 'The capital of France is', ' Paris' has probability 0.77 and nothing else "
        "more than 0.07. Right: "
        "after 'The lighthouse keeper looked at the', the likeliest token, ' horizon', has 0.074 "
        "and the next are close.",
    )


def circle_of_words(words, table):
    """The toy language as a graph: an arrow per possible step, greedy's arrows in colour."""
    fig, ax = new(7.2, 4.3)
    place = {
        "the": (0, 0),
        "cat": (2.2, 1.2),
        "sat": (4.4, 0),
        "on": (2.2, -0.8),
        "dog": (2.2, -1.9),
        ".": (6.4, -0.9),
    }
    bends = {("the", "."): 0.7, ("dog", "."): 0.1, ("cat", "."): -0.3, ("cat", "on"): 0.15}
    for i, word in enumerate(words):
        for j, other in enumerate(words):
            if not table[i][j] or word == ".":
                continue
            greedy = table[i][j] == max(table[i]) and word != "dog"
            colour, bend = WRONG if greedy else "#777777", bends.get((word, other), -0.08)
            style = {"arrowstyle": "-|>", "color": colour, "linewidth": 2.5 if greedy else 1}
            style |= {"shrinkA": 16, "shrinkB": 16, "connectionstyle": f"arc3,rad={bend}"}
            ax.annotate("", place[other], place[word], arrowprops=style)
            start, end = np.array(place[word]), np.array(place[other])
            across = np.array([end[1] - start[1], start[0] - end[0]])
            x, y = (start + end) / 2 + across * bend / 2  # the middle of the curve
            ax.text(
                x,
                y,
                f"{table[i][j]:.1f}",
                fontsize=11,
                ha="center",
                va="center",
                color=colour,
                bbox={"facecolor": "white", "edgecolor": "none", "pad": 1.5},
            )
    for word, (x, y) in place.items():
        ax.text(x, y, word, ha="center", va="center", fontsize=26 if word == "." else 15)
    ax.text(2.5, 0.1, "greedy's circle", color=WRONG, ha="left", va="center", fontsize=11)
    ax.set(xlim=(-0.5, 6.8), ylim=(-3.0, 1.5), xticks=[], yticks=[], aspect="equal")
    ax.grid(False)
    for spine in ax.spines.values():
        spine.set_visible(False)
    show(
        fig,
        "Six words and arrows with probabilities. The orange arrows, which greedy follows from "
        "'the', form a circle: "
        "the, cat, sat, on, the. The full stop is never on it.",
    )


def repetition(chosen, repeated):
    """Probability of each greedily chosen token; the ones that end a repeated 4-gram in colour."""
    fig, ax = new(7.2, 2.8)
    steps = np.arange(1, len(chosen) + 1)
    repeated, chosen = np.array(repeated), np.array(chosen)
    ax.plot(steps, chosen, color="#dddddd", zorder=1)
    ax.scatter(steps[~repeated], chosen[~repeated], s=18, color=RIGHT, label="new 4-gram", zorder=2)
    ax.scatter(
        steps[repeated], chosen[repeated], s=18, color=WRONG, label="4-gram seen before", zorder=2
    )
    ax.set(xlabel="generated token", ylabel="probability of the chosen token", ylim=(0, 1.05))
    ax.legend(loc="lower right")
    show(
        fig,
        "Probability of each chosen token over 64 steps. The first twenty wander between 0.1 and "
        "0.9; soon afterwards every "
        "4-gram has been seen before, most probabilities are above 0.8, and a dip that returns "
        "every eight tokens gets "
        "shallower each time, from 0.28 to 0.50.",
    )


def coin(heads, mass, n):
    """Distribution of the number of heads in n flips, with the likeliest single sequence marked."""
    fig, ax = new(6.4, 2.8)
    ax.bar(heads, mass, color=RIGHT, width=1.0)
    ax.annotate(
        "the likeliest single sequence:\nheads every time",
        (n, 0.0),
        (n - 2, 0.05),
        ha="right",
        color=WRONG,
        arrowprops={"arrowstyle": "-|>", "color": WRONG},
    )
    ax.set(
        xlabel=f"heads in {n} flips of a coin with P(heads) = 0.6",
        ylabel="probability",
        xlim=(30, n + 2),
    )
    show(
        fig,
        "The number of heads in 100 flips is between 45 and 75 practically always, around 60; the "
        "likeliest single "
        "sequence, 100 heads, lies far to the right where there is no visible mass.",
    )


def surprise(texts):
    """Log-probability of each token of several texts, with the mean as a dashed line."""
    fig, ax = new(7.4, 2.9)
    for (label, values), colour in zip(texts.items(), (RIGHT, WRONG), strict=True):
        ax.plot(values, color=colour, linewidth=1.1, label=f"{label}: mean {np.mean(values):.2f}")
        ax.axhline(np.mean(values), color=colour, linewidth=0.8, linestyle="--")
    ax.set(xlabel="token", ylabel="log-probability")
    ax.legend(loc="lower right")
    show(
        fig,
        "Log-probability per token. The written paragraph jumps between 0 and -17 all the way, "
        "with mean -4.33; the greedy "
        "text starts with small dips and then stays just below zero, with mean -0.57.",
    )


def staircase(words, probs, throws):
    """The cumulative sum as a staircase and some throws that come down on its steps."""
    fig, ax = new(6.6, 3.2)
    edges = np.concatenate([[0], np.cumsum(probs)])
    for i, word in enumerate(words):
        ax.fill_between([i, i + 1], edges[i], edges[i + 1], color=COLOURS["V"], alpha=0.25)
        ax.plot([i, i + 1], [edges[i + 1]] * 2, color=COLOURS["V"])
        ax.text(i + 0.5, edges[i] - 0.03, word, ha="center", va="top", color=COLOURS["V"])
    for u in throws:
        i = int(np.searchsorted(edges[1:], u, side="right"))
        ax.annotate("", (i + 0.5, u), (0, u), arrowprops={"arrowstyle": "-|>", "color": RIGHT})
        ax.text(0.04, u + 0.01, f"u = {u}", ha="left", va="bottom", color=RIGHT, fontsize=9)
    ax.set(
        ylim=(-0.12, 1.02),
        xlim=(0, len(words)),
        xticks=[],
        yticks=edges,
        ylabel="probability so far",
    )
    show(
        fig,
        "A staircase whose steps are as high as the five probabilities; arrows from u = 0.3, 0.6 "
        "and 0.9 on the left end "
        "on the steps of tea, coffee and juice.",
    )


def draws(words, probs, counted):
    """Probabilities and measured frequencies side by side."""
    fig, (left, right) = new(7.4, 2.7, columns=2, sharey=True)
    for ax, (title, freqs) in zip((left, right), counted.items(), strict=True):
        x = np.arange(len(words))
        ax.bar(x - 0.2, probs, 0.4, color=NEUTRAL, label="probability")
        ax.bar(x + 0.2, freqs, 0.4, color=RIGHT if ax is left else WRONG, label="drawn")
        ax.set_xticks(x, words)
        ax.set_title(title)
        ax.legend()
        ax.grid(axis="x", visible=False)
    show(
        fig,
        "Left: drawn frequencies and probabilities of the five drinks cannot be told apart. Right: "
        "the version that "
        "forgets to look up ids gives water one half, milk a quarter, and tea a sixteenth.",
    )


def temperature(words, by_temperature, temperatures, entropies):
    """Toy distributions at several temperatures, and the entropy as a function of temperature."""
    fig, (left, right) = new(7.4, 2.9, columns=2)
    width = 0.8 / len(by_temperature)
    for n, (tau, probs) in enumerate(by_temperature.items()):
        x = np.arange(len(words)) + (n - (len(by_temperature) - 1) / 2) * width
        left.bar(x, probs, width, color=HEAT[n], label=f"τ = {tau}")
    left.set_xticks(np.arange(len(words)), words)
    left.set(ylabel="probability", title="softmax(z / τ)")
    left.grid(axis="x", visible=False)
    left.legend()
    right.semilogx(temperatures, entropies, color=RIGHT)
    right.axhline(np.log2(len(words)), color=NEUTRAL, linestyle="--", linewidth=1)
    right.text(
        temperatures[0],
        np.log2(len(words)) - 0.04,
        "log2 5: all equal",
        color="#777777",
        va="top",
        fontsize=8,
    )
    right.plot([1], [1.875], "o", color=WRONG)
    right.annotate("τ = 1: 1.875 bits", (1, 1.875), (1.3, 1.5), color=WRONG, fontsize=8)
    right.set(
        xlabel="temperature τ", ylabel="entropy in bits", title="from one token to all of them"
    )
    show(
        fig,
        "Left: at τ = 0.25 tea has nearly everything, at τ = 4 the five bars are nearly level. "
        "Right: entropy rises "
        "with τ from 0 bits through 1.875 at τ = 1 to log2 of 5, 2.32 bits.",
    )


def cuts(positions, k, p):
    """Sorted real probabilities of a sure and an unsure position, with the places where top-k and
    top-p cut.
    """
    fig, axes = new(7.4, 3.1, columns=2, sharey=True)
    for ax, (prompt, (probs, kept)) in zip(axes, positions.items(), strict=True):
        rank = np.arange(1, len(probs) + 1)
        ax.loglog(rank, probs, color=COLOURS["V"], linewidth=1)
        ax.fill_between(rank[:kept], 1e-12, probs[:kept], color=RIGHT, alpha=0.25, step=None)
        ax.axvline(k, color=WRONG, linestyle="--", linewidth=1)
        ax.axvline(kept, color=RIGHT, linewidth=1)
        ax.text(k * 1.15, 2e-11, f"top-k = {k}", color=WRONG, fontsize=8, rotation=90, va="bottom")
        ax.text(
            kept / 1.15,
            2e-11,
            f"top-p = {p}: {kept}",
            color=RIGHT,
            fontsize=8,
            rotation=90,
            va="bottom",
            ha="right",
        )
        ax.set(title=f"{prompt} ...", xlabel="rank of the token", ylim=(1e-12, 1))
    axes[0].set_ylabel("probability")
    show(
        fig,
        "Sorted probabilities on logarithmic axes. After 'The capital of France is' top-p = 0.9 "
        "keeps 10 tokens and "
        "top-k = 50 keeps too many; after 'The lighthouse keeper looked at the' top-p keeps 579 "
        "and top-k too few.",
    )


def nucleus_sizes(sizes):
    """How many tokens top-p keeps at each position of a text."""
    fig, ax = new(7.2, 2.8)
    ax.semilogy(np.arange(1, len(sizes) + 1), sizes, "o", color=RIGHT, markersize=4)
    ax.vlines(np.arange(1, len(sizes) + 1), 0.8, sizes, color=RIGHT, linewidth=0.8, alpha=0.5)
    ax.axhline(50, color=WRONG, linestyle="--", linewidth=1)
    ax.text(len(sizes) + 1, 53, "top-k = 50", color=WRONG, va="bottom", fontsize=8)
    ax.set(
        xlabel="position in the written paragraph",
        ylabel="tokens kept at top-p = 0.9",
        ylim=(0.8, None),
        xlim=(0, len(sizes) + 12),
    )
    show(
        fig,
        f"Stems at {len(sizes)} positions on a logarithmic axis: the nucleus has between "
        f"{min(sizes)} and more than 1,500 "
        "tokens and jumps by factors of a hundred from one position to the next.",
    )


def order(words, rows, limit):
    """Which tokens stay when temperature comes before top-p and when it comes after."""
    fig, axes = new(7.4, 3.6, rows=2, sharex=True)
    for ax, (title, (probs, kept)) in zip(axes, rows.items(), strict=True):
        left = 0.0
        for word, p, stays in zip(words, probs, kept, strict=True):
            colour = "#7FB7D8" if stays else "#dddddd"
            ax.barh([0], [p], left=[left], height=0.8, color=colour, edgecolor="white")
            ink = "black" if stays else "#777777"
            middle = {"ha": "center", "va": "center", "fontsize": 10, "color": ink}
            ax.text(left + p / 2, 0, word, **middle)
            start = {"ha": "left", "va": "top", "fontsize": 9, "color": ink}
            ax.text(left, -0.45, f"{left:.2f}", **start)
            left += p
        ax.plot([limit, limit], [-0.42, 0.62], color=WRONG, linewidth=2)
        ax.text(limit, 0.66, f"top-p = {limit}", color=WRONG, fontsize=10, ha="center")
        ax.set_title(f"{title}: {sum(kept)} stay")
        ax.set(xlim=(0, 1), yticks=[], ylim=(-0.75, 0.95), xticks=[])
        ax.grid(False)
        for side in ("left", "bottom"):
            ax.spines[side].set_visible(False)
    axes[-1].set_xlabel(
        "under each drink: the probability before it; it stays if that is at most top-p"
    )
    show(
        fig,
        "The unit interval divided among the five drinks. With temperature 2 first, the line at "
        "0.7 falls into the third "
        "piece and three drinks stay; with top-p on the unheated probabilities it falls into the "
        "second and two stay.",
    )


def tokens_processed(without, with_cache):
    """Tokens that went through the model after each generated token, with and without a cache."""
    fig, ax = new(6.4, 2.9)
    steps = np.arange(1, len(without) + 1)
    ax.plot(steps, np.cumsum(without), color=WRONG, label=f"without a cache: {sum(without):,}")
    ax.plot(steps, np.cumsum(with_cache), color=RIGHT, label=f"with a cache: {sum(with_cache):,}")
    ax.set(xlabel="generated tokens", ylabel="tokens through the model")
    ax.legend()
    show(
        fig,
        "Tokens processed against tokens generated: without a cache a parabola that ends at 2,528, "
        "with one a nearly flat "
        "line that ends at 71.",
    )


def intensity(tokens, flops_per_byte, balance):
    """Arithmetic per byte of weights against tokens per pass, log-log, with one GPU's balance."""
    fig, ax = new(6.4, 3)
    ax.loglog(tokens, flops_per_byte, "o-", color=RIGHT, markersize=4)
    ax.axhline(balance, color=NEUTRAL, linestyle="--", linewidth=1)
    ax.text(
        1,
        balance * 1.15,
        f"H100: {balance:.0f} operations in the time of one byte",
        color="#666666",
        fontsize=8,
    )
    ax.annotate("decode", (tokens[0], flops_per_byte[0]), (1.5, 0.75), color=WRONG)
    ax.annotate(
        "prefill of 1,024", (1024, flops_per_byte[tokens.index(1024)]), (130, 1300), color=RIGHT
    )
    ax.set(xlabel="tokens in one pass", ylabel="operations per byte of weights", ylim=(0.5, 6000))
    show(
        fig,
        "A straight line on logarithmic axes: one token does 1 operation per byte of weights read, "
        "1,024 tokens do 1,024. "
        "The H100's balance is a horizontal line at 295, crossed between 256 and 512 tokens.",
    )


def batch(prompts, answers):
    """The rows of a batch: padding, prompt and answer in the slots of the cache; lengths of prompts
    and answers.
    """
    fig, ax = new(7.2, 2.3)
    longest = max(prompts)
    for row, (prompt, answer) in enumerate(zip(prompts, answers, strict=True)):
        for start, width, colour in (
            (0, longest - prompt, "#dddddd"),
            (longest - prompt, prompt, COLOURS["S"]),
            (longest, answer, COLOURS["T"]),
        ):
            ax.barh([row], [width], left=[start], height=0.8, color=colour)
        if answer < max(answers):
            ax.text(longest + answer + 0.5, row, "done", va="center", fontsize=8, color="#666666")
    for label, colour in (
        ("padding", "#dddddd"),
        ("prompt", COLOURS["S"]),
        ("answer", COLOURS["T"]),
    ):
        ax.barh([0], [0], color=colour, label=label)
    ax.axvline(longest, color="#222222", linewidth=1)
    ax.set(
        xlabel="slot of the cache",
        ylabel="row",
        yticks=range(len(prompts)),
        ylim=(len(prompts) - 0.4, -0.6),
    )
    ax.set(xlim=(0, longest + max(answers) + 4))
    ax.grid(axis="y", visible=False)
    ax.legend(loc="lower left", ncols=3, bbox_to_anchor=(0, 1.0), frameon=False)
    show(
        fig,
        f"Rows of a batch as bars: padding of different widths on the left, then the prompts, which "
        f"all end at slot {longest}, "
        "then answers of different lengths, after which a row has left the batch.",
    )


def diversity(temperatures, curves, written):
    """Share of distinct trigrams and mean log-probability against temperature; curves: {label:
    (shares, means)}.
    """
    fig, (left, right) = new(7.4, 2.9, columns=2)
    for (label, (shares, means)), line, colour in zip(
        curves.items(), ("o-", "s--"), (RIGHT, COLOURS["D"]), strict=True
    ):
        left.plot(temperatures[-len(shares) :], shares, line, color=colour, label=label)
        right.plot(temperatures[-len(means) :], means, line, color=colour, label=label)
    right.axhline(written, color=NEUTRAL, linestyle=":")
    right.text(0, written - 0.15, "the written paragraph", color="#666666", va="top", fontsize=8)
    left.set(xlabel="temperature", ylabel="share of distinct trigrams", ylim=(0, 1.05))
    right.set(xlabel="temperature", ylabel="mean log-probability (at τ = 1)")
    left.legend(loc="lower right")
    show(
        fig,
        "Left: the share of distinct trigrams rises from 0.6 at temperature 0 to nearly 1 at 0.7 "
        "and stays there. Right: "
        "the mean log-probability falls from -0.9 to -9, faster above temperature 1, and crosses "
        "the written paragraph's "
        "-4.3 a little above 1; with top-p = 0.9 it is somewhat higher, but at 1.6 hardly.",
    )
