"""Where the frames lie while a pack trains: all on the device, or on the host, fed in pieces."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from ensq import data
from ensq.config import RunConfig
from ensq.errors import ConfigError
from ensq.train import environment
from ensq.train.neighbours import build_neighbours, is_periodic

# Shares that the data may take: activations of the model need the rest of the device; on the host
# the data, their neighbours and what goes to the device stand side by side for a while.
_OF_DEVICE, _OF_HOST = 0.5, 0.25
_SAMPLE = 100  # frames whose neighbours are counted for the estimate
_MARGIN = 1.2  # the widest of all frames is wider than that of a sample


def on_device(source: data.Source, split: data.Split, config: RunConfig) -> bool:
    """Whether all frames are to be laid out on the device, by ``data.placement``.

    Raises ConfigError if they are not, and the configuration needs them there.
    """
    wanted = config.data.placement
    if wanted == "device":
        return True
    fits = wanted == "auto" and estimate(source, split, config) <= budget()
    if not fits and config.training.pretrain_prior:
        raise ConfigError(
            "training.pretrain_prior looks at all frames at once, and they "
            + ("are too large for this device" if wanted == "auto" else "stay on the host")
            + ": fit the priors beforehand (`ensq priors fit`) and set pretrain_prior: false, or "
            "set data.placement: device"
        )
    return fits


def estimate(source: data.Source, split: data.Split, config: RunConfig) -> int:
    """Bytes of all frames, laid out on the device."""
    frames = np.sort(np.concatenate([split.training, split.validation]))
    beads, size = source.n_beads, np.dtype(config.training.dtype).itemsize
    bare = beads * (7 * size + 4) + size  # positions, forces, mask; species; energy
    edge = 8 + size  # neighbour and reverse; mask
    if source.cell is None and len(frames) * (bare + beads * beads * edge) <= budget():
        return len(frames) * (bare + beads * beads * edge)  # no need to count
    chosen = np.unique(np.linspace(0, len(frames) - 1, _SAMPLE).astype(int))
    part = source.take(frames[chosen])
    layout = build_neighbours(part.R, part.mask, config.model.cutoff, part.cell)
    width = int(np.ceil(layout.index.shape[2] * _MARGIN))
    if is_periodic(part.cell):
        edge += 3 * size
    return len(frames) * (bare + beads * width * edge)


def budget() -> int:
    """Bytes that the data may take on the device."""
    host = int(_OF_HOST * host_memory())
    _, limit = environment.memory()
    return host if limit is None else min(host, int(_OF_DEVICE * limit))


def host_memory(root: Path = Path("/")) -> int:
    """Bytes of memory that this process may use: the machine's, or the limit of its group."""
    limits = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    for file in _limit_files(root):
        try:
            text = file.read_text().strip()
        except OSError:
            continue
        if text.isdecimal():  # else "max"
            limits.append(int(text))
    return min(limits)


def _limit_files(root: Path) -> Iterator[Path]:
    """The files that limit the memory of this process's control group and those above it."""
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers and "memory" not in controllers.split(","):
            continue
        base = root / "sys/fs/cgroup" / ("memory" if controllers else "")
        name = "memory.limit_in_bytes" if controllers else "memory.max"
        below = Path(path.lstrip("/"))
        for folder in (below, *below.parents):
            yield base / folder / name
