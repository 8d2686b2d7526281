"""What a local step costs: floating-point operations, memory, bytes, seconds and joules.

Everything follows from a model's configuration; no weight is loaded and no torch is imported, so a
model far larger than this machine can be planned in milliseconds.

Conventions that hold in every module of this package:

* A multiply-add is two FLOPs. Only matrix products count: maps and attention. Norms, activations
  and the optimiser are left out (their share is of the order of one over the width).
* A *real* is one number of a tensor; bytes are reals times bytes per real.
* A *size* is what a layout gives a block: a LoRA rank, the width of bottleneck adapters, or the
  length of a deep prompt. Size 0 costs nothing.
* Blocks are numbered in forward order. An encoder-decoder's encoder blocks come first, so the last
  block is the one nearest to the loss in every family.
* Attention is fused (it stores no matrix of scores), batches are padded and carry a mask, and
  nothing is recomputed: activations are kept from forward to backward.
"""
