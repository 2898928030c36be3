"""Whose customer is whose, and who is held out."""

from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dovetail.data.source import materialise, run_query
from dovetail.errors import DataError, SettingError
from dovetail.simulation import partition

NAMES = ("retailer", "platform", "brand")
keys = st.lists(st.text(min_size=1, max_size=8), min_size=30, max_size=60, unique=True)


@pytest.fixture
def table(tmp_path: Path) -> Path:
    """200 customers with keys that look like numbers, two rows each; customer 7 has a NULL key."""
    path = tmp_path / "rows.parquet"
    query = """
        SELECT CASE WHEN i <> 7 THEN printf('%04d', i) END AS customer, n AS visit,
          ['a, b', 'it''s', 'of c'][1 + i % 3] AS area, (i % 10 = 0 AND n = 1)::INT AS bought
        FROM range(200) AS customers(i), range(2) AS visits(n)
    """
    materialise(query, {}, path)
    return path


def test_customers_are_found_once_each_as_text(table: Path) -> None:
    found = partition.customers(table, "customer")
    assert len(found) == 199
    assert found[:2] == ("0000", "0001")
    with pytest.raises(DataError):
        partition.customers(table, "client")


def test_by_column_gives_every_value_its_partner(table: Path) -> None:
    assignment = partition.by_column(table, "customer", "area")
    assert Counter(assignment.values()) == {"a, b": 67, "it's": 66, "of c": 66}
    claimed = {"one": ("of c", "it's"), "two": ("a, b",)}
    merged = partition.by_column(table, "customer", "area", claimed)
    assert list(dict.fromkeys(merged.values())) == ["one", "two"]
    assert merged["0001"] == merged["0002"] == "one"
    assert merged["0003"] == "two"


@pytest.mark.parametrize(
    ("claimed", "message"),
    [
        ({"one": ("a, b",)}, "no partner claims"),
        ({"one": ("a, b", "it's"), "two": ("it's", "of c")}, "two partners claim"),
        ({"one": ("a, b", "it's", "of c"), "two": ("d",)}, "'two' would have no customers"),
    ],
)
def test_by_column_refuses_claims_that_do_not_fit(
    table: Path, claimed: dict[str, tuple[str, ...]], message: str
) -> None:
    with pytest.raises(SettingError, match=message):
        partition.by_column(table, "customer", "area", claimed)


def test_by_column_needs_one_value_per_customer(table: Path) -> None:
    with pytest.raises(SettingError, match="several values"):
        partition.by_column(table, "customer", "visit")


@settings(max_examples=30)
@given(keys, st.integers(0, 2**40))
def test_by_size_gives_each_customer_one_partner_whatever_the_order(
    customers: list[str], seed: int
) -> None:
    try:
        assignment = partition.by_size(customers, NAMES, 20.0, seed)
    except SettingError:
        return
    assert set(assignment) == set(customers)
    assert set(assignment.values()) == set(NAMES)
    assert partition.by_size(customers[::-1], NAMES, 20.0, seed) == assignment


def test_by_size_skew_says_how_unequal() -> None:
    customers = [str(i) for i in range(3000)]

    def spread(skew: float) -> float:
        total = 0
        for seed in range(20):
            sizes = Counter(partition.by_size(customers, NAMES, skew, seed).values())
            total += max(sizes.values()) - min(sizes.values())
        return total / 20

    assert spread(100.0) < 500 < 1000 < spread(2.0)


def test_by_label_makes_partners_differ_in_their_share_of_positives(table: Path) -> None:
    positive = {str(i): i % 5 == 0 for i in range(3000)}

    def difference(skew: float) -> float:
        assignment = partition.by_label(positive, NAMES, skew, 3)
        assert assignment.keys() == positive.keys()
        sizes = Counter(assignment.values())
        ones = Counter(assignment[k] for k, is_one in positive.items() if is_one)
        shares = [ones[name] / sizes[name] for name in NAMES]
        return max(shares) - min(shares)

    assert difference(1000.0) < 0.05 < 0.15 < difference(1.0)
    assert sum(partition.positives(table, "customer", "bought").values()) == 20


@pytest.mark.parametrize("skew", [0.0, -1.0, float("nan"), float("inf")])
def test_skew_must_be_positive(skew: float) -> None:
    with pytest.raises(SettingError, match="skew"):
        partition.by_size(["1", "2", "3"], NAMES, skew, 0)


def test_a_partner_without_customers_is_refused() -> None:
    with pytest.raises(SettingError, match="would have no customers"):
        partition.by_size(["1", "2"], NAMES, 1.0, 0)
    with pytest.raises(SettingError, match="would have no customers"):
        partition.by_label({str(i): False for i in range(100)}, NAMES, 0.001, 0)


def test_held_out_is_about_the_share_and_depends_on_key_and_seed_only() -> None:
    customers = [str(i) for i in range(10_000)]
    chosen = partition.held_out(customers, 0.2, seed=0)
    assert 1800 < len(chosen) < 2200
    assert partition.held_out(customers[5000:][::-1], 0.2, 0) == chosen & set(customers[5000:])
    assert chosen < partition.held_out(customers, 0.3, 0)
    assert 300 < len(chosen & partition.held_out(customers, 0.2, seed=1)) < 500


def test_holding_out_and_dealing_by_one_seed_are_independent() -> None:
    """Else all held-out customers would belong to the first partner."""
    customers = [str(i) for i in range(3000)]
    assignment = partition.by_size(customers, NAMES, 100.0, seed=0)
    chosen = partition.held_out(customers, 0.2, seed=0)
    tested = Counter(assignment[customer] for customer in chosen)
    sizes = Counter(assignment.values())
    assert all(0.15 < tested[name] / sizes[name] < 0.25 for name in NAMES)


@pytest.mark.parametrize("share", [0.0, 1.0, -0.1, float("nan")])
def test_share_held_out_lies_between_nobody_and_everybody(share: float) -> None:
    with pytest.raises(SettingError, match="share"):
        partition.held_out(["1"], share, 0)


def test_written_files_hold_every_row_once(table: Path, tmp_path: Path) -> None:
    assignment = partition.by_column(table, "customer", "area")
    test = partition.held_out(assignment, 0.2, 0)
    folder = tmp_path / "partners"
    folder.mkdir()
    files = partition.write(table, "customer", assignment, test, folder)
    assert list(files) == ["a, b", "it's", "of c"]
    seen: Counter[str] = Counter()
    for name, written in files.items():
        for path, is_test in ((written.train, False), (written.test, True)):
            rows = run_query("SELECT customer, area FROM rows", {"rows": path})
            owners = {customer for customer, _ in rows}
            assert {area for _, area in rows} == {name}
            assert all((customer in test) is is_test for customer in owners)
            assert len(owners) == (written.test_customers if is_test else written.train_customers)
            seen.update(customer for customer, _ in rows)
    assert seen == dict.fromkeys(assignment, 2)
    assert len(list(folder.iterdir())) == 6


@pytest.mark.parametrize(("test", "missing"), [((), "to test on"), (("1", "2"), "to train")])
def test_a_partner_needs_customers_on_both_sides(
    tmp_path: Path, test: tuple[str, ...], missing: str
) -> None:
    path = tmp_path / "rows.parquet"
    materialise("SELECT * FROM (VALUES ('1'), ('2')) AS t(customer)", {}, path)
    with pytest.raises(SettingError, match=missing):
        partition.write(path, "customer", {"1": "a", "2": "a"}, test, tmp_path)
    assert list(tmp_path.iterdir()) == [path]


def test_by_column_names_the_column_that_was_meant(table: Path) -> None:
    with pytest.raises(SettingError, match="no column 'aera' in the data; did you mean 'area'"):
        partition.by_column(table, "customer", "aera")
    with pytest.raises(SettingError, match="'customer' is the key"):
        partition.by_column(table, "customer", "customer")


def test_by_column_takes_no_column_of_many_values_for_partners(tmp_path: Path) -> None:
    path = tmp_path / "many.parquet"
    query = "SELECT range AS customer, 'canary' || range AS shop FROM range(101)"
    materialise(query, {}, path)
    with pytest.raises(SettingError, match="more than 100 values") as caught:
        partition.by_column(path, "customer", "shop")
    assert "canary" not in str(caught.value)


def test_by_label_reads_truth_values_of_a_csv(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("who,bought\n007,true\n7,false\n8,1\n8,0\n")
    assert partition.positives(path, "who", "bought") == {"007": True, "7": False, "8": True}
