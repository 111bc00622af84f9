"""The documents that a user writes, strict and checked before anything starts.

Other rooms import ``job`` (training jobs), ``search`` (search spaces), ``model`` and ``blocks`` (tables of blocks),
``hyperparameters`` (recipes and augmentation), ``assignment``, ``promotion``, ``kubernetes``, and from ``base`` what
they need to write a spec of their own. Plugins register in ``hyperparameters.AUGMENTATIONS`` and ``blocks.ROWS``.
"""
