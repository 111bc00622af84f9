"""Deployed detectors as files that other runtimes read: ONNX, TorchScript, safetensors, Triton's model repository."""
