"""The device side of a round: message in, message out."""
