"""Training: scenes and photographs, the trainer, and the recipes that make models with them."""
