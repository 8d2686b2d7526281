"""Updates over OFDMA, as the federation sees them: bits, uses, seconds and what is lost."""

import dataclasses
import math

import numpy as np
import pytest

from strategies.uplink import Sent
from tests.radio_rounds import SIZES, mean_of, receive, round_of


def test_digital_bytes_uses_and_rationing() -> None:
    """At half a use per real, ten devices at 2 bits a use get a tenth of a bit per real each."""
    sent = round_of(10)
    still = ("channel=digital", "channel.fading=awgn", f"channel.tx_snr_db={10 * math.log10(3)}")
    thin = (*still, "channel.power=density")
    whole = receive(sent, *thin, "channel.bits=24")
    bound = float(np.ptp(sent.updates, axis=1).max()) / (2**24 - 1)
    assert np.abs(whole.rows[0] - mean_of(sent)).max() <= bound + 1e-9
    assert whole.airtime is not None
    side = 64 * len(SIZES)  # two float32 numbers of every tensor
    assert whole.airtime.payload_bytes.tolist() == [24 * sum(SIZES) // 8] * 10
    assert whole.airtime.control_bytes.tolist() == [side // 8] * 10
    assert whole.airtime.channel_uses == 10 * (24 * sum(SIZES) + side) // 2  # log2(1 + 3) = 2 bits

    rationed = receive(sent, *thin, "channel.bits=1", "channel.max_uses_per_real=0.5")
    assert rationed.airtime is not None
    payload = rationed.airtime.channel_uses - rationed.report["control_uses"]
    assert 0 < payload <= sum(SIZES) / 2
    assert rationed.report["sent_share"] == 2 * (sum(SIZES) // 20) / sum(SIZES)
    # all power in a tenth of the band: log2(1 + 30) = 4.95 bits
    more = receive(sent, *still, "channel.bits=1", "channel.max_uses_per_real=0.5")
    assert more.report["sent_share"] == math.floor(2 * math.log2(31.0)) / sum(SIZES)
    starved = receive(sent, *thin, "channel.bits=8", "channel.max_uses_per_real=0.5")
    assert (len(starved.rows), starved.is_heard.any()) == (0, False)


@pytest.mark.parametrize("tx_snr_db", [0, 10, 20, "inf"])
@pytest.mark.parametrize("words", [("channel.bits=1",), ("channel.bits=null",)])
def test_digital_at_equal_uses_is_never_worse_than_sending_nothing(
    words: tuple[str, ...], tx_snr_db: object
) -> None:
    """Tensors of unlike size, each with levels of its own."""
    sizes = [400, 30, 900]
    scaled = round_of(8, sizes=sizes).updates * np.repeat([1.0, 10.0, 0.3], sizes).astype(
        np.float32
    )
    sent = dataclasses.replace(round_of(8, sizes=sizes), updates=scaled)
    uses = ("channel.max_uses_per_real=0.5", f"channel.tx_snr_db={tx_snr_db}")
    report = receive(sent, "channel=digital", *words, *uses).report
    assert report["nmse"] < (0.6 if tx_snr_db == "inf" else 1.0)


def test_digital_without_noise_still_takes_uses_and_time() -> None:
    """The densest constellation limits it: 16 bits a use, if nothing else is asked for."""
    sent = round_of(4)
    words = ("channel=digital", "channel.tx_snr_db=inf", "channel.fading=awgn")
    for more, most in (((), 16), (("channel.max_bits_per_use=4",), 4)):
        airtime = receive(sent, *words, *more).airtime
        assert airtime is not None
        bits = 8 * sum(SIZES)
        uses = 4 * (math.ceil(bits / most) + 64 * len(SIZES) // most)
        assert airtime.channel_uses == uses
        assert airtime.seconds == pytest.approx(4 * (bits + 64 * len(SIZES)) / most / 1e6)


def test_a_known_csi_error_costs_the_digital_uplink_few_packets() -> None:
    """1 % of packets by default; 40 rounds of 10 devices, within five standard errors."""
    words = ("channel=digital", "channel.csi_error=0.05", "channel.num_subcarriers=4")
    sent = round_of(10)
    heard = [receive(dataclasses.replace(sent, round=r), *words).is_heard.mean() for r in range(40)]
    assert np.mean(heard) >= 0.99 - 5.0 * math.sqrt(0.01 * 0.99 * (1 / 400 + 1 / 1000))
    some = [
        receive(dataclasses.replace(sent, round=r), *words, "channel.outage=0.5").is_heard.mean()
        for r in range(40)
    ]
    assert abs(np.mean(some) - 0.5) <= 5.0 * math.sqrt(0.25 * (1 / 400 + 1 / 1000))


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
    row = receive(sent, *words, "channel.max_uses_per_real=6").rows[0]
    off = np.minimum(np.abs(row), np.abs(row - mean_of(sent)))
    bound = float(np.ptp(sent.updates, axis=1).max()) / (2**24 - 1)
    assert off.max() <= bound + 1e-6
    assert 0 < np.count_nonzero(row) < 400
