"""Looks at results: GIFs of episodes, learning curves over seeds."""

from eqxrl.viz._curves import Curve as Curve
from eqxrl.viz._curves import bootstrap_interval as bootstrap_interval
from eqxrl.viz._curves import iqm as iqm
from eqxrl.viz._curves import plot_learning_curves as plot_learning_curves
from eqxrl.viz._episode import render_episode as render_episode
from eqxrl.viz._sweep import plot_sweep as plot_sweep
