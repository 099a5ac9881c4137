"""Figures of chapter 11d."""

import numpy as np
from matplotlib.patches import Rectangle

from figures.style import COLOURS, NEUTRAL, RIGHT, WRONG, new, show


PARTS = {
    "norms": COLOURS["D"],
    "matrices": COLOURS["V"],
    "rotation": COLOURS["S"],
    "cache": COLOURS["K"],
    "attention": COLOURS["H"],
    "SwiGLU": COLOURS["F"],
    "residuals": COLOURS["B"],
}
PATTERNS = {"norm": COLOURS["D"], "rope": COLOURS["S"], "swiglu": COLOURS["F"]}


def bar(ax, start, y, length, colour):
    ax.add_patch(
        Rectangle((start, y), length, 0.4, facecolor=colour, edgecolor="#ffffff", linewidth=0.8)
    )


def timelines(kernels, ask, work, gap):
    """What host and GPU do when kernels are launched one by one, and as one graph."""
    fig, ax = new(7.4, 2.6)
    free = 0.0
    for i in range(kernels):
        bar(ax, i * ask, 1.9, ask, NEUTRAL)
        free = max(free, (i + 1) * ask)
        bar(ax, free, 1.4, work, COLOURS["H"])
        free += work
    bar(ax, 0, 0.5, ask, RIGHT)
    for i in range(kernels):
        bar(ax, ask + i * (work + gap), 0, work, COLOURS["H"])
    for y, text in (
        (2.1, "host, one launch each"),
        (1.6, "GPU"),
        (0.7, "host, one graph"),
        (0.2, "GPU"),
    ):
        ax.text(-0.5, y, text, ha="right", va="center", fontsize=9)
    ends = free, ask + kernels * (work + gap) - gap
    for end, y in zip(ends, (1.4, 0), strict=True):
        ax.plot([end, end], [y - 0.08, y + 0.48], color="#222222", linewidth=1)
    ax.set(
        xlim=(-9, free + 0.5),
        ylim=(-0.3, 2.5),
        yticks=[],
        xticks=range(0, int(free) + 1, 5),
        xlabel="time (units of one kernel's work)",
    )
    ax.grid(False)
    ax.spines["left"].set_visible(False)
    ax.spines["bottom"].set_bounds(0, free)
    show(
        fig,
        f"Two time lines of {kernels} kernels. Launched one by one, the GPU works one unit and "
        f"waits two, and is done at "
        f"{ends[0]:.0f}. As one graph it is done at {ends[1]:.1f}, with small gaps between "
        f"kernels.",
    )


def step_time(moved, launches, layers, speed):
    """A step's time over the cost of a launch: arithmetic, not measurement."""
    cost = np.linspace(0.2, 10, 100)
    fig, axes = new(7.6, 3.1, 1, 2)
    for ax, (name, count) in zip(axes, launches.items(), strict=True):
        floor, few = 1e3 * moved[name] / speed, 18 * layers[name] + 13
        ax.plot(cost, np.maximum(floor, cost * count / 1e3), color=WRONG)
        ax.plot(cost, np.maximum(floor, cost * few / 1e3), color=COLOURS["D"], linestyle="--")
        ax.plot(cost, np.full(100, floor + few / 1e3), color=RIGHT, linestyle="--")
        ax.axhline(floor, color="#222222", linewidth=1)
        ends = (
            (cost[-1] * count / 1e3, f"{count:,} launches", WRONG),
            (cost[-1] * few / 1e3, f"{few} launches", "#a06c00"),
        )
        for y, text, colour in ends:
            ax.text(9.9, y * 1.12, text, ha="right", va="bottom", fontsize=8, color=colour)
        x, side = (9.9, "right") if name[0] == "S" else (0.3, "left")
        ax.text(
            x,
            (floor + few / 1e3) * 1.08,
            "one graph",
            fontsize=8,
            color=RIGHT,
            va="bottom",
            ha=side,
        )
        ax.text(0.3, floor * 0.88, "reading the bytes", fontsize=8, va="top")
        ax.set(
            yscale="log",
            title=name,
            xlabel="cost of a launch (µs)",
            ylim=(floor / 2.2, 45),
        )
        ax.set_yticks([y for y in (0.1, 0.3, 1, 3, 10, 30) if y > floor / 2.2])
        ax.set_yticklabels([f"{y:g}" for y in (0.1, 0.3, 1, 3, 10, 30) if y > floor / 2.2])
        ax.minorticks_off()
    axes[0].set_ylabel("ms per token, computed")
    show(
        fig,
        "Computed time of a step over the cost of a launch, for two models. The 53 launches a "
        "block rise above the time of reading "
        "the bytes almost at once for SmolLM2 and at two microseconds for 8B; 18 a block "
        "rise later; one graph stays flat, "
        "a little above the floor for 8B.",
    )


def graphs(first, tensor, number):
    """How many graphs were made, position by position."""
    fig, ax = new(6.6, 2.6)
    ax.step(range(first, first + len(tensor)), tensor, where="post", color=RIGHT)
    at = range(first, first + len(number))
    ax.step(at, number, where="post", color=WRONG)
    ax.plot([at[-1] + 1], [number[-1]], "x", color=WRONG)
    ax.text(at[-1] + 1.6, number[-1], "given up", color=WRONG, va="center", fontsize=9)
    ax.text(at[3] + 0.4, number[3] - 0.2, "the slot is a number", color=WRONG, va="top", fontsize=9)
    ax.text(
        first + len(tensor) - 1, 1.3, "the slot is a tensor", color=RIGHT, ha="right", fontsize=9
    )
    ax.set(
        xlabel="position",
        ylabel="graphs made",
        ylim=(0, 9.5),
        xticks=range(first, first + len(tensor), 5),
    )
    show(
        fig,
        "Graphs made over positions. With the slot as a tensor one graph serves all twenty "
        "positions; with the slot as a number "
        f"each position makes another, up to {number[-1]}, where torch.compile gives up.",
    )


def written(sizes, found):
    """Bytes written for one token and layer, in place and through a functional graph."""
    fig, ax = new(6.6, 2.7)
    for (name, values), colour in zip(found.items(), (RIGHT, WRONG), strict=True):
        ax.loglog(sizes, values, "o-", color=colour, markersize=4)
        ax.text(sizes[-1] * 1.15, values[-1], name, color=colour, va="center", fontsize=9)
    ax.set(
        xlabel="slots of the cache", ylabel="bytes written", xlim=(sizes[0] * 0.8, sizes[-1] * 4)
    )
    ax.set_xticks(sizes, [f"{s:,}" for s in sizes])
    ax.minorticks_off()
    show(
        fig,
        "Bytes written for one token and one layer over the slots of the cache, both axes "
        "logarithmic. In place it is always the "
        "same few hundred; through a functional graph it grows with the cache, to two million at "
        "4,096 slots.",
    )


def places(graph):
    """Call node -> (depth: the longest way from an input, row among those of its depth), and the
    edges.
    """
    depth, rows, edges = {}, {}, []
    for node in graph.graph.nodes:
        if not node.op.startswith("call"):
            continue
        sources = [source for source in node.all_input_nodes if source in depth]
        depth[node] = 1 + max((depth[source] for source in sources), default=-1)
        edges += [(source, node) for source in sources]
    for node, column in depth.items():
        rows.setdefault(column, []).append(node)
    where = {
        n: (x, i - (len(column) - 1) / 2)
        for x, column in rows.items()
        for i, n in enumerate(column)
    }
    return where, edges


def colour_of(node, parts):
    for name, colour in PATTERNS.items():
        if parts.get(node.name) == name or node.name.startswith(f"{name}_default"):
            return colour
    words = {"linear": COLOURS["V"], "index_copy": COLOURS["K"], "attend": COLOURS["H"]}
    return next((colour for word, colour in words.items() if node.name.startswith(word)), "#ffffff")


def graphs_of_a_block(before, parts, after):
    """The operations of a block, before and after patterns have been replaced."""
    fig, axes = new(7.6, 5.0, 2, 1, sharex=True, height_ratios=[3, 2])
    for ax, graph, title in (
        (axes[0], before, "as Dynamo finds it"),
        (axes[1], after, "with kernels for patterns"),
    ):
        where, edges = places(graph)
        for source, node in edges:
            (x, y), (u, v) = where[source], where[node]
            bend = 0 if u - x < 2 or abs(y - v) > 0.4 else 0.25
            ax.annotate(
                "",
                (u, v),
                (x, y),
                zorder=1,
                arrowprops={
                    "arrowstyle": "-",
                    "color": "#bbbbbb",
                    "lw": 0.9,
                    "connectionstyle": f"arc3,rad={bend}",
                },
            )
        for node, (x, y) in where.items():
            ax.scatter(
                x,
                y,
                s=62,
                color=colour_of(node, parts),
                edgecolors="#888888",
                linewidths=0.8,
                zorder=3,
            )
        ax.set(
            title=f"{title}: {len(where)} operations",
            yticks=[],
            ylim=(-4.2, 4.2) if graph is before else (-2.5, 2.5),
        )
        ax.grid(False)
        ax.spines["left"].set_visible(False)
    axes[1].set_xlabel("longest way from an input")
    legend = {"norm": "norm", "rope": "rope", "swiglu": "swiglu"}
    marks = [(PATTERNS[key], text) for key, text in legend.items()]
    marks += [
        (COLOURS["V"], "product"),
        (COLOURS["K"], "write"),
        (COLOURS["H"], "attend"),
        ("#ffffff", "views, additions"),
    ]
    handles = [
        axes[1].scatter([], [], s=50, color=c, edgecolors="#888888", label=t) for c, t in marks
    ]
    axes[1].legend(handles=handles, ncols=2, fontsize=8, loc="center right")
    count = len(places(after)[0])
    show(
        fig,
        f"The graph of a block, operations as dots from left to right. Above "
        f"{len(places(before)[0])}: two norms of eight, two "
        f"rotations of fourteen and one SwiGLU are coloured. Below the same block with one dot for "
        f"each of them: {count}.",
    )


def launches(*ways):
    """Launches of one block by part."""
    fig, ax = new(7.2, 2.8)
    names = ["one by one", "attention fused", "patterns replaced"]
    for y, way in enumerate(ways):
        left = 0
        for part, count in way.items():
            ax.barh(
                y,
                count,
                left=left,
                color=PARTS[part],
                edgecolor="#ffffff",
                height=0.62,
            )
            if y == 0:
                tilt = (
                    {"rotation": 50, "rotation_mode": "anchor"} if count < 7 else {"ha": "center"}
                )
                ax.text(left + count / 2, -0.42, part, fontsize=8, va="bottom", **tilt)
            if count > 1:
                dark = part in ("matrices", "attention", "SwiGLU")
                ax.text(
                    left + count / 2,
                    y,
                    count,
                    ha="center",
                    va="center",
                    fontsize=8,
                    color="#ffffff" if dark else "#222222",
                )
            left += count
        ax.text(left + 0.6, y, str(left), va="center", fontsize=9)
    ax.set(
        yticks=range(len(ways)),
        yticklabels=names,
        xlabel="launches per block and token",
        xlim=(0, 58),
        ylim=(2.4, -1.2),
    )
    ax.grid(axis="y", visible=False)
    show(
        fig,
        "Launches of one block by part: 53 one by one, of which norms and rotation are 34; 49 with "
        "attention fused; 18 with a kernel "
        "for each pattern, of which 7 are matrix products.",
    )


def errors(found):
    """Relative errors of the right step and of wrong ones."""
    fig, ax = new(7.0, 2.8)
    names = list(found)
    ax.barh(
        names,
        [max(e, 1e-8) for e in found.values()],
        color=[RIGHT if n == "right" else WRONG for n in names],
        height=0.62,
    )
    ax.set(xscale="log", xlabel="relative error of thirty steps", xlim=(1e-8, 10))
    ax.invert_yaxis()
    ax.grid(axis="y", visible=False)
    show(
        fig,
        "Relative errors on a logarithmic axis. The right step lies below one in a million, six "
        "wrong ones between a hundredth and one.",
    )
