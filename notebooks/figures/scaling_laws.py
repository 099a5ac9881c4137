"""Figures of chapter 13b."""

import numpy as np

from figures.style import COLOURS, NEUTRAL, RIGHT, WRONG, new, show


SHADES = ["#56B4E9", "#009E73", "#E69F00", "#CC79A7", "#444444"]  # sizes of model, small to large


def short(x: float) -> str:
    """1234567 -> 1.2M"""
    for unit, name in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if x >= unit:
            return f"{x / unit:.{0 if x >= 9.5 * unit else 1}f}{name}".replace(".0", "")
    return f"{x:.0f}"


def toy(N, loss, with_dice, line):
    """Three losses that halve with every factor of ten, and the same with half a nat of chance
    below them.
    """
    fig, ax = new(7.2, 3.2)
    far = np.geomspace(1e3, 1e9, 100)
    ax.loglog(far, 32 / far**0.30103, color=NEUTRAL)
    ax.loglog(far, 0.5 + 32 / far**0.30103, color=RIGHT)
    ax.loglog(far, line[0] / far ** line[1], "--", color=WRONG)
    ax.text(1.2e9, 0.062, "no dice:\n$32/\\mathcal{N}^{\\,0.301}$", color="#666666", va="center")
    ax.text(1.2e9, 0.75, "dice:\n$0.5 + 32/\\mathcal{N}^{\\,0.301}$", color=RIGHT, va="center")
    ax.text(1.2e9, 0.19, "a line through\nthe last two", color=WRONG, va="center")
    ax.loglog(N, loss, "o", color=NEUTRAL)
    ax.loglog(N, with_dice, "o", color=RIGHT)
    ax.axhline(0.5, color="#bbbbbb", linewidth=1)
    ax.text(1.1e3, 0.45, "0.5, the dice", fontsize=9, color="#666666", va="top")
    ax.set(xlabel=r"weights $\mathcal{N}$", ylabel="loss, nats", ylim=(0.04, 8))
    ax.set_yticks([0.1, 0.5, 1, 2, 4], ["0.1", "0.5", "1", "2", "4"])
    ax.minorticks_off()
    show(
        fig,
        "Logarithmic axes. Three grey points on a straight falling line; three blue points half a "
        "nat above them on a curve that "
        "flattens towards 0.5. A dashed line through the last two blue points leaves the curve and "
        "falls below 0.5.",
    )


def zipf(chances):
    """How often each fact is told, by rank, and what share of all tellings the rest is."""
    fig, (left, right) = new(7.4, 2.9, columns=2)
    rank = np.arange(1, len(chances) + 1)
    left.loglog(rank, chances, color=RIGHT)
    left.set(xlabel="rank of the fact", ylabel="share of all statements")
    rest = 1 - np.cumsum(np.asarray(chances))
    right.semilogx(rank, 100 * rest, color=COLOURS["F"])
    right.plot(100, 100 * rest[99], "o", color=COLOURS["F"])
    right.text(
        130, 100 * rest[99] + 2, f"{rest[99]:.0%} after 100 facts", fontsize=9, color=COLOURS["F"]
    )
    right.set(xlabel="facts that are known", ylabel="statements of other facts")
    right.yaxis.set_major_formatter("{x:.0f}%")
    show(
        fig,
        "Left: the share of a fact over its rank, a straight falling line on logarithmic axes. "
        "Right: the share of statements whose "
        "fact is not among the n most frequent; after the first hundred facts it is seven "
        "percent, and from there it falls ever more slowly.",
    )


def measured(runs, law, floor):
    """Loss over tokens for every size: the measured points, the fitted curves, and what a perfect
    model reaches.
    """
    fig, ax = new(7.4, 3.8)
    sizes = sorted({run["N"] for run in runs})
    label = np.inf
    for N, colour in zip(sizes, SHADES, strict=False):
        mine = sorted((run["D"], run["loss"]) for run in runs if run["N"] == N)
        D, loss = zip(*mine, strict=True)
        ax.loglog(D, loss, "o", color=colour)
        # labels a line's height apart, where the points are closer than that
        label = min(loss[-1], label / 1.037)
        name = rf"$\mathcal{{N}}$ = {short(N)}" if N == sizes[0] else short(N)
        ax.text(max(D) * 1.04, label, name, color=colour, va="center", fontsize=9)
        grid = np.geomspace(min(D), max(D), 50)
        ax.loglog(grid, law(N, grid), color=colour, linewidth=1)
    ax.axhline(floor, color="#888888", linestyle=":")
    ax.text(
        max(run["D"] for run in runs),
        floor * 1.03,
        "a perfect model",
        fontsize=9,
        color="#666666",
        ha="right",
    )
    every = sorted({run["D"] for run in runs})
    ax.set_xticks(every, [short(D) for D in every])
    ax.set_yticks([0.4, 0.5, 0.6, 0.7, 0.8, 0.9], ["0.4", "0.5", "0.6", "0.7", "0.8", "0.9"])
    ax.minorticks_off()
    ax.set(xlabel=r"tokens $\mathcal{D}$", ylabel="loss, nats per statement", xlim=(48e3, 500e3))
    show(
        fig,
        f"Measured losses of {len(sizes)} sizes over the tokens they were trained on, on "
        f"logarithmic axes, with a fitted curve "
        "through each size. All fall towards the right and flatten; larger sizes lie lower, above "
        "the dotted line of a perfect model.",
    )


def predicted(runs, law, held, others):
    """Predicted against measured loss; the held-out size in its own colour, with the range of other
    fits.
    """
    fig, ax = new(5.4, 4.0)
    x = [run["loss"] for run in runs]
    ax.loglog(
        x,
        [law(run["N"], run["D"]) for run in runs],
        "o",
        color=NEUTRAL,
    )
    for run in held:
        spread = [other(run["N"], run["D"]) for other in others]
        ax.plot([run["loss"]] * 2, [min(spread), max(spread)], color=RIGHT, linewidth=1)
    ax.loglog(
        [run["loss"] for run in held],
        [law(run["N"], run["D"]) for run in held],
        "D",
        color=RIGHT,
    )
    for run in held:
        text = f"held out,\n{short(run['D'])} tokens"
        ax.text(
            run["loss"] * 0.985,
            law(run["N"], run["D"]) * 1.015,
            text,
            color=RIGHT,
            fontsize=9,
            ha="right",
        )
    ax.text(0.72, 0.69, "the 20 fitted runs", color="#666666", fontsize=9)
    low, high = 0.84 * min(x + [run["loss"] for run in held]), 1.1 * max(x)
    ax.plot([low, high], [low, high], color="#bbbbbb", linewidth=1)
    ax.set_xticks([0.5, 0.6, 0.7, 0.8, 0.9], ["0.5", "0.6", "0.7", "0.8", "0.9"])
    ax.set_yticks([0.5, 0.6, 0.7, 0.8, 0.9], ["0.5", "0.6", "0.7", "0.8", "0.9"])
    ax.minorticks_off()
    ax.set(xlabel="measured loss", ylabel="loss by the law")
    show(
        fig,
        "Loss by the law against measured loss. Grey points of the fitted sizes lie about the "
        "diagonal; the blue diamonds of the "
        "held-out size, each with a bar for what other fits say, lie near its lower end.",
    )


def wrong(found: dict, entropy: float):
    """Each way to fit: the entropy that it finds, and its errors at the two held-out losses."""
    fig, (left, right) = new(7.6, 3.0, columns=2, sharey=True)
    names = list(found)
    colours = [RIGHT if i == 0 else WRONG for i in range(len(names))]
    left.barh(names, [found[name][0] for name in names], color=colours)
    left.axvline(entropy, color="#666666", linestyle=":")
    left.text(entropy, -0.62, "the dice", ha="center", fontsize=9, color="#666666")
    for i, name in enumerate(names):
        left.text(found[name][0] + 0.008, i, f"{found[name][0]:.2f}", va="center", fontsize=9)
    left.set(xlabel=r"$\mathcal{E}$, nats", xlim=(0, 0.5))
    for i, name in enumerate(names):
        right.plot(
            [100 * error for error in found[name][1:]], [i, i], color=colours[i], linewidth=1
        )
        right.plot(100 * found[name][1], i, "o", color=colours[i])
        right.plot(100 * found[name][2], i, "D", color=colours[i])
    right.plot([], [], "o", color=NEUTRAL, label="102,400 tokens")
    right.plot([], [], "D", color=NEUTRAL, label="409,600 tokens")
    right.axvline(0, color="#888888", linewidth=1)
    right.set(xlabel="error of the held-out loss")
    right.xaxis.set_major_formatter("{x:.0f}%")
    right.legend(fontsize=9, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=2)
    left.invert_yaxis()
    told = ", ".join(
        f"{name}: E {E:.2f}, {one:+.0%} and {two:+.0%}" for name, (E, one, two) in found.items()
    )
    show(
        fig,
        f"Left, bars: the E of five fits, beside a dotted line at the true one. Right: their two "
        f"errors. {told}.",
    )


def frontier(law, budgets):
    """Loss over N for several budgets of operations, and the best of each."""
    fig, ax = new(7.2, 3.6)
    for C, colour in zip(budgets, SHADES, strict=False):
        best, _ = law.best(C)
        N = np.geomspace(best / 40, best * 40, 200)
        ax.semilogx(N, law(N, C / (6 * N)), color=colour)
        exponent = int(np.log10(C * 1.001))
        lead = round(C / 10**exponent)
        factor = "" if lead == 1 else rf"{lead} \cdot "
        name = rf"${factor}10^{{{exponent}}}$ operations"
        ax.text(best * 40 * 1.1, law(best * 40, C / (240 * best)), name, color=colour, fontsize=9)
    bests = [law.best(C)[0] for C in budgets]
    ax.plot(bests, [law(*law.best(C)) for C in budgets], "o-", color="#333333", linewidth=1)
    ax.set(
        xlabel=r"weights $\mathcal{N}$",
        ylabel="loss by the law",
        ylim=(0.45, 0.95),
        xlim=(200, 2e7),
    )
    show(
        fig,
        f"{len(budgets)} curves, one for each budget of operations: loss over the number of "
        f"weights, high for too small and for too "
        "large models. A black line joins their lowest points and moves to the right and down as "
        "the budget grows.",
    )


def lifetime(served, costs: dict):
    """Operations for training and answering together, over the tokens that are served."""
    fig, ax = new(7.2, 3.2)
    for (name, total), colour in zip(costs.items(), (WRONG, RIGHT), strict=True):
        ax.loglog(served, total, color=colour)
        ax.text(1.1 * served[-1], total[-1], name.replace(", ", "\n"), color=colour, va="center")
    ax.set(xlabel="tokens read and written in the model's lifetime", ylabel="operations in total")
    ax.set_xticks([1e11, 1e12, 1e13, 1e14, 1e15], ["0.1T", "1T", "10T", "100T", "1000T"])
    show(
        fig,
        "Operations over tokens served, logarithmic. The larger model of least training cost "
        "starts lower; the curves cross, and "
        "after the crossing the small model that was trained longer costs less.",
    )
