"""The recipe language: what a flow may say, what it means, and everything that is wrong with one. No torch.

``validate`` is the server's door, ``resolve`` the trainer's; ``blocks`` defines every field, ``families`` every model.
"""

from runyard.flows.json_schema import schema
from runyard.flows.problems import FlowProblems, Problem
from runyard.flows.recipe import Recipe, recipe_document
from runyard.flows.validation import resolve, validate

__all__ = ["FlowProblems", "Problem", "Recipe", "recipe_document", "resolve", "schema", "validate"]
