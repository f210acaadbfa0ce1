"""mlmeta inside the MLflow server: ``mlflow server --app-name mlmeta``."""
