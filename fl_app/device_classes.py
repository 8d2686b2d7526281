"""Which device is of which class."""

import numpy as np

from fl_app.layout.rounding import apportion
from fl_app.schema import FederationConfig
from fl_app.seeding import generator


def classes_of(federation: FederationConfig, seed: int) -> dict[int, str]:
    """Returns the name of every device's class; by share they are dealt at random.

    Numbers are in proportion to the shares, by largest remainder.
    """
    classes = federation.classes
    named = {device: one.name for one in classes for device in one.devices}
    if named or not classes:
        return named
    total = federation.num_devices
    counts = apportion([one.share for one in classes], total, largest=total)
    drawn = generator(seed, "classes").permutation(total)
    names = np.repeat([one.name for one in classes], counts)
    return {int(device): str(name) for device, name in sorted(zip(drawn, names, strict=True))}
