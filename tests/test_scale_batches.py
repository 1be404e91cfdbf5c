"""How a plan is cut into batches that the engine takes at once."""

from fake_world import fake_world

from tsi.experiments.plans.methods import STANDARD, get_method, sampler_of
from tsi.experiments.plans.plan import batches, block_size, make_plan
from tsi.experiments.scaling.scale import run_plan
from tsi.explorer import Explorer

METHODS = (
    *STANDARD,
    "entropic_particle_filter",
    "particle_gibbs",
    "adaptive_consistency",
)


def test_blocks_are_what_the_engine_takes_at_once_and_cover_every_problem_once():
    world = fake_world(17, rows=24)
    for batch in batches(make_plan(METHODS, (1, 2, 4, 8), 2), world):
        rows, method = batch.num_particles, get_method(batch.source)
        sampler = sampler_of(batch.source, world.max_steps)
        if isinstance(sampler, Explorer):
            rows = sampler.plan(rows, world.max_steps).rows
        if method.rounds is not None:
            rows = method.rounds(rows).size
        assert len(batch.problems) <= max(1, 24 // rows)
    assert block_size(400, 2048 // 64) == 31
    assert block_size(5, 1) == 1
    for name in ("beam_search", "weighted_best_of_n"):
        covered = [
            problem.id
            for batch in batches(make_plan(METHODS, (8,), 1), world)
            if batch.source == name
            for problem in batch.problems
        ]
        assert covered == list(range(17))


def test_problems_of_like_length_share_a_batch():
    world = fake_world(120)
    plan = make_plan(("beam_search",), (8,), 1)
    sizes = [
        {len(problem.prompt) for problem in batch.problems}
        for batch in batches(plan, world)
    ]
    # Ten prompts of four letters, ninety of five, twenty of six, in blocks of five.
    assert all(len(lengths) == 1 for lengths in sizes)


def test_blocks_have_sizes_as_equal_as_can_be(tmp_path):
    world = fake_world(17)
    run_plan(
        make_plan(("beam_search",), (8,), 2),
        world,
        tmp_path / "rows.jsonl",
        progress=False,
    )
    assert [len(ids) for *_, ids in world.engine.calls] == [5, 5, 5, 2] * 2
