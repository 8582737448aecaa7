"""How good a target is, what a draft is worth, and against what that has to be held."""
