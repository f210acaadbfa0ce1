"""What the table of attempts says: filters, searches, leaderboards, importance, effects, like tasks.

Tables in, tables out. May import: `mlmeta.history` and what stands below it; neither torch nor MLflow.
"""
