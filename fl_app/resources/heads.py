"""Task heads by family: a language model's map to the vocabulary, or a classifier."""

from typing import Any

from fl_app.resources.architecture import Head
from fl_app.resources.tally import Map


def pooled(config: Any, num_labels: int) -> Head:
    """BERT: a frozen pooler and a tuned classifier on the first token."""
    width = config.hidden_size
    pooler, out = Map("pooler", width, width), Map("classifier", width, num_labels)
    return Head(frozen=(pooler,), tuned=(out,))


def two_layers(config: Any, num_labels: int) -> Head:
    """RoBERTa, DistilBERT: a tuned square map and a tuned classifier on the first token."""
    width = config.dim if hasattr(config, "dim") else config.hidden_size
    maps = Map("dense", width, width), Map("out_proj", width, num_labels)
    return Head(tuned=maps, keeps_stream=True)


def one_layer(config: Any, num_labels: int) -> Head:
    """ViT: a tuned classifier on the first token."""
    return Head(tuned=(Map("classifier", config.hidden_size, num_labels),), keeps_stream=True)


def decoder(config: Any, num_labels: int) -> Head:
    """Decoders: the map to the vocabulary, or a tuned score of every token."""
    width = config.n_embd if hasattr(config, "n_embd") else config.hidden_size
    if num_labels:
        return Head(tuned=(Map("score", width, num_labels, has_bias=False),), every_token=True)
    return vocabulary(width, config)


def t5(config: Any, num_labels: int) -> Head:
    """T5: the map to the vocabulary, or two tuned maps on the last token."""
    width = config.d_model
    if num_labels:
        return Head(tuned=(Map("dense", width, width), Map("out_proj", width, num_labels)))
    return vocabulary(width, config)


def vocabulary(width: int, config: Any) -> Head:
    """The frozen map from the stream to the logits of every token."""
    out = Map("lm_head", width, config.vocab_size, has_bias=False)
    return Head(frozen=(out,), every_token=True, is_tied=bool(config.tie_word_embeddings))
