"""Where off-policy algorithms keep what they have seen."""

from eqxrl.buffers._base import AbstractBuffer as AbstractBuffer
from eqxrl.buffers._base import BufferState as BufferState
from eqxrl.buffers._base import Drawn as Drawn
from eqxrl.buffers._prioritized import PrioritizedBuffer as PrioritizedBuffer
from eqxrl.buffers._sequences import replayed as replayed
from eqxrl.buffers._sequences import sequences as sequences
from eqxrl.buffers._uniform import UniformBuffer as UniformBuffer
