"""Environments of other packages, one file for each package: an adapter that makes them keep the contract of `Environment`."""
