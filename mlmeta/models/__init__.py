"""What a network is made of: layers, the shapes that reach them, losses, optimizers and weights.

A network follows from the commands alone. May import: `mlmeta.commands` and what stands below it; torch.
"""
