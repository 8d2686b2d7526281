"""The two kinds of part a block is made of, walked in the order of the forward pass.

A walk carries one bit, whether a gradient is wanted for what flows on. It is off until the first
tuned parameter; what lies before costs no backward pass and keeps no activation. That is why the
price of a layout depends on how far the deepest tuned block is from the loss.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from fl_app.resources.activations import kept
from fl_app.resources.tally import Input, Map, Norm, Tally
from fl_app.resources.tuning import Tuning


@dataclass(frozen=True, kw_only=True)
class Attention:
    """One attention with its norm.

    Attributes:
        reads: maps of queries, keys and values, in this order, or one fused map.
        out: the map behind.
        norm: the norm in front, or behind the residual sum if ``is_post_norm``.
        is_post_norm: BERT's order.
        num_heads: heads.
        head_width: width of one head.
        kv_width: width of the projected keys (grouped heads have fewer than queries have).
        is_cross: keys and values come from the encoder's output.
        bias_heads: heads for which a bias of the scores is kept: 1 for a mask, all of them where
            positions enter as a bias (T5), 0 where nothing is padded (images).
        bias_is_shared: all rows share that bias (T5's causal self-attention).
    """

    reads: tuple[Map, ...]
    out: Map
    norm: Norm
    is_post_norm: bool
    num_heads: int
    head_width: int
    kv_width: int
    is_cross: bool = False
    bias_heads: int = 1
    bias_is_shared: bool = False

    @property
    def maps(self) -> tuple[Map, ...]:
        """All maps in order."""
        return (*self.reads, self.out)

    def walk(
        self, tally: Tally, at: Input, tuning: Tuning, size: int, *, grad: bool, memory_grad: bool
    ) -> bool:
        """Adds this part to ``tally``; returns whether the stream needs a gradient behind it.

        Args:
            tally: what the block costs so far.
            at: shape of the input.
            tuning: what ``size`` means.
            size: the block's size, >= 0.
            grad: whether the stream needs a gradient in front of this part.
            memory_grad: the same of the encoder's output.
        """
        own, width = at.batch * at.tokens, self.num_heads * self.head_width
        if not self.is_post_norm:
            tally.norm(self.norm, own, in_grad=grad)
        keys = at.memory_tokens if self.is_cross else at.tokens
        sources = [grad, memory_grad, memory_grad] if self.is_cross else [grad] * 3
        rows = [own, *[at.batch * keys] * 2]
        tuned = [size > 0 and each.name in tuning.targets for each in self.reads]
        for each, tokens, in_grad, has_lora in zip(self.reads, rows, sources, tuned, strict=False):
            tally.frozen_map(each, tokens, in_grad=in_grad)
            if has_lora:
                tally.lora(each, tokens, size, in_grad=in_grad, train_a=tuning.train_a)
        tally.keeps_shared |= any(sources) or any(tuned[:2])  # values are not turned
        if tuning.train_a:
            if self.is_cross:
                tally.keeps_memory |= any(tuned[1:])
                tally.saved_reals += own * self.reads[0].d_in * tuned[0]
            else:
                tally.saved_reals += own * self.reads[0].d_in * any(tuned)
        prompt = size if tuning.has_deep_prompt and not self.is_cross else 0
        tally.tuned_params += 2 * prompt * self.kv_width
        keys += prompt
        # queries are a view of the fused map's output, which keys and values no longer are
        tally.saved_reals += 2 * own * width * (prompt > 0 and len(self.reads) == 1)
        flows = any(tuned) or any(sources) or prompt > 0
        products = 2 * at.batch * at.tokens * keys * width
        tally.forward_flops += 2 * products
        if flows:
            # A fused kernel computes the scores again and always returns all three gradients.
            tally.backward_flops += 5 * products
            tally.saved_reals += 2 * own * width + 2 * at.batch * keys * width
            tally.saved_reals += own * self.num_heads  # log-sum-exp of every row of scores
            bias_rows = 1 if self.bias_is_shared else at.batch
            tally.saved_reals += bias_rows * self.bias_heads * at.tokens * keys
        flows = _behind(
            tally, self.out, own, tuning, size, grad=flows, is_kept=flows or not tuning.train_a
        )
        flows |= grad  # the residual sum
        if self.is_post_norm:
            tally.norm(self.norm, own, in_grad=flows)
        return flows


@dataclass(frozen=True, kw_only=True)
class FeedForward:
    """One feed-forward part with its norm.

    Attributes:
        ups: the widening map, or the gated and the plain one of a gated part.
        down: the narrowing map.
        norm: the norm in front, or behind the residual sum if ``is_post_norm``.
        is_post_norm: BERT's order.
        num_kept: tensors of the inner width that the activation keeps for its gradient.
        keeps_output: whether one of them is its output (ReLU).
    """

    ups: tuple[Map, ...]
    down: Map
    norm: Norm
    is_post_norm: bool
    num_kept: int
    keeps_output: bool

    @property
    def maps(self) -> tuple[Map, ...]:
        """All maps in order."""
        return (*self.ups, self.down)

    def walk(
        self, tally: Tally, at: Input, tuning: Tuning, size: int, *, grad: bool, memory_grad: bool
    ) -> bool:
        """Like ``Attention.walk``; ``memory_grad`` is not used."""
        own, inner = at.batch * at.tokens, self.down.d_in
        if not self.is_post_norm:
            tally.norm(self.norm, own, in_grad=grad)
        tuned = [size > 0 and each.name in tuning.targets for each in self.ups]
        for each, has_lora in zip(self.ups, tuned, strict=True):
            tally.frozen_map(each, own, in_grad=grad)
            if has_lora:
                tally.lora(each, own, size, in_grad=grad, train_a=tuning.train_a)
        tally.saved_reals += own * self.ups[0].d_in * (tuning.train_a and any(tuned))
        flows = [grad or has_lora for has_lora in tuned]
        tally.saved_reals += own * inner * self.num_kept * flows[0]
        is_gated = len(flows) > 1
        if is_gated:  # the product keeps either factor for the other's gradient
            tally.saved_reals += own * inner * sum(flows)
        is_kept = (self.keeps_output and not is_gated and flows[0]) or not tuning.train_a
        flow = _behind(tally, self.down, own, tuning, size, grad=any(flows), is_kept=is_kept)
        flow |= grad
        if self.is_post_norm:
            tally.norm(self.norm, own, in_grad=flow)
        return flow


Part = Attention | FeedForward


def _behind(
    tally: Tally,
    each: Map,
    tokens: int,
    tuning: Tuning,
    size: int,
    *,
    grad: bool,
    is_kept: bool,
) -> bool:
    """Counts a part's last map; returns the new bit."""
    tally.frozen_map(each, tokens, in_grad=grad)
    if size > 0 and each.name in tuning.targets:
        tally.lora(each, tokens, size, in_grad=grad, train_a=tuning.train_a)
        tally.saved_reals += tokens * each.d_in * (not is_kept)
        grad = True
    return grad


def behind_block(
    tally: Tally, at: Input, tuning: Tuning, width: int, size: int, *, grad: bool
) -> bool:
    """Counts the bottleneck adapter behind a block, if there is one; returns the new bit.

    Args:
        tally: what the block costs so far.
        at: shape of the input.
        tuning: what ``size`` means.
        width: d of the stream.
        size: the block's size, >= 0.
        grad: whether the stream needs a gradient in front of the adapter.
    """
    if size == 0 or not tuning.bottleneck:
        return grad
    tokens = at.batch * at.tokens
    half = 2 * tokens * width * size
    num_kept, keeps_output = kept(tuning.bottleneck)
    tally.forward_flops += 2 * half
    tally.backward_flops += 3 * half + half * grad
    # the adapter's input for D's gradient, act's output for U's
    tally.saved_reals += tokens * (width + size * (num_kept + (not keeps_output)))
    tally.tuned_params += 2 * width * size
    return True


def num_params(parts: Sequence[Part]) -> int:
    """Returns the frozen parameters of a block."""
    return sum(part.norm.num_params + sum(each.num_params for each in part.maps) for part in parts)
