"""Wrappers for every part of Qwen3-VL: text, vision, and the whole model."""

# Importing these registers their wrappers.
from wrappers.families.qwen3_vl import model as model
from wrappers.families.qwen3_vl import text as text
from wrappers.families.qwen3_vl import vision as vision
from wrappers.families.qwen3_vl import vision_attention as vision_attention
