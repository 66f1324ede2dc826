"""Wrappers of the layers that models are built of, and the blocks that decoders share."""
