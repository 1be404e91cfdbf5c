"""Memory: what cannot fit is refused before work, what runs out goes on with less."""

import warnings

import jax
import pytest
import test_engine
import tiny_language as tiny
from jax.errors import JaxRuntimeError

from tsi import samplers
from tsi.engine import engine as engine_module
from tsi.engine.engine import Engine
from tsi.engine.lane import Lane
from tsi.engine.writers import Writers
from tsi.errors import ConfigurationError, MemoryWarning, OutOfMemoryError
from tsi.experiments.world import check_number
from tsi.rewards import NoReward

KEY, PROBLEMS = jax.random.key(9), test_engine.PROBLEMS
FULL = "RESOURCE_EXHAUSTED: Out of memory allocating 12345 bytes.\nAllocations: many"


def run(sampler=None, num_particles=8):
    sampler = samplers.particle_filter() if sampler is None else sampler
    return test_engine.engine(16).run(
        sampler, KEY, PROBLEMS, num_particles, extract=test_engine.extract
    )


def runs_out(monkeypatch, calls):
    """Memory that runs out when slots are written, after they were given away."""
    seen, write = [], Writers.write

    def full(self, enough):
        seen.append(self.number)
        if len(seen) in calls:
            for leaf in jax.tree.leaves(self.slots):
                leaf.delete()
            raise JaxRuntimeError(FULL)
        write(self, enough)

    monkeypatch.setattr(Writers, "write", full)
    return seen


@pytest.mark.parametrize("cheap", [0, 10**18])
@pytest.mark.parametrize(
    "sampler", [samplers.particle_filter(), samplers.particle_gibbs(num_sweeps=2)]
)
def test_a_run_that_runs_out_of_memory_goes_on_with_less(monkeypatch, sampler, cheap):
    whole = run(sampler)
    monkeypatch.setattr(engine_module, "CHEAP", cheap)
    # In the first burst, and again when some problems have ended.
    seen = runs_out(monkeypatch, {1, 9 if cheap == 0 else 3})
    with pytest.warns(MemoryWarning, match="Memory ran out with 16 slots") as told:
        results = run(sampler)
    assert len([w for w in told if w.category is MemoryWarning]) == 2
    assert "12345 bytes" in str(told[0].message)
    assert "\n" not in str(told[0].message)
    assert seen[0] == 16
    assert max(seen[9:]) == 4
    assert [result.problem_id for result in results] == [p.id for p in PROBLEMS]
    for left, right in zip(whole, results, strict=True):
        test_engine.same(left, right)


def test_a_run_that_never_fits_says_so(monkeypatch):
    seen = runs_out(monkeypatch, range(100))
    with pytest.warns(MemoryWarning), pytest.raises(OutOfMemoryError, match="Lower N"):
        run()
    assert seen[-1] == 1


def test_other_errors_are_not_taken_for_a_lack_of_memory(monkeypatch):
    def broken(self, enough):
        raise JaxRuntimeError("INTERNAL: something else")

    monkeypatch.setattr(Writers, "write", broken)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(JaxRuntimeError, match="something else"):
            run()


@pytest.mark.parametrize("number", [10**8, 10**9, 2**40])
@pytest.mark.parametrize(
    "sampler", [samplers.particle_filter(), samplers.beam(), samplers.mcts()]
)
def test_particles_that_cannot_fit_are_refused_before_work(
    monkeypatch, sampler, number
):
    monkeypatch.setattr(Lane, "__init__", None)
    sentence = r"N = [\d,]+ .* GB are free: no more than about N = [\d,]+ fits\. .*\.$"
    with pytest.raises(ConfigurationError, match=sentence):
        run(sampler, number)


def test_the_number_that_is_said_to_fit_is_not_refused(monkeypatch):
    engine, sampler = test_engine.engine(), samplers.particle_filter()
    monkeypatch.setattr(engine_module, "free_bytes", lambda: 10**7)
    with pytest.raises(ConfigurationError, match="no more than about") as caught:
        engine.check_fits(sampler, 10**6)
    said = str(caught.value).split("no more than about N = ")[1].split(" ")[0]
    number = int(said.replace(",", ""))
    assert 100 < number < 10**6
    engine.check_fits(sampler, number)
    with pytest.raises(ConfigurationError):
        engine.check_fits(sampler, number + number // 100)


def test_a_row_of_a_reward_model_with_a_cache_takes_more(monkeypatch):
    policy, reward = tiny.models()
    monkeypatch.setattr(engine_module, "free_bytes", lambda: 10**7)
    fits = []
    for target in (tiny.target(), tiny.target(reward=NoReward())):
        models = {"encode": tiny.encode, "decode": tiny.decode}
        engine = Engine(target, policy, reward, **models)
        with pytest.raises(ConfigurationError) as caught:
            engine.check_fits(samplers.particle_filter(), 10**6)
        said = str(caught.value).split("no more than about N = ")[1].split(" ")[0]
        fits.append(int(said.replace(",", "")))
    assert fits[0] < fits[1]


def test_problems_that_cannot_fit_are_refused_before_the_first_is_made():
    with pytest.raises(ConfigurationError, match=r"1,000,000,000 problems take .*\.$"):
        check_number(10**9)
    check_number(1000)
