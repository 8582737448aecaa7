"""Recipes: one plain file per model that can be trained, each runnable with ``python -m``."""
