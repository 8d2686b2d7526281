"""Updates over a fading channel, as the federation sees it: one mean, its error and its price."""

import itertools
import math
from typing import Any

import numpy as np
import pytest

from fl_app import wire
from fl_app.errors import ConfigError
from fl_app.job import adapter_sha256
from fl_app.updates import Update, travels
from strategies.build_uplink import build_uplink
from tests import fakes
from tests.federation_fixtures import NUM_DEVICES, NUM_ROUNDS, Played, Player
from tests.radio_rounds import SIZES, config_of, mean_of, receive, round_of

SKEW = "data.partition.kind=quantity"
AIR = "channel=aircomp"


@pytest.mark.parametrize("scheme", ["zf", "optimal"])
@pytest.mark.parametrize("words", [(), ("channel.num_antennas=4",), ("channel.fading=rician",)])
def test_without_noise_the_mean_arrives(scheme: str, words: tuple[str, ...]) -> None:
    """To float32's rounding: of each device's symbols, their sum, the mean and the result."""
    sent = round_of()
    received = receive(sent, AIR, f"channel.scheme={scheme}", "channel.tx_snr_db=inf", *words)
    assert received.rows.shape == (1, sum(SIZES))
    assert received.is_heard.all()
    num_devices = len(sent.updates)
    bound = (num_devices + 3) * np.finfo(np.float32).eps / 2 * np.abs(sent.updates).max()
    assert np.abs(received.rows[0] - mean_of(sent)).max() <= bound


@pytest.mark.parametrize("tx_snr_db", [20, 10, 0])
def test_the_error_is_the_predicted_one(tx_snr_db: int) -> None:
    """Within five of the standard errors that the report itself states for this noise."""
    sent = round_of()
    report = receive(sent, AIR, f"channel.tx_snr_db={tx_snr_db}").report
    off = abs(report["nmse"] - report["nmse_predicted"])
    assert off <= 5 * report["nmse_deviation"]
    # and the report tells the truth about what was received
    rows = receive(sent, AIR, f"channel.tx_snr_db={tx_snr_db}").rows
    truth = mean_of(sent)
    nmse = np.sum((rows[0] - truth) ** 2) / np.sum(truth**2)
    # float32 rounds the mean, and with it the error, which is smaller by the root of the NMSE
    rounding = 4 * float(np.finfo(np.float32).eps) / math.sqrt(nmse)
    assert report["nmse"] == pytest.approx(nmse, rel=rounding)


def test_a_round_costs_half_a_use_per_real_however_many_devices() -> None:
    """Each tensor is padded to whole uses; every device sends its mean and deviation as bytes."""
    for num_devices in (1, 5, 12):
        airtime = receive(round_of(num_devices), AIR).airtime
        assert airtime is not None
        # the tensor of one entry is a constant: its mean says it all, and it spends no symbol
        symbols = sum(-(-size // 2) for size in SIZES if size > 1)
        assert airtime.channel_uses - airtime.control_uses == symbols
        # two float32 numbers of every tensor
        assert airtime.control_bytes.tolist() == [8 * len(SIZES)] * num_devices
        # and, for zero forcing, a factor of every tensor that sends and every subcarrier
        assert airtime.announced_bytes == 4 * 3 * 64
        assert airtime.payload_bytes.tolist() == [0] * num_devices
        limit = 10 ** (23 / 10) / 1000 * airtime.seconds
        assert (airtime.joules <= limit * (1 + 1e-9)).all()


@pytest.mark.parametrize("power", ["whole", "density"])
@pytest.mark.parametrize("scheme", ["zf", "optimal", "cotaf", "obda"])
def test_side_information_takes_uses_seconds_and_joules(scheme: str, power: str) -> None:
    """At the Shannon rate of an equal share, device by device; the symbols come on top."""
    sent, words = round_of(), (AIR, f"channel.scheme={scheme}", f"channel.power={power}")
    radio: Any = build_uplink(config_of(*words).channel, 0)
    state = radio._radio.state(sent.round, sent.devices, sent.weights)
    airtime = receive(sent, *words).airtime
    assert airtime is not None
    numbers = {"zf": 2, "optimal": 2, "cotaf": 1, "obda": 1}[scheme] * len(SIZES)
    watts, factor = 10 ** (-0.7), 5.0 if power == "whole" else 1.0
    uses, seconds, joules = 0, [], []
    for gains in np.abs(state.gains) ** 2:
        rate = np.mean([math.log2(1.0 + 100.0 * factor * g) for g in gains])
        uses += math.ceil(32 * numbers / rate)
        seconds.append(32 * numbers / rate / (1e6 / 5))
        joules.append(watts * factor / 5 * seconds[-1])
    assert airtime.control_uses == uses
    symbols = airtime.channel_uses - uses
    assert airtime.seconds == pytest.approx(symbols / 1e6 + max(seconds))
    spent = airtime.joules - joules  # by the symbols; within the limit, in one round not exactly
    assert (spent > 0.0).all()
    assert (spent <= 3.0 * watts * symbols / 1e6).all()


def test_a_device_that_keeps_silent_sends_no_side_information() -> None:
    deaf = ("channel.scheme=truncated", "channel.num_subcarriers=1", "channel.gain_floor=1.0")
    received = receive(round_of(12, sizes=[8, 5]), AIR, *deaf)
    airtime = received.airtime
    assert airtime is not None
    assert 0 < received.is_heard.sum() < 12
    assert ((airtime.control_bytes > 0) == received.is_heard).all()
    assert ((airtime.joules > 0) == received.is_heard).all()


def test_a_devices_channel_does_not_depend_on_the_others() -> None:
    """Fading and placement go by the partition index, not by the place in the round."""
    config = config_of(AIR, "channel.placement=cell", "channel.csi_error=0.1")
    radio: Any = build_uplink(config.channel, 0)
    few = radio._radio.state(4, [3, 9], np.ones(2))
    many = radio._radio.state(4, [0, 3, 5, 9, 11], np.ones(5))
    assert np.array_equal(few.gains, many.gains[[1, 3]])
    assert np.array_equal(few.known_gains, many.known_gains[[1, 3]])
    assert not np.array_equal(few.gains, radio._radio.state(5, [3, 9], np.ones(2)).gains)
    assert len(set(many.mean_gains)) == 5


def test_a_cell_sets_the_snr_by_itself() -> None:
    """Thermal noise over 1 MHz with a noise figure of 5 dB: -174 + 60 + 5 = -109 dBm."""
    uplink: Any = build_uplink(config_of(AIR, "channel.placement=cell").channel, 0)
    assert uplink._radio.noise_power == pytest.approx(10 ** (-10.9) / 1000)
    assert uplink._radio.power == pytest.approx(10**2.3 / 1000)
    equal: Any = build_uplink(config_of(AIR, "channel.tx_snr_db=7").channel, 0)
    assert equal._radio.power / equal._radio.noise_power == pytest.approx(10**0.7)


def test_silent_devices_are_named_and_an_empty_air_gives_no_row() -> None:
    deaf = ("channel.scheme=truncated", "channel.num_subcarriers=1", "channel.gain_floor=1.5")
    # no tensor of one entry here: that one is heard digitally, whatever the channel
    heard = [receive(round_of(round=r, sizes=[8, 5]), AIR, *deaf) for r in range(60)]
    counts = [int(received.is_heard.sum()) for received in heard]
    assert 0 in counts
    assert any(0 < count < 5 for count in counts)
    for received, count in zip(heard, counts, strict=True):
        assert len(received.rows) == len(received.weights) == (count > 0)
        assert np.isfinite(received.rows).all()


@pytest.mark.parametrize("step", [None, 0.25])
def test_votes_have_the_sign_of_the_majority_and_a_size(step: float | None) -> None:
    """Without noise, and with nobody below the floor, the sum of signs decides."""
    words = ["channel.scheme=obda", "channel.tx_snr_db=inf", "channel.fading=awgn"]
    words += [] if step is None else [f"channel.vote_step={step}"]
    sent = round_of()
    received = receive(sent, AIR, *words)
    votes = np.sign(np.sign(sent.updates).sum(axis=0))
    shares = sent.weights / sent.weights.sum()
    ends = np.cumsum([0, *SIZES])
    sizes = [
        shares @ np.abs(sent.updates[:, a:b]).mean(axis=1) if step is None else step
        for a, b in itertools.pairwise(ends)
    ]
    wanted = votes * np.repeat(sizes, SIZES)
    assert received.rows[0] == pytest.approx(wanted, rel=1e-6)
    assert received.airtime is not None
    assert set(received.airtime.control_bytes) == {4 * len(SIZES) if step is None else 0}
    assert (received.airtime.control_uses > 0) == (step is None)


# --- through the federation --------------------------------------------------------------------


def _far(left: Update, right: Update, start: Update) -> float:
    """Largest difference of two adapters over the largest movement."""
    moved = max(float(np.abs(left[n] - start[n]).max()) for n in left)
    return max(float(np.abs(left[n] - right[n]).max()) for n in left) / moved


def test_a_noise_free_federation_is_the_digital_one(player: Player) -> None:
    """One round to 1e-6 of the movement: rounding has had no time to grow."""
    digital = player.play(SKEW, "strategy.num_rounds=1", warm=True)
    words = (AIR, "channel.tx_snr_db=inf", "strategy.num_rounds=1")
    air = player.play(SKEW, *words, warm=True)
    assert _far(digital.outcome.adapter, air.outcome.adapter, digital.start) <= 1e-6
    again = player.play(SKEW, *words, warm=True)
    assert adapter_sha256(air.outcome.adapter) == adapter_sha256(again.outcome.adapter)


def _record(played: Played, number: int) -> dict[str, float]:
    return {k: v for k, v in played.outcome.rounds[number].metrics.items() if v is not None}


@pytest.mark.parametrize("tx_snr_db", [20, 10, 0])
def test_every_rounds_error_is_the_predicted_one(player: Player, tx_snr_db: int) -> None:
    played = player.play(AIR, f"channel.tx_snr_db={tx_snr_db}", warm=True)
    for number in range(1, NUM_ROUNDS + 1):
        record = _record(played, number)
        assert abs(record["nmse"] - record["nmse_predicted"]) <= 5 * record["nmse_deviation"]


def test_the_ledger_books_symbols_in_place_of_update_bytes(player: Player) -> None:
    played = player.play(AIR, warm=True)
    account, ledger = played.outcome.ledger.as_dict(), played.outcome.ledger
    assert ledger.total_bytes(what="update") == 0
    assert ledger.total_bytes(link="uplink", what="control") > 0
    assert ledger.total_bytes(link="downlink", what="control") > 0
    assert account["channel_uses"] == sum(
        _record(played, number)["channel_uses"] for number in range(1, NUM_ROUNDS + 1)
    )
    assert 0 < account["radio_joules"]  # type: ignore[operator]


def _adapter_of_round(played: Played, number: int) -> str:
    """Hash of the adapter that the round's orders carry."""
    return adapter_sha256(wire.read_order(played.of_round(number)[0].sent).adapter)


def test_unheard_devices_are_booked_and_a_round_without_any_keeps_the_adapter(
    player: Player,
) -> None:
    deaf = ("channel.scheme=truncated", "channel.num_subcarriers=1", "channel.gain_floor=1.5")
    played = player.play(AIR, *deaf, "strategy.num_rounds=25", warm=True)
    silent = [played.dropped(r).get("unheard", []) for r in range(1, 26)]
    for number, lost in enumerate(silent, 1):
        assert sorted([*played.devices(number), *lost]) == list(range(NUM_DEVICES))
    assert any(0 < len(lost) < NUM_DEVICES for lost in silent)
    before = {r: _adapter_of_round(played, r) for r in range(1, 26)}
    deaf_rounds = [r for r in range(1, 25) if len(silent[r - 1]) == NUM_DEVICES]
    assert deaf_rounds
    for number in range(1, 25):
        kept = before[number] == before[number + 1]
        assert kept == (number in deaf_rounds)
    assert played.outcome.aggregated == sum(len(lost) < NUM_DEVICES for lost in silent)


def test_a_lost_device_is_left_out_of_the_sum(player: Player) -> None:
    words = (SKEW, AIR, "channel.tx_snr_db=inf", "strategy.num_rounds=1")
    faults = {2: fakes.vanishes, 3: fakes.update(fakes.one_entry(math.nan))}
    air = player.play(*words, faults=faults, warm=True)
    digital = player.play(SKEW, "strategy.num_rounds=1", faults=faults, warm=True)
    assert air.dropped(1) == {"silent": [2], "not-finite": [3]}
    assert _far(digital.outcome.adapter, air.outcome.adapter, digital.start) <= 1e-6


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("peft.aggregation=exact",), "freeze-a or alternate"),
        (("strategy.server_rule.name=krum",), "krum compares devices"),
        (("strategy.server_rule.name=fedmedian",), "a rule that averages"),
    ],
)
@pytest.mark.parametrize("channel", ["aircomp", "digital"])
def test_what_needs_every_update_does_not_go_with_a_mean(
    player: Player, channel: str, words: tuple[str, ...], says: str
) -> None:
    with pytest.raises(ConfigError, match=says):
        player.play(f"channel={channel}", *words)


# --- alternating factors -----------------------------------------------------------------------


def test_only_one_factor_is_tuned_and_sent_per_round(player: Player) -> None:
    played = player.play("peft.aggregation=alternate", SKEW, "strategy.num_rounds=3", warm=True)
    for exchange in played.grid.exchanges:
        names = set(exchange.updates[0])
        frozen = ".lora_A." if exchange.round % 2 else ".lora_B."
        assert not any(frozen in name for name in names)
        assert names == {n for n in played.start if travels(n, "alternate", exchange.round)}
    after = played.outcome.adapter
    moved = {name for name in after if not np.array_equal(played.start[name], after[name])}
    assert any(".lora_A." in name for name in moved)
    assert any(".lora_B." in name for name in moved)


@pytest.mark.parametrize(("aggregation", "is_exact"), [("alternate", True), ("factors", False)])
def test_alternating_rounds_average_products_exactly_and_both_factors_do_not(
    player: Player, aggregation: str, is_exact: bool
) -> None:
    """sum_k w_k B_k A_k against B_mean A_mean after each of the first two rounds."""
    words = (f"peft.aggregation={aggregation}", SKEW, AIR, "channel.tx_snr_db=inf")
    biases, before = [], player.bench(player.tiny.overrides(*words))[1]
    for rounds in (1, 2):
        played = player.play(*words, "finetune.lr=0.1", f"strategy.num_rounds={rounds}", warm=True)
        after = played.outcome.adapter
        sent = played.of_round(rounds)
        weights = np.array([_num_examples(e) for e in sent], np.float64)
        bias = 0.0
        for name in [n for n in before if ".lora_A." in n]:
            twin = name.replace(".lora_A.", ".lora_B.")
            products, sizes = 0.0, 0.0
            for weight, exchange in zip(weights / weights.sum(), sent, strict=True):
                update = exchange.updates[0]
                a = before[name].astype(np.float64) + update.get(name, 0.0)
                b = before[twin].astype(np.float64) + update.get(twin, 0.0)
                products = products + weight * b @ a
                sizes = sizes + weight * np.abs(b) @ np.abs(a)
            mean = after[twin].astype(np.float64) @ after[name].astype(np.float64)
            bias = max(bias, float((np.abs(products - mean) / sizes).max()))
        biases.append(bias)
        before = after
    # float32 rounds each device's update, every addition of their mean and the new adapter
    assert (max(biases) <= (len(sent) + 3) * np.finfo(np.float32).eps) == is_exact


def _num_examples(exchange: fakes.Exchange) -> int:
    return int(exchange.received[0].content.metric_records[wire.METRICS][wire.NUM_EXAMPLES])  # type: ignore[arg-type]
