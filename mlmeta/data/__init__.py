"""From what the user has to batches on the device, and what the data says of the task.

Rooms about pictures alone are named so; sources, batches and the task are where other kinds of input come in.
May import: `mlmeta.commands`, `mlmeta.files` and what stands below them; torch. Knows no network.
"""
