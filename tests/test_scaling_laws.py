"""The fit beside laws that are known, a world's entropy beside counting, the study and the script
that made it.
"""

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from minillama.studies import scaling_laws
from minillama.studies.scaling_laws import Law, World, count, fit_law, sized


DATA = Path(__file__).resolve().parent.parent / "data"
STUDY = json.loads((DATA / "studies" / "scaling.json").read_text(encoding="utf-8"))
GRID = [(N, D) for N in (6e3, 2e4, 8e4, 2e5) for D in (2e5, 4e5, 8e5, 16e5)]
N, D = torch.tensor(GRID, dtype=torch.float64).T


@pytest.fixture(scope="module")
def make():
    spec = importlib.util.spec_from_file_location("make_studies", DATA / "studies" / "make.py")
    spec.loader.exec_module(module := importlib.util.module_from_spec(spec))
    return module


@pytest.mark.parametrize(
    "law",
    [Law(0.2, 30, 0.45, 2000, 0.65), Law(1.0, 9, 0.2, 5e4, 0.9), Law(0.05, 200, 0.6, 90, 0.4)],
)
def test_a_law_is_found_again(law):
    found = fit_law(N, D, law(N, D))
    assert all(getattr(found, key) == pytest.approx(getattr(law, key), rel=1e-3) for key in "EAaBb")


def test_the_published_law_is_found_on_its_own_scale():
    n, d = torch.cartesian_prod(
        torch.logspace(7.8, 10.2, 5).double(), torch.logspace(9.5, 11.7, 5).double()
    ).T
    found, law = (
        fit_law(n, d, Law(1.69, 406.4, 0.34, 410.7, 0.28)(n, d)),
        (1.69, 406.4, 0.34, 410.7, 0.28),
    )
    assert [getattr(found, key) for key in "EAaBb"] == pytest.approx(law, rel=1e-3)


def test_one_bad_run_bends_nothing():
    law = Law(0.2, 30, 0.45, 2000, 0.65)
    loss = law(N, D)
    loss[5] *= 1.5
    found = fit_law(N, D, loss)
    squares = fit_law(N, D, loss, delta=1e3)  # so large that nothing is beyond it
    far = law(1e6, 4e6)
    assert abs(found(1e6, 4e6) / far - 1) < 0.005 < 0.02 < abs(squares(1e6, 4e6) / far - 1)


def test_without_the_first_debt_it_is_zero():
    law = Law(0.0, 30, 0.45, 2000, 0.65)
    found = fit_law(N, D, law(N, D), irreducible=False)
    assert found.E == 0 and [found.a, found.b] == pytest.approx([0.45, 0.65], rel=1e-4)


@pytest.mark.parametrize("C", [1e10, 1e14, 1e23])
def test_the_best_size_is_the_best_of_many(C):
    law = Law(0.3, 50, 0.4, 3000, 0.6)
    sizes = np.geomspace(1, C / 60, 200_001)
    best, tokens = law.best(C)
    assert best == pytest.approx(sizes[law(sizes, C / (6 * sizes)).argmin()], rel=1e-3)
    assert 6 * best * tokens == pytest.approx(C)


def test_the_entropy_is_that_of_what_is_told():
    """Beside torch's, and beside counting 200,000 tellings."""
    world = World(symbols=3, zipf=1.0, wrong=0.3, seed=2)
    told = torch.full((3,), 0.1, dtype=torch.float64)
    told[0] += 0.7
    assert world.entropy() == pytest.approx(
        torch.distributions.Categorical(told).entropy().item(), abs=1e-12
    )
    pairs, answers = world.batch(0, 200_000)
    fact = 3 * pairs[:, 0] + pairs[:, 1]
    shares = torch.bincount(fact, minlength=9) / 200_000
    assert (shares - world.chances).abs().max() < 0.005
    assert (answers == world.answers[fact]).float().mean().item() == pytest.approx(0.8, abs=0.005)
    sums = [(1 / r) / sum(1 / q for q in range(1, 10)) for r in range(1, 10)]
    steep = World(symbols=3, zipf=2.0).chances.sort(descending=True).values
    assert (steep[0] / steep[1:3]).tolist() == pytest.approx([4, 9])
    assert sorted(world.chances.tolist(), reverse=True) == pytest.approx(sums)


def test_tellings_depend_on_their_number_and_the_seed_alone():
    world = World()
    assert torch.equal(world.batch(3, 50)[0], World().batch(3, 50)[0])
    assert not torch.equal(world.batch(3, 50)[0], world.batch(4, 50)[0])
    assert not torch.equal(world.batch(3, 50)[0], world.batch(3, 50, seed=1)[0])


class Says(torch.nn.Module):
    """A model that gives the same log-probabilities for a fact whenever it is asked."""

    def __init__(self, table):
        super().__init__()
        self.table = table

    def forward(self, pairs):
        fact = len(self.table) ** 0.5 * pairs[:, 0] + pairs[:, 1]
        return self.table[fact.long()].unsqueeze(1).expand(-1, 2, -1)


def test_the_exact_loss_is_the_loss_on_many_tellings():
    world = World(symbols=5, wrong=0.2, seed=4)
    model = Says(torch.randn(25, 5, generator=torch.Generator().manual_seed(1)))
    pairs, answers = world.batch(0, 400_000)
    assert world.loss(model) == pytest.approx(
        scaling_laws.answer_loss(model, (pairs, answers)).item(), abs=0.01
    )


def test_who_knows_everything_loses_the_entropy_and_nobody_less():
    world = World(symbols=5, wrong=0.2, seed=4)
    perfect = torch.full((25, 5), 0.04)
    perfect.scatter_(1, world.answers[:, None], 0.84)
    assert world.loss(Says(perfect.log())) == pytest.approx(world.entropy(), abs=1e-6)
    for change in (0.8, 1.25):
        assert world.loss(Says(perfect.log() * change)) > world.entropy() + 1e-4


def test_sizes_by_hand():
    for dim in (16, 64, 192):
        heads, kv, ffn = dim // 16, max(1, dim // 32), dim * 11 // 4
        block = 2 * dim * 16 * heads + 2 * dim * 16 * kv + 3 * dim * ffn + 2 * dim
        assert count(sized(dim)) == (2 * block + dim, 128 * dim)


def test_the_study_is_what_its_plan_says(make):
    plan, steps, _ = make.scaling()
    assert [
        (run["dim"], run["D"] // (2 * scaling_laws.BATCH_SIZE), run["seed"])
        for run in STUDY["runs"]
    ] == plan
    assert steps == [run[1] for run in plan]
    for run in STUDY["runs"]:
        assert (run["N"], run["table"]) == count(sized(run["dim"]))
        assert run["curve"][-1] == [run["D"], run["loss"]] and run["loss"] > World().entropy()


def test_its_first_run_is_made_again():
    run = STUDY["runs"][0]
    again = scaling_laws.measure(World(), run["dim"], run["D"] // (2 * scaling_laws.BATCH_SIZE))
    # ten steps: rounding has not grown yet
    assert again["curve"][0][1] == pytest.approx(run["curve"][0][1], abs=0.01)
    assert again["loss"] == pytest.approx(run["loss"], rel=0.05) and again["N"] == run["N"]


def test_a_study_goes_on_where_it_was_stopped_and_refuses_another_ones_file(
    make, monkeypatch, tmp_path, capsys
):
    made = []

    def plan(fail_at=None):
        def one(run, bar):
            if run == fail_at:
                raise KeyboardInterrupt
            made.append(run[0])
            return {"run": run[0]}

        return lambda: ([(1,), (2,), (3,)], [10, 10, 10], one)

    path = tmp_path / "scaling.json"
    monkeypatch.setattr(make, "scaling", plan(fail_at=(2,)))
    with pytest.raises(KeyboardInterrupt):
        make.study("scaling", path)
    monkeypatch.setattr(make, "scaling", plan())
    make.study("scaling", path)
    assert made == [1, 2, 3] and [
        run["run"] for run in json.loads(path.read_text(encoding="utf-8"))["runs"]
    ] == [
        1,
        2,
        3,
    ]
    path.write_text(
        path.read_text(encoding="utf-8").replace("make.py", "other.py"), encoding="utf-8"
    )
    monkeypatch.setattr(make.sys, "argv", ["make.py", "scaling", str(path)])
    assert make.main() == 2 and "name another file" in capsys.readouterr().err
    monkeypatch.setattr(make.sys, "argv", ["make.py", "everything"])
    assert make.main() == 2
