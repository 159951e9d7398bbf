"""How good each step turned out to be."""

from eqxrl.advantages._base import AbstractAdvantage as AbstractAdvantage
from eqxrl.advantages._base import next_values as next_values
from eqxrl.advantages._gae import GAE as GAE
from eqxrl.advantages._n_step import NStep as NStep
from eqxrl.advantages._returns import q_lambda_returns as q_lambda_returns
from eqxrl.advantages._returns import retrace_returns as retrace_returns
from eqxrl.advantages._returns import soft_lambda_returns as soft_lambda_returns
from eqxrl.advantages._vtrace import VTrace as VTrace
