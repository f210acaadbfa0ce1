"""Check that the newest attempt of the tracking store is complete and accurate enough; exit code 1 where not.

python scripts/assert_run.py --at-least 0.97
"""

from __future__ import annotations

import argparse
import sys

from mlflow import MlflowClient


def main() -> None:
    """Look at the newest attempt."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--at-least", type=float, required=True, help="the least accuracy, 0 to 1")
    least = parser.parse_args().at_least
    run = MlflowClient().search_runs(["0"], order_by=["attributes.start_time DESC"], max_results=1)[0]
    status, accuracy = run.data.tags.get("mlmeta.status"), run.data.metrics.get("accuracy", 0.0)
    print(f"{run.info.run_name}: {run.info.status}, {status}, accuracy {accuracy:.1%}")
    sys.exit(int((run.info.status, status) != ("FINISHED", "Complete") or accuracy < least))


if __name__ == "__main__":
    main()
