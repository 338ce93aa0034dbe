"""Torch modules written as ONNX graphs."""
