"""Going on where the newest checkpoint of a folder stands."""

from __future__ import annotations

import logging
from dataclasses import asdict

from sparsefield.data import Data
from sparsefield.errors import UserError
from sparsefield.train.config import TrainingConfig, may_change
from sparsefield.train.distributed import World
from sparsefield.train.runfolder import RunFolder

log = logging.getLogger("sparsefield")


def resume(
    config: TrainingConfig,
    arguments: dict,
    data: Data,
    folder: RunFolder,
    persistent: dict,
    world: World,
) -> None:
    """Set everything persistent to where the newest checkpoint of the folder stands, if any.

    Raises:
        UserError: there is none and `resume` is "must", none can be read, or the newest was made
            with other settings or data.
    """
    if config.resume == "never" and world.is_first:
        folder.set_aside()
    checkpoint = world.from_first(lambda: newest(config, folder))
    if checkpoint is None:
        if world.is_first:
            if folder.has_weights and not folder.records.exists():
                folder.set_aside()  # weights that came without their training: not ours to replace
            folder.rewind(-1)  # of a run that ended before its first checkpoint
        return
    refuse_contradictions(config, arguments, data, checkpoint, folder)
    try:
        for key, item in persistent.items():
            item.load_state_dict(checkpoint["resume"][key])
    except (RuntimeError, ValueError, KeyError) as error:
        raise UserError(
            f"the checkpoint in {folder.path} does not fit this version of the project "
            f"({str(error).splitlines()[0]}): go on with the version that wrote it, or give "
            "another SAVE_DIR"
        ) from error
    if world.is_first:
        folder.rewind(checkpoint["step"])
    log.info("going on from step %d (epoch %d)", checkpoint["step"], checkpoint["epoch"])
    before = checkpoint["config"]["epochs"]
    if before != config.epochs:
        log.info("EPOCHS was %d and is %d: parts of the training that are over stay so, and the "
                 "learning rate follows the cosine of what is left", before, config.epochs)


def newest(config: TrainingConfig, folder: RunFolder) -> dict | None:
    """The checkpoint that a training would go on from; None: it would start anew.

    Raises:
        UserError: as `resume`.
    """
    checkpoint = None if config.resume == "never" else folder.newest()
    if checkpoint is None and config.resume == "must":
        raise UserError(f"resume=must, but {folder.path} holds no checkpoint to go on from")
    return checkpoint


def refuse_contradictions(
    config: TrainingConfig, arguments: dict, data: Data, checkpoint: dict, folder: RunFolder
) -> None:
    """Raises UserError naming every setting that differs from the checkpoint's and may not.

    A setting that did not exist when the checkpoint was written had its present default.
    """
    free = may_change(type(config))
    now = {**asdict(config), **arguments, "data": data.fingerprint}
    then = {**asdict(type(config)()), **checkpoint["config"], **checkpoint["model_args"],
            "data": checkpoint["data"]["fingerprint"]}
    different = [f"{key}={then.get(key)} (now {value})" for key, value in now.items()
                 if key not in free and then.get(key) != value]
    if different:
        raise UserError(
            f"{folder.path} holds a training with {', '.join(different)}: give its settings to go "
            "on, another SAVE_DIR to train anew, or RESUME=never to set the old one aside"
        )
