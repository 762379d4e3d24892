"""From a recipe to a registered model version."""
