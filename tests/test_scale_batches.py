"""How a plan is divided into calls of the engine."""

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


def test_a_call_has_all_problems_and_one_in_rounds_what_the_engine_takes_at_once():
    world = fake_world(17, rows=24)
    in_rounds = 0
    for batch in batches(make_plan(METHODS, (1, 2, 4, 8), 2), world):
        rows, method = batch.num_particles, get_method(batch.source)
        sampler = sampler_of(batch.source, world.max_steps)
        if isinstance(sampler, Explorer):
            rows = sampler.plan(rows, world.max_steps).rows
        if method.rounds is not None:
            rows = method.rounds(rows).size
        assert batch.at_once <= max(1, 24 // rows)
        if method.rounds is None:
            assert len(batch.problems) == 17
        else:
            in_rounds += 1
            assert len(batch.problems) <= batch.at_once
    assert in_rounds > 2
    assert block_size(400, 2048 // 64) == 31
    assert block_size(5, 1) == 1
    for name in ("beam_search", "weighted_best_of_n", "adaptive_consistency"):
        covered = [
            problem.id
            for batch in batches(make_plan(METHODS, (8,), 1), world)
            if batch.source == name
            for problem in batch.problems
        ]
        assert covered == list(range(17)), name


def test_problems_of_like_length_start_together():
    (batch,) = batches(make_plan(("beam_search",), (8,), 1), fake_world(120))
    lengths = [len(problem.prompt) for problem in batch.problems]
    assert lengths == sorted(lengths)
    assert len(set(lengths)) > 1


def test_blocks_of_rounds_have_sizes_as_equal_as_can_be(tmp_path):
    world = fake_world(17, rows=40)
    (first, *others) = batches(make_plan(("adaptive_consistency",), (8,), 2), world)
    sizes = [len(batch.problems) for batch in (first, *others)]
    assert sum(sizes) == 34
    assert max(sizes) - min(sizes[:-1]) <= 1
    assert block_size(17, 5) == 5
    run_plan(
        make_plan(("beam_search",), (8,), 2),
        world,
        tmp_path / "rows.jsonl",
        progress=False,
    )
    # The fake engine takes five problems at once, from one call of 17.
    assert [len(ids) for *_, ids in world.engine.calls] == [5, 5, 5, 2] * 2
