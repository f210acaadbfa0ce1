"""One attempt in MLflow: written, found, recovered. Nothing else writes to MLflow while an attempt runs.

May import: `mlmeta.commands`, `mlmeta.files` and what stands below them; MLflow.
"""
