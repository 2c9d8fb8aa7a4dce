"""The table of checks as a whole."""

from lorascope.doctor.table import CHECKS, OWN_BASE, checks_for


def test_there_are_enough_checks_and_each_has_a_name_of_its_own_a_claim_and_a_fix():
    rows = (*CHECKS, *OWN_BASE)
    assert len(CHECKS) >= 12
    assert len({row.name for row in rows}) == len({row.function for row in rows}) == len(rows)
    assert all(row.claim and row.fix and row.function.__doc__ for row in rows)


def test_the_users_base_is_tried_only_where_there_is_one():
    assert checks_for(None) == CHECKS
    assert checks_for("model") == (*CHECKS, *OWN_BASE)
