"""Detectors in the MLflow Model Registry: registered with their evidence, verified, compared, promoted and served.

What other rooms use:

- `register`: `register_detector` and `register_run`; `release`: `release`, which ends a training run.
- `versions`: `find_version`, `list_versions`; `version_files`: `detector_folder` of ``models:/NAME@ALIAS``.
- `verify`, `comparison`, `promotion`, `alias_history`, `lineage`, `import_checkpoint`: one command each.

Read `package` first: it says what a registered version holds.
"""
