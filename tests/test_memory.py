"""Memory: what cannot fit is refused before work, what runs out goes on with less."""

import warnings

import jax
import pytest
import test_engine
import tiny_language as tiny
from flax import nnx
from jax.errors import JaxRuntimeError

from tsi import samplers
from tsi.engine.common_past import Common
from tsi.engine.endurance import Endurance
from tsi.engine.engine import Engine
from tsi.engine.lane import Lane
from tsi.engine.meters.report import CacheBytes, Report
from tsi.engine.methods import plan_of
from tsi.engine.paging.pool import Pool
from tsi.engine.sizing import memory as memory_module
from tsi.engine.sizing import sizes as sizes_module
from tsi.engine.sizing.memory import cache_sizes
from tsi.engine.writers import Writers
from tsi.errors import (
    ConfigurationError,
    MemoryWarning,
    OutOfMemoryError,
    ProblemError,
)
from tsi.experiments.worlds.task_problems import check_problem_count
from tsi.models.decoder import LanguageModel
from tsi.rewards.reward import NoReward
from tsi.rewards.verifier import Verifier

KEY, PROBLEMS = jax.random.key(9), test_engine.PROBLEMS
FULL = "RESOURCE_EXHAUSTED: Out of memory allocating 12345 bytes.\nAllocations: many"


def run(sampler=None, num_particles=8):
    sampler = test_engine.SAMPLER if sampler is None else sampler
    return test_engine.shared_engine(16).run(
        sampler, KEY, PROBLEMS, num_particles, extract=test_engine.extract
    )


def runs_out(monkeypatch, calls):
    """Memory that runs out when slots are written, after they were given away."""
    seen, write = [], Writers.write

    def full(self, min_ended):
        seen.append(self.number)
        if len(seen) in calls:
            for leaf in jax.tree.leaves(self.slots):
                leaf.delete()
            raise JaxRuntimeError(FULL)
        write(self, min_ended)

    monkeypatch.setattr(Writers, "write", full)
    return seen


@pytest.mark.long
@pytest.mark.parametrize("cheap", [0, 10**18])
@pytest.mark.parametrize(
    "sampler", [samplers.particle_filter(), samplers.particle_gibbs(num_sweeps=2)]
)
def test_a_run_that_runs_out_of_memory_goes_on_with_less(monkeypatch, sampler, cheap):
    whole = run(sampler)
    monkeypatch.setattr(sizes_module, "CHEAP", cheap)
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


@pytest.mark.long
def test_a_run_that_never_fits_says_so(monkeypatch):
    seen = runs_out(monkeypatch, range(100))
    with (
        pytest.warns(MemoryWarning) as told,
        pytest.raises(ProblemError, match="Lower N") as raised,
    ):
        run()
    # Each attempt has half as many; then each problem fails alone.
    assert seen == [16, 8, 4, 2] + [1] * len(PROBLEMS)
    assert len([w for w in told if w.category is MemoryWarning]) == 4
    failures = raised.value.failures
    assert failures.keys() == {problem.id for problem in PROBLEMS}
    assert all(isinstance(x, OutOfMemoryError) for x in failures.values())


@pytest.mark.long
def test_a_problem_that_does_not_fit_alone_costs_no_other(monkeypatch):
    whole = run()
    runs_out(monkeypatch, range(1, 6))
    with (
        pytest.warns(MemoryWarning),
        pytest.raises(ProblemError, match="Lower N") as raised,
    ):
        run()
    assert list(raised.value.failures) == [PROBLEMS[0].id]
    for left, right in zip(whole[1:], raised.value.results, strict=True):
        test_engine.same(left, right)


@pytest.mark.long
def test_memory_that_runs_out_for_a_common_past_is_no_other_error(monkeypatch):
    whole, seen, init = run(), [], Common.__init__

    def full(self, *arguments):
        seen.append(arguments)
        if len(seen) == 1:
            raise JaxRuntimeError(FULL)
        init(self, *arguments)

    monkeypatch.setattr(Common, "__init__", full)
    for constant, value in {"CHEAP": 0, "SHARED": 0}.items():
        monkeypatch.setattr(sizes_module, constant, value)
    with pytest.warns(MemoryWarning, match="12345 bytes"):
        results = run()
    for left, right in zip(whole, results, strict=True):
        test_engine.same(left, right)


def test_a_callers_lack_of_memory_is_not_the_engines():
    def progress(_):
        raise MemoryError("the caller's")

    engine, sampler = test_engine.shared_engine(16), samplers.particle_filter()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(MemoryError, match="the caller's"):
            engine.run(
                sampler,
                KEY,
                PROBLEMS,
                8,
                extract=test_engine.extract,
                progress=progress,
            )


@pytest.mark.long
@pytest.mark.parametrize("name", ["particle_filter", "mcts", "particle_gibbs"])
def test_the_bound_is_below_what_a_run_takes(monkeypatch, name):
    """Blocks in use at the most, of the policy's cache, against those that count."""
    most, store = [0], Pool.store

    def watch(self, *arguments):
        store(self, *arguments)
        most[0] = max(most[0], self.tables.num_used)

    monkeypatch.setattr(Pool, "store", watch)
    for constant, value in {"CHEAP": 0, "BLOCK": 4}.items():
        monkeypatch.setattr(sizes_module, constant, value)
    engine, sampler = test_engine.shared_engine(), getattr(samplers, name)()
    engine.run(sampler, KEY, PROBLEMS[:1], 32, extract=test_engine.extract)
    plan = plan_of(sampler, 32, engine.target.max_steps)
    assert plan.rows <= most[0]


def test_a_reward_of_ones_own_need_not_be_a_model():
    class Own(NoReward):
        reads_prompts = True

        def reader(self, params):
            assert params.reward_model == {"weights": 1}
            return tiny.config()

    policy, _ = tiny.models()
    models = {"encode": tiny.encode, "decode": tiny.decode}
    engine = Engine(tiny.target(reward=Own()), policy, {"weights": 1}, **models)
    engine.check_fits(samplers.particle_filter(), 100)
    with pytest.raises(ConfigurationError, match="no more than"):
        engine.check_fits(samplers.particle_filter(), 10**10)


def test_other_errors_are_not_taken_for_a_lack_of_memory(monkeypatch):
    def broken(self, min_ended):
        raise JaxRuntimeError("INTERNAL: something else")

    monkeypatch.setattr(Writers, "write", broken)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(JaxRuntimeError, match="something else"):
            run()


@pytest.mark.parametrize("number", [10**8, 10**9, 2**40])
@pytest.mark.parametrize(
    "sampler", [samplers.particle_filter(), samplers.beam_search(), samplers.mcts()]
)
def test_particles_that_cannot_fit_are_refused_before_work(
    monkeypatch, sampler, number
):
    monkeypatch.setattr(Lane, "__init__", None)
    sentence = r"N = [\d,]+ .* GB are free: no more than about N = [\d,]+ fits\. .*\.$"
    with pytest.raises(ConfigurationError, match=sentence):
        run(sampler, number)


def test_the_number_in_the_error_fits(monkeypatch):
    engine, sampler = test_engine.shared_engine(), samplers.particle_filter()
    monkeypatch.setattr(memory_module, "free_bytes", lambda device: 10**7)
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
    monkeypatch.setattr(memory_module, "free_bytes", lambda device: 10**7)
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
        check_problem_count(10**9)
    check_problem_count(1000)


@pytest.mark.parametrize(("heads", "share"), [(2, 2), (3, 1), (1, 1)])
def test_heads_that_do_not_divide_are_whole_on_every_device(heads, share):
    config = tiny.config(num_heads=2 * heads, num_kv_heads=heads)
    policy = nnx.eval_shape(lambda: LanguageModel(config, rngs=nnx.Rngs(0)))
    target = tiny.target(reward=NoReward())
    whole, parts = (cache_sizes(target, policy, None, n).policy for n in (1, 2))
    assert whole == share * parts > 0


def test_weights_that_leave_nothing_are_what_the_error_names(monkeypatch):
    engine = test_engine.shared_engine()
    monkeypatch.setattr(memory_module, "free_bytes", lambda device: -3 * 10**9)
    with pytest.raises(ConfigurationError, match=r"weights take 3\.0 GB more than is"):
        engine.check_fits(samplers.particle_filter(), 4)


def test_what_was_held_is_no_sum_over_lanes_that_followed_each_other():
    caches = [CacheBytes(2, 3, 7), CacheBytes(1, 1, 2)]
    endurance = Endurance.__new__(Endurance)
    endurance._lane = None
    endurance._reports = [Report(4, 8, 1, {}, cache=cache) for cache in caches]
    report = endurance.report()
    assert report.cache == caches[0]
    assert report.computed == 16


def test_a_run_of_which_all_problems_fail_has_a_report():
    def fail(question, text, ended):
        raise ValueError(text)

    policy, _ = tiny.models()
    target = tiny.target(reward=Verifier(fail, tiny.decode))
    engine = Engine(target, policy, None, encode=tiny.encode, decode=tiny.decode)
    with pytest.raises(ProblemError):
        engine.run(samplers.particle_filter(), KEY, PROBLEMS, 4, extract=str)
    assert engine.report is not None
    assert engine.report.useful > 0


def test_a_store_that_cannot_hold_one_problem_is_refused():
    policy, reward = tiny.models()
    small = Engine(
        tiny.target(),
        policy,
        reward,
        encode=tiny.encode,
        decode=tiny.decode,
        max_stored=10,
    )
    with pytest.raises(ConfigurationError, match="max_stored is 10"):
        small.check_fits(samplers.mcts(), 16)
    small.check_fits(samplers.mcts(), 1)


def test_an_error_of_memory_without_a_text_is_one(monkeypatch):
    whole, seen, write = run(), [], Writers.write

    def full(self, min_ended):
        seen.append(self.number)
        if len(seen) == 1:
            raise MemoryError
        write(self, min_ended)

    monkeypatch.setattr(Writers, "write", full)
    with pytest.warns(MemoryWarning, match="MemoryError"):
        results = run()
    for left, right in zip(whole, results, strict=True):
        test_engine.same(left, right)
