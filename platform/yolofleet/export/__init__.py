"""Export: deployed detectors as files for other runtimes, and ONNX Runtime as a faster one for CPUs.

Start at `exporter.export_detector` (write a file), `verification.verify` (compare it with torch),
`runtime.load_detector` (predict with it) and `formats` (a format of one's own).
"""
