"""Mistakes that people make when they re-implement, wrap or quantise a model.

Each is one line of a table: its name, what plants it in a copy of a right model, and the origin
that a verdict must name. The tables were written before the tool was run on them.
"""
