"""The mailings of Complete Journey: what a row knows, and that it knows nothing of the future."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from dovetail.data.check import check
from dovetail.data.source import Source, materialise, run_query
from dovetail.errors import SettingError
from dovetail.schema import Category, Number
from dovetail.simulation import complete_journey

CUT = "TIMESTAMP '2017-08-08'"  # first day of campaign 13


@pytest.fixture(scope="module")
def some_households(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """All tables, with every twentieth household."""
    folder = tmp_path_factory.mktemp("some")
    tables = complete_journey.tables()
    for name in ("transactions", "campaigns", "coupon_redemptions", "demographics"):
        path = folder / f"{name}.parquet"
        query = f"FROM {name} WHERE household_id % 20 = 1"
        materialise(query, {name: tables[name]}, path)
        tables[name] = path
    return tables


@pytest.fixture(scope="module")
def mailings(some_households: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("built") / "mailings.parquet"
    complete_journey.build(path, some_households)
    return path


@pytest.fixture(scope="module")
def all_mailings(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("whole") / "mailings.parquet"
    complete_journey.build(path)
    return path


def test_one_row_per_mailing_that_fits_the_schema(all_mailings: Path) -> None:
    schema = complete_journey.schema()
    counted = "SELECT count(*), count(DISTINCT household_id), sum(redeemed) FROM mailings"
    assert run_query(counted, {"mailings": all_mailings}) == [(6589, 1559, 792)]
    crowd = "SELECT max(n) FROM (SELECT count(*) AS n FROM mailings GROUP BY household_id)"
    assert run_query(crowd, {"mailings": all_mailings}) == [(schema.max_rows_per_customer,)]
    assert check(Source.files(all_mailings), schema).errors == ()


def test_partners_share_out_all_households_unequally(all_mailings: Path) -> None:
    query = f"""
        SELECT {complete_journey.PARTNER_COLUMN}, count(DISTINCT household_id), avg(redeemed)
        FROM mailings GROUP BY 1
    """
    found = {row[0]: row[1:] for row in run_query(query, {"mailings": all_mailings})}
    sizes = [found[group][0] for (group,) in complete_journey.PARTNERS.values()]
    assert len(found) == 3
    assert sizes == [817, 455, 287]
    assert found["neighbourhood"][1] < 0.7 * found["supermarket"][1]


def test_features_are_columns_and_not_the_partner() -> None:
    schema = complete_journey.schema()
    assert 30 <= len(schema.columns) <= 45
    assert schema.select(complete_journey.features()).columns
    assert complete_journey.PARTNER_COLUMN not in {column.name for column in schema.columns}


def test_bounds_leave_most_rows_unclamped(all_mailings: Path) -> None:
    numbers = [c for c in complete_journey.schema().columns if isinstance(c, Number)]
    inside = ", ".join(f"avg(({c.name} <= {c.high})::INT)" for c in numbers)
    (shares,) = run_query(f"SELECT {inside} FROM mailings", {"mailings": all_mailings})
    assert all(share > 0.8 for share in shares)


def test_declared_categories_cover_all_values(all_mailings: Path) -> None:
    for column in complete_journey.schema().columns:
        if isinstance(column, Category):
            query = f"SELECT DISTINCT {column.name} FROM mailings WHERE {column.name} IS NOT NULL"
            found = {value for (value,) in run_query(query, {"mailings": all_mailings})}
            assert found <= set(column.values)


def test_the_future_changes_no_feature(
    mailings: Path, some_households: dict[str, Path], tmp_path: Path
) -> None:
    """Purchases and redemptions on or after a campaign's first day leave its rows alone."""
    tables = some_households | _with_more(some_households, tmp_path, CUT)
    rebuilt = tmp_path / "rebuilt.parquet"
    complete_journey.build(rebuilt, tables)
    known = f"campaign_start <= DATE {CUT.removeprefix('TIMESTAMP ')}"
    assert _features(mailings, known) == _features(rebuilt, known)
    assert len(_features(mailings, known)) > 100
    assert _features(mailings, f"NOT {known}") != _features(rebuilt, f"NOT {known}")


def test_the_last_second_before_the_start_counts(
    mailings: Path, some_households: dict[str, Path], tmp_path: Path
) -> None:
    """The same additions one second earlier are seen by the campaign that starts at the cut."""
    tables = some_households | _with_more(some_households, tmp_path, f"{CUT} - INTERVAL 1 SECOND")
    rebuilt = tmp_path / "rebuilt.parquet"
    complete_journey.build(rebuilt, tables)
    before, after = (
        dict(
            run_query(
                "SELECT household_id, baskets_84_days FROM m WHERE campaign_id = 13", {"m": path}
            )
        )
        for path in (mailings, rebuilt)
    )
    assert before.keys() == after.keys()
    assert all(after[household] == before[household] + 1 for household in before)


def _with_more(tables: Mapping[str, Path], folder: Path, moment: str) -> dict[str, Path]:
    """Transactions and redemptions with further ones dated ``moment``, for every household."""
    bought = folder / "transactions.parquet"
    materialise(
        f"""
        FROM transactions UNION ALL BY NAME (
          SELECT * REPLACE (basket_id + 10^14::BIGINT AS basket_id,
            {moment} AS transaction_timestamp,
            sales_value * 7 + 1 AS sales_value, coupon_disc + 1 AS coupon_disc)
          FROM transactions QUALIFY row_number() OVER (PARTITION BY household_id) = 1)
        """,
        {"transactions": tables["transactions"]},
        bought,
    )
    redeemed = folder / "coupon_redemptions.parquet"
    materialise(
        f"""
        FROM coupon_redemptions UNION ALL BY NAME (
          SELECT household_id, 1 AS coupon_upc, 8 AS campaign_id, {moment} AS redemption_date
          FROM campaigns)
        """,
        {name: tables[name] for name in ("coupon_redemptions", "campaigns")},
        redeemed,
    )
    return {"transactions": bought, "coupon_redemptions": redeemed}


def _features(path: Path, where: str) -> list[tuple[Any, ...]]:
    """Features of some rows; not the label, nor the store group, which is no feature."""
    query = f"""
        SELECT * EXCLUDE (redeemed, {complete_journey.PARTNER_COLUMN}) FROM mailings
        WHERE {where} ORDER BY household_id, campaign_id
    """
    return [_rounded(row) for row in run_query(query, {"mailings": path})]


def _rounded(row: tuple[Any, ...]) -> tuple[Any, ...]:
    """Sums of floats depend on the order of the rows in their last digits."""
    return tuple(round(value, 9) if isinstance(value, float) else value for value in row)


@pytest.fixture
def by_hand(tmp_path: Path) -> dict[str, Path]:
    """One household, two campaigns and four baskets that one can count on one's fingers."""
    day = "TIMESTAMP '2017-{}'".format
    content = {
        "campaign_descriptions": (
            "campaign_id, campaign_type, start_date, end_date",
            f"(1, 'Type A', {day('03-01')}, {day('04-01')}), "
            f"(2, 'Type B', {day('06-01')}, {day('07-01')})",
        ),
        "campaigns": ("campaign_id, household_id", "(1, 5), (2, 5)"),
        "coupons": ("coupon_upc, product_id, campaign_id", "(70, 10, 1), (80, 10, 2), (81, 11, 2)"),
        "coupon_redemptions": (
            "household_id, coupon_upc, campaign_id, redemption_date",
            f"(5, 70, 1, {day('03-10')}), (5, 70, 1, {day('03-20')})",
        ),
        "demographics": (
            "household_id, age, income, home_ownership, marital_status, household_size, kids_count",
            "(6, '65+', '250K+', NULL, NULL, '1', '0')",
        ),
        "products": (
            "product_id, manufacturer_id, department, brand, product_category",
            "(10, 1, 'GROCERY', 'National', 'TEA'), (11, 2, 'MEAT', 'Private', 'BEEF'), "
            "(12, 1, 'DRUG GM', 'National', 'SOAP')",
        ),
        "transactions": (
            "household_id, store_id, basket_id, product_id, sales_value, retail_disc, "
            "coupon_disc, coupon_match_disc, transaction_timestamp",
            f"(5, 9, 1, 10, 30, 10, 0, 0, {day('02-01 10:00:00')}), "
            f"(5, 9, 1, 12, 10, 0, 0, 0, {day('02-01 10:00:00')}), "
            f"(5, 9, 2, 11, 40, 0, 4, 1, {day('05-20 09:00:00')}), "
            f"(5, 9, 3, 12, 20, 0, 0, 0, {day('05-31 23:59:59')}), "
            f"(5, 9, 4, 10, 99, 0, 0, 0, {day('06-01 00:00:00')})",
        ),
    }
    paths = {}
    for name, (columns, values) in content.items():
        paths[name] = tmp_path / f"{name}.parquet"
        materialise(f"FROM (VALUES {values}) AS made({columns})", {}, paths[name])
    return paths


def test_features_counted_by_hand(by_hand: dict[str, Path], tmp_path: Path) -> None:
    path = tmp_path / "mailings.parquet"
    complete_journey.build(path, by_hand)
    expected = {
        "days_since_last_basket": (28, 1),
        "baskets_28_days": (1, 2),
        "baskets_84_days": (1, 2),
        "spend_84_days": (40, 60),
        "spend_so_far": (40, 100),
        "spend_per_basket": (40, 33.333),
        "retail_discount_share": (0.2, 0.091),
        "coupon_discount_share": (0, 0.048),
        "coupon_baskets_84_days": (0, 1),
        "coupon_basket_share": (0, 0.333),
        "grocery_share": (0.75, 0.3),
        "meat_share": (0, 0.4),
        "private_brand_share": (0, 0.4),
        "promoted_product_share": (0.75, 0.7),
        "promoted_products_bought": (1, 2),
        "promoted_product_spend_84_days": (30, 40),
        "promoted_manufacturer_share": (1, 1),
        "promoted_category_share": (0.75, 0.7),
        "promoted_brand_share": (1, 0.5),
        "earlier_mailings": (0, 1),
        "earlier_coupons_redeemed": (0, 2),
        "earlier_campaigns_redeemed": (0, 1),
        "days_since_last_redemption": (None, 73),
        "campaign_days": (31, 30),
        "campaign_coupons": (1, 2),
        "age": (None, None),
        "redeemed": (1, 0),
    }
    query = f"SELECT {', '.join(expected)} FROM mailings ORDER BY campaign_id"
    rows = run_query(query, {"mailings": path})
    for name, values in zip(expected, zip(*rows, strict=True), strict=True):
        assert values == pytest.approx(expected[name], abs=5e-4), name


def test_a_missing_table_is_named(tmp_path: Path) -> None:
    tables = complete_journey.tables()
    del tables["coupons"]
    with pytest.raises(SettingError, match="coupons"):
        complete_journey.build(tmp_path / "mailings.parquet", tables)
    assert list(tmp_path.iterdir()) == []
