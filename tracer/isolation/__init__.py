"""Whose error it is: each module on the reference's inputs, and what in it causes the error."""
