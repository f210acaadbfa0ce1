"""What to try next, and trying it: surrogate, proposals, recommendations, tunings.

May import: everything up to `mlmeta.train`; torch; MLflow in `recording` only.
"""
