"""Make the studies of chapters 13b and 13c again: python data/studies/make.py scaling|addition
[FILE]

FILE (default: scaling.json or addition.json beside this script) is written after every run; started
again, the study goes on behind the last one. A file that was made by other settings is refused.
"""

import json
import sys
from pathlib import Path

import torch
from tqdm import tqdm

from minillama.checkpoints.atomic import write_whole


HERE = Path(__file__).resolve().parent
STEPS = [100, 200, 400, 800]


def scaling():
    """What each run is made with, the steps it takes, and a function that makes one."""
    from minillama.studies import scaling_laws

    plan = [(dim, steps, 0) for dim in (16, 32, 48, 64, 96) for steps in STEPS]
    plan += [(32, STEPS[2], seed) for seed in (1, 2)]  # how much is chance?
    plan += [(192, steps, 0) for steps in STEPS[1::2]]  # held out
    world = scaling_laws.World()
    return (
        plan,
        [steps for _, steps, _ in plan],
        lambda run, bar: scaling_laws.measure(world, *run, bar),
    )


def addition():
    """The same for chapter 13c."""
    from minillama.studies import addition as sums

    plan = [(form, True, 1600, 0) for form in ("steps", "backwards", "plain")]
    plan.append(("steps", False, 1600, 0))
    plan += [
        (form, True, 1600, seed) for seed in (1, 2) for form in ("steps", "backwards", "plain")
    ]
    return (
        plan,
        [n for _, _, n, _ in plan],
        lambda run, bar: sums.measure(getattr(sums, run[0]), *run[1:], bar),
    )


def study(name: str, path: Path) -> None:
    """Every run of the plan that the file does not hold yet."""
    plan, costs, make = globals()[name]()
    about = {
        "command": f"python data/studies/make.py {name}",
        "torch": torch.__version__.split("+")[0],
    }
    done = (
        json.loads(path.read_text(encoding="utf-8"))
        if path.exists()
        else {"about": about, "runs": []}
    )
    if done["about"] != about or len(done["runs"]) > len(plan):
        raise ValueError(f"{path} was made by {done['about']}, not by {about}: name another file")
    first = len(done["runs"])
    with tqdm(total=sum(costs), initial=sum(costs[:first]), unit="step", disable=None) as bar:
        for run in plan[first:]:
            bar.set_description(" ".join(map(str, run)))
            done["runs"].append(make(run, lambda row: bar.update()))
            lines = ",\n  ".join(json.dumps(each) for each in done["runs"])
            write_whole(
                path,
                f'{{"about": {json.dumps(done["about"])},\n "runs": [\n  {lines}\n]}}\n'.encode(),
            )


def main() -> int:
    # small products gain nothing from a second one, and one thread's sums repeat
    torch.set_num_threads(1)
    if sys.argv[1:2] not in (["scaling"], ["addition"]) or len(sys.argv) > 3:
        print(__doc__, file=sys.stderr)
        return 2
    try:
        study(sys.argv[1], Path(sys.argv[2] if len(sys.argv) > 2 else HERE / f"{sys.argv[1]}.json"))
    except (ValueError, OSError) as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
