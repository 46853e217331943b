"""The shapes of a batch where the data is not: one invented record stands for all."""

from typing import Any

from attn_jax import config as config_lib

RECORDS = (
    2**20
)  # that the invented source claims; only durations in epochs depend on it


class OneRecord:
    """A source of which every record is the same one."""

    labels = None

    def __init__(self, record: Any):
        self.record = record

    def __len__(self) -> int:
        return RECORDS

    def __getitem__(self, index: int) -> Any:
        return self.record

    def fingerprint(self) -> str:
        return "invented"


def find_stand_in(config: config_lib.Section) -> tuple[Any, str]:
    """(a source that stands for the training data, what it is).

    A task that has `invent_record` tells its shapes without data. The data of others is opened.

    Raises:
        ValueError: it cannot be.
    """
    task = config_lib.build(config["task"])
    name = type(task).__name__
    if hasattr(task, "invent_record"):
        return OneRecord(task.invent_record()), f"one invented record of {name}"
    try:
        return task.source("train"), "the first record of the data"
    except (ValueError, OSError) as error:
        raise ValueError(
            f"the task {name} cannot tell the shapes of a batch without its data: {error}"
        ) from error
