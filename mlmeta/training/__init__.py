"""The training loop and what stands around it: preparation, checkpoints, stopping, initial weights, the test.

The loop tells a small `Recorder` of each epoch and knows no MLflow.
May import: everything up to `mlmeta.reports`; torch.
"""
