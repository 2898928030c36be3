-- One row per mailing of a campaign to a household. Every feature reads only what is dated
-- strictly before the campaign's first day (midnight), so that it was known when the mailing went
-- out. `home_store_group` alone looks at the whole year: it says which partner a household
-- belongs to and is not a feature.
with
mailing as (
  select
    campaigns.household_id,
    campaigns.campaign_id,
    campaign_type,
    start_date,
    date_diff('day', start_date, end_date) as campaign_days
  from campaigns
  join campaign_descriptions using (campaign_id)
),

line as (
  select
    household_id, store_id, basket_id, product_id, manufacturer_id, product_category, brand,
    transaction_timestamp as bought_at,
    sales_value as spend,
    retail_disc as retail_discount,
    coupon_disc + coupon_match_disc as coupon_discount,
    department
  from transactions
  left join products using (product_id)
),

basket as (
  select
    household_id, basket_id, bought_at,
    sum(spend) as spend,
    sum(retail_discount) as retail_discount,
    sum(coupon_discount) as coupon_discount,
    sum(spend) filter (department = 'GROCERY') as grocery,
    sum(spend) filter (department in ('DRUG GM', 'COSMETICS')) as drug,
    sum(spend) filter (department in ('FUEL', 'MISCELLANEOUS')) as fuel,
    sum(spend) filter (department = 'PRODUCE') as produce,
    sum(spend) filter (department in ('MEAT', 'MEAT-PCKGD')) as meat,
    sum(spend) filter (department in ('DELI', 'SALAD BAR')) as deli,
    sum(spend) filter (department = 'PASTRY') as pastry,
    sum(spend) filter (department = 'NUTRITION') as nutrition,
    sum(spend) filter (brand = 'Private') as private_brand
  from line
  group by all
),

shopping as (
  select
    household_id,
    campaign_id,
    max(bought_at) as last_bought_at,
    min(bought_at) as first_bought_at,
    count(*) as baskets,
    count(*) filter (bought_at >= start_date - interval 28 day) as baskets_28_days,
    count(*) filter (bought_at >= start_date - interval 84 day) as baskets_84_days,
    sum(spend) as spend,
    sum(spend) filter (bought_at >= start_date - interval 28 day) as spend_28_days,
    sum(spend) filter (bought_at >= start_date - interval 84 day) as spend_84_days,
    sum(retail_discount) as retail_discount,
    sum(coupon_discount) as coupon_discount,
    count(*) filter (coupon_discount > 0 and bought_at >= start_date - interval 84 day)
      as coupon_baskets_84_days,
    count(*) filter (coupon_discount > 0) as coupon_baskets,
    sum(grocery) as grocery,
    sum(drug) as drug,
    sum(fuel) as fuel,
    sum(produce) as produce,
    sum(meat) as meat,
    sum(deli) as deli,
    sum(pastry) as pastry,
    sum(nutrition) as nutrition,
    coalesce(sum(private_brand), 0) as private_brand
  from mailing
  join basket using (household_id)
  where bought_at < start_date
  group by all
),

promoted_product as (select distinct campaign_id, product_id from coupons),
promoted_manufacturer as (
  select distinct campaign_id, manufacturer_id
  from promoted_product
  join products using (product_id)
),
promoted_category as (
  select distinct campaign_id, product_category
  from promoted_product
  join products using (product_id)
),
offer as (
  select
    campaign_id,
    count(distinct coupon_upc) as coupons,
    count(distinct product_id) as products,
    avg((brand = 'Private')::int) as private_share
  from coupons
  join products using (product_id)
  group by campaign_id
),

promoted_shopping as (
  select
    mailing.household_id,
    mailing.campaign_id,
    sum(spend) filter (promoted_product.product_id is not null) as product_spend,
    sum(spend) filter (
      promoted_product.product_id is not null and bought_at >= start_date - interval 84 day
    ) as product_spend_84_days,
    count(distinct line.product_id)
      filter (promoted_product.product_id is not null) as products_bought,
    sum(spend) filter (promoted_manufacturer.manufacturer_id is not null) as manufacturer_spend,
    sum(spend) filter (promoted_category.product_category is not null) as category_spend
  from mailing
  join line using (household_id)
  left join promoted_product using (campaign_id, product_id)
  left join promoted_manufacturer using (campaign_id, manufacturer_id)
  left join promoted_category using (campaign_id, product_category)
  where bought_at < start_date
  group by all
),

earlier_mailing as (
  select
    mailing.household_id,
    mailing.campaign_id,
    count(*) as mailings
  from mailing
  join mailing as earlier using (household_id)
  where earlier.start_date < mailing.start_date
  group by all
),

earlier_redemption as (
  select
    mailing.household_id,
    mailing.campaign_id,
    count(*) as coupons,
    count(distinct redeemed.campaign_id) as campaigns,
    max(redemption_date) as last_redeemed_at
  from mailing
  join coupon_redemptions as redeemed using (household_id)
  where redemption_date < start_date
  group by all
),

redeemed as (select distinct household_id, campaign_id from coupon_redemptions),

store as (
  select
    store_id,
    sum(spend) / count(distinct basket_id) as basket_value,
    coalesce(sum(spend) filter (department in ('FUEL', 'MISCELLANEOUS')), 0) / sum(spend)
      as store_fuel_share
  from line
  group by store_id
),
home_store as (
  select household_id, max_by(store_id, (spend, store_id)) as store_id
  from (select household_id, store_id, sum(spend) as spend from line group by all)
  group by household_id
)

select
  mailing.household_id,
  mailing.campaign_id,
  mailing.start_date::date as campaign_start,
  case
    when store_fuel_share >= 0.15 then 'fuel station'
    when basket_value >= 26 then 'supermarket'
    else 'neighbourhood'
  end as home_store_group,

  date_diff('day', last_bought_at, start_date) as days_since_last_basket,
  coalesce(baskets_28_days, 0) as baskets_28_days,
  coalesce(baskets_84_days, 0) as baskets_84_days,
  coalesce(7.0 * baskets / greatest(date_diff('day', first_bought_at, start_date), 28), 0)
    as baskets_per_week,
  coalesce(spend_28_days, 0) as spend_28_days,
  coalesce(spend_84_days, 0) as spend_84_days,
  coalesce(spend, 0) as spend_so_far,
  coalesce(spend / baskets, 0) as spend_per_basket,
  coalesce(retail_discount / nullif(spend + retail_discount, 0), 0) as retail_discount_share,
  coalesce(coupon_discount / nullif(spend + coupon_discount, 0), 0) as coupon_discount_share,
  coalesce(coupon_baskets_84_days, 0) as coupon_baskets_84_days,
  coalesce(coupon_baskets / baskets, 0) as coupon_basket_share,
  coalesce(grocery / nullif(spend, 0), 0) as grocery_share,
  coalesce(drug / nullif(spend, 0), 0) as drug_share,
  coalesce(fuel / nullif(spend, 0), 0) as fuel_share,
  coalesce(produce / nullif(spend, 0), 0) as produce_share,
  coalesce(meat / nullif(spend, 0), 0) as meat_share,
  coalesce(deli / nullif(spend, 0), 0) as deli_share,
  coalesce(pastry / nullif(spend, 0), 0) as pastry_share,
  coalesce(nutrition / nullif(spend, 0), 0) as nutrition_share,
  coalesce(private_brand / nullif(spend, 0), 0) as private_brand_share,

  coalesce(product_spend / nullif(spend, 0), 0) as promoted_product_share,
  coalesce(products_bought, 0) as promoted_products_bought,
  coalesce(product_spend_84_days, 0) as promoted_product_spend_84_days,
  coalesce(manufacturer_spend / nullif(spend, 0), 0) as promoted_manufacturer_share,
  coalesce(category_spend / nullif(spend, 0), 0) as promoted_category_share,
  coalesce(
    (private_brand * private_share + (spend - private_brand) * (1 - private_share))
      / nullif(spend, 0), 0
  ) as promoted_brand_share,

  coalesce(earlier_mailing.mailings, 0) as earlier_mailings,
  coalesce(earlier_redemption.coupons, 0) as earlier_coupons_redeemed,
  coalesce(earlier_redemption.campaigns, 0) as earlier_campaigns_redeemed,
  date_diff('day', last_redeemed_at, start_date) as days_since_last_redemption,

  campaign_type,
  campaign_days,
  offer.coupons as campaign_coupons,
  offer.products as campaign_products,

  age,
  income,
  home_ownership,
  marital_status,
  household_size,
  kids_count,

  (redeemed.household_id is not null)::int as redeemed
from mailing
join offer using (campaign_id)
join home_store using (household_id)
join store using (store_id)
left join shopping using (household_id, campaign_id)
left join promoted_shopping using (household_id, campaign_id)
left join earlier_mailing using (household_id, campaign_id)
left join earlier_redemption using (household_id, campaign_id)
left join demographics using (household_id)
left join redeemed using (household_id, campaign_id)
order by household_id, campaign_start, campaign_id
