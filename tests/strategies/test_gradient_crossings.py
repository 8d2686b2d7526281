"""Features that cross a neural connection are paid for in channel uses, and not in bytes."""

import math
from typing import Any

import pytest

from fl_app.features_wire import FEATURES, GRADIENT, STATES, UPDATE
from fl_app.payload import Payload
from tests import fakes
from tests.crossing_fixtures import NUM_PROMPT, ONCE, USES, tensors_of, through
from tests.federation_fixtures import Player, player, tiny_federation
from tests.gradient_fixtures import VARIANTS, lying, on, play

__all__ = ["player", "tiny_federation"]

LABELS = ["private", "server"]


@pytest.mark.parametrize("labels", LABELS)
@pytest.mark.parametrize("variant", VARIANTS)
def test_what_crossed_is_booked_in_uses_and_not_in_bytes(
    player: Player, variant: str, labels: str
) -> None:
    words = through(variant, f"strategy.labels={labels}", "connection.bandwidth_hz=2e6")
    played = play(
        player, *words, "connection.tx_power_dbm=20", "connection.gradient_tx_power_dbm=30"
    )
    ledger, steps = played.outcome.ledger, played.grid.steps
    account: Any = ledger.as_dict()
    up = [p for e in steps for p in e.up if p.kind == FEATURES]
    real = sum(int(p.arrays["mask0"].sum()) for p in up)
    prompts = NUM_PROMPT * len(up) if variant == "prompt" else 0
    forward = USES * (real + prompts)
    backward = USES * {"prompt": prompts, "cut": real, "lora": 0}[variant]
    assert account["connection_uses"] == forward + backward
    seconds = (forward + backward) / 2e6
    assert account["connection_seconds"] == pytest.approx(seconds, rel=1e-12)
    assert account["connection_joules"] == pytest.approx(0.1 * forward / 2e6, rel=1e-12)
    assert account["connection_server_joules"] == pytest.approx(backward / 2e6, rel=1e-12)
    # mean, scale and a scale a use of every tensor; no mean on the way back; eight bytes each
    num_up = len(up) * (2 if variant == "prompt" else 1)
    num_down = 0 if variant == "lora" else len(up)
    side_up, side_down = 8 * num_up * (2 + USES), 8 * num_down * USES
    assert ledger.total_bytes(what="features") == 0
    air = sum(sum(x.nbytes for x in tensors_of(p).values()) for p in up)
    answers = sum(len(blob) for e in steps for blob in e.received)
    assert ledger.total_bytes(link="uplink") == answers - air + side_up
    gradients = [e for e in steps if e.place.kind == GRADIENT]
    down_air = sum(sum(x.nbytes for x in tensors_of(e.down).values()) for e in gradients)
    assert (down_air > 0) == (variant != "lora")
    fronts = sum(size for _, size in played.grid.fronts)
    sent = sum(len(e.sent) for e in steps)
    assert ledger.total_bytes(link="downlink") == sent + fronts - down_air + side_down
    whole = sum(len(e.sent) for e in gradients)
    assert ledger.total_bytes(what="gradient") == (whole if variant == "lora" else 0)
    for kind, what in ((STATES, "states"), ("begin", "adapter")):  # digital as ever
        booked = ledger.total_bytes(what=what, link="downlink")  # type: ignore[arg-type]
        assert booked == sum(len(e.sent) for e in steps if e.place.kind == kind)


def test_a_device_lost_on_the_way_has_paid_for_its_features(player: Player) -> None:
    """Device 1 vanishes before its second step: its first features are booked, and no more."""
    words = through("cut", "strategy.num_rounds=1", "strategy.exchange_timeout_s=0.3")
    lost = play(player, *words, spoil=on("gradient", fakes.vanishes))
    assert lost.dropped(1) == {"silent": [1]}
    features = [
        p for e in lost.grid.steps for p in e.up if p.kind == FEATURES and e.place.device == 1
    ]
    assert len(features) == 1
    real = sum(
        int(p.arrays["mask0"].sum()) for e in lost.grid.steps for p in e.up if p.kind == FEATURES
    )
    alone = int(features[0].arrays["mask0"].sum())
    # everybody's features come back as gradients, but for the lost one's
    assert lost.outcome.ledger.as_dict()["connection_uses"] == USES * (2 * real - alone)


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"forward_uses": -1}, "bad-count"),
        ({"forward_uses": 10**400}, "bad-count"),
        ({"backward_error": math.nan}, "bad-count"),
        ({"forward_energy": math.inf}, "bad-count"),
        ({"backward_bytes": 1.5}, "missing"),
        ({"forward_uses": None}, "missing"),
    ],
)
def test_who_miscounts_is_dropped(player: Player, changed: dict[str, Any], reason: str) -> None:
    def lie(payload: Payload) -> Payload:
        scalars = {k: v for k, v in {**payload.scalars, **changed}.items() if v is not None}
        return Payload(payload.kind, payload.step, scalars, payload.arrays)

    played = play(player, *through("prompt", *ONCE), spoil=on("begin", lying(lie)))
    assert played.dropped(1) == {reason: [1]}
    assert played.devices(1) == [0, 2, 3]
    assert set(played.metrics(1)) >= {"connection_feature_nmse", "connection_gradient_nmse"}


def test_updates_stay_digital(player: Player) -> None:
    played = play(player, *through("lora", *ONCE))
    sizes = [len(e.received[0]) for e in played.grid.steps if e.up[0].kind == UPDATE]
    assert played.outcome.ledger.total_bytes(what="update") == sum(sizes) > 0
