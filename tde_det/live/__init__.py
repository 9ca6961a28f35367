"""A page on which adjustments of a trained model can be tried on any image."""
