"""From a model version to the cheapest variant that is proved good enough."""
