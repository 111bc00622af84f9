"""Datasets: from annotations and images to shards, and from shards to batches.

Building: ``sources`` and ``read_source`` read annotations, ``check`` checks them, ``build`` writes shards, ``inspect``
reads them back, ``synth`` draws a dataset. Training: ``dataset`` reads samples, ``order`` decides which, ``stream``
makes micro-batches and ``evaluation_stream`` batches for an evaluation. ``plan``, ``anchors`` and ``survey`` compute
from the annotations; ``draw`` draws boxes. These modules are for all rooms; the others serve them. Plugins register
kinds of sources in ``sources.SOURCES``.
"""
