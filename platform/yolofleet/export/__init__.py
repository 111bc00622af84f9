"""Deployed detectors as files that other runtimes read: ONNX, TorchScript, safetensors, Triton's model repository.

Others use `exporter` (write a detector), `formats` (the extension point of formats), `verification` (run a file beside
torch), `quantization` (INT8), `runtime` (load a detector, with ONNX Runtime where its package has a network) and
`settings`.
"""
