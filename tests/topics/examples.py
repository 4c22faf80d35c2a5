"""An example of every event, made by the code that publishes it from acts that hold personal values wherever an act can.

`SECRETS` are those values; none of them may be in an event.
"""

from collections.abc import Mapping, Sequence
from datetime import UTC, date, datetime
from zoneinfo import ZoneInfo

from kit.ids import uuid7
from kit.outbox import Event
from member.members.events import member_changed, member_signed_up
from member.members.rules import MemberFile, changed_fields
from member.points.rules import Cause, Wallet
from member.programmes.rules import EarnRule, Expiry, ProgrammeBook, ProgrammeVersion, SpendRule
from member.sales.rules import (
    Discount,
    NewLine,
    NewReturn,
    NewReversal,
    NewSale,
    Store,
    Tender,
    decide_return,
    decide_reversal,
    decide_sale,
)
from member.wallet.events import points_moved, return_recorded, sale_recorded, sale_reversed

NOW = datetime(2026, 11, 21, 10, 3, 12, 345678, tzinfo=UTC)
SECRETS = (
    "王小明",
    "+8613800138000",
    "VIP-77",
    "1987-03-02",
    "female",
    "for 王小明",
    "IMEI-35-209900",
    "card 6222",
    "receipt 王",
    "Ring for 王",
)
STORE = Store(uuid7(), "S001", ZoneInfo("Asia/Shanghai"), "CNY", "demo", 0, True)
PROGRAMME = ProgrammeVersion(
    programme_id="demo",
    version=1,
    effective_from=date(2020, 1, 1),
    name="Demo",
    zone=ZoneInfo("Asia/Shanghai"),
    currency="CNY",
    earn=EarnRule(1, 100),
    spend=SpendRule(1, 1),
    expiry=Expiry(years=1),
    pending_days=0,
    restore_grace_days=30,
    shortfall="debt",
    refund_tender_order=("cash",),
)


def examples() -> Mapping[str, Sequence[Event]]:
    """Examples by the full name of the message."""
    name, phone, card, birthday, gender, reason, serial, reference, receipt_no, description = SECRETS
    member_id, sale_id = uuid7(), uuid7()
    file = MemberFile(date(2026, 11, 21), name, phone, True, card, birthday, gender, "上海", "CN")
    moved = MemberFile(date(2026, 11, 21), name, None, False, None, None, None, None, None)

    wallet = Wallet(member_id, "demo")
    wallet.earn(500, available_at=NOW, expires_at=None, source_kind="adjustment", cause=Cause(NOW, uuid7(), None, reason))
    line = NewLine(1, "A100", description, "audio", "2", "10.00", 2000, (Discount(100, reason),), (serial, serial))
    sale = decide_sale(
        NewSale(
            "op",
            STORE,
            uuid7(),
            receipt_no,
            NOW,
            480,
            "CNY",
            member_id,
            "web",
            "E042",
            (line,),
            (),
            300,
            (Tender("cash", 1600, reference),),
        ),
        wallet,
        PROGRAMME,
        Cause(NOW, sale_id, sale_id),
    )
    after_sale = points_moved(wallet, ProgrammeBook(1, {"demo": (PROGRAMME,)}), NOW, "")
    reversal = decide_reversal(
        NewReversal("op-2", STORE, uuid7(), NOW, 480, reason, ((1, "1"),)),
        sale,
        [],
        wallet,
        PROGRAMME,
        Cause(NOW, uuid7(), sale_id, reason),
    )
    returned = (1, "A100", description, "audio", "0.500", "10.00", 500)
    unlinked = [
        decide_return(NewReturn("op-3", STORE, uuid7(), receipt_no, NOW, 480, "CNY", whose, reason, (returned,)), uuid7(), NOW)
        for whose in (member_id, "")
    ]
    made = [
        member_signed_up(member_id, "demo", file, NOW, ""),
        member_changed(member_id, "demo", changed_fields(file, moved), moved, NOW, ""),
        sale_recorded(sale, ""),
        sale_reversed(reversal, sale, ""),
        *(return_recorded(each, "") for each in unlinked),
        after_sale,
    ]
    found: dict[str, list[Event]] = {}
    for event in made:
        found.setdefault(event.type, []).append(event)
    return found
