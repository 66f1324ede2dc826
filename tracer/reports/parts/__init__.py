"""The parts that reports are made of."""
