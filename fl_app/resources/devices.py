"""Device classes: what a phone, a Jetson and a laptop can do.

The numbers are assumptions of this project, not measurements of a product. They are effective
values for dense half-precision work under a sustained load, a fraction of what data sheets name.
Their origins:

* FLOP/s: the upper ends of the ranges 0.1 to 2 TFLOP/s for a phone and 1 to 5 for a Jetson, both
  effective; a laptop with a small discrete GPU is put at twice the latter.
* Memory: what a training process may hold: 4 of a phone's 8 GB to 12 GB, half of a 16 GB board that
  shares its memory with everything else, 8 GB of a laptop's graphics memory.
* Compute power: a phone's thermal limit (5 W), a Jetson board's 25 W mode, a laptop's graphics
  budget (80 W).
* Radio: 23 dBm is 3GPP's power class 3 of handsets; 20 dBm is the usual limit of a wireless LAN
  card. Circuits draw a further watt while sending or receiving.
"""

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass

from fl_app.resources.errors import ResourceError
from fl_app.wireless.units import dbm_to_watt


@dataclass(frozen=True, kw_only=True)
class DeviceClass:
    """What every device of a class can do.

    Attributes:
        name: its name.
        memory_bytes: memory that a local step may use, > 0.
        flops_per_s: effective FLOP/s, > 0.
        compute_power_w: power drawn while computing in W, > 0.
        tx_power_w: radiated power in W, > 0.
        circuit_power_w: power drawn beside it while sending or receiving in W, >= 0.
    """

    name: str
    memory_bytes: float
    flops_per_s: float
    compute_power_w: float
    tx_power_w: float
    circuit_power_w: float = 1.0

    def __post_init__(self) -> None:
        """Raises ResourceError on a value out of range."""
        for field in dataclasses.fields(self)[1:]:
            value, least = getattr(self, field.name), field.name != "circuit_power_w"
            if not (value > 0.0 if least else value >= 0.0) or not math.isfinite(value):
                raise ResourceError(
                    f"{field.name}={value} of device class '{self.name}' must be finite and "
                    f"{'> 0' if least else '>= 0'}"
                )


DEVICE_CLASSES: Mapping[str, DeviceClass] = {
    each.name: each
    for each in (
        DeviceClass(
            name="phone",
            memory_bytes=4e9,
            flops_per_s=2e12,
            compute_power_w=5.0,
            tx_power_w=dbm_to_watt(23.0),
        ),
        DeviceClass(
            name="jetson",
            memory_bytes=8e9,
            flops_per_s=5e12,
            compute_power_w=25.0,
            tx_power_w=dbm_to_watt(20.0),
        ),
        DeviceClass(
            name="laptop",
            memory_bytes=8e9,
            flops_per_s=1e13,
            compute_power_w=80.0,
            tx_power_w=dbm_to_watt(20.0),
        ),
    )
}


def device_class(name: str) -> DeviceClass:
    """Returns a class by name.

    Raises:
        ResourceError: there is none of that name.
    """
    if name not in DEVICE_CLASSES:
        raise ResourceError(f"device '{name}' is unknown; choose one of {sorted(DEVICE_CLASSES)}")
    return DEVICE_CLASSES[name]
