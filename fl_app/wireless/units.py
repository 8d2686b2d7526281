"""Named conversions between decibels and linear quantities."""

import math


def db_to_linear(value_db: float) -> float:
    """Returns the power ratio 10^(value_db / 10); ``inf`` and ``-inf`` are allowed."""
    return math.inf if value_db == math.inf else float(10.0 ** (value_db / 10.0))


def linear_to_db(ratio: float) -> float:
    """Returns 10 log10 of a power ratio >= 0; 0 becomes ``-inf``."""
    return -math.inf if ratio == 0.0 else 10.0 * math.log10(ratio)


def dbm_to_watt(power_dbm: float) -> float:
    """Returns the power in W of a power given in dB above 1 mW."""
    return db_to_linear(power_dbm) / 1000.0


def noise_power_from_tx_snr(tx_snr_db: float, power: float = 1.0) -> float:
    """Returns the noise power sigma^2 at which P / sigma^2 is the given tx-SNR.

    Args:
        tx_snr_db: transmit power over noise power in dB, before fading; ``inf`` for no noise.
        power: mean transmit power P of one channel use, > 0.
    """
    return 0.0 if tx_snr_db == math.inf else power / db_to_linear(tx_snr_db)
