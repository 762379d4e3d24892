"""The same bundles behind NVIDIA Triton: a model repository made from bundles, and the real server to run it."""
