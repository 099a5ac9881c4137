"""Figures of chapter 14b."""

import numpy as np
from matplotlib.patches import Rectangle

from figures.style import COLOURS, NEUTRAL, RIGHT, WRONG, new, show


def sigmoid(x):
    return 1 / (1 + np.exp(-np.asarray(x)))


def bradley_terry(d, cost, points):
    """Left: the chance to win against the difference of rewards. Right: what 75 votes against 25
    cost.
    """
    fig, (left, right) = new(7.4, 2.9, columns=2)
    left.plot(d, sigmoid(d), color=RIGHT)
    for x, name in points:
        left.plot(x, sigmoid(x), "o", color=WRONG)
        left.text(x + 0.25, sigmoid(x) - 0.055, f"{name}: {sigmoid(x):.2f}", fontsize=9)
    left.set(xlabel="difference of the rewards", ylabel="chance to be preferred", ylim=(0, 1.05))
    right.plot(d, cost, color=RIGHT)
    least = d[cost.argmin()]
    right.plot(least, cost.min(), "o", color=WRONG)
    right.text(least, cost.min() - 0.2, f"ln 3 = {np.log(3):.2f}", ha="center", fontsize=9)
    right.plot(0, np.log(2), "o", color=NEUTRAL)
    right.text(-0.1, np.log(2) - 0.14, "ln 2", ha="right", fontsize=9)
    right.set(xlabel="difference of the rewards", ylabel="cost of a vote, nats", ylim=(0, 2.6))
    right.set_title("75 votes for, 25 against")
    show(
        fig,
        "Left, the chance to be preferred rises from 0 to 1 along a sigmoid in the difference of "
        "the rewards; b over c at 0.67, "
        "a over b at 0.75 and a over c at 0.86 lie on it. Right, the mean cost of a vote when 75 "
        "are for and 25 against: ln 2 "
        "at no difference, least at ln 3.",
    )


def optimum(reference, policies, betas, distance, gained):
    """Left: the best policies for several prices. Right: reward against distance, a point per
    price.
    """
    fig, (left, right) = new(7.6, 3.0, columns=2)
    colours = (COLOURS["S"], COLOURS["D"], COLOURS["F"])
    bars = {"reference": (reference, NEUTRAL)}
    for (beta, policy), colour in zip(policies.items(), colours, strict=True):
        bars[f"β = {beta:g}"] = policy, colour
    for i, (name, (values, colour)) in enumerate(bars.items()):
        places = np.arange(3) + (i - 1.5) * 0.2
        left.bar(places, values, 0.19, color=colour, label=name)
    left.set(xticks=range(3), ylabel="probability", ylim=(0, 1.05))
    left.set_xticklabels(["first\nreward 0", "second\nreward 1", "third\nreward 2"])
    left.legend(loc="upper left", fontsize=9)
    right.plot(distance, gained, color=NEUTRAL)
    right.plot(0, gained[-1], "s", color=NEUTRAL)
    for (beta, _), colour in zip(policies.items(), colours, strict=True):
        i = int(np.abs(np.log(betas / beta)).argmin())
        right.plot(distance[i], gained[i], "o", color=colour)
        right.annotate(
            f"β = {beta:g}",
            (distance[i], gained[i]),
            (9, -10),
            textcoords="offset points",
            fontsize=9,
        )
    right.annotate("reference", (0, gained[-1]), (10, -4), textcoords="offset points", fontsize=9)
    right.set(xlabel="distance from the reference, nats", ylabel="mean reward", ylim=(0.6, 2.1))
    show(
        fig,
        "Left, probabilities of three answers with rewards 0, 1 and 2: the reference 0.5, 0.3, "
        "0.2; at beta 4 nearly the same, "
        "at 1 the third has 0.53, at 0.25 nearly everything. Right, mean reward against distance "
        "from the reference: a curve "
        "that rises steeply at first and flattens, passed from left to right as beta falls.",
    )


def brake(change, betas):
    """Left: the loss; right: the votes that are left, both against the change of the log-odds, for
    several betas.
    """
    fig, (left, right) = new(7.4, 2.9, columns=2)
    for beta, colour in zip(betas, (COLOURS["S"], COLOURS["D"], COLOURS["F"]), strict=True):
        left.plot(change, np.log1p(np.exp(-beta * change)), color=colour, label=f"β = {beta:g}")
        right.plot(change, sigmoid(-beta * change), color=colour)
        right.plot(np.log(3) / beta, 0.25, "o", color=colour)
    left.plot(0, np.log(2), "o", color="#222222")
    left.text(1.2, np.log(2) + 0.12, "start: ln 2", fontsize=9)
    left.set(xlabel="difference of the log-ratios, nats", ylabel="loss", ylim=(0, 2.6))
    right.axhline(0.25, color=NEUTRAL, linewidth=0.8, linestyle=":")
    right.set(
        xlabel="difference of the log-ratios, nats",
        ylabel="weight of the pair, σ(−m)",
        ylim=(0, 1),
    )
    left.legend(loc="upper right")
    show(
        fig,
        "Loss and weight of a pair against the log-ratio of the chosen answer less that of the "
        "rejected one, in nats, for beta 0.03, 0.1 and "
        "0.5. All losses start at ln 2 and all weights at one half; with beta 0.5 the weight is a "
        "quarter after two nats, with "
        "0.1 after eleven, with 0.03 after 37.",
    )


def rows(tokens, targets, ignore):
    """A batch of pairs: what goes in, and the target below it; chosen rows above, rejected ones
    below.
    """
    fig, ax = new(6.6, 3.4)
    count, length = tokens.shape
    lengths = [max(t for t in range(length) if targets[i, t] != ignore) + 1 for i in range(count)]
    for i in range(count):
        chosen = i < count // 2
        for t in range(length):
            asked, padding = targets[i, t] != ignore, t >= lengths[i]
            colour = "#f0f0f0" if padding else (RIGHT if chosen else WRONG) if asked else "#cccccc"
            ax.add_patch(
                Rectangle((t, i), 0.94, 0.86, facecolor=colour, alpha=0.75, edgecolor="white")
            )
            text = (
                "padding"
                if padding
                else f"{tokens[i, t]} → {targets[i, t].item() if asked else '·'}"
            )
            white = asked and not padding
            ax.text(
                t + 0.47,
                i + 0.43,
                text,
                ha="center",
                va="center",
                color="white" if white else "#444444",
            )
        ax.text(
            -0.15,
            i + 0.43,
            f"pair {i % (count // 2) + 1}, {'chosen' if chosen else 'rejected'}",
            ha="right",
            va="center",
        )
    ax.set(xlim=(-1.6, length), ylim=(count, -0.1), xticks=[], yticks=[])
    ax.grid(False)
    for spine in ax.spines.values():
        spine.set_visible(False)
    show(
        fig,
        "Four rows of tokens with the target of each: two chosen answers above, the two rejected "
        "ones of the same prompts "
        "below. Prompt tokens but the last have no target, every token of an answer and its end is "
        "a target once, and shorter rows have padding at the right.",
    )


def course(steps, nats, accuracy, general):
    """Log-ratios of both answers, held-out accuracy and general loss along a run."""
    fig, axes = new(7.8, 2.9, columns=3)
    axes[0].axhline(0, color="#222222", linewidth=0.8)
    places = {"chosen": (3, (4, 6), "left"), "rejected": (-1, (-12, -4), "right")}
    for (name, values), colour in zip(nats.items(), (RIGHT, WRONG), strict=True):
        axes[0].plot(steps, values, "o-", markersize=3, color=colour)
        i, offset, side = places[name]
        axes[0].annotate(
            name,
            (steps[i], values[i]),
            offset,
            textcoords="offset points",
            ha=side,
            color=colour,
        )
    axes[0].margins(y=0.12)
    axes[0].set(title="log-ratio of an answer, nats")
    axes[1].plot(steps, accuracy, "o-", markersize=3, color=RIGHT)
    axes[1].set(title="held-out pairs in order", ylim=(0.4, 1.04))
    axes[2].plot(steps, general, "o-", markersize=3, color=NEUTRAL)
    axes[2].set(title="loss on ordinary stories", ylim=(min(general) - 0.01, max(general) + 0.01))
    for ax in axes:
        ax.set(xlabel="step", xticks=steps[::2])
    show(
        fig,
        f"Along {steps[-1]} steps. Left, the rejected answers lose many nats; the chosen ones "
        f"{'gain hardly anything' if nats['chosen'][-1] > -2 else 'are taken along and fall too'}. "
        f"Middle, the accuracy on "
        f"held-out pairs rises from one half to one. Right, the loss on ordinary stories rises"
        f"{' slightly' if general[-1] - general[0] < 0.05 else ' steeply'}.",
    )


def losses(curves):
    """The loss that each version reports, along its run."""
    fig, ax = new(7.2, 3.0)
    colours = (RIGHT, COLOURS["D"], COLOURS["L"], WRONG, COLOURS["K"])
    styles = ("-", "-", "--", "-", "-")
    ends = sorted((values[-1], name) for name, values in curves.items())
    heights, lowest = {}, -1.0
    for value, name in ends:  # labels at the curves' ends, none on another
        heights[name] = lowest = max(value, lowest + 0.06)
    for (name, values), colour, style in zip(curves.items(), colours, styles, strict=True):
        width = 2 if name == "right" else 1.4
        ax.plot(values, style, color=colour, linewidth=width)
        ax.text(
            len(values) - 0.6,
            heights[name],
            name.replace("_", " "),
            color=colour,
            va="center",
            fontsize=9,
        )
    ax.set(xlabel="step", ylabel="loss as reported", ylim=(0, 0.78), xlim=(-0.5, 25))
    ax.set_xticks(range(0, 20, 4))
    show(
        fig,
        "The loss that five versions report along twenty steps. The right one and the swapped one "
        "start at ln 2 and fall; the "
        "one without a reference starts elsewhere and falls; the mean of tokens hardly leaves ln "
        "2; with the adapter left on the "
        "line is flat at ln 2.",
    )
