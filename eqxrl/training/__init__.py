"""Running an algorithm from the host: files and checkpoints."""

from eqxrl.training._checkpoints import Checkpoints as Checkpoints
from eqxrl.training._files import CheckpointDamaged as CheckpointDamaged
from eqxrl.training._files import CheckpointMismatch as CheckpointMismatch
from eqxrl.training._files import load as load
from eqxrl.training._files import read_manifest as read_manifest
from eqxrl.training._files import read_metadata as read_metadata
from eqxrl.training._files import save as save
