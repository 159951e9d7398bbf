"""Populations: many points of an algorithm's numbers, each with several seeds, trained at once on all devices."""

from eqxrl.sweeps._result import Sweep as Sweep
from eqxrl.sweeps._space import Range as Range
from eqxrl.sweeps._space import log_uniform as log_uniform
from eqxrl.sweeps._space import uniform as uniform
from eqxrl.sweeps._sweep import sweep as sweep
