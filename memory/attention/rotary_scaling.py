"""Rotary frequencies of models that read further than they were trained: a table of rates for each method.

With d rotated features, a position turns the pair m = 0 .. d/2 - 1 by w_m, plainly by w0_m = base^(-2m/d).
L is the trained context, n the present one and s the factor:

    linear      w0 / s                          position interpolation: Chen et al. 2023, arXiv:2306.15595
    ntk         (base s^(d/(d-2)))^(-2m/d)      NTK-aware: bloc97 2023, as in jquesnelle/yarn
    dynamic     ntk with s n/L - (s - 1)        dynamic NTK: emozilla 2023, as in transformers
    mixed       w0 exp(-c (m+1)^p)              c = log s / (d/2)^p: Su 2023, as in bojone/rerope
    yarn        w0 (1 - g)/s + w0 g             g falls from 1 to 0 with m: Peng et al. 2024, arXiv:2309.00071
    longrope    w0 / f                          f searched, one per pair: Ding et al. 2024, arXiv:2402.13753
    llama3      w0, w0 / s or between           by the wavelength: Dubey et al. 2024, arXiv:2407.21783
    hope        w0, or 0 beyond L               by the wavelength: Chen et al. 2024, arXiv:2410.21216
    power       w0 (1 - 2m/d)^k                 Pal et al. 2023 (Giraffe), arXiv:2308.10882
    truncated   w0, a constant or 0             the same

The adjusted base frequency (Xiong et al. 2023, arXiv:2309.16039) is another base and no scaling.  yarn and
longrope also multiply rotated queries and keys by a temperature.
Differs from the papers: the n of dynamic and longrope is the model's context, never the length of a call, so
that logits don't depend on later tokens and rotated keys stay right in a cache.  YaRN's ramp is linear in the
pair's index, as in its code.  Giraffe leaves k, a, b and the constant open; here k divides the lowest rate by
s, b is one turn in L, and a and the constant are one turn in s L.
"""

import math
from typing import NamedTuple

from zoo.memory.attention.position_options import PositionOptions


class Frequencies(NamedTuple):
    """How far a position turns each pair, in radians, and the factor of rotated features."""

    rates: tuple[float, ...]
    factor: float = 1.0


def plain_rates(d: int, base: float) -> list[float]:
    """w0."""
    return [base ** (-2 * m / d) for m in range(d // 2)]


def frequencies(d: int, options: PositionOptions, context: int) -> Frequencies | None:
    """The frequencies of `d` rotated features for resolved options and a context; None for plain ones.

    Raises ValueError where the method has none.
    """
    w0 = plain_rates(d, options.base)
    s, L = options.factor or 1.0, options.trained or context
    match options.scaling:
        case "none" | "clex":
            return None
        case "linear":
            return Frequencies(tuple(w / s for w in w0))
        case "ntk":
            return Frequencies(ntk_rates(d, options.base, s))
        case "dynamic":
            n = max(context, L)
            return Frequencies(ntk_rates(d, options.base, n / L if s == 1 else s * n / L - (s - 1)))
        case "mixed":
            p = 0.75 if options.exponent is None else options.exponent
            c = math.log(s) / (d / 2) ** p
            return Frequencies(tuple(w * math.exp(-c * (m + 1) ** p) for m, w in enumerate(w0)))
        case "yarn":
            return yarn(w0, s, L, options)
        case "longrope":
            return longrope(w0, s, L, context, options)
        case "llama3":
            return Frequencies(llama3_rates(w0, s, L, options.low, options.high))
        case "hope":
            return Frequencies(tuple(w if 2 * math.pi / w <= L else 0.0 for w in w0))
        case "power":
            return Frequencies(power_rates(w0, s, options.exponent))
        case "truncated":
            return Frequencies(truncated_rates(w0, 2 * math.pi / (s * L), 2 * math.pi / L))


def ntk_rates(d: int, base: float, s: float) -> tuple[float, ...]:
    """Rates of the base for which the lowest one is divided by exactly s."""
    if d < 4:
        raise ValueError(f"scaling ntk and dynamic need at least 4 rotated features, not {d}")
    return tuple(plain_rates(d, base * s ** (d / (d - 2))))


def yarn_ramp(pairs: int, L: int, options: PositionOptions) -> list[float]:
    """g of each pair: 1 where it is kept, 0 where it is divided by s."""
    d = 2 * pairs

    def index(turns: float) -> float:
        """The fractional index of the pair that makes so many turns in L."""
        return d * math.log(L / (2 * math.pi * turns)) / (2 * math.log(options.base))

    low, high = index(options.beta_fast), index(options.beta_slow)
    if options.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, d - 1)
    high += 0.001 if low == high else 0
    return [1.0 - min(max((m - low) / (high - low), 0.0), 1.0) for m in range(pairs)]


def yarn(w0: list[float], s: float, L: int, options: PositionOptions) -> Frequencies:
    """NTK by parts, with the temperature of `attention_factor`, or of the two `mscale`s (DeepSeek)."""
    g = yarn_ramp(len(w0), L, options)

    def temperature(c: float) -> float:
        return 0.1 * c * math.log(s) + 1 if s > 1 else 1.0

    a = temperature(1.0)
    if options.attention_factor is not None:
        a = options.attention_factor
    elif options.mscale and options.mscale_all_dim:
        a = temperature(options.mscale) / temperature(options.mscale_all_dim)
    return Frequencies(tuple(w * (1 - g_m) / s + w * g_m for w, g_m in zip(w0, g, strict=True)), a)


def longrope(w0: list[float], s: float, L: int, context: int, options: PositionOptions) -> Frequencies:
    """`long` beyond the trained length, else `short`; the temperature is that of s for both."""
    factors = options.long if context > L else options.short
    if factors is None:
        ramp = yarn_ramp(len(w0), L, options) if context > L else [1.0] * len(w0)
        factors = [s * (1 - g) + g for g in ramp]
    if len(factors) != len(w0) or min(factors) <= 0:
        raise ValueError(f"position.long and short: expected {len(w0)} numbers above 0, found {factors}")
    a = math.sqrt(1 + math.log(s) / math.log(L)) if s > 1 else 1.0
    a = a if options.attention_factor is None else options.attention_factor
    return Frequencies(tuple(w / f for w, f in zip(w0, factors, strict=True)), a)


def llama3_rates(w0: list[float], s: float, L: int, low: float, high: float) -> tuple[float, ...]:
    """Pairs that turn less than `low` times in L are divided by s, those above `high` are kept."""
    if not low < high:
        raise ValueError(f"position.low: expected less than high, found {low} and {high}")
    rates = []
    for w in w0:
        turns = L * w / (2 * math.pi)
        q = min(max((turns - low) / (high - low), 0), 1)
        rates.append((1 - q) * w / s + q * w)
    return tuple(rates)


def power_rates(w0: list[float], s: float, exponent: float | None) -> tuple[float, ...]:
    """w0 (1 - 2m/d)^k; k by default divides the lowest rate by s (Giraffe)."""
    pairs = len(w0)
    if exponent is None:
        exponent = math.log(s) / math.log(pairs) if pairs > 1 else 0.0
    return tuple(w * (1 - m / pairs) ** exponent for m, w in enumerate(w0))


def truncated_rates(w0: list[float], a: float, b: float) -> tuple[float, ...]:
    """Rates from b up stay, those between a and b become a, those up to a become 0."""
    return tuple(w if w >= b else a if w > a else 0.0 for w in w0)
