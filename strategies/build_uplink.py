"""Channel choice to uplink."""

import dataclasses
from typing import Any

from fl_app.errors import ConfigError
from fl_app.schema import AircompChannel, ChannelConfig, DigitalChannel, IdealChannel, RadioChannel
from fl_app.wireless.cell import Cell
from fl_app.wireless.channel import Fading
from fl_app.wireless.digital import Ofdma
from fl_app.wireless.ofdma import Band
from fl_app.wireless.power import (
    CotafScaling,
    OptimalThreshold,
    PhaseOnly,
    PowerControl,
    TruncatedInversion,
    ZeroForcing,
)
from fl_app.wireless.radio import Radio
from fl_app.wireless.units import dbm_to_watt, noise_power_from_tx_snr
from strategies.radio_uplink import AircompUplink, DigitalUplink, VoteUplink
from strategies.uplink import IdealUplink, Uplink


def build_uplink(channel: ChannelConfig, seed: int) -> Uplink:
    """Turns the channel choice into an uplink."""
    match channel:
        case IdealChannel():
            return IdealUplink()
        case AircompChannel(scheme="obda"):
            return VoteUplink(
                radio=_radio(channel, seed, channel.num_antennas, treats_alike=True),
                control=_truncated(channel),
                band=Band(**_band_options(channel)),
                step=channel.vote_step,
            )
        case AircompChannel():
            peak = dbm_to_watt(channel.tx_power_dbm + channel.peak_to_mean_db)
            return AircompUplink(
                radio=_radio(
                    channel,
                    seed,
                    channel.num_antennas,
                    treats_alike=channel.scheme in ("truncated", "cotaf"),
                ),
                control=_power_control(channel),
                band=Band(**_band_options(channel)),
                peak_power=peak,
            )
        case DigitalChannel():
            setup = Ofdma(
                bits=channel.bits,
                **_band_options(channel),
                target_bits_per_use=channel.target_bits_per_use,
                gain_floor=channel.gain_floor,
                max_uses_per_real=channel.max_uses_per_real,
            )
            return DigitalUplink(radio=_radio(channel, seed, 1), setup=setup)
        case _:
            raise ConfigError(f"channel of type {type(channel).__name__} has no uplink")


def _band_options(channel: RadioChannel) -> dict[str, Any]:
    """Returns the options of ``fl_app.wireless.ofdma.Band``."""
    names = ("bandwidth_hz", "power", "max_bits_per_use", "outage")
    return {name: getattr(channel, name) for name in names}


def _power_control(channel: AircompChannel) -> PowerControl:
    match channel.scheme:
        case "zf":
            return ZeroForcing()
        case "truncated":
            return _truncated(channel)
        case "optimal":
            return OptimalThreshold()
        case "cotaf":
            return CotafScaling(gain_floor=channel.gain_floor)
        case "phase":
            return PhaseOnly()
        case _:
            raise ConfigError(f"channel.scheme={channel.scheme!r} has no power control")


def _truncated(channel: AircompChannel) -> TruncatedInversion:
    budget: Any = channel.budget  # the schema has checked it
    return TruncatedInversion(gain_floor=channel.gain_floor, budget=budget)


def _radio(
    channel: RadioChannel, seed: int, num_antennas: int, *, treats_alike: bool = False
) -> Radio:
    """Returns the fading channel; in a cell distances and thermal noise set the SNR."""
    power = dbm_to_watt(channel.tx_power_dbm)
    cell = None
    noise_power = noise_power_from_tx_snr(channel.tx_snr_db, power)
    if channel.placement == "cell":
        cell = Cell(bandwidth_hz=channel.bandwidth_hz, **dataclasses.asdict(channel.cell))
        noise_power = cell.noise_power_w()
    fading = Fading(
        kind=channel.fading,  # type: ignore[arg-type]  # the schema has checked it
        num_subcarriers=channel.num_subcarriers,
        num_taps=channel.num_taps,
        rician_k=channel.rician_k,
        correlation=channel.correlation,
    )
    return Radio(
        fading=fading,
        seed=seed,
        power=power,
        noise_power=noise_power,
        csi_error=channel.csi_error,
        jitter_rad=channel.phase_jitter_rad,
        num_antennas=num_antennas,
        treats_alike=treats_alike,
        cell=cell,
    )
