"""Figures of chapter 15."""

import numpy as np
from matplotlib.patches import Rectangle

from figures.style import COLOURS, NEUTRAL, RIGHT, WRONG, new, show


def windows(n, passes):
    """Each pass as a row over the text: ids that are only read, and ids that are scored."""
    fig, ax = new(7.2, 0.4 * len(passes) + 1.1)
    for row, (start, first, end) in enumerate(passes):
        for i in range(start, end):
            scored = i >= first
            colour, alpha = (RIGHT, 0.75) if scored else (COLOURS["S"], 0.3)
            ax.add_patch(Rectangle((i, row), 0.94, 0.8, facecolor=colour, alpha=alpha))
    ax.set(xlim=(0, n), ylim=(len(passes), -0.2), xlabel="place in the text", ylabel="pass")
    ax.set(xticks=np.arange(0, n, 4) + 0.47, yticks=np.arange(len(passes)) + 0.4)
    ax.set_xticklabels(range(0, n, 4))
    ax.set_yticklabels(range(1, len(passes) + 1))
    ax.grid(False)
    show(
        fig,
        f"{len(passes)} passes over {n} tokens, each shifted by the stride: light tokens are only "
        f"read, dark ones are scored, and every token but the first is dark in exactly one pass.",
    )


def window_cost(full, cut, window):
    """How much more each token costs in separate windows, by its place in its window."""
    fig, (left, right) = new(7.4, 2.8, columns=2, width_ratios=(2, 1))
    more = np.asarray(cut) - np.asarray(full)
    left.plot(np.arange(1, len(more) + 1), more, color=WRONG, linewidth=0.8)
    for edge in range(1, len(more) + 1, window):
        left.axvline(edge, color=NEUTRAL, linewidth=0.8, linestyle=":")
    left.set(xlabel="place in the text", ylabel="extra loss, nats", title="separate windows")
    place = np.arange(len(more)) % window
    groups = [more[window:][place[window:] // 16 == g].mean() for g in range(window // 16)]
    right.bar(range(len(groups)), groups, color=WRONG)
    right.set(xlabel="quarter of a window", title="on average", xticks=range(len(groups)))
    show(
        fig,
        f"Extra loss of each token if the text is cut into windows of {window}: large right after "
        f"every cut, dotted, and near zero at a window's end. On average the first sixteen tokens "
        f"of a window pay most.",
    )


def two_rulers(rows):
    """Perplexity and bits per byte of several models on the same text."""
    fig, axes = new(7.4, 2.2, columns=2)
    names = list(rows)
    for ax, n, title in ((axes[0], 0, "perplexity per token"), (axes[1], 1, "bits per byte")):
        values = [rows[name][n] for name in names]
        best = int(np.argmin(values[:2]))
        colours = [RIGHT if i == best else WRONG for i in range(2)] + [NEUTRAL] * (len(names) - 2)
        ax.barh(names, values, color=colours)
        ax.set(title=title, xlim=(0, max(values) * 1.2))
        ax.invert_yaxis()
        for i, value in enumerate(values):
            ax.text(value, i, f" {value:.2g}", va="center", fontsize=9)
    axes[1].set_yticklabels([])
    told = "; ".join(f"{name}: {a:.2g} and {b:.2g}" for name, (a, b) in rows.items())
    show(fig, f"Perplexity per token and bits per byte. {told}. The two rulers order the first two "
         f"models the other way round.")  # fmt: skip


def known_best(scores, best):
    """Share right for each group, with error bars, and the best that any model can have."""
    fig, ax = new(6.6, 2.8)
    names = list(scores)
    for i, name in enumerate(names):
        mean, error = scores[name]
        ax.bar(i, mean, color=RIGHT, width=0.6)
        ax.errorbar(i, mean, error, color="#222222", capsize=3)
        ax.plot([i - 0.38, i + 0.38], [best[name]] * 2, color=WRONG, linewidth=2)
    ax.axhline(0.25, color=NEUTRAL, linestyle=":", linewidth=1)
    ax.set(ylim=(0, 1.1), ylabel="share right", xticks=range(len(names)))
    ax.set_xticklabels(names)
    told = ", ".join(f"{n} {scores[n][0]:.2f} of {best[n]:.2f}" for n in names)
    show(fig, f"The stories' model by group, with the best possible score as a line: {told}. "
         f"Guessing, dotted, is at 0.25.")  # fmt: skip


def two_norms(groups):
    """acc and acc_norm of each subject."""
    fig, ax = new(7, 2.8)
    names = list(groups)
    for n, (metric, colour) in enumerate((("acc", RIGHT), ("acc_norm", COLOURS["D"]))):
        x = np.arange(len(names)) + 0.38 * (n - 0.5)
        values = np.array([groups[name][metric] for name in names])
        ax.bar(x, values[:, 0], width=0.36, color=colour, label=metric)
        ax.errorbar(x, values[:, 0], values[:, 1], color="#222222", linestyle="", capsize=2)
    ax.axhline(0.25, color=NEUTRAL, linestyle=":", linewidth=1)
    ax.set(ylim=(0, 1), ylabel="share right", xticks=range(len(names)))
    ax.set_xticklabels(names)
    ax.legend(ncols=2)
    told = ", ".join(
        f"{n} {groups[n]['acc'][0]:.2f} and {groups[n]['acc_norm'][0]:.2f}" for n in names
    )
    show(fig, f"Share right by total log-probability and per byte, for each subject: {told}.")


def pass_estimates(ks, truth, naive, unbiased):
    """What two estimates of pass@k give on average, against what is true."""
    fig, ax = new(6.2, 2.8)
    ax.plot(ks, truth, color="#222222", linewidth=4, alpha=0.25, label="true")
    ax.plot(ks, unbiased, color=RIGHT, linestyle="--", label="from subsets")
    ax.plot(ks, naive, color=WRONG, label="naive")
    ax.set(xlabel="programs that one may try, k", ylabel="pass@k", ylim=(0, None))
    ax.legend()
    show(
        fig,
        "Mean of two estimates of pass@k against k: the one from subsets lies on the true curve, "
        "the naive one below it, by more the larger k is.",
    )


def endings(counts):
    """How programs ended, most frequent first."""
    fig, ax = new(6.2, 2.6)
    names = list(counts)
    colours = [RIGHT if name == "passed" else NEUTRAL for name in names]
    ax.barh(names, list(counts.values()), color=colours)
    ax.invert_yaxis()
    ax.set(xlabel="programs")
    for i, value in enumerate(counts.values()):
        ax.text(value, i, f" {value}", va="center", fontsize=9)
    told = ", ".join(f"{name} {n}" for name, n in counts.items())
    show(fig, f"How SmolLM2's {sum(counts.values())} programs for HumanEval ended: {told}.")


def sampling(means, p, n):
    """Scores of one model on many draws of n questions, and the normal curve beside them."""
    fig, ax = new(6.2, 2.6)
    ax.hist(means, np.arange(-0.5, n + 1) / n, density=True, color=COLOURS["S"], alpha=0.7)
    error = (p * (1 - p) / n) ** 0.5
    x = np.linspace(p - 4 * error, p + 4 * error, 200)
    ax.plot(x, np.exp(-((x - p) ** 2) / 2 / error**2) / error / (2 * np.pi) ** 0.5, color=RIGHT)
    ax.axvline(p, color="#222222", linewidth=1)
    ax.set(xlabel=f"score on {n} questions", ylabel="density", xlim=(x[0], x[-1]))
    show(
        fig,
        f"Histogram of the scores of a model that knows {p:.0%} of all questions, on many draws of "
        f"{n}: a bell around {p} with a standard deviation of {error:.3f}, as the formula has it.",
    )


def paired(unpaired, together):
    """Bootstrapped differences of two models, on separate draws and on the same draws."""
    fig, ax = new(6.4, 2.6)
    bins = np.arange(-0.1625, 0.175, 0.005)  # a difference is a multiple of 0.005
    ax.hist(unpaired, bins, density=True, color=WRONG, alpha=0.55, label="questions drawn for each")
    ax.hist(together, bins, density=True, color=RIGHT, alpha=0.75, label="the same questions")
    ax.axvline(0, color="#222222", linewidth=1)
    ax.set(xlabel="difference of the two scores", ylabel="density")
    ax.legend()
    ratio = np.std(unpaired) / np.std(together)
    show(
        fig,
        f"Bootstrapped differences between float32 and 4 bits: drawn separately they are {ratio:.0f} "
        f"times as wide as on the same questions, where they crowd around 0.005.",
    )


def needed(differences, curves):
    """Questions needed for a difference, for models that answer apart and ones that mostly agree."""
    fig, ax = new(6.4, 2.8)
    for (label, counts), colour in zip(curves.items(), (WRONG, COLOURS["D"], RIGHT), strict=True):
        ax.plot(differences, counts, color=colour, label=label)
    ax.set(xscale="log", yscale="log", xlabel="true difference", ylabel="questions")
    ax.set_xticks([0.005, 0.01, 0.02, 0.05, 0.1, 0.2])
    ax.set_xticklabels(["0.5 %", "1 %", "2 %", "5 %", "10 %", "20 %"])
    ax.minorticks_off()
    ax.axhline(164, color=NEUTRAL, linestyle=":")
    ax.text(0.005, 180, "HumanEval: 164", fontsize=8, color="#555555")
    ax.legend()
    show(
        fig,
        "Questions needed against the true difference, both logarithmic: straight lines that fall by "
        "100 where the difference grows by 10; models that mostly agree need ten times fewer.",
    )


def reliability(curves):
    """Share right against confidence; the size of a dot is the number of questions."""
    fig, axes = new(7, 3.1, columns=len(curves), sharey=True)
    for ax, (title, rows) in zip(axes, curves.items(), strict=True):
        p, share, n = map(np.array, zip(*rows, strict=True))
        ax.plot([0, 1], [0, 1], color=NEUTRAL, linestyle="--", linewidth=1)
        ax.plot(p, share, color=RIGHT, linewidth=1)
        ax.scatter(p, share, s=3 * n, color=RIGHT)
        ax.set(xlabel="confidence", title=title, xlim=(0, 1.03), ylim=(0, 1.05))
    axes[0].set_ylabel("share right")
    told = "; ".join(
        f"{title}: " + ", ".join(f"{share:.2f} at {p:.2f}" for p, share, _ in rows)
        for title, rows in curves.items()
    )
    show(fig, f"Reliability diagrams. Share right at a confidence, for {told}.")


def phrasings(scores):
    """Share right for each way to ask."""
    fig, ax = new(6.8, 3.2)
    names = sorted(scores, key=lambda name: -scores[name][0])
    means, errors = zip(*(scores[name] for name in names), strict=True)
    ax.errorbar(means, range(len(names)), xerr=errors, fmt="o", color=RIGHT, capsize=3)
    ax.axvline(0.25, color=NEUTRAL, linestyle=":", linewidth=1)
    ax.set(yticks=range(len(names)), xlabel="share right", xlim=(0.15, 0.75))
    ax.set_yticklabels(names)
    ax.invert_yaxis()
    told = ", ".join(f"{name} {mean:.2f}" for name, mean in zip(names, means, strict=True))
    show(fig, f"The same 200 questions asked in ten ways, share right with standard error: {told}.")


def contamination(before, after):
    """Loss of each item and of its twin, before and after the items were trained on."""
    fig, axes = new(6.6, 3.1, columns=2, sharex=True, sharey=True)
    for ax, pairs, title in zip(axes, (before, after), ("clean", "trained on them"), strict=True):
        item, twin = np.array(pairs).T
        ax.scatter(twin, item, color=WRONG if ax is axes[1] else RIGHT)
        ax.plot([0, 0.5], [0, 0.5], color=NEUTRAL, linestyle="--", linewidth=1)
        ax.set(xlabel="loss of the twin", title=title)
    axes[0].set_ylabel("loss of the item")
    show(
        fig,
        "Loss of each item against that of its twin with another colour: on the diagonal for the "
        "clean model, far below it for the one that was trained on the items.",
    )
