"""A checkpoint becomes a file that other runtimes read: ONNX, or a torch.export program."""
