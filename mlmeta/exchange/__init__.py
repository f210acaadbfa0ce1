"""Attempts in and out without training: Attempt documents and tables of other tools.

May import: `mlmeta.history`, `mlmeta.spec_builder`, `mlmeta.tracking`, `mlmeta.data` and what stands below; MLflow.
"""
