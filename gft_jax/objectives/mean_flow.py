"""MeanFlow: regression on average velocities, for sampling in one step or a few; also gradually."""

from gft_jax.drifts import instantaneous
from gft_jax.objectives import weighting as weightings
from gft_jax.objectives.average_regression import average_regression
from gft_jax.objectives.average_target import TargetGuidance
from gft_jax.objectives.time_sampling import uniform
from gft_jax.paths import Path, linear
from gft_jax.types import Drift, Objective, TimeSampler, TwoTimeDrift, Weighting


def mean_flow(
    drift: TwoTimeDrift,
    path: Path = linear(),
    *,
    time_sampler: TimeSampler = uniform(),
    weighting: Weighting = weightings.uniform,
    same_time: float = 0.75,
    adaptive_power: float = 0.0,
    adaptive_offset: float = 1e-3,
    guidance: TargetGuidance | None = None,
    tangent_drift: TwoTimeDrift | None = None,
) -> Objective:
    """MeanFlow: the average velocity ``u(t, s, x) = 1 / (s - t) int_t^s v`` along the flow of the path, for t <= s.

    With ``x + (s - t) u(t, s, x)`` the flow goes from t to s in one evaluation (`gft_jax.sampling.sample_average`). The
    average obeys the MeanFlow identity

        u = v + (s - t) du/dt,    du/dt = d_t u + (d_x u) v    (s fixed, along the flow),

    and the loss is ``E k(t) a |u(t, s, x_t) - target|^2`` with the conditional velocity ``v = u_t(x_t | x0, x1)`` in

        target = v + (s - t) [d_t u + (d_x u) v],

    held fixed: its forward-mode derivative along (1, 0, v) is taken in ``prepare``, on the rows with s > t alone. The
    target is linear in v, so its mean given x_t is that of the marginal velocity, under any coupling. Rows with s = t
    are those of `flow_matching`, at the same times and points: with ``same_time=1`` and ``adaptive_power=0`` this is
    flow matching of ``u(t, t, x)``. The temperature is ignored; started at pretrained parameters it is plain
    fine-tuning.

    Times: with s > t two draws of the sampler in their order, with s = t one draw (the source keeps the noisier of two
    there too). The source's times are ``time_sampling.logit_normal(0.4, 1.0)`` here.

    Stats: ``flow_matching_loss``, over the rows with s = t, and ``mean_flow_loss``, over those with s > t; both without
    the weight a.

    Source: Geng et al., "Mean flows for one-step generative modeling", arXiv:2505.13447; there t = 1 is noise, so that
    the sign of the second term is the opposite.

    Args:
        drift: the average velocity that is trained, see `gft_jax.drifts.two_times`.
        path: probability path.
        time_sampler: draws both times of a row.
        weighting: k(t) of the squared error.
        same_time: fraction of the rows, in [0, 1], with s = t: by their places, the last ones of every few. Rows (per
            device and micro-batch) must be a multiple of its denominator, 4 for 0.75. A stream whose rows differ by
            their places needs an order of its own: of `gft_jax.pairing.interleaved` the replayed rows are the first of
            every few too, so that with ``every=4`` all of them, and no new ones, would have s > t.
        adaptive_power: p >= 0 of the weight ``a = 1 / (|error|^2 + c)^p``, held fixed; 0 for the squared error, 1 in
            the source. With p > 0 rows of large error count less, and the optimum moves from the mean of the targets
            towards where most of them are: little in high dimension, where errors are alike, and more in two. With
            p = 1 the loss is near 1 whatever the drift: look at the stats.
        adaptive_offset: c > 0 of that weight, in units of the squared error (a sum over the event).
        guidance: classifier-free guidance that is folded into the target, so that samples are guided at no cost: v
            becomes ``omega v + kappa u(t, t, x | cond) + (1 - omega - kappa) u(t, t, x | null)`` in target and
            derivative, u the student's, held fixed, and ``omega = scale (1 - kappa)``. One evaluation more, or two.
        tangent_drift: the drift in a form that has a forward-mode derivative, of the same parameters, where ``drift``
            has none (fused attention).

    Raises:
        ValueError: for a drift without a second time, fractions, powers or guidance out of range; in a step, if the
            rows do not divide, guidance meets no conditions, or the drift has no forward-mode derivative.
    """
    return average_regression(
        drift,
        path,
        None,
        time_sampler,
        weighting,
        same_time,
        (adaptive_power, adaptive_offset),
        guidance,
        tangent_drift,
    )


def gradual_mean_flow(
    drift: TwoTimeDrift,
    path: Path = linear(),
    *,
    base_drift: Drift | None = None,
    time_sampler: TimeSampler = uniform(),
    weighting: Weighting = weightings.uniform,
    same_time: float = 0.75,
    adaptive_power: float = 0.0,
    adaptive_offset: float = 1e-3,
    guidance: TargetGuidance | None = None,
    tangent_drift: TwoTimeDrift | None = None,
) -> Objective:
    """`mean_flow` of the blended velocity of gradual fine-tuning: cooling and few-step learning at once.

    With target weight ``w = 1 / (1 + temperature)`` the velocity in target and derivative is

        v = w u_t(x_t | x0, x1) + (1 - w) v_base(t, x_t),

    so the optimum is the average velocity of the blended drift ``w u* + (1 - w) v_base``: of the pretrained flow at
    infinite temperature, of the target's at zero. The base is evaluated once a row, is not differentiated, and at zero
    temperature not evaluated at all.

    The base is one copy. By default it is the two-time drift at s = t with ``base_params``, those of
    `gft_jax.networks.two_time_params`: all that starts at the base then starts there (the full adapter, low-rank
    adaptation with the second time among ``whole``). With a ``base_drift`` of one time ``base_params`` are its own.

    Stats: those of `mean_flow`, and the two moments of `gradual` over the rows with s = t, where the student's velocity
    is ``u(t, t, x)``, with the weights of the loss, adaptive ones included. They are absent without such rows, and with
    guidance, where the velocity is another one.

    Source: arXiv:2505.13447 for average velocities, arXiv:2601.22495 for the interpolation; their combination is ours.

    Args:
        drift: as in `mean_flow`.
        path: likewise.
        base_drift: the pretrained velocity, if it is not ``drift`` at s = t; the fine-tuner's ``init`` then needs
            ``params`` to start from.
        time_sampler: as in `mean_flow`.
        weighting: likewise.
        same_time: likewise.
        adaptive_power: likewise.
        adaptive_offset: likewise.
        guidance: likewise; the blended velocity is what is guided, so that at infinite temperature the optimum is the
            guided base.
        tangent_drift: likewise.

    Raises:
        ValueError: as `mean_flow`.
    """
    return average_regression(
        drift,
        path,
        instantaneous(drift) if base_drift is None else base_drift,
        time_sampler,
        weighting,
        same_time,
        (adaptive_power, adaptive_offset),
        guidance,
        tangent_drift,
    )
