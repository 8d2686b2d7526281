"""Devices are dealt to classes by number or by share."""

from fl_app.config import load_config
from fl_app.device_classes import classes_of


def test_devices_named_by_number_and_by_share() -> None:
    words = (
        "federation.num_devices=3 federation.classes=[{name:a,devices:[2]},{name:b,devices:[0,1]}]"
    )
    assert classes_of(load_config(words).federation, 0) == {0: "b", 1: "b", 2: "a"}
    shares = load_config(
        "federation.num_devices=9 federation.classes=[{name:a,share:2},{name:b,share:1}]"
    ).federation
    one, two = classes_of(shares, 0), classes_of(shares, 1)
    assert [list(dealt.values()).count("a") for dealt in (one, two)] == [6, 6]
    assert one != two
