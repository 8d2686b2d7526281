"""Shapes of families with full heads, LayerNorm, biases and two-map feed-forward parts."""

from typing import Any

from fl_app.resources.activations import kept
from fl_app.resources.architecture import Architecture, Head
from fl_app.resources.errors import ResourceError
from fl_app.resources.parts import Attention, FeedForward
from fl_app.resources.tally import Map, Norm


def _plain(
    width: int,
    inner: int,
    names: tuple[str, ...],
    *,
    num_heads: int,
    activation: str,
    is_post_norm: bool,
    qkv_bias: bool = True,
    bias_heads: int = 1,
) -> tuple[Attention, FeedForward]:
    """Attention with full heads and a feed-forward part of two maps, with LayerNorm and biases.

    ``names``: of the maps that read the stream (three, or a fused one), then out, up and down.
    """
    *reads, out, up, down = names
    norm = Norm(width, is_centred=True)
    num_kept, keeps_output = kept(activation)
    each = 3 * width // len(reads)
    return (
        Attention(
            reads=tuple(Map(name, width, each, qkv_bias) for name in reads),
            out=Map(out, width, width),
            norm=norm,
            is_post_norm=is_post_norm,
            num_heads=num_heads,
            head_width=width // num_heads,
            kv_width=width,
            bias_heads=bias_heads,
        ),
        FeedForward(
            ups=(Map(up, width, inner),),
            down=Map(down, inner, width),
            norm=norm,
            is_post_norm=is_post_norm,
            num_kept=num_kept,
            keeps_output=keeps_output,
        ),
    )


def bert(config: Any, head: Head) -> Architecture:
    """BERT and RoBERTa: norms behind the residual sums."""
    width = config.hidden_size
    names = ("query", "key", "value", "dense", "dense", "dense")
    block = _plain(
        width,
        config.intermediate_size,
        names,
        num_heads=config.num_attention_heads,
        activation=config.hidden_act,
        is_post_norm=True,
    )
    rows = config.vocab_size + config.max_position_embeddings + config.type_vocab_size
    return Architecture(
        model_type=config.model_type,
        width=width,
        blocks=(block,) * config.num_hidden_layers,
        num_encoder_blocks=0,
        outer_params=rows * width + 2 * width,
        norm=None,
        head=head,
        default_targets=("query", "value"),
    )


def distilbert(config: Any, head: Head) -> Architecture:
    """DistilBERT: as BERT, without token types."""
    names = ("q_lin", "k_lin", "v_lin", "out_lin", "lin1", "lin2")
    block = _plain(
        config.dim,
        config.hidden_dim,
        names,
        num_heads=config.n_heads,
        activation=config.activation,
        is_post_norm=True,
    )
    return Architecture(
        model_type=config.model_type,
        width=config.dim,
        blocks=(block,) * config.n_layers,
        num_encoder_blocks=0,
        outer_params=(config.vocab_size + config.max_position_embeddings + 2) * config.dim,
        norm=None,
        head=head,
        default_targets=("q_lin", "v_lin"),
    )


def gpt2(config: Any, head: Head) -> Architecture:
    """GPT-2: norms in front, one fused map for queries, keys and values."""
    width = config.n_embd
    block = _plain(
        width,
        config.n_inner or 4 * width,
        ("c_attn", "c_proj", "c_fc", "c_proj"),
        num_heads=config.n_head,
        activation=config.activation_function,
        is_post_norm=False,
    )
    return Architecture(
        model_type=config.model_type,
        width=width,
        blocks=(block,) * config.n_layer,
        num_encoder_blocks=0,
        outer_params=(config.vocab_size + config.n_positions + 2) * width,
        norm=Norm(width, is_centred=True),
        head=head,
        default_targets=("c_attn",),
    )


def opt(config: Any, head: Head) -> Architecture:
    """OPT: norms in front, ReLU.

    Raises:
        ResourceError: the 350m model's order and narrow embedding.
    """
    width = config.hidden_size
    narrow = getattr(config, "word_embed_proj_dim", width)
    if narrow != width or not config.do_layer_norm_before:
        raise ResourceError(
            f"word_embed_proj_dim={narrow} and do_layer_norm_before="
            f"{config.do_layer_norm_before}: OPT is priced with {width} and True only; choose "
            "another size than 350m"
        )
    block = _plain(
        width,
        config.ffn_dim,
        ("q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2"),
        num_heads=config.num_attention_heads,
        activation=config.activation_function,
        is_post_norm=False,
    )
    rows = config.vocab_size + config.max_position_embeddings + 2  # two reserved positions
    return Architecture(
        model_type=config.model_type,
        width=width,
        blocks=(block,) * config.num_hidden_layers,
        num_encoder_blocks=0,
        outer_params=rows * width + 2 * width,
        norm=Norm(width, is_centred=True),
        head=head,
        default_targets=("q_proj", "v_proj"),
    )


def vit(config: Any, head: Head) -> Architecture:
    """ViT: norms in front; the image sets the number of tokens."""
    width, patches = config.hidden_size, (config.image_size // config.patch_size) ** 2
    block = _plain(
        width,
        config.intermediate_size,
        ("q_proj", "k_proj", "v_proj", "o_proj", "fc1", "fc2"),
        num_heads=config.num_attention_heads,
        activation=config.hidden_act,
        is_post_norm=False,
        qkv_bias=config.qkv_bias,
        bias_heads=0,
    )
    patch = Map("patch", config.num_channels * config.patch_size**2, width)
    return Architecture(
        model_type=config.model_type,
        width=width,
        blocks=(block,) * config.num_hidden_layers,
        num_encoder_blocks=0,
        outer_params=patch.num_params + (1 + patches + 1) * width + 2 * width,
        norm=Norm(width, is_centred=True),
        head=head,
        default_targets=("q_proj", "v_proj"),
        fixed_tokens=patches + 1,
        patches=patch,
    )
