"""The configured neural connection: its link, and its place in a model."""

from collections.abc import Sequence
from typing import Any, cast

from fl_app.fomo.adapter import Adapter
from fl_app.fomo.connection_insert import Insertion, insert_connection, insert_down_projections
from fl_app.fomo.connection_link import LinkSpec
from fl_app.schema import Config, ConnectionConfig
from fl_app.wireless.channel import Fading, Kind


def link_spec(connection: ConnectionConfig) -> LinkSpec:
    """Returns the link of a neural connection."""
    gradient = connection.gradient_tx_snr_db
    return LinkSpec(
        tx_snr_db=connection.tx_snr_db,
        gradient_tx_snr_db=connection.tx_snr_db if gradient is None else gradient,
        num_tx=connection.num_tx,
        num_rx=connection.num_rx,
        fading=Fading(
            kind=cast(Kind, connection.fading),
            rician_k=connection.rician_k,
            correlation=connection.correlation,
        ),
        csi_error=connection.csi_error,
        rotation=connection.rotation,
        power_per_use=connection.power_per_use,
        peak_db=connection.peak_db,
    )


def feature_link_spec(config: Config) -> LinkSpec | None:
    """Returns the link that features of gradient download cross; None where they are bytes."""
    return None if config.connection.block is None else link_spec(config.connection)


def connect(config: Config, adapter: Adapter, blocks: Sequence[int]) -> Insertion | None:
    """Puts the configured neural connection into an adapter's model; None where none is wanted.

    Args:
        config: the run's configuration.
        adapter: the adapter of the full model or of an emulator.
        blocks: indices, in the full model, of its model's blocks in order.

    Raises:
        ModelError: the block is not in the model, or holds no LoRA for ``carries=lora_a``.
    """
    wanted = config.connection
    if wanted.block is None:
        return None
    place: dict[str, Any] = {"block": wanted.block, "blocks": blocks, "seed": config.seed}
    insert = insert_connection if wanted.carries == "features" else insert_down_projections
    return insert(adapter.bare_model, spec=link_spec(wanted), **place)
