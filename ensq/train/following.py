"""What a trainer that follows does with each order of the leading one."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any

import ensq.train.compat  # noqa: F401  (before chemtrain and jax_md)

import jax
import msgspec
import numpy as np

from ensq import config as configuration
from ensq import faults
from ensq.errors import DataError
from ensq.train import channel
from ensq.train.batches import Batches, batches_of_epoch
from ensq.train.child import load, turn_to_log
from ensq.train.leading import unpacked
from ensq.train.pack import Lanes, Program


class Follower:
    """The state of a pack, moved as the leading trainer says."""

    def __init__(self, lead: channel.Lead, process: int) -> None:
        self._lead, self._process = lead, process
        self._program: Any = None  # a Program, once one was begun
        self._lanes: Any = None  # Lanes, once they were sent
        self._batches: tuple[int, Batches] | None = None  # of this epoch

    def obey(self) -> None:
        """Carry out the next order, to its end: the next exchange begins when this one is over."""
        order, payload = self._lead.next()
        match order:
            case channel.Log():
                log = Path(order.path)
                name = f"{log.stem}-process-{self._process}{log.suffix}"
                turn_to_log(str(log.with_name(name)))
            case channel.Begin():
                self._lanes = self._batches = self._program = None  # the next needs its memory
                self._program = prepared(order)
                self._lead.done()
            case channel.Spread():
                self._lanes = self._program.spread(unpacked(self._program, order, payload))
            case _:
                self._lanes = jax.block_until_ready(self._moved(order, self._program, self._lanes))
                if isinstance(order, channel.Compile):
                    self._lead.done()

    def _moved(self, order: channel.Order, program: Program, lanes: Lanes) -> Lanes:
        """The state after an order."""
        match order:
            case channel.BeginStage():
                return program.begin_stage(lanes, order.epoch)
            case channel.Compile():
                return program.compile(lanes, order.epoch, self._batches_of(order.epoch))
            case channel.Steps():
                batches = self._batches_of(order.epoch)
                lanes = program.run_steps(lanes, order.epoch, batches, order.start, order.stop)
                faults.point("follower.step")
            case channel.Validate():
                program.validate(program.evaluated(lanes))
            case channel.KeepBest():
                return program.keep_best(lanes, np.array(order.improved))
            case channel.Fetch():
                program.fetch(lanes, *order.fields)
        return lanes

    def _batches_of(self, epoch: int) -> Batches:
        if self._batches is None or self._batches[0] != epoch:
            program: Program = self._program
            seed = program.config.data.seed
            made = batches_of_epoch(program.dataset.sizes, program.batch, seed, epoch)
            self._batches = epoch, made
        return self._batches[1]


def prepared(order: channel.Begin) -> Program:
    """The program that the leading trainer has, over the same devices.

    Raises what ``load`` does: each process sees to it that its data are those enqueued.
    """
    config = configuration.loads(order.config)
    placed = msgspec.structs.replace(config.data, placement=order.placement)
    config = msgspec.structs.replace(config, data=placed)
    path = Path(order.data_path)
    if not path.exists():
        raise DataError(f"{path} is not seen on {socket.gethostname()}")
    return Program(config, load(config, order, print), jax.devices())
