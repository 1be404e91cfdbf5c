"""The bench on explorers broken on purpose: who is beside whom, rows, and the line."""

import functools
import inspect
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tsi import samplers
from tsi.bench.conformance import Report, check_sampler, checks_of
from tsi.bench.explorer_batch import batched_explorer_check
from tsi.bench.permutation import row_permutation_check
from tsi.bench.robustness import driven_checks
from tsi.bench.source_lines import line_of_error, places_of_functions
from tsi.errors import ConfigurationError
from tsi.explorer import Explorer, ExplorerInfo, Plan, Request
from tsi.targets.examples import peaked

KEY = jax.random.key(0)
HERE = "tests/test_bench_explorers.py"


class State(NamedTuple):
    done: Any
    members: Any
    log_weights: Any
    log_evidence: Any
    log_potentials: Any
    finished: Any


def filter_with_store(draw=samplers.multinomial):
    """A particle filter written as an explorer, as small as they come."""

    def plan(num_particles, max_steps):
        return Plan(num_particles, num_particles, max_steps)

    def init(key, num_particles, max_steps):
        zeros = jnp.zeros(num_particles)
        places = jnp.arange(num_particles, dtype=jnp.int32)
        return State(zeros[0] > 0, places, zeros, zeros[0], zeros, zeros > 0)

    def ask(key, state):
        drawn = draw(key, state.log_weights, state.members.size)
        state = state._replace(
            log_weights=jnp.zeros_like(state.log_weights),
            log_potentials=state.log_potentials[drawn],
            finished=state.finished[drawn],
        )
        return state, Request(drawn, state.members, ~state.finished)

    def tell(key, state, reply):
        gain = reply.log_potentials + reply.log_corrections
        gain = jnp.where(jnp.isnan(gain), -jnp.inf, gain)
        gain = jnp.where(state.finished, 0.0, gain)
        mean = jax.scipy.special.logsumexp(gain) - jnp.log(float(gain.size))
        alive = mean > -jnp.inf
        last = jnp.where(state.finished, state.log_potentials, reply.log_potentials)
        finished = state.finished | reply.finished
        told = State(
            jnp.all(finished),
            state.members,
            jnp.where(alive, gain - jnp.where(alive, mean, 0.0), 0.0),
            state.log_evidence + mean,
            last,
            finished,
        )
        zero = jnp.zeros((), jnp.int32)
        return told, ExplorerInfo(state.members, state.members, mean, zero, zero)

    return Explorer(plan, init, ask, tell, samplers.product().path_log_weight)


# Each mistake is one that jit and vmap of a whole run do not show.


def counts_its_calls():
    """Not a function of its arguments."""
    good, calls = filter_with_store(), []

    def init(key, num_particles, max_steps):
        calls.append(1)
        state = good.init(key, num_particles, max_steps)
        return state._replace(log_evidence=state.log_evidence + 0.1 * len(calls))

    return good._replace(init=init), init


def rolls_its_requests():
    """The same mistake where only the request shows it."""
    good, calls = filter_with_store(), []

    def ask(key, state):
        calls.append(1)
        state, request = good.ask(key, state)
        return state, request._replace(parents=jnp.roll(request.parents, len(calls)))

    return good._replace(ask=ask), ask


def hands_the_request_on_in_a_closure():
    good, memory = filter_with_store(), {}

    def ask(key, state):
        state, memory["request"] = good.ask(key, state)
        return state, memory["request"]

    def tell(key, state, reply):
        extend = memory["request"].extend
        return good.tell(key, state, reply._replace(finished=reply.finished & extend))

    return good._replace(ask=ask, tell=tell), tell


def on_the_host(change):
    """Python on the host, which is handed all problems at once."""
    good = filter_with_store()

    def tell(key, state, reply):
        numbers = reply.log_potentials
        like = jax.ShapeDtypeStruct(numbers.shape, numbers.dtype)
        numbers = jax.pure_callback(change, like, numbers, vmap_method="expand_dims")
        return good.tell(key, state, reply._replace(log_potentials=numbers))

    return good._replace(tell=tell), tell


def normalises_over_the_whole_batch():
    return on_the_host(lambda numbers: numbers - numbers.max().astype(np.float32))


def goes_astray_beside_nan():
    def change(numbers):
        lost = np.isnan(numbers).all(-1).any()
        return numbers + np.where(lost, np.arange(4), 0).astype(np.float32)

    return on_the_host(change)


def first_line(function):
    return f"{HERE}:{inspect.getsourcelines(function)[1]}"


@pytest.mark.parametrize(
    "broken",
    [
        counts_its_calls,
        rolls_its_requests,
        normalises_over_the_whole_batch,
        goes_astray_beside_nan,
    ],
)
def test_what_depends_on_the_batch_is_seen_and_its_function_named(broken):
    explorer, guilty = broken()
    check = batched_explorer_check(explorer, 4, KEY)
    assert check.passed is False
    assert check.where == f"{guilty.__name__} at {first_line(guilty)}"


def test_what_a_closure_hands_on_is_an_error_with_its_line():
    explorer, guilty = hands_the_request_on_in_a_closure()
    with pytest.raises(jax.errors.UnexpectedTracerError) as caught:
        batched_explorer_check(explorer, 4, KEY)
    line = line_of_error(explorer, caught.value)
    assert line is not None
    assert line.startswith(f"tell at {HERE}:")
    number = int(line.split(":")[1])
    source, first = inspect.getsourcelines(guilty)
    assert first <= number < first + len(source)


def test_an_explorer_that_keeps_to_itself_passes_beside_any_neighbour():
    assert batched_explorer_check(filter_with_store(), 4, KEY).passed


def first_half_twice(key, log_weights, num_samples):
    return jnp.arange(num_samples, dtype=jnp.int32) // 2


def shows_its_first_row_only():
    # Systematic draws are in the order of their parents; multinomial ones are free.
    good = filter_with_store(samplers.systematic)

    def tell(key, state, reply):
        told, info = good.tell(key, state, reply)
        members = jnp.where(told.done, 0, told.members)
        return told._replace(members=members), info

    return good._replace(tell=tell)


@pytest.mark.parametrize(
    ("make", "part"),
    [
        (lambda: filter_with_store(first_half_twice), "ask"),
        (shows_its_first_row_only, "tell"),
        (filter_with_store, None),
    ],
)
def test_going_by_rows_is_seen_in_choices_and_in_the_result(make, part):
    check = row_permutation_check(make(), 4, KEY)
    assert check.passed is (part is None)
    assert check.where.partition(" at ")[0] == (part or "")


def trial_of_one_row():
    good = filter_with_store()

    def ask(key, state):
        state, request = good.ask(key, state)
        return state, request._replace(
            slots=request.slots.at[0].set(state.members.size)
        )

    return good._replace(ask=ask)


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (lambda: samplers.quest(0.5), "a turn has one row"),
        (
            lambda: samplers.parallel_tempering(num_temperatures=2, num_sweeps=2),
            "several targets",
        ),
        (trial_of_one_row, "keep all rows alike"),
    ],
)
def test_where_rows_are_not_alike_it_says_so(make, why):
    check = row_permutation_check(make(), 8, KEY)
    assert check.passed is None
    assert check.detail.startswith("not applicable: ")
    assert why in check.detail


def test_a_broken_measure_names_who_weighs_and_who_draws():
    good = filter_with_store()

    def tell(key, state, reply):
        ignored = jnp.zeros_like(reply.log_corrections)
        return good.tell(key, state, reply._replace(log_corrections=ignored))

    checks = checks_of(good._replace(tell=tell), targets={"peaked": peaked()})
    broken = next(check for check in checks if check.passed is False)
    assert broken.promise == "evidence, peaked"
    places = f"tell at {first_line(tell)} or ask at {first_line(good.ask)}"
    assert broken.where == places
    assert str(Report((broken,))).endswith(f"[{places}]")


def test_an_error_is_reported_once_with_its_line():
    def ask(key, state):
        raise ValueError("no such thing\nas a prefix")

    report = check_sampler(lambda: filter_with_store()._replace(ask=ask))
    [failure] = report.failures
    assert failure.detail == "ValueError: no such thing"
    line = inspect.getsourcelines(ask)[1] + 1
    assert failure.where.startswith(f"ask at {HERE}:{line}: raise ValueError")
    again = [check for check in report.checks if check.passed is None]
    assert len(again) == len(report.checks) - 1
    # Without a measure on any target there is nothing to pool.
    others = [check for check in again if check.promise != "pooled"]
    assert len(others) == len(again) - 1
    assert all("the same line raised again" in check.detail for check in others)


def test_errors_of_others_are_not_put_down_to_the_sampler():
    def ask(key, state):
        return state, None

    with pytest.raises(ConfigurationError, match="chains"):
        check_sampler(lambda: samplers.quest(0.5, num_chains=3))
    with pytest.raises(AttributeError, match="parents"):
        check_sampler(lambda: filter_with_store()._replace(ask=ask))


def test_lines_are_those_of_what_somebody_wrote():
    @jax.jit
    def compiled(key):
        return key

    class Called:
        def __call__(self, key):
            return key

    good = filter_with_store()
    wrapped = functools.partial(functools.partial(compiled), 1)
    seen = good._replace(init=wrapped, ask=Called(), tell=len)
    init, call = first_line(compiled), first_line(Called.__call__)
    assert (
        places_of_functions(seen, "init", "ask", "tell")
        == f"init at {init} or ask at {call}"
    )


@pytest.mark.parametrize("what", ["state", "ancestors"])
def test_a_batch_of_a_plain_sampler_names_its_function_too(what):
    good = samplers.self_consistency()
    calls = []

    def ask(key, state):
        calls.append(1)
        state, ancestors = good.ask(key, state)
        if what == "ancestors":
            return state, jnp.roll(ancestors, len(calls))
        shifted = state.log_evidence + 0.1 * len(calls)
        return state._replace(log_evidence=shifted), ancestors

    found = {c.promise: c for c in driven_checks(good._replace(ask=ask), 4, KEY)}
    assert found["batched"].where == f"ask at {first_line(ask)}"
    assert what in found["batched"].detail
    assert found["ancestors"].passed
