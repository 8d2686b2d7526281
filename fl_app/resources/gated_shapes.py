"""Shapes of families with RMSNorm: LLaMA and its kin, and T5."""

from typing import Any

from fl_app.resources.activations import kept
from fl_app.resources.architecture import Architecture, Head
from fl_app.resources.parts import Attention, FeedForward
from fl_app.resources.tally import Map, Norm


def llama(config: Any, head: Head) -> Architecture:
    """LLaMA, Mistral and Qwen2: RMSNorm, grouped heads, gated feed-forward parts."""
    width, num_heads = config.hidden_size, config.num_attention_heads
    head_width = getattr(config, "head_dim", None) or width // num_heads
    kv_width = (config.num_key_value_heads or num_heads) * head_width
    is_qwen = config.model_type == "qwen2"  # biases on what reads the stream, and nowhere else
    bias = is_qwen or bool(getattr(config, "attention_bias", False))
    mlp_bias = bool(getattr(config, "mlp_bias", False))
    norm = Norm(width, is_centred=False)
    num_kept, keeps_output = kept(config.hidden_act)
    reads = (
        Map("q_proj", width, num_heads * head_width, bias),
        Map("k_proj", width, kv_width, bias),
        Map("v_proj", width, kv_width, bias),
    )
    inner = config.intermediate_size
    block = (
        Attention(
            reads=reads,
            out=Map("o_proj", num_heads * head_width, width, bias and not is_qwen),
            norm=norm,
            is_post_norm=False,
            num_heads=num_heads,
            head_width=head_width,
            kv_width=kv_width,
        ),
        FeedForward(
            ups=(Map("gate_proj", width, inner, mlp_bias), Map("up_proj", width, inner, mlp_bias)),
            down=Map("down_proj", inner, width, mlp_bias),
            norm=norm,
            is_post_norm=False,
            num_kept=num_kept,
            keeps_output=keeps_output,
        ),
    )
    return Architecture(
        model_type=config.model_type,
        width=width,
        blocks=(block,) * config.num_hidden_layers,
        num_encoder_blocks=0,
        outer_params=config.vocab_size * width + width,
        norm=norm,
        head=head,
        default_targets=("q_proj", "v_proj"),
        shared_per_token=2 * head_width,
    )


def t5(config: Any, head: Head) -> Architecture:
    """T5 in both versions: an encoder, and a decoder that reads its output."""
    width, inner = config.d_model, config.num_heads * config.d_kv
    gated = config.feed_forward_proj.startswith("gated-")
    activation = config.feed_forward_proj.removeprefix("gated-")
    num_kept, keeps_output = kept("gelu_new" if (gated and activation == "gelu") else activation)
    norm = Norm(width, is_centred=False)

    def attention(*, is_cross: bool, bias_is_shared: bool) -> Attention:
        return Attention(
            reads=tuple(Map(name, width, inner, has_bias=False) for name in "qkv"),
            out=Map("o", inner, width, has_bias=False),
            norm=norm,
            is_post_norm=False,
            num_heads=config.num_heads,
            head_width=config.d_kv,
            kv_width=inner,
            is_cross=is_cross,
            bias_heads=config.num_heads,
            bias_is_shared=bias_is_shared,
        )

    feed = FeedForward(
        ups=tuple(
            Map(name, width, config.d_ff, has_bias=False)
            for name in (("wi_0", "wi_1") if gated else ("wi",))
        ),
        down=Map("wo", config.d_ff, width, has_bias=False),
        norm=norm,
        is_post_norm=False,
        num_kept=num_kept,
        keeps_output=keeps_output,
    )
    encoder = (attention(is_cross=False, bias_is_shared=False), feed)
    decoder = (
        attention(is_cross=False, bias_is_shared=True),
        attention(is_cross=True, bias_is_shared=False),
        feed,
    )
    num_decoder = (
        config.num_layers if config.num_decoder_layers is None else (config.num_decoder_layers)
    )
    positions = 2 * config.relative_attention_num_buckets * config.num_heads
    return Architecture(
        model_type=config.model_type,
        width=width,
        blocks=(encoder,) * config.num_layers + (decoder,) * num_decoder,
        num_encoder_blocks=config.num_layers,
        outer_params=config.vocab_size * width + positions + 2 * width,
        norm=norm,
        head=head,
        default_targets=("q", "v"),
    )
