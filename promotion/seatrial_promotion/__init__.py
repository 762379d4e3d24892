"""From a bundle to the alias that serving follows, and back."""
