"""What a layout costs one device in one round: the figures that budgets limit."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

from fl_app.resources.devices import DeviceClass
from fl_app.resources.errors import ResourceError
from fl_app.resources.links import Link
from fl_app.resources.step import StepCost, StepModel


@dataclass(frozen=True)
class Price:
    """One layout on one device, one round.

    Attributes:
        params: tuned parameters.
        uplink_bytes: bytes of one update; of its values alone unless ``Pricer.sending`` says.
        downlink_bytes: bytes of the adapter that is broadcast, likewise.
        memory_bytes: peak memory of a local step.
        flops: FLOPs of a local step.
        step_s: seconds of a local step.
        compute_s: seconds of all local steps.
        uplink_s: seconds on the uplink.
        downlink_s: seconds on the downlink.
        round_s: seconds of the round.
        joules: energy that the device spends.
    """

    params: int
    uplink_bytes: int
    downlink_bytes: int
    memory_bytes: int
    flops: int
    step_s: float
    compute_s: float
    uplink_s: float
    downlink_s: float
    round_s: float
    joules: float

    def as_dict(self) -> dict[str, float]:
        """Returns all figures by name."""
        return dataclasses.asdict(self)


class Pricer:
    """Prices layouts for one device class on one pair of links; calling it gives a ``Price``.

    Args:
        step: prices a local step.
        device: who computes.
        uplink: from the device to the server.
        downlink: from the server to the device.
        num_steps: local steps of a round, >= 1.
        value_bytes: bytes of a tuned parameter on the wire, in (0, 8].
        down_value_bytes: the same of the downlink, where it differs.

    Raises:
        ResourceError: a value out of range.
    """

    def __init__(
        self,
        step: StepModel,
        device: DeviceClass,
        *,
        uplink: Link,
        downlink: Link,
        num_steps: int = 1,
        value_bytes: float = 4.0,
        down_value_bytes: float | None = None,
    ) -> None:
        down_bytes = value_bytes if down_value_bytes is None else down_value_bytes
        if num_steps < 1 or not 0.0 < value_bytes <= 8.0 or not 0.0 < down_bytes <= 8.0:
            raise ResourceError(
                f"num_steps={num_steps} must be >= 1, value_bytes={value_bytes} and "
                f"down_value_bytes={down_bytes} in (0, 8]"
            )
        self.step, self.device, self.uplink, self.downlink = step, device, uplink, downlink
        self._num_steps, self._value_bytes = num_steps, value_bytes
        self._down_value_bytes = down_bytes
        # Rates need a logarithm each; layouts are priced by the thousand.
        self._up_s_byte, self._down_s_byte = uplink.seconds(1.0), downlink.seconds(1.0)

    @property
    def num_blocks(self) -> int:
        """Blocks a layout must give a size."""
        return self.step.num_blocks

    def __call__(self, sizes: Sequence[int]) -> Price:
        """Returns the price of a layout; see ``StepModel.cost`` for ``sizes`` and errors."""
        return self.price(self.step.cost(sizes))

    def price(self, cost: StepCost) -> Price:
        """Returns the price of a step's cost on this device."""
        step_s = cost.flops / self.device.flops_per_s
        unsent = Price(
            params=cost.tuned_params,
            uplink_bytes=0,
            downlink_bytes=0,
            memory_bytes=cost.memory_bytes,
            flops=cost.flops,
            step_s=step_s,
            compute_s=self._num_steps * step_s,
            uplink_s=0.0,
            downlink_s=0.0,
            round_s=0.0,
            joules=0.0,
        )
        return self.sending(
            unsent,
            uplink_bytes=round(cost.tuned_params * self._value_bytes),
            downlink_bytes=round(cost.tuned_params * self._down_value_bytes),
        )

    def sending(self, price: Price, *, uplink_bytes: int, downlink_bytes: int) -> Price:
        """Returns a price of this pricer's for other bytes: seconds and joules follow them.

        Compute costs compute_power_w, the radio tx_power_w while sending and circuit_power_w while
        sending or receiving.

        Args:
            price: what computing costs, whatever was sent.
            uplink_bytes: bytes of one update, >= 0.
            downlink_bytes: bytes of what the device receives, >= 0.
        """
        up_s, down_s = uplink_bytes * self._up_s_byte, downlink_bytes * self._down_s_byte
        device = self.device
        return dataclasses.replace(
            price,
            uplink_bytes=uplink_bytes,
            downlink_bytes=downlink_bytes,
            uplink_s=up_s,
            downlink_s=down_s,
            round_s=down_s + price.compute_s + up_s,
            joules=(
                device.compute_power_w * price.compute_s
                + device.tx_power_w * up_s
                + device.circuit_power_w * (up_s + down_s)
            ),
        )
