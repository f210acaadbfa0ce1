"""From what the user has to batches on the device, and what the data says of the task.

`task` asks all others. Where other kinds of input come in beside pictures: `sources` (folders and manifests), `roots`
(where files may lie), `samples` (the built-in sets), `batches` and `task`. About pictures alone: `pictures`,
`image_ops`, `decoding`, `picture_cache`, `transforms`, `transform_plan`, `metafeatures`, `torchvision_datasets` and
`dog_drawing`.

May import: `mlmeta.commands`, `mlmeta.files` and what stands below them; torch. Knows no network.
"""
