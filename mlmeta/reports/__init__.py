"""What is shown: tables, plots, the HTML report, and the commands that ask about attempts.

May import: `mlmeta.analysis` and what stands below it. MLflow is reached through `mlmeta.tracking` only.
"""
