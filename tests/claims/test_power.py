"""What is not there is rarely found, and what counts is found: by simulation, for every kind of rule."""

import pytest

from jaxrnn.claims.claim import SEEDS
from jaxrnn.claims.power import KINDS, POWER_HEADER, power_rows, shares
from jaxrnn.claims.statistics import LEVEL

N = 1_000


@pytest.mark.parametrize("kind", KINDS)
def test_no_effect_is_seldom_decided(kind):
    confirmed, refuted = shares(KINDS[kind], SEEDS["quick"], 0.0, experiments=N)
    assert (
        confirmed + refuted <= LEVEL + 3 * (LEVEL * (1 - LEVEL) / N) ** 0.5
    )  # its own three errors


@pytest.mark.parametrize("kind", KINDS)
def test_after_the_correction_for_thirty_claims_no_effect_is_never_decided(kind):
    confirmed, refuted = shares(KINDS[kind], 10, 0.0, level=LEVEL / 30, experiments=200)
    assert confirmed + refuted <= 0.01


@pytest.mark.parametrize("kind", KINDS)
def test_twice_the_smallest_effect_is_confirmed_more_often_than_the_smallest(kind):
    powers = [shares(KINDS[kind], 10, effect, experiments=60) for effect in (0.0, 1.0, 2.0)]
    confirmed = [share for share, _ in powers]
    assert confirmed == sorted(confirmed)
    assert confirmed[2] > 2 * LEVEL
    assert powers[2][1] <= LEVEL / 2  # and next to never refuted


def test_the_table_has_a_row_for_every_kind_and_effect():
    rows = power_rows(experiments=10)
    assert len(rows) == 3 * len(KINDS)
    assert {len(row) for row in rows} == {len(POWER_HEADER)}
