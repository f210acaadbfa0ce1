"""mlmeta inside MLflow's server: the API, the pages, the queue and the worker that empties it.

May import: everything below; MLflow, never torch: trainings run in processes of their own.
"""
