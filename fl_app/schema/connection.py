"""Options of the neural connection: a cut of the model that activations cross over the air."""

import math
from dataclasses import dataclass

from fl_app.schema.checks import one_of, require


@dataclass
class ConnectionConfig:
    """A neural connection inside the model of devices and server; see ``fl_app.fomo.connection``.

    Devices draw a new channel every round; measuring has a stream of channels of its own.
    """

    block: int | None = None
    """The block, counted from 0 in the full model, that activations enter over the air; the blocks
    in front of it are the device's. With strategy=gradient_download that is the server's first:
    strategy.cut for variant=cut, 0 for prompt and lora. null: no connection, and the other options
    do nothing."""
    carries: str = "features"
    """features (the hidden states that enter the block) or lora_a (the product A x of every LoRA
    layer in the block; needs peft.aggregation=freeze-a)."""
    num_tx: int = 4
    """Antennas of a device, 1 to 256."""
    num_rx: int = 8
    """Antennas of the server, 1 to 256."""
    fading: str = "rayleigh"
    """rayleigh, rician or awgn (all gains are 1)."""
    rician_k: float = 3.0
    """Power of the line of sight over the scatter's for fading=rician, linear, >= 0."""
    correlation: float = 0.0
    """Of the channels of successive rounds: 0 (independent) to 1 (static)."""
    tx_snr_db: float = 20.0
    """tx-SNR of the device in dB: transmit power over noise power before fading; inf: no noise."""
    gradient_tx_snr_db: float | None = None
    """tx-SNR of the server, which sends gradients back, in dB; null: as tx_snr_db."""
    tx_power_dbm: float = 23.0
    """Mean power of a device while it transmits; sets its joules, as tx_snr_db sets the noise."""
    gradient_tx_power_dbm: float | None = None
    """Mean power of the server while it sends gradients back; null: as tx_power_dbm."""
    bandwidth_hz: float = 1e6
    """Channel uses a second; devices take turns, so their seconds add up."""
    csi_error: float = 0.0
    """Relative error of the channel estimate, 0 (perfect) to 1 (worthless)."""
    rotation: bool = False
    """Rotate features at random, known to both ends, before sending; spreads outliers."""
    power_per_use: bool = True
    """Scale every channel use to the mean power; false: one scale for all uses of a pass."""
    peak_db: float | None = None
    """Limit of a device antenna's power over its mean, in dB, >= 0; what is louder is
    clipped. null: no limit."""

    def __post_init__(self) -> None:
        """Checks the ranges."""
        block = self.block
        require("connection.block", block, block is None or block >= 0, "must be >= 0 or null")
        one_of("connection.carries", self.carries, ("features", "lora_a"))
        for key in ("num_tx", "num_rx"):
            antennas = getattr(self, key)
            require(f"connection.{key}", antennas, 1 <= antennas <= 256, "must be 1 to 256")
        one_of("connection.fading", self.fading, ("rayleigh", "rician", "awgn"))
        ok = 0 <= self.rician_k < math.inf
        require("connection.rician_k", self.rician_k, ok, "must be >= 0 and finite")
        for key in ("correlation", "csi_error"):
            share = getattr(self, key)
            require(f"connection.{key}", share, 0 <= share <= 1, "must be 0 to 1")
        ok = self.tx_snr_db > -math.inf  # false for nan too
        require("connection.tx_snr_db", self.tx_snr_db, ok, "must be a number of dB, or inf")
        gradient = self.gradient_tx_snr_db
        ok = gradient is None or gradient > -math.inf
        allowed = "must be a number of dB, inf, or null"
        require("connection.gradient_tx_snr_db", gradient, ok, allowed)
        power, back = self.tx_power_dbm, self.gradient_tx_power_dbm
        require("connection.tx_power_dbm", power, math.isfinite(power), "must be finite")
        ok = back is None or math.isfinite(back)
        require("connection.gradient_tx_power_dbm", back, ok, "must be finite, or null")
        band = self.bandwidth_hz
        require("connection.bandwidth_hz", band, 0 < band < math.inf, "must be > 0 and finite")
        peak = self.peak_db
        ok = peak is None or 0 <= peak < math.inf
        require("connection.peak_db", peak, ok, "must be >= 0 dB and finite, or null")
