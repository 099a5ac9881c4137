"""Figures of chapter 13c."""

from figures.style import COLOURS, NEUTRAL, RIGHT, WRONG, new, show


FORMS = {"steps": RIGHT, "backwards": COLOURS["D"], "plain": WRONG}
MARKS = {"steps": "o-", "backwards": "s-", "plain": "^-"}


def chain():
    """Two sums whose first digit depends on the first column alone, and on all three."""
    fig, axes = new(7.2, 2.2, columns=2)
    for ax, (a, b, needed) in zip(axes, (("739", "419", 1), ("736", "264", 3)), strict=True):
        total = str(int(a) + int(b))
        for i in range(3):
            used = i < needed
            for y, text in ((2, a), (1, b)):
                ax.text(
                    i + 1,
                    y,
                    text[i],
                    ha="center",
                    va="center",
                    fontsize=16,
                    color="#222222" if used else "#bbbbbb",
                )
        ax.text(0, 1, "+", ha="center", va="center", fontsize=16, color=NEUTRAL)
        ax.plot([-0.4, 3.4], [0.5, 0.5], color=NEUTRAL, linewidth=1)
        for i, digit in enumerate(total):
            ax.text(
                i,
                0,
                digit,
                ha="center",
                va="center",
                fontsize=16,
                color=RIGHT if i == 0 else "#bbbbbb",
            )
        for i in range(needed):
            ax.annotate(
                "",
                (i + 0.15, 2.6),
                (i + 0.95, 2.6),
                arrowprops={"arrowstyle": "->", "color": COLOURS["F"]},
            )
        ax.set(xlim=(-0.7, 3.7), ylim=(-0.5, 3), xticks=[], yticks=[])
        ax.set_title("the first column decides" if needed == 1 else "all three are needed")
        ax.grid(False)
        for spine in ax.spines.values():
            spine.set_visible(False)
    show(
        fig,
        "Two sums of three-digit numbers. In 739 + 419 the hundreds alone decide the first digit of 1158. "
        "In 736 + 264, where the hundreds and the "
        "tens sum to 9, the carry runs through all three columns, and the first digit of 1000 "
        "depends on the last.",
    )


def cost(tokens: dict):
    """Tokens of a problem by length, for each form."""
    fig, ax = new(6.6, 2.8)
    for name, values in tokens.items():
        ax.plot(
            range(1, len(values) + 1),
            values,
            MARKS[name],
            color=FORMS[name],
            markersize=4,
        )
    last = {name: values[-1] for name, values in tokens.items()}
    ax.text(8.15, last["steps"], "steps", color=FORMS["steps"], va="center")
    ax.text(8.15, last["plain"], "plain and\nbackwards", color=FORMS["backwards"], va="center")
    ax.set(xlabel="digits of each number", ylabel="tokens of a problem", ylim=(0, None))
    ax.set_xlim(0.7, 9.2)
    ax.set_xticks(range(1, 9))
    show(
        fig,
        "Tokens of a problem over the number of digits: three straight lines. plain and backwards "
        "lie on each other and grow by 3 a digit; "
        "steps grows by 12 a digit, about four times as fast.",
    )


def mask(tokens, targets, alphabet):
    """The beginning of a row: inputs, and the target at each position."""
    fig, ax = new(7.6, 1.7)
    for i, (token, target) in enumerate(zip(tokens.tolist(), targets.tolist(), strict=True)):
        asked = target >= 0
        for y, id, colour in ((1, token, "#222222"), (0, target, RIGHT if asked else "#cccccc")):
            text = "·" if id < 0 else alphabet[id].replace("\n", "↵")
            ax.text(
                i, y, text, ha="center", va="center", fontsize=9, color=colour, family="monospace"
            )
    ax.set(
        xlim=(-1, len(tokens)),
        ylim=(-0.6, 1.6),
        xticks=[],
        yticks=[0, 1],
        yticklabels=["target", "input"],
    )
    ax.grid(False)
    for spine in ax.spines.values():
        spine.set_visible(False)
    ax.tick_params(length=0)
    show(
        fig,
        "The first tokens of a row, and below each its target: a dot, for none, inside the "
        "question, and from the equals sign on the "
        "next character of the answer, up to the newline.",
    )


def by_length(runs: dict, trained):
    """Sums right by length, for each form: a point per seed, a line through their means."""
    fig, ax = new(7.0, 3.2)
    ax.axvspan(min(trained) - 0.3, max(trained) + 0.3, color="#f0f0f0")
    ax.text(min(trained) - 0.2, 1.09, "trained on", fontsize=9, color="#666666")
    told = []
    for shift, (name, seeds) in zip((-0.08, 0, 0.08), runs.items(), strict=True):
        lengths = [int(length) for length in seeds[0]["accuracy"]]
        shares = [[run["accuracy"][str(length)] for run in seeds] for length in lengths]
        means = [sum(share) / len(share) for share in shares]
        places = [length + shift for length in lengths]
        ax.plot(places, means, color=FORMS[name], linewidth=1.2)
        for i in range(len(seeds)):
            ax.plot(
                places,
                [share[i] for share in shares],
                MARKS[name][0],
                color=FORMS[name],
                markersize=5,
            )
        told.append(
            f"{name}: "
            + ", ".join(
                f"{length} digits {mean:.0%}" for length, mean in zip(lengths, means, strict=True)
            )
        )
    ax.set(xlabel="digits of each number", ylabel="sums right", ylim=(-0.04, 1.18), xticks=lengths)
    ax.set_yticks([0, 0.5, 1], ["0%", "50%", "100%"])
    for name, place in {
        "steps": (3.12, 0.98),
        "plain": (3.8, 0.26),
        "backwards": (2.52, 0.4),
    }.items():
        side = "right" if name == "backwards" else "left"
        ax.text(*place, name, color=FORMS[name], va="center", ha=side)
    show(
        fig,
        "Share of sums that are right to the last digit, over the number of digits, three seeds "
        "for each of three forms. Means: " + "; ".join(told) + ".",
    )


def learning(runs: dict):
    """Three-digit sums right, over the tokens and over the problems trained on, a line per seed."""
    fig, (left, right) = new(7.6, 3.0, columns=2, sharey=True)
    for name, seeds in runs.items():
        for run in seeds:
            share = [accuracy for _, accuracy in run["curve"]]
            tokens = [run["tokens"] * (k + 1) / len(share) / 1e6 for k in range(len(share))]
            style = dict(color=FORMS[name], markersize=3, linewidth=1)
            left.plot(tokens, share, MARKS[name], **style)
            right.plot([n / 1e3 for n, _ in run["curve"]], share, MARKS[name], **style)
    left.set(
        xlabel="million tokens trained on", ylabel="three-digit sums right", ylim=(-0.04, 1.04)
    )
    left.set_yticks([0, 0.5, 1], ["0%", "50%", "100%"])
    right.set(xlabel="thousand problems trained on")
    for name, place in {"steps": (10, 0.92), "backwards": (100, 0.9), "plain": (142, 0.52)}.items():
        right.text(*place, name, color=FORMS[name], ha="center" if name != "plain" else "left")
    ends = []
    for name, seeds in runs.items():
        shares = ", ".join(f"{run['curve'][-1][1]:.0%}" for run in seeds)
        ends.append(f"{name} {shares} after {seeds[0]['problems']:,} problems")
    ends = "; ".join(ends)
    show(
        fig,
        f"Three-digit sums right during training, over tokens (left) and over problems (right). At "
        f"the end: {ends}.",
    )


def unmasked(masked: dict, unmasked: dict):
    """Three-digit sums right during training, with the loss on the answer alone and on
    everything.
    """
    fig, ax = new(6.6, 2.8)
    for run, colour, label in (
        (masked, RIGHT, "loss on the answer"),
        (unmasked, WRONG, "loss on question and answer"),
    ):
        tokens = [
            run["tokens"] * (i + 1) / len(run["curve"]) / 1e6 for i in range(len(run["curve"]))
        ]
        share = [share for _, share in run["curve"]]
        ax.plot(tokens, share, "o-", color=colour, markersize=4)
        k = 4 if colour == RIGHT else 8
        side = "right" if colour == RIGHT else "left"
        x = tokens[k] - 0.03 if colour == RIGHT else tokens[k] + 0.03
        ax.text(x, share[k] + 0.02, label, color=colour, ha=side)
    ax.set(xlabel="million tokens trained on", ylabel="three-digit sums right", ylim=(-0.04, 1.04))
    ax.set_xlim(0.1, 2.2)
    ax.set_yticks([0, 0.5, 1], ["0%", "50%", "100%"])
    show(
        fig,
        f"Three-digit sums right over the tokens trained on. Loss on the answer alone ends at "
        f"{masked['curve'][-1][1]:.0%}, "
        f"loss on question and answer at {unmasked['curve'][-1][1]:.0%}.",
    )
