"""Suites of environments, one file for each: adapters that make those of other packages keep the contract of `Environment`, and tasks that
are written anew."""
