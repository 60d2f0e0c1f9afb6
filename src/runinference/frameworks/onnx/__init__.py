"""Load ONNX models."""
