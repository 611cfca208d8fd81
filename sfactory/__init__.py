"""sfactory: train a policy as fast as one machine allows, from data whose staleness is known to the update."""

from sfactory._version import __version__

__all__ = ["__version__"]
