"""What is not there is rarely found, and what counts is found: by simulation, for every kind of rule."""

import pytest

from jaxrnn.claims.claim import SEEDS
from jaxrnn.claims.power import KINDS, POWER_HEADER, power_rows, shares
from jaxrnn.claims.statistics import LEVEL

N = 1_000


@pytest.mark.parametrize("kind", KINDS)
def test_no_effect_is_seldom_decided(kind):
    found = shares(KINDS[kind], SEEDS["quick"], 0.0, experiments=N)
    error = (LEVEL * (1 - LEVEL) / N) ** 0.5  # of the simulated share itself
    assert found.confirmed + found.refuted <= LEVEL + 3 * error


@pytest.mark.parametrize("kind", KINDS)
def test_after_the_correction_for_thirty_claims_no_effect_is_hardly_ever_confirmed(kind):
    assert shares(KINDS[kind], 10, 0.0, family=30, experiments=200).corrected <= 0.01


@pytest.mark.parametrize("kind", KINDS)
def test_twice_the_smallest_effect_is_confirmed_more_often_than_the_smallest(kind):
    found = [shares(KINDS[kind], 10, effect, experiments=60) for effect in (0.0, 1.0, 2.0)]
    confirmed = [share.confirmed for share in found]
    assert confirmed == sorted(confirmed)
    assert confirmed[2] > 2 * LEVEL
    assert found[2].refuted <= LEVEL / 2


def test_the_table_has_a_row_for_every_kind_and_effect():
    rows = power_rows(experiments=5)
    assert len(rows) == 3 * len(KINDS)
    assert {len(row) for row in rows} == {len(POWER_HEADER)}
