"""Every top-level key of a config, with its unit and the reason for its default.

A recipe starts from `get_config()` and changes what its experiment needs. The dictionary is
locked, so a misspelled key fails in the recipe itself. A duration is a string with a unit:
"500 steps", "10 epochs" (of the training split) or "1000000 examples". Types and bounds
are in attn_jax/knobs.py.
"""

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder


def get_config() -> ConfigDict:
    c = ConfigDict()

    c.recipe = ""  # family/name:variant, set when the recipe is loaded

    # What: a Flax module and a task, each {"cls": "package.module:Class", **fields}. A field
    # may be "auto": that of the checkpoint in `init_from`, or what the data says.
    c.model = {}
    c.task = {}
    # A checkpoint, of which parts that the model lacks and the head of other classes are left
    # out; or [[checkpoint, into-prefix, skip-regex], ...], where prefix "" is the whole tree.
    c.init_from = []

    # How long.
    c.seed = 0  # of initialization, data order, augmentation, dropout
    c.batch_size = 128  # examples per step over all devices; divisible by data x fsdp
    c.micro_batches = 1  # parts of a batch that are processed in turn, to save memory
    c.duration = "10 epochs"  # of the whole run

    # The update, in the order in which it is computed.
    c.clip_norm = placeholder(
        float
    )  # of the global gradient norm, without frozen parameters
    c.optimizer = {"name": "adamw"}  # attn_jax.optim.OPTIMIZERS, with its arguments
    c.learning_rate_multipliers = []  # [[path regex, factor], ...], first match wins
    c.weight_decay_on = [".*/kernel"]  # path regexes: matrices, not biases and norms
    c.schedule = {
        "name": "cosine",
        "warmup": "0 steps",
    }  # attn_jax.schedules.SCHEDULES, likewise
    c.freeze = []  # path regexes: no update, no optimizer state, no average
    c.ema_decay = placeholder(float)  # per step; evaluations then use the EMA
    c.max_skipped = 10  # steps in a row with non-finite gradients before the run ends

    # Where: mesh axes in devices; -1 takes all that remain.
    c.mesh = {"data": -1, "fsdp": 1, "tensor": 1}
    c.sharding_rules = []  # [[path regex, [mesh axis or None per dimension]], ...]
    c.fsdp_min_elements = 65_536  # smaller parameters are replicated: cheaper
    c.deterministic = False  # on GPU ask XLA for bit-identical reruns (slower)

    # Input: none of these changes the contents of a batch.
    c.data_workers = 0  # processes; 0 reads in threads, best for small images
    c.data_threads = 4  # reader threads (of each worker)
    c.data_prefetch = 4  # batches that are read ahead of the step

    # Evaluations: {name: {"split", "every", "batch_size", "task": {field: value}}}. Other task
    # fields are those of the training task. `every` None: only by the command `evaluate`.
    c.evals = {}

    # Disk.
    c.checkpoint_every = "1 epochs"  # and always at the end and on SIGTERM
    c.keep_latest = 2  # checkpoints; two, in case one is damaged
    c.keep_best = placeholder(str)  # "max:name/metric": also keep the best checkpoint
    c.save_patience_seconds = 3600.0  # how long the last save waits for disk space

    # Shown while running.
    c.log_every = "50 steps"
    c.profile = []  # [first step, last step] to record with the JAX profiler
    c.watchdog_seconds = 1800.0  # a longer step, compilation included, ends the run

    return c.lock()
