"""Updates over a fading channel, as the federation sees it: one mean, its error and its price."""

import dataclasses
import itertools
import math
import shlex
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from fl_app import wire
from fl_app.config import load_config
from fl_app.errors import ConfigError
from fl_app.job import adapter_sha256
from fl_app.schema import Config
from fl_app.seeding import generator
from fl_app.updates import Update, travels
from strategies.build import build_uplink
from strategies.uplink import Received, Sent
from tests import fakes
from tests.federation_fixtures import NUM_DEVICES, NUM_ROUNDS, Played, Player

SKEW = "data.partition.kind=quantity"
SIZES = [6, 1, 40, 9]


def _sent(num_devices: int = 5, *, round: int = 3, sizes: Sequence[int] = SIZES) -> Sent:
    rng = np.random.default_rng(0)
    rows = (1e-3 * rng.standard_normal((num_devices, sum(sizes)))).astype(np.float32)
    weights = rng.integers(1, 9, num_devices).astype(np.float64)
    devices = sorted(rng.choice(50, num_devices, replace=False).tolist())
    return Sent(updates=rows, weights=weights, round=round, devices=devices, sizes=sizes)


def _config(*words: str) -> Config:
    return load_config(shlex.join(words))


def _receive(sent: Sent, *words: str, draw: int = 0) -> Received:
    config = _config(*words)
    uplink = build_uplink(config.channel, config.seed)
    assert uplink.is_radio
    return uplink.receive(sent, generator(1, "noise", draw))


def _mean(sent: Sent) -> np.ndarray[Any, Any]:
    return sent.weights @ sent.updates.astype(np.float64) / sent.weights.sum()


AIR = "channel=aircomp"


@pytest.mark.parametrize("scheme", ["zf", "optimal"])
@pytest.mark.parametrize("words", [(), ("channel.num_antennas=4",), ("channel.fading=rician",)])
def test_without_noise_the_mean_arrives(scheme: str, words: tuple[str, ...]) -> None:
    """To float32's rounding: of each device's symbols, their sum, the mean and the result."""
    sent = _sent()
    received = _receive(sent, AIR, f"channel.scheme={scheme}", "channel.tx_snr_db=inf", *words)
    assert received.rows.shape == (1, sum(SIZES))
    assert received.is_heard.all()
    num_devices = len(sent.updates)
    bound = (num_devices + 3) * np.finfo(np.float32).eps / 2 * np.abs(sent.updates).max()
    assert np.abs(received.rows[0] - _mean(sent)).max() <= bound


@pytest.mark.parametrize("tx_snr_db", [20, 10, 0])
def test_the_error_is_the_predicted_one(tx_snr_db: int) -> None:
    """Within five of the standard errors that the report itself states for this noise."""
    sent = _sent()
    report = _receive(sent, AIR, f"channel.tx_snr_db={tx_snr_db}").report
    off = abs(report["nmse"] - report["nmse_predicted"])
    assert off <= 5 * report["nmse_deviation"]
    # and the report tells the truth about what was received
    rows = _receive(sent, AIR, f"channel.tx_snr_db={tx_snr_db}").rows
    truth = _mean(sent)
    nmse = np.sum((rows[0] - truth) ** 2) / np.sum(truth**2)
    assert report["nmse"] == pytest.approx(nmse, rel=1e-4)


def test_a_round_costs_half_a_use_per_real_however_many_devices() -> None:
    """Each tensor is padded to whole uses; every device sends its mean and deviation as bytes."""
    for num_devices in (1, 5, 12):
        airtime = _receive(_sent(num_devices), AIR).airtime
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
    sent, words = _sent(), (AIR, f"channel.scheme={scheme}", f"channel.power={power}")
    radio: Any = build_uplink(_config(*words).channel, 0)
    state = radio._radio.state(sent.round, sent.devices, sent.weights)
    airtime = _receive(sent, *words).airtime
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
    received = _receive(_sent(12, sizes=[8, 5]), AIR, *deaf)
    airtime = received.airtime
    assert airtime is not None
    assert 0 < received.is_heard.sum() < 12
    assert ((airtime.control_bytes > 0) == received.is_heard).all()
    assert ((airtime.joules > 0) == received.is_heard).all()


def test_a_devices_channel_does_not_depend_on_the_others() -> None:
    """Fading and placement go by the partition index, not by the place in the round."""
    config = _config(AIR, "channel.placement=cell", "channel.csi_error=0.1")
    radio: Any = build_uplink(config.channel, 0)
    few = radio._radio.state(4, [3, 9], np.ones(2))
    many = radio._radio.state(4, [0, 3, 5, 9, 11], np.ones(5))
    assert np.array_equal(few.gains, many.gains[[1, 3]])
    assert np.array_equal(few.known_gains, many.known_gains[[1, 3]])
    assert not np.array_equal(few.gains, radio._radio.state(5, [3, 9], np.ones(2)).gains)
    assert len(set(many.mean_gains)) == 5


def test_a_cell_sets_the_snr_by_itself() -> None:
    """Thermal noise over 1 MHz with a noise figure of 5 dB: -174 + 60 + 5 = -109 dBm."""
    uplink: Any = build_uplink(_config(AIR, "channel.placement=cell").channel, 0)
    assert uplink._radio.noise_power == pytest.approx(10 ** (-10.9) / 1000)
    assert uplink._radio.power == pytest.approx(10**2.3 / 1000)
    equal: Any = build_uplink(_config(AIR, "channel.tx_snr_db=7").channel, 0)
    assert equal._radio.power / equal._radio.noise_power == pytest.approx(10**0.7)


def test_silent_devices_are_named_and_an_empty_air_gives_no_row() -> None:
    deaf = ("channel.scheme=truncated", "channel.num_subcarriers=1", "channel.gain_floor=1.5")
    # no tensor of one entry here: that one is heard digitally, whatever the channel
    heard = [_receive(_sent(round=r, sizes=[8, 5]), AIR, *deaf) for r in range(60)]
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
    sent = _sent()
    received = _receive(sent, AIR, *words)
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


def test_digital_bytes_uses_and_rationing() -> None:
    """At half a use per real, ten devices at 2 bits a use get a tenth of a bit per real each."""
    sent = _sent(10)
    still = ("channel=digital", "channel.fading=awgn", f"channel.tx_snr_db={10 * math.log10(3)}")
    thin = (*still, "channel.power=density")
    whole = _receive(sent, *thin, "channel.bits=24")
    bound = float(np.ptp(sent.updates, axis=1).max()) / (2**24 - 1)
    assert np.abs(whole.rows[0] - _mean(sent)).max() <= bound + 1e-9
    assert whole.airtime is not None
    side = 64 * len(SIZES)  # two float32 numbers of every tensor
    assert whole.airtime.payload_bytes.tolist() == [24 * sum(SIZES) // 8] * 10
    assert whole.airtime.control_bytes.tolist() == [side // 8] * 10
    assert whole.airtime.channel_uses == 10 * (24 * sum(SIZES) + side) // 2  # log2(1 + 3) = 2 bits

    rationed = _receive(sent, *thin, "channel.bits=1", "channel.max_uses_per_real=0.5")
    assert rationed.airtime is not None
    payload = rationed.airtime.channel_uses - rationed.report["control_uses"]
    assert 0 < payload <= sum(SIZES) / 2
    assert rationed.report["sent_share"] == 2 * (sum(SIZES) // 20) / sum(SIZES)
    # all power in a tenth of the band: log2(1 + 30) = 4.95 bits
    more = _receive(sent, *still, "channel.bits=1", "channel.max_uses_per_real=0.5")
    assert more.report["sent_share"] == math.floor(2 * math.log2(31.0)) / sum(SIZES)
    starved = _receive(sent, *thin, "channel.bits=8", "channel.max_uses_per_real=0.5")
    assert (len(starved.rows), starved.is_heard.any()) == (0, False)


@pytest.mark.parametrize("tx_snr_db", [0, 10, 20, "inf"])
@pytest.mark.parametrize("words", [("channel.bits=1",), ("channel.bits=null",)])
def test_digital_at_equal_uses_is_never_worse_than_sending_nothing(
    words: tuple[str, ...], tx_snr_db: object
) -> None:
    """Tensors of unlike size, each with levels of its own."""
    sizes = [400, 30, 900]
    scaled = _sent(8, sizes=sizes).updates * np.repeat([1.0, 10.0, 0.3], sizes).astype(np.float32)
    sent = dataclasses.replace(_sent(8, sizes=sizes), updates=scaled)
    uses = ("channel.max_uses_per_real=0.5", f"channel.tx_snr_db={tx_snr_db}")
    report = _receive(sent, "channel=digital", *words, *uses).report
    assert report["nmse"] < (0.6 if tx_snr_db == "inf" else 1.0)


def test_digital_without_noise_still_takes_uses_and_time() -> None:
    """The densest constellation limits it: 16 bits a use, if nothing else is asked for."""
    sent = _sent(4)
    words = ("channel=digital", "channel.tx_snr_db=inf", "channel.fading=awgn")
    for more, most in (((), 16), (("channel.max_bits_per_use=4",), 4)):
        airtime = _receive(sent, *words, *more).airtime
        assert airtime is not None
        bits = 8 * sum(SIZES)
        uses = 4 * (math.ceil(bits / most) + 64 * len(SIZES) // most)
        assert airtime.channel_uses == uses
        assert airtime.seconds == pytest.approx(4 * (bits + 64 * len(SIZES)) / most / 1e6)


def test_a_known_csi_error_costs_the_digital_uplink_few_packets() -> None:
    """1 % of packets by default; 40 rounds of 10 devices, within five standard errors."""
    words = ("channel=digital", "channel.csi_error=0.05", "channel.num_subcarriers=4")
    sent = _sent(10)
    heard = [
        _receive(dataclasses.replace(sent, round=r), *words).is_heard.mean() for r in range(40)
    ]
    assert np.mean(heard) >= 0.99 - 5.0 * math.sqrt(0.01 * 0.99 * (1 / 400 + 1 / 1000))
    some = [
        _receive(dataclasses.replace(sent, round=r), *words, "channel.outage=0.5").is_heard.mean()
        for r in range(40)
    ]
    assert 0.3 < np.mean(some) < 0.7


def test_rationed_entries_are_the_mean_of_all_or_nothing() -> None:
    """Fine levels: an entry is the mean of all devices, or 0; rates differ."""
    rng = np.random.default_rng(3)
    sent = Sent(
        updates=rng.standard_normal((3, 400)).astype(np.float32),
        weights=np.array([1.0, 2.0, 5.0]),
        round=2,
        devices=[0, 1, 2],
        sizes=[400],
    )
    words = ("channel=digital", "channel.bits=24", "channel.tx_snr_db=10")
    row = _receive(sent, *words, "channel.max_uses_per_real=6").rows[0]
    off = np.minimum(np.abs(row), np.abs(row - _mean(sent)))
    bound = float(np.ptp(sent.updates, axis=1).max()) / (2**24 - 1)
    assert off.max() <= bound + 1e-6
    assert 0 < np.count_nonzero(row) < 400


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


def test_unheard_devices_are_booked_and_a_round_without_any_keeps_the_adapter(
    player: Player,
) -> None:
    deaf = ("channel.scheme=truncated", "channel.num_subcarriers=1", "channel.gain_floor=1.5")
    played = player.play(AIR, *deaf, "strategy.num_rounds=25", warm=True)
    silent = [played.dropped(r).get("unheard", []) for r in range(1, 26)]
    for number, lost in enumerate(silent, 1):
        assert sorted([*played.devices(number), *lost]) == list(range(NUM_DEVICES))
    assert any(0 < len(lost) < NUM_DEVICES for lost in silent)


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
