"""All attempts of a tracking store as one table, read in bulk and kept between readings.

May import: `mlmeta.tracking`, `mlmeta.files` and what stands below them; MLflow in `api_reader` only.
"""
