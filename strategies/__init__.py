"""The server side of a round."""
