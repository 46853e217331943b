"""The shards of `prepare` on an Apache Beam pipeline, for corpora of many machines.

The workers need the input and the output folder at the same paths, as on a shared disk.
"""

import functools
from collections.abc import Sequence

from attn_jax.data import prepare


def make_shards(job: prepare.Job, numbers: Sequence[int], flags: Sequence[str]) -> None:
    """Makes the shards by a pipeline, and waits for its end.

    Args:
        flags: of the runner, such as "--runner=DirectRunner".

    Raises:
        ValueError: Apache Beam is not installed.
    """
    try:
        import apache_beam as beam
        from apache_beam.options.pipeline_options import PipelineOptions
    except ImportError as error:
        raise ValueError(
            f"--beam needs Apache Beam ({error}); pip install 'attn_jax[beam]'."
        ) from None

    with beam.Pipeline(options=PipelineOptions(list(flags))) as pipeline:
        (
            pipeline
            | beam.Create(list(numbers))
            | beam.Reshuffle()
            | beam.Map(functools.partial(prepare.prepare_unit, job))  # as a DoFn
        )
