"""The laws that every edge estimator obeys, in one parametrised suite, and what each member promises beside them."""

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from functools import cache

import numpy as np
import pytest
from scipy.stats import binom

from spectrim import edges
from spectrim.edges import Bema, BemaGamma, Broadening, Edge, GavishDonoho, Known, Median, ScreeNot
from spectrim.laws import TracyWidom, top_eigenvalue
from spectrim.linalg import singular_values
from spectrim.planted import critical, noise, planted, scales
from spectrim.reading import read_equalised, read_spectrum
from spectrim.spectrum import NoiseFit, Spectrum


@dataclass(frozen=True)
class Member:
    """An estimator and what it documents of itself."""

    make: Callable[[float], Edge]  # from the standard deviation of the noise, which only some are told
    rate: float  # of false spikes on pure noise, at most
    least: float = 0.0  # the same from below, where the edge is meant to be sharp
    extra: int = 0  # noise values that may stand beside strong spikes: those above an edge that has no beta to lower
    slow: bool = False  # by simulation


MEMBERS = {
    "known": Member(lambda sigma: Known(sigma, beta=0.1), rate=0.1, least=0.07),
    # Hangs on one order statistic and is documented at up to .13.
    "median": Member(lambda sigma: Median(beta=0.1), rate=0.13, least=0.07),
    "bema": Member(lambda sigma: Bema(alpha=0.2, beta=0.1), rate=0.1, least=0.07),
    "bema wide": Member(lambda sigma: Bema(alpha=0.05, beta=0.1), rate=0.1, least=0.07),
    "broadening": Member(lambda sigma: Broadening(window=15), rate=0.17, least=0.05, extra=1),
    "gavish-donoho": Member(lambda sigma: GavishDonoho(), rate=0.01),
    "gavish-donoho told": Member(lambda sigma: GavishDonoho(sigma), rate=0.01),
    "screenot": Member(lambda sigma: ScreeNot(rank_bound=0.25), rate=0.01),
    "bema gamma": Member(lambda sigma: BemaGamma(), rate=0.1, extra=1, slow=True),
}
PARAMS = [pytest.param(m, id=name, marks=[pytest.mark.slow] if m.slow else []) for name, m in MEMBERS.items()]
WAYS = ("plain", "equalised")


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(params=PARAMS)
def documented(request) -> Member:
    return request.param


@pytest.fixture
def member(documented) -> Callable[[float], Edge]:
    return documented.make


@pytest.fixture(params=WAYS)
def read(request):
    return lambda W: read_spectrum(W, equalize=request.param == "equalised")


@cache
def uneven():
    """Twelve strong spikes in noise whose rows and columns differ; read-only."""
    made = planted(
        60, 90, np.linspace(3, 9, 12) * critical(60, 90), row_log_sd=0.2, col_log_sd=0.2,
        generator=np.random.default_rng(11),
    )  # fmt: skip
    made.W.setflags(write=False)
    return made.W


@cache
def noise_spectra(p: int, n: int, draws: int, way: str) -> list[Spectrum]:
    """Gaussian noise of standard deviation one; "equalised" gives it uneven rows and columns first, of log-sd .3."""
    generator, found = np.random.default_rng([p, n, draws]), []
    for _ in range(draws):
        N = noise(p, n, generator=generator)
        if way == "plain":
            found.append(read_spectrum(N))
            continue
        W = scales(p, 0.3, generator=generator)[:, None] * N * scales(n, 0.3, generator=generator)
        # Brought back to the norm of N, so that sigma is one for `Known` as well.
        even = read_equalised(W, Bema())[0]
        found.append(replace(even, s=even.s * np.linalg.norm(N) / np.linalg.norm(W)))
    return found


def assert_same(first: NoiseFit, second: NoiseFit, factor: float = 1.0, rel: float = 1e-9) -> None:
    """The second verdict is the first in a unit `factor` times smaller; rel allows for rounding in float32 squares."""
    assert (second.sigma is None) == (first.sigma is None)
    if first.sigma is not None:
        assert second.sigma == pytest.approx(factor * first.sigma, rel=rel)
    assert second.edge == pytest.approx(factor * first.edge, rel=rel)
    assert second.spikes == first.spikes
    assert (second.misfit is None) == (first.misfit is None)
    if first.misfit is not None:
        assert second.misfit == pytest.approx(first.misfit, abs=1e-6)
    if first.edge_interval is not None:
        assert second.edge_interval == pytest.approx(tuple(factor * v for v in first.edge_interval), rel=rel)


@pytest.mark.parametrize("factor", (1e-120, 1e-3, 7.0, 1e120))
def test_scale(member, read, factor):
    W = uneven()
    if factor in (1e-120, 1e120):  # the spectrum alone: W**2 itself would leave the floats
        spectrum = read(W)
        assert_same(member(1.0)(spectrum), member(factor)(replace(spectrum, s=factor * spectrum.s)), factor)
    else:
        assert_same(member(1.0)(read(W)), member(factor)(read(factor * W)), factor, rel=1e-6)


def test_transpose(member, read):
    assert_same(member(1.0)(read(uneven())), member(1.0)(read(uneven().T)), rel=1e-6)


def test_permutation(member, read):
    generator = np.random.default_rng(0)
    W = uneven()[generator.permutation(60)][:, generator.permutation(90)]
    assert_same(member(1.0)(read(uneven())), member(1.0)(read(W)), rel=1e-6)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(("p", "n", "draws"), [(100, 300, 400), (50, 50, 400), (384, 384, 200)])
def test_false_spikes_at_the_documented_rate(documented, p, n, draws, way):
    spectra = noise_spectra(p, n, draws, way)[: 40 if documented.slow else draws]
    found = sum(documented.make(1.0)(spectrum).spikes > 0 for spectrum in spectra)
    # A member at its rate fails one time in a thousand; the seed is fixed.
    allowed = binom.ppf(0.999, len(spectra), documented.rate)
    assert found <= allowed, f"{found} of {len(spectra)} noise matrices show a spike"


@pytest.mark.parametrize("entries", ["uniform", "signs"])
def test_false_spikes_of_equalised_noise_that_is_not_gaussian(entries):
    """Light tails leave less to even out; corrected as if Gaussian, signs would show a spike in one of four."""
    generator = np.random.default_rng(5)
    draw = {
        "uniform": lambda: generator.uniform(-1, 1, (100, 100)),
        "signs": lambda: generator.choice([-1.0, 1.0], (100, 100)),
    }
    found = sum(Bema()(read_spectrum(draw[entries](), equalize=True)).spikes > 0 for _ in range(300))
    assert found <= binom.ppf(0.999, 300, 0.1)


@pytest.mark.parametrize("way", WAYS)
def test_noise_is_not_judged_too_timidly(documented, way):
    # The other side of the rate: uncorrected, equalised noise shows a spike in one draw of a hundred.
    if not documented.least:
        pytest.skip("documents no rate from below")
    found = sum(documented.make(1.0)(spectrum).spikes > 0 for spectrum in noise_spectra(100, 300, 400, way))
    assert found >= binom.ppf(0.001, 400, documented.least)


@pytest.mark.parametrize("shape", [(100, 300), (200, 200), (60, 600)])
@pytest.mark.parametrize("count", (1, 5, 10))
def test_strong_spikes_are_counted_exactly(documented, shape, count):
    # A generator for which noise alone gives no spike beside them: at beta = 1e-3 that fails once in a thousand draws.
    # An edge that cannot be made strict shows its false spikes here as on pure noise: seldom one, and never two.
    edge, extra = documented.make(1.0), documented.extra
    if not extra and "beta" in {field.name for field in fields(edge)}:
        edge = replace(edge, beta=1e-3)
    for draw in range(5):
        strengths = np.linspace(3, 8, count) * critical(*shape)
        made = planted(*shape, strengths, generator=np.random.default_rng([draw, *shape]))
        assert count <= edge(read_spectrum(made.W)).spikes <= count + extra


def test_what_cannot_be_measured_is_refused(member, read):
    for W, message in (
        (noise(3, 5, generator=np.random.default_rng(0)), "too small"),
        (np.outer(np.ones(20), np.arange(1.0, 31.0)), "rank 1"),
    ):
        with pytest.raises(ValueError, match=message):
            member(1.0)(read(W))
    with pytest.raises(ValueError, match="all zero"):
        member(1.0)(read(np.zeros((20, 30))))
    with pytest.raises(ValueError, match="all zero"):
        member(1.0)(Spectrum(np.zeros(20), 20, 30))
    with pytest.raises(ValueError, match="incomplete"):
        member(1.0)(Spectrum(np.ones(5), 20, 30, complete=False))
    with pytest.raises(ValueError, match="not finite"):
        member(1.0)(Spectrum([np.nan] * 20, 20, 30))
    with pytest.raises(ValueError, match="not finite"):
        read(np.where(np.eye(20) > 0, np.inf, 1.0))


def test_the_verdict_is_consistent(member, read):
    spectrum = read(uneven())
    fit = member(1.0)(spectrum)
    assert fit.spikes == np.count_nonzero(spectrum.s > fit.edge)
    assert fit.misfit is None or 0 <= fit.misfit <= 1
    assert fit.sigma is None or 0 < fit.sigma < fit.edge
    assert fit.method == repr(member(1.0))
    assert member(1.0) == eval(fit.method, vars(edges)) == edges.from_repr(fit.method)
    if fit.edge_interval is not None:
        # It speaks of the end of the limiting law, which the edge itself may leave: see `Bema`.
        assert fit.edge_interval[0] < fit.sigma * (60**0.5 + 90**0.5) < fit.edge_interval[1]


def test_settings_out_of_range_are_refused(member):
    if "beta" not in {field.name for field in fields(member(1.0))}:
        pytest.skip("has no beta")
    for beta in (0.0, 1.0, -1.0, np.nan):
        with pytest.raises(ValueError, match="beta must"):
            replace(member(1.0), beta=beta)


@pytest.mark.parametrize("alpha", (-0.1, 0.5, np.nan))
def test_bema_refuses_an_impossible_window(alpha):
    with pytest.raises(ValueError, match="alpha must"):
        Bema(alpha=alpha)


@pytest.mark.parametrize("sigma", (0.0, -1.0, np.inf, np.nan))
def test_known_refuses_an_impossible_level(sigma):
    with pytest.raises(ValueError, match="sigma must"):
        Known(sigma)


@cache
def published_example(seed: int) -> Spectrum:
    """Two huge spikes and a plain one in unit noise, N = 1000: arXiv 2303.08986, example 3.3."""
    N = 1000
    i, j = np.arange(N)[:, None], np.arange(N)[None, :]
    signal = np.tan(np.pi / 2 + 1 / (i + j + 1)) + np.cos(i) * np.log(i + j + 1) + np.sin(j) * np.cos(j)
    W = signal + noise(N, N, generator=np.random.default_rng(seed))
    return Spectrum(singular_values(W), N, N)


@pytest.mark.parametrize("seed", range(10))
def test_bema_on_the_published_example(seed):
    spectrum = published_example(seed)
    for beta in (0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 0.8, 0.9, 0.95):
        truth = 4 + 2 ** (4 / 3) * TracyWidom().ppf(1 - beta) * 1000 ** (-2 / 3)
        for alpha in (0.05, 0.1, 0.2, 0.25, 0.4, 0.45):
            fit = Bema(alpha, beta)(spectrum)
            assert abs(fit.edge**2 / 1000 - truth) < 0.035, (alpha, beta)
            assert fit.spikes >= 3


def test_bema_refits_with_the_law_of_what_is_left():
    # Forty values of 250 x 1000 are signal. Without a refit they push sigma**2 up by an eighth.
    generator = np.random.default_rng(4)
    made = planted(250, 1000, np.linspace(2, 6, 40) * critical(250, 1000), generator=generator)
    spectrum = read_spectrum(made.W)
    fit = Bema()(spectrum)
    assert fit.spikes == 40
    # Measured bias -.01 to -.02 (docs/equalisation.md); the naive refit has -.05, no refit +.13.
    assert fit.sigma**2 == pytest.approx(1.0, abs=0.03)


def test_bema_agrees_with_its_literal_twin():
    spectrum = read_spectrum(uneven())

    def fit_without(K, sigma):
        left = spectrum.s[K:][::-1] ** 2 / (90 - K)
        top = bottom = 0.0
        for i, (q, seen) in enumerate(zip(spectrum.noise_quantiles(K, sigma), left, strict=True)):
            if 0.2 <= (i + 0.5) / (60 - K) <= 0.8:
                top, bottom = top + q * seen, bottom + q * q
        return (top / bottom) ** 0.5

    K, sigma = 0, fit_without(0, None)
    for _ in range(60):
        edge = sigma * (90 * top_eigenvalue(60, 90, 0.1)) ** 0.5
        found = sum(1 for v in spectrum.s if v > edge)
        if found <= K:
            break
        K = found
        for _ in range(20):  # until sigma and the strengths agree; `Bema` stops after the third step
            sigma = fit_without(K, sigma)
    fit = Bema()(spectrum)
    assert fit.edge == pytest.approx(edge, rel=1e-5)
    assert fit.spikes == found


@pytest.mark.parametrize("seed", range(20))
def test_bema_ends_on_any_spectrum(seed):
    # Heavy tails, plateaus and gaps: whatever the count does, it ends, and the verdict is a number.
    generator = np.random.default_rng(seed)
    p = int(generator.integers(10, 80))
    s = generator.pareto(generator.uniform(0.3, 4), p) + generator.choice([0, 1e-3, 1])
    fit = Bema(alpha=generator.uniform(0, 0.49))(Spectrum(s, p, p + int(generator.integers(0, 100))))
    assert np.isfinite(fit.edge)
    assert 0 <= fit.spikes <= p


def test_median_of_an_even_and_an_odd_count():
    for p in (20, 21):
        ideal = Spectrum(np.sqrt(40 * Spectrum(np.ones(p), p, 40).noise_quantiles()), p, 40)
        assert Median()(ideal).sigma == pytest.approx(1.0, rel=1e-12)


PLANTED = [(100, 300), (384, 384), (384, 1536)]


def found_where_twenty_are_planted(shape, spacing, draws):
    ladder = {"linear": np.linspace(1.3, 6, 20), "geometric": np.geomspace(1.3, 6, 20)}[spacing] * critical(*shape)
    counts = []
    for draw in range(draws):
        generator = np.random.default_rng([1, *shape, draw])
        W = planted(*shape, ladder, row_log_sd=0.3, col_log_sd=0.3, generator=generator).W
        counts.append(Bema()(read_equalised(W, Bema())[0]).spikes)
    return counts


def assert_near_twenty(counts, least=19.0):
    assert least <= np.mean(counts) <= 21
    assert 18 <= min(counts) <= max(counts) <= 23


@pytest.mark.parametrize("shape", PLANTED)
def test_planted_spikes_under_uneven_scales(shape):
    # Seeded. Forty draws of each are in the slow twin and in docs/equalisation.md: means 19.4, 19.9, 20.0.
    assert_near_twenty(found_where_twenty_are_planted(shape, "linear", 40 if shape == (100, 300) else 6))


@pytest.mark.slow
@pytest.mark.parametrize("spacing", ("linear", "geometric"))
@pytest.mark.parametrize("shape", PLANTED)
def test_planted_spikes_under_uneven_scales_forty_draws(shape, spacing):
    # Spaced geometrically, seven of the twenty lie under twice the transition, and at 100 x 300 even the true scales
    # show only 18.3 of them.
    least = 18.5 if (shape, spacing) == ((100, 300), "geometric") else 19.0
    assert_near_twenty(found_where_twenty_are_planted(shape, spacing, 40), least)


def test_the_repr_is_a_call_that_can_be_read_back():
    assert repr(Known(np.float64(0.5), np.float64(0.2))) == "Known(sigma=0.5, beta=0.2)"
    assert repr(Bema(np.float32(0.25))) == "Bema(alpha=0.25, beta=0.1)"
    assert repr(Median(np.float64(0.2))) == "Median(beta=0.2)"
    assert repr(Broadening(np.int64(9))) == "Broadening(window=9, refit=True)"
    assert repr(GavishDonoho(np.float32(0.5))) == "GavishDonoho(sigma=0.5)"
    assert repr(ScreeNot(np.int64(9))) == "ScreeNot(rank_bound=9, fill='impute')"
    assert repr(ScreeNot(np.float64(0.125))) == "ScreeNot(rank_bound=0.125, fill='impute')"
