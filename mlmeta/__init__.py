"""mlmeta: spend less time tuning the next model."""
