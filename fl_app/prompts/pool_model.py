"""What lies beside a pool: what its members' model has and the checkpoint lacks."""

from pathlib import Path

from fl_app.fomo.backbone import Backbone, head_modules
from fl_app.fomo.frozen import frozen_of, save_frozen
from fl_app.fomo.pooler import pooler_of
from fl_app.prompts.pool import MODEL_FILE


def save_pool_model(
    folder: Path, backbone: Backbone, *, max_length: int, has_own_pooler: bool
) -> None:
    """Saves it, see ``fl_app.fomo.frozen``.

    Args:
        folder: of the pool.
        backbone: the model as members were tuned on it.
        max_length: tokens after which texts were cut.
        has_own_pooler: whether the pooler is not the checkpoint's.
    """
    model = backbone.model
    pooler = pooler_of(model) if has_own_pooler else None
    frozen = frozen_of(
        model,
        heads=head_modules(model, backbone.task),
        carried=() if pooler is None else (pooler,),
        labels=backbone.labels,
        max_length=max_length,
    )
    save_frozen(frozen, folder / MODEL_FILE)
