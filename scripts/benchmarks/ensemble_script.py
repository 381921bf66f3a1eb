"""A script that trains an ensemble the way chemtrain does: one EnsembleOfModels, one process.

``python -m benchmarks.ensemble_script SPEC`` with a JSON object; tells the device, then each member
as it ends, as lines of JSON.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any


def main() -> None:
    spec = json.loads(sys.argv[1])
    lines = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # chemtrain prints

    def say(**line: Any) -> None:
        print(json.dumps(line), file=lines, flush=True)

    import jax

    from benchmarks.forcematching import ensemble_of, trainer_of
    from benchmarks.programs import program_of
    from ensq.train import environment

    say(device=environment.device(), kind=jax.default_backend())
    program = program_of(spec["config"], spec["sets"])
    seeds = range(spec["members"])
    trainers = [
        trainer_of(program, spec["function"], seed, Path(spec["folder"]) / str(seed))
        for seed in seeds
    ]
    ended = [time.time()]

    def told(trainer: Any, *_: Any, **__: Any) -> None:
        if trainer._diverged or len(trainer.val_losses) != program.config.epochs:
            raise SystemExit("chemtrain's trainer gave up; its log says why")
        ended.append(time.time())
        loss = float(trainer._early_stop.best_loss)
        say(member=len(ended) - 1, wall=ended[-1], seconds=ended[-1] - ended[-2], loss=loss)

    for trainer in trainers:
        trainer.add_task("post_training", told)
    ensemble = ensemble_of(trainers)
    ensemble.train(program.config.epochs)
    jax.block_until_ready(ensemble.params)


if __name__ == "__main__":
    main()
