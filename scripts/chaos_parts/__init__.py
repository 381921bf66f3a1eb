"""Parts of scripts/chaos: the place, the workers, the faults, and what is checked."""
