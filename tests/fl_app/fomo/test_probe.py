import pytest

from tests.fixtures_models import *


@pytest.mark.parametrize(("family", "task"), CASES)
def test_x(tiny, family, task):
    b = tiny.load(family, task)
    t = task_of(b)
    e = t.encode(tiny_examples(5))
    x = t.batch(e, range(5))
    l = logits_of(b.model, x)
    print(
        family,
        task,
        l.shape,
        float(l.std()),
        b.random_head,
        list(b.files),
        b.model.config.pad_token_id if family != "vit" else "",
        [(k, tuple(v.shape)) for k, v in x.items()],
    )
