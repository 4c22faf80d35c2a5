-- The facts, one row for each, as the owning service recorded it. A fact that comes again replaces itself: the sorting key is its
-- identity (and what never changes of it), `version` the microsecond in which it was recorded. Reads say FINAL.
--
-- Ids that are not there are all zeros (a guest's member_id). Money is in minor units of the row's currency. Days are business days
-- of the store, or days of the programme. What reports group by stands in every row, so that none needs a large join.
--
-- An insert is on disk before it is acknowledged, since what was read from the bus is forgotten after it. Parts of a month that no
-- longer changes are merged into one, which makes FINAL free there.

CREATE TABLE IF NOT EXISTS sales
(
    business_day Date32,
    store_id UUID,
    sale_id UUID,
    till_id UUID,
    member_id UUID,
    programme_id LowCardinality(String),
    currency LowCardinality(String),
    channel LowCardinality(String),
    staff_code LowCardinality(String),
    sold_at DateTime64(6, 'UTC'),
    -- Sum of the lines' quantities.
    items Decimal(18, 6),
    gross_minor Int64,
    discount_minor Int64,
    -- gross − discounts
    net_minor Int64,
    points_spent_minor Int64,
    -- net − points
    payable_minor Int64,
    points_earned Int64,
    points_spent Int64,
    version UInt64
)
ENGINE = ReplacingMergeTree(version)
PARTITION BY toYYYYMM(business_day)
ORDER BY (business_day, store_id, sale_id)
SETTINGS fsync_after_insert = 1, fsync_part_directory = 1, min_age_to_force_merge_seconds = 300, min_age_to_force_merge_on_partition_only = 1;

CREATE TABLE IF NOT EXISTS sale_lines
(
    business_day Date32,
    store_id UUID,
    sale_id UUID,
    line_no UInt32,
    member_id UUID,
    programme_id LowCardinality(String),
    currency LowCardinality(String),
    channel LowCardinality(String),
    staff_code LowCardinality(String),
    sku String,
    category LowCardinality(String),
    quantity Decimal(18, 6),
    gross_minor Int64,
    net_minor Int64,
    payable_minor Int64,
    points_earned Int64,
    version UInt64
)
ENGINE = ReplacingMergeTree(version)
PARTITION BY toYYYYMM(business_day)
ORDER BY (business_day, store_id, sale_id, line_no)
SETTINGS fsync_after_insert = 1, fsync_part_directory = 1, min_age_to_force_merge_seconds = 300, min_age_to_force_merge_on_partition_only = 1;

-- What came back, on the day and in the store that took it back. kind: reversal (of a sale, whose member, channel and staff the row
-- has) or unlinked (of no recorded sale; sale_id is zeros, net_minor is what was refunded).
CREATE TABLE IF NOT EXISTS returns
(
    business_day Date32,
    store_id UUID,
    return_id UUID,
    kind LowCardinality(String),
    sale_id UUID,
    till_id UUID,
    member_id UUID,
    programme_id LowCardinality(String),
    currency LowCardinality(String),
    channel LowCardinality(String),
    staff_code LowCardinality(String),
    returned_at DateTime64(6, 'UTC'),
    items Decimal(18, 6),
    net_minor Int64,
    refund_minor Int64,
    points_taken_back Int64,
    points_returned Int64,
    version UInt64
)
ENGINE = ReplacingMergeTree(version)
PARTITION BY toYYYYMM(business_day)
ORDER BY (business_day, store_id, return_id)
SETTINGS fsync_after_insert = 1, fsync_part_directory = 1, min_age_to_force_merge_seconds = 300, min_age_to_force_merge_on_partition_only = 1;

CREATE TABLE IF NOT EXISTS return_lines
(
    business_day Date32,
    store_id UUID,
    return_id UUID,
    line_no UInt32,
    kind LowCardinality(String),
    sale_id UUID,
    member_id UUID,
    programme_id LowCardinality(String),
    currency LowCardinality(String),
    channel LowCardinality(String),
    staff_code LowCardinality(String),
    sku String,
    category LowCardinality(String),
    quantity Decimal(18, 6),
    net_minor Int64,
    refund_minor Int64,
    points_returned Int64,
    version UInt64
)
ENGINE = ReplacingMergeTree(version)
PARTITION BY toYYYYMM(business_day)
ORDER BY (business_day, store_id, return_id, line_no)
SETTINGS fsync_after_insert = 1, fsync_part_directory = 1, min_age_to_force_merge_seconds = 300, min_age_to_force_merge_on_partition_only = 1;

-- Every entry of every wallet. points, pending, debt and expired are what it added to the wallet's figures; `sequence` numbers a
-- wallet's entries. kind as in points_events.proto, also those that this release does not know.
CREATE TABLE IF NOT EXISTS points_moves
(
    day Date32,
    programme_id LowCardinality(String),
    member_id UUID,
    sequence UInt64,
    kind LowCardinality(String),
    points Int64,
    pending Int64,
    debt Int64,
    expired Int64,
    lot_id UUID,
    sale_id UUID,
    cause_id UUID,
    at DateTime64(6, 'UTC'),
    version UInt64
)
ENGINE = ReplacingMergeTree(version)
PARTITION BY toYYYYMM(day)
ORDER BY (day, programme_id, member_id, sequence)
SETTINGS fsync_after_insert = 1, fsync_part_directory = 1, min_age_to_force_merge_seconds = 300, min_age_to_force_merge_on_partition_only = 1;

-- Nothing here names a person. birth_year_from: first year of a five-year band, 0 when not known.
CREATE TABLE IF NOT EXISTS members
(
    member_id UUID,
    programme_id LowCardinality(String),
    joined_on Date32,
    birth_year_from UInt16,
    city LowCardinality(String),
    tier LowCardinality(String),
    version UInt64
)
ENGINE = ReplacingMergeTree(version)
ORDER BY member_id
SETTINGS fsync_after_insert = 1, fsync_part_directory = 1, min_age_to_force_merge_seconds = 300, min_age_to_force_merge_on_partition_only = 1;

-- The first business day on which a member ever bought: the least of the rows of a member. A day that comes again, or late, changes
-- nothing else. Read with min(first_day) … GROUP BY member_id, without FINAL.
CREATE TABLE IF NOT EXISTS first_purchases
(
    member_id UUID,
    first_day SimpleAggregateFunction(min, Date32)
)
ENGINE = AggregatingMergeTree
ORDER BY member_id
SETTINGS fsync_after_insert = 1, fsync_part_directory = 1, min_age_to_force_merge_seconds = 300, min_age_to_force_merge_on_partition_only = 1;

-- Events of types that this release does not know, whole, until one does.
CREATE TABLE IF NOT EXISTS unknown_events
(
    type LowCardinality(String),
    event_id UUID,
    topic LowCardinality(String),
    key String,
    payload String,
    recorded_at DateTime64(6, 'UTC'),
    version UInt64
)
ENGINE = ReplacingMergeTree(version)
ORDER BY (type, event_id)
SETTINGS fsync_after_insert = 1, fsync_part_directory = 1;

-- Rebuilds of the facts: the row with the largest version says how one stands.
CREATE TABLE IF NOT EXISTS rebuilds
(
    rebuild_id UUID,
    source LowCardinality(String),
    state LowCardinality(String),
    started_by String,
    started_at DateTime64(6, 'UTC'),
    changed_at DateTime64(6, 'UTC'),
    events UInt64,
    -- 0 when not known.
    expected_events UInt64,
    poison UInt64,
    reason LowCardinality(String),
    -- JSON: where each topic was read to when the new facts took their place.
    offsets String,
    version UInt64
)
ENGINE = ReplacingMergeTree(version)
ORDER BY rebuild_id
SETTINGS fsync_after_insert = 1, fsync_part_directory = 1;
