"""The TResNet family: the network, its checkpoints, and the contract that travels with a model.

This package is shared by training, export and the gateway. Importing it, :mod:`tresnet.contract`
or :mod:`tresnet.picture` does not import torch, so the gateway stays light.
"""

__version__ = "0.1.0"
