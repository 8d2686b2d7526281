"""The projector against the normal equations, and tuned through a model of another width."""

import numpy as np
import pytest
import torch

from fl_app.fomo.backbone import load_backbone, tokenizer_from
from fl_app.fomo.soft_prompt import token_table
from fl_app.prompts.batched import Batch, Tensors, log_probabilities, member_losses
from fl_app.prompts.errors import PromptError
from fl_app.prompts.fitting import fit_parameters
from fl_app.prompts.projector import TunedProjector, fit_projector, shared_tokens
from fl_app.seeding import generator
from tests.fixtures_models import LABELS, TinyModels, task_of, write_checkpoint
from tests.prompt_fixtures import CLASSES, drawn_member, easy_rows, fit_for


@pytest.mark.parametrize("ridge", [0.0, 0.3])
def test_the_fit_solves_the_normal_equations(ridge: float) -> None:
    rng = generator(0, "pairs")
    x = rng.normal(1, 2, (40, 3)).astype(np.float32).astype(np.float64)
    y = rng.normal(-1, 1, (40, 5)).astype(np.float32).astype(np.float64)
    found = fit_projector(x.astype(np.float32), y.astype(np.float32), ridge=ridge)
    a, b = x - x.mean(0), y - y.mean(0)
    gram = a.T @ a
    weight = np.linalg.solve(gram + ridge * np.trace(gram) / 3 * np.eye(3), a.T @ b)
    # Both are solved in float64; what is left is that the answer is rounded to float32.
    np.testing.assert_allclose(found.weight, weight, rtol=2.0**-23)
    np.testing.assert_allclose(found.bias, y.mean(0) - x.mean(0) @ weight, rtol=2.0**-23)


def test_an_affine_map_is_recovered() -> None:
    rng = generator(1, "pairs")
    x = rng.normal(0, 1, (30, 4)).astype(np.float32).astype(np.float64)
    w, b = rng.normal(0, 1, (4, 6)), rng.normal(0, 1, 6)
    y = (x @ w + b).astype(np.float32)
    found = fit_projector(x.astype(np.float32), y, ridge=0.0)
    new = rng.normal(0, 1, (3, 4)).astype(np.float32)
    # Least squares passes on the rounding of y times the norm of its pseudo-inverse, and the
    # answer's own rounding is as large at most.
    design = np.concatenate([x, np.ones((30, 1))], 1)
    rounding = np.linalg.norm(y - (x @ w + b)) + 2.0**-23 * np.linalg.norm(np.vstack([w, b]))
    reach = np.linalg.norm(np.linalg.pinv(design), 2) + 1.0
    off = reach * rounding * np.linalg.norm(np.concatenate([new, np.ones((3, 1))], 1), 2)
    np.testing.assert_allclose(found(new), new @ w + b, rtol=0, atol=off)
    assert off < 1e-4


def test_a_prompt_moves_to_a_wider_model(tiny: TinyModels, tmp_path: object) -> None:
    """Linear first; the correction starts at nothing and then lowers the loss on the target."""
    source = tiny.load("bert", CLASSES)
    folder = write_checkpoint(
        tiny.path("bert", CLASSES).parent / "wide", "bert", CLASSES, hidden_size=24
    )
    target = load_backbone(str(folder), task=CLASSES, labels=LABELS, seed=0)
    ids = shared_tokens(tokenizer_from(source.files), tokenizer_from(target.files))
    tables = [token_table(b.model).weight.detach().numpy() for b in (source, target)]
    linear = fit_projector(tables[0][ids[0]], tables[1][ids[1]])
    prompt = drawn_member(fit_for(source), 4).prompt
    projector = TunedProjector(linear, hidden=8, seed=0)
    moved = projector(torch.from_numpy(prompt.copy()))
    torch.testing.assert_close(moved, torch.from_numpy(linear(prompt)), rtol=1e-5, atol=1e-5)
    task = task_of(target)
    batch = task.batch(task.encode(easy_rows(24)), range(24))

    def loss_of(rows: Batch) -> torch.Tensor:
        member = Tensors(projector(torch.from_numpy(prompt.copy())))
        return member_losses(*log_probabilities(target.model, [member], rows))[0]

    losses = fit_parameters(loss_of, list(projector.parameters()), [batch], lr=0.02, epochs=25)
    assert losses[-1] < 0.8 * losses[0]


def test_what_does_not_match_is_named() -> None:
    x = np.ones((3, 2), np.float32)
    with pytest.raises(PromptError, match="wrong-shape"):
        fit_projector(x, x[:2])
    with pytest.raises(PromptError, match="bad-ridge"):
        fit_projector(x, x, ridge=-1.0)
    with pytest.raises(PromptError, match="wrong-width"):
        fit_projector(x, x)(np.ones((1, 3), np.float32))


def test_tokenizers_share_tokens_by_their_text(tiny: TinyModels) -> None:
    one, other = (tokenizer_from(tiny.load(f, CLASSES).files) for f in ("bert", "qwen2"))
    ours, theirs = shared_tokens(one, other)
    assert one.convert_ids_to_tokens(ours) == other.convert_ids_to_tokens(theirs)
    assert len(ours) >= 5
    empty = type("Empty", (), {"get_vocab": lambda self: {"else": 0}})()
    with pytest.raises(PromptError, match="no-shared-tokens"):
        shared_tokens(one, empty)
