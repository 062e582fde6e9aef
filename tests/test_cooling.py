import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from gft_jax import cooling
from gft_jax.cooling import effective_target_weight, target_weight, temperature

N = 1000
FAR = np.int32(2**31 - 1)


def between(start, end, left):
    """``end + (start - end) left(s)``, with s the fraction of the steps done."""
    return lambda s: end + (start - end) * left(s)


def piecewise_value(boundaries, values):
    return lambda s: values[int(np.searchsorted(boundaries, s * N, side="right"))]


# name: (factory, what it is drawn in, closed form over the fraction of steps done, value held at the end)
SCHEDULES = {
    "constant temperature": (lambda: cooling.constant(temperature=3.0), "temperature", lambda s: 3.0, 3.0),
    "constant weight": (lambda: cooling.constant(target_weight=0.25), "target_weight", lambda s: 0.25, 0.25),
    "constant zero": (lambda: cooling.constant(temperature=0.0), "temperature", lambda s: 0.0, 0.0),
    "linear temperature": (
        lambda: cooling.linear(N, temperature=(10.0, 0.0)), "temperature", between(10.0, 0.0, lambda s: 1 - s), 0.0,
    ),
    "linear weight": (
        lambda: cooling.linear(N, target_weight=(0.05, 1.0)), "target_weight", between(0.05, 1.0, lambda s: 1 - s), 1.0,
    ),
    "cosine temperature": (
        lambda: cooling.cosine(N, temperature=(10.0, 0.5)),
        "temperature", between(10.0, 0.5, lambda s: (1 + np.cos(np.pi * s)) / 2), 0.5,
    ),
    "cosine weight": (
        lambda: cooling.cosine(N, target_weight=(0.05, 1.0)),
        "target_weight", between(0.05, 1.0, lambda s: (1 + np.cos(np.pi * s)) / 2), 1.0,
    ),
    "square temperature": (
        lambda: cooling.polynomial(N, temperature=(10.0, 0.0), power=2.0),
        "temperature", between(10.0, 0.0, lambda s: (1 - s) ** 2), 0.0,
    ),
    "root weight": (
        lambda: cooling.polynomial(N, target_weight=(0.05, 0.9), power=0.5),
        "target_weight", between(0.05, 0.9, lambda s: (1 - s) ** 0.5), 0.9,
    ),
    "geometric temperature": (
        lambda: cooling.geometric(N, temperature=(100.0, 0.01)), "temperature", lambda s: 100.0 * 1e-4**s, 0.01,
    ),
    "geometric temperature, then zero": (
        lambda: cooling.geometric(N, temperature=(100.0, 0.01), then_zero=True),
        "temperature", lambda s: 100.0 * 1e-4**s, 0.0,
    ),
    "geometric weight": (
        lambda: cooling.geometric(N, target_weight=(0.05, 1.0)), "target_weight", lambda s: 0.05 * 20.0**s, 1.0,
    ),
    "piecewise temperature": (
        lambda: cooling.piecewise((250, N), temperature=(4.0, 0.1, 0.0)),
        "temperature", piecewise_value((250, N), (4.0, 0.1, 0.0)), 0.0,
    ),
    "piecewise weight": (
        lambda: cooling.piecewise(boundaries=(500, N), target_weight=(0.1, 0.3, 1.0)),
        "target_weight", piecewise_value((500, N), (0.1, 0.3, 1.0)), 1.0,
    ),
    "optax temperature": (
        lambda: cooling.from_schedule(N, temperature=optax.cosine_decay_schedule(7.0, N)),
        "temperature", between(7.0, 0.0, lambda s: (1 + np.cos(np.pi * s)) / 2), 0.0,
    ),
    "optax weight": (
        lambda: cooling.from_schedule(N, target_weight=optax.linear_schedule(0.05, 1.0, N)),
        "target_weight", between(0.05, 1.0, lambda s: 1 - s), 1.0,
    ),
}  # fmt: skip


def temperatures(schedule, steps):
    return np.asarray(
        jax.jit(jax.vmap(lambda step: schedule.temperature((), step)))(jnp.asarray(steps, jnp.int32))
    )


@pytest.mark.parametrize("name", SCHEDULES)
def test_a_schedule_follows_its_closed_form_and_holds_its_end_exactly(name):
    factory, space, closed_form, end = SCHEDULES[name]
    schedule = factory()
    every_step = np.arange(N)
    after = np.array([N, N + 1, 10 * N, FAR])
    beta = temperatures(schedule, np.concatenate([every_step, after]))
    assert beta.dtype == np.float32
    expected = np.array([closed_form(step / N) for step in every_step])
    if space == "temperature":
        np.testing.assert_allclose(beta[:N], expected, rtol=2e-6, atol=2e-7 * expected[0])
    else:
        np.testing.assert_allclose(1 / (1 + beta[:N].astype(np.float64)), expected, rtol=0, atol=4e-7)
    held = np.float32(end if space == "temperature" else (1 - np.float32(end)) / np.float32(end))
    assert (beta[N:].view(np.uint32) == held.view(np.uint32)).all()  # bit for bit, also the sign of zero
    assert (np.diff(beta) <= 0).all()
    state = schedule.init()
    assert schedule.update(state, 3, {}) == state == ()


@pytest.mark.parametrize("name", ["linear temperature", "cosine weight", "geometric temperature, then zero"])
def test_a_schedule_is_the_same_alone_in_a_scan_and_on_the_host(name):
    schedule = SCHEDULES[name][0]()
    steps = jnp.array([0, 1, N // 2, N - 1, N, 3 * N])

    def body(state, step):
        return schedule.update(state, step, {}), schedule.temperature(state, step)

    _, scanned = jax.lax.scan(body, schedule.init(), steps)
    alone = [schedule.temperature((), int(step)) for step in steps]
    np.testing.assert_allclose(scanned, alone, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(temperatures(schedule, steps), alone, rtol=1e-6, atol=1e-6)


def test_a_million_steps_are_resolved_in_single_precision():
    n = 10**6
    last = np.arange(n - 1000, n + 3)
    beta = temperatures(cooling.linear(n, temperature=(10.0, 0.0)), last)
    np.testing.assert_allclose(beta, 10.0 * np.maximum(n - last, 0) / n, rtol=1e-6)
    assert (np.diff(beta)[:1000] < 0).all()
    beta = temperatures(cooling.cosine(n, temperature=(10.0, 0.0)), last)
    np.testing.assert_allclose(beta, 10.0 * np.sin(np.pi / 2 * np.maximum(n - last, 0) / n) ** 2, rtol=1e-6)
    first = np.arange(1000)
    beta = temperatures(cooling.linear(n, target_weight=(0.05, 1.0)), first)
    np.testing.assert_allclose(beta, 1 / (0.05 + 0.95 * first / n) - 1, rtol=3e-6)


@pytest.mark.parametrize("num_steps", [33, 49, 12345])
def test_an_optax_schedule_that_ends_beside_zero_under_jit_is_brought_to_zero(num_steps):
    schedule = optax.linear_schedule(1.0, 0.0, num_steps)
    lifted = cooling.from_schedule(num_steps, temperature=schedule)
    assert (temperatures(lifted, [num_steps, num_steps + 1, FAR]) == 0.0).all()
    assert (temperatures(lifted, np.arange(num_steps)) > 0.0).all()


def test_no_nan_is_computed_after_the_end():
    schedule = SCHEDULES["root weight"][0]()
    with jax.debug_nans(True):
        np.testing.assert_allclose(schedule.temperature((), 2 * N), 1 / 0.9 - 1, rtol=1e-6)


def test_double_precision_is_kept(x64):
    factory, _, closed_form, _ = SCHEDULES["cosine weight"]
    beta = jax.jit(factory().temperature)((), jnp.int32(377))
    assert beta.dtype == jnp.float64
    np.testing.assert_allclose(1 / (1 + beta), closed_form(0.377), rtol=1e-13)


def test_a_cooling_may_be_made_inside_a_jitted_function():
    beta = jax.jit(lambda step: cooling.linear(10, temperature=(1.0, 0.0)).temperature((), step))(4)
    np.testing.assert_allclose(beta, 0.6, rtol=1e-6)


def test_temperature_and_target_weight_are_inverse_and_exact_at_the_ends():
    assert target_weight(0.0) == 1.0
    assert target_weight(jnp.inf) == 0.0
    assert temperature(1.0) == 0.0
    assert temperature(0.0) == jnp.inf
    beta = np.logspace(-3, 3, 20, dtype=np.float32).reshape(4, 5)
    np.testing.assert_allclose(target_weight(beta), 1 / (1 + beta), rtol=3e-7)
    np.testing.assert_allclose(
        temperature(target_weight(beta)), beta, rtol=1e-4
    )  # 1 - w cancels at small beta
    assert target_weight(jnp.asarray(beta, jnp.bfloat16)).dtype == jnp.bfloat16


ERRORS = [
    (lambda: cooling.linear(N, temperature=(-1.0, 0.0)), "temperature must be finite and >= 0, got -1.0"),
    (lambda: cooling.linear(N, temperature=(np.nan, 0.0)), "temperature must be finite and >= 0, got nan"),
    (lambda: cooling.constant(temperature=np.inf), "temperature must be finite and >= 0, got inf"),
    (lambda: cooling.constant(target_weight=0.0), r"target_weight must be in \(0, 1\], got 0.0"),
    (lambda: cooling.cosine(N, target_weight=(0.5, 1.5)), r"target_weight must be in \(0, 1\], got 1.5"),
    (lambda: cooling.cosine(N, target_weight=(np.nan, 1.0)), r"target_weight must be in \(0, 1\], got nan"),
    (lambda: cooling.linear(0, temperature=(1.0, 0.0)), "num_steps must be an integer from 1 .* got 0"),
    (lambda: cooling.linear(N), "exactly one of temperature= and target_weight=, got neither"),
    (lambda: cooling.constant(temperature=1.0, target_weight=0.5), "exactly one of .* got both"),
    (lambda: cooling.polynomial(N, temperature=(1.0, 0.0), power=0.0), "power must be finite and > 0, got 0.0"),
    (lambda: cooling.geometric(N, temperature=(1.0, 0.0)), "must be > 0 at both ends.*then_zero=True"),
    (lambda: cooling.piecewise((5, 5), temperature=(2.0, 1.0, 0.0)), r"boundaries must be increasing .* \(5, 5\)"),
    (lambda: cooling.piecewise((0, 5), temperature=(2.0, 1.0, 0.0)), r"boundaries must be increasing .* \(0, 5\)"),
    (lambda: cooling.piecewise((5,), temperature=(2.0, 1.0, 0.0)), "got 3 values and 1 boundaries"),
    (lambda: cooling.linear(N, temperature=(0.0, 1.0)), "heats: its temperature rises from 0 at step 0 to 0.00"),
    (
        lambda: cooling.cosine(10, target_weight=(1.0, 0.5)),
        "its target_weight falls, so the temperature rises, from 1 at step 0 to 0.987764 at step 1",
    ),
    (lambda: cooling.piecewise((7,), temperature=(1.0, 2.0)), "rises from 1 at step 6 to 2 at step 7"),
    (
        lambda: cooling.from_schedule(100, temperature=lambda step: jnp.where(step < 60, 1.0 - step / 100, 0.9)),
        "rises from 0.41 at step 59 to 0.9 at step 60",
    ),
    (
        lambda: cooling.from_schedule(100, temperature=optax.linear_schedule(1.0, -1.0, 100)),
        r"temperature must be finite and >= 0, but the schedule gives -0.02 at step 51",
    ),
    (
        lambda: cooling.from_schedule(100, target_weight=optax.linear_schedule(0.5, 2.0, 100)),
        r"target_weight must be in \(0, 1\], but the schedule gives 1.01 at step 34",
    ),
    (
        lambda: cooling.piecewise((5, 10), temperature=(1e6, 0.1, 0.9)),
        "the schedule heats: its temperature rises from 0.1 at step 9 to 0.9 at step 10",
    ),
    (  # for one step alone, which a coarse grid would miss
        lambda: cooling.piecewise((5000, 5001), target_weight=(0.5, 0.2, 1.0)),
        "its target_weight falls, so the temperature rises, from 0.5 at step 4999 to 0.2 at step 5000",
    ),
    (lambda: cooling.self_paced(0), "num_steps must be an integer from 1"),
    (lambda: cooling.self_paced(N, start=0.0), r"start must be a target weight in \(0, 1\], got 0.0"),
    (lambda: cooling.self_paced(N, fastest=N + 1), "fastest must be an integer from 1 to num_steps = 1000, got 1001"),
    (lambda: cooling.self_paced(N, tolerance=1.0), r"tolerance must be in \[0, 1\), got 1.0"),
    (lambda: cooling.self_paced(N, decay=1.0), r"decay must be in \[0, 1\), got 1.0"),
]  # fmt: skip


@pytest.mark.parametrize(("make", "message"), ERRORS)
def test_what_cannot_be_meant_is_refused_at_construction(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_heating_is_possible_if_asked_for():
    schedule = cooling.linear(N, temperature=(0.0, 2.0), allow_heating=True)
    np.testing.assert_allclose(temperatures(schedule, [0, 500, N, FAR]), [0.0, 1.0, 2.0, 2.0], rtol=1e-6)


# The measured target weight


def test_effective_target_weight_is_a_ratio_and_zero_where_undefined():
    measured = effective_target_weight(
        jnp.array([0.25, 0.0, 0.3, 1.0, 0.0]), jnp.array([0.5, 0.2, -0.1, 0.0, 0.0])
    )
    np.testing.assert_array_equal(measured, [0.5, 0.0, 0.0, 0.0, 0.0])
    assert np.isnan(effective_target_weight(jnp.float32(1.0), jnp.nan))
    assert np.isnan(effective_target_weight(jnp.nan, jnp.float32(1.0)))


def test_effective_target_weight_of_the_optimum_is_its_target_weight():
    """The conditional displacement ``d`` is the marginal one plus noise; the optimum moves by ``w`` of the marginal."""
    w, rows = 0.4, 20_000
    generator = np.random.default_rng(0)
    marginal = 0.5 + generator.normal(size=rows)
    d = marginal + 2.0 * generator.normal(size=rows)

    def z_score(r, weight):
        measured = float(effective_target_weight(np.mean(r**2), np.mean(r * d)))
        # standard error of a ratio of means
        spread = np.std(r**2 - measured * r * d) / np.sqrt(rows) / np.mean(r * d)
        return abs(measured - weight) / spread

    assert z_score(w * marginal, w) < 3
    assert z_score(0.9 * w * marginal, w) > 3  # a student that lags by a tenth is told apart


def test_displacement_average_is_exponential_skips_what_is_not_finite_and_keeps_a_constant_ratio():
    average = cooling.displacement_average(decay=0.9)
    state = average.init()
    rows = [(4.0, 8.0), (np.nan, 1.0), (2.0, 1.0), (1.0, np.inf), (0.0, -3.0)]
    for squared, along in rows:
        state = average.update(state, jnp.float32(squared), jnp.float32(along))
    np.testing.assert_allclose(state, [0.1 * (0.81 * 4 + 0.9 * 2), 0.1 * (0.81 * 8 + 0.9 - 3)], rtol=1e-6)
    state = average.init()
    for scale in (1.0, 7.0, 0.01):  # from the first update on: the zero start cancels
        state = average.update(state, jnp.float32(0.3 * scale), jnp.float32(0.6 * scale))
        np.testing.assert_allclose(effective_target_weight(*state), 0.5, rtol=1e-6)


# Self-paced cooling

STEPS, FASTEST, START = 2000, 500, 0.05
EVERY_STEP = np.arange(STEPS + 100)
PERFECT = START + (1 - START) * np.minimum(EVERY_STEP / FASTEST, 1)
DEADLINE = START + (1 - START) * np.clip((FASTEST - (STEPS - EVERY_STEP)) / FASTEST, 0, 1)


def follow(self_paced, state, student, rates, valid, steps):
    """A student that moves by a fraction ``rate`` towards the optimum for the weight, a step at a time."""

    def body(carry, inputs):
        state, student = carry
        step, valid = inputs
        beta = self_paced.temperature(state, step)
        w = target_weight(beta)
        student = student + rates * (w - student)
        stats = {
            "displacement_squared": jnp.where(valid, student**2, jnp.nan),
            "displacement_along_target": student,
            "loss": w,
        }
        return (self_paced.update(state, step, stats), student), (w, student, beta)

    return jax.lax.scan(body, (state, student), (steps, valid))


@pytest.fixture(scope="module")
def students():
    """Target weight, student and temperature by step, for students who differ in speed, start and failures."""
    self_paced = cooling.self_paced(STEPS, start=START, fastest=FASTEST)
    always = np.ones(EVERY_STEP.size, bool)
    failing = always.copy()
    failing[100:120] = False
    failing[200::7] = False
    kinds = {  # rate, initial displacement, steps with a finite diagnostic
        "perfect": (1.0, 0.0, always),
        "frozen": (0.0, 0.0, always),
        "backwards": (0.0, -0.3, always),
        "slow": (0.02, 0.0, always),
        "failing": (1.0, 0.0, failing),
        "broken": (1.0, 0.0, ~always),
    }
    rates, initial, valid = (jnp.array(column) for column in zip(*kinds.values(), strict=True))
    run = jax.jit(
        jax.vmap(
            lambda student, rate, valid: follow(
                self_paced, self_paced.init(), student, rate, valid, jnp.asarray(EVERY_STEP)
            )[1]
        )
    )
    runs = [np.asarray(column) for column in run(initial, rates, valid)]
    return {name: [column[i] for column in runs] for i, name in enumerate(kinds)}


def test_a_perfect_student_is_cooled_at_the_fastest_rate(students):
    w, _, beta = students["perfect"]
    np.testing.assert_allclose(w, PERFECT, rtol=0, atol=2e-7)
    assert (beta[:FASTEST] > 0).all()
    assert (beta[FASTEST:].view(np.uint32) == 0).all()


@pytest.mark.parametrize("name", ["frozen", "backwards", "broken"])
def test_a_student_who_never_keeps_up_is_held_until_the_deadline_wins(students, name):
    w, _, beta = students[name]
    np.testing.assert_allclose(w, DEADLINE, rtol=0, atol=2e-7)
    assert (beta[:STEPS] > 0).all()
    assert (beta[STEPS:].view(np.uint32) == 0).all()


def test_a_slow_student_is_waited_for(students):
    w, student, beta = students["slow"]
    in_time = EVERY_STEP < STEPS - FASTEST
    asked = np.concatenate([[False], np.diff(w) > 0])
    # Judged after smoothing over 20 steps: the student may fall behind by a little more than the tolerance.
    assert (student >= 0.86 * w)[asked & in_time].all()
    assert (~asked[1:FASTEST]).sum() > 100
    assert (beta[STEPS:] == 0).all()
    assert w[STEPS - FASTEST] > 0.95  # waiting has not meant standing still until the deadline
    # The same student on the fastest ramp falls behind by far more.
    ramp, left_behind = PERFECT, [0.0]
    for weight in ramp[1:FASTEST]:
        left_behind.append(left_behind[-1] + 0.02 * (weight - left_behind[-1]))
    assert (np.array(left_behind) < 0.8 * ramp[:FASTEST])[100:200].all()


def test_a_step_without_finite_diagnostics_holds_and_leaves_no_trace(students):
    w, _, beta = students["failing"]
    valid = np.ones(EVERY_STEP.size, bool)
    valid[100:120] = valid[200::7] = False
    raises = np.concatenate([[0], np.cumsum(valid)[:-1]])
    np.testing.assert_allclose(w, START + (1 - START) * np.minimum(raises / FASTEST, 1), rtol=0, atol=2e-7)
    assert np.isfinite(beta).all()


def test_self_paced_cooling_never_heats_nor_cools_faster_than_allowed(students):
    for w, _, beta in students.values():
        assert (np.diff(beta) <= 0).all()
        assert (np.diff(w) <= (1 - START) / FASTEST + 2e-7).all()


def test_a_resumed_self_paced_cooling_continues_bit_for_bit(students):
    self_paced = cooling.self_paced(STEPS, start=START, fastest=FASTEST)
    run = jax.jit(lambda state, student, steps: follow(self_paced, state, student, 0.02, steps >= 0, steps))
    half = jnp.asarray(EVERY_STEP[: EVERY_STEP.size // 2])
    carry, (first, _, _) = run(self_paced.init(), jnp.float32(0.0), half)
    carry = jax.tree.map(lambda leaf: jnp.asarray(np.asarray(leaf).copy()), carry)  # through a checkpoint
    _, (second, _, _) = run(*carry, half + half.size)
    np.testing.assert_array_equal(np.concatenate([first, second]), students["slow"][0])


def test_self_paced_cooling_neither_drifts_nor_stalls_over_millions_of_steps():
    fastest = 10**7  # 1e-7 a step: less than half the rounding of a float32 near one
    self_paced = cooling.self_paced(4 * fastest, start=START, fastest=fastest)
    raises = jnp.array([0, 1, 10, fastest // 2, fastest - 100, fastest - 1, fastest])
    states = cooling.SelfPacedState(
        raises, jax.tree.map(lambda leaf: jnp.full(7, leaf), self_paced.init().progress)
    )
    stats = {"displacement_squared": jnp.float32(1.0), "displacement_along_target": jnp.float32(1.0)}
    temperature_of = jax.jit(jax.vmap(self_paced.temperature, in_axes=(0, None)))
    beta = np.asarray(temperature_of(states, 3), np.float64)
    expected = START + (1 - START) * np.asarray(raises, np.float64) / fastest
    np.testing.assert_allclose(1 / (1 + beta), expected, rtol=0, atol=1.2e-7)
    raised = jax.jit(jax.vmap(self_paced.update, in_axes=(0, None, None)))(states, 3, stats)
    np.testing.assert_array_equal(raised.raises, np.minimum(np.asarray(raises) + 1, fastest))
    assert (temperature_of(raised, 4)[-2:] == 0.0).all()


def test_by_default_self_paced_cooling_takes_half_of_the_steps_at_least():
    self_paced = cooling.self_paced(100)
    always = jnp.ones(100, bool)
    _, (_, _, beta) = follow(self_paced, self_paced.init(), 0.0, 1.0, always, jnp.arange(100))
    assert (np.flatnonzero(beta == 0) == np.arange(50, 100)).all()


def test_self_paced_cooling_says_which_objectives_report_what_it_needs():
    self_paced = cooling.self_paced(STEPS)
    with pytest.raises(
        ValueError, match=r"\['displacement_along_target'\].* reports .*'loss'.*objectives\.gradual"
    ):
        jax.eval_shape(self_paced.update, self_paced.init(), 0, {"loss": 1.0, "displacement_squared": 1.0})
