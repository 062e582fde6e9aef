import functools

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import norm

from gft_jax.drifts import from_function
from gft_jax.sampling import sample_ode

TIGHT = diffrax.PIDController(rtol=1e-8, atol=1e-8)


class CountedDrift:
    """A drift that counts the calls that really happen, not those that are traced."""

    def __init__(self, velocity):
        self.velocity, self.num_calls, self.num_traces = velocity, 0, 0

    def _count(self, _):
        self.num_calls += 1

    def __call__(self, params, t, x, cond=None):
        self.num_traces += 1
        jax.debug.callback(self._count, t[0])
        return self.velocity(params, t, x, cond)

    def sample(self, *args, **kwargs):
        """The sample, and the number of calls on the way."""
        self.num_calls = 0
        sample = jax.block_until_ready(sample_ode(self, *args, **kwargs))
        jax.effects_barrier()
        return sample, self.num_calls


def wave(params, t, x, cond=None):
    return params * jnp.sin(x + 3 * t[:, None, None]) + cond[:, None, None]


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 2e-6), ("float64", 1e-12)])
def test_euler_is_the_loop_written_by_hand(dtype, tolerance, x64):
    num_steps = 20
    x0 = jnp.asarray(np.random.default_rng(0).normal(size=(3, 2, 2)), dtype)
    cond = jnp.array([0, 1, 2])
    params = jnp.asarray(1.5, dtype)

    def by_hand(params, x0):
        def step(x, k):
            t = jnp.full(3, k / num_steps, dtype)
            x = x + wave(params, t, x, cond).astype(dtype) / num_steps
            return x, x

        x, states = jax.lax.scan(step, x0, jnp.arange(num_steps))
        return jnp.sum(x**2), jnp.concatenate([x0[None], states])

    def by_diffrax(params, x0):
        sample = sample_ode(wave, params, x0, cond=cond, num_steps=num_steps, save_steps=True)
        return jnp.sum(sample.x**2), sample

    if dtype == "float32":
        states, sample = jax.jit(lambda *args: (by_hand(*args)[1], by_diffrax(*args)[1]))(params, x0)
    else:  # and so is its gradient
        both = jax.jit(
            lambda *args: [jax.value_and_grad(f, (0, 1), True)(*args) for f in (by_hand, by_diffrax)]
        )
        ((_, states), expected), ((_, sample), gradients) = both(params, x0)
        for gradient, reference in zip(gradients, expected, strict=True):
            np.testing.assert_allclose(gradient, reference, rtol=1e-11, atol=1e-11)
    assert sample.x.dtype == sample.trajectory.dtype == sample.times.dtype == dtype
    np.testing.assert_allclose(sample.trajectory, states, rtol=tolerance, atol=tolerance)
    np.testing.assert_array_equal(sample.trajectory[0], x0)
    np.testing.assert_array_equal(sample.trajectory[-1], sample.x)
    np.testing.assert_allclose(sample.times, np.arange(num_steps + 1) / num_steps, rtol=tolerance)
    assert sample.num_evaluations == num_steps
    assert sample.succeeded


@pytest.mark.parametrize(
    ("solver", "order", "evaluations_in_four_steps"),
    [
        (diffrax.Euler(), 1, 4),
        (diffrax.Midpoint(), 2, 8),
        (diffrax.Heun(), 2, 8),
        (diffrax.Ralston(), 2, 8),
        (diffrax.Bosh3(), 3, 13),
        (diffrax.Tsit5(), 5, 25),
        (diffrax.Dopri5(), 5, 25),
    ],
    ids=lambda value: type(value).__name__,
)
def test_order_of_convergence_and_evaluations_of_equal_steps(solver, order, evaluations_in_four_steps, x64):
    """A row of speed a solves ``dy/ds = -2 (1 + s) y^2, y(0) = 1``, so ``y = (1 + s)^-2``, up to s = a.

    Its steps are a / 4: half the speed is half the step, for as many steps, and the error falls by
    ``2^(order + 1)``. One compilation shows the order.
    """
    speed = 0.01 if order < 5 else 0.2  # in between the next term of the error and rounding
    speeds = speed * jnp.array([1, 0.5])
    drift = CountedDrift(lambda a, t, x, cond: -2 * a * (1 + a * t) * x**2)
    sample, num_calls = drift.sample(speeds, jnp.ones(2), solver=solver, num_steps=4)
    error = np.abs(sample.x - (1 + speeds) ** -2)
    observed = np.log2(error[0] / error[1]) - 1
    assert abs(observed - order) < 0.1
    assert sample.num_evaluations == num_calls == evaluations_in_four_steps


@pytest.mark.parametrize(
    ("solver", "controller", "per_step"),
    [
        (diffrax.Heun(), diffrax.PIDController(rtol=1e-2, atol=1e-3), None),
        (diffrax.HalfSolver(diffrax.Euler()), diffrax.PIDController(rtol=1e-3, atol=1e-3), None),
        (diffrax.Tsit5(), diffrax.PIDController(rtol=1e-3, atol=1e-4, dtmax=0.2), 6),
        (
            diffrax.Dopri5(),
            diffrax.ClipStepSizeController(diffrax.PIDController(rtol=1e-3, atol=1e-4), jump_ts=[0.5]),
            6,
        ),
    ],
    ids=["Heun", "HalfEuler", "Tsit5", "Dopri5 with a jump"],
)
def test_evaluations_of_adaptive_steps_are_counted_exactly(solver, controller, per_step):
    drift = CountedDrift(lambda params, t, x, cond: params * jnp.cos(20 * t) * x)
    # The first step tried is the whole interval: it is rejected several times, which costs more than the
    # rejection of a later step does.
    options = {"solver": solver, "stepsize_controller": controller, "num_steps": 1}
    sample, num_calls = drift.sample(10.0, jnp.ones(2), **options)
    assert sample.num_evaluations == num_calls
    assert sample.succeeded
    np.testing.assert_allclose(sample.x, np.exp(0.5 * np.sin(20.0)), rtol=0.1)
    if per_step is not None:
        assert (num_calls - 1) % per_step != 0  # else the naive formula would do
    # Again, backwards and with other parameters: the same program (repeated calls must not compile again).
    num_traces = drift.num_traces
    back, num_calls = drift.sample(9.0, sample.x, t0=1.0, t1=0.0, **options)
    assert back.num_evaluations == num_calls
    assert drift.num_traces == num_traces


def gaussian_drift(params, t, x, cond=None):
    """Linear path from N(0, 1) to N(mean, sd^2), independent ends: methods, section 3."""
    mean, sd = params
    return mean + (t * sd**2 - (1 - t)) / (t**2 * sd**2 + (1 - t) ** 2) * (x - t * mean)


def test_quantiles_go_to_quantiles_and_back(x64):
    levels = np.linspace(0.01, 0.99, 15)
    x0, expected = norm.ppf(levels), norm.ppf(levels, 3.0, 0.5)
    sample = functools.partial(
        sample_ode, gaussian_drift, (3.0, 0.5), solver=diffrax.Tsit5(), stepsize_controller=TIGHT
    )
    times = np.array([0.0, 0.3, 0.75, 1.0])
    forward = sample(x0, save_at=times)
    assert forward.succeeded
    np.testing.assert_allclose(forward.x, expected, atol=1e-6)
    # On the way, the law at time t is N(3 t, t^2 / 4 + (1 - t)^2), and the flow keeps the quantiles.
    spread = np.sqrt(times**2 / 4 + (1 - times) ** 2)
    np.testing.assert_array_equal(forward.times, times)
    np.testing.assert_allclose(forward.trajectory, 3 * times[:, None] + spread[:, None] * x0, atol=1e-5)
    np.testing.assert_allclose(forward.trajectory[0], x0, rtol=1e-12)
    np.testing.assert_allclose(forward.trajectory[-1], forward.x, rtol=1e-12)

    back = sample(forward.x, t0=1.0, t1=0.0, save_at=times[::-1])
    np.testing.assert_allclose(back.x, x0, atol=1e-6)
    np.testing.assert_allclose(back.trajectory, forward.trajectory[::-1], atol=1e-5)
    np.testing.assert_array_equal(back.times, times[::-1])


def test_adaptive_trajectories_end_by_repeating_the_end_and_failures_are_reported():
    drift = from_function(lambda t, x, cond: cond[:, None] * x)
    options = {"solver": diffrax.Tsit5(), "save_steps": True, "max_steps": 12}
    options["stepsize_controller"] = diffrax.PIDController(rtol=1e-5, atol=1e-5)
    x0 = jnp.array([[1.0, -2.0]])
    sample = sample_ode(drift, None, x0, cond=jnp.array([2.0]), **options)
    assert sample.succeeded
    assert sample.trajectory.shape == (13, 1, 2)
    num_states = int(np.argmax(sample.times == 1.0)) + 1
    assert 3 < num_states < 12
    assert np.all(np.diff(sample.times[:num_states]) > 0)
    np.testing.assert_array_equal(sample.times[num_states:], 1.0)
    np.testing.assert_array_equal(sample.trajectory[num_states:], np.tile(sample.x, (13 - num_states, 1, 1)))
    expected = np.exp(2 * sample.times)[:, None] * np.array([1.0, -2.0])
    np.testing.assert_allclose(sample.trajectory[:, 0], expected, rtol=1e-4)
    assert sample.times[1] == np.float32(0.1)  # the first step that is tried, and here the error allows it

    stiff = sample_ode(drift, None, x0, cond=jnp.array([-1e4]), **options)
    assert not stiff.succeeded
    assert stiff.result == diffrax.RESULTS.max_steps_reached


def test_steps_by_row_are_those_of_a_row_alone_whatever_its_batch_mates():
    drift = from_function(lambda t, x, cond: cond[:, None] * jnp.cos(3 * x))
    x0, rates = jnp.array([[0.1, 0.5], [-0.3, 0.2], [1.0, 2.0]]), jnp.array([0.1, 5.0, -1.0])

    @functools.partial(jax.jit, static_argnames="steps_by_row")
    def sample(x0, rates, steps_by_row):
        return sample_ode(
            drift,
            None,
            x0,
            cond=rates,
            solver=diffrax.Tsit5(),
            stepsize_controller=diffrax.PIDController(rtol=1e-4, atol=1e-4),
            steps_by_row=steps_by_row,
            save_steps=True,
            max_steps=60,
        )

    by_row = sample(x0, rates, True)
    assert by_row.succeeded.tolist() == [True] * 3
    assert by_row.x.shape == (3, 2)
    assert by_row.trajectory.shape == (61, 3, 2)
    assert by_row.times.shape == (61, 3)
    assert len(set(by_row.num_evaluations.tolist())) == 3
    for i in range(3):
        alone = sample(x0[i : i + 1], rates[i : i + 1], False)
        np.testing.assert_allclose(by_row.x[i], alone.x[0], rtol=1e-5)
        np.testing.assert_allclose(by_row.times[:, i], alone.times, rtol=1e-4)
        np.testing.assert_allclose(by_row.trajectory[:, i], alone.trajectory[:, 0], rtol=1e-4, atol=1e-5)
        assert by_row.num_evaluations[i] == alone.num_evaluations
    # A batch mate that is hopelessly stiff fails alone. Power: steps of the whole batch do feel it.
    stiff = rates.at[2].set(1e5)
    spoilt = sample(x0, stiff, True)
    assert spoilt.succeeded.tolist() == [True, True, False]
    assert (spoilt.result == diffrax.RESULTS.max_steps_reached).tolist() == [False, False, True]
    np.testing.assert_array_equal(spoilt.x[:2], by_row.x[:2])
    np.testing.assert_array_equal(spoilt.num_evaluations[:2], by_row.num_evaluations[:2])
    together, spoilt = sample(x0, rates, False), sample(x0, stiff, False)
    assert together.succeeded
    assert not spoilt.succeeded
    assert np.abs(spoilt.x[:2] - together.x[:2]).max() > 1e-2


@pytest.mark.parametrize(
    "options",
    [
        {"num_steps": 4, "save_steps": True},
        {"stepsize_controller": diffrax.PIDController(rtol=1e-3, atol=1e-3), "steps_by_row": True},
    ],
    ids=["equal steps", "steps by row"],
)
def test_chunks_give_the_results_of_one_go_from_one_program(options):
    drift = CountedDrift(lambda params, t, x, cond: params * cond[:, None] * jnp.cos(3 * x))
    x0 = np.random.default_rng(0).normal(size=(7, 2)).astype(np.float32)
    options = {"cond": np.arange(7.0, dtype=np.float32), "solver": diffrax.Heun(), **options}
    whole, _ = drift.sample(1.0, x0, **options)
    num_traces = drift.num_traces
    chunked, num_calls = drift.sample(1.0, x0, chunk_size=3, **options)
    # Three chunks are traced and compiled as one, the last filled up.
    assert drift.num_traces <= 2 * num_traces
    num_evaluations = np.broadcast_to(whole.num_evaluations, 7)
    if "num_steps" in options:
        assert num_calls == 3 * 8
    assert isinstance(chunked.x, np.ndarray)
    np.testing.assert_allclose(chunked.x, whole.x, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(chunked.num_evaluations, num_evaluations)
    np.testing.assert_array_equal(chunked.succeeded, [True] * 7)
    assert (chunked.result == diffrax.RESULTS.successful).tolist() == [True] * 7
    if "save_steps" in options:
        assert chunked.trajectory.shape == whole.trajectory.shape
        np.testing.assert_allclose(chunked.trajectory, whole.trajectory, rtol=1e-5, atol=1e-6)
        np.testing.assert_array_equal(chunked.times, whole.times)
    drift.sample(2.0, x0[:3] + 1, chunk_size=3, **(options | {"cond": np.ones(3, np.float32)}))
    assert drift.num_traces <= 2 * num_traces


def test_chunks_that_adapt_as_a_whole_report_for_each_row_and_jit_has_none(capsys):
    drift = from_function(lambda t, x, cond: cond[:, None] * x)
    x0, rates = np.ones((5, 1), np.float32), np.array([0.1, 0.1, 3.0, 3.0, 1e5], np.float32)
    sample = functools.partial(
        sample_ode,
        drift,
        None,
        solver=diffrax.Heun(),
        stepsize_controller=diffrax.PIDController(rtol=1e-3, atol=1e-3),
        save_steps=True,
        max_steps=200,
        chunk_size=2,
    )
    found = sample(x0, cond=rates, progress=True)
    assert "5/5" in capsys.readouterr().err
    assert found.succeeded.tolist() == [True, True, True, True, False]
    assert (found.result == diffrax.RESULTS.max_steps_reached).tolist() == [False] * 4 + [True]
    assert found.times.shape == (201, 5)
    np.testing.assert_array_equal(found.times[:, 2], found.times[:, 3])
    assert not np.array_equal(found.times[:, 0], found.times[:, 2])
    assert found.num_evaluations[0] == found.num_evaluations[1] < found.num_evaluations[2]
    np.testing.assert_allclose(found.x[:4, 0], np.exp(rates[:4]), rtol=1e-2)
    with pytest.raises(ValueError, match="outside of jit"):
        jax.jit(lambda rates: sample(x0, cond=rates))(rates)


def test_saved_times_are_those_asked_for_also_where_the_first_row_fails():
    drift = from_function(lambda t, x, cond: cond[:, None] * x)
    wanted = [0.25, 0.5, 0.75]
    sample = functools.partial(
        sample_ode,
        drift,
        None,
        jnp.ones((3, 1)),
        cond=jnp.array([-1e4, 1.0, 1.0]),
        solver=diffrax.Bosh3(),
        stepsize_controller=diffrax.PIDController(rtol=1e-4, atol=1e-4),
        save_at=wanted,
        max_steps=12,
    )
    for options in ({"steps_by_row": True}, {"chunk_size": 1}):
        found = sample(**options)
        assert found.succeeded.tolist() == [False, True, True]
        np.testing.assert_array_equal(found.times, wanted)
        np.testing.assert_allclose(found.trajectory[:, 1:, 0], np.exp([wanted, wanted]).T, rtol=1e-3)


def test_states_may_be_a_nested_list_and_counts_integers_of_numpy(without_hook):
    drift = from_function(lambda t, x: 2 * t[:, None] * x)
    found = sample_ode(
        drift,
        None,
        [[1, 2], [3, 4], [5, 6]],
        solver=diffrax.Heun(),
        stepsize_controller=diffrax.PIDController(rtol=1e-5, atol=1e-5),
        num_steps=np.int64(4),
        max_steps=np.int32(500),
        chunk_size=np.int64(2),
    )
    assert found.x.dtype == np.float32
    np.testing.assert_allclose(found.x, np.e * np.array([[1, 2], [3, 4], [5, 6]]), rtol=1e-3)


def test_a_meter_shows_the_flow_time(capsys):
    sample_ode(from_function(lambda t, x: x), None, jnp.ones((1, 1)), num_steps=3, progress=True)
    jax.effects_barrier()
    assert "100.00%" in capsys.readouterr().err


def test_equal_steps_on_awkward_intervals_and_on_an_explosion():
    drift = CountedDrift(lambda rate, t, x, cond: 1 + rate * x)
    for t0, t1 in [(0.0, 1.0), (1.0, 0.0), (0.1, 0.7), (0.7, 0.1), (0.999, 1e-5), (1e-5, 0.999), (0.3, 0.31)]:
        sample, num_calls = drift.sample(0.0, jnp.zeros((2, 1)), t0=t0, t1=t1, num_steps=7)
        assert sample.num_evaluations == num_calls == 7
        assert sample.succeeded
        np.testing.assert_allclose(sample.x, t1 - t0, rtol=1e-5)
    exploded, num_calls = drift.sample(1e30, jnp.zeros((2, 1)), num_steps=7)
    assert exploded.num_evaluations == num_calls == 7
    assert not exploded.succeeded
    assert exploded.result == diffrax.RESULTS.successful  # Diffrax does not look at equal steps


def test_a_time_grid_in_the_precision_of_the_state(x64):
    drift = CountedDrift(lambda params, t, x, cond: (1 + t)[:, None] * x)
    for dtype, of_state in (("float32", "float32"), ("bfloat16", "float32")):
        sample, num_calls = drift.sample(
            None, jnp.ones((1, 1), dtype), times=[0.0, 0.25, 1.0], save_steps=True
        )
        assert sample.x.dtype == sample.times.dtype == of_state
        assert isinstance(sample.times, np.ndarray)  # so that it is known where jit traces the states
        np.testing.assert_allclose(sample.trajectory.ravel(), [1, 1.25, 1.25 * (1 + 1.25 * 0.75)], rtol=1e-6)
        assert sample.num_evaluations == num_calls == 2


def test_mistakes_are_named(without_hook):
    drift, x0 = from_function(lambda t, x: x), jnp.ones((2, 3))
    adaptive = {"stepsize_controller": TIGHT}
    rows = [
        (jnp.ones((0, 3)), {}, r"not empty, got shape \(0, 3\)"),
        (5.0, {}, r"not empty, got shape \(\)"),
        (1j * x0, {}, "real numbers, got dtype complex64"),
        ([["a"]], {}, "real numbers, got dtype <U1"),
        (x0, {"cond": np.ones(1)}, r"cond must have one row for each of the 2 samples, got shape \(1,\)"),
        (x0, {"cond": {"label": 1.0}}, r"cond\['label'\] must have one row .*, got shape \(\)"),
        (x0, {"t1": 0.0}, "t0=0.0 and t1=0.0"),
        (x0, {"t1": 1000.0}, "t0=0.0 and t1=1000.0"),
        (x0, {"num_steps": 0}, "num_steps must be >= 1, got 0"),
        (x0, {"num_steps": 10.0}, "num_steps must be an integer, got 10.0"),
        (x0, {"max_steps": 0}, "max_steps must be >= 1, got 0"),
        (x0, {"max_steps": None}, "max_steps must be an integer, got None"),
        (x0, adaptive, r"Euler does not give.*HalfSolver\(diffrax.Euler\(\)\)"),
        (x0, {"solver": diffrax.Kvaerno3(), **adaptive}, "got Kvaerno3"),
        (x0, {"solver": diffrax.ReversibleHeun()}, "got ReversibleHeun"),
        (x0, {"times": [0.0, 1.0], "num_steps": 4}, "t0=None, t1=None and num_steps=4 besides"),
        (x0, {"times": [0.0, 1.0], "solver": diffrax.Tsit5(), **adaptive}, "PIDController adapts"),
        (x0, {"stepsize_controller": diffrax.StepTo(jnp.array([0.0, 1.0]))}, "adaptive, got StepTo"),
        (x0, {"steps_by_row": True}, "needs an adaptive"),
        (x0, {"chunk_size": 0}, "chunk_size must be >= 1, got 0"),
        (x0, {"chunk_size": 2.5}, "chunk_size must be an integer, got 2.5"),
        (x0, {"save_at": [0.5, np.nan]}, "from nan to nan"),
        (x0, {"save_at": []}, r"non-empty.*shape \(0,\)"),
        (x0, {"save_at": [0.5, 1.5]}, "from 0.5 to 1.5"),
        (x0, {"save_at": [0.5, 0.25]}, r"towards t1=1.0, got \[0.5, 0.25\]"),
        (x0, {"save_at": [0.5], "save_steps": True}, "one of them"),
    ]
    for x, options, message in rows:
        with pytest.raises(ValueError, match=message):
            sample_ode(drift, None, x, **options)
    with pytest.raises(ValueError, match=r"\(2, 1\).*\(2, 3\)"):
        sample_ode(from_function(lambda t, x: x[:, :1]), None, x0)
    for name, value in (("times", jnp.array([0.0, 1.0])), ("t1", 1.0), ("save_at", jnp.array([0.5]))):
        with pytest.raises(ValueError, match=f"{name} must be known at trace time"):
            jax.jit(lambda value, name=name: sample_ode(drift, None, x0, **{name: value}))(value)
