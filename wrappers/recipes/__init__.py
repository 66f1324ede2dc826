"""Recipes: from a checkpoint to a quantised model, its figures and its graphs, by one file.

    recipe = recipes.Recipe.read("int4.toml")
    made = recipes.make(recipe, "path/of/a/model", "quantized")

The command line has them as `trace_model quantize`.
"""

from wrappers.recipes.making import Made, make
from wrappers.recipes.recipe import Recipe
from wrappers.recipes.stages import known_stages

__all__ = ["Made", "Recipe", "known_stages", "make"]
