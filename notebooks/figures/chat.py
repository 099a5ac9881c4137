"""Figures of chapter 10."""

import matplotlib.pyplot as plt

from figures.style import COLOURS, NEUTRAL, RIGHT, WRONG, new, show


CONTROL = "#444444"  # control ids: dark boxes with light text
WHO = {
    "system": "#efd3e2",
    "user": "#bcdcf0",
    "assistant": "#fbe3b5",
    "ipython": "#bfe5d6",
    "tool": "#bfe5d6",
}
SHORT = {
    "begin_of_text": "bos",
    "start_header_id": "start",
    "end_header_id": "end",
    "eot_id": "eot",
    "eom_id": "eom",
    "python_tag": "python",
}


def visible(text: str) -> str:
    """A token as it can be drawn."""
    text = text.replace(" ", "·").replace("\n", "↵").replace("\r", "←").replace("\t", "→")
    return "".join(char if char.isprintable() else "□" for char in text)


def pieces(tokenizer, ids):
    """(text, colour, is control) of every id; colours follow the role that the header names."""
    names = {id: name for name, id in tokenizer.specials.items()}
    who, header, said = "system", False, ""
    for id in ids:
        if id in names:
            name = names[id].strip("<|>")
            if name in ("start_header_id", "im_start"):
                header, said = True, ""
            elif name == "end_header_id":
                header = False
            yield SHORT.get(name, name), CONTROL, True
        else:
            text = tokenizer.decode([id])
            if header:
                said += text
                who = next((role for role in WHO if said.strip() == role), who)
                if "\n" in text:
                    header = False
            yield visible(text), WHO[who], False


def boxes(ax, parts, y=0.0, most=7.4, size=8):
    """Rows of boxes that wrap at `most` inches and after each end of a turn; returns the lowest
    y.
    """
    x = 0.0
    for text, colour, control in parts:
        step = 0.078 * max(len(text), 1) + 0.07
        if x + step > most:
            x, y = 0.0, y - 0.3
        ax.add_patch(plt.Rectangle((x, y), step - 0.02, 0.23, facecolor=colour, edgecolor="none"))
        ink = "white" if control else "black"
        middle = x + (step - 0.02) / 2
        ax.text(
            middle,
            y + 0.11,
            text,
            ha="center",
            va="center",
            family="monospace",
            fontsize=size,
            color=ink,
        )
        x += step
        if control and text in ("eot", "eom", "im_end"):
            x, y = 0.0, y - 0.3
    return y


def dialogs(tokenizer, rows, alt):
    """One or more conversations as boxes, each under its title: {title: ids}."""
    drawn = {title: list(pieces(tokenizer, ids)) for title, ids in rows.items()}
    fig, ax = new(7.6, 3)
    y = 0.0
    for title, parts in drawn.items():
        ax.text(0, y + 0.32, title, fontsize=9, va="bottom")
        y = boxes(ax, parts, y) - 0.62
    ax.set(xlim=(-0.05, 7.45), ylim=(y + 0.5, 0.6))
    ax.axis("off")
    fig.set_size_inches(7.6, 0.15 + 0.1 - y)
    show(fig, alt)


def likely(rows, alt):
    """The likeliest next tokens under several prompts: {label: [(token, probability), ...]};
    control ids dark.
    """
    fig, axes = new(7.6, 1.9, columns=len(rows), sharex=True)
    for ax, (label, tokens) in zip(axes, rows.items(), strict=True):
        tokens = tokens[::-1]
        colours = [CONTROL if token.startswith("<|") else RIGHT for token, _ in tokens]
        ax.barh(range(len(tokens)), [p for _, p in tokens], color=colours)
        ax.set_yticks(
            range(len(tokens)),
            [visible(token) for token, _ in tokens],
            family="monospace",
            fontsize=9,
        )
        ax.set(title=label, xlabel="probability", xlim=(0, 1))
        ax.grid(axis="y", visible=False)
    show(fig, alt)


def languages(bits, tokens, alt):
    """Per language, bits of a name in one model, and the tokens of an answer in two
    vocabularies.
    """
    fig, axes = new(7.6, 3.4, columns=2, sharey=True)
    labels = list(bits)
    axes[0].set_xlabel("bits that the name takes")
    axes[1].set_xlabel("tokens that the answer takes")
    for ax, rows in zip(axes, (bits, tokens), strict=True):
        kinds = list(rows[labels[0]])
        for i, kind in enumerate(kinds):
            values, height = [rows[label][kind] for label in labels], 0.8 / len(kinds)
            places = [j + height * (i - (len(kinds) - 1) / 2) for j in range(len(labels))]
            ax.barh(places, values, height, color=RIGHT if "Llama" in kind else WRONG, label=kind)
            for place, value in zip(places, values, strict=True):
                ax.text(value, place, f" {value}", va="center", fontsize=8)
        ax.set_yticks(range(len(labels)), labels, fontsize=9)
        ax.set(ylim=(len(labels) - 0.5, -0.5))
        ax.margins(x=0.12)
        ax.grid(axis="y", visible=False)
        ax.legend(loc="lower center", bbox_to_anchor=(0.5, 1), ncols=2, fontsize=8, handlelength=1)
    show(fig, alt)


def costs(rows, alt, xlabel):
    """Horizontal bars with their values: {label: {kind: number}}, the kinds side by side."""
    fig, ax = new(7.2, 0.34 * len(rows) + 0.8)
    labels = list(rows)[::-1]
    kinds = list(next(iter(rows.values())))
    height = 0.8 / len(kinds)
    for i, kind in enumerate(kinds):
        values = [rows[label][kind] for label in labels]
        colour = (RIGHT, WRONG)[i]
        places = [j + (len(kinds) / 2 - i - 0.5) * height for j in range(len(labels))]
        ax.barh(places, values, height, color=colour, label=kind)
        for place, value in zip(places, values, strict=True):
            ax.text(value, place, f" {value}", va="center", fontsize=8)
    ax.set_yticks(range(len(labels)), labels, fontsize=9)
    ax.set(xlabel=xlabel)
    ax.margins(x=0.08)
    ax.grid(axis="y", visible=False)
    if len(kinds) > 1:
        ax.legend(loc="lower right")
    show(fig, alt)


def sequence(steps, alt):
    """A sequence diagram: (from, to, what, ends of the turn) between user, program, model and
    tool.
    """
    lanes = {"user": 0.6, "program": 2.7, "model": 4.9, "tool": 7.0}
    colours = {
        "user": COLOURS["T"],
        "program": NEUTRAL,
        "model": COLOURS["D"],
        "tool": COLOURS["H"],
    }
    height = 0.46 * len(steps) + 0.5
    fig, ax = new(7.6, height)
    lane = {"color": "#dddddd", "linewidth": 6, "solid_capstyle": "butt"}
    for who, x in lanes.items():
        ax.plot([x, x], [0, height - 0.4], zorder=0, **lane)
        ax.text(
            x,
            height - 0.2,
            who,
            ha="center",
            va="center",
            fontsize=10,
            color=colours[who],
            weight="bold",
        )
    for i, (start, end, text) in enumerate(steps):
        y = height - 0.8 - 0.46 * i
        arrow = {
            "arrowstyle": "-|>",
            "color": colours[start],
            "linewidth": 1.6,
            "shrinkA": 0,
            "shrinkB": 0,
        }
        ax.annotate("", (lanes[end], y), (lanes[start], y), arrowprops=arrow, zorder=1)
        x = (lanes[start] + lanes[end]) / 2
        if {start, end} == {"program", "tool"}:  # passes behind the model's lane
            ax.plot([lanes["model"]] * 2, [y - 0.1, y + 0.1], zorder=3, **lane)
            x = (lanes["model"] + lanes["tool"]) / 2
        ax.text(x, y + 0.05, text, ha="center", va="bottom", fontsize=7.5, family="monospace")
    ax.set(xlim=(0, 7.6), ylim=(0, height))
    ax.axis("off")
    show(fig, alt)


def window(sizes, limit, alt):
    """Length of the prompt over the turns of a chat, with and without dropping the oldest turns."""
    fig, ax = new(6.6, 2.7)
    for (label, values), colour in zip(sizes.items(), (WRONG, RIGHT), strict=True):
        ax.plot(range(1, len(values) + 1), values, "o-", markersize=3, color=colour)
        ax.text(len(values) + 0.2, values[-1], label, color=colour, va="top")
    ax.axhline(limit, color="#888888", linewidth=1, linestyle="--")
    ax.text(1, limit, " limit", va="bottom", fontsize=9, color="#666666")
    ax.set(xlabel="turn", ylabel="ids in the prompt", ylim=(0, None))
    ax.set_xlim(0.5, len(values) + 1.6)
    show(fig, alt)
