"""Architecture times prior: what each does to samples on a finer grid, and how much it scatters."""

import math
from collections.abc import Callable, Iterable, Sequence
from statistics import fmean

from .judging import Judged, Table
from .training import LIMITS

Number = Callable[[str, str, int], list[float]]
"""(network, prior, n) ↦ a distance to images, one a seed or a split."""


def of_table(table: Table, what: str = "sw") -> Number:
    """The distances of the first comparison, one a seed of training."""
    return lambda net, prior, n: [row[str(n)][what] for row in table[net, prior]]


def of_judged(found: Judged, what: str = "frechet") -> Number:
    """The numbers of the stored networks of one seed, one a split of the held-out images."""
    return lambda net, prior, n: [row[what] for row in found[f"{net}.{prior}.{n}"]]


def mean_log(number: Number, net: str, priors: Iterable[str], n: int) -> list[float]:
    """The logarithm of a distance, as a mean over priors, one a seed."""
    columns = [number(net, prior, n) for prior in priors]
    return [fmean(map(math.log, values)) for values in zip(*columns, strict=True)]


def factors(over: Sequence[float], under: Sequence[float]) -> list[float]:
    """The quotients e^{a − b}, one a seed."""
    return [math.exp(a - b) for a, b in zip(over, under, strict=True)]


def architecture(number: Number, n: int) -> list[float]:
    """The distance of the U-Net over that of the FNO, with priors that have a limit."""
    return factors(mean_log(number, "unet", LIMITS, n), mean_log(number, "fno", LIMITS, n))


def prior(number: Number, n: int, net: str = "fno") -> list[float]:
    """The distance with pixel noise over that with priors that have a limit."""
    return factors(mean_log(number, net, ("standard",), n), mean_log(number, net, LIMITS, n))


def effects(number: Number, n: int) -> dict[str, list[float]]:
    """The two main effects and their interaction on the logarithm (base 2), one a seed.

    A main effect is the mean change over both levels of the other factor. The levels of the prior
    are pixel noise, and the mean of the priors that have a limit.
    """
    cells = {
        (net, kind): mean_log(number, net, priors, n)
        for net in ("fno", "unet")
        for kind, priors in (("limit", LIMITS), ("pixels", ("standard",)))
    }
    rows = zip(*cells.values(), strict=True)
    found: dict[str, list[float]] = {"architecture": [], "prior": [], "interaction": []}
    for fno_limit, fno_pixels, unet_limit, unet_pixels in rows:
        unit = 2 * math.log(2)
        found["architecture"].append((unet_limit + unet_pixels - fno_limit - fno_pixels) / unit)
        found["prior"].append((fno_pixels + unet_pixels - fno_limit - unet_limit) / unit)
        found["interaction"].append((unet_pixels - unet_limit - fno_pixels + fno_limit) / unit)
    return found
