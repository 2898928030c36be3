import pytest

from dovetail.errors import PrivacyError
from dovetail.privacy.unit import PrivacyUnit


def test_words_name_the_unit_the_bound_and_the_relation() -> None:
    words = PrivacyUnit("household", 15).describe()
    assert "household" in words
    assert "15 rows" in words
    assert "adding or removing one household with all of its rows, at one partner" in words


def test_one_row_is_singular() -> None:
    assert "at most 1 row;" in PrivacyUnit("visitor", 1).describe()


@pytest.mark.parametrize(("name", "rows"), [("", 1), ("  ", 1), ("x", 0), ("x", -1), ("x", True)])
def test_units_without_name_or_bound_are_refused(name: str, rows: int) -> None:
    with pytest.raises(PrivacyError):
        PrivacyUnit(name, rows)
