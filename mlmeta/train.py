"""Train one attempt: `train_attempt` reads top to bottom and knows nothing of MLflow.

The whole job, train, then test, recorded as one MLflow run, is `mlmeta.attempts.run_attempt`. The MLproject entry
points ``main`` and ``train`` are ``python -m mlmeta.train``.
"""

from __future__ import annotations


def main() -> None:
    """Run ``mlmeta train`` with the arguments of this process."""
    from mlmeta.cli import run_command

    run_command("train")


if __name__ == "__main__":
    main()
