"""Who tunes which block in a round, and on how much of the band (after arXiv:2407.09873).

Devices tune different blocks at once and the round ends with the slowest. The follow-up paper's
body is not public; names and goals are its abstract's, the algorithms are reconstructions.

Conventions: arrays of costs are [num_devices, num_blocks]; ``inf`` marks a pair that may not be
(memory); an assignment [num_blocks] gives every block one device, and every device at most one
block; depth order means that blocks are sorted from the loss, the cheapest first.
"""
