"""The JSON document that says what to do: its fields, rules, allow-list, schema, search space and MLflow params.

A document is judged here without torch, data or MLflow. May import: `mlmeta.errors`, `mlmeta.status`.
"""
