"""Inputs for models: texts, images, or made from a seed."""
