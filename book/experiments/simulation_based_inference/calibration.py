"""Whether posteriors are right on average: ranks of the truth among samples, and their laws.

If x is drawn from the prior, y given x, and samples from the exact posterior of y, then x and the
samples are exchangeable: the rank of x among `draws` samples is uniform on {0, …, draws}, in every
coordinate and by every distance. Each function here asks whether it is.
"""

import math
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from .posteriors import Support


class Coverage(NamedTuple):
    """The share `coverage` of truths in regions that should hold the share `alpha` of them."""

    alpha: Float[Tensor, " levels"]
    coverage: Float[Tensor, " levels"]


class Band(NamedTuple):
    """Bounds, both included."""

    low: Float[Tensor, " levels"]
    high: Float[Tensor, " levels"]


def sbc_ranks(
    samples: Float[Tensor, "n draws d"],
    x: Float[Tensor, "n d"],
    *,
    generator: torch.Generator | None = None,
) -> Int[Tensor, "n d"]:
    """The number of posterior samples below the true x, in each coordinate.

    Args:
        samples: drawn from the posterior of the y that x caused, independently of each other;
            those of a Markov chain need thinning.
        generator: puts x at random among samples that equal it.

    Raises:
        ValueError: shapes disagree, there are no samples, entries are not finite, or more than
            1 % of x equal a sample and there is no generator (a rare tie counts as above).

    Reference: talts2018validating.
    """
    _check_samples(samples, x)
    return _ranks(samples, x, generator)


def tarp_ranks(
    samples: Float[Tensor, "n draws d"],
    x: Float[Tensor, "n d"],
    *,
    references: Float[Tensor, "n d"],
    scale: Float[Tensor, " d"] | None = None,
    generator: torch.Generator | None = None,
) -> Int[Tensor, " n"]:
    """The number of samples nearer to a reference point than the true x, ‖(·)/scale‖ apart.

    Args:
        references: one point for each x, drawn without regard to x. Where they are independent of
            y too, the prior itself passes as posterior of every y; let them depend on y to see it.
        scale: the standard deviations of the prior; by default those of x.
        generator: as for `sbc_ranks`.

    Raises:
        ValueError: as for `sbc_ranks`, or a scale is not positive.

    Reference: lemos2023sampling, algorithm 2.
    """
    _check_samples(samples, x)
    if references.shape != x.shape or not references.isfinite().all():
        raise ValueError(
            f"references must be finite and as x, {tuple(x.shape)}, got {tuple(references.shape)}"
        )
    scale = x.std(0) if scale is None else scale.to(x)
    if scale.shape != x.shape[1:] or not (scale > 0).all():  # also where one x has no deviation
        raise ValueError(
            f"scale must be positive, one for each of {x.shape[1]} coordinates, got"
            f" {scale.tolist()}"
        )
    apart = ((samples - references[:, None]) / scale).norm(dim=2)
    true = ((x - references) / scale).norm(dim=1)
    return _ranks(apart[..., None], true[:, None], generator)[:, 0]


def tarp(
    samples: Float[Tensor, "n draws d"],
    x: Float[Tensor, "n d"],
    *,
    references: Float[Tensor, "n d"],
    scale: Float[Tensor, " d"] | None = None,
    generator: torch.Generator | None = None,
) -> Coverage:
    """The expected coverage of balls round reference points: all points nearer than the truth.

    Up to `rank_band` it lies on the diagonal where posteriors are exact; it leaves it where they
    are too narrow, too wide or shifted. Arguments and errors are those of `tarp_ranks`.

    Reference: lemos2023sampling, algorithm 2.
    """
    ranks = tarp_ranks(samples, x, references=references, scale=scale, generator=generator)
    return rank_coverage(ranks, samples.shape[1])


def rank_coverage(ranks: Int[Tensor, " n"], draws: int) -> Coverage:
    """The shares of ranks below k = 0, …, draws + 1, which should be α = k/(draws + 1).

    With these levels the expected curve of exact posteriors is the diagonal itself; with
    k/draws it would not be.
    """
    _check_ranks(ranks, draws)
    counts = ranks.bincount(minlength=draws + 1).to(torch.float64)
    share = torch.cat([counts.new_zeros(1), counts.cumsum(0) / len(ranks)])
    alpha = torch.arange(draws + 2, dtype=share.dtype, device=share.device) / (draws + 1)
    return Coverage(alpha, share)


def uniformity_pvalues(
    ranks: Int[Tensor, "n d"], draws: int, *, bins: int | None = None
) -> Float[Tensor, " d"]:
    """The p-values of Pearson's χ² test that ranks are uniform on {0, …, draws}, for each column.

    Bins hold equally many of the draws + 1 values, or uniform ranks would not fill them equally
    and, with enough x, be rejected for it. For the same reason no test for continuous laws is
    used: on ranks, that of Kolmogorov and Smirnov rejects what is right where n is large.

    Args:
        bins: a divisor of draws + 1; by default the largest up to 20 that leaves 10 ranks a bin.

    Raises:
        ValueError: ranks are not in {0, …, draws}, or bins do not divide draws + 1.
    """
    _check_ranks(ranks, draws)
    bins = _default_bins(len(ranks), draws) if bins is None else bins
    if not 2 <= bins <= draws + 1 or (draws + 1) % bins:
        raise ValueError(f"bins must be at least 2 and divide draws + 1 = {draws + 1}, got {bins}")
    index = ranks // ((draws + 1) // bins)
    counts = torch.stack([column.bincount(minlength=bins) for column in index.T], 1).double()
    expected = len(ranks) / bins
    statistic = (counts - expected).square().sum(0) / expected
    return torch.special.gammaincc(torch.full_like(statistic, (bins - 1) / 2), statistic / 2)


def holm(pvalues: Float[Tensor, " d"]) -> Float[Tensor, " d"]:
    """The p-values adjusted for their number, max over pⱼ ≤ pᵢ of (d + 1 − rank of pⱼ)·pⱼ.

    Rejecting all below 1 % rejects any true hypothesis with probability at most 1 %, however the
    tests depend on each other; the least is the p-value of all together.

    Reference: holm1979simple.
    """
    if pvalues.dim() != 1 or not ((pvalues >= 0) & (pvalues <= 1)).all():
        raise ValueError(f"pvalues must be a vector with entries in [0, 1], got {pvalues}")
    ordered, order = pvalues.sort()
    factor = torch.arange(len(pvalues), 0, -1, device=pvalues.device)
    adjusted = (factor * ordered).cummax(0).values.clamp(max=1.0)
    return torch.empty_like(pvalues).scatter(0, order, adjusted)


def rank_band(n: int, alpha: Float[Tensor, " levels"], *, level: float) -> Band:
    """The band that the shares below α of n uniform numbers leave nowhere, with probability level.

    At each α it is an interval between quantiles of Binomial(n, α)/n, all with the one tail
    probability for which the band as a whole holds. That of the whole is computed exactly, along
    the Markov chain of the counts; at 100 levels and n = 1000 this takes about a second.

    Args:
        alpha: the levels, increasing, from those of a `Coverage`.

    Raises:
        ValueError: n < 1, level is not in (0, 1), or alpha does not increase in [0, 1].

    Reference: sailynoja2022graphical.
    """
    levels = alpha.detach().double().cpu()
    rising = len(levels) > 0 and bool((levels.diff() > 0).all())
    if not rising or not 0 <= levels[0] <= levels[-1] <= 1:
        raise ValueError("alpha must be a vector of increasing levels in [0, 1]")
    if n < 1 or not 0 < level < 1:
        raise ValueError(f"n must be at least 1 and level in (0, 1), got {n} and {level}")
    cumulated = _binomial(n, levels).cumsum(1)
    # with the tail (1 − level)/2 everywhere it is too narrow; by Bonferroni the other is too wide
    high, low = (1 - level) / 2, (1 - level) / (2 * len(levels))
    for _ in range(16):
        tail = math.sqrt(low * high)
        enough = _probability(n, levels, *_quantiles(cumulated, tail)) >= level
        low, high = (tail, high) if enough else (low, tail)
    below, above = _quantiles(cumulated, low)
    return Band((below / n).to(alpha), (above / n).to(alpha))


def leakage(samples: Float[Tensor, "n draws d"], support: Support) -> Float[Tensor, " n"]:
    """The share of the samples of each posterior that lie outside of the prior's support."""
    n, draws, d = samples.shape
    if draws < 1:
        raise ValueError(
            f"samples must be (n, draws, d) with draws ≥ 1, got {tuple(samples.shape)}"
        )
    inside = support.inside(samples.reshape(n * draws, d))
    return 1 - inside.reshape(n, draws).to(samples).mean(1)


def _ranks(samples: Tensor, x: Tensor, generator: torch.Generator | None) -> Tensor:
    below = (samples < x[:, None]).sum(1)
    ties = (samples == x[:, None]).sum(1)
    share = float((ties > 0).double().mean())
    if generator is None and share > 0.01:
        raise ValueError(
            f"{share:.0%} of the true values equal a sample: give a generator, which puts them at"
            " random among their equals, or ranks are too low"
        )
    if generator is not None:
        u = torch.rand(ties.shape, generator=generator, device=generator.device)
        below = below + (u.to(ties.device) * (ties + 1)).long().minimum(ties)
    return below


def _default_bins(n: int, draws: int) -> int:
    """The largest divisor of draws + 1 up to 20 that leaves ten ranks for each bin."""
    fits = [b for b in range(2, min(20, n // 10) + 1) if (draws + 1) % b == 0]
    if not fits:
        raise ValueError(
            f"draws + 1 = {draws + 1} has no divisor from 2 to {min(20, n // 10)}, which are the"
            f" numbers of bins for {n} ranks: take 99 samples of each posterior, or give bins="
        )
    return fits[-1]


def _binomial(n: int, p: Tensor) -> Tensor:
    """The probabilities of 0, …, n successes, a row for each p."""
    k = torch.arange(n + 1, dtype=p.dtype)
    choose = math.lgamma(n + 1) - torch.lgamma(k + 1) - torch.lgamma(n - k + 1)
    return (choose + torch.xlogy(k, p[:, None]) + torch.xlogy(n - k, 1 - p[:, None])).exp()


def _quantiles(cumulated: Tensor, tail: float) -> tuple[Tensor, Tensor]:
    """The least counts with at least `tail` of the mass up to them, and 1 − tail."""
    bounds = cumulated.new_tensor([tail, 1 - tail]).expand(len(cumulated), 2).contiguous()
    # rounding may leave the total below 1
    counts = torch.searchsorted(cumulated, bounds).clamp(max=cumulated.shape[1] - 1)
    return counts[:, 0], counts[:, 1]


def _probability(n: int, levels: Tensor, low: Tensor, high: Tensor) -> float:
    """The probability that the count below each level lies between its bounds."""
    log_factorial = torch.lgamma(torch.arange(n + 1, dtype=levels.dtype) + 1)
    at, mass, before = torch.zeros(1, dtype=torch.long), levels.new_ones(1), 0.0
    for level, lowest, highest in zip(levels.tolist(), low.tolist(), high.tolist(), strict=True):
        to = torch.arange(lowest, highest + 1)
        left, more = (n - at)[:, None], to - at[:, None]  # each count adds Binomial(left, p)
        p = levels.new_tensor(min(1.0, (level - before) / (1 - before)) if before < 1 else 0.0)
        inside = more.clamp(min=0)
        rest = (left - inside).clamp(min=0)
        log = log_factorial[left] - log_factorial[inside] - log_factorial[rest]
        step = (log + torch.xlogy(inside, p) + torch.xlogy(rest, 1 - p)).exp()
        mass = mass @ torch.where(more >= 0, step, 0.0)
        at, before = to, level
    return float(mass.sum())


def _check_samples(samples: Tensor, x: Tensor) -> None:
    n, draws, d = samples.shape if samples.dim() == 3 else (0, 0, 0)
    if min(n, draws, d) < 1 or x.shape != (n, d):
        raise ValueError(
            "samples must be (n, draws, d) and x (n, d), none of them 0, got"
            f" {tuple(samples.shape)} and {tuple(x.shape)}"
        )
    for name, values in (("samples", samples), ("x", x)):
        bad = int((~values.isfinite()).sum())
        if bad:
            raise ValueError(f"{bad} entries of {name} are not finite: drop those rows and say so")


def _check_ranks(ranks: Tensor, draws: int) -> None:
    if draws < 1 or ranks.numel() == 0:
        raise ValueError(f"ranks need draws ≥ 1 and some x, got {draws=}, {tuple(ranks.shape)}")
    if ranks.min() < 0 or ranks.max() > draws:
        raise ValueError(
            f"ranks must be in 0, …, draws = {draws}, got {int(ranks.min())} to {int(ranks.max())}"
        )
