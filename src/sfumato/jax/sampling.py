"""A sampler's table as arrays, and the loop over its rows as one ``lax.scan``.

Whatever has a `Plan` works here: the rows are data, so one compiled program serves every sampler of
the same length and depth.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from sfumato.diffusion.plan import BASE, NEGATIVE, Limit, Plan

#: ``(x, timestep) -> output``: x ``(B, C, H, W)``, the timestep one float32 number.
Network = Callable[[Array, Array], Array]
#: Number of the row -> standard normal noise of the shape of x.
Noise = Callable[[Array], Array]


class Rows(NamedTuple):
    """The columns of a `Plan`, in float32; the first axis is the row.

    ``variance`` is ``log_variance``, or an empty array ``(n, 0)`` for plans without.
    """

    timesteps: Array
    input_scale: Array
    denoised: Array
    base: Array
    update: Array
    draws: Array
    variance: Array


class Progress(NamedTuple):
    """Where pictures stand between two rows.

    Attributes:
        x: ``(B, C, H, W)`` float32.
        past: tensors of earlier calls, ``(depth, columns, B, C, H, W)``; see `plan.Column`.
    """

    x: Array
    past: Array


def rows_of(plan: Plan) -> Rows:
    """The table as arrays."""
    variance = np.zeros((len(plan), 0)) if plan.log_variance is None else plan.log_variance
    columns = (plan.timesteps, plan.input_scale, plan.denoised, plan.base, plan.update)
    return Rows(
        *(jnp.asarray(np.asarray(column, np.float32)) for column in columns),
        draws=jnp.asarray(plan.draws),
        variance=jnp.asarray(np.asarray(variance, np.float32)),
    )


def begin(x: Array, rows: Rows) -> Progress:
    """Before the first row of a table."""
    _, calls, columns, *_ = rows.update.shape
    return Progress(x, jnp.zeros((calls - 1, columns, *x.shape), jnp.float32))


def advance(
    row: Rows, progress: Progress, output: Array, noise: Array, limit: Limit | None
) -> tuple[Progress, Array]:
    """Apply one row; the counterpart of `sfumato.diffusion.advance.advance`.

    Args:
        row: one row of a table.
        progress: before it.
        output: what the network answered to ``row.input_scale * progress.x``; for samplers that
            want both, the guided answer and the negative one behind it, see `Plan.wants_negative`.
        noise: standard normal, shaped like x; zeros where the row draws none.
        limit: what happens to the denoised picture.

    Returns:
        The progress after it, and the denoised picture.
    """
    x, past = progress
    output = output.astype(jnp.float32)
    if row.variance.shape[-1] == 1:
        output, variance = jnp.split(output, 2, axis=1)
        noise = noise * jnp.sqrt(jnp.maximum(variance, 0) * jnp.exp(row.variance[0]))
    elif row.variance.shape[-1]:
        output, mixture = jnp.split(output, 2, axis=1)
        share = (mixture + 1) / 2
        noise = noise * jnp.exp(0.5 * (share * row.variance[1] + (1 - share) * row.variance[0]))
    width = x.shape[1]
    output, other = output[:, :width], output[:, -width:]
    denoised = _limited(_weighted(row.denoised, jnp.stack([x, output, noise])), limit)
    columns = [x, jnp.zeros_like(x), output, denoised, noise]
    if row.update.shape[-1] > NEGATIVE:
        columns.append(_limited(_weighted(row.denoised, jnp.stack([x, other, noise])), limit))
    call = jnp.stack(columns)
    calls = jnp.concatenate([call[None], past])
    base = _weighted(row.base.reshape(-1), calls.reshape(-1, *x.shape))
    calls = calls.at[0, BASE].set(base)
    x = _weighted(row.update.reshape(-1), calls.reshape(-1, *x.shape))
    return Progress(x, calls[: past.shape[0]]), denoised


def _weighted(weights: Array, tensors: Array) -> Array:
    """The sum of tensors ``(k, ...)`` times weights ``(k,)``; what weighs nothing may be NaN."""
    shape = (-1, *[1] * (tensors.ndim - 1))
    terms = jnp.where(weights.reshape(shape) == 0, 0.0, weights.reshape(shape) * tensors)
    return terms.sum(axis=0)


def _limited(denoised: Array, limit: Limit | None) -> Array:
    if limit is None:
        return denoised
    if limit.quantile is None:
        return denoised if limit.clip is None else denoised.clip(-limit.clip, limit.clip)
    flat = jnp.abs(denoised).reshape(denoised.shape[0], -1)
    edge = jnp.quantile(flat, limit.quantile, axis=1).clip(1, limit.maximum)
    edge = edge.reshape(-1, *[1] * (denoised.ndim - 1))
    return denoised.clip(-edge, edge) / edge


def sample(
    network: Network,
    x: Array,
    rows: Rows,
    noise: Noise,
    limit: Limit | None = None,
    *,
    after: Callable[[Array, Array], Array] | None = None,
) -> tuple[Array, Array]:
    """Pass through all rows.

    Args:
        network: what predicts.
        x: start, ``(B, C, H, W)`` float32, multiplied by the plan's ``init_sigma`` already.
        rows: the table.
        noise: for samplers that draw some.
        limit: the plan's.
        after: what happens to x after each row; it is given the row's number too.

    Returns:
        The finished latents, float32; and for each picture the number of the first row that made
        NaN or infinity of it, or the number of rows where none did.
    """
    rows_in_all = rows.timesteps.shape[0]

    def body(
        carry: tuple[Progress, Array], item: tuple[Array, Rows]
    ) -> tuple[tuple[Progress, Array], None]:
        (progress, broken), (number, row) = carry, item
        x = progress.x
        output = network(x * row.input_scale, row.timesteps)
        drawn = lax.cond(row.draws, noise, lambda _: jnp.zeros_like(x), number)
        progress, _ = advance(row, progress, output, drawn, limit)
        if after is not None:
            progress = progress._replace(x=after(progress.x, number))
        sound = jnp.isfinite(progress.x).all(axis=(1, 2, 3))
        return (progress, jnp.where(sound, broken, jnp.minimum(broken, number))), None

    start = begin(x, rows), jnp.full(x.shape[0], rows_in_all, jnp.int32)
    (progress, broken), _ = lax.scan(body, start, (jnp.arange(rows_in_all), rows))
    return progress.x, broken


def guided(
    predict: Callable[[Array, Array], Array],
    scale: Array,
    blocks: bool,
    tells_negative: bool = False,
) -> Callable[[Array, Array], Array]:
    """Classifier-free guidance around ``(x, timestep) -> output``.

    Args:
        predict: the network; with ``blocks`` it is given all pictures twice, and answers for the
            negative prompts first.
        scale: one per picture, ``(B,)``.
        blocks: whether to guide at all.
        tells_negative: hand the negative answer on behind the guided one, as further channels.
    """
    if not blocks:
        return predict
    # Who wants the negative answer too goes between both.
    scales: Any = scale if tells_negative else jnp.maximum(scale, 1.0)
    scales = scales.astype(jnp.float32).reshape(-1, 1, 1, 1)

    def both(x: Array, timestep: Array) -> Array:
        negative, positive = jnp.split(
            predict(jnp.concatenate([x, x]), timestep).astype(jnp.float32), 2
        )
        guided = negative + scales * (positive - negative)
        return jnp.concatenate([guided, negative], axis=1) if tells_negative else guided

    return both
