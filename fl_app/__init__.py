"""Device-edge fine-tuning (DEFT) of foundation models as a Flower application.

Implements the techniques named in the abstract of arXiv:2310.18602. This package holds the
application core and the two Flower entry points; it imports nothing, so that reading the version
costs nothing and the layers below stay acyclic.
"""

__version__ = "0.1.0"
