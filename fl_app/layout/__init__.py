"""Allocation: which block gets how much of the adapter.

A *layout* is one size per block (LoRA rank, adapter width, prefix length), an integer array
[num_blocks] in forward order; the last block is the nearest to the loss. One step of size in one
block is a *unit*. A *rule* says how a number of units is spread over the blocks; *budgets* say how
many units may be spent, by asking a pricer what a layout costs. Rules know no budgets and pricers
know no rules.
"""
