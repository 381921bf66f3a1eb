"""The real trainer on a CPU that looks like an accelerator: for tests of ``--pack auto``."""

from __future__ import annotations

from ensq.train import child, environment, probe

if __name__ == "__main__":
    environment.platform = lambda: "gpu"
    environment.memory = lambda: (None, None)
    probe.LEAST_GAIN = -10.0  # larger packs always pay
    child.main()
